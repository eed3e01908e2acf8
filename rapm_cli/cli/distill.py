"""The `distill` command: its options in panels, and one call of the workflow."""

from pathlib import Path
from typing import Annotated

import typer

from rapm_cli.cli import options, show
from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import ConfigError
from rapm_cli.runs import launcher

METHOD, TRAINING, RUN = "Method", "Training", "Run"


def distill(
    context: typer.Context,
    run: Annotated[
        str | None, typer.Argument(help="With --resume: folder or name of a run; the newest unfinished one's.")
    ] = None,
    base: options.Base = None,
    method: Annotated[
        str, typer.Option(help="rapm, or a peer in the same trainer: pcm, lcm, dmd2, kd.", rich_help_panel=METHOD)
    ] = "rapm",
    steps: Annotated[int, typer.Option(help="N, the student's steps.", rich_help_panel=METHOD)] = 4,
    fine_steps: Annotated[
        int | None, typer.Option(help="M, teacher steps in each of the student's.", rich_help_panel=METHOD)
    ] = None,
    delta: Annotated[
        int, typer.Option(help="Fine teacher steps before the student takes over.", rich_help_panel=METHOD)
    ] = 1,
    guidance: Annotated[
        float | None, typer.Option(help="The teacher's guidance scale; 1 is none.", rich_help_panel=METHOD)
    ] = None,
    relative_weight: Annotated[
        float, typer.Option(help="Weight of the relative target; 0 leaves it out.", rich_help_panel=METHOD)
    ] = 1.0,
    absolute_weight: Annotated[
        float, typer.Option(help="Weight of the absolute target; 0 leaves it out.", rich_help_panel=METHOD)
    ] = 1.0,
    adversarial_weight: Annotated[
        float, typer.Option(help="Weight of the adversarial losses.", rich_help_panel=METHOD)
    ] = 0.1,
    slot_weights: Annotated[
        str, typer.Option(help="Weight of each step's loss, noisiest first, as 1,1,1,1.", rich_help_panel=METHOD)
    ] = "",
    start_from: Annotated[
        str,
        typer.Option(
            help="Where a step starts: student (its own position), teacher, or mixed by chance.", rich_help_panel=METHOD
        ),
    ] = "student",
    discriminators: Annotated[
        str, typer.Option(help="both, relative, absolute or none; pcm has one, or none.", rich_help_panel=METHOD)
    ] = "both",
    fake_updates: Annotated[
        int,
        typer.Option(help="dmd2: updates of the fake score for each of the student's.", rich_help_panel=METHOD),
    ] = 5,
    lcm_times: Annotated[
        int,
        typer.Option(
            help="lcm: times that it is trained at, a divisor of 1000; fewer learn faster.", rich_help_panel=METHOD
        ),
    ] = 50,
    discriminator: Annotated[
        str,
        typer.Option(help="unet (frozen features), unet-mid (the deepest), latent (light).", rich_help_panel=METHOD),
    ] = "unet",
    discriminator_times: Annotated[
        str,
        typer.Option(
            help="Noise that it sees latents under: slot (of the slot above), edge (none), all.", rich_help_panel=METHOD
        ),
    ] = "slot",
    rank: Annotated[int | None, typer.Option(help="LoRA rank.", rich_help_panel=TRAINING)] = None,
    alpha: Annotated[
        float | None, typer.Option(help="LoRA alpha; by default the rank.", rich_help_panel=TRAINING)
    ] = None,
    lora_init: Annotated[
        str, typer.Option(help="How its A begins: kaiming or gaussian.", rich_help_panel=TRAINING)
    ] = "kaiming",
    iterations: Annotated[int | None, typer.Option(help="Walks over all steps.", rich_help_panel=TRAINING)] = None,
    trajectories: Annotated[int | None, typer.Option(help="Teacher trajectories.", rich_help_panel=TRAINING)] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Trajectories in an iteration.", rich_help_panel=TRAINING)
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The student's.", rich_help_panel=TRAINING)] = None,
    final_rate: Annotated[float, typer.Option(help="Share of that rate at the end.", rich_help_panel=TRAINING)] = 0.1,
    ema_decay: Annotated[
        float,
        typer.Option(help="The LoRA is a running average that keeps so much; 0: none.", rich_help_panel=TRAINING),
    ] = 0.0,
    discriminator_learning_rate: Annotated[
        float | None,
        typer.Option(help="The discriminators', and dmd2's fake score's.", show_envvar=False, rich_help_panel=TRAINING),
    ] = None,
    warmup: Annotated[int | None, typer.Option(help="Iterations of rising rate.", rich_help_panel=TRAINING)] = None,
    weight_decay: Annotated[float, typer.Option(help="The student's, AdamW.", rich_help_panel=TRAINING)] = 0.0,
    max_grad_norm: Annotated[
        float, typer.Option(help="Gradients are clipped to this norm.", rich_help_panel=TRAINING)
    ] = 1.0,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Recompute activations: less memory.", rich_help_panel=TRAINING)
    ] = False,
    vram: Annotated[
        str, typer.Option(help="Memory of the card in GB: auto, 24, 16, 12 or 8.", rich_help_panel=TRAINING)
    ] = "auto",
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the transformer blocks.", rich_help_panel=TRAINING)
    ] = False,
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Layout of the convolutions.", rich_help_panel=TRAINING)
    ] = False,
    no_graphs: Annotated[
        bool, typer.Option("--no-graphs", help="Start kernels one by one on a GPU.", rich_help_panel=TRAINING)
    ] = False,
    prompts: Annotated[str | None, typer.Option(help=options.PROMPTS, rich_help_panel=RUN)] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything.", rich_help_panel=RUN)] = 0,
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
    save_every: Annotated[int | None, typer.Option(help="Iterations between commits.", rich_help_panel=RUN)] = None,
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
) -> None:
    """Distil a base model into a LoRA that draws in a few steps.

    The same command again goes on with a run that was stopped.

    Where no default is shown, each base has its own. Without --base it is sdxl.
    """
    is_follower = launcher.is_follower()
    out = Output(as_json=as_json, quiet=quiet or is_follower)
    out.say("starting")
    from rapm_cli.distill import resolve_run, workers
    from rapm_cli.distill.callbacks import CallbackOptions
    from rapm_cli.distill.distill import distill as run_distill
    from rapm_cli.runs.fused_base import unfused_base
    from rapm_cli.runs.prompts import read_prompts

    callback_options = CallbackOptions(options.parse_names(report_to), preview_every)
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
            speed.foresee(out, unfused_base(base or "sdxl", out), given, prompts, device)
        return
    with workers.joined(device, out) as world:
        if not world.is_first:
            workers.follow(world, device, out)
            return
        wanted = None if prompts is None else read_prompts(prompts, out)
        place = workers.device_of(device)
        if resume:
            begun = resolve_run.resume_run(run, base, given, wanted, place, out, is_strict=strict, processes=world.size)
        else:
            found = unfused_base(base or "sdxl", out)
            begun = resolve_run.begin_run(
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
            callback_options=callback_options,
        )
    show.distilled(out, begun, done)
