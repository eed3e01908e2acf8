"""Distillations on a base with LoRAs of the user's merged in, and what becomes of them in exports."""

import dataclasses
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from rapm_cli.bases import BASES, LoadedBase, Weights
from rapm_cli.bases.merged import with_loras
from rapm_cli.cli.console import Output
from rapm_cli.core.storage.files import file_sha256
from rapm_cli.export.sidecars import comfyui_workflow
from rapm_cli.formats.fuse import lora_update
from rapm_cli.formats.lora import apply_lora, load_lora
from rapm_cli.formats.lora_ref import LoraRef
from rapm_cli.formats.lora_stack import stack_loras
from rapm_cli.runs.base_loras import read_refs
from rapm_cli.runs.images import read_recipe
from rapm_cli.runs.resolve_lora import resolve_lora
from rapm_cli.runs.run import Run
from tests.bases.original_layout import write_checkpoint
from tests.bases.small_models import write_sdxl
from tests.messages import names
from tests.resuming import DISTILL, state_of, unfinished
from tests.style_lora import write_style

CPU, OUT = torch.device("cpu"), Output(quiet=True)


@pytest.fixture(scope="session")
def styles(tmp_path_factory, small_folder):
    """Two LoRAs of a user's, with another alpha than rank."""
    folder = tmp_path_factory.mktemp("styles")
    return [
        write_style(folder / "style.safetensors", small_folder),
        write_style(folder / "other.safetensors", small_folder, seed=1, rank=3),
    ]


def flags(styles):
    return ["--base-lora", f"{styles[0]}:0.5", "--base-lora", str(styles[1])]


@pytest.fixture(scope="session")
def distilled(tmp_path_factory, small_folder, styles):
    """A finished run on both."""
    from rapm_cli.cli.app import main
    from tests.small_demo import use_small_demo

    home = tmp_path_factory.mktemp("styled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAPM_HOME", str(home))
        use_small_demo(small_folder, patch)
        assert main([*DISTILL, "--quiet", *flags(styles)]) == 0
    return home


@pytest.fixture
def run(distilled, home, small_demo):
    shutil.copytree(distilled, home)
    return Run(next((home / "data" / "runs").iterdir()))


def unet_of(base, dtype=torch.float32):
    return LoadedBase(base.locate(OUT), CPU, dtype).backbone.unet


def output_of(unet):
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(1, unet.config.in_channels, 8, 8, generator=generator)
    tokens = torch.randn(1, 7, unet.config.cross_attention_dim, generator=generator)
    width = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
    added = {"text_embeds": torch.randn(1, width, generator=generator), "time_ids": torch.ones(1, 6)}
    return unet(z, 500, tokens, added_cond_kwargs=added).sample


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_base_is_the_float32_sum_rounded_once(small_demo, styles, dtype):
    bare = BASES["demo"]
    merged = with_loras(bare, read_refs([f"{styles[0]}:0.5", str(styles[1])], OUT), OUT)
    before, after = unet_of(bare), dict(unet_of(merged, dtype).named_parameters())
    updates = [(load_lora(path), weight) for path, weight in zip(styles, (0.5, 1.0), strict=True)]
    for name, weight in before.named_parameters():
        module = name.removesuffix(".weight")
        sums = [
            w * lora_update(*one.factors(module), one.alpha / one.rank) for one, w in updates if module in one.modules
        ]
        wanted = weight + sum(sums) if sums else weight
        torch.testing.assert_close(
            after[name].float(), wanted.to(dtype).float(), rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-6
        )


def test_the_order_of_the_loras_does_not_matter_and_their_weights_do(small_demo, styles):
    one = read_refs([f"{styles[0]}:0.5", str(styles[1])], OUT)
    identities = [
        with_loras(BASES["demo"], some, OUT).identity(OUT)
        for some in (one, one[::-1], read_refs(map(str, styles), OUT))
    ]
    assert identities[0] == identities[1] != identities[2] != BASES["demo"].identity(OUT)


