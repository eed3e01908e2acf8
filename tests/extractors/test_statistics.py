import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from rapm_cli.core.common.errors import InputError
from rapm_cli.extractors.statistics import Statistics, read_statistics, require_same, write_statistics
from rapm_cli.metrics.frechet import frechet_distance
from rapm_cli.metrics.moments import moments
from tests.messages import naming

FEATURES = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
MADE = Statistics(moments(FEATURES), "eye 1", "as they are", "folder x", "ab" * 32, FEATURES)


def test_statistics_are_read_as_they_were_written(tmp_path):
    write_statistics(tmp_path / "a.safetensors", MADE, {"torch": "2"})
    write_statistics(tmp_path / "b.safetensors", replace(MADE, features=None), {"torch": "2"})
    read, without = read_statistics(tmp_path / "a.safetensors"), read_statistics(tmp_path / "b.safetensors")
    assert torch.equal(read.moments.mean, MADE.moments.mean)
    assert torch.equal(read.moments.covariance, MADE.moments.covariance)
    assert torch.equal(read.features, FEATURES)
    assert without.features is None
    assert replace(read, moments=MADE.moments, features=FEATURES) == MADE
    assert read.moments.count == 50


def npz(path, compressed=False, **arrays):
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("compressed", [False, True])
def test_the_peers_files_are_read(tmp_path, dtype, compressed):
    mean, covariance = MADE.moments.mean.numpy().astype(dtype), MADE.moments.covariance.numpy().astype(dtype)
    path = npz(tmp_path / "peer.npz", compressed, mu=mean, sigma=np.asfortranarray(covariance))
    read = read_statistics(path)
    np.testing.assert_array_equal(read.moments.covariance.numpy(), covariance)
    assert frechet_distance(read.moments, MADE.moments) == pytest.approx(0, abs=1e-5)
    assert (read.extractor, read.preparation, read.moments.count) == (None, None, 0)
    require_same(read, "any", 6, "any")


def test_statistics_that_were_made_differently_are_refused_with_both_descriptions():
    ours = ("eye 1", 6, "as they are")
    require_same(MADE, *ours)
    for other in (replace(MADE, extractor="eye 2"), replace(MADE, preparation="to 256")):
        with pytest.raises(InputError) as told:
            require_same(other, *ours)
        assert other.description in told.value.message
        assert "eye 1; as they are" in told.value.message
    with pytest.raises(InputError, match=naming("eye 1")):
        require_same(replace(MADE, extractor=None, moments=moments(FEATURES[:, :4])), *ours)


def zipped(path, name, data):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return path


def header_of(shape, descr="<f8"):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": descr, "fortran_order": False, "shape": shape})
    return head.getvalue()


def corrupt(path):
    """Bytes in the middle of what is compressed."""
    data = bytearray(path.read_bytes())
    data[70:90] = bytes(20)
    path.write_bytes(data)


CASES = {
    "pickled": lambda path: npz(path, mu=np.array([{}], dtype=object), sigma=np.eye(2)),
    "a bomb": lambda path: zipped(path, "mu.npy", header_of((10**9,)) + bytes(10**6)),
    "cut off": lambda path: zipped(path, "mu.npy", header_of((8,)) + bytes(9)),
    "whole numbers": lambda path: npz(path, mu=np.zeros(2, int), sigma=np.eye(2)),
    "lacks sigma": lambda path: npz(path, mu=np.zeros(2)),
    "two widths": lambda path: npz(path, mu=np.zeros(2), sigma=np.eye(3)),
    "nan": lambda path: npz(path, mu=np.array([0, np.nan]), sigma=np.eye(2)),
    "askew": lambda path: npz(path, mu=np.zeros(2), sigma=np.array([[1, 0.5], [0, 1.0]])),
    "negative": lambda path: npz(path, mu=np.zeros(2), sigma=-np.eye(2)),
    "a negative shape": lambda path: zipped(path, "mu.npy", header_of((-1,)) + bytes(10**6)),
    "indefinite": lambda path: npz(path, mu=np.zeros(2), sigma=np.array([[1, 5], [5, 1.0]])),
    "a corrupt member": lambda path: corrupt(npz(path, True, mu=np.zeros(500), sigma=np.eye(500))),
    "no zip": lambda path: path.write_bytes(b"\x80\x04K\x01."),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("case", CASES)
def test_what_holds_no_statistics_is_refused_by_name(tmp_path, case):
    path = tmp_path / "broken.npz"
    CASES[case](path)
    with pytest.raises(InputError, match=r"broken\.npz") as told:
        read_statistics(path)
    assert "--save-reference" in told.value.remedy


@pytest.mark.parametrize("case", ["another file", "cut off", "no file", "other words", "other features"])
def test_a_file_that_is_not_ours_is_refused_by_name(tmp_path, case):
    from safetensors.torch import load_file, save_file

    path = tmp_path / "broken.safetensors"
    write_statistics(path, MADE, {})
    if case == "another file":
        save_file({"x": torch.zeros(2)}, path)
    elif case == "cut off":
        path.write_bytes(path.read_bytes()[:-9])
    elif case == "no file":
        path.unlink()
    elif case == "other features":
        write_statistics(path, replace(MADE, features=FEATURES[:9]), {})
    else:
        save_file(load_file(path), path, {"rapm_statistics": '{"format": 1, "count": [], "extractor": 5}'})
    with pytest.raises(InputError, match=r"broken\.safetensors") as told:
        read_statistics(path)
    assert "--save-reference" in told.value.remedy
