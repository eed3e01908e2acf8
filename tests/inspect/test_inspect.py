"""`rapm inspect THING`: what it says of files of every kind, against the tensors in them."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from rapm_cli.bases.demo.base import WEIGHTS
from rapm_cli.core.common.errors import InputError
from rapm_cli.formats.describe import FACTOR_KEY
from rapm_cli.formats.fuse import lora_update
from rapm_cli.formats.lora import load_lora
from rapm_cli.inspect.inspect import inspect
from tests.formats import lora_forms
from tests.messages import names, naming

FORMS = [
    lora_forms.peft, lora_forms.peft_without_prefix, lora_forms.peft_wrapped, lora_forms.diffusers_new,
    lora_forms.diffusers_mixed, lora_forms.diffusers_old, lora_forms.kohya, lora_forms.kohya_sgm,
]  # fmt: skip


@pytest.fixture
def facts(rapm):
    def ask(*argv):
        code, out, _ = rapm("inspect", *map(str, argv), "--json")
        assert code == 0
        return json.loads(out)

    return ask


@pytest.mark.parametrize("form", FORMS)
def test_a_lora_in_any_form_says_its_ranks_and_alphas(facts, tmp_path, form):
    update = lora_forms.make_update("sdxl", rank=lambda module: 2 if "attn1" in module else 3)
    alphas = {module: 1.5 if "attn2" in module else 4.0 for module in update}
    is_kohya = form in (lora_forms.kohya, lora_forms.kohya_sgm)
    found = facts(lora_forms.write(tmp_path / "x.safetensors", update, form, alphas if is_kohya else None))
    ranks = [len(down) for down, _ in update.values()]
    assert found["ranks"] == {"2": ranks.count(2), "3": ranks.count(3)}
    assert found["rank"] is None
    assert found["modules"] == len(update)
    assert found["parameters"] == sum(down.numel() + up.numel() for down, up in update.values())
    assert sum(found["blocks"].values()) == len(update)
    expected = list(alphas.values())
    assert found["alphas"] == (
        {"1.5": expected.count(1.5), "4.0": expected.count(4.0)} if is_kohya else {"None": len(update)}
    )
    assert found["fits"] == "a base whose text is 12 wide"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_alphas_are_read_from_their_few_bytes(facts, tmp_path, dtype):
    update = lora_forms.make_update("sdxl")
    path = lora_forms.write(tmp_path / "x.safetensors", update, lora_forms.kohya_sgm, 7.0)
    state = {name: value.to(dtype) if name.endswith(".alpha") else value for name, value in load_file(path).items()}
    save_file(state, path)
    found = facts(path)
    assert (found["rank"], found["alpha"], found["scale"]) == (3, 7.0, pytest.approx(7 / 3))


def test_a_header_s_alpha_is_everyone_s(facts, tmp_path):
    update = lora_forms.make_update("sdxl")
    header = lora_forms.settings_of(update)
    found = facts(lora_forms.write(tmp_path / "x.safetensors", update, lora_forms.peft, header=header))
    assert (found["rank"], found["alpha"]) == (3, 7.5)


def test_a_lora_that_is_not_plain_is_named(facts, tmp_path):
    down = "lora_unet_down_blocks_1_attentions_0_proj_in"
    save_file(
        {f"{down}.hada_w1_a": torch.ones(2, 2), f"{down}.lora_down.weight": torch.ones(1, 2)},
        tmp_path / "x.safetensors",
    )
    assert facts(tmp_path / "x.safetensors")["modules"] == 0


def test_values_are_norms_of_the_update_by_block(facts, shipped_lora):
    lora, squares = load_lora(shipped_lora), {}
    for module in lora.modules:
        down, up = (lora.state[f"{module}.lora_{half}.weight"] for half in "AB")
        block = ".".join(module.split(".")[:2]) if not module.startswith("mid") else "mid_block"
        norm = lora_update(down.double(), up.double(), lora.alpha / lora.rank).norm()
        squares[block] = squares.get(block, 0.0) + float(norm) ** 2
    found = facts(shipped_lora, "--values")["values"]
    assert found["not_finite"] == 0
    assert found["norms"] == {block: pytest.approx(value**0.5, rel=1e-5) for block, value in squares.items()}


def test_two_loras_side_by_side(facts, rapm, shipped_lora, tmp_path):
    lora = load_lora(shipped_lora)
    code, _, _ = rapm(
        "export", str(shipped_lora), "--base", "demo", "--format", "kohya", "--output", str(tmp_path / "a.safetensors")
    )
    assert code == 0
    first, _ = facts(shipped_lora, tmp_path / "a.safetensors", "--values")
    assert first["compared"]["cosine"] == pytest.approx(1, abs=1e-6)
    assert first["compared"]["relative"] < 1e-3
    state = load_file(shipped_lora)
    halved = {name: value / 2 if ".lora_B." in name else value for name, value in state.items()}
    save_file(halved, tmp_path / "b.safetensors")
    first, _ = facts(shipped_lora, tmp_path / "b.safetensors", "--values")
    assert first["compared"]["cosine"] == pytest.approx(1, abs=1e-5)
    assert first["compared"]["relative"] == pytest.approx(0.5, abs=1e-3)
    assert lora.alpha == lora.rank  # so that the file without a header has the same strength
    code, out, _ = rapm("inspect", str(shipped_lora), str(tmp_path / "b.safetensors"))
    assert code == 0
    assert "≠" in out
    code, _, err = rapm("inspect", str(shipped_lora), str(WEIGHTS / "base"))
    assert code == 2, err


def test_models_in_files_and_folders(facts, rapm, shipped_lora, tmp_path):
    folder, one = WEIGHTS / "base", tmp_path / "one.safetensors"
    assert rapm("export", str(shipped_lora), "--base", "demo", "--fuse", "--single-file", "--output", str(one))[0] == 0
    whole, unet, said = facts(one), facts(folder / "unet" / "diffusion_pytorch_model.safetensors"), facts(folder)
    numbers = sum(
        value.numel() for value in load_file(folder / "unet" / "diffusion_pytorch_model.safetensors").values()
    )
    assert whole["kind"] == "checkpoint of a whole Stable Diffusion XL"
    assert whole["parts"]["unet"]["parameters"] == said["parts"]["unet"]["parameters"] == unet["parameters"] == numbers
    assert whole["recipe"]["sampler"]["steps"] == 4
    assert (unet["kind"], said["class"]) == ("UNet in diffusers' layout", "StableDiffusionXLPipeline")
    state = load_file(one)
    state["first_stage_model.decoder.conv_in.bias"][:3] = torch.nan
    save_file(state, one)
    assert facts(one, "--values")["values"]["not_finite"] == 3


def test_an_export_is_verified(facts, rapm, shipped_lora, tmp_path):
    out = tmp_path / "out"
    assert rapm("export", str(shipped_lora), "--base", "demo", "--output", str(out))[0] == 0
    assert [file["kind"] for file in facts(out)["files"]] == ["LoRA", "LoRA"]
    card = out / "README.md"
    card.write_text(card.read_text() + " ")
    code, _, err = rapm("inspect", str(out))
    assert (code, names(err, "README.md")) == (3, True)


def test_an_image_says_how_to_make_it_again(facts, rapm, tmp_path):
    from PIL import Image

    assert rapm("generate", "a red cube", "--base", "demo", "--seed", "5", "--output", str(tmp_path))[0] == 0
    (path,) = tmp_path.glob("*.png")
    found = facts(path)
    assert (found["width"], found["height"]) == (128, 128)
    with Image.open(path) as image:
        assert found["recipe"] == json.loads(image.info["rapm"])
        assert found["parameters"] == image.info["parameters"]
    assert found["again"] == f"rapm generate --from {path}"
    Image.new("RGB", (3, 5)).save(tmp_path / "other.png")
    assert facts(tmp_path / "other.png")["recipe"] == {}
    path.write_bytes(path.read_bytes()[:100])
    assert rapm("inspect", str(path))[0] == 3


class Evil:
    """Makes a folder when it is opened."""

    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_is_never_opened(facts, rapm, tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pt"
    path.write_bytes(pickle.dumps({"weights": Evil()}, protocol=protocol))
    if protocol >= 2:  # older ones do not say what they are
        found = facts(path)
        assert found["unusual"] == [f"{os.mkdir.__module__}.mkdir"]
    assert not (tmp_path / "made-by-a-pickle").exists()
    older = {"_use_new_zipfile_serialization": False}  # several pickles in a row
    torch.save({"weights": torch.ones(2), "more": Evil()}, path, **older)
    assert facts(path)["unusual"] == [f"{os.mkdir.__module__}.mkdir"]
    torch.save({"weights": torch.ones(2)}, path, **older)
    assert facts(path)["unusual"] == []
    torch.save({"weights": torch.ones(2), "half": torch.ones(2).half()}, path)
    found = facts(path)
    assert found["unusual"] == []
    assert "torch._utils._rebuild_tensor_v2" in found["imports"]
    torch.save({"weights": torch.ones(2), "more": Evil()}, path)
    assert facts(path)["unusual"] == [f"{os.mkdir.__module__}.mkdir"]
    assert names(rapm("inspect", str(path))[2], f"{os.mkdir.__module__}.mkdir")


def test_a_header_of_any_length_is_no_pickle(tmp_path):
    path = tmp_path / "x.safetensors"
    lengths = set()
    for count in range(0, 256, 8):
        save_file({"weights": torch.ones(2)}, path, {"padding": "x" * count})
        lengths.add(path.read_bytes()[0])
        assert inspect(str(path))["kind"] == "tensors"
    assert len(lengths) == 32  # every multiple of 8 below 256, with the first byte of a pickle among them
    while path.read_bytes()[0] != 0x80:
        save_file({"weights": torch.ones(2)}, path, {"padding": "x" * (count := count - 8)})
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match=naming("truncated")):
        inspect(str(path))


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x8c\x05posix\x8c\x06system\x8c\x0bcollections\x8c\x0bOrderedDict00\x93.",  # other strings, and away
        b"\x80\x02(iposix\nsystem\n.",  # INST
        b"\x80\x02\x82\x07.",  # an extension's number
    ],
)
def test_a_pickle_that_hides_its_imports_is_unusual(facts, tmp_path, data):
    (tmp_path / "x.pt").write_bytes(data)
    assert facts(tmp_path / "x.pt")["unusual"]


def test_trajectories_are_verified(facts, rapm, store):
    found = facts(store)
    assert (found["kind"], found["made"], found["of"], found["base"]) == ("trajectories", 4, 4, "demo")
    shard = store / "000000" / "trajectories.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    code, _, err = rapm("inspect", str(store))
    assert (code, "000000" in err) == (3, True)


def test_the_device_and_too_many_things(facts, rapm):
    assert facts("device")["torch"] == torch.__version__
    assert rapm("inspect", "a", "b", "c")[0] == 2


def test_halves_are_told_apart():
    for name, half in (("a.lora_A.weight", "A"), ("a.lora.down.weight", "down"), ("a.lora_up.weight", "up")):
        match = FACTOR_KEY.fullmatch(name)
        assert match
        assert (match[1], match[2] or match[3]) == ("a", half)


def test_an_export_may_be_moved_and_its_damage_is_still_named(rapm, shipped_lora, tmp_path):
    made, moved = tmp_path / "made", tmp_path / "moved"
    assert rapm("export", str(shipped_lora), "--base", "demo", "--output", str(made))[0] == 0
    made.rename(moved)
    code, out, _ = rapm("inspect", str(moved))
    assert code == 0
    assert str(moved) in out
    file = next(moved.glob("*-kohya.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    code, _, err = rapm("inspect", str(moved))
    assert (code, file.name in err) == (3, True)


def test_a_grid_is_not_said_to_be_made_again(rapm, shipped_lora, tmp_path):
    argv = ("generate", "a red cube", "--base", "demo", "--lora", str(shipped_lora), "--seed", "1..2", "--grid")
    assert rapm(*argv, "--output", str(tmp_path))[0] == 0
    code, out, _ = rapm("inspect", str(tmp_path / "grid.png"))
    assert code == 0
    assert "--from" not in out
    _, out, _ = rapm("inspect", str(next(tmp_path.glob("000-*.png"))))
    assert "--from" in out
    assert "{" not in out
