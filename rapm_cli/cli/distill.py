"""The `distill` command. Options of settings are made from their declarations in `core.method.config`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rapm_cli.cli import completion, options, show
from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import ConfigError
from rapm_cli.core.method.config import RUN
from rapm_cli.runs import launcher


@options.with_settings(after="prompts")
def distill(
    context: typer.Context,
    run: Annotated[
        str | None,
        typer.Argument(
            autocompletion=completion.runs,
            help="With --resume: folder or name of the run.",
            show_default="newest unfinished run",
        ),
    ] = None,
    base: options.Base = None,
    prompts: Annotated[str | None, typer.Option(help=options.PROMPTS, show_default="the base's own")] = None,
    base_lora: options.BaseLora = None,
    output: Annotated[Path | None, typer.Option(help="Run folder.", show_default="a new one")] = None,
    init_lora: Annotated[
        str | None,
        typer.Option(metavar="FILE[:WEIGHT]", help="LoRA that the student starts from.", show_default="a fresh one"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume RUN with its own settings.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Estimate time, memory and disk space, and write nothing."),
    ] = False,
    preview_every: Annotated[
        int, typer.Option(help="Iterations between sheets of sample images; 0 disables them.")
    ] = 0,
    samples: Annotated[
        int, typer.Option(help="Prompts in the comparison at the end, at least 8; 0 skips it.", rich_help_panel=RUN)
    ] = 64,
    new: Annotated[
        bool,
        typer.Option(
            "--new", help="Start a new run, even if an unfinished run has the same settings.", rich_help_panel=RUN
        ),
    ] = False,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(help="Iterations between checkpoints.", show_default="200, demo: 20", rich_help_panel=RUN),
    ] = None,
    report_to: Annotated[
        str,
        typer.Option(
            autocompletion=completion.list_of(*completion.TRACKERS),
            help="Also report to tensorboard, wandb or trackio; comma-separated.",
            rich_help_panel=RUN,
        ),
    ] = "",
    preview_prompts: Annotated[
        str | None,
        typer.Option(
            help="Prompts of these sheets, at most 8; a file as for --prompts.",
            show_default="those of the contact sheet",
            rich_help_panel=RUN,
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at damaged data instead of computing it again.", rich_help_panel=RUN)
    ] = False,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic", help="Give the same bits each time on a GPU, at lower speed.", rich_help_panel=RUN
        ),
    ] = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    offline: options.Offline = False,
    config: options.Config = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    **settings: Any,
) -> None:
    """Distil a base model into a LoRA that generates images in a few steps.

    Run the same command again to resume a run that was stopped.

    The first panel has what most runs need. Defaults are those of SDXL and SD 1.5, or of demo where it has its own.
    Without --base, the base is sdxl.
    """
    is_follower = launcher.is_follower()
    out = Output(as_json=json, quiet=quiet or is_follower)
    out.say("starting")
    if alone := launcher.lone_process_warning():
        out.warn(alone)
    from rapm_cli.bases.merged import with_loras
    from rapm_cli.distill import resolve_run, workers
    from rapm_cli.distill.distill import distill as run_distill
    from rapm_cli.runs.base_loras import read_refs
    from rapm_cli.runs.fused_base import unfused_base
    from rapm_cli.runs.prompts import read_prompts

    output = options.parse_folder(output, options.LORAS, "the LoRA is a file in it, which rapm export copies")
    if resume and (new or output):
        raise ConfigError("--resume does not go with --new or --output", "leave them out")
    if run and not resume:
        raise ConfigError(f"unexpected argument {run!r}", f"to resume that run, give --resume {run}")
    given = {} if is_follower else _with_files(options.given(context), out)
    if dry_run:
        if resume:
            raise ConfigError("--dry-run estimates a whole run", "leave out --resume")
        from rapm_cli.cli import speed

        if not is_follower:
            merged = with_loras(unfused_base(base or "sdxl", out), read_refs(base_lora, out), out)
            speed.dry_run(out, merged, given, prompts, device)
        return
    with workers.joined(device, out) as world:
        if not world.is_first:
            workers.follow(world, device, out)
            return
        wanted = None if prompts is None else read_prompts(prompts, out)
        place, loras = workers.device_of(device), read_refs(base_lora, out)
        if resume:
            begun = resolve_run.resume_run(
                run, base, given, wanted, place, out, is_strict=strict, processes=world.size, base_loras=loras
            )
        else:
            found = with_loras(unfused_base(base or "sdxl", out), loras, out)
            begun = resolve_run.begin_run(
                found, given, wanted, place, out, output=output, is_new=new, is_strict=strict, processes=world.size
            )
        if begun.is_complete:
            show.finished(out, begun)
            return
        out.say(f"{'resuming' if begun.is_begun else 'run'} {begun.run.folder}")
        done = run_distill(
            begun.run,
            begun.settings,
            begun.base,
            device=begun.device,
            is_strict=strict,
            reporter=out,
            world=world,
        )
    show.distilled(out, begun, done)


def _with_files(given: dict[str, Any], out: Output) -> dict[str, Any]:
    """Return the user's options with what their files hold, and with the names of trackers that are installed.

    Raises:
        ConfigError: A tracker is unknown or not installed, or a LoRA's weight means nothing.
        InputError: A file cannot be read.
    """
    from rapm_cli.runs.base_loras import read_refs
    from rapm_cli.runs.prompts import read_prompts

    if "report_to" in given:
        from rapm_cli.distill.trackers import check_trackers

        given["report_to"] = options.parse_names(given["report_to"])
        check_trackers(given["report_to"])
    if "init_lora" in given:
        (given["init_lora"],) = read_refs([given["init_lora"]], out, "--init-lora")
    if "preview_prompts" in given:
        given["preview_prompts"] = tuple(read_prompts(given["preview_prompts"], out))
    return given
