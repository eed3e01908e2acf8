"""Which base and which LoRA a command means, when the user names both, one or neither."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapm_cli.bases import BASES, Base, Weights, find_base
from rapm_cli.core.common.errors import ConfigError, InputError, WeightsError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method.samplers import Sampler
from rapm_cli.core.storage.files import file_sha256
from rapm_cli.formats.lora import LoraFile, load_lora
from rapm_cli.runs import authors_lora
from rapm_cli.runs.checkpoints import read_settings
from rapm_cli.runs.fused_base import MergedBase, merged_base
from rapm_cli.runs.images import read_recipe
from rapm_cli.runs.run import Run, all_loras, find_lora, newest_run_with_lora, unfinished_runs

TEXT_WIDTHS = {2048: "sdxl", 768: "sd15"}


@dataclass(frozen=True)
class ResolvedLora:
    """A base and the LoRA to use with it, and a sentence on how they were chosen."""

    base: Base
    lora_path: Path
    lora: LoraFile
    reason: str

    def doubt(self, weights: Weights) -> str:
        """A sentence on why the LoRA may not draw here as it was made to; empty where nothing speaks against it."""
        recipe = self.lora.recipe
        if recipe.get("base_identity") not in (None, weights.identity):
            return f"{self.lora_path} was distilled from other weights of {self.base.name} than those here"
        if "sampler" not in recipe:
            return f"{self.lora_path} does not say how it is sampled: with DDIM, trailing spacing, {self.steps} steps"
        return ""

    @property
    def recipe(self) -> dict[str, Any]:
        """What the LoRA's file says of how it was made."""
        return self.lora.recipe

    @property
    def origin(self) -> str:
        """Where the LoRA is, for messages."""
        return str(self.lora_path)

    @property
    def sampler(self) -> Sampler:
        """How the LoRA is sampled."""
        return self.lora.sampler

    @property
    def digest(self) -> str:
        """sha256 of the LoRA's file."""
        return file_sha256(self.lora_path)

    @property
    def steps(self) -> int:
        """The number of steps that the LoRA was distilled for; 4 where its file does not say."""
        steps: int = self.lora.recipe.get("sampler", {}).get("steps", 4)
        return steps

    @property
    def teacher(self) -> dict[str, Any]:
        """Slots, fine steps and guidance of the LoRA's teacher; what suits the base where its file does not say."""
        usual = self.base.defaults
        settings = {"num_slots": self.steps, "fine_steps": usual.fine_steps, "guidance_scale": usual.guidance_scale}
        said = self.lora.recipe.get("teacher", {})
        return {name: said.get(name, value) for name, value in settings.items()}


def resolve_lora(base_name: str | None, lora_name: str | None, reporter: Reporter) -> ResolvedLora:
    """Base and LoRA: as named, else the newest run's, else what ships with the base, for SDXL its authors' own.

    Raises:
        WeightsError: Nothing was named, there is no run, and the authors' LoRA is not to be had.
        InputError: The LoRA was made for another base, or the base has a LoRA in it.
    """
    base = None if base_name is None else find_base(base_name, reporter)
    if base and lora_name is None and merged_base(base):
        raise InputError(
            f"{base.source} has a LoRA in its weights, and this command wants the two apart",
            "give the base that it was merged into; rapm generate draws with it as it is",
        )
    return _chosen(base, lora_name, reporter)


def resolve_model(base_name: str | None, lora_name: str | None, reporter: Reporter) -> ResolvedLora | MergedBase:
    """The same; or a base alone that has a LoRA in it.

    Raises:
        WeightsError: As `resolve_lora`.
        InputError: As `resolve_lora`.
    """
    base = None if base_name is None else find_base(base_name, reporter)
    if base and lora_name is None and (merged := merged_base(base)):
        return merged
    return _chosen(base, lora_name, reporter)


def _chosen(base: Base | None, lora_name: str | None, reporter: Reporter) -> ResolvedLora:
    base_name = base.name if base else None
    run = newest_run_with_lora(base_name) if lora_name is None else None
    if lora_name is None and run is None:
        _tell_of_unfinished(base_name, reporter)
    if lora_name is not None:
        path, reason = find_lora(lora_name), ""
    elif run:
        path, reason = run.verified_lora(), f"newest run, {run.folder}"
    elif base and base.student and base.student.is_file():
        path, reason = base.student, f"the LoRA that ships with {base_name}"
    elif base_name in (None, authors_lora.BASE):
        path, reason = authors_lora.authors_lora(reporter)
    else:
        raise WeightsError(
            f"there is no LoRA for base {base_name}",
            f"run: rapm distill --base {shlex.quote(base.source if base else '')}",
        )
    lora = load_lora(path)
    made_for = lora.recipe.get("base")
    if base_name and made_for and made_for != base_name:
        raise InputError(
            f"{path} was distilled from base {made_for}, not {base_name}", f"use --base {shlex.quote(str(made_for))}"
        )
    made_for = made_for or _base_by_width(lora)
    if not (base_name or made_for):
        raise ConfigError(f"{path} does not name its base", "give --base")
    return ResolvedLora(base or _base_of_file(path, str(made_for), reporter), path, lora, reason)


