"""Resolve which base and which LoRA a command uses when the user names both, one or neither."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rapm_cli.bases import BASES, Base, find_base
from rapm_cli.bases.find import find_again
from rapm_cli.bases.merged import with_loras
from rapm_cli.bases.published import PUBLISHED
from rapm_cli.core.common.errors import ConfigError, InputError, WeightsError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method.samplers import SAMPLERS, Sampler
from rapm_cli.core.storage.files import file_sha256
from rapm_cli.formats.few_step import recognise
from rapm_cli.formats.header import read_header
from rapm_cli.formats.lora import LoraFile, load_lora
from rapm_cli.formats.lora_ref import LoraRef
from rapm_cli.runs import authors_lora
from rapm_cli.runs.base_loras import find_refs, refs_of_run
from rapm_cli.runs.checkpoints import read_settings
from rapm_cli.runs.fused_base import FusedBase, fused_base
from rapm_cli.runs.hub_lora import named_lora
from rapm_cli.runs.images import read_recipe
from rapm_cli.runs.run import Run, all_loras, newest_run_with_lora, unfinished_runs

TEXT_WIDTHS = {2048: "sdxl", 768: "sd15"}  # width of the text states to base


@dataclass(frozen=True)
class ResolvedLora:
    """A base and the LoRA to use with it.

    Args:
        base: The base.
        lora_path: Path of the LoRA file.
        lora: Content of the file.
        reason: Why this LoRA was chosen, for messages; empty if the user named it.
        weight: Factor of its update.
    """

    base: Base
    lora_path: Path
    lora: LoraFile
    reason: str
    weight: float = 1.0

    @property
    def weighted_lora(self) -> LoraFile:
        """The LoRA with its weight."""
        return replace(self.lora, alpha=self.lora.alpha * self.weight)

    @property
    def warning(self) -> str:
        """Return which sampler is assumed where the LoRA names none; else empty."""
        if "sampler" in self.lora.recipe:
            return ""
        return f"{self.lora_path} does not say how it is sampled: with DDIM, trailing spacing, {self.steps} steps"

    @property
    def recipe(self) -> dict[str, Any]:
        """Recipe in the LoRA's header."""
        return self.lora.recipe

    @property
    def origin(self) -> str:
        """Path of the LoRA, for messages."""
        return str(self.lora_path)

    @property
    def sampler(self) -> Sampler:
        """Sampler that the LoRA was distilled for."""
        return self.lora.sampler

    @property
    def digest(self) -> str:
        """Hexadecimal sha256 of the LoRA's file."""
        return file_sha256(self.lora_path)

    @property
    def steps(self) -> int:
        """Number of steps that the LoRA was distilled for; 4 if its file names none."""
        steps: int = self.lora.recipe.get("sampler", {}).get("steps", 4)
        return steps

    @property
    def teacher(self) -> dict[str, Any]:
        """Slots, fine steps and guidance of the LoRA's teacher; the base's defaults where its file names none."""
        usual = self.base.defaults
        settings = {"num_slots": self.steps, "fine_steps": usual.fine_steps, "guidance_scale": usual.guidance_scale}
        said = self.lora.recipe.get("teacher", {})
        return {name: said.get(name, value) for name, value in settings.items()}


def resolve_lora(
    base_name: str | None, lora_name: str | None, reporter: Reporter, base_loras: Sequence[LoraRef] = ()
) -> ResolvedLora:
    """Choose the LoRA that was named, else the newest run's, else the one that comes with the base.

    With the demo base comes a LoRA in this package, with SDXL the one that the authors published.

    Args:
        base_name: Base as `--base` takes it; None for the LoRA's own.
        lora_name: LoRA as `named_lora` takes it, or None.
        reporter: Receives messages and the progress of downloads.
        base_loras: LoRAs that the base is merged with; none for those that the LoRA's file names.

    Raises:
        WeightsError: No LoRA was named, no run has one, and the authors' LoRA is not available.
        InputError: A LoRA does not fit the base or is not found, or the base has a LoRA in its weights.
    """
    base = None if base_name is None else find_base(base_name, reporter)
    if base and lora_name is None and fused_base(base):
        raise InputError(
            f"{base.source} has a LoRA in its weights, and this command needs base and LoRA apart",
            "give the base that it was merged into; rapm generate uses it as it is",
        )
    return _chosen(base, lora_name, reporter, base_loras)


def without_lora(base_name: str, reporter: Reporter) -> ResolvedLora:
    """Return a base with its usual teacher and an empty LoRA, for work that needs the teacher alone."""
    base = find_base(base_name, reporter)
    return ResolvedLora(base, Path(base.source), LoraFile({}, 1, 1.0, {}), "")