def test_a_checkpoint_merges_as_its_folder_does(tmp_path):
    folder = write_sdxl(tmp_path / "model")
    file, style = (
        write_checkpoint(folder, tmp_path / "model.safetensors"),
        write_style(tmp_path / "style.safetensors", folder),
    )
    ref = LoraRef(str(style), "", 0.5)
    sources = Weights(folder, "", loras=(ref,)), Weights(folder, "", checkpoint=file, loras=(ref,)), Weights(folder, "")
    one, same, bare = (dict(LoadedBase(some, CPU, torch.float32).backbone.unet.named_parameters()) for some in sources)
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert not torch.equal(one["conv_in.weight"], bare["conv_in.weight"])


def test_a_run_remembers_its_loras_and_refuses_others(rapm, run, styles):
    record = [
        {"name": path.name, "sha256": file_sha256(path), "weight": w}
        for path, w in zip(styles, (0.5, 1.0), strict=True)
    ]
    recipe = load_lora(run.lora).recipe
    assert sorted(recipe["base_loras"], key=str) == sorted(record, key=str)
    assert recipe["base_identity"] != BASES["demo"].identity(OUT)
    unfinished(run, "00000004")
    code, _, err = rapm("distill", "--resume", "--base-lora", str(styles[0]))
    assert (code, names(err, run.folder, "base-lora", "style.safetensors")) == (2, True), err


def test_the_same_command_goes_on_and_gives_the_same_bits(rapm, run, styles):
    wanted = state_of(run)
    unfinished(run, "00000004")
    code, _, err = rapm(*DISTILL, *flags(styles))
    assert (code, names(err, run.folder)) == (0, True), err
    assert state_of(run) == wanted


def test_an_image_is_made_again_with_the_loras_of_its_run(rapm, run, tmp_path):
    pictures = tmp_path / "pictures"
    code, _, err = rapm("generate", "a red cube", "--output", str(pictures))
    assert code == 0, err
    (first,) = pictures.iterdir()
    recipe = read_recipe(first)
    assert len(recipe["base_loras"]) == 2
    code, _, err = rapm("generate", "--from", str(first), "--output", str(tmp_path / "again"))
    assert code == 0, err
    (second,) = (tmp_path / "again").iterdir()
    assert Image.open(first).tobytes() == Image.open(second).tobytes()


def test_loras_that_moved_are_found_beside_the_student_or_named(rapm, run, styles, tmp_path):
    """A student that was given away names its LoRAs by checksum."""
    shutil.copy(run.lora, tmp_path / "mine.safetensors")
    shutil.rmtree(run.folder)
    code, _, err = rapm(
        "generate", "a cube", "--lora", str(tmp_path / "mine.safetensors"), "--output", str(tmp_path / "p")
    )
    assert (code, "sha256" in err) == (3, True), err
    for path in styles:
        shutil.copy(path, tmp_path)
    assert rapm("export", str(tmp_path / "mine.safetensors"), "--output", str(tmp_path / "out"))[0] == 0
    given = [str(tmp_path / "mine.safetensors"), "--output", str(tmp_path / "x"), "--base-lora", str(styles[0])]
    code, _, err = rapm("export", *given)
    assert (code, names(err, "style.safetensors", "other.safetensors")) == (2, True), err


def test_absorbed_and_fused_equal_base_loras_and_student(rapm, run, tmp_path):
    """Three ways of one sum: merged and attached, one LoRA on the bare base, one folder."""
    chosen = resolve_lora(None, str(run.folder), OUT)
    assert len(chosen.base.loras) == 2
    student = LoadedBase(chosen.base.locate(OUT), CPU, torch.float32)
    apply_lora(student.backbone, chosen.lora, chosen.lora_path)
    student.backbone.switch.role = "student"
    wanted = output_of(student.backbone.unet)
    code, _, err = rapm(
        "export", str(run.folder), "--absorb", "--format", "diffusers", "--output", str(tmp_path / "one.safetensors")
    )
    assert code == 0, err
    absorbed = load_lora(tmp_path / "one.safetensors")
    assert absorbed.rank == 1 + 2 + 3
    assert absorbed.recipe["base_identity"] == BASES["demo"].identity(OUT)
    bare = LoadedBase(BASES["demo"].locate(OUT), CPU, torch.float32)
    before = output_of(bare.backbone.unet)
    apply_lora(bare.backbone, absorbed, tmp_path)
    bare.backbone.switch.role = "student"
    torch.testing.assert_close(output_of(bare.backbone.unet), wanted, rtol=1e-4, atol=1e-5)
    assert (before - wanted).abs().max() > 1e-2
    code, _, err = rapm("export", str(run.folder), "--fuse", "--output", str(tmp_path / "fused"))
    assert code == 0, err
    fused = LoadedBase(Weights(tmp_path / "fused", ""), CPU, torch.float32).backbone.unet
    torch.testing.assert_close(output_of(fused), wanted, rtol=1e-4, atol=1e-5)
    for place in (str(tmp_path / "fused"), None):  # both make images of themselves
        where = ["--base", place] if place else ["--lora", str(tmp_path / "one.safetensors")]
        code, _, err = rapm("generate", "a cube", *where, "--output", str(tmp_path / "pictures"))
        assert (code, "warning" in err) == (0, False), err


