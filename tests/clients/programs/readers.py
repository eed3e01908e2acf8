"""Read the texts of a PNG with five packages, each in its own way.

`python readers.py PNG` prints JSON: by package its version, and the text or the settings that it found.
"""

import json
import sys
from importlib.metadata import version


def sd_parsers(path):
    from sd_parsers import ParserManager

    found = ParserManager().parse(path)
    (sampler,) = found.samplers
    return {"Seed": str(sampler.parameters.get("seed")), "Prompt": found.full_prompt, "Sampler": sampler.name}


def sd_prompt_reader(path):
    from sd_prompt_reader.image_data_reader import ImageDataReader

    found = ImageDataReader(path)
    wanted = {"Seed": "seed", "Sampler": "sampler", "Size": "size"}
    return {name: str(found.parameter.get(key)) for name, key in wanted.items()} | {"Prompt": found.positive}


def pillow(path):
    from PIL import Image

    return Image.open(path).info["parameters"]


def pypng(path):
    import zlib

    import png

    for kind, data in png.Reader(filename=path).chunks():
        key, _, rest = data.partition(b"\0")
        if key == b"parameters":
            return (zlib.decompress(rest[1:]) if kind == b"zTXt" else rest.rpartition(b"\0")[2]).decode()
    return ""


def imageio(path):
    import imageio.v3

    return imageio.v3.immeta(path)["parameters"]


READERS = {
    "sd-parsers": sd_parsers, "sd-prompt-reader": sd_prompt_reader, "Pillow": pillow, "pypng": pypng,
    "imageio": imageio,
}  # fmt: skip


def main() -> None:
    facts = {}
    for name, read in READERS.items():
        try:
            facts[name] = (version(name), read(sys.argv[1]), "")
        except Exception as error:  # noqa: BLE001  # the table shows it
            facts[name] = (version(name), "", f"{type(error).__name__}: {error}"[:120])
    sys.stdout.write("\n" + json.dumps(facts))


if __name__ == "__main__":
    main()
