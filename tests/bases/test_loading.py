"""What is read of a base's files, when, in what dtype, and where it is while it works."""

import pytest
import torch
from torch import nn

from rapm_cli.bases import LoadedBase, Weights
from rapm_cli.bases import loading as loading_module
from rapm_cli.bases.loading import NARROW, ROOMY
from tests.bases.conftest import CPU, WRITERS, load, pipeline
from tests.bases.layouts import LAYOUTS, mixed_precisions, only_fp16, sharded_fp16
from tests.bases.small_models import edit

FAMILIES = list(WRITERS)
CARD = torch.device("cpu", 0)  # a CPU by another name stands for a card: both can be told apart, and both compute


def tensors(loaded):
    """Every weight of every part as we load it, by part and name."""
    text = {name: getattr(loaded._text, name) for name in loaded._family.encoders}
    return by_name({"unet": loaded.backbone.unet, "vae": loaded._vae, **text})


def by_name(parts):
    return {(part, name): value for part, module in parts.items() for name, value in module.state_dict().items()}


@pytest.fixture(scope="module")
def expected(originals):
    """Every weight as diffusers' pipeline loads it from the plain folder."""
    pipes = {family: pipeline(folder) for family, folder in originals.items()}
    networks = {
        family: {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
        for family, pipe in pipes.items()
    }
    return {family: by_name(parts) for family, parts in networks.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_gives_the_pipelines_weights(expected, copy_of, family, layout):
    read = tensors(LoadedBase(layout(copy_of(family)), CPU, torch.float32))
    assert read.keys() == expected[family].keys()
    for (part, name), value in read.items():
        theirs = expected[family][part, name]
        is_half = layout in (only_fp16, sharded_fp16) or (layout is mixed_precisions and part != "text_encoder")
        assert value.dtype == theirs.dtype
        assert torch.equal(value, theirs.half().float() if is_half and value.is_floating_point() else theirs), name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_network_and_the_encoders_have_the_dtype_that_is_asked_for(originals, family):
    loaded = load(originals[family], torch.bfloat16)
    floating = [item for item in tensors(loaded).items() if item[1].is_floating_point()]
    assert {value.dtype for (part, _), value in floating if part != "vae"} == {torch.bfloat16}
    assert loaded.encode(["a red cube"]).tokens.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("force_upcast", "dtype"), [(True, torch.float32), (None, torch.float32), (False, torch.bfloat16)]
)
def test_the_autoencoder_is_in_float32_unless_its_configuration_says_that_it_need_not(copy_of, force_upcast, dtype):
    folder = copy_of("sdxl")
    edit(folder, "vae/config.json", force_upcast=force_upcast)
    loaded = load(folder, torch.bfloat16)
    z = torch.randn(1, *loaded.latent_shape, generator=torch.Generator().manual_seed(0))
    image = loaded.decode(z)
    assert loaded._vae.dtype == dtype
    assert image.dtype == torch.float32
    assert image.isfinite().all()
    assert (image - load(folder).decode(z)).abs().mean() < (1e-6 if dtype == torch.float32 else 0.02)


@pytest.fixture
def reads(monkeypatch):
    """Names of the loaders, in the order of their calls."""
    calls = []
    for name in ("load_text", "load_unet", "load_vae"):
        real = getattr(loading_module, name)
        monkeypatch.setattr(loading_module, name, lambda *a, name=name, real=real: calls.append(name) or real(*a))
    return calls


@pytest.mark.parametrize("family", FAMILIES)
def test_a_part_is_read_when_it_is_first_used_and_once(originals, reads, family):
    loaded = load(originals[family])
    z = torch.zeros(1, *loaded.latent_shape)
    assert reads == []
    for _ in range(2):
        loaded.encode(["a red cube"])
        assert loaded.unconditional is loaded.unconditional
        assert reads == ["load_text"]
    for _ in range(2):
        loaded.decode(z)
        assert reads == ["load_text", "load_vae"]
    for _ in range(2):
        loaded.backbone.teacher(z, 999, loaded.encode([""]))
        assert reads == ["load_text", "load_vae", "load_unet"]


@pytest.fixture
def moves(monkeypatch):
    """(module, device) of each move, once the base is loaded; the card has as many bytes as the test says."""

    def watch(folder, memory):
        loaded, calls, real = LoadedBase(Weights(folder, ""), CARD, torch.float32), [], nn.Module.to
        monkeypatch.setattr(loading_module, "_memory_bytes", lambda device: memory)
        loaded.load()
        parts = {id(getattr(loaded._text, name)): name for name in loaded._family.encoders}
        parts |= {id(loaded._vae): "vae", id(loaded.backbone.unet): "unet"}

        def to(module, *args, **kwargs):
            if id(module) in parts:
                calls.append((parts[id(module)], args[0]))
            return real(module, *args, **kwargs)

        for kind in {type(loaded._vae), *(type(getattr(loaded._text, name)) for name in loaded._family.encoders)}:
            monkeypatch.setattr(kind, "to", to)
        return loaded, calls

    return watch


def test_on_a_small_card_encoders_and_autoencoder_are_there_only_while_they_work(originals, moves):
    loaded, calls = moves(originals["sdxl"], ROOMY - 1)
    loaded.encode(["a red cube"])
    both = ["text_encoder", "text_encoder_2"]
    assert calls == [(name, CARD) for name in both] + [(name, CPU) for name in both]
    calls.clear()
    loaded.decode(torch.zeros(1, *loaded.latent_shape))
    assert calls == [("vae", CARD), ("vae", CPU)]


def test_they_leave_a_small_card_when_they_fail_too(originals, moves):
    loaded, calls = moves(originals["sdxl"], ROOMY - 1)
    with pytest.raises(RuntimeError):
        loaded.decode(torch.zeros(1, 5, 8, 8))
    assert calls == [("vae", CARD), ("vae", CPU)]


def test_on_a_roomy_card_they_stay(originals, moves):
    loaded, calls = moves(originals["sdxl"], ROOMY)
    loaded.encode(["a red cube"])
    loaded.decode(torch.zeros(1, *loaded.latent_shape))
    assert [device for _, device in calls] == [CARD] * 3


def test_before_training_they_leave_a_roomy_card_too(originals, moves):
    loaded, calls = moves(originals["sdxl"], ROOMY)
    loaded.offload()
    assert calls == [(name, CPU) for name in ("text_encoder", "text_encoder_2", "vae")]


def test_what_was_never_read_is_not_read_to_leave(originals):
    loaded = load(originals["sd15"])
    loaded.offload()
    assert not {"_text", "_vae", "backbone"} & vars(loaded).keys()


@pytest.mark.parametrize(("memory", "is_tiled"), [(NARROW - 1, True), (NARROW, False)])
def test_a_narrow_card_decodes_in_tiles(originals, moves, memory, is_tiled):
    assert moves(originals["sdxl"], memory)[0]._vae.use_tiling == is_tiled


@pytest.mark.parametrize(("tile_px", "is_whole"), [(32, False), (64, True), (512, True)])
def test_a_tile_is_smaller_than_a_large_image(originals, moves, monkeypatch, tile_px, is_whole):
    monkeypatch.setattr(loading_module, "TILE_PX", tile_px)
    loaded, tiles = moves(originals["sdxl"], NARROW - 1)[0], []
    loaded._vae.decoder.register_forward_hook(lambda module, given, made: tiles.append(made.shape[-1]))
    assert loaded.decode(torch.zeros(1, *loaded.latent_shape)).shape == (1, 3, 64, 64)
    assert tiles[0] == min(tile_px, 64)
    assert (len(tiles) == 1) == is_whole


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_encoders_do_not_read_is_told(originals, family):
    loaded = load(originals[family])
    words = "red " * 74  # with start and end, one token less than the 77 that are read
    assert loaded.unread(words + "cube") == ""
    assert loaded.unread(words + "cube sphere") == "sphere"
    assert loaded.unread("red " * 73 + "unfathomable cube") == "unfathomable cube"  # not read to its end
    read, cut, more = loaded.encode([words + "cube", words + "cube sphere", words + "sphere"]).tokens
    torch.testing.assert_close(read, cut)
    assert (read - more).abs().max() > 0.1
