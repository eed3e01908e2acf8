import shutil

import pytest
import torch

from rapm_cli.core.common.errors import DamagedError
from rapm_cli.core.common.randomness import generator_for
from rapm_cli.core.method.store import TrajectoryStore
from rapm_cli.core.method.trajectories import Trajectories, initial_noise
from rapm_cli.core.storage.commit import commit
from tests.messages import naming


@pytest.fixture
def made(make_cond):
    z = torch.randn(5, 5, 4, 8, 8)
    return Trajectories(z, z[:, :4] + 1, make_cond(5))


def filled(folder, made):
    store = TrajectoryStore(folder, 5, 2, {"base": "tiny"})
    for rows in store.missing()[0]:
        store.write(rows, made[rows.start : rows.stop])
    return store


def test_trajectories_come_back_bit_for_bit(tmp_path, made):
    back = filled(tmp_path / "store", made).stored()[torch.arange(5)]
    assert back.tensors().keys() == made.tensors().keys()
    assert all(torch.equal(value, made.tensors()[name]) for name, value in back.tensors().items())


def test_a_second_store_finds_what_the_first_wrote(tmp_path, made):
    filled(tmp_path, made)
    assert TrajectoryStore(tmp_path, 5, 2, {}).missing() == ([], [])


@pytest.mark.parametrize(
    "damage", ["flip", "truncate", "zero", "file", "manifest", "swap", "folder", "another store's", "renamed"]
)
def test_only_a_damaged_shard_is_made_again(tmp_path, made, damage):
    filled(tmp_path, made)
    shard = tmp_path / "000002"
    path = shard / "trajectories.safetensors"
    data = path.read_bytes()
    if damage == "flip":
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    elif damage == "truncate":
        path.write_bytes(data[:-10])
    elif damage == "zero":
        path.write_bytes(bytes(len(data)))
    elif damage == "swap":
        shutil.rmtree(shard)
        shutil.copytree(tmp_path / "000000", shard)
    elif damage == "another store's":
        shutil.rmtree(shard)
        shutil.copytree(filled(tmp_path / "other", made).folder / "000002", shard)
    elif damage == "renamed":
        about = {"rows": [0, 2]}
        commit(shard, {path.name: data}, fingerprint=tmp_path.name, about=about)
    elif damage == "folder":
        shutil.rmtree(shard)
    else:
        (path if damage == "file" else shard / "MANIFEST.json").unlink()
    store = TrajectoryStore(tmp_path, 5, 2, {})
    missing, found = store.missing()
    assert missing == [range(2, 4)]
    assert [error.place for error in found] == ([] if damage == "folder" else [shard])
    store.write(range(2, 4), made[2:4])
    assert torch.equal(store.stored()[torch.arange(5)].z_teacher, made.z_teacher)


def test_noise_depends_on_its_own_index_alone():
    apart = torch.cat([initial_noise(3, "x", [k], (4, 8, 8)) for k in (5, 9)])
    torch.testing.assert_close(initial_noise(3, "x", [5, 9], (4, 8, 8)), apart, rtol=0, atol=0)
    assert not torch.equal(initial_noise(4, "x", [5], (4, 8, 8)), apart[:1])


def test_generators_do_not_touch_the_global_one():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    torch.rand(3, generator=generator_for(0, "anything"))
    assert torch.equal(before, torch.get_rng_state())


def test_a_shard_that_is_gone_or_cut_off_since_it_was_verified_is_told(tmp_path, made):
    store = filled(tmp_path, made)
    stored = store.stored()
    path = tmp_path / "000002" / "trajectories.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert torch.equal(stored[torch.tensor([1, 4])].z_ahead, made.z_ahead[[1, 4]])
    with pytest.raises(DamagedError, match=naming("000002", "trajectories.safetensors")):
        stored[torch.tensor([3])]
    shutil.rmtree(path.parent)
    with pytest.raises(DamagedError):
        store.stored()
