"""The `generate` and `export` commands.

Model libraries are imported inside the functions, so that help and completion stay fast.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rapm_cli.cli import completion, options, show
from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import ConfigError


def generate(
    prompt: Annotated[list[str] | None, typer.Argument(help="Prompts; - reads them from standard input.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Sampling steps.", show_default="the steps that the LoRA was distilled for")
    ] = None,
    seed: Annotated[str, typer.Option(help="Seed of the first image, or a range such as 7..12.")] = "0",
    num_images: Annotated[int, typer.Option(min=1, help="Images for each prompt, with consecutive seeds.")] = 1,
    prompts: Annotated[str | None, typer.Option(help=options.PROMPTS)] = None,
    size: options.Size = None,
    base: options.Base = None,
    lora: options.Lora = None,
    base_lora: options.BaseLora = None,
    with_lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:WEIGHT]", help="Other LoRA beside it; can be repeated.", show_default=False),
    ] = None,
    lora_weight: Annotated[float, typer.Option(help="Weight of the few-step LoRA.")] = 1.0,
    sampler: Annotated[
        Literal["ddim", "lcm", "euler", "tcd", "dmd2"] | None,
        typer.Option(help="Sampler, for LoRAs of other methods.", show_default="the LoRA's own, else ddim"),
    ] = None,
    from_image: Annotated[
        Path | None,
        typer.Option("--from", envvar="RAPM_GENERATE_FROM", help="PNG by rapm: generate its image again."),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Place the teacher's image on the left.")] = False,
    grid: Annotated[bool, typer.Option("--grid", help="Also write one image that shows all.")] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images in a batch.", show_default="depends on the base")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the PNG files.", show_default="among the data of rapm")
    ] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Also show the images in the terminal.")] = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    rng: options.Rng = "cpu",
    offline: options.Offline = False,
    config: options.Config = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Generate images with a distilled LoRA."""
    out = Output(as_json=json, quiet=quiet)
    seeds = options.parse_seeds(seed, num_images)
    output = options.parse_folder(output, options.IMAGES, "numbers and seeds become the images' names")
    wanted = options.parse_prompts(prompt, prompts, out, needed=from_image is None)
    out.say("starting")
    from rapm_cli.bases.device import find_device, find_rng
    from rapm_cli.bases.places import pictures_dir
    from rapm_cli.generate.generate import generate as run_generate
    from rapm_cli.generate.variations import beside, sampled_with, weighted
    from rapm_cli.runs.base_loras import read_refs
    from rapm_cli.runs.resolve_lora import read_image_recipe, resolve_model, resolve_recipe_lora

    others = read_refs(with_lora, out, "--with-lora")
    loaded_as, noise_on, walk = str(precision), str(rng), str(sampler or "")
    if from_image:
        if (
            wanted
            or steps is not None
            or len(seeds) > 1
            or seed != "0"
            or compare
            or size
            or sampler
            or lora_weight != 1
        ):
            raise ConfigError(
                "--from takes prompt, seed, steps, size, sampler and weights from the image", "leave them out"
            )
        recipe = read_image_recipe(from_image, lora, out)
        wanted, seeds, steps, compare = [recipe.prompt], [recipe.seed], recipe.steps, recipe.is_compared
        loaded_as, noise_on, size = recipe.precision, recipe.rng, recipe.size
        chosen = resolve_recipe_lora(base, recipe, from_image, out, [*others, *read_refs(base_lora, out)])
        walk, lora_weight = recipe.sampler or "", recipe.lora_weight
    else:
        chosen = beside(resolve_model(base, lora, out, read_refs(base_lora, out)), others, out)
    chosen = weighted(chosen, lora_weight)
    if walk:
        chosen = sampled_with(chosen, walk, _or(steps, chosen.steps))
    if chosen.reason:
        out.say(f"base {chosen.base.name}, {chosen.reason}")
    if preview:
        out.expect_images()
    made, place = [], find_device(device)
    for image in run_generate(
        chosen,
        wanted,
        seeds,
        steps=_or(steps, chosen.steps),
        output=output or pictures_dir(),
        device=place,
        precision=loaded_as,
        rng=find_rng(noise_on, place),
        batch_size=batch_size,
        compare=compare,
        with_grid=grid,
        size=size,
        reporter=out,
    ):
        teacher = "" if image.teacher_seconds is None else f", teacher {image.teacher_seconds:.2f} s"
        out.data(f"{image.path}  seed {image.seed}, {image.seconds:.2f} s{teacher}")
        if preview:
            out.image(image.path)
        made.append(
            {
                "path": str(image.path),
                "prompt": image.prompt,
                "seed": image.seed,
                "seconds": image.seconds,
                "teacher_seconds": image.teacher_seconds,
            }
        )
    out.result(made)


def export(
    lora: Annotated[
        str | None,
        typer.Argument(
            autocompletion=completion.runs,
            help="LoRA file, run folder or name, or ORG/NAME:FILE on the hub.",
            show_default="newest run",
        ),
    ] = None,
    base: options.Base = None,
    base_lora: options.BaseLora = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            envvar="RAPM_EXPORT_FORMAT",
            autocompletion=completion.list_of(*completion.FORMATS),
            help="Format of the LoRA: diffusers, kohya, or both with a comma.",
            show_default="both in a folder, kohya in a .safetensors file",
        ),
    ] = "",
    fuse: Annotated[
        bool, typer.Option("--fuse", help="Merge the LoRA into the base, and write a diffusers folder.")
    ] = False,
    single_file: Annotated[
        bool, typer.Option("--single-file", help="With --fuse: write one checkpoint file for ComfyUI and A1111.")
    ] = False,
    absorb: Annotated[
        bool, typer.Option("--absorb", help="Write one LoRA that also holds the LoRAs of --base-lora.")
    ] = False,
    dtype: Annotated[
        Literal["base", "fp16", "bf16", "fp32"],
        typer.Option(help="Floating-point format to write; base keeps that of the base."),
    ] = "base",
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write; or one file that ends in .safetensors, in kohya's format without --format.",
            show_default="RUN-lora or RUN-fused",
        ),
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="ORG/NAME", help="Upload the folder to this repository on the Hugging Face hub."),
    ] = None,
    offline: options.Offline = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the LoRA, or the base with the LoRA merged into it, for other programs."""
    out = Output(as_json=json, quiet=quiet)
    out.say("starting")
    from rapm_cli.export import export as workflow
    from rapm_cli.runs.base_loras import read_refs
    from rapm_cli.runs.resolve_lora import resolve_lora

    chosen = resolve_lora(base, lora, out, read_refs(base_lora, out))
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
        absorb=absorb,
    )
    if push_to_hub:
        made = workflow.push(made, push_to_hub, out)
    show.exported(out, made)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
