"""The bases with a name: repositories of the Hugging Face hub, pinned to the commit that rapm was written for."""

from dataclasses import dataclass

from rapm_cli.bases.architectures import ARCHITECTURES
from rapm_cli.bases.base import BASES, Base
from rapm_cli.bases.families import FAMILIES
from rapm_cli.bases.hub import CONFIGS, PIPELINE, Snapshot, fetch
from rapm_cli.bases.photographic import photographic_prompts
from rapm_cli.bases.weights import Weights
from rapm_cli.core.watch import Watcher


@dataclass(frozen=True)
class Published:
    """A repository with a whole model in diffusers layout.

    Args:
        repo: Its name on the hub.
        revision: Commit, or None for the newest.
    """

    repo: str
    revision: str | None

    def weights(self, watcher: Watcher) -> Weights:
        """All its files that rapm needs, fetched where they are missing."""
        return _weights(fetch(self.repo, self.revision, PIPELINE, watcher))

    def configs(self, watcher: Watcher) -> Weights:
        """Its configurations and tokenizers alone."""
        return _weights(fetch(self.repo, self.revision, CONFIGS, watcher))


def _weights(snapshot: Snapshot) -> Weights:
    return Weights(snapshot.folder, f"{snapshot.repo}@{snapshot.commit}", files=snapshot.files)


PUBLISHED = {
    "sdxl": Published("stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b"),
    "sd15": Published("stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"),
}
# The sha256 of files at those commits, as the hub tells them; whoever else serves such a file must serve these bytes.
SHA256 = {
    "stabilityai/stable-diffusion-xl-base-1.0": {
        "text_encoder/model.fp16.safetensors": "660c6f5b1abae9dc498ac2d21e1347d2abdb0cf6c0c0c8576cd796491d9a6cdd",
        "text_encoder_2/model.fp16.safetensors": "ec310df2af79c318e24d20511b601a591ca8cd4f1fce1d8dff822a356bcdb1f4",
        "unet/diffusion_pytorch_model.fp16.safetensors": (
            "83e012a805b84c7ca28e5646747c90a243c65c8ba4f070e2d7ddc9d74661e139"
        ),
        "vae/diffusion_pytorch_model.fp16.safetensors": (
            "bcb60880a46b63dea58e9bc591abe15f8350bde47b405f9c38f4be70c6161e68"
        ),
    }
}

for _name, _published in PUBLISHED.items():
    BASES.add(_name)(
        Base(
            name=_name,
            source=_name,
            defaults=FAMILIES[_name].defaults,
            locate=_published.weights,
            architecture=lambda watcher, name=_name: ARCHITECTURES[name],  # type: ignore[misc]
            training_prompts=photographic_prompts,
        )
    )
