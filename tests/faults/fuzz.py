"""Malformed files, prompts and configurations by the thousand: one line and a code each; no hang, no code run.

python -m tests.faults.fuzz --count 10000
"""

import argparse
import contextlib
import io
import json
import math
import os
import pickle
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rapm_cli.cli.app import main as rapm
from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import RapmError
from rapm_cli.formats.header import DTYPE_BYTES
from rapm_cli.formats.lora import LoraFile, save_lora
from rapm_cli.runs.authors_lora import convert_pickle
from rapm_cli.runs.images import save_png
from tests.faults.boundaries import write_checkpoint

CODES = {0, 2, 3, 4}  # what a malformed input may end with
LONGEST = timedelta(seconds=10)


class Trap:
    """Unpickled with its code, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@dataclass
class Tally:
    """What a target answered."""

    codes: Counter = field(default_factory=Counter)
    slowest: float = 0.0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
names = st.sampled_from(["unet.a.lora_A.weight", "unet.a.lora_B.weight", "__metadata__", "x", "../../x", "\x1b[31m"])
sizes = st.integers(-1, 40) | st.sampled_from([2**31, 2**63, 2**64, 10**30])
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "F8", "BOOL", 3, None]),
        "shape": st.lists(sizes, max_size=4) | json_values,
        "data_offsets": st.lists(sizes, max_size=3) | json_values,
    },
)


@st.composite
def mutations(draw, good: bytes) -> bytes:
    """A good file with pieces flipped, cut, doubled or replaced."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["flip", "cut", "insert", "zero", "replace"])):
            case "flip" if at < len(data):
                data[at] ^= draw(st.integers(1, 255))
            case "cut":
                del data[at : at + draw(st.integers(1, 4096))]
            case "insert":
                data[at:at] = draw(st.binary(max_size=40))
            case "zero":
                data[at : at + 64] = bytes(len(data[at : at + 64]))
            case _:
                chunk = draw(st.binary(max_size=16))
                data[at : at + len(chunk)] = chunk
    return bytes(data)


@st.composite
def headers(draw) -> bytes:
    """A safetensors file whose header is JSON of any kind, with any length before it and any data after it."""
    record = draw(st.dictionaries(names, entries | json_values, max_size=4) | json_values)
    text = json.dumps(record).encode()
    if draw(st.booleans()):
        text = text.replace(b"}", b"," + text[1:], 1) if text.startswith(b'{"') else text
    length = draw(st.sampled_from([len(text), len(text), len(text), 0, 1, 2**63, 2**64 - 1]) | st.integers(0, 2**20))
    return struct.pack("<Q", length) + text + draw(st.binary(max_size=64))


layers = st.sampled_from(
    [
        *("unet.conv_in", "conv_in", "base_model.model.conv_in", "unet.mid_block.attentions.0.proj_in"),
        *("lora_unet_conv_in", "lora_unet_input_blocks_1_0_in_layers_2", "lora_unet_output_blocks_x", "lora_unet_"),
        *("text_encoder.a", "lora_te1_a", "diffusion_model.input_blocks.1.0.op", "unet.a.processor.to_out_lora"),
    ]
)
endings = st.sampled_from(
    [
        *(".lora_A.weight", ".lora_B.weight", ".lora_A.default.weight", ".lora.down.weight", ".lora.up.weight"),
        *(".lora_down.weight", ".lora_up.weight", ".alpha", ".down.weight", ".up.weight", ".lora_mid.weight"),
        *(".dora_scale", ".hada_w1_a", ".lora_B.bias", "", ".diff"),
    ]
)
shapes = st.sampled_from([[], [1], [2, 3], [3, 2], [2, 4, 3, 3], [320, 2, 1, 1], [0, 4], [1, 2, 3], [1, 1, 1, 1, 1]])
adapters = st.dictionaries(
    st.sampled_from(["unet.", ""]).flatmap(
        lambda prefix: st.sampled_from(
            [f"{prefix}{name}" for name in ("r", "lora_alpha", "use_rslora", "alpha_pattern", "rank_pattern", "bias")]
        )
    ),
    st.integers(0, 4) | json_values | st.dictionaries(st.sampled_from(["conv_in", "^a", ".*", "("]), json_values),
    max_size=5,
)


@st.composite
def foreign_loras(draw) -> bytes:
    """A whole safetensors file under keys that other programs give a LoRA, with halves that rarely meet."""
    header, data = {}, b""
    pairs = draw(st.lists(st.tuples(layers, st.sampled_from(["A", "down", "lora.down"])), max_size=3))
    meant = {"A": ("lora_A", "lora_B"), "down": ("lora_down", "lora_up"), "lora.down": ("lora.down", "lora.up")}
    halves = [f"{layer}.{half}.weight" for layer, form in pairs for half in meant[form]]
    for name in [*halves, *draw(st.lists(st.tuples(layers, endings).map("".join), max_size=4))]:
        right = [2, 4, 3, 3] if ("down" in name or "lora_A" in name) else [320, 2, 1, 1]
        shape, kind = (
            draw(st.just(right) | shapes),
            draw(st.sampled_from(["F32", "F32", "F16", "BF16", "I64", "F8_E4M3"])),
        )
        size = math.prod(shape) * DTYPE_BYTES[kind]
        fill = draw(st.sampled_from([b"\0", b"\0", b"\x3c", b"\xff", b"\x7f"]))
        if name not in header:
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(data), len(data) + size]}
            data += fill * size
    about = draw(st.none() | adapters.map(json.dumps) | st.text(max_size=9))
    record = header if about is None else {"__metadata__": {"lora_adapter_metadata": about}, **header}
    text = json.dumps(record).encode()
    return struct.pack("<Q", len(text)) + text + data