def test_the_card_and_the_workflow_name_all_files_and_weights(rapm, run, tmp_path):
    assert rapm("export", str(run.folder), "--output", str(tmp_path / "out"))[0] == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert names(card, "style.safetensors at 0.5", "other.safetensors at 1")
    recipe = load_lora(run.lora).recipe
    nodes = comfyui_workflow(recipe, checkpoint="b.safetensors", lora="s.safetensors", size=(64, 64), prompt="a cube")
    loaders = [node["inputs"] for node in nodes.values() if node["class_type"] == "LoraLoaderModelOnly"]
    assert {(one["lora_name"], one["strength_model"]) for one in loaders} == {
        ("s.safetensors", 1.0),
        ("style.safetensors", 0.5),
        ("other.safetensors", 1.0),
    }
    chain, node = [], nodes["6"]["inputs"]["model"][0]
    while node != "1":
        chain.append(node)
        node = nodes[node]["inputs"]["model"][0]
    assert len(chain) == 3


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(4, 2)},
        lambda state: {"lora_unet_conv_in.lora_down.weight": torch.ones(2, 9, 3, 3)},
        lambda state: {name.replace("conv_in", "conv_7"): state[name].clone() for name in state if "conv_in" in name},
    ],
)
def test_loras_that_do_not_fit_are_refused_before_the_base_is_fetched(
    rapm, small_demo, styles, tmp_path, spoil, monkeypatch
):
    state = load_file(styles[0])
    save_file(state | spoil(state), tmp_path / "odd.safetensors")
    unfetched = dataclasses.replace(BASES["demo"], locate=lambda reporter: pytest.fail("the weights were fetched"))
    monkeypatch.setitem(BASES._things, "demo", unfetched)
    code, _, err = rapm("distill", "--base", "demo", "--base-lora", str(tmp_path / "odd.safetensors"))
    assert (code, names(err, "odd.safetensors")) == (3, True), err
    assert rapm("distill", "--base", "sdxl", "--base-lora", str(styles[0]))[0] == 3


@pytest.mark.parametrize("weight", ["0", "nan", "inf"])
def test_weights_that_mean_nothing_are_refused(rapm, styles, weight):
    code, _, err = rapm("distill", "--base", "demo", "--base-lora", f"{styles[0]}:{weight}")
    assert (code, names(err, "--base-lora", weight)) == (2, True), err


def test_stacked_ranks_are_the_weighted_sum_of_the_updates(styles):
    one, two = map(load_lora, styles)
    both = stack_loras([(one, 0.5), (two, -2.0)])
    assert (both.rank, both.alpha) == (5, 5.0)
    for module in both.modules:
        wanted = sum(
            w * lora_update(*lora.factors(module), lora.alpha / lora.rank) for lora, w in ((one, 0.5), (two, -2.0))
        )
        torch.testing.assert_close(lora_update(*both.factors(module), 1.0), wanted)


def test_a_config_file_names_several(rapm, styles, tmp_path):
    (tmp_path / "run.toml").write_text(f'base-lora = ["{styles[0]}", "{styles[1]}:nan"]\n')
    code, _, err = rapm("distill", "--base", "demo", "--config", str(tmp_path / "run.toml"))
    assert (code, names(err, "--base-lora", styles[1], "nan")) == (2, True), err
