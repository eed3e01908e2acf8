import pytest
import torch

from rapm_cli.core.randomness import generator_for
from rapm_cli.core.store import TrajectoryStore
from rapm_cli.core.trajectories import Trajectories, initial_noise


@pytest.fixture
def made(make_cond):
    z = torch.randn(5, 5, 4, 8, 8)
    return Trajectories(z, z[:, :4] + 1, make_cond(5))


def filled(folder, made):
    store = TrajectoryStore(folder, 5, 2, {"base": "tiny"})
    for rows in store.missing():
        store.write(rows, made[rows.start : rows.stop])
    return store


def test_trajectories_come_back_bit_for_bit(tmp_path, made):
    back = filled(tmp_path / "store", made).load()
    torch.testing.assert_close(back.z_teacher, made.z_teacher, rtol=0, atol=0)
    torch.testing.assert_close(back.z_ahead, made.z_ahead, rtol=0, atol=0)
    for mine, theirs in zip(back.cond.parts, made.cond.parts, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_a_second_store_finds_what_the_first_wrote(tmp_path, made):
    filled(tmp_path, made)
    assert TrajectoryStore(tmp_path, 5, 2, {}).missing() == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_only_a_damaged_shard_is_made_again(tmp_path, made, damage):
    filled(tmp_path, made)
    shard = tmp_path / "shard-000002.safetensors"
    data = bytearray(shard.read_bytes())
    if damage == "remove":
        shard.unlink()
    else:
        data[-9] ^= 1
        shard.write_bytes(data if damage == "flip" else data[:-10])
    store = TrajectoryStore(tmp_path, 5, 2, {})
    assert store.missing() == [range(2, 4)]
    with pytest.raises(ValueError, match="not complete"):
        store.load()


def test_noise_depends_on_its_own_index_alone():
    apart = torch.cat([initial_noise(3, "x", [k], (4, 8, 8)) for k in (5, 9)])
    torch.testing.assert_close(initial_noise(3, "x", [5, 9], (4, 8, 8)), apart, rtol=0, atol=0)
    assert not torch.equal(initial_noise(4, "x", [5], (4, 8, 8)), apart[:1])


def test_generators_do_not_touch_the_global_one():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    torch.rand(3, generator=generator_for(0, "anything"))
    assert torch.equal(before, torch.get_rng_state())
