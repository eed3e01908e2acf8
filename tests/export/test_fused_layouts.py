"""A LoRA fused into bases of every layout."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from rapm_cli.bases import LoadedBase, find_base
from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import InputError
from rapm_cli.export.export import export
from rapm_cli.formats.lora import apply_lora, load_lora
from rapm_cli.runs.authors_lora import convert_pickle
from tests.bases.conftest import CPU, copy_of, load, originals, pipeline, random_lora  # noqa: F401  # two fixtures
from tests.bases.layouts import FOLDERS
from tests.messages import naming

OUT = Output(quiet=True)
PROMPT = "a red cube left of a blue sphere at dawn"


@pytest.mark.parametrize("layout", FOLDERS)
def test_every_layout_is_fused_into_a_folder_of_plain_names(originals, copy_of, tmp_path, layout):  # noqa: F811
    folder = copy_of("sdxl")
    torch.save(random_lora(folder), tmp_path / "lora.pt")
    convert_pickle(tmp_path / "lora.pt", tmp_path / "lora.safetensors", {"base": folder.name})
    weights = layout(folder)
    for name in ("unet/diffusion_pytorch_model.bin", "text_encoder/flax_model.msgpack"):
        (folder / name).write_bytes(b"of other programs")
    base = replace(find_base(str(originals["sdxl"]), OUT), locate=lambda reporter: weights)
    done = export(tmp_path / "lora.safetensors", base, tmp_path / "fused", fuse=True, dtype="fp32", reporter=OUT)
    assert done.report.modules > 50
    written = {path.relative_to(tmp_path / "fused").as_posix() for path in (tmp_path / "fused").rglob("*")}
    assert not [name for name in written if "fp16" in name or name.endswith((".bin", ".msgpack"))]
    ours = load(tmp_path / "fused")
    loaded = LoadedBase(weights, CPU, torch.float32)
    apply_lora(loaded.backbone, load_lora(tmp_path / "lora.safetensors"), tmp_path / "lora.safetensors")
    z = torch.randn(1, *loaded.latent_shape, generator=torch.Generator().manual_seed(3))
    student = loaded.backbone.student(z, 499, loaded.encode([PROMPT]))
    torch.testing.assert_close(ours.backbone.teacher(z, 499, ours.encode([PROMPT])), student, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.decode(z), loaded.decode(z))
    pipeline(tmp_path / "fused")  # in plain diffusers too, with no variant named


def test_a_base_that_cannot_be_fused_is_refused_and_nothing_is_left(copy_of, tmp_path):  # noqa: F811
    folder = copy_of("sdxl")
    torch.save(random_lora(folder), tmp_path / "lora.pt")
    convert_pickle(tmp_path / "lora.pt", tmp_path / "lora.safetensors", {"base": folder.name})
    base, path = find_base(str(folder), OUT), folder / "unet" / "diffusion_pytorch_model.safetensors"
    eighths = {name: value.to(torch.float8_e4m3fn) for name, value in load_file(path).items()}
    spoil = (
        (lambda: save_file(eighths, path), ("F8_E4M3",)),
        (lambda: path.write_bytes(path.read_bytes()[:-100]), (path,)),
        (path.unlink, (path.parent,)),
    )
    before = sorted(tmp_path.iterdir())
    for change, named in spoil:
        change()
        with pytest.raises(InputError, match=naming(*named)):
            export(tmp_path / "lora.safetensors", base, tmp_path / "fused", fuse=True, dtype="base", reporter=OUT)
        assert sorted(tmp_path.iterdir()) == before
