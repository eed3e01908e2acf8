"""A plain folder of a small model, changed into each layout that bases are published in."""

from rapm_cli.bases import Weights
from tests.bases.original_layout import write_checkpoint
from tests.bases.small_models import add_fp16, shard


def only_fp16(folder):
    add_fp16(folder, alone=True)
    return Weights(folder, "")


def both_precisions(folder):
    add_fp16(folder, alone=False)
    return Weights(folder, "")


def mixed_precisions(folder):
    """Half for all but one part, as some publish them."""
    kept = {path: path.read_bytes() for path in (folder / "text_encoder").glob("*.safetensors")}
    add_fp16(folder, alone=True)
    for half in (folder / "text_encoder").glob("*.safetensors"):
        half.unlink()
    for path, data in kept.items():
        path.write_bytes(data)
    return Weights(folder, "")


def sharded(folder):
    for part in ("unet", "text_encoder"):
        shard(folder, part, 3)
    return Weights(folder, "")


def sharded_fp16(folder):
    add_fp16(folder, alone=True)
    for part in ("unet", "text_encoder"):
        shard(folder, part, 3)
    return Weights(folder, "")


def one_file(folder):
    """The checkpoint, with the folder's configurations alone."""
    path = write_checkpoint(folder, folder.with_suffix(".safetensors"))
    for weights in folder.glob("*/*.safetensors"):
        weights.unlink()
    return Weights(folder, "", checkpoint=path)


def among_others(folder):
    """A snapshot of a repository that holds other weights too, of which these files were chosen."""
    files = tuple(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for name in ("unet/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.non_ema.safetensors"):
        (folder / name).write_bytes(b"not fetched as a whole")
    return Weights(folder, "", files=files)


FOLDERS = [only_fp16, both_precisions, mixed_precisions, sharded, sharded_fp16, among_others]
LAYOUTS = [*FOLDERS, one_file]
