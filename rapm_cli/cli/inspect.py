"""The `inspect` command: show what a file, folder, run or device is."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rapm_cli.cli import completion, options, show
from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import ConfigError, InputError
from rapm_cli.core.method.config import option_name
from rapm_cli.core.method.config import options as declared_options

BAR = 30  # characters of the longest bar of --values
SETTINGS = {name for key, field, _ in declared_options() for name in (key, field.alias)}  # as in stored files


def inspect(
    things: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="THING",
            autocompletion=completion.things,
            help="LoRA, checkpoint, model folder, run, trajectories, image or pickle; or the word cache or device. "
            "Two LoRAs are compared.",
            show_default="newest run, else the LoRA that ships with demo",
        ),
    ] = None,
    values: Annotated[
        bool,
        typer.Option("--values", help="Also read the weights: norm of each block, and values that are not finite."),
    ] = False,
    preview: Annotated[bool, typer.Option("--preview", help="Show an image in the terminal.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="With cache: remove trajectories, features, samples and converted weights.")
    ] = False,
    everything: Annotated[
        bool,
        typer.Option(
            "--all", envvar="RAPM_INSPECT_ALL", help="With --prune: also remove trajectories of unfinished runs."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --prune: do not ask first.")] = False,
    json: options.Json = False,
) -> None:
    """Show what a file or folder holds, without loading a model. Every file of a run or an export is verified.

    `rapm inspect cache` shows the disk space of rapm and its models; write ./cache for a run of that name.

    `rapm inspect device` shows the graphics card, its memory and the libraries.
    """
    out = Output(as_json=json)
    names = things or []
    if (prune and names != ["cache"]) or ((everything or yes) and not prune):
        raise ConfigError("--all and --yes need --prune, and --prune needs cache", "see rapm inspect --help")
    if len(names) > 2:
        raise ConfigError(f"unexpected argument {names[2]!r}", "give one thing, or two LoRAs")
    if names == ["cache"]:
        from rapm_cli.cli import disk

        disk.prune(out, is_all=everything, is_sure=yes) if prune else disk.survey(out)
        return
    if names == ["device"]:
        _device(out)
        return
    from rapm_cli.inspect.inspect import inspect as inspect_thing
    from rapm_cli.runs.run import newest_lora

    found = [inspect_thing(name) for name in names or [str(newest_lora(out))]]
    if values:
        from rapm_cli.inspect.weights import add_values

        add_values(found)
    if len(found) == 2:
        _side_by_side(out, found)
        out.result(found)
        return
    SHOW.get(found[0]["kind"], _model)(out, found[0])
    if preview and found[0]["kind"] == "picture":
        out.expect_images()
        out.image(Path(found[0]["file"]))
    out.result(found[0])
    if found[0].get("damaged") or found[0].get("damage"):
        _refuse_damaged(found[0])


def _refuse_damaged(facts: dict[str, Any]) -> None:
    place = facts.get("run") or facts.get("folder") or facts.get("path")
    what = facts.get("damage") or ", ".join(facts["damaged"])
    raise InputError(f"{place} is damaged: {what}", facts.get("repair") or "make or copy it again")


def _device(out: Output) -> None:
    from rapm_cli.inspect.device import device_facts

    facts = device_facts()
    for name, text in facts.items():
        out.fact(name, str(text))
    out.result(facts)


def _run(out: Output, run: dict[str, Any]) -> None:
    """Print a run: every checkpoint, and whether it verifies; its LoRA, where it has one."""
    out.fact("run", run["run"])
    out.fact("state", f"{run['state']}, {run['iterations']} iterations saved")
    if run["verdict"]:
        out.fact("verdict", run["verdict"])
    rows = []
    for checkpoint in run["commits"]:
        holds = ", ".join(name.removesuffix(".safetensors") for name in checkpoint.get("files", {}))
        size = _size(checkpoint["bytes"]) if "bytes" in checkpoint else ""
        verdict = "verifies" if checkpoint["verifies"] else f"DAMAGED: {checkpoint['damage']}"
        rows.append([checkpoint["name"], size, checkpoint.get("written", ""), verdict, holds])
    out.table("checkpoints", ["", "size", "written", "", "holds"], rows, text_columns=(0, 3, 4))
    if run["resume"] or run["at_work"]:
        out.fact("next", run["resume"] or f"wait for {run['at_work']}, which works on it")
    if run["lora"]:
        _lora(out, run["lora"])
    elif run["lora_damage"]:
        out.fact("LoRA", run["lora_damage"])


def _lora(out: Output, facts: dict[str, Any]) -> None:
    """Print a LoRA in any form."""
    for name, text in _lora_rows(facts).items():
        out.fact(name, text)
    _recipe(out, facts["recipe"])
    show.programs(out, facts["programs"])
    _values(out, facts)


def _lora_rows(facts: dict[str, Any]) -> dict[str, str]:
    recipe, rank, alpha = facts["recipe"], facts["rank"], facts["alpha"]
    strength = f"{_counted(facts['ranks'])}, {_counted(facts['alphas']) if alpha is None else f'{alpha:g}'}"
    if facts["scale"] is not None:
        strength += f": the update is {facts['scale']:g} x B A"
    elif rank is not None and set(facts["alphas"]) == {"None"}:
        strength = f"{rank}, not given; most programs then use {rank}"
    return {
        "file": facts["file"],
        "form": f"LoRA, {facts['form']}",
        "size": f"{_size(facts['bytes'])}, {facts['dtype']}",
        "rank, alpha": strength,
        "adapts": f"{facts['modules']} modules, {facts['parameters']:,} parameters",
        "by block": ", ".join(f"{name} {count}" for name, count in facts["blocks"].items()),
        "base": str(recipe.get("base", "not given")),
        "fits": facts["fits"],
        **facts["said"],
    }


def _counted(counts: dict[str, int]) -> str:
    """Return numbers with their counts; a number alone where there is only one."""
    return (
        next(iter(counts)) if len(counts) == 1 else " ".join(f"{value} ({count}x)" for value, count in counts.items())
    )


def _model(out: Output, facts: dict[str, Any]) -> None:
    """Print a model in a file or folder, a part of a model, or the files of a folder."""
    for name in ("file", "folder"):
        if name in facts:
            out.fact(name, facts[name])
    out.fact("kind", ", ".join([facts["kind"], *([facts["class"]] if facts.get("class") else [])]))
    if "bytes" in facts:
        about = f", {facts['dtype']}, {facts['parameters']:,} numbers" if "dtype" in facts else ""
        out.fact("size", f"{_size(facts['bytes'])}{about}")
    for name, part in facts.get("parts", {}).items():
        out.fact(name, f"{part['parameters']:,} parameters, {part['dtype']}")
    if facts.get("predicts"):
        out.fact("predicts", facts["predicts"])
    if scheduler := facts.get("scheduler"):
        out.fact("scheduler", f"{scheduler['class']}, {scheduler['timestep_spacing']} spacing")
    for name, text in facts.get("said", {}).items():
        out.fact(name, text)
    _recipe(out, facts.get("recipe", {}))
    if facts.get("programs"):
        out.fact("loads in", ", ".join(facts["programs"]))
    for file in facts.get("files", []):
        SHOW.get(file["kind"], _model)(out, file)
    _values(out, facts)


def _trajectories(out: Output, facts: dict[str, Any]) -> None:
    out.fact("folder", facts["folder"])
    out.fact("kind", f"teacher trajectories of {facts['base']}, {facts['made']} of {facts['of']}")
    out.fact("size", _size(facts["bytes"]))
    out.fact("teacher", _settings(facts["teacher"]))
    out.fact("needed by", ", ".join(facts["needed_by"]) or "no unfinished run")


def _image(out: Output, facts: dict[str, Any]) -> None:
    out.fact("file", facts["file"])
    out.fact("kind", f"image of {facts['width']} x {facts['height']} pixels, {_size(facts['bytes'])}")
    for name, value in facts["recipe"].items():
        if value is not None:
            out.fact(name, _in_words(value))
    if facts["again"]:
        out.fact("again", facts["again"])
    elif facts["parameters"]:
        out.fact("parameters", facts["parameters"])


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{_name(name)} {_in_words(one)}" for name, one in value.items())
    return ", ".join(map(_in_words, value)) if isinstance(value, list) else str(value)


def _pickle(out: Output, facts: dict[str, Any]) -> None:
    out.fact("file", facts["file"])
    out.fact("kind", f"pickle, {_size(facts['bytes'])}, not loaded")
    out.fact("imports", ", ".join(facts["imports"]) or "nothing")
    if facts["unusual"]:
        out.warn(f"loading it would import unusual modules: {', '.join(facts['unusual'])}")


def _recipe(out: Output, recipe: dict[str, Any]) -> None:
    from rapm_cli.formats.recipe import GROUPS, LORA_LISTS

    for name in LORA_LISTS:
        if name in recipe:
            out.fact(name.replace("_", " "), "; ".join(map(_in_words, recipe[name])))
    for group in GROUPS:
        settings = recipe.get(group, {})
        if text := _settings(settings):
            out.fact(group, text)


def _settings(stored: dict[str, Any]) -> str:
    """Return stored settings in words, under the names that their options have today."""
    return ", ".join(f"{_name(name)} {value}" for name, value in stored.items())


def _name(stored: str) -> str:
    """Return the option of a setting; any other name as it is."""
    return option_name(stored) if stored in SETTINGS else stored


def _values(out: Output, facts: dict[str, Any]) -> None:
    """Print the norm of each block as a bar, and the number of values that are not finite."""
    found = facts.get("values")
    if not found:
        return
    norms, most = found["norms"], max(found["norms"].values(), default=0.0) or 1.0
    width = max(map(len, norms), default=0)
    for name, norm in norms.items():
        out.data(f"{name:<{width}}  {'█' * max(1, round(BAR * norm / most)) if norm else '':<{BAR}}  {norm:.3g}")
    out.fact("not finite", f"{found['not_finite']} values" if found["not_finite"] else "nothing")


def _side_by_side(out: Output, found: list[dict[str, Any]]) -> None:
    if any(facts["kind"] not in ("LoRA", "run") or (facts["kind"] == "run" and not facts["lora"]) for facts in found):
        raise ConfigError("two things can be compared only if both are LoRAs", "give one, or two LoRAs or runs")
    loras = [facts["lora"] if facts["kind"] == "run" else facts for facts in found]
    left, right = (_lora_rows(facts) for facts in loras)
    for group, *settings in _differing([facts["recipe"] for facts in loras]):
        left[group], right[group] = settings
    rows = [
        ["" if left.get(name) == right.get(name) else "≠", name, left.get(name, ""), right.get(name, "")]
        for name in dict.fromkeys([*left, *right])
    ]
    out.table("", ["", "", "first", "second"], rows, text_columns=(0, 1, 2, 3))
    if compared := found[0].get("compared"):
        out.fact("cosine", f"{compared['cosine']:.4f} between the updates")
        out.fact("difference", f"{compared['relative']:.2%} of the first")
        alone = f"{compared['only_first']} changed only by the first, {compared['only_second']} only by the second"
        is_same = not (compared["only_first"] or compared["only_second"])
        out.fact("layers", "both change the same layers" if is_same else alone)


def _differing(recipes: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Return for each group the settings in which two recipes differ: group, first and second."""
    from rapm_cli.formats.recipe import GROUPS

    rows = []
    for group in GROUPS:
        one, two = (recipe.get(group, {}) for recipe in recipes)
        names = [name for name in {**one, **two} if one.get(name) != two.get(name)]
        if names:
            first, second = (_settings({name: each[name] for name in names if name in each}) for each in (one, two))
            rows.append((group, first, second))
    return rows


def _size(count: int) -> str:
    from rapm_cli.inspect.inspect import size_in_words

    return size_in_words(count)


SHOW = {"run": _run, "LoRA": _lora, "trajectories": _trajectories, "picture": _image, "pickle": _pickle}
