"""Files of a fused folder in the form that transformers 4 reads too; transformers 5 reads both forms."""

import json
from typing import Any

from rapm_cli.bases import Weights
from rapm_cli.bases.weights import read_json
from rapm_cli.formats.fuse import open_tensors
from rapm_cli.formats.header import SUFFIX
from rapm_cli.formats.original_layout import INSIDE_CLIP
from rapm_cli.formats.safetensors_writer import OutputTensor

ENCODERS, TOKENIZERS = ("text_encoder", "text_encoder_2"), ("tokenizer", "tokenizer_2")
PROJECTION = "text_projection."  # of SDXL's second encoder; the only layer that is not inside `text_model.`


def named_encoders(weights: Weights) -> dict[str, dict[str, OutputTensor]]:
    """Return the tensors of encoders whose names lack `text_model.`, as transformers 5.6 writes them, with it.

    Without it, transformers 4 initialises such an encoder at random.

    Returns:
        Name of the file in the folder, to tensors by name; empty where all names have it.
    """
    found = {}
    for part in ENCODERS:
        files = weights.files_of(part) if (weights.folder / part).is_dir() else []
        tensors = open_tensors(files) if len(files) == 1 else {}  # shards have an index, and no encoder has shards
        if any(not name.startswith((INSIDE_CLIP, PROJECTION)) for name in tensors):
            found[f"{part}/model{SUFFIX}"] = {
                name if name.startswith(PROJECTION) else INSIDE_CLIP + name.removeprefix(INSIDE_CLIP): OutputTensor(
                    (one,), one.info.dtype, one.info.shape
                )
                for name, one in tensors.items()
            }
    return found


def tokenizer_files(weights: Weights) -> dict[str, bytes]:
    """Return `vocab.json` and `merges.txt` of tokenizers that have `tokenizer.json` alone, by name in the folder."""
    found = {}
    for part in TOKENIZERS:
        path = weights.folder / part / "tokenizer.json"
        if path.is_file() and not path.with_name("vocab.json").exists():
            model: dict[str, Any] = read_json(path).get("model", {})
            merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges", [])]
            found[f"{part}/vocab.json"] = json.dumps(model.get("vocab", {}), ensure_ascii=False).encode()
            found[f"{part}/merges.txt"] = "\n".join(["#version: 0.2", *merges, ""]).encode()
    return found