def traps(canary: Path):
    """Pickles that would run code, plain or as torch writes them, under keys of a LoRA."""

    def torch_bytes(thing) -> bytes:
        buffer = io.BytesIO()
        torch.save(thing, buffer)
        return buffer.getvalue()

    plain = st.integers(0, 5).map(lambda protocol: pickle.dumps(Trap(canary), protocol))
    zipped = st.sampled_from([{"a.lora_A.weight": Trap(canary)}, Trap(canary), [Trap(canary)]]).map(torch_bytes)
    return plain | zipped | zipped.flatmap(mutations)


def good_lora(path: Path) -> bytes:
    state = {"a.lora_A.weight": torch.ones(2, 3), "a.lora_B.weight": torch.zeros(4, 2)}
    save_lora(path, LoraFile(state, 2, 2.0, {"base": "demo", "sampler": {"steps": 4}}))
    return path.read_bytes()


def good_image(path: Path) -> bytes:
    from PIL import Image

    recipe = {"prompt": "a", "seed": 1, "steps": 4, "base": "demo", "precision": "fp32", "lora_sha256": "0"}
    save_png(Image.new("RGB", (2, 2)), path, recipe)
    return path.read_bytes()


def command(*argv: str) -> int:
    """Run `rapm` in this process: its code, once its words are found to be what a user may see."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = rapm(list(argv))
    said = out.getvalue() + err.getvalue()
    assert code in CODES, f"exit {code}: {said}"
    assert "Traceback" not in said
    assert "\x1b" not in said
    assert code == 0 or sum(line.startswith("error: ") for line in err.getvalue().splitlines()) == 1, said
    return code


def convert(source: Path, target: Path) -> int:
    try:
        convert_pickle(source, target, {})
    except RapmError as error:
        return error.exit_code
    return 0


def prompt_files(place: Path) -> dict[str, tuple[st.SearchStrategy, Callable[[object], int]]]:
    """As `targets`, of JSON lines, tables and COCO captions, whole, misshapen or damaged."""
    keys = st.sampled_from(["prompt", "caption", "text", "annotations", "id", "image_id"])
    records = json_values | st.dictionaries(keys, json_values | st.integers(0, 3), max_size=4)
    documents = records | st.lists(records, max_size=4).map(lambda values: {"annotations": values})
    cells = st.sampled_from(["prompt", "text", "a cube", "", '"', "\n", "\t", "\0", "\ud800"]) | st.text(max_size=5)
    rows = st.lists(st.lists(cells, max_size=3), max_size=4)
    coco = {"annotations": [{"image_id": k, "id": k, "caption": f"a cube {k}"} for k in (3, 1, 2)]}

    def table(delimiter: str) -> st.SearchStrategy:
        return rows.map(lambda drawn: "\n".join(map(delimiter.join, drawn)).encode("utf-8", "surrogatepass"))

    def with_prompts(suffix: str) -> Callable[[object], int]:
        def act(data: object) -> int:
            place.joinpath(f"prompts{suffix.partition(':')[0]}").write_bytes(data)
            return command("generate", "--prompts", str(place / f"prompts{suffix}"), "--lora", "nowhere")

        return act

    lines = st.lists(records.map(json.dumps), max_size=3).map(lambda drawn: "\n".join(drawn).encode())
    draws = {
        ".jsonl": lines | mutations(b'{"prompt": "a"}\n"b"\n'),
        ".csv": table(",") | mutations(b'id,prompt\n1,"a, b"\n2,c\n'),
        ".tsv:prompt": table("\t"),
        ".json": documents.map(lambda value: json.dumps(value).encode()) | mutations(json.dumps(coco).encode()),
    }
    return {
        f"generate --prompts FILE{suffix}": (drawn | st.binary(max_size=80), with_prompts(suffix))
        for suffix, drawn in draws.items()
    }


def targets(place: Path, canary: Path) -> dict[str, tuple[st.SearchStrategy, Callable[[object], int]]]:
    """Name to what is drawn, and what is done with it."""
    lora, image = good_lora(place / "good.safetensors"), good_image(place / "good.png")
    run = place / "run"
    for k in (1, 2):
        write_checkpoint(run, k)
    commits = sorted(path for path in run.rglob("*") if path.is_file() and path.parent.parent.name == "commits")
    contents = {path: path.read_bytes() for path in commits}
    path, text = place / "file", st.text(max_size=3000).map(lambda t: t.encode("utf-8", "surrogatepass"))
    numbers = (st.integers(-3, 3000) | st.integers() | st.floats()).map(repr)
    toml_values = numbers | numbers | json_values.filter(lambda value: value is not None).map(json.dumps)
    options = st.sampled_from(
        [
            *("rank", "steps", "base", "seed", "slot-weights", "alpha", "prompts", "learning-rate", "quiet", "resume"),
            *(
                "warmup",
                "weight-decay",
                "iterations",
                "checkpoint-every",
                "samples",
                "delta",
                "guidance",
                "max-grad-norm",
            ),
            "unknown",
        ]
    )
    toml = st.dictionaries(options, toml_values, max_size=3).map(
        lambda table: "\n".join(f"{key} = {value}" for key, value in table.items()).encode()
    )
    weights = mutations(lora) | headers() | st.binary(max_size=200) | traps(canary)
    damaged = st.sampled_from(commits).flatmap(lambda p: st.tuples(st.just(p), mutations(contents[p])))

    def with_file(*argv: str) -> Callable[[object], int]:
        def act(data: object) -> int:
            path.write_bytes(data)
            return command(*argv)

        return act

    def with_commit(*argv: str) -> Callable[[object], int]:
        def act(case: object) -> int:
            victim, data = case
            victim.write_bytes(data)
            try:
                return command(*argv)
            finally:
                victim.write_bytes(contents[victim])

        return act

    def pickled(data: object) -> int:
        path.write_bytes(data)
        return convert(path, place / "converted.safetensors")

    name, out, drawn = str(path), str(place / "out.safetensors"), str(place / "drawn")

    def exported(data: object) -> int:
        path.write_bytes(data)
        Path(out).unlink(missing_ok=True)
        return command("export", name, "--base", "demo", "--output", out)

    return {
        "inspect FILE": (weights, with_file("inspect", name)),
        "export FILE": (weights, exported),
        "export FILE of others": (foreign_loras(), exported),
        "generate --lora FILE of others": (
            foreign_loras(), with_file("generate", "a", "--base", "demo", "--lora", name, "--output", drawn),
        ),
        "pickle of a LoRA": (traps(canary) | st.binary(max_size=200), pickled),
        "generate --prompts FILE": (
            text | st.binary(max_size=300), with_file("generate", "--prompts", name, "--lora", "nowhere"),
        ),
        **prompt_files(place),
        "generate PROMPT": (
            st.text(st.characters(), max_size=2100), lambda prompt: command("generate", "--lora", "no", "--", prompt),
        ),
        "generate --from FILE": (mutations(image) | st.binary(max_size=200), with_file("generate", "--from", name)),
        "distill --config FILE": (
            toml | toml | text | st.binary(max_size=200),
            with_file("distill", "--base", "demo", "--config", name, "--output", str(place)),  # which is not empty
        ),
        "inspect RUN": (damaged, with_commit("inspect", str(run))),
        "distill --resume RUN": (damaged, with_commit("distill", "--resume", str(run), "--rank", "7")),
    }  # fmt: skip


def attack(draws: st.SearchStrategy, act: Callable[[object], int], count: int, canary: Path, seed: int) -> Tally:
    tally = Tally()

    @settings(
        max_examples=count, deadline=LONGEST, database=None, derandomize=seed == 0,
        phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip
    @given(draws)
    def one(data) -> None:
        begun = time.perf_counter()
        code = act(data)
        tally.slowest = max(tally.slowest, time.perf_counter() - begun)
        tally.codes[code] += 1
        assert not canary.exists(), "code from a file was run"

    one()
    return tally


def main(count: int = 10_000, seed: int = 0) -> dict[str, Tally]:
    """Run it and print the table.

    Args:
        count: Malformed inputs in all.
        seed: 0 for the same ones each time, else others.
    """
    place = Path(tempfile.mkdtemp(prefix="rapm-fuzz-"))
    before = dict(os.environ), sys.stdin
    os.environ |= {"RAPM_HOME": str(place / "home"), "HF_HUB_OFFLINE": "1", "HF_HOME": str(place), "NO_COLOR": "1"}
    sys.stdin = SimpleNamespace(buffer=io.BytesIO(), isatty=lambda: False)
    tallies = {}
    try:
        jobs = targets(place, place / "canary")
        for name, (draws, act) in jobs.items():
            tallies[name] = attack(draws, act, -(-count // len(jobs)), place / "canary", seed)
    finally:
        os.environ.clear()
        os.environ.update(before[0])
        sys.stdin = before[1]
        shutil.rmtree(place, ignore_errors=True)
    rows = [
        [
            name,
            f"{sum(made.codes.values()):,}",
            *(f"{made.codes[code]:,}" for code in sorted(CODES)),
            f"{made.slowest:.2f}",
        ]
        for name, made in tallies.items()
    ]
    total = sum(sum(made.codes.values()) for made in tallies.values())
    columns = ["", "inputs", *(f"exit {code}" for code in sorted(CODES)), "slowest, s"]
    Output().table(f"{total:,} malformed inputs: no traceback, no code run", columns, rows)
    return tallies


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.count, arguments.seed)
