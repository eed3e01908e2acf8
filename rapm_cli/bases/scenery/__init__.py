"""Word lists of the photographic prompts."""

from rapm_cli.bases.scenery.kinds import FINISHES, MEDIA, MOODS, Kind
from rapm_cli.bases.scenery.living import ANIMALS, PEOPLE
from rapm_cli.bases.scenery.places import PLACES
from rapm_cli.bases.scenery.things import THINGS

KINDS: tuple[Kind, ...] = (*PEOPLE, *ANIMALS, *PLACES, *THINGS)

__all__ = ["FINISHES", "KINDS", "MEDIA", "MOODS", "Kind"]
