"""One thin function for each command: build a config, call one workflow, show the result.

Workflows are imported inside the functions, so that help and completion load no model library.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from rapm_cli.cli import options, show
from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import ConfigError


def generate(
    prompt: Annotated[list[str] | None, typer.Argument(help="What to draw; - reads prompts from stdin.")] = None,
    steps: Annotated[int | None, typer.Option(help="N; by default what the LoRA was distilled for.")] = None,
    seed: Annotated[str, typer.Option(help="Seed of the first picture, or a range such as 7..12.")] = "0",
    num_images: Annotated[int, typer.Option(min=1, help="Pictures of each prompt; seeds count up.")] = 1,
    prompts: Annotated[str | None, typer.Option(help=options.PROMPTS)] = None,
    base: options.Base = None,
    lora: options.Lora = None,
    from_picture: Annotated[
        Path | None,
        typer.Option("--from", envvar="RAPM_GENERATE_FROM", help="Make a picture again from what it says of itself."),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Put the teacher's picture on the left.")] = False,
    grid: Annotated[bool, typer.Option("--grid", help="Also write all pictures as one.")] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures at once.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the PNGs.")] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Also show them in the terminal.")] = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    rng: options.Rng = "cpu",
    offline: options.Offline = False,
    config: options.Config = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw pictures with a distilled LoRA."""
    out = Output(as_json=as_json, quiet=quiet)
    seeds = options.parse_seeds(seed, num_images)
    wanted = options.parse_prompts(prompt, prompts, out, needed=from_picture is None)
    out.say("starting")
    from rapm_cli.bases.device import find_device, find_rng
    from rapm_cli.bases.places import pictures_dir
    from rapm_cli.generate.generate import generate as run_generate
    from rapm_cli.runs.resolve_lora import read_image_recipe, resolve_model, resolve_recipe_lora

    if from_picture:
        if wanted or steps is not None or len(seeds) > 1 or seed != "0" or compare:
            raise ConfigError("--from takes prompt, seed and steps from the picture", "leave them out")
        recipe = read_image_recipe(from_picture, lora)
        wanted, seeds, steps, compare = [recipe.prompt], [recipe.seed], recipe.steps, recipe.is_compared
        precision, rng = recipe.precision, recipe.rng
        chosen = resolve_recipe_lora(base, recipe, out)
    else:
        chosen = resolve_model(base, lora, out)
    if chosen.reason:
        out.say(f"base {chosen.base.name}, {chosen.reason}")
    if preview:
        out.expect_pictures()
    made, place = [], find_device(device)
    for picture in run_generate(
        chosen,
        wanted,
        seeds,
        steps=_or(steps, chosen.steps),
        output=output or pictures_dir(),
        device=place,
        precision=precision,
        rng=find_rng(rng, place),
        batch_size=batch_size,
        compare=compare,
        with_grid=grid,
        reporter=out,
    ):
        teacher = "" if picture.teacher_seconds is None else f", teacher {picture.teacher_seconds:.2f} s"
        out.data(f"{picture.path}  seed {picture.seed}, {picture.seconds:.2f} s{teacher}")
        if preview:
            out.picture(picture.path)
        made.append(
            {
                "path": str(picture.path),
                "prompt": picture.prompt,
                "seed": picture.seed,
                "seconds": picture.seconds,
                "teacher_seconds": picture.teacher_seconds,
            }
        )
    out.result(made)


def export(
    lora: Annotated[str | None, typer.Argument(help="LoRA file, run folder or run name; the newest run's.")] = None,
    base: options.Base = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            envvar="RAPM_EXPORT_FORMAT",
            help="Of a LoRA: diffusers, kohya, or both with a comma; both by default.",
        ),
    ] = "",
    fuse: Annotated[bool, typer.Option("--fuse", help="Merge into the base: a diffusers folder.")] = False,
    single_file: Annotated[
        bool, typer.Option("--single-file", help="With --fuse: one checkpoint that ComfyUI and A1111 open.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="Of what is written: base (as it is), fp16, bf16 or fp32.")] = "base",
    output: Annotated[
        Path | None,
        typer.Option(help="Folder to write, by default RUN-lora or RUN-fused; or a file that ends in .safetensors."),
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="ORG/NAME", help="Upload the folder to the Hugging Face hub, as you are there."),
    ] = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the LoRA, or the base with the LoRA merged in, for other programs."""
    out = Output(as_json=as_json, quiet=quiet)
    out.say("starting")
    from rapm_cli.export import export as workflow
    from rapm_cli.runs.resolve_lora import resolve_lora

    chosen = resolve_lora(base, lora, out)
    out.say(f"base {chosen.base.name}, LoRA {chosen.lora_path}")
    target = output or workflow.default_output(chosen.lora_path, fuse=fuse)
    if push_to_hub:
        workflow.check_push(push_to_hub, target)
    made = workflow.export(
        chosen.lora_path,
        chosen.base,
        target,
        reporter=out,
        formats=options.parse_names(form),
        fuse=fuse,
        single_file=single_file,
        dtype=dtype,
    )
    if push_to_hub:
        made = workflow.push(made, push_to_hub, out)
    show.exported(out, made)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
