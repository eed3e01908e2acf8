"""Sizes of images: their names, and which trajectories share a shard and a batch."""

import itertools
from collections import Counter

import pytest
import torch

from rapm_cli.core.common.errors import ConfigError
from rapm_cli.core.method.config import TeacherConfig, to_json
from rapm_cli.core.method.sizes import WORDS, check_size, largest, parse_sizes
from rapm_cli.core.method.store import TrajectoryStore
from rapm_cli.core.method.trainer import batch_indices
from rapm_cli.core.method.trajectories import Trajectories
from rapm_cli.core.network.backbone import Conditioning
from tests.messages import naming

SIZES = ("96x160", "128x128", "160x96")


def test_sizes_have_names_and_words():
    assert parse_sizes(" 96x160, 128X128,96x160,") == ("96x160", "128x128")
    assert parse_sizes("sdxl,64x64") == (*WORDS["sdxl"], "64x64")
    assert {check_size(name, 64, "sdxl")[0] * check_size(name, 64, "sdxl")[1] / 2**20 for name in WORDS["sdxl"]} <= {
        k / 1024 for k in range(950, 1025)
    }
    assert largest(["96x160", "160x160", "128x128"]) == (160, 160)
    assert largest([]) is None


@pytest.mark.parametrize("name", ["", "1024", "0x64", "64x0", "64x9000", "-64x64", "64*64", "64x64x3"])
def test_what_is_no_size_is_refused(name):
    with pytest.raises(ConfigError, match=naming(f"'{name}'")):
        TeacherConfig(base="x", sizes=(name,))


@pytest.mark.parametrize(
    ("name", "near"),
    [("90x160", ["64x160", "96x160"]), ("100x100", ["96x96", "128x128"]), ("8x32", ["32x32"])],
)
def test_a_size_that_cannot_be_divided_is_refused_with_the_two_nearest(name, near):
    with pytest.raises(ConfigError, match=naming(name, "x")) as refused:
        check_size(name, 32, "x")
    assert refused.value.remedy == f"give {' or '.join(near)}"


def test_without_sizes_a_teacher_is_the_one_of_older_versions():
    assert "sizes" not in to_json(TeacherConfig(base="x"))
    assert TeacherConfig(base="x").fingerprint() != TeacherConfig(base="x", sizes=SIZES).fingerprint()
    assert TeacherConfig(**to_json(TeacherConfig(base="x", sizes=SIZES))).sizes == SIZES


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("count", [1, 2, 7, 12, 13])
def test_a_shard_has_one_size_and_every_trajectory_has_a_shard(tmp_path, stride, count):
    shards = TrajectoryStore(tmp_path, count, 2, {}, stride).shards
    assert sorted(itertools.chain(*shards)) == list(range(count))
    assert len({rows.start for rows in shards}) == len(shards)
    assert all(len({k % stride for k in rows}) == 1 and len(rows) <= 2 for rows in shards)
    if stride == 1:
        assert shards == [range(k, min(k + 2, count)) for k in range(0, count, 2)]


def test_trajectories_of_several_sizes_are_read_back(tmp_path):
    store, kept = TrajectoryStore(tmp_path, 7, 2, {}, 3), {}
    for rows in store.shards:
        side = 8 * (1 + rows.start % 3)
        values = torch.stack([torch.full((2, 1, 8, side), float(k)) for k in rows])
        store.write(rows, Trajectories(values, values[:, :1].clone(), Conditioning(torch.zeros(len(rows), 1, 1))))
        kept |= dict.fromkeys(rows, side)
    found = store.stored()
    assert (found.stride, store.missing()) == (3, ([], []))
    for k, side in kept.items():
        assert found[torch.tensor([k])].z_teacher.shape == (1, 2, 1, 8, side)
        assert (found[torch.tensor([k])].z_teacher == k).all()


@pytest.mark.parametrize(("batch_size", "count"), [(1, 9), (2, 12), (4, 12), (2, 13), (8, 4)])
def test_a_batch_has_one_size_and_an_epoch_has_every_trajectory(batch_size, count):
    batches = [batch_indices(5, k, batch_size, count, 3).tolist() for k in range(3 * count)]
    assert all(len({k % 3 for k in batch}) == 1 and len(batch) == batch_size for batch in batches)
    length = sum(-(-len(range(first, count, 3)) // batch_size) for first in range(3))
    first, second = batches[:length], batches[length : 2 * length]
    for epoch in (first, second):
        assert set(itertools.chain(*epoch)) == set(range(count))
    if count == 12 and batch_size < 4:
        assert set(Counter(itertools.chain(*first)).values()) == {1}
        assert first != second
