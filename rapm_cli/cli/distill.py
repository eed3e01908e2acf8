"""The `distill` command: its options in panels, and one call of the workflow."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rapm_cli.cli import options, show
from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import ConfigError
from rapm_cli.core.method.config import RUN
from rapm_cli.runs import launcher


@options.with_settings
def distill(
    context: typer.Context,
    run: Annotated[
        str | None, typer.Argument(help="With --resume: folder or name of a run; the newest unfinished one's.")
    ] = None,
    base: options.Base = None,
    prompts: Annotated[str | None, typer.Option(help=options.PROMPTS, rich_help_panel=RUN)] = None,
    samples: Annotated[
        int, typer.Option(help="Prompts of the comparison at the end, at least 8; 0 for none.", rich_help_panel=RUN)
    ] = 64,
    output: Annotated[
        Path | None, typer.Option(help="Run folder; one of its own by default.", rich_help_panel=RUN)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with RUN, with its own settings.", rich_help_panel=RUN)
    ] = False,
    new: Annotated[
        bool,
        typer.Option(
            "--new", help="Begin another run, even where an unfinished one has these settings.", rich_help_panel=RUN
        ),
    ] = False,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Iterations between checkpoints.", rich_help_panel=RUN)
    ] = None,
    report_to: Annotated[
        str, typer.Option(help="Also draw curves in: tensorboard, wandb, trackio.", rich_help_panel=RUN)
    ] = "",
    preview_every: Annotated[
        int, typer.Option(help="Iterations between pictures of the student in training; 0: none.", rich_help_panel=RUN)
    ] = 0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at damaged data instead of repeating work.", rich_help_panel=RUN)
    ] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same bits each time on a GPU; slower.", rich_help_panel=RUN)
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take, and write nothing.", rich_help_panel=RUN)
    ] = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    offline: options.Offline = False,
    config: options.Config = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    **settings: Any,
) -> None:
    """Distil a base model into a LoRA that draws in a few steps.

    The same command again goes on with a run that was stopped.

    Where no default is shown, each base has its own. Without --base it is sdxl.
    """
    is_follower = launcher.is_follower()
    out = Output(as_json=as_json, quiet=quiet or is_follower)
    out.say("starting")
    from rapm_cli.distill import resolve_run, workers
    from rapm_cli.distill.callbacks import Reporting
    from rapm_cli.distill.distill import distill as run_distill
    from rapm_cli.runs.fused_base import undistilled_base
    from rapm_cli.runs.prompts import read_prompts

    reporting = Reporting(options.parse_names(report_to), preview_every)
    if resume and (new or output):
        raise ConfigError("--resume goes on with a run where it is", "leave out --new and --output")
    if run and not resume:
        raise ConfigError(f"there is an argument too many: {run}", f"to go on with that run give --resume {run}")
    given = options.given(context)
    if dry_run:
        if resume:
            raise ConfigError("--dry-run foresees a whole run", "leave out --resume")
        from rapm_cli.cli import speed

        if not is_follower:
            speed.foresee(out, undistilled_base(base or "sdxl", out), given, prompts, device)
        return
    with workers.joined(device, out) as world:
        if not world.is_first:
            workers.follow(world, device, out)
            return
        wanted = None if prompts is None else read_prompts(prompts, out)
        place = workers.device_of(device)
        if resume:
            begun = resolve_run.resume(run, base, given, wanted, place, out, is_strict=strict, processes=world.size)
        else:
            found = undistilled_base(base or "sdxl", out)
            begun = resolve_run.begin(
                found, given, wanted, place, out, output=output, is_new=new, is_strict=strict, processes=world.size
            )
        if begun.is_complete:
            show.finished(out, begun)
            return
        out.say(f"{'going on with' if begun.is_begun else 'run'} {begun.run.folder}")
        done = run_distill(
            begun.run,
            begun.settings,
            begun.base,
            device=begun.device,
            is_strict=strict,
            reporter=out,
            world=world,
            reporting=reporting,
        )
    show.distilled(out, begun, done)
