import io

import numpy as np
import pytest
import torch
from PIL import Image

from rapm_cli.core.common.errors import InputError
from rapm_cli.extractors.extractor import Extractor
from rapm_cli.extractors.preparation import (
    Preparation,
    cropped_and_scaled,
    image_files,
    read_image,
    resized_without_rounding,
)
from tests.messages import naming
from tests.metrics.peers import peer

CPU = torch.device("cpu")


def image(height, width, seed=0):
    """Waves with noise, so that a resize has something to get wrong."""
    y, x = np.mgrid[:height, :width]
    waves = 127 + 90 * np.sin(x / 3)[..., None] * np.cos(y / 5)[..., None] * np.array([1, 0.5, -1])
    noise = np.random.default_rng(seed).normal(0, 30, (height, width, 3))
    return (waves + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(64, 64), (640, 480), (299, 299), (1024, 1024)])
def test_resizing_without_rounding_is_clean_fids(size):
    theirs = peer("cleanfid.resize").make_resizer("PIL", False, "bicubic", (299, 299))
    ours = resized_without_rounding(299)(image(*size))
    assert np.array_equal(ours, theirs(image(*size)).transpose(2, 0, 1))


@pytest.mark.parametrize("size", [(256, 256), (300, 224), (333, 517), (100, 90), (224, 224)])
@pytest.mark.parametrize("side", [224, 336])
def test_clips_preparation_is_transformers(size, side):
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    theirs = processor(Image.fromarray(image(*size)), return_tensors="np")["pixel_values"][0]
    ours = cropped_and_scaled(side, processor.image_mean, processor.image_std)(image(*size))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_short_side_longer_than_the_cut_loses_the_margin():
    prepare = cropped_and_scaled(8, [0, 0, 0], [1, 1, 1], resized_to=16)
    np.testing.assert_allclose(prepare(image(16, 16)), image(16, 16)[4:12, 4:12].transpose(2, 0, 1) / 255, atol=1e-6)


def test_a_preparation_crops_the_middle_and_resizes_as_pillow_does():
    wide = image(20, 31)
    expected = Image.fromarray(wide[:, 5:25]).resize((8, 8), Image.Resampling.LANCZOS)
    assert np.array_equal(Preparation(8, "lanczos")(wide), np.asarray(expected))
    assert np.array_equal(Preparation(20)(wide), wide[:, 5:25])
    assert Preparation()(wide) is wide
    for extra, left in ((3, 2), (5, 2), (7, 4), (1, 0)):  # as round() does, half to even
        given = image(20, 20 + extra)
        assert np.array_equal(Preparation(20, has_even_margins=True)(given), given[:, left : left + 20])
    assert Preparation(8).spec != Preparation(8, "lanczos").spec != Preparation(9, "lanczos").spec


def test_images_are_found_below_a_folder_and_read_as_rgb(tmp_path):
    (tmp_path / "b" / "c").mkdir(parents=True)
    Image.fromarray(image(5, 6)).save(tmp_path / "b" / "c" / "x.PNG")
    Image.new("L", (4, 3), 7).save(tmp_path / "a.jpg", quality=100)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.jpg")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    there = image_files(tmp_path)
    found = there.paths
    assert ([path.name for path in found], there.left_out) == (["a.jpg", "x.PNG"], 3)
    assert read_image(found[0]).tolist() == [[[7] * 3] * 4] * 3
    assert np.array_equal(read_image(found[1]), image(5, 6))


def test_links_to_images_and_folders_are_followed_and_each_image_counts_once(tmp_path):
    real, links = tmp_path / "real", tmp_path / "links"
    (real / "inner").mkdir(parents=True)
    links.mkdir()
    for name in ("a.png", "inner/b.png"):
        Image.fromarray(image(4, 4)).save(real / name)
    (links / "first.png").symlink_to(real / "a.png")
    (links / "inner").symlink_to(real / "inner")
    (real / "inner" / "circle").symlink_to(links)
    found = image_files(links)
    assert found.paths == (links / "first.png", links / "inner" / "b.png")
    assert found.left_out == 0


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_become_8_by_scale(tmp_path, suffix):
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(levels * 257).save(tmp_path / f"x.{suffix}")
    assert np.array_equal(read_image(tmp_path / f"x.{suffix}"), np.repeat(levels[:, :, None], 3, 2))


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_values_without_a_known_range_are_refused(tmp_path, kind):
    Image.fromarray(np.ones((4, 4), kind)).save(tmp_path / "x.tif")
    with pytest.raises(InputError, match=naming("x.tif")):
        read_image(tmp_path / "x.tif")


def test_a_palette_with_transparency_keeps_its_colours(tmp_path):
    indexed = Image.fromarray(image(8, 8)).quantize(16)
    indexed.save(tmp_path / "x.png", transparency=bytes(range(16)))
    assert np.array_equal(read_image(tmp_path / "x.png"), np.asarray(indexed.convert("RGB")))


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, None])
def test_what_is_no_image_is_refused_by_name(tmp_path, data):
    path = tmp_path / "broken.png"
    if data is None:  # cut off in the middle
        whole = io.BytesIO()
        Image.fromarray(image(64, 64)).save(whole, "PNG")
        data = whole.getvalue()[:2000]
    path.write_bytes(data)
    with pytest.raises(InputError, match=naming("broken.png")):
        read_image(path)


def test_an_image_of_too_many_pixels_is_refused(tmp_path, monkeypatch):
    Image.fromarray(image(40, 40)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(InputError, match="large"):
        read_image(tmp_path / "large.png")


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(InputError, match=naming(tmp_path)):
        image_files(tmp_path)
    with pytest.raises(InputError, match=naming(tmp_path)):
        image_files(tmp_path / "absent")


def mean_of(images, batch):
    extractor = Extractor("mean", 3, lambda p: p.transpose(2, 0, 1).astype(np.float32), lambda x: x.mean((2, 3)), CPU)
    return list(extractor.features(images, batch))


def test_features_come_in_order_whatever_the_batch():
    made = [image(8, 8, seed) for seed in range(23)]
    expected = torch.tensor(np.stack([p.mean((0, 1)) for p in made]), dtype=torch.float32)
    for batch in (1, 5, 23, 50):
        parts = mean_of([lambda p=p: p for p in made], batch)
        assert [len(part) for part in parts[:-1]] == [batch] * (len(parts) - 1)
        torch.testing.assert_close(torch.cat(parts), expected)
    assert mean_of([], 4) == []


def test_no_more_is_read_ahead_than_two_batches():
    read = []

    def reader(k):
        return lambda: (read.append(k), image(4, 4))[1]

    batches = iter(
        Extractor("none", 1, lambda p: p, lambda x: x[:, :1, 0, 0], CPU).features(map(reader, range(100)), 5)
    )
    next(batches)
    assert len(read) <= 15
    batches.close()
    assert len(read) <= 15


def test_an_error_of_an_image_reaches_the_caller(tmp_path):
    def broken():
        raise InputError("x.png is no picture", "none")

    with pytest.raises(InputError, match=r"x\.png"):
        mean_of([lambda: image(4, 4), broken], 2)