def _tell_of_unfinished(base_name: str | None, reporter: Reporter) -> None:
    """Name the run whose LoRA the user may have expected, because it is not finished."""
    for run in unfinished_runs():
        if base_name in (None, run.raw_settings().get("base_name")):
            reporter.say(f"run {run.folder} has no LoRA yet; resume with: {run.resume_command}")
            return


def _base_by_width(lora: LoraFile) -> str | None:
    """The registered base whose text states are as wide as those that the LoRA reads; None where none is."""
    widths = {value.shape[1] for name, value in lora.state.items() if name.endswith(".attn2.to_k.lora_A.weight")}
    name = TEXT_WIDTHS.get(widths.pop()) if len(widths) == 1 else None
    return name if name in BASES.names() else None


def _base_of_file(path: Path, made_for: str, reporter: Reporter) -> Base:
    """The registered base that a file names, or the base of the run that it lies in; never a path that a file says.

    Raises:
        ConfigError: It is neither.
    """
    if made_for in BASES.names():
        return BASES[made_for]
    run = Run(path.resolve().parent)
    if run.is_begun and (stored := read_settings(run)[0]).base_name == made_for:
        return find_base(stored.source, reporter)
    raise ConfigError(f"{path} was distilled from {made_for}, which is no base that rapm knows by name", "give --base")


@dataclass(frozen=True)
class ImageRecipe:
    """What a picture says of how it was made, and the LoRA file that made it; no base where it is a folder.

    No LoRA where it is in the weights of a base; `identity` and `made_with`, its name, are of that.

    `rng` is the kind of device that its noise was drawn on.
    """

    prompt: str
    seed: int
    steps: int
    base: str | None
    precision: str
    rng: str
    is_compared: bool
    lora: Path | None
    identity: str
    made_with: str


def read_image_recipe(path: Path, lora_name: str | None) -> ImageRecipe:
    """How a picture of ours was made.

    The picture holds the LoRA's sha256 and no path, so that it can be given away; the file is looked for among
    the runs and what ships with the base.

    Args:
        path: A PNG of ours.
        lora_name: Where the LoRA is, if it is elsewhere.

    Raises:
        InputError: It says no recipe, or its LoRA is not found.
    """
    recipe = read_recipe(path)
    base = BASES[recipe["base"]] if recipe["base"] in BASES.names() else None
    known = {name: recipe[name] for name in ("prompt", "seed", "steps", "precision")}
    known |= {"rng": recipe.get("rng", "cpu"), "is_compared": recipe.get("teacher") is not None}
    known |= {"identity": str(recipe.get("base_identity", "")), "made_with": recipe["base"]}
    if not recipe["lora_sha256"] and lora_name is None:
        return ImageRecipe(**known, base=None, lora=None)
    shipped = [base.student] if base and base.student else []
    known_loras = [*all_loras(), *shipped, *authors_lora.converted_loras()]
    for place in [find_lora(lora_name)] if lora_name else known_loras:
        if place.is_file() and file_sha256(place) == recipe["lora_sha256"]:
            return ImageRecipe(**known, base=base.name if base else None, lora=place)
    raise InputError(
        f"the LoRA that made {path} is not {'that one' if lora_name else 'among the runs here'}",
        f"name the file whose sha256 is {recipe['lora_sha256']} with --lora",
    )


def resolve_recipe_lora(base_name: str | None, recalled: ImageRecipe, reporter: Reporter) -> ResolvedLora | MergedBase:
    """What made a picture.

    Raises:
        InputError: It was a model with its LoRA in it, and `base_name` does not name that.
    """
    if recalled.lora:
        return resolve_lora(base_name or recalled.base, str(recalled.lora), reporter)
    made = resolve_model(base_name, None, reporter) if base_name else None
    if not isinstance(made, MergedBase) or made.base.locate(reporter).identity != recalled.identity:
        raise InputError(
            f"the picture was made with {recalled.made_with}, which had its LoRA in it",
            "give --base that model's folder or checkpoint",
        )
    return made
