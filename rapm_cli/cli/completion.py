"""Static completion scripts, written from the command tree: `python -m rapm_cli.cli.completion completions`.

Static, so that a press of TAB never starts Python. Run names are read by the shell from the runs folder.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import typer

from rapm_cli.core.common.errors import ConfigError, DiskError
from rapm_cli.core.storage.files import replace_file

# What an option takes, where it is not any text; a test holds these against the registries.
VALUES = {
    "base": ("demo", "sdxl", "sd15"),
    "device": ("auto", "cpu", "cuda", "mps"),
    "vram": ("auto", "24", "16", "12", "8"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "rng": ("cpu", "device"),
    "format": ("diffusers", "kohya", "diffusers,kohya"),
    "dtype": ("base", "fp16", "bf16", "fp32"),
    "method": ("rapm", "pcm", "lcm", "dmd2", "kd"),
    "discriminators": ("both", "relative", "absolute", "none"),
    "discriminator": ("unet", "unet-mid", "latent"),
    "discriminator-times": ("slot", "edge", "all"),
    "lora-init": ("kaiming", "gaussian"),
    "start-from": ("student", "teacher", "mixed"),
    "part": ("both", "held-out", "seen"),
    "report-to": ("tensorboard", "wandb", "trackio"),
    "metrics": (
        *("attributes", "pictures", "fd-demo", "kd-demo"),
        *("fid", "kid", "clip", "fidelity", "latents", "position"),
        *("cmmd", "fd-dinov2", "precision", "recall", "density", "coverage"),
    ),
    "protocol": ("coco30k", "dmd2-coco30k", "dmd2-coco10k"),
}
RUN_OPTIONS = ("lora", "against")  # take a run's name or a file
RUN_COMMANDS = ("export", "inspect")  # their argument is a run's name or a file
FILE_OPTIONS = (
    *("base", "config", "from", "output", "prompts", "lora", "study", "against"),
    *("reference", "save-reference", "inception", "clip-model"),
)
_HOME = "${XDG_DATA_HOME:-$HOME/.local/share}/rapm"
RUNS = f'"${{RAPM_HOME:-{_HOME}}}${{RAPM_HOME:+/data}}/runs"'


@dataclass(frozen=True)
class Option:
    """One option: its long name without dashes, its one-letter name, its help, and whether it takes a value."""

    name: str
    short: str
    help: str
    takes_value: bool

    @property
    def flags(self) -> list[str]:
        """As typed, the long one first."""
        return [f"--{self.name}", *([f"-{self.short}"] if self.short else [])]


def command_tree() -> dict[str, tuple[str, list[Option]]]:
    """Every command's first line of help and its options."""
    from rapm_cli.cli.app import app

    group = typer.main.get_command(app)
    tree = {}
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        options = [
            Option(
                next(opt for opt in parameter.opts if opt.startswith("--"))[2:],
                next((opt[1:] for opt in parameter.opts if not opt.startswith("--")), ""),
                (parameter.help or "").split(". ")[0].rstrip("."),
                not parameter.is_flag,
            )
            for parameter in command.params
            if parameter.param_type_name == "option"
        ]
        tree[name] = ((command.help or "").splitlines()[0].rstrip("."), options)
    return tree


def bash() -> str:
    """Completion for bash."""
    tree = command_tree()
    lines = [
        "# bash completion for rapm; made by: python -m rapm_cli.cli.completion completions",
        "_rapm() {",
        '    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" command="${COMP_WORDS[1]}"',
        "    COMPREPLY=()",
        '    if [ "$COMP_CWORD" -eq 1 ]; then',
        f'        COMPREPLY=($(compgen -W "{" ".join(tree)} --help --version" -- "$word"))',
        "        return",
        "    fi",
        '    case "$before" in',
    ]
    for name in sorted({*VALUES, *FILE_OPTIONS, *RUN_OPTIONS}):
        parts = [f'$(compgen -W "{" ".join(VALUES[name])}" -- "$word")'] if name in VALUES else []
        parts += ['$(compgen -W "$(_rapm_runs)" -- "$word")'] if name in RUN_OPTIONS else []
        parts += ['$(compgen -f -- "$word")'] if name in FILE_OPTIONS else []
        lines.append(f"        --{name}) COMPREPLY=({' '.join(parts)}); return ;;")
    lines += ["    esac", '    case "$command" in']
    for command, (_, options) in tree.items():
        words = " ".join(flag for option in options for flag in option.flags) + " --help"
        lines.append(f'        {command}) COMPREPLY=($(compgen -W "{words}" -- "$word")) ;;')
    lines += [
        "    esac",
        '    case "$command:$word" in',
        f"        {'|'.join(f'{command}:[!-]*|{command}:' for command in RUN_COMMANDS)})",
        '            COMPREPLY=($(compgen -W "$(_rapm_runs)" -- "$word") $(compgen -f -- "$word")) ;;',
        "    esac",
        "}",
        "_rapm_runs() {",
        f"    command ls {RUNS} 2>/dev/null",
        "}",
        "complete -o filenames -F _rapm rapm",
    ]
    return "\n".join(lines) + "\n"


