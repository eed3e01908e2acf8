import errno
import json
import os
import re
from pathlib import Path

import pytest

from rapm_cli.core.common.errors import DiskError, Stopped
from tests.messages import names

DISTILL = ["distill", "--base", "demo"]


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([*DISTILL, "--rank", "0"], "--rank 0"),
        ([*DISTILL, "--rank", "many"], "--rank"),
        ([*DISTILL, "--steps", "3"], "--steps 1 2 4 5"),
        ([*DISTILL, "--learning-rate", "7"], "--learning-rate 7"),
        ([*DISTILL, "--warmup", "9" * 400], "--warmup"),
        ([*DISTILL, "--adversarial-weight", "inf"], "--adversarial-weight inf"),
        ([*DISTILL, "--slot-weights", "1,x"], "--slot-weights 1,x"),
        ([*DISTILL, "--slot-weights", "1,1"], "2 4"),
        ([*DISTILL, "--discriminator", "unett"], "unett unet"),
        ([*DISTILL, "--device", "abacus"], "--device auto"),
        ([*DISTILL, "--precision", "fp8"], "fp32 bf16 fp16"),
        ([*DISTILL, "--samples", "-1"], "--samples -1"),
        ([*DISTILL, "--samples", "7"], "8"),
        ([*DISTILL, "--device", "meta"], "--device meta"),
        (["generate", "a red cube", "--base", "demo", "--precision", "fp8"], "--precision fp8"),
        ([*DISTILL, "--rank", "1.5"], "--rank 1.5 number"),
        (["eval", "--base", "demo", "--teacher-samples", "x"], "--teacher-samples x number"),
        (["eval", "--base", "demo", "--teacher-samples", "-3"], "--teacher-samples -3 0"),
        (["eval", "--study", "default", "--teacher-samples", "3"], "--teacher-samples --study"),
        (["generate", "a red cube", "--base", "demo", "--steps", "0"], "--steps"),
        (["generate", "--from", "x.png", "--seed", "9"], "--from"),
        (["eval", "--base", "demo", "--precision", "fp8"], "--precision fp8"),
        (["generate", "a red cube", "--base", ""], "''"),
        (["distill", "--base", "demmo"], "demmo demo"),
        (["distil"], "distill"),
        ([*DISTILL, "--rnk", "1"], "--rank"),
        (["generate", "a red cube", "--seed", "x"], "--seed x"),
        (["generate", "a red cube", "--seed", "9..3"], "--seed LOW..HIGH"),
        (["generate", "a red cube", "--seed", "-1"], "--seed -1 0 18446744073709551615"),
        (["generate", "a red cube", "--seed", str(2**64)], f"--seed {2**64} 0 18446744073709551615"),
        (["generate", "a red cube", "--seed", f"{2**64 - 1}", "--num-images", "2"], "--seed"),
        (["generate", "a", "red", "cube"], "3 'a red cube'"),
        (["generate", "a red cube", "--output", "x.PNG"], "--output x.PNG"),
        ([*DISTILL, "--output", "x.safetensors"], "--output x.safetensors export"),
        ([*DISTILL, "--dry-run", "--output", "x.safetensors"], "--output x.safetensors export"),
        (["generate", "a red cube", "--lora", "a", "--lora", "b"], "--lora 2"),
        (["generate", "a red cube", "--output", "a", "--outdir=a"], "--output 2"),
        ([*DISTILL, "--prompts", "a", "--prompts", "b", "--prompts", "c"], "--prompts 3"),
        (["generate", "a red cube", "--seed", "1..3", "--num-images", "2"], "--seed --num-images"),
        (["generate", "a red cube", "--base", "demo", "--steps", "6"], "--steps"),
        (["generate", "a red cube", "--num-images", "0"], "--num-images"),
        (["eval", "--base", "demo", "--split", "middle"], "held-out seen both"),
        (["eval", "--base", "demo", "--samples", "100000000000"], "--samples 100000000000"),
        (["eval", "--base", "demo", "--samples", "7"], "8"),
        (["eval", "--base", "demo", "--metrics", "fid"], "fd-demo"),
        (["export", "--base", "demo", "--fuse", "--dtype", "fp8"], "--dtype fp8"),
        (["export", "--base", "demo", "--output", "z.ckpt"], "z.ckpt"),
    ],
)
def test_a_bad_value_is_one_line_and_exit_2(rapm, argv, named):
    code, out, err = rapm(*argv, *([] if argv[0] == "distil" else ["--quiet"]))
    assert code == 2, err
    assert out == ""
    assert names(err, *named.split()), err
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("error: ")


