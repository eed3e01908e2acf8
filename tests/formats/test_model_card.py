"""A model card is made of a foreign file's header too, and must stay the document that we wrote."""

import json

import pytest

from rapm_cli.formats.model_card import CardContent, CardFile, render_card

EVIL = "x=1)\n```\n<script>alert(1)</script>\n\x1b[31m[a](http://b) | `"
FILES = [CardFile("mine-kohya.safetensors", ["diffusers", "ComfyUI"])]


def card(recipe, **more):
    about = {"base": "small", "is_on_hub": False, "is_xl": True, "is_lora": True, "files": FILES}
    return render_card(CardContent(recipe, **about | {"prompt": "a cube", "checkpoint": "small.safetensors"} | more))


def blocks(text):
    """The languages of all fenced blocks, and the lines outside of them."""
    languages, outside, is_open = [], [], False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            languages += [] if is_open else [line]
            is_open = not is_open
        elif not is_open:
            outside.append(line)
    return languages, outside


@pytest.mark.parametrize(
    "recipe",
    [
        {EVIL: EVIL},
        {"sampler": {EVIL: EVIL}},
        {"sampler": {"scheduler": EVIL, "timestep_spacing": EVIL, "timesteps": [EVIL]}},
        {"sampler": {"steps": 4, "prediction_type": EVIL}},
        {"base": EVIL, "training": {"method": EVIL}},
    ],
)
def test_no_text_of_a_header_becomes_code_or_markup(recipe):
    metrics = [["", EVIL], [EVIL, "0.5 [0.4, 0.6]"]]
    text = card(recipe, metrics=metrics, provenance=EVIL)
    languages, outside = blocks(text)
    assert languages == ["```python", "```json"]
    assert "<script" not in text
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert not any("](http" in line for line in outside)
    assert "0.5 [0.4, 0.6]" in text
    code, stored = (text.split(f"{language}\n")[1].split("\n```")[0] for language in languages)
    compile(code, "card", "exec")
    assert json.loads(stored) == recipe
    assert "alert(1)" not in "".join(line for line in code.splitlines() if "=" in line and "'" not in line)


def test_settings_that_a_scheduler_has_stay():
    settings = {"scheduler": "DDIM", "timestep_spacing": "trailing", "clip_sample": False, "steps": 4}
    text = card({"sampler": settings})
    assert "from_config(pipe.scheduler.config, timestep_spacing='trailing', clip_sample=False)" in text
    assert "torch_dtype=torch.float16" in text  # diffusers before 0.40 ignores dtype= in silence


@pytest.mark.parametrize(("is_lora", "is_xl"), [(True, True), (True, False), (False, True)])
def test_the_card_says_where_each_program_looks_and_how_it_samples(is_lora, is_xl):
    file = CardFile("x.safetensors", ["diffusers", "ComfyUI", "A1111"])
    lines = card({"sampler": {"steps": 4}}, is_lora=is_lora, is_xl=is_xl, files=[file]).splitlines()
    found = {line.split(":")[0]: line for line in lines if line.startswith("* ")}
    assert list(found) == ["* ComfyUI", "* A1111 and Forge", *(["* Fooocus (SDXL alone)"] if is_xl else [])]
    for line, (lora, whole) in zip(
        found.values(), [("loras", "checkpoints"), ("Lora", "Stable-diffusion")], strict=False
    ):
        assert f"`models/{lora if is_lora else whole}`" in line
    assert "sampler Euler, schedule type SGM Uniform" in found["* A1111 and Forge"]
    assert not [line for line in card({}, files=[CardFile("x", ["diffusers"])]).splitlines() if line.startswith("* ")]
