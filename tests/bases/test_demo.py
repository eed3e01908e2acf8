import hashlib
import json
import shutil

import pytest
import torch

from rapm_cli.bases import BASES, LoadedBase
from rapm_cli.bases.demo import captions, world
from rapm_cli.bases.demo.base import WEIGHTS, training_prompts, training_scenes, verified
from rapm_cli.bases.demo.draw import PAINT, draw, draw_with_solids
from rapm_cli.bases.demo.world import Scene, Solid
from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import InputError
from rapm_cli.core.common.randomness import Draws

RED, BLUE = Solid("cube", "red", "large"), Solid("sphere", "blue", "small")

OUT = Output(quiet=True)


def scenes(count, seed=0, held_out=False):
    return world.random_scenes(count, torch.Generator().manual_seed(seed), held_out=held_out)


def test_left_of_and_right_of_are_one_scene():
    one, two = Scene(RED, BLUE, "left of", "dawn"), Scene(BLUE, RED, "right of", "dawn")
    assert one.canonical() == two.canonical()
    assert one.is_held_out == two.is_held_out
    assert torch.equal(world.labels([one]), world.labels([two]))
    assert not torch.equal(world.labels([one]), world.labels([Scene(RED, BLUE, "right of", "dawn")]))


def test_a_fifth_of_the_world_is_held_out_and_never_trained_on():
    draws = Draws(torch.Generator().manual_seed(0))
    share = sum(world.random_scene(draws).is_held_out for _ in range(4000)) / 4000
    assert share == pytest.approx(0.2, abs=0.03)
    assert not any(scene.is_held_out for scene in training_scenes(300, 0))
    assert all(scene.is_held_out for scene in scenes(50, held_out=True))


def test_every_word_of_every_caption_is_known_and_fits_the_shipped_tokenizers():
    from transformers import CLIPTokenizer

    tokenizers = [CLIPTokenizer.from_pretrained(WEIGHTS / "base" / name) for name in ("tokenizer", "tokenizer_2")]
    generator = torch.Generator().manual_seed(0)
    for text, _ in captions.phrases(scenes(300), generator, omit=0.2):
        assert captions.unknown_words(text) == []
        for tokenizer in tokenizers:
            ids = tokenizer(text).input_ids
            assert len(ids) <= tokenizer.model_max_length == 32
            assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ,", ",") == text


def test_the_recipes_tokenizer_has_one_token_for_each_known_word():
    from rapm_cli.bases.demo.recipe.text import build_tokenizer

    for pad in ("<|endoftext|>", "!"):
        tokenizer = build_tokenizer(pad)
        assert all(len(tokenizer(word).input_ids) == 3 for word in captions.KNOWN_WORDS)
        assert tokenizer.convert_ids_to_tokens(tokenizer.pad_token_id) == pad
        assert len(tokenizer("xylophone ☃").input_ids) > 5


def test_captions_say_what_they_do_not_leave_unsaid():
    generator = torch.Generator().manual_seed(0)
    for scene, (text, unsaid) in zip(scenes(300), captions.phrases(scenes(300), generator, omit=0.5), strict=True):
        assert ("background" in unsaid) == (captions.BACKGROUND_WORDS[scene.background] not in text)
        sizes = sum(word in text.split() for words in captions.SIZE_WORDS.values() for word in words)
        solids = 2 if scene.second else 1
        missing = len([name for name in unsaid if name.endswith("size")])
        same = scene.second is not None and scene.first.size == scene.second.size
        assert sizes == solids - missing or (same and sizes >= 1)
        assert scene.first.colour in text


@pytest.mark.parametrize(("seed", "start"), [(0, "bae4ad13"), (1, "ff7cf740"), (7, "861c9b24")])
def test_the_training_prompts_of_a_seed_are_those_of_the_first_release(seed, start):
    """Recorded from single draws of `torch.randint` and `torch.rand`, before they were read ahead."""
    assert hashlib.sha256("\n".join(training_prompts(2000, seed)).encode()).hexdigest()[:8] == start


def test_unknown_words_are_found():
    assert captions.unknown_words("A red cube over a Woman, a woman") == ["woman"]


def test_images_are_a_function_of_scene_and_generator():
    def image(seed):
        return draw(scenes(3), torch.Generator().manual_seed(seed))

    assert torch.equal(image(0), image(0))
    assert not torch.equal(image(0), image(1))
    assert image(0).shape == (3, 3, 128, 128)
    assert image(0).min() >= 0
    assert image(0).max() <= 1