@pytest.mark.parametrize(
    ("argv", "code", "named"),
    [
        (["generate", ""], 3, "error"),
        (["generate", "a" * 2001], 3, "2,001"),
        (["generate", "a\x00b"], 3, "error"),
        (["generate", "--prompts", "nowhere.txt"], 3, "nowhere.txt"),
        (["generate", "a red cube", "--lora", "nowhere"], 3, "nowhere"),
        (["generate", "--from", "nowhere.png"], 3, "nowhere.png"),
        (["generate", "a photo of a woman"], 4, "--base demo"),
        (["inspect", "nowhere"], 3, "nowhere"),
        (["inspect", ""], 3, "''"),
        (["inspect", "x" * 300], 3, "error"),
        (["generate", "a red \udcff cube"], 3, "UTF-8"),
        (["generate", "a red cube", "--base", "demo", "--output", __file__], 5, __file__),
        (["distill", "--base", "demo", "--output", __file__ + "/run"], 5, __file__),
        (["export", "--base", "demo", "--output", __file__ + "/lora.safetensors"], 5, __file__),
        (["distill", "--base", "sdxl", "--samples", "0"], 4, "hf download stabilityai/stable-diffusion-xl-base-1.0"),
        (["distill", "--base", "demo", "--config", "nowhere.toml"], 3, "nowhere.toml"),
    ],
)
def test_a_refused_input_is_one_line_with_its_own_code(rapm, argv, code, named):
    got, out, err = rapm(*argv)
    assert got == code, err
    assert named in err.splitlines()[-1]
    assert out == ""
    assert "Traceback" not in err


