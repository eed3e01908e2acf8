"""Options that several commands share, options made from the training settings, and parsers of option values."""

import inspect
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from rapm_cli.cli import completion
from rapm_cli.cli.config_file import read_config_file
from rapm_cli.cli.console import Output, is_terminal
from rapm_cli.core.common.errors import ConfigError
from rapm_cli.core.method.config import Option, option_name
from rapm_cli.core.method.config import options as declared_options
from rapm_cli.core.method.sizes import parse_sizes

MAX_SEEDS = 100_000
IMAGES = (".png", ".jpg", ".jpeg", ".webp")  # endings of a file's name
LORAS = (".safetensors", ".ckpt", ".pt")
PROMPTS = "Prompts: text, JSON lines, COCO captions or CSV file, FILE.csv:COLUMN, or - for standard input."


def _go_offline(is_wanted: bool) -> bool:
    """Set the variable that huggingface_hub reads when it is imported."""
    if is_wanted:
        os.environ["HF_HUB_OFFLINE"] = "1"
    return is_wanted


Base = Annotated[
    str | None,
    typer.Option(
        "--base",
        envvar="RAPM_BASE",
        autocompletion=completion.words(*completion.BASES),
        help="Base model: demo, sdxl, sd15, a diffusers folder, a .safetensors checkpoint, or ORG/NAME on the hub.",
    ),
]
BaseLora = Annotated[
    list[str] | None,
    typer.Option(
        "--base-lora",
        metavar="FILE[:WEIGHT]",
        help="LoRA of your own, merged into the base; can be repeated.",
        show_default=False,
    ),
]
Lora = Annotated[
    str | None,
    typer.Option(
        "--lora",
        autocompletion=completion.runs,
        help="LoRA file, run folder or name, or ORG/NAME:FILE on the hub.",
        show_default="newest run",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        envvar="RAPM_DEVICE",
        autocompletion=completion.words(*completion.DEVICES),
        help="auto, cpu, cuda, cuda:N or mps.",
    ),
]
AnyPrecision = Literal["auto", "fp32", "bf16", "fp16"]
Precision = Annotated[
    AnyPrecision, typer.Option(envvar="RAPM_PRECISION", help="Floating-point format of the frozen weights.")
]
Size = Annotated[
    str | None, typer.Option("--size", help="Size of the images, such as 832x1216.", show_default="the base's own")
]
Rng = Annotated[
    Literal["cpu", "device"],
    typer.Option(
        "--rng", help="Where to generate noise: cpu (the same on every machine), or device, as diffusers does."
    ),
]
Offline = Annotated[
    bool, typer.Option("--offline", callback=_go_offline, help="Use no network, as HF_HUB_OFFLINE=1 does.")
]
Json = Annotated[
    bool,
    typer.Option("--json", envvar="RAPM_JSON", help="Print only the result, as JSON on standard output."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no messages and no progress bars.")]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        is_eager=True,
        callback=read_config_file,
        help="TOML file of options; flags and the environment override it.",
    ),
]


def with_settings(after: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that replaces a command's `**settings` by an option for each setting that `config` declares.

    Args:
        after: Parameter of the command after which the options stand on the help page.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        found = [one for one in signature.parameters.values() if one.kind != one.VAR_KEYWORD]
        own = [one.replace(kind=one.KEYWORD_ONLY) for one in found]
        place = [one.name for one in own].index(after) + 1
        own[place:place] = [_parameter(name, field, option) for name, field, option in declared_options()]
        command.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in own}
        return command

    return decorate


def _parameter(name: str, field: FieldInfo, option: Option) -> inspect.Parameter:
    """Return the option of a setting as Typer reads it. A switch that is on by default becomes `--no-NAME`."""
    kind: Any = field.annotation
    parameter, words, default = parameter_name(name, field), field.description or "", field.default
    if kind is bool and default:
        words, default = f"Do not {words[0].lower()}{words[1:]}", False
    if get_origin(kind) is tuple:
        kind, default = str, ""
    metavar = "<choice>" if get_origin(kind) is Literal else None  # the list itself would cut long names off
    if metavar:
        words = f"{words} One of {', '.join(get_args(kind))}."
    if option.is_bases:
        kind, default = kind | None, None
    shown = typer.Option(
        f"--{parameter.replace('_', '-')}",
        help=words,
        metavar=metavar,
        rich_help_panel=option.panel or None,
        show_default=option.shown_default or True,
    )
    return inspect.Parameter(
        parameter, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, shown]
    )


def parameter_name(name: str, field: FieldInfo) -> str:
    """Return the name of a setting's command-line parameter: a switch that is on by default gets `no_`."""
    flag = option_name(name).replace("-", "_")
    return f"no_{flag}" if field.annotation is bool and field.default else flag


