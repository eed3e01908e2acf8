"""Bases with a name: repositories of the Hugging Face hub, each pinned to a commit."""

from dataclasses import dataclass

from rapm_cli.bases.architectures import ARCHITECTURES
from rapm_cli.bases.base import BASES, Base
from rapm_cli.bases.families import FAMILIES
from rapm_cli.bases.hub import CONFIGS, OUTLINE, PIPELINE, Selection, fetch
from rapm_cli.bases.hub.remote import COMMIT
from rapm_cli.bases.photographic import photographic_prompts
from rapm_cli.bases.weights import Weights
from rapm_cli.core.common.progress import Reporter


@dataclass
class Published:
    """A repository with a model in diffusers layout.

    Args:
        repo: `ORG/NAME`.
        revision: Commit, branch or tag, or None for main; replaced by the commit at the first request.
    """

    repo: str
    revision: str | None

    def weights(self, reporter: Reporter) -> Weights:
        """Return all files that rapm needs; download missing ones."""
        return self._fetch(PIPELINE, reporter)

    def configs(self, reporter: Reporter) -> Weights:
        """Return the configurations and tokenizers alone; download missing ones."""
        return self._fetch(CONFIGS, reporter)

    def outline(self, reporter: Reporter) -> Weights:
        """Return the same files as `configs`; offline, the error names the command that fetches the weights too."""
        return self._fetch(OUTLINE, reporter)

    def identity(self, reporter: Reporter) -> str:
        """Return the identity of the weights: repository and commit. A branch's commit is asked of the hub."""
        return f"{self.repo}@{self.revision}" if self.is_pinned else self.outline(reporter).identity

    @property
    def is_pinned(self) -> bool:
        """True once the revision is a commit."""
        return COMMIT.fullmatch(self.revision or "") is not None

    def _fetch(self, selection: Selection, reporter: Reporter) -> Weights:
        snapshot = fetch(self.repo, self.revision, selection, reporter)
        self.revision = snapshot.commit  # a push between two calls must not mix two commits
        return Weights(snapshot.folder, f"{snapshot.repo}@{snapshot.commit}", files=snapshot.files)


PUBLISHED = {
    "sdxl": Published("stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b"),
    "sd15": Published("stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"),
}


def published_name(published: Published) -> str | None:
    """Return the name of the base that is this commit of this repository; None for another."""
    return next((name for name, known in PUBLISHED.items() if known == published), None)


for _name, _published in PUBLISHED.items():
    BASES.add(_name)(
        Base(
            name=_name,
            source=_name,
            defaults=FAMILIES[_name].defaults,
            locate=_published.weights,
            identity=_published.identity,
            architecture=lambda reporter, name=_name: ARCHITECTURES[name],  # type: ignore[misc]
            training_prompts=photographic_prompts,
        )
    )