def test_weights_that_are_not_here_offline_are_named_with_the_command_that_fetches_them(rapm, home, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a photo of a woman\n")
    argv = ("distill", "--base", "sdxl", "--prompts", str(prompts), "--trajectories", "1")
    code, _, err = rapm(*argv)
    assert code == 4
    assert "hf download stabilityai/stable-diffusion-xl-base-1.0" in err
    mine = tmp_path / "mine"
    assert rapm(*argv, "--output", str(mine))[0] == 4
    assert not mine.exists()
    assert list((home / "data" / "runs").glob("*")) == []


def test_files_that_are_no_text_are_refused(rapm, tmp_path):
    path = tmp_path / "prompts.txt"
    for data, named in ((b"\xff\xfe\x00", "UTF-8"), (b"\n\n", "prompts.txt"), (b"a cube\na\x00b\n", "2")):
        path.write_bytes(data)
        code, _, err = rapm("generate", "--prompts", str(path))
        assert (code, names(err, named)) == (3, True), err
    assert rapm("generate", "--prompts", str(tmp_path))[0] == 3


def test_a_text_too_large_is_named_as_such_and_not_cut_within_a_letter(rapm, tmp_path, monkeypatch):
    monkeypatch.setattr("rapm_cli.runs.prompts.MAX_BYTES", 100)
    path = tmp_path / "prompts.txt"
    path.write_text("a " + "\u00e9" * 60)
    code, _, err = rapm("generate", "--prompts", str(path))
    assert code == 3
    assert str(path) in err
    assert "UTF-8" not in err


def test_damaged_loras_are_refused_with_the_reason(rapm, tmp_path, shipped_lora):
    good, path = shipped_lora.read_bytes(), tmp_path / "x.safetensors"
    cases = (
        b"",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"PK\x03\x04" + good[4:],
        good[:-100],
        good + b"tail",
        b"\x02\x00\x00\x00\x00\x00\x00\x00{}",
    )
    for data in cases:
        path.write_bytes(data)
        code, _, err = rapm("generate", "a red cube", "--base", "demo", "--lora", str(path))
        assert (code, str(path) in err) == (3, True), err
        is_empty = data.endswith(b"{}")  # a file of no tensors
        code, _, err = rapm("inspect", str(path))
        assert (code, str(path) in err) == ((0, False) if is_empty else (3, True)), err


def test_headers_that_cannot_be_true_are_refused(rapm, tmp_path, shipped_lora):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(shipped_lora, "pt") as file:
        about = file.metadata()
    tensors, path = load_file(shipped_lora), tmp_path / "x.safetensors"
    adapter = json.loads(about["lora_adapter_metadata"])
    for change in ({"unet.r": 0}, {"unet.r": float("inf")}, {"unet.lora_alpha": float("nan")}, {"unet.lora_alpha": 0}):
        save_file(tensors, path, about | {"lora_adapter_metadata": json.dumps(adapter | change)})
        assert rapm("inspect", str(path))[0] == 3, change
    for recipe in ("[]", '{"teacher": [1]}', '{"teacher": {"num_slots": "4"}}', "{"):
        save_file(tensors, path, about | {"rapm_recipe": recipe})
        assert rapm("inspect", str(path))[0] == 3, recipe
    lost = "unet.mid_block.resnets.0.conv1.lora_B.weight"
    half = {name: value for name, value in tensors.items() if name != lost}
    save_file(half, path, about)
    code, _, err = rapm("inspect", str(path))
    assert (code, "unet.mid_block.resnets.0.conv1" in err) == (3, True), err


def test_a_config_file_with_an_unknown_key_is_refused_with_the_nearest(rapm, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("learning_rat = 1e-3\n")
    code, _, err = rapm(*DISTILL, "--config", str(path))
    assert code == 2
    assert names(err, "learning_rat")
    assert names(err, "learning-rate")
    for text, named in (
        ("rank = [", "TOML"),
        ("rank = true", "rank"),
        ("batch-size = 1\nbatch_size = 2", "batch-size"),
        ('rank = "x"', "--rank"),
    ):
        path.write_text(text)
        code, _, err = rapm(*DISTILL, "--config", str(path))
        assert code in (2, 3), err
        assert names(err, named)
        assert str(path) in err


def test_a_run_folder_that_is_not_empty_is_left_alone(rapm, tmp_path):
    (tmp_path / "keep.txt").write_text("mine")
    code, _, err = rapm(*DISTILL, "--output", str(tmp_path))
    assert code == 3
    assert str(tmp_path) in err
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["keep.txt"]


def test_a_bug_of_ours_shows_no_traceback(rapm, monkeypatch):
    def broken(*args):
        raise ValueError("inside")

    monkeypatch.setattr("rapm_cli.inspect.inspect.inspect", broken)
    code, _, err = rapm("inspect", "x")
    assert code == 1
    assert "ValueError: inside" in err
    assert "Traceback" not in err
    monkeypatch.setenv("RAPM_DEBUG", "1")
    with pytest.raises(ValueError, match="inside"):
        rapm("inspect", "x")


def test_ctrl_c_and_a_full_disk_have_their_codes(rapm, monkeypatch):
    def stop(error):
        def raise_it(*args):
            raise error

        monkeypatch.setattr("rapm_cli.inspect.inspect.inspect", raise_it)
        code, _, err = rapm("inspect", "x")
        return code, err

    assert stop(Stopped(2))[0] == 130
    assert stop(Stopped(15))[0] == 143
    assert stop(RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"))[0] == 5
    assert stop(OSError(28, "No space left on device", "x"))[0] == 5
    assert stop(type("OutOfMemoryError", (RuntimeError,), {})("CUDA"))[0] == 6


def test_the_remedy_for_rapms_own_folders_is_the_variable_that_moves_them(rapm, monkeypatch, tmp_path):
    def fail_at(place, error=PermissionError, number=errno.EACCES):
        def fail(*args):
            raise DiskError.of(error(number, os.strerror(number)), place)

        monkeypatch.setattr("rapm_cli.inspect.inspect.inspect", fail)
        code, _, err = rapm("inspect", "x")
        assert (code, names(err, place)) == (5, True)
        return "RAPM_HOME" in err

    own = Path(os.environ["RAPM_HOME"])
    assert fail_at(own / "cache" / "trajectories")
    assert fail_at(own / "data" / "runs" / "x", OSError, errno.EROFS)
    assert fail_at(own)  # which is not there, and cannot be made
    assert not fail_at(own / "data" / "runs", OSError, errno.ENOSPC)
    assert not fail_at(tmp_path)
    assert not fail_at(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("command", "place"), [("distill", "distill.resolve_run.begin_run"), ("generate", "generate.generate.generate")]
)
def test_what_helps_against_too_little_memory_is_an_option_of_the_command(rapm, monkeypatch, command, place):
    def fail(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(f"rapm_cli.{place}", fail)
    code, _, err = rapm(*(command, *(["a red cube"] if command == "generate" else [])), "--base", "demo")
    named = re.findall(r"--[a-z-]+", err.splitlines()[-1])
    assert code == 6
    assert len(named) >= 2
    assert "--vram" in named or command != "distill"
    _, out, _ = rapm(command, "--help")
    assert all(name in out for name in named)
