"""Students that start from another LoRA, at another rank."""

import pytest
import torch

from rapm_cli.core.storage.files import file_sha256
from rapm_cli.formats.fuse import lora_update
from rapm_cli.formats.lora import load_lora
from rapm_cli.formats.lora_refactor import nearest_factors, refactor_lora
from rapm_cli.runs.run import Run
from tests.messages import names
from tests.resuming import DISTILL, state_of, unfinished
from tests.style_lora import write_style


@pytest.mark.parametrize("ends", [(), (3, 3)])
def test_a_lower_rank_is_the_nearest_of_all(ends):
    """Eckart-Young: the error is the energy of the singular values that are left out."""
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(5, 7, *ends, generator=generator)
    up = torch.randn(6, 5, *[1 for _ in ends], generator=generator)
    update = lora_update(down, up, 1.0).flatten(1)
    values = torch.linalg.svdvals(update.double()).square()
    for rank in (1, 3, 4):
        made = nearest_factors(down, up, rank)
        assert made.down.shape == (rank, 7, *ends)
        left = (lora_update(made.down, made.up, 1.0).flatten(1) - update).double().square().sum()
        assert float(left) == pytest.approx(float(values[rank:].sum()), rel=1e-4)
        assert (made.lost, made.total) == pytest.approx((float(values[rank:].sum()), float(values.sum())), rel=1e-4)
    same = nearest_factors(down, up, 5)
    assert (same.lost, torch.equal(same.down, down), torch.equal(same.up, up)) == (0.0, True, True)


@pytest.mark.parametrize("rank", [2, 4])
def test_a_rank_that_suffices_keeps_the_update_and_leaves_no_dead_ranks(tmp_path, small_folder, rank):
    lora = load_lora(write_style(tmp_path / "style.safetensors", small_folder))
    fresh = {}
    for module in lora.modules:
        down, up = lora.factors(module)
        fresh[f"{module}.lora_A.weight"] = torch.rand(rank, *down.shape[1:]) + 1
        fresh[f"{module}.lora_B.weight"] = torch.zeros(len(up), rank, *up.shape[2:])
    made = refactor_lora(lora, fresh, 0.5)
    assert (made.lost, made.left_out) == (0.0, [])
    for module in lora.modules:
        down, up = (made.state[f"{module}.lora_{half}.weight"] for half in "AB")
        wanted = lora_update(*lora.factors(module), lora.alpha / lora.rank)
        torch.testing.assert_close(lora_update(down, up, 0.5), wanted, rtol=1e-5, atol=1e-7)
        assert torch.equal(down[2:], fresh[f"{module}.lora_A.weight"][2:])


def test_what_the_student_lacks_is_lost_energy(tmp_path, small_folder):
    lora = load_lora(write_style(tmp_path / "style.safetensors", small_folder))
    made = refactor_lora(lora, {}, 1.0)
    assert (made.lost, made.left_out) == (1.0, lora.modules)


def test_a_run_starts_from_a_lora_and_resumes_exactly_without_it(rapm, small_demo, small_folder, home, tmp_path):
    path = write_style(tmp_path / "public_4step.safetensors", small_folder)
    command = [*DISTILL, "--init-lora", str(path)]
    code, _, err = rapm(*command)
    assert (code, names(err, path.name, "rank 2", "to 1")) == (0, True), err
    run = Run(next((home / "data" / "runs").iterdir()))
    (first,) = load_lora(run.lora).recipe["started_from"]
    assert first == {"name": path.name, "sha256": file_sha256(path), "weight": 1.0}
    wanted = state_of(run)
    unfinished(run, "00000004")
    code, _, err = rapm("distill", "--resume", "--init-lora", f"{path}:0.5")
    assert (code, names(err, run.folder, "init-lora")) == (2, True), err
    path.unlink()
    assert rapm("distill", "--resume")[0] == 0
    assert state_of(run) == wanted


def test_a_lora_of_another_base_is_refused(rapm, small_folder, tmp_path):
    path = write_style(tmp_path / "style.safetensors", small_folder)
    code, _, err = rapm("distill", "--base", "sdxl", "--init-lora", str(path), "--dry-run")
    assert (code, names(err, path)) == (3, True), err