def resolve_model(
    base_name: str | None, lora_name: str | None, reporter: Reporter, base_loras: Sequence[LoraRef] = ()
) -> ResolvedLora | FusedBase:
    """Resolve a LoRA as `resolve_lora` does, or a base that has a LoRA in its weights.

    Raises:
        WeightsError: As in `resolve_lora`.
        InputError: As in `resolve_lora`.
    """
    base = None if base_name is None else find_base(base_name, reporter)
    if base and lora_name is None and (fused := fused_base(base)):
        return fused
    return _chosen(base, lora_name, reporter, base_loras)


def _chosen(
    base: Base | None, lora_name: str | None, reporter: Reporter, base_loras: Sequence[LoraRef]
) -> ResolvedLora:
    base_name = base.name if base else None
    identity = base.identity(reporter) if base and lora_name is None else ""
    run = newest_run_with_lora(base_name, identity) if lora_name is None else None
    if lora_name is None and run is None:
        _report_unfinished(base_name, identity, reporter)
    if lora_name is not None:
        path, reason = named_lora(lora_name, reporter), ""
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
    lora = _recognised(path, load_lora(path), reporter)
    if base is None:
        made_for = lora.recipe.get("base") or _base_by_width(lora)
        if not made_for:
            raise ConfigError(f"{path} does not name its base", "give --base")
        base = _base_of_file(path, str(made_for), reporter)
    base = with_loras(base, _base_loras_of(path, lora, base_loras), reporter)
    _warn_of_other_weights(path, lora, base, reporter)
    return ResolvedLora(base, path, lora, reason)


def _recognised(path: Path, lora: LoraFile, reporter: Reporter) -> LoraFile:
    """Return a LoRA with the sampler of its method, where another program wrote it and its name tells the method."""
    if lora.recipe.get("sampler") or not (kind := recognise(path, read_header(path).metadata)):
        return lora
    reporter.say(f"{path} is a LoRA of {kind.method} by its name: sampler {kind.sampler}, {kind.steps} steps")
    sampler = {"name": kind.sampler, **SAMPLERS[kind.sampler].recipe(kind.steps)}
    return replace(lora, recipe={**lora.recipe, "sampler": sampler})


def _base_loras_of(path: Path, lora: LoraFile, given: Sequence[LoraRef]) -> Sequence[LoraRef]:
    """Return the LoRAs that the base of a LoRA is merged with: those that its file names, or those given.

    Raises:
        ConfigError: The file names others than those given.
        InputError: A LoRA that the file names is not found.
    """
    records = lora.recipe.get("base_loras", [])
    remembered = [ref.path for ref in refs_of_run(Run(path.parent))]
    return find_refs(records, [path.parent, *remembered], path, given) if records else given


def _warn_of_other_weights(path: Path, lora: LoraFile, base: Base, reporter: Reporter) -> None:
    """Warn of a LoRA that was distilled from other weights, as those of finetunes are; equal weights have any name.

    Raises:
        InputError: The LoRA does not fit the base. This is found before any weights are fetched.
    """
    name, identity = lora.recipe.get("base"), lora.recipe.get("base_identity")
    if identity == base.identity(reporter) if identity else name in (None, base.name):
        return
    width, wanted = _text_width(lora), base.architecture(reporter).unet.get("cross_attention_dim")
    if width and width != wanted:
        raise InputError(
            f"{path} was distilled from {name}, and does not fit {base.name}: its texts are {width} wide, not {wanted}",
            "give the --base that it was made for",
        )
    of = "" if name == base.name else f" ({name})"
    reporter.warn(f"{path} was distilled from other weights{of} than those of {base.name}: images may be worse")


def _report_unfinished(base_name: str | None, identity: str, reporter: Reporter) -> None:
    """Name the unfinished run whose LoRA the user may have expected."""
    for run in unfinished_runs():
        stored = run.raw_settings()
        if base_name in (None, stored.get("base_name")) or identity == stored.get("base_identity"):
            reporter.say(f"run {run.folder} has no LoRA yet; {run.next_step}")
            return


def _base_by_width(lora: LoraFile) -> str | None:
    """Return the registered base with the width of text states that the LoRA has; None if there is none."""
    name = TEXT_WIDTHS.get(_text_width(lora) or 0)
    return name if name in BASES.names() else None


def _text_width(lora: LoraFile) -> int | None:
    """Return the width of the text states that the LoRA reads; None if no layer or several widths say it."""
    widths = {value.shape[1] for name, value in lora.state.items() if name.endswith(".attn2.to_k.lora_A.weight")}
    return widths.pop() if len(widths) == 1 else None


def _base_of_file(path: Path, made_for: str, reporter: Reporter) -> Base:
    """Return the registered base that a LoRA file names, or the base of the run folder that holds the file.

    A path in a LoRA's header is never opened, because files come from strangers.

    Raises:
        ConfigError: The file's base is neither registered nor that of its run.
    """
    made_for = next((name for name, known in PUBLISHED.items() if known.repo == made_for), made_for)
    if made_for in BASES.names():
        return BASES[made_for]
    run = Run(path.resolve().parent)
    if run.is_begun and (stored := read_settings(run)[0]).base_name == made_for:
        return find_again(stored.source, reporter)
    raise ConfigError(f"{path} was distilled from {made_for}, a base that rapm does not know by name", "give --base")


