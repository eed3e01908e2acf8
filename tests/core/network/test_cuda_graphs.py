"""Recorded passes against passes run as ever; on the CPU with recordings that keep tensors in place."""

from typing import ClassVar

import pytest
import torch

from rapm_cli.bases.plans import PLANS
from rapm_cli.core.method.config import TrainConfig
from rapm_cli.core.method.trainer import Trainer, train
from rapm_cli.core.method.trajectories import rollout
from rapm_cli.core.network.backbone import Backbone
from rapm_cli.core.network.cuda_graphs import USUAL, Recorder, Recording
from rapm_cli.distill.memory_plan import oom_fallback
from tests.conftest import tiny_unet
from tests.messages import names


class Imitation(Recording):
    """A recording whose graph is autograd's: what a later pass overwrites on a GPU is overwritten here too."""

    def __init__(self, work, inputs, weights, pool):
        self._work = work
        self._inputs = [x.detach().clone().requires_grad_(torch.is_grad_enabled() and x.requires_grad) for x in inputs]
        self._graph = work(*self._inputs)
        self._outputs = [output.detach() for output in self._graph]
        self._lease = lambda: None
        self.sources = []
        if self._graph[0].requires_grad:
            inputs = [x for x in self._inputs if x.requires_grad]
            sources = [*inputs, *weights]
            incoming = [torch.zeros_like(output) for output in self._outputs]
            parts = torch.autograd.grad(self._graph, sources, incoming, allow_unused=True, retain_graph=True)
            if any(part is None for part in parts[: len(inputs)]):
                raise RuntimeError
            self.sources = [x for x, part in zip(sources, parts, strict=True) if part is not None]
            self._gradients = [part for part in parts if part is not None]

    pool = None

    def forward(self, inputs):
        for place, value in zip(self._inputs, inputs, strict=True):
            place.data.copy_(value)
        with torch.set_grad_enabled(bool(self.sources)):
            self._graph = self._work(*self._inputs)
        for place, value in zip(self._outputs, self._graph, strict=True):
            place.copy_(value.detach())
        return tuple(output.clone() for output in self._outputs)

    def backward(self, incoming):
        parts = torch.autograd.grad(self._graph, self.sources, incoming)
        for place, value in zip(self._gradients, parts, strict=True):
            place.copy_(value)
        return self._gradients


class Imitating(Recorder):
    def _is_worth_it(self, device):
        return True

    def _recorded(self, work, inputs, weights, pool):
        return Imitation(work, inputs, weights, pool)

    @property
    def made(self):
        return {(key[0], key[1]): len(all_) for key, all_ in self._made.items() if all_}


def trained(schedule, batch, cond, recorder, **settings):
    backbone = Backbone(tiny_unet(), schedule)
    config = TrainConfig(**{"rank": 2, "iterations": 4, "learning_rate": 1e-3} | settings)
    trainer = Trainer(backbone, config, num_slots=2, fine_steps=3, delta=1, guidance_scale=2.0, uncond=cond)
    backbone.recorder = recorder(backbone.unet) if recorder else None
    losses = [slot for progress in train(trainer, batch) for slot in progress.slots]
    return trainer, losses


@pytest.fixture
def zeros(make_cond):
    return make_cond(1).map(torch.zeros_like)