def given(context: typer.Context) -> dict[str, Any]:
    """Return what the user set, by flag, environment or file, under the names of the settings."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    named = [name for name, source in sources.items() if source and source.name != "DEFAULT"]
    return as_settings({name: context.params[name] for name in named})


def typed(context: typer.Context) -> list[str]:
    """Return the names of what the user set for this very command: by flag or file, not by the environment."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return [name for name, source in sources.items() if source and source.name in ("COMMANDLINE", "DEFAULT_MAP")]


def as_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Return values of options of `distill` under the names of their settings.

    Args:
        values: Names of the command's parameters to values.

    Raises:
        ConfigError: The slot weights are no numbers, or the sizes no sizes.
    """
    names = {option_name(name).replace("-", "_"): name for name, *_ in declared_options()}
    named = {names.get(name, name): value for name, value in values.items()}
    for name in [name for name in named if name.removeprefix("no_") != name]:
        named[name.removeprefix("no_")] = not named.pop(name)
    if isinstance(named.get("slot_weights"), str):
        named["slot_weights"] = parse_numbers(named["slot_weights"], "--slot-weights")
    if isinstance(named.get("sizes"), str):
        named["sizes"] = parse_sizes(named["sizes"])
    return named


def parse_seeds(text: str, count: int) -> list[int]:
    """Return the seeds of "7..12", or `count` seeds from "7" on.

    Raises:
        ConfigError: The text is neither a number nor a range, or has too many seeds.
    """
    from rapm_cli.runs.prompts import LAST_SEED

    match = re.fullmatch(r"([0-9]{1,40})(?:\.\.([0-9]{1,40}))?", text.strip())
    first = int(match[1]) if match else LAST_SEED
    last = int(match[2]) if match and match[2] else first + count - 1
    if not match or max(first, last) > LAST_SEED:
        raise ConfigError(
            f"--seed {text!r} is not a seed from 0 to {LAST_SEED}", "give a number such as 7, or a range such as 7..12"
        )
    if match[2] and count != 1:
        raise ConfigError("--seed has a range, so that --num-images does not apply", "give one of them")
    if not 0 <= last - first < MAX_SEEDS:
        raise ConfigError(f"--seed {text} is not a range of 1 to {MAX_SEEDS:,} seeds", "write it as LOW..HIGH")
    return list(range(first, last + 1))


def parse_folder(path: Path | None, endings: tuple[str, ...], remedy: str) -> Path | None:
    """Return the path of a folder to write to.

    Args:
        path: Value of `--output`.
        endings: Endings of the files that the command writes into the folder.
        remedy: What becomes of these files.

    Raises:
        ConfigError: It has the name of such a file, and is no folder.
    """
    if path is not None and path.suffix.lower() in endings and not path.is_dir():
        raise ConfigError(
            f"--output {path} is the name of a file, and --output is a folder",
            f"give --output {shlex.quote(str(path.with_suffix('')))}; {remedy}",
        )
    return path


def parse_names(text: str) -> tuple[str, ...]:
    """Return the names in a comma-separated list."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def parse_numbers(text: str, option: str) -> tuple[float, ...]:
    """Return the numbers in a comma-separated list.

    Raises:
        ConfigError: One of them is no number.
    """
    try:
        return tuple(float(part) for part in text.split(",")) if text.strip() else ()
    except ValueError as error:
        raise ConfigError(f"{option} {text!r} is not a list of numbers", "write it as 1,1,0.5,0.5") from error


def parse_prompts(words: list[str] | None, file: str | None, out: Output, *, needed: bool) -> list[str]:
    """Return prompts from the command line, a file, or standard input if it is not a terminal.

    Args:
        words: Prompts on the command line; "-" reads standard input.
        file: Prompt file, as `--prompts` takes it.
        out: Prints warnings about the file.
        needed: Whether to read standard input if there is no prompt.

    Raises:
        ConfigError: There is no prompt, and standard input is a terminal; or one prompt lacks its quotes.
        InputError: A prompt is empty, too long, or has control characters.
    """
    from rapm_cli.runs.prompts import check_prompt, read_prompts, warn_of_syntax

    given = [check_prompt(word, "a prompt") for word in words or [] if word != "-"]
    if len(given) > 1 and not any(re.search(r"\s", word) for word in given):
        raise ConfigError(
            f"these are {len(given)} prompts of one word each",
            f"put one prompt in quotes, {shlex.quote(' '.join(given))}; or write such prompts line by line in a file",
        )
    warn_of_syntax(given, out)
    if file is not None:
        given += read_prompts(file, out)
    elif "-" in (words or []):
        given += read_prompts("-", out)
    elif not given and needed:
        if is_terminal():
            raise ConfigError("there is no prompt", 'give a prompt: rapm generate "a red cube left of a blue sphere"')
        given = read_prompts("-", out)
    return list(dict.fromkeys(given))
