"""The Typer app. Every error becomes one line on standard error and an exit code here."""

import atexit
import io
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from pydantic import ValidationError

from rapm_cli import __version__
from rapm_cli.bases.places import cache_dir, data_dir
from rapm_cli.cli import commands, evaluate
from rapm_cli.cli.console import Output, lost_result
from rapm_cli.cli.distill import distill
from rapm_cli.cli.inspect import inspect
from rapm_cli.cli.renamed import Command
from rapm_cli.core.common.errors import (
    ConfigError,
    DiskError,
    OutOfMemoryError,
    RapmError,
    Stopped,
    as_told,
    is_disk_full,
)
from rapm_cli.core.method.setting_words import wanted
from rapm_cli.runs.signals import handled

LESS_MEMORY = {  # remedies for commands that ran out of memory
    "distill": "use --vram 12 or 8, a smaller --batch-size, or --discriminator latent",
    "generate": "use a smaller --batch-size, or --precision bf16",
    "eval": "use --precision bf16, or close other programs on the device",
}
EXAMPLES = {
    "distill": "rapm distill --base sdxl --rank 1",
    "generate": 'rapm generate "a photo of a woman" --steps 4 --seed 7',
    "eval": "rapm eval --base demo --samples 1000 --split held-out",
    "export": "rapm export --fuse --single-file --output model.safetensors",
    "inspect": "rapm inspect lora.safetensors --values",
}
EPILOG = (  # each paragraph is one line, which the help page wraps
    "Exit codes: 0 done; 1 bug in rapm; 2 wrong option or setting; 3 refused or damaged input; 4 weights missing; "
    "5 disk; 6 out of memory; 7 training diverged; 8 run in use by another process; 9 written file failed "
    "verification; 129, 130 or 143 stopped by a signal, with finished work saved.\n\n"
    "Documentation: README.md in the folders distill, generate, evaluate, export, inspect, study and runs of "
    f"{Path(__file__).parents[1]}"
)
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "safetensors", "huggingface_hub", "typer", "rich")
LIBRARY_SETTINGS = {  # read when the libraries are imported; the user's own values override them
    "TOKENIZERS_PARALLELISM": "false",
    "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "KINETO_LOG_LEVEL": "6",
    "TRANSFORMERS_VERBOSITY": "error",
}
_UsageError = typer.BadParameter.__bases__[0]  # Typer defines these two in a private module
_TyperError: Any = _UsageError.__bases__[0]

