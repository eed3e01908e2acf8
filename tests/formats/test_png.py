"""Texts of a PNG: those that Pillow writes come back; damage and bombs are refused, and cost no memory."""

import struct
import tracemalloc
import zlib

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rapm_cli.core.common.errors import InputError
from rapm_cli.formats.png import MAGIC, read_png


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes, size=(1, 1)) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    return MAGIC + b"".join((header, *chunks, chunk(b"IDAT", zlib.compress(b"\0" * 4)), chunk(b"IEND", b"")))


@pytest.fixture
def made(tmp_path):
    info = PngInfo()
    info.add_text("rapm", '{"seed": 1}')
    info.add_text("packed", "a" * 1000, zip=True)
    info.add_itxt("parameters", "ein grüner Würfel")
    Image.new("RGB", (3, 5)).save(tmp_path / "made.png", pnginfo=info, dpi=(72, 72))
    return tmp_path / "made.png"


def test_size_and_texts_are_read(made):
    read = read_png(made)
    assert (read.width, read.height) == (3, 5)
    assert read.texts == {"rapm": '{"seed": 1}', "packed": "a" * 1000, "parameters": "ein grüner Würfel"}


@pytest.mark.parametrize(
    "late",
    [
        chunk(b"tEXt", b"parameters\0Seed: 7"),
        chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"Seed: 7")),
        chunk(b"iTXt", b"parameters\0\0\0\0\0Seed: 7"),
    ],
)
def test_texts_that_stand_after_the_pixels_are_read(tmp_path, late):
    end = chunk(b"IEND", b"")
    data = png(chunk(b"tEXt", b"rapm\0{}")).removesuffix(end) + chunk(b"tIME", bytes(7)) + late + end
    (tmp_path / "late.png").write_bytes(data)
    assert read_png(tmp_path / "late.png").texts == {"rapm": "{}", "parameters": "Seed: 7"}
    with Image.open(tmp_path / "late.png") as image:
        assert image.text == {"rapm": "{}", "parameters": "Seed: 7"}


def test_every_damaged_byte_and_every_cut_is_refused(made):
    data = made.read_bytes()
    for k in range(len(data) - 12):  # the last chunk, which holds nothing
        for wrong in (data[:k], data[:k] + bytes([data[k] ^ 1]) + data[k + 1 :]):
            made.write_bytes(wrong)
            with pytest.raises(InputError) as caught:
                read_png(made)
            assert str(made) in caught.value.message
            assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "data",
    [
        png(size=(2**31 - 1, 2**31 - 1)),
        png(chunk(b"zTXt", b"rapm\0\0" + zlib.compress(bytes(10**8), 9))),
        png(chunk(b"iTXt", b"rapm\0\1\0\0\0" + zlib.compress(bytes(10**8), 9))),
        png()[:-12] + chunk(b"zTXt", b"rapm\0\0" + zlib.compress(bytes(10**8), 9)) + chunk(b"IEND", b""),
    ],
)
def test_a_bomb_is_refused_and_costs_no_memory(tmp_path, data):
    (tmp_path / "bomb.png").write_bytes(data)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"bomb\.png"):
        read_png(tmp_path / "bomb.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**7


def test_a_large_image_is_no_bomb_because_its_pixels_are_not_read(tmp_path):
    (tmp_path / "large.png").write_bytes(png(size=(12_000, 12_000)))
    assert read_png(tmp_path / "large.png").width == 12_000
