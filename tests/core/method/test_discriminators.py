import dataclasses

import pytest
import torch

from rapm_cli.core.method.discriminators import DISCRIMINATORS, Discriminator


@pytest.mark.slow
@pytest.mark.parametrize("times", ["edge", "slot", "all"])
def test_discriminators_look_at_the_times_that_they_are_told(trainer_of, trajectories, monkeypatch, times):
    seen = []

    def features(teacher, z, t, cond):
        seen.append((t.tolist(), z))
        return [z]

    kind = dataclasses.replace(DISCRIMINATORS["latent"], features=features)
    trainer = trainer_of(discriminator_noise=times)
    adversarial = trainer.method.adversarial
    monkeypatch.setattr(adversarial, "kind", kind)
    edges = adversarial.context.edges
    z = trajectories.z_teacher[:, 1]
    for iteration in range(60):
        adversarial.features({"fake": z}, trajectories.cond, 1, iteration)
    drawn = [t for row, _ in seen for t in row]
    highest = {"edge": edges[1] + 1, "slot": edges[2], "all": edges[4]}[times]
    assert min(drawn) >= edges[1]
    assert 0.9 * (highest - edges[1]) < max(drawn) - edges[1] + 1 <= highest - edges[1]
    assert all(torch.equal(noised, z) for _, noised in seen) == (times == "edge")


@pytest.mark.slow
@pytest.mark.parametrize("name", DISCRIMINATORS.names())
def test_every_discriminator_keeps_the_contract(name, backbone, make_cond, latents):
    kind = DISCRIMINATORS[name]
    torch.manual_seed(0)
    discriminator, again = (Discriminator(kind, backbone, 5, "relative") for _ in range(2))
    other = Discriminator(kind, backbone, 5, "absolute")
    z = latents(2).requires_grad_()
    features = kind.features(backbone.teacher, z, torch.tensor([100, 200]), make_cond(2))
    logits = discriminator(features)
    assert [f.shape[1] for f in features] == kind.channels(backbone)
    assert all(out.shape[:2] == (2, 1) for out in logits)
    sum(out.sum() for out in logits).backward()
    assert z.grad is not None
    assert z.grad.abs().max() > 0
    assert all(p.grad is not None for p in discriminator.parameters())
    assert all(torch.equal(a, b) for a, b in zip(discriminator.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(discriminator.parameters(), other.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", DISCRIMINATORS.names())
def test_every_discriminator_learns_to_tell_two_positions_apart(name, backbone, trainer_of, trajectories):
    rates = {"discriminator_learning_rate": 1e-2, "learning_rate": 1e-9}
    trainer = trainer_of(discriminator=name, discriminators="absolute", relative_weight=0.0, **rates)
    first = trainer.train_step(trajectories[0:4], 0)
    for _ in range(25):
        last = trainer.train_step(trajectories[0:4], 0)  # the same noise each time
    assert last[0].discriminator["absolute"] < 0.8 * first[0].discriminator["absolute"]