@pytest.fixture
def batch(backbone, make_cond, latents, zeros):
    return rollout(
        backbone.teacher, latents(2), make_cond(2), zeros, num_slots=2, fine_steps=3, delta=1, guidance_scale=2.0
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rapm", "dmd2"])  # times of a slot, and of each picture
def test_recorded_passes_train_to_the_same_bits(schedule, batch, zeros, method):
    usual, expected = trained(schedule, batch, zeros, None, method=method, iterations=8)
    mine, losses = trained(schedule, batch, zeros, Imitating, method=method, iterations=8)
    assert losses == expected
    for name, optimizer in usual.optimizers.items():
        assert torch.equal(mine.optimizers[name].weights.flat, optimizer.weights.flat)
    assert any(is_lasting for _, is_lasting in mine.backbone.recorder.made)


def test_a_pass_that_waits_for_its_gradients_is_not_played_over(schedule, make_cond, latents):
    backbone = Backbone(tiny_unet(), schedule)
    backbone.recorder = recorder = Imitating(backbone.unet)
    z, cond = latents(1).requires_grad_(), make_cond(1)
    for _ in range(USUAL):
        backbone.teacher.features(z, torch.tensor([5]), cond)
    first, second = (backbone.teacher.features(factor * z, torch.tensor([5]), cond)[-1].sum() for factor in (1, 2))
    assert recorder.made == {(("_half", "teacher"), True): 2}
    backbone.recorder = None
    for loss, factor in ((second, 2), (first, 1)):
        expected = torch.autograd.grad(backbone.teacher.features(factor * z, torch.tensor([5]), cond)[-1].sum(), z)
        assert torch.equal(torch.autograd.grad(loss, z)[0], expected[0])
    backbone.recorder = recorder
    backbone.teacher.features(z, torch.tensor([5]), cond)
    assert recorder.made == {(("_half", "teacher"), True): 2}


def test_what_cannot_be_recorded_is_run_as_ever(schedule, make_cond, latents):
    class Failing(Imitating):
        tried = 0

        def _recorded(self, work, inputs, weights, pool):
            self.tried += 1
            raise RuntimeError("not permitted when stream is capturing")

    backbone = Backbone(tiny_unet(), schedule)
    expected = backbone.teacher(latents(1), 500, make_cond(1))
    backbone.recorder = Failing(backbone.unet)
    with torch.no_grad():
        for _ in range(USUAL + 3):
            assert torch.equal(backbone.teacher(latents(1), 500, make_cond(1)), expected)
    assert backbone.recorder.tried == 1


def test_an_input_without_a_part_in_the_outputs_is_no_recording(schedule):
    backbone = Backbone(tiny_unet(), schedule)
    recorder = Imitating(backbone.unet)
    used, unused = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    for _ in range(USUAL + 2):
        [out] = recorder.run("doubled", lambda x, y: (2 * x,), used, unused)
    assert torch.autograd.grad(out.sum(), [used, unused], allow_unused=True)[1] is None


@pytest.mark.slow
def test_short_memory_takes_the_recordings_first_and_then_the_plan(schedule, batch, zeros):
    class Ear:
        heard: ClassVar[list[str]] = []

        def warn(self, line):
            self.heard.append(line)

    trainer, _ = trained(schedule, batch, zeros, Imitating)
    on_oom = oom_fallback(PLANS["24"], trainer.backbone, Ear(), recomputes_all=False)
    assert trainer.backbone.recorder.has_recordings
    assert on_oom()
    assert trainer.backbone.recorder is None
    assert on_oom()
    assert ["--no-cuda-graphs" in line for line in Ear.heard] == [True, False]
    assert names(Ear.heard[1], 16)


def test_a_cpu_records_nothing(backbone, make_cond, latents):
    with torch.no_grad():
        for _ in range(USUAL + 3):
            backbone.teacher(latents(1), 500, make_cond(1))
    assert not any(backbone.recorder._made.values())


@pytest.mark.gpu
def test_a_pass_that_cannot_be_recorded_leaves_the_gpu_usable():
    recorder, x = Recorder(torch.nn.Linear(1, 1)), torch.ones(3, device=torch.device("cuda", 0))
    for _ in range(USUAL + 2):
        [out] = recorder.run("asks", lambda x: (x * x.sum().item(),), x)  # a recording cannot wait for a number
    assert not recorder.has_recordings
    torch.cuda.empty_cache()
    assert out.tolist() == [3.0, 3.0, 3.0]
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["rapm", "dmd2"])  # times of a slot, and of each picture
def test_a_gpu_records_and_trains_to_the_same_bits(schedule, batch, zeros, method):
    made = []
    for recorder in (None, Recorder):
        backbone = Backbone(tiny_unet().cuda(), schedule)
        config = TrainConfig(rank=2, iterations=8, learning_rate=1e-3, method=method)
        place = torch.device("cuda")
        trainer = Trainer(
            backbone, config, num_slots=2, fine_steps=3, delta=1, guidance_scale=2.0, uncond=zeros.to(place)
        )
        backbone.recorder = recorder(backbone.unet) if recorder else None
        made.append(([slot for progress in train(trainer, batch) for slot in progress.slots], trainer))
    (expected, usual), (losses, mine) = made
    assert any(mine.backbone.recorder._made.values())
    assert losses == expected
    for name, optimizer in usual.optimizers.items():
        assert torch.equal(mine.optimizers[name].weights.flat, optimizer.weights.flat)
