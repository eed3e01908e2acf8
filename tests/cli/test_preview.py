"""Images in the terminal."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from rapm_cli.cli.preview import HALF, MAX_COLUMNS, MAX_ROWS, preview
from rapm_cli.core.common.errors import InputError
from rapm_cli.formats.png import MAGIC, read_png
from tests.messages import naming


def test_a_character_has_the_colours_of_two_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    text = preview(tmp_path / "x.png", 80)
    lines = text.plain.splitlines()
    assert lines == [HALF * 5] * 3
    for span in text.spans:
        row, column = divmod(span.start, 6)  # with the line's end
        upper, lower = span.style.color.triplet, span.style.bgcolor.triplet
        assert (tuple(upper), tuple(lower)) == (tuple(pixels[2 * row, column]), tuple(pixels[2 * row + 1, column]))
    assert len(text.spans) == 15


def test_a_large_image_fits_and_keeps_its_shape(tmp_path):
    Image.new("RGB", (400, 200), (10, 20, 30)).save(tmp_path / "x.png")
    for columns, width in ((40, 40), (200, MAX_COLUMNS)):
        lines = preview(tmp_path / "x.png", columns).plain.splitlines()
        assert (len(lines[0]), len(lines)) == (width, width // 4)


def test_a_high_image_fits_too(tmp_path):
    Image.new("1", (3, 9000)).save(tmp_path / "x.png")
    assert preview(tmp_path / "x.png", 80).plain.splitlines() == [HALF] * MAX_ROWS


def test_an_image_of_50000_pixels_a_side_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (50_000, 700)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match=naming("x.png", "50000 x 700")):
        preview(tmp_path / "x.png", 80)


def test_an_image_whose_pixels_are_damaged_is_refused(tmp_path):
    chunks = [struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0), zlib.compress(b"too short"), b""]
    named = [name + chunk for name, chunk in zip((b"IHDR", b"IDAT", b"IEND"), chunks, strict=True)]
    data = b"".join(struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in named)
    (tmp_path / "x.png").write_bytes(MAGIC + data)
    read_png(tmp_path / "x.png")  # its checksums are right
    with pytest.raises(InputError, match=naming("x.png")):
        preview(tmp_path / "x.png", 80)


def test_programs_get_no_image(rapm, tmp_path):
    argv = ("generate", "a red cube", "--base", "demo", "--output", str(tmp_path), "--preview")
    code, out, err = rapm(*argv)
    assert code == 0
    assert HALF not in out + err


def test_versions_of_the_libraries(rapm):
    import torch

    code, out, _ = rapm("--versions")
    assert code == 0
    assert dict(line.split() for line in out.splitlines())["torch"] == torch.__version__