@dataclass(frozen=True)
class ImageRecipe:
    """Recipe of a generated image, and the LoRA file that made it.

    Args:
        prompt: Prompt of the image.
        seed: Seed of its noise.
        steps: Number of sampling steps.
        base: Name of the registered base; None for another one.
        precision: Precision of the network.
        rng: Kind of device that generated its noise.
        is_compared: Whether the teacher's image is beside it.
        size: Size of the image; None for the base's own.
        lora: Path of the LoRA; None if it was in the base's weights.
        identity: Identity of the base's weights.
        made_with: Name of the base in the image's recipe.
        base_loras: Records of the LoRAs that the base was merged with.
        lora_weight: Factor of the LoRA's update.
        sampler: Name of a sampler from `SAMPLERS`; None for the LoRA's own.
    """

    prompt: str
    seed: int
    steps: int
    base: str | None
    precision: str
    rng: str
    is_compared: bool
    size: str | None
    lora: Path | None
    identity: str
    made_with: str
    base_loras: list[dict[str, Any]]
    lora_weight: float
    sampler: str | None


def read_image_recipe(path: Path, lora_name: str | None, reporter: Reporter) -> ImageRecipe:
    """Read an image's recipe and find its LoRA.

    The image holds the sha256 of the LoRA and no path, so that it can be given away. The file is searched among the
    runs and the LoRAs that come with the bases.

    Args:
        path: PNG that rapm wrote.
        lora_name: LoRA as `named_lora` takes it, if it is elsewhere.
        reporter: Shows downloads from the hub.

    Raises:
        InputError: The file has no recipe, or its LoRA is not found.
    """
    recipe = read_recipe(path)
    base = BASES[recipe["base"]] if recipe["base"] in BASES.names() else None
    known = {name: recipe[name] for name in ("prompt", "seed", "steps", "precision")}
    known |= {"rng": recipe.get("rng", "cpu"), "is_compared": recipe.get("teacher") is not None}
    known["size"] = recipe.get("size")
    known |= {"identity": str(recipe.get("base_identity", "")), "made_with": recipe["base"]}
    known |= {"base_loras": recipe.get("base_loras", []), "lora_weight": float(recipe.get("lora_weight", 1))}
    known |= {"sampler": recipe.get("sampler", {}).get("name")}
    if not recipe["lora_sha256"] and lora_name is None:
        return ImageRecipe(**known, base=None, lora=None)
    shipped = [base.student] if base and base.student else []
    known_loras = [*all_loras(), *shipped, *authors_lora.converted_loras()]
    same = shipped if base and recipe["lora_sha256"] in base.former_students else []
    for place in [named_lora(lora_name, reporter)] if lora_name else known_loras:
        if place.is_file() and (place in same or file_sha256(place) == recipe["lora_sha256"]):
            return ImageRecipe(**known, base=base.name if base else None, lora=place)
    raise InputError(
        f"the LoRA that made {path} is not {'that one' if lora_name else 'among the runs here'}",
        f"name the file whose sha256 is {recipe['lora_sha256']} with --lora",
    )


def resolve_recipe_lora(
    base_name: str | None, recipe: ImageRecipe, image: Path, reporter: Reporter, named: Sequence[LoraRef] = ()
) -> ResolvedLora | FusedBase:
    """Resolve the model that made an image, with the LoRAs that were beside it.

    Args:
        base_name: Base as `--base` takes it, or None.
        recipe: Recipe of the image.
        image: File of the image, for messages.
        reporter: Receives messages.
        named: LoRAs to look among first.

    Raises:
        InputError: The image was made with a fused base, and `base_name` does not name that base; or one of the LoRAs
            is not found.
    """
    chosen = _recipe_model(base_name, recipe, reporter)
    others = [one for one in recipe.base_loras if one not in [lora.record for lora in chosen.base.loras]]
    near = [*(one.path for one in named), image.resolve().parent, *([recipe.lora.parent] if recipe.lora else [])]
    return replace(chosen, base=with_loras(chosen.base, find_refs(others, near, image), reporter))


def _recipe_model(base_name: str | None, recipe: ImageRecipe, reporter: Reporter) -> ResolvedLora | FusedBase:
    if recipe.lora:
        return resolve_lora(base_name or recipe.base, str(recipe.lora), reporter)
    made = resolve_model(base_name, None, reporter) if base_name else None
    if not isinstance(made, FusedBase) or made.base.locate(reporter).identity != recipe.identity:
        raise InputError(
            f"the image was made with {recipe.made_with}, which has its LoRA in its weights",
            "give --base that model's folder or checkpoint",
        )
    return made
