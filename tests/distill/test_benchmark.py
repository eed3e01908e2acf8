"""The benchmark, on a network as small as it can be."""

import json

import pytest
import torch

from rapm_cli.bases.estimate import CostEstimate
from rapm_cli.bases.plans import PLANS
from rapm_cli.core.network import backbone
from rapm_cli.distill import benchmark
from rapm_cli.distill.benchmark import KERNELS, PLAIN, VARIANTS
from tests.conftest import tiny_unet
from tests.messages import names


@pytest.fixture
def brief(tiny, monkeypatch):
    """The tiny base, measured once."""
    monkeypatch.setattr(benchmark, "REPEATS", 1)


@pytest.fixture
def two_plans(brief, monkeypatch):
    """Two of the plans alone, an estimate of neither, and no sampling, which a test of its own measures."""
    monkeypatch.setattr(benchmark, "estimate_plan", lambda *args: CostEstimate(peak_bytes=2**30, flops=10**9))
    monkeypatch.setattr(benchmark, "PLANS", {name: PLANS[name] for name in ("24", "12")})
    monkeypatch.setattr(benchmark, "_measure_sampling", lambda *args: benchmark.SamplingSpeed(1, 1.0, 1.0, 1.0))


RUN = ["eval", "--benchmark", "--base", "demo", "--device", "cpu", "--precision", "fp32"]


def test_it_measures_both_phases_every_plan_every_variant_and_sampling(rapm, brief, home, monkeypatch):
    plans = {name: PLANS[name] for name in ("24", "8")}  # weights as they are, and in 8 bits
    monkeypatch.setattr(benchmark, "PLANS", plans)
    estimates = {name: CostEstimate(peak_bytes=2**30, flops=10**9 * int(name)) for name in plans}
    monkeypatch.setattr(benchmark, "estimate_plan", lambda *args: estimates[args[-1].name])  # below a real one
    monkeypatch.setattr(backbone, "compile_blocks", lambda unet: None)  # tests of its own: test_backbone.py
    code, out, _ = rapm(*RUN, "--json", "--profile")
    assert code == 0
    made = json.loads(out)
    plain = [speed for speed in made["plans"] if speed["way"] == PLAIN]
    assert [speed["plan"]["name"] for speed in plain] == list(plans)
    variants = [one for one in VARIANTS if one != KERNELS]  # a CPU has no CUDA graphs
    assert [speed["way"] for speed in made["plans"][len(plans) :]] == variants[1:]
    assert [speed["way"] for speed in made["teachers"]] == variants
    assert made["side_px"] == 8
    for speed in made["plans"]:
        rate = speed["flops"] / speed["time"]["seconds"]
        assert speed["share_of_matmul"] * made["matmul_tflops"] * 1e12 == pytest.approx(rate)
        assert speed["time"]["peak_bytes"] is None
    whole = [speed for speed in made["plans"] if not speed["plan"]["is_quantised"]]
    hours = [
        (1000 / teacher["trajectories_an_hour"], 20_000 * speed["time"]["seconds"] / 3600)
        for teacher in made["teachers"]
        for speed in whole
        if teacher["way"] == speed["way"]
    ]
    assert (made["hours"]["trajectories"], made["hours"]["training"]) == pytest.approx(min(hours, key=sum))
    assert made["drawing"]["ratio"] == pytest.approx(made["drawing"]["seconds"] / made["drawing"]["pipeline_seconds"])
    seconds = [row["seconds"] for row in made["profile"]]
    assert len(seconds) > 10
    assert seconds == sorted(seconds, reverse=True)
    assert not home.exists()


def test_a_plan_that_does_not_fit_is_a_row_that_says_so(rapm, two_plans, monkeypatch):
    real = benchmark.time_iteration

    def fits(architecture, settings, plan, *args):
        if plan.name == "24":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(architecture, settings, plan, *args)

    monkeypatch.setattr(benchmark, "time_iteration", fits)
    code, out, _ = rapm(*RUN)
    assert code == 0
    rows = [line for line in out.splitlines() if line.startswith(("24 GB", "12 GB"))]
    assert ["%" in row for row in rows] == [False, True]  # the share of the device's rate that it reaches
    assert names(out, "31.5 h")


def test_another_way_that_is_out_of_memory_is_left_out_and_the_rest_is_told(rapm, two_plans, monkeypatch):
    real = benchmark.time_guided_step

    def fits(architecture, settings, *args):
        if settings.training.channels_last:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
        return real(architecture, settings, *args)

    monkeypatch.setattr(benchmark, "time_guided_step", fits)
    monkeypatch.setattr(benchmark, "_profile", lambda *args: [benchmark.Operation("mm", 0.25, 3)])  # tested above
    monkeypatch.setattr(benchmark, "VARIANTS", {PLAIN: {}, "channels last": {"channels_last": True}})
    code, out, err = rapm(*RUN, "--profile")
    assert code == 0
    assert names(err, "warning:", "channels last", 1)
    assert names(out, "0.250 s")


def test_what_would_take_long_is_refused_with_its_hours(rapm, brief, monkeypatch):
    monkeypatch.setattr(benchmark, "matmul_rate", lambda device, dtype: 100.0)
    code, _, err = rapm(*RUN)
    assert code == 2
    assert names(err, "demo", "hours", "--base demo")


def test_both_ways_of_sampling_end_at_one_latent(architecture, latents, make_cond, schedule):
    from rapm_cli.core.method.samplers import sample_student
    from rapm_cli.core.network.backbone import Backbone
    from rapm_cli.core.network.student import attach_lora

    backbone, vae = Backbone(tiny_unet(), schedule), architecture.autoencoder(torch.device("cpu"), torch.float32)
    pipeline, cond, z = benchmark._pipeline(architecture, backbone.unet, vae), make_cond(1), latents(1)
    cond = type(cond)(cond.tokens, cond.pooled, torch.tensor([[8.0, 8, 0, 0, 8, 8]]))
    theirs = pipeline(
        prompt_embeds=cond.tokens, pooled_prompt_embeds=cond.pooled, guidance_scale=1.0, num_inference_steps=4,
        output_type="latent", latents=z, height=8, width=8,
    ).images  # fmt: skip
    attach_lora(backbone, rank=1, alpha=1.0)
    torch.testing.assert_close(sample_student(backbone.student, z, cond, 4)[0], theirs, rtol=1e-3, atol=1e-3)


def test_profile_belongs_to_the_benchmark(rapm):
    code, _, err = rapm("eval", "--profile")
    assert code == 2
    assert names(err, "--profile", "--benchmark")
