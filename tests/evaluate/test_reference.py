import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import ConfigError, InputError
from rapm_cli.evaluate.reference import coco_pairs, files_digest, find_reference, list_digest, statistics_of
from rapm_cli.extractors import Extractor
from rapm_cli.extractors.preparation import Preparation, read_image
from rapm_cli.extractors.statistics import write_statistics
from rapm_cli.metrics.moments import moments
from tests.evaluate.coco_folder import write_coco
from tests.messages import naming

EYE = Extractor(
    "means", 3, lambda p: p.transpose(2, 0, 1).astype(np.float32), lambda x: x.mean((2, 3)), torch.device("cpu")
)


@pytest.fixture
def coco(tmp_path):
    return write_coco(tmp_path / "coco")


def test_an_image_of_coco_has_the_caption_of_its_smallest_id_and_a_place_by_lot(coco):
    pairs = coco_pairs(coco, 12)
    assert {pair.image for pair in pairs} == set(range(12))
    assert all(pair.caption == f"Caption 0 of image {pair.image}." for pair in pairs)
    assert all(pair.path.name == f"COCO_val2014_{pair.image:012d}.jpg" for pair in pairs)
    assert [pair.image for pair in pairs] != sorted(pair.image for pair in pairs)
    assert coco_pairs(coco, 5) == pairs[:5]


def test_the_list_of_coco_depends_on_ids_and_captions_alone(coco, tmp_path):
    """A golden list, as `printf 'rapm coco30k N' | sha256sum | sort` makes it: figures were published with it."""
    pairs = coco_pairs(coco, 12)
    assert [pair.image for pair in pairs] == [11, 5, 4, 7, 2, 6, 9, 1, 8, 3, 0, 10]
    moved = write_coco(tmp_path / "elsewhere")
    assert list_digest(coco_pairs(moved, 12)) == list_digest(pairs) != list_digest(pairs[:11])


def test_a_folder_that_is_not_cocos_is_refused_with_what_is_missing(coco, tmp_path):
    with pytest.raises(InputError, match=naming(tmp_path)):
        coco_pairs(tmp_path, 3)
    with pytest.raises(InputError, match=naming(12, 13)):
        coco_pairs(coco, 13)
    missing = coco_pairs(coco, 1)[0].path
    missing.unlink()
    with pytest.raises(InputError, match=missing.name):
        coco_pairs(coco, 12)
    captions = coco / "annotations" / "captions_val2014.json"
    captions.write_text(json.dumps({"annotations": []}))
    with pytest.raises(InputError, match=naming("captions_val2014.json")):
        coco_pairs(coco, 3)


def test_statistics_of_images_are_those_of_their_features(coco):
    side = Preparation(32)
    reference = find_reference(f"coco:{coco}", 10)
    assert len(reference.paths) == 10
    made = statistics_of(reference, side, EYE, Output(quiet=True), keep=True)
    features = np.stack([side(read_image(path)).mean((0, 1)) for path in reference.paths])
    torch.testing.assert_close(made.features, torch.tensor(features, dtype=torch.float32))
    torch.testing.assert_close(
        made.moments.covariance, moments(torch.tensor(features)).covariance, rtol=1e-5, atol=1e-5
    )
    assert (made.extractor, made.preparation, made.moments.count) == ("means", side.spec, 10)
    assert made.files == files_digest(reference.paths)
    assert statistics_of(reference, side, EYE, Output(quiet=True), keep=False).features is None


def test_real_images_are_looked_at_once_until_one_changes(coco):
    reference, looked = find_reference(f"coco:{coco}", 10), []

    def network(images):
        looked.append(len(images))
        return images.mean((2, 3))

    eye, side = replace(EYE, network=network), Preparation(32)
    first = statistics_of(reference, side, eye, Output(quiet=True), keep=True)
    again = statistics_of(reference, side, eye, Output(quiet=True), keep=True)
    assert sum(looked) == 10
    assert torch.equal(first.features, again.features)
    assert torch.equal(first.moments.covariance, again.moments.covariance)
    assert (again.source, again.files) == (first.source, first.files)
    Image.new("RGB", (40, 40), "red").save(reference.paths[3])
    changed = statistics_of(reference, side, eye, Output(quiet=True), keep=True)
    assert sum(looked) == 20
    assert changed.files != first.files


def test_a_reference_is_a_folder_coco_or_statistics(coco, tmp_path):
    assert len(find_reference(f"coco:{coco}").paths) == 12
    folder = find_reference(str(coco / "val2014"))
    assert len(folder.paths) == 12
    corner = replace(EYE, prepare=lambda p: EYE.prepare(p[:9, :9]))
    made = statistics_of(folder, Preparation(), corner, Output(quiet=True), keep=False)
    write_statistics(tmp_path / "s.safetensors", made, {})
    read = find_reference(str(tmp_path / "s.safetensors")).statistics
    assert torch.equal(read.moments.mean, made.moments.mean)
    assert read.source == f"folder {coco / 'val2014'}"
    for wrong in ("absent", str(coco / "annotations" / "captions_val2014.json")):
        with pytest.raises(ConfigError, match="no folder of images"):
            find_reference(wrong)


def test_the_digest_of_files_knows_their_bytes_names_and_order(tmp_path):
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for k, path in enumerate(paths):
        Image.new("L", (2, 2), k // 2).save(path)
    digest = files_digest(paths)
    assert digest != files_digest(paths[::-1])
    assert digest != files_digest(paths[:2])
    Image.new("L", (2, 2), 9).save(paths[2])
    assert digest != files_digest(paths)
