"""The `eval` command: measure a LoRA, run a study, or run a benchmark."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rapm_cli.cli import completion, options, show
from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import ConfigError
from rapm_cli.metrics import NAMES
from rapm_cli.runs import launcher

if TYPE_CHECKING:
    import torch

    from rapm_cli.evaluate.evaluate import EvalResult
    from rapm_cli.evaluate.request import Options
    from rapm_cli.runs.resolve_lora import ResolvedLora

WHAT, REAL, OTHER = "Measurement", "Real images and networks", "Instead of an evaluation"
ONLY_DEMO = ("split",)
ONLY_OTHERS = (
    *("protocol", "reference", "save_reference", "prompts", "compare_lora"),
    *("inception", "clip_model", "size"),
)


def evaluate(
    context: typer.Context,
    base: options.Base = None,
    lora: options.Lora = None,
    base_lora: options.BaseLora = None,
    compare_lora: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.runs,
            help="Second LoRA, compared with the first prompt by prompt.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of prompts; on demo in each split.",
            show_default="640 on demo, else 1000",
            rich_help_panel=WHAT,
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.list_of(*NAMES),
            help=f"Comma-separated: {', '.join(NAMES)}. attributes and pictures are for demo alone: the shares of "
            "attributes and of whole images that are right.",
            show_default="the usual ones for the base",
            rich_help_panel=WHAT,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the prompts and the noise.", rich_help_panel=WHAT)] = 0,
    split: Annotated[
        Literal["both", "held-out", "seen"],
        typer.Option(help="On demo: prompts held out from training, seen in training, or both.", rich_help_panel=WHAT),
    ] = "both",
    prompts: Annotated[str | None, typer.Option(help=options.PROMPTS, rich_help_panel=WHAT)] = None,
    teacher_samples: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Number of prompts that the teacher samples too, and every model again with other noise.",
            show_default="64",
            rich_help_panel=WHAT,
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images in a batch.", rich_help_panel=WHAT)] = None,
    size: options.Size = None,
    protocol: Annotated[
        Literal["coco30k", "dmd2-coco30k", "dmd2-coco10k"] | None,
        typer.Option(
            metavar="<choice>",
            help="Prompts, image size and reference of published results. One of coco30k, dmd2-coco30k, dmd2-coco10k.",
            rich_help_panel=REAL,
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Real images: a folder, coco:DIR, or a file of statistics.", rich_help_panel=REAL),
    ] = None,
    save_reference: Annotated[
        Path | None,
        typer.Option(help="File to write the statistics of --reference to; nothing is measured.", rich_help_panel=REAL),
    ] = None,
    inception: Annotated[
        Path | None,
        typer.Option(
            help="Inception weights for FID and KID.",
            show_default="found in RAPM_WEIGHTS_DIR or torch hub's cache",
            rich_help_panel=REAL,
        ),
    ] = None,
    clip_model: Annotated[
        str | None, typer.Option(help="CLIP model: ORG/NAME, ORG/NAME@REVISION, or a folder.", rich_help_panel=REAL)
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.studies,
            help="Distil and measure each row of a study: a TOML file, or the name of a shipped study such as default.",
            rich_help_panel=OTHER,
        ),
    ] = None,
    benchmark: Annotated[
        bool,
        typer.Option("--benchmark", help="Measure speed and memory, with random weights.", rich_help_panel=OTHER),
    ] = False,
    check_metrics: Annotated[
        bool,
        typer.Option(
            "--check-metrics",
            help="Damage the teacher's images in known ways, and print every metric's answer; 128 prompts by default.",
            rich_help_panel=OTHER,
        ),
    ] = False,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="With --benchmark: also list the slowest operations, and compare compile, channels-last and no "
            "CUDA graphs.",
            rich_help_panel=OTHER,
        ),
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Folder for the report.")] = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    offline: options.Offline = False,
    config: options.Config = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure a LoRA beside its teacher and the undistilled base, on the same prompts and noise.

    --study distils and measures the rows of a study instead; --benchmark measures the device; --check-metrics shows
    what the metrics see.
    """
    is_follower = launcher.is_follower()
    out = Output(as_json=json, quiet=quiet or is_follower)
    out.say("starting")
    if alone := launcher.lone_process_warning():
        out.warn(alone)
    if study is not None:
        from rapm_cli.cli import study as studies

        studies.check_alone(options.typed(context))
        studies.study(out, study, output, device)
        return
    if benchmark or profile:
        if not benchmark or lora:
            raise ConfigError("--profile goes with --benchmark, and --benchmark without --lora", "see rapm eval --help")
        from rapm_cli.cli import speed

        speed.benchmark(out, base or "sdxl", device, precision, is_profiled=profile)
        return
    from rapm_cli.bases.device import find_device
    from rapm_cli.evaluate.request import Options
    from rapm_cli.runs.base_loras import read_refs
    from rapm_cli.runs.resolve_lora import resolve_lora
    from rapm_cli.runs.retry import ready_folder

    names = None if metrics is None else options.parse_names(metrics)
    asked = Options(
        protocol=protocol, prompts=prompts, reference=reference, metrics=names, samples=samples, seed=seed,
        batch_size=batch_size, teacher_samples=teacher_samples, inception=inception, clip_model=clip_model, split=split,
        size=size,
    )  # fmt: skip
    place = find_device(_device_of(device))
    if save_reference is not None:
        if is_follower:
            return
        _save_reference(out, asked, save_reference, place)
        return
    if output is not None and not is_follower:
        ready_folder(output)
    if check_metrics:
        _check_metrics(out, base or "demo", options.typed(context), asked, place, precision)
        return
    loras = read_refs(base_lora, out)
    chosen = resolve_lora(base, lora, out, loras)
    out.say(f"base {chosen.base.name}, LoRA {chosen.lora_path}")
    _refuse_for(options.typed(context), chosen)
    second = [resolve_lora(base or chosen.base.source, compare_lora, out, loras)] if compare_lora else []
    _evaluate(out, [chosen, *second], asked, output, place, precision)