@pytest.mark.parametrize(("shape", "colour"), list(zip(world.SHAPES, world.COLOURS[:4], strict=True)))
def test_solids_stand_where_the_caption_says_in_their_colour(shape, colour):
    scene = Scene(Solid(shape, colour, "large"), Solid("sphere", "green", "small"), "right of", "noon")
    image, solid = draw_with_solids([scene], torch.Generator().manual_seed(3))
    right = solid[0, 0].clone()
    right[:, :64] = 0
    mean = (image[0] * right).sum((1, 2)) / right.sum()
    paint = {name: torch.tensor(value) for name, value in PAINT.items()}
    nearest = max(paint, key=lambda name: float(torch.cosine_similarity(paint[name], mean, dim=0)))
    assert nearest == colour
    assert right.sum() > 1.5 * (solid[0, 0].sum() - right.sum())  # the large one


def test_edges_are_anti_aliased():
    _, solid = draw_with_solids(scenes(8), torch.Generator().manual_seed(0))
    between = ((solid > 0.05) & (solid < 0.95)).float().mean()
    assert 0.002 < between < 0.03


def test_stacked_solids_are_stacked():
    scene = Scene(RED, BLUE, "above", "snow")
    _, solid = draw_with_solids([scene], torch.Generator().manual_seed(0))
    covered = solid[0, 0].sum(1)  # pixels in each row
    top, bottom = covered[:64].sum(), covered[64:].sum()
    assert top > bottom > 0  # the large cube above the small sphere
    assert covered[56:72].min() < 1  # with a gap between them


def test_plain_diffusers_loads_the_folder_and_samples():
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(WEIGHTS / "base", add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    assert {part.dtype for part in (pipe.unet, pipe.text_encoder, pipe.text_encoder_2, pipe.vae)} == {torch.float32}
    image = pipe("a red cube at dawn", num_inference_steps=2, guidance_scale=3.0, output_type="pt").images
    assert image.shape == (1, 3, 128, 128)
    assert image.isfinite().all()


def test_the_encoders_cannot_be_mistaken_for_one_another():
    one, two = (
        json.loads((WEIGHTS / "base" / name / "config.json").read_text()) for name in ("text_encoder", "text_encoder_2")
    )
    assert one["hidden_size"] != two["hidden_size"] == two["projection_dim"]
    assert one["dtype"] == two["dtype"] == "float32"


def test_module_names_have_sdxls_form():
    loaded = LoadedBase(BASES["demo"].locate(OUT), torch.device("cpu"), torch.float32)
    names = {name for name, _ in loaded.backbone.unet.named_modules()}
    for name in (
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
        "down_blocks.2.attentions.1.transformer_blocks.1.ff.net.0.proj",
        "mid_block.resnets.1.time_emb_proj",
        "up_blocks.1.upsamplers.0.conv",
        "up_blocks.0.attentions.2.proj_out",
        "add_embedding.linear_1",
    ):
        assert name in names
    assert isinstance(loaded.backbone.unet.down_blocks[1].attentions[0].proj_in, torch.nn.Linear)


def test_the_empty_prompt_is_zeros_as_in_the_pipeline():
    loaded = LoadedBase(BASES["demo"].locate(OUT), torch.device("cpu"), torch.float32)
    assert loaded.unconditional.tokens.abs().max() == 0
    assert loaded.unconditional.pooled.abs().max() == 0
    assert loaded.encode(["a red cube"]).tokens.abs().max() > 0


def test_it_fits_in_the_package():
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) < 25 * 10**6


def test_damaged_weights_are_found_before_they_are_loaded(tmp_path):
    folder = tmp_path / "weights"
    shutil.copytree(WEIGHTS, folder)
    verified.__wrapped__(folder)
    path = folder / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="unet"):
        verified.__wrapped__(folder)
    path.unlink()
    with pytest.raises(InputError, match="unet"):
        verified.__wrapped__(folder)


def test_prompts_of_a_distillation_are_a_function_of_the_seed():
    assert training_prompts(20, 1) == training_prompts(20, 1) != training_prompts(20, 2)
    assert training_prompts(10, 1) == training_prompts(20, 1)[:10]


@pytest.mark.parametrize("name", BASES.names())
def test_every_base_keeps_the_contract(name):
    base = BASES[name]
    assert base.name == name
    default = base.defaults
    assert min(default.rank, default.iterations, default.trajectories, default.batch_size, default.fine_steps) >= 1
    assert 0 < default.learning_rate < 1
    assert default.guidance_scale >= 1


@pytest.mark.slow
def test_the_reader_reads_fresh_images():
    """At least 99.5 % of 2,000 attributes are right, before and after the autoencoder."""
    from rapm_cli.bases.demo.reader import load_reader
    from rapm_cli.bases.demo.recipe.reader import score_reader

    vae = _vae()
    scores = score_reader(load_reader(WEIGHTS / "reader.safetensors"), vae, 250, 12345)
    assert scores["straight"] >= 0.995
    assert scores["round trip"] >= 0.995


def _vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(WEIGHTS / "base" / "vae", dtype=torch.float32).eval()
