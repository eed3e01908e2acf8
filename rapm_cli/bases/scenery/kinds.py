"""Kinds of scenes, and the light, views and styles that several kinds share.

Bars separate word groups; an empty group leaves its place empty. Time of day and weather belong to the lights alone,
so that no place contradicts them, and colour belongs to the finishes alone.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """Scenes that share light and views.

    Args:
        scenes: Rows of lists. One group of each list of a row, in order, is a scene, whichever they are: subjects bring
            their article, and what they do is a participle, so that number and sound agree.
        lights: Word groups that follow a scene after a comma.
        views: Word groups that stand before "of" and a scene.
    """

    scenes: tuple[tuple[str, ...], ...]
    lights: str
    views: str


DRY = (
    "golden hour light | soft overcast light | bright midday sun | warm evening light | the first light of dawn"
    " | long shadows in the late afternoon | a clear blue sky | backlit by a low sun | blue hour | hazy sunlight"
)
OPEN_AIR = f"{DRY} | light rain | dark storm clouds overhead | thin fog | early morning mist | just after rain"
NIGHT = "under a starry sky | in moonlight"
WINTER = (
    "pale winter sun | soft overcast light | falling snow | a clear blue sky | the first light of dawn"
    " | long blue shadows | low golden sun | flat white light | drifting fog"
)
TOWN = (
    "golden hour light | an overcast sky | neon reflections on wet ground | street lamps at dusk | bright noon sun"
    " | light rain | thin morning fog | blue hour | long evening shadows | after a thunderstorm | hard side light"
)
INDOORS = (
    "soft window light | warm lamplight | light from a single window | morning sun through the blinds"
    " | even diffuse light | light falling from the left | deep shadows | gentle backlight | evening light"
)
STUDIO = (
    "studio lighting | soft box lighting | rim light | soft daylight | low-key lighting | high-key lighting"
    " | hard light with crisp shadows | a single spotlight | candlelight"
)

CANDID = "a photo | a candid photo | a wide shot | a documentary photo | a film still | a snapshot"
TABLE = "a photo | a close-up | an overhead shot | a still life | a three-quarter view"

FINISHES = (
    "shallow depth of field | 35mm film | 85mm lens | sharp focus | fine grain | highly detailed | soft focus"
    " | muted colours | vivid colours | natural colours | high contrast | medium format | black and white"
    " | rule of thirds | centred composition | negative space | pastel palette | cinematic colours | sepia tones"
)
MOODS = (
    "calm mood | quiet atmosphere | dramatic mood | nostalgic feel | joyful mood | mysterious atmosphere"
    " | minimalist | dreamy | melancholic | intimate | serene | bold and graphic | timeless | playful"
)
MEDIA = (
    "an oil painting | a watercolour | a pencil drawing | a charcoal sketch | an ink drawing | a woodcut print"
    " | a gouache painting | a pastel drawing | a digital painting | a linocut | a 3D render | concept art"
    " | a storybook illustration | an impressionist painting | a paper collage | a low-poly render | pixel art"
    " | an art nouveau illustration | a ukiyo-e print | a claymation still"
)