def _device_of(name: str) -> str:
    """Return the device of this process, for a `--device` given to all processes."""
    if launcher.world_size() == 1:
        return name
    from rapm_cli.distill.workers import device_of

    return device_of(name)


def _refuse_for(typed: list[str], chosen: "ResolvedLora") -> None:
    """Refuse options that do not apply to a base."""
    for name in ONLY_DEMO if chosen.base.labelled_prompts is None else ONLY_OTHERS:
        if name in typed:
            raise ConfigError(f"--{name.replace('_', '-')} does not apply to base {chosen.base.name}", "leave it out")


def _check_metrics(
    out: Output, base: str, typed: list[str], asked: "Options", device: "torch.device", precision: str
) -> None:
    """Show what the metrics answer to damaged images of the teacher."""
    from dataclasses import replace

    from rapm_cli.bases.device import describe_machine
    from rapm_cli.evaluate.check_metrics import CHECKED, check_metrics, check_record, for_check
    from rapm_cli.evaluate.request import build_request
    from rapm_cli.runs.resolve_lora import without_lora

    if {"lora", "compare_lora"} & {*typed}:
        raise ConfigError("--check-metrics needs the teacher alone", "leave out --lora and --compare-lora")
    chosen = without_lora(base, out)
    _refuse_for(typed, chosen)
    if launcher.is_follower():
        return
    samples = CHECKED if asked.samples is None else asked.samples
    request = for_check(build_request(chosen, replace(asked, samples=samples, teacher_samples=samples), out))
    made = check_metrics(chosen, request, device=device, precision=precision, reporter=out)
    record = check_record(made, request, chosen.base.name, describe_machine(device))
    show.checked_metrics(out, record)
    out.result(record)


def _evaluate(
    out: Output,
    students: "list[ResolvedLora]",
    asked: "Options",
    output: Path | None,
    device: "torch.device",
    precision: str,
) -> None:
    """Evaluate one student or two, show the result, and write its page."""
    from rapm_cli.evaluate.evaluate import evaluate as run_evaluation
    from rapm_cli.evaluate.evaluate import sample_all
    from rapm_cli.evaluate.request import build_request

    request = build_request(students[0], asked, out)
    if launcher.is_follower():  # samples its share
        sample_all(students, request, device=device, precision=precision, reporter=out)
        return
    made = run_evaluation(students, request, device=device, precision=precision, reporter=out)
    record = _reported(out, made, students, output, device)
    show.evaluation(out, record)
    out.result(record)


def _reported(
    out: Output, made: "EvalResult", students: "list[ResolvedLora]", output: Path | None, device: "torch.device"
) -> dict[str, Any]:
    """Write the page of an evaluation, and return its record."""
    from rapm_cli.bases.device import describe_machine
    from rapm_cli.bases.places import reports_dir
    from rapm_cli.evaluate.html import write_report
    from rapm_cli.evaluate.record import to_record
    from rapm_cli.evaluate.report import evaluation_report

    base, loras = students[0].base.name, [str(chosen.lora_path) for chosen in students]
    record = to_record(made, base=base, loras=loras, machine=describe_machine(device))
    name = "-".join([base, *(chosen.lora.digest()[:8] for chosen in students), made.fingerprint[:8]])
    path = (reports_dir() / name if output is None else output) / "report.html"
    write_report(evaluation_report(made, record, students), path, out)
    return record | {"report": str(path)}


def _save_reference(out: Output, asked: "Options", path: Path, device: "torch.device") -> None:
    from rapm_cli.evaluate.features import save_reference

    made = save_reference(asked, path, device, out)
    out.data(f"{path}  {made.description}")
    out.result({"path": str(path), "made": made.description, "files": made.files, "source": made.source})