app = typer.Typer(
    name="rapm",
    help="Distil a diffusion model into a few-step LoRA on one graphics card, without real images.",
    epilog=EPILOG,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, _function in (
    ("distill", distill),
    ("generate", commands.generate),
    ("eval", evaluate.evaluate),
    ("export", commands.export),
    ("inspect", inspect),
):
    _settings = {"auto_envvar_prefix": f"RAPM_{_name.upper()}"}
    _epilog = (
        f"Every option can also be set as RAPM_{_name.upper()}_OPTION in the environment.\n\nExample: {EXAMPLES[_name]}"
    )
    app.command(_name, cls=Command, context_settings=_settings, epilog=_epilog)(_function)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        Output().data(f"rapm {__version__}")
        raise typer.Exit


def _show_versions(is_wanted: bool) -> None:
    if is_wanted:
        import importlib.metadata  # here, because it slows the start

        out = Output()
        out.fact("rapm", __version__)
        out.fact("python", platform.python_version())
        for name in LIBRARIES:
            out.fact(name, importlib.metadata.version(name))
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version of rapm.", is_eager=True, callback=_show_version)
    ] = False,
    versions: Annotated[
        bool,
        typer.Option(
            "--versions",
            help="Print the versions of rapm, Python and the libraries.",
            is_eager=True,
            callback=_show_versions,
        ),
    ] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; None for the process's own.

    Returns:
        Exit code: 0, one of `rapm_cli.core.common.errors`, 128 plus the number of a signal, or 1 for a bug in rapm.
    """
    for name, value in LIBRARY_SETTINGS.items():
        os.environ.setdefault(name, value)
    if "_RAPM_COMPLETE" in os.environ:  # a shell asks for completions: Typer would wrap their help texts
        os.environ["COLUMNS"] = "1000"
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        _require_docstrings()
        with handled():
            code = app(args=arguments, prog_name="rapm", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # Rich ends the process if the reader of a help page is gone
            return 0
        raise
    except Stopped as stopped:
        if stopped.message:
            Output().stopped(stopped.message, stopped.remedy)
        return stopped.exit_code
    except RapmError as error:
        return _print_error(error.message, _remedy(error), error.exit_code)
    except _TyperError as error:
        name = error.ctx.command_path if getattr(error, "ctx", None) else "rapm"
        return _print_error(
            _place(error) + _reason(error),
            f"see {name} --help",
            error.exit_code,
        )
    except Exception as error:  # noqa: BLE001  users see one line, whatever happened
        return _unexpected(error, arguments[0])


def _require_docstrings() -> None:
    """Refuse a Python without docstrings: rapm's help is made of them, and transformers cannot be imported.

    Raises:
        ConfigError: Python was started with -OO.
    """
    if sys.flags.optimize > 1:
        raise ConfigError(
            "Python runs without docstrings (PYTHONOPTIMIZE=2 or -OO), which transformers needs", "unset PYTHONOPTIMIZE"
        )


def run() -> None:
    """Run the `rapm` command. Characters that the terminal cannot show become question marks."""
    codes: list[int] = []
    atexit.register(_leave, codes)  # before any library registers one: the first exit handler runs last
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the parent process
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    codes.append(main())
    raise SystemExit(codes[0])


def _leave(codes: list[int]) -> None:
    """End the process with the code of the command, if it returned one.

    Otherwise Python visits every object, and the libraries have half a million. Measured: `rapm generate` ends 0.2 s
    after its last line instead of 1.2 s. 2 cores of an AMD EPYC, 2026-11.
    """
    for code in codes:
        for stream in (sys.stdout, sys.stderr):
            code = _flush(stream, code)
        os._exit(code)


def _flush(stream: TextIO, code: int) -> int:
    """Flush a stream, and drop what cannot be written. Otherwise Python tries again at exit and changes the exit code.

    A full disk is an error. A closed terminal or reader is not.
    """
    try:
        stream.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if is_disk_full(error) and not code:
            lost = lost_result()
            return _print_error(lost.message, lost.remedy, lost.exit_code)
    return code


def _place(error: Any) -> str:
    """Return the path of the --config file that a refused value came from, with a colon; empty for other values."""
    context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    if context is None or parameter is None:
        return ""
    source = context.get_parameter_source(parameter.name)
    return f"{context.params['config']}: " if source and source.name == "DEFAULT_MAP" else ""


def _reason(error: Any) -> str:
    """Return what is wrong with the command line. For wrong types and ranges rapm's words replace pydantic's."""
    if isinstance(error.__cause__, ValidationError):
        details = error.__cause__.errors(include_url=False)[0]
        if details["type"] != "value_error":  # an error of that type has Typer's words
            return f"{max(error.param.opts, key=len)} {details['input']} is not valid; give {wanted(details)}"
    return str(error.format_message().replace("\n", " ").replace("Value error, ", "").rstrip("."))


def _print_error(message: str, remedy: str, code: int) -> int:
    Output().error(message, remedy)
    return code


def _remedy(error: RapmError) -> str:
    """Return an error's remedy; for rapm's own folders, it names the variable that moves them."""
    if isinstance(error, DiskError) and error.place and not error.is_full:
        is_missing = not os.path.exists(error.place)  # then it is a parent that could not be made
        for folder in (cache_dir().absolute(), data_dir().absolute()):
            if error.place.is_relative_to(folder) or (is_missing and folder.is_relative_to(error.place)):
                cure = f"{error.cure}, or " if error.cure else ""
                return f"{cure}set RAPM_HOME to a folder that can be written"
    return error.remedy


def _unexpected(error: Exception, command: str) -> int:
    if os.environ.get("RAPM_DEBUG") == "1":
        raise error
    shown = as_told(error)
    remedy = LESS_MEMORY.get(command, shown.remedy) if isinstance(shown, OutOfMemoryError) else _remedy(shown)
    return _print_error(shown.message, remedy, shown.exit_code)
