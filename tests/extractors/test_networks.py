"""Inception, CLIP and DINO with random weights, against the libraries that they are from."""

import pytest
import torch
from safetensors.torch import save_file

from rapm_cli.core.common.errors import InputError, WeightsError
from rapm_cli.core.storage.files import file_sha256
from rapm_cli.extractors import inception
from rapm_cli.extractors.clip import open_pair
from rapm_cli.extractors.extractor import EXTRACTORS, Opening
from rapm_cli.extractors.inception import SHA256, URL, find_inception, load_inception
from tests.extractors.models import CPU, opening, write_clip, write_dino, write_inception
from tests.extractors.test_preparation import image
from tests.messages import naming
from tests.metrics.peers import peer


@pytest.fixture
def weights(tmp_path, monkeypatch):
    path = write_inception(tmp_path / "weights.pth")
    monkeypatch.setattr(inception, "SHA256", file_sha256(path))
    return path


def test_inception_is_torch_fidelitys(weights):
    made = [image(64, 80), image(299, 299)]
    extractor = EXTRACTORS["inception"](opening(inception=weights))
    ours = torch.cat(list(extractor.features([lambda p=p: p for p in made])))
    theirs = peer("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3(
        "theirs", ["2048"], feature_extractor_weights_path=str(weights)
    )
    unresized = torch.from_numpy(made[1]).permute(2, 0, 1)[None]
    assert ours.shape == (2, extractor.width)
    torch.testing.assert_close(ours[1:], theirs(unresized)[0], rtol=1e-5, atol=1e-6)
    assert (ours[0] - ours[1]).abs().max() > 0.01 * ours[0].abs().max()


def test_other_bytes_than_the_published_are_refused_before_they_are_read(tmp_path):
    path = tmp_path / "evil.pth"
    path.write_bytes(b"cos\nsystem\n(S'touch /tmp/rapm-was-here'\ntR.")
    with pytest.raises(InputError, match=naming("evil.pth", SHA256)) as told:
        load_inception(path)
    assert URL in told.value.remedy


def test_a_pickle_that_would_run_code_is_not_run_even_with_the_right_hash(tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").write_text, ("ran",))

    path = tmp_path / "evil.pth"
    torch.save({"weight": Evil()}, path)
    monkeypatch.setattr(inception, "SHA256", file_sha256(path))
    with pytest.raises(InputError, match=naming("evil.pth")):
        load_inception(path)
    assert not (tmp_path / "ran").exists()


def test_inception_is_looked_for_where_the_user_says_then_in_their_folder_then_in_torch_hubs(tmp_path, monkeypatch):
    hub, own = tmp_path / "hub", tmp_path / "own"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(hub))
    monkeypatch.delenv("RAPM_WEIGHTS_DIR", raising=False)
    with pytest.raises(WeightsError) as told:
        find_inception(None)
    assert str(hub) in told.value.message
    for word in (URL, SHA256, str(hub / "checkpoints" / inception.FILE)):
        assert word in told.value.remedy
    for folder, name in ((hub / "checkpoints", inception.NAMES[1]), (own, inception.FILE)):
        folder.mkdir(parents=True)
        (folder / name).write_bytes(b"")
        assert find_inception(None) == hub / "checkpoints" / inception.NAMES[1]
    monkeypatch.setenv("RAPM_WEIGHTS_DIR", str(own))
    assert find_inception(None) == own / inception.FILE
    with pytest.raises(WeightsError, match="absent"):
        find_inception(tmp_path / "absent")


@pytest.mark.parametrize("form", ["safetensors", "pickle"])
def test_both_sides_of_a_clip_are_transformers(tmp_path, form):
    from transformers import CLIPModel, CLIPProcessor

    folder = write_clip(tmp_path / "clip", form)
    extractor, reader = open_pair(opening(clip_model=str(folder)), prefix="A photo depicts ")
    prompts, made = ["a red cube", "a cat " * 60], [image(40, 60), image(90, 70)]
    model = CLIPModel.from_pretrained(folder)
    processor = CLIPProcessor.from_pretrained(folder, backend="pil")
    inputs = processor(
        text=["A photo depicts " + prompt for prompt in prompts], images=made,
        return_tensors="pt", padding=True, truncation=True,
    )  # fmt: skip
    with torch.no_grad():
        theirs = model(**inputs)
    ours = torch.cat(list(extractor.features([lambda p=p: p for p in made])))
    norm = torch.nn.functional.normalize
    torch.testing.assert_close(norm(ours), theirs.image_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm(reader.features(prompts)), theirs.text_embeds, rtol=1e-4, atol=1e-5)
    assert [reader.is_cut(prompt) for prompt in prompts] == [False, True]
    assert extractor.width == ours.shape[1]


def test_dino_is_transformers(tmp_path, monkeypatch):
    from transformers import BitImageProcessorPil, Dinov2Model

    folder = write_dino(tmp_path / "dino")
    monkeypatch.setattr("rapm_cli.extractors.dino.SOURCE", str(folder))
    extractor, made = EXTRACTORS["dinov2"](opening()), image(256, 256)
    processor = BitImageProcessorPil(
        size={"shortest_edge": 224}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    with torch.no_grad():
        theirs = Dinov2Model.from_pretrained(folder)(**processor(made, return_tensors="pt")).last_hidden_state[:, 0]
    torch.testing.assert_close(next(extractor.features([lambda: made])), theirs, rtol=1e-4, atol=1e-5)
    assert extractor.width == theirs.shape[1]


LACKING = ("config.json", "model.safetensors", "preprocessor_config.json", "weight", "tokenizer", "crop_size")


@pytest.mark.parametrize("missing", LACKING)
def test_a_clip_that_lacks_something_is_refused_by_name(tmp_path, missing):
    folder = write_clip(tmp_path / "clip", "safetensors")
    if missing == "weight":
        from safetensors.torch import load_file

        state = load_file(folder / "model.safetensors")
        del state["visual_projection.weight"]
        save_file(state, folder / "model.safetensors", {"format": "pt"})
    elif missing == "tokenizer":
        for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
            (folder / name).unlink()
    elif missing == "crop_size":
        (folder / "preprocessor_config.json").write_text('{"size": 224}')
    else:
        (folder / missing).unlink()
    with pytest.raises(InputError, match="clip"):
        open_pair(opening(clip_model=str(folder)))


def test_extractors_of_the_hub_are_fetched_or_told_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in EXTRACTORS.names():
        if name not in ("demo", "filters", "inception"):  # which ship, need no weights, or are given as a file
            with pytest.raises(WeightsError, match="is not in the Hugging Face cache"):
                EXTRACTORS[name](Opening(CPU, opening().reporter))