def zsh() -> str:
    """Completion for zsh."""
    tree = command_tree()
    lines = [
        "#compdef rapm",
        "# zsh completion for rapm; made by: python -m rapm_cli.cli.completion completions",
        "_rapm_runs() {",
        f"    compadd -- $(command ls {RUNS} 2>/dev/null)",
        "    _files",
        "}",
        "_rapm() {",
        "    local -a commands",
        "    commands=(",
        *(f"        '{name}:{_zsh(text)}'" for name, (text, _) in tree.items()),
        "    )",
        "    if (( CURRENT == 2 )); then",
        "        _describe command commands",
        "        return",
        "    fi",
        "    local command=$words[2]",
        "    shift words",
        "    (( CURRENT-- ))",
        "    case $command in",
    ]
    for command, (_, options) in tree.items():
        lines += [f"        {command})", "            _arguments \\"]
        lines += [f"                {_zsh_option(option)} \\" for option in options]
        lines += [
            "                '--help[Show this message and exit]' \\",
            f"                '*:argument:{'_rapm_runs' if command in RUN_COMMANDS else ' '}'",
            "            ;;",
        ]
    lines += ["    esac", "}", '_rapm "$@"']
    return "\n".join(lines) + "\n"


def _zsh_option(option: Option) -> str:
    action = ""
    if option.takes_value:
        if option.name in RUN_OPTIONS:
            action = ":run:_rapm_runs"
        elif option.name in VALUES:
            words = " ".join(VALUES[option.name])
            action = f":value:{{compadd {words}; _files -/}}" if option.name in FILE_OPTIONS else f":value:({words})"
        else:
            action = ":file:_files" if option.name in FILE_OPTIONS else ":value: "
    return " ".join(f"'{flag}[{_zsh(option.help)}]{action}'" for flag in option.flags)


def _zsh(text: str) -> str:
    escaped = "".join(f"\\{character}" if character in "[]:" else character for character in text)
    return escaped.replace("'", "'\\''")


def fish() -> str:
    """Completion for fish."""
    lines = [
        "# fish completion for rapm; made by: python -m rapm_cli.cli.completion completions",
        "function __rapm_runs",
        "    if set -q RAPM_HOME",
        "        command ls $RAPM_HOME/data/runs 2>/dev/null",
        "    else if set -q XDG_DATA_HOME",
        "        command ls $XDG_DATA_HOME/rapm/runs 2>/dev/null",
        "    else",
        "        command ls ~/.local/share/rapm/runs 2>/dev/null",
        "    end",
        "end",
        "complete -c rapm -f",
    ]
    for command, (text, options) in command_tree().items():
        lines.append(f"complete -c rapm -n __fish_use_subcommand -a {command} -d {_fish(text)}")
        seen = f'-n "__fish_seen_subcommand_from {command}"'
        if command in RUN_COMMANDS:
            lines.append(f'complete -c rapm {seen} -F -a "(__rapm_runs)"')
        for option in options:
            line = f"complete -c rapm {seen} -l {option.name}"
            line += f" -s {option.short}" if option.short else ""
            line += " -x" if option.takes_value and option.name not in FILE_OPTIONS else ""
            line += " -r -F" if option.takes_value and option.name in FILE_OPTIONS else ""
            line += f' -a "{" ".join(VALUES[option.name])}"' if option.name in VALUES else ""
            line += ' -a "(__rapm_runs)"' if option.name in RUN_OPTIONS else ""
            lines.append(f"{line} -d {_fish(option.help)}")
        lines.append(f"complete -c rapm {seen} -l help -s h -d 'Show this message and exit'")
    return "\n".join(lines) + "\n"


def _fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SCRIPTS: dict[str, Callable[[], str]] = {"rapm.bash": bash, "_rapm": zsh, "rapm.fish": fish}
SHELLS = {  # the script, the folder that the shell looks into, and what else has to be done
    "bash": ("rapm.bash", ("XDG_DATA_HOME", "~/.local/share"), "bash-completion/completions/rapm", "open a new shell"),
    "zsh": ("_rapm", ("ZDOTDIR", "~"), ".zfunc/_rapm", "have 'fpath+=(~/.zfunc)' before compinit in .zshrc"),
    "fish": ("rapm.fish", ("XDG_CONFIG_HOME", "~/.config"), "fish/completions/rapm.fish", "open a new shell"),
}


def install(shell: str) -> tuple[Path, str]:
    """Write a shell's script where it looks for it.

    Args:
        shell: Name or path of the shell, as in `SHELL`.

    Returns:
        Where it is, and what else has to be done.

    Raises:
        ConfigError: It is another shell.
        DiskError: It cannot be written.
    """
    name = shell.rpartition("/")[2]
    if name not in SHELLS:
        raise ConfigError(f"there is no completion for the shell {name!r}", f"give one of {', '.join(SHELLS)}")
    script, (variable, usual), place, next_step = SHELLS[name]
    path = Path(os.environ.get(variable) or usual).expanduser() / place
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, SCRIPTS[script]().encode())
    except OSError as error:
        raise DiskError.of(error, path) from error
    return path, next_step


def main(folder: Path) -> None:
    """Write all scripts into a folder."""
    for name, render in SCRIPTS.items():
        (folder / name).write_text(render())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
