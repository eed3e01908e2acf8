"""The bases with a name: repositories of the Hugging Face hub, pinned to the commit that rapm was written for."""

from dataclasses import dataclass

from rapm_cli.bases.architectures import ARCHITECTURES
from rapm_cli.bases.base import BASES, Base
from rapm_cli.bases.families import FAMILIES
from rapm_cli.bases.hub import CONFIGS, OUTLINE, PIPELINE, Selection, fetch
from rapm_cli.bases.photographic import photographic_prompts
from rapm_cli.bases.weights import Weights
from rapm_cli.core.common.progress import Reporter


@dataclass
class Published:
    """A repository with a whole model in diffusers layout.

    Args:
        repo: Its name on the hub.
        revision: Commit, branch or tag, or None for the newest; the commit, once that has been looked up.
    """

    repo: str
    revision: str | None

    def weights(self, reporter: Reporter) -> Weights:
        """All its files that rapm needs, fetched where they are missing."""
        return self._fetch(PIPELINE, reporter)

    def configs(self, reporter: Reporter) -> Weights:
        """Its configurations and tokenizers alone."""
        return self._fetch(CONFIGS, reporter)

    def outline(self, reporter: Reporter) -> Weights:
        """The same of a base whose weights will follow: an error of what is missing tells how to get all of it."""
        return self._fetch(OUTLINE, reporter)

    def _fetch(self, selection: Selection, reporter: Reporter) -> Weights:
        snapshot = fetch(self.repo, self.revision, selection, reporter)
        self.revision = snapshot.commit  # weights and configurations are of one commit, whatever is pushed meanwhile
        return Weights(snapshot.folder, f"{snapshot.repo}@{snapshot.commit}", files=snapshot.files)


PUBLISHED = {
    "sdxl": Published("stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b"),
    "sd15": Published("stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"),
}

for _name, _published in PUBLISHED.items():
    BASES.add(_name)(
        Base(
            name=_name,
            source=_name,
            defaults=FAMILIES[_name].defaults,
            locate=_published.weights,
            architecture=lambda reporter, name=_name: ARCHITECTURES[name],  # type: ignore[misc]
            training_prompts=photographic_prompts,
        )
    )
