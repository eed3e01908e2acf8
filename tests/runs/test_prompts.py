import io
import json
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import InputError
from rapm_cli.runs import prompts
from tests.messages import names

TWO = ["a cat", "a dog"]
COCO = {
    "info": {"year": 2014},
    "images": [{"id": 9}, {"id": 4}],
    "annotations": [
        {"image_id": 9, "id": 30, "caption": "a dog\n"},
        {"image_id": 4, "id": 21, "caption": "a second cat"},
        {"image_id": 4, "id": 20, "caption": "a cat"},
        {"image_id": 4, "id": 19, "caption": "  "},
    ],
}
OUT = Output(quiet=True)


@pytest.fixture
def read(tmp_path):
    def read(name, data, column=""):
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return prompts.read_prompts(f"{path}{column}", OUT)

    return read


@pytest.fixture
def pipe(monkeypatch):
    def pipe(data):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        return prompts.read_prompts("-", OUT)

    return pipe


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.txt", "a cat\n\n  a dog \n"),
        ("x.txt", "a cat\r\na dog"),
        ("prompts", "\ufeffa cat\na dog\n"),
        ("x.jsonl", '"a cat"\n\n"a dog"\n'),
        ("x.JSONL", '\ufeff{"id": 1, "caption": "a cat"}\r\n{"text": "a\\ndog", "n": null}\r\n'),
        ("x.ndjson", '{"text": "not this", "prompt": "a cat"}\n{"prompt": " "}\n"a dog"'),
        ("x.csv", "id,prompt\n1,a cat\n\n2,a dog\n3,\n"),
        ("x.csv", "\ufeffCaption\r\n a cat\r\na dog\r\n"),
        ("x.csv", "\n\ndescription\na cat\na dog\n"),
        ("x.csv", 'text,n\n"a cat",1\n"a\ndog",2\n'),
        ("x.TSV", "Prompt\tCategory\na cat\tAnimals\na dog\tAnimals, \n"),
        ("x.tsv", 'Prompt\tCategory\n"a cat"\tx\na dog\t"y"\n'),
        ("x.tsv", 'Prompt\tCategory\n"a\ncat"\tx\na dog\t"y\tz"\n'),
        ("x.txt", "# from a friend\na cat\n  #1\na dog\n#"),
        ("x.tsv", "Note,Prompt\tprompt\nx\ta cat\ny\ta dog\n"),
        ("x.csv", "text,prompt\nx,a cat\ny,a dog\n"),
        ("x.json", json.dumps(COCO)),
        ("x.json", json.dumps(COCO, indent=2)),
        ("x.json", '["a cat", {"prompt": "a dog"}]'),
    ],
)
def test_every_form_of_file_gives_its_prompts(read, name, data):
    assert read(name, data) == TWO


def test_quotes_in_tsv_are_characters_where_each_line_is_a_row(read):
    lines = ['"Fast" cars', '"Hello, she said', 'a 6" pipe', 'he said ""no""', '"say ""cheese"""']
    read_as = [*lines[:4], 'say "cheese"']  # the last has a spreadsheet's quotes
    assert read("x.tsv", "Prompt\tn\n" + "".join(f"{line}\t1\n" for line in lines)) == read_as


@pytest.mark.parametrize(
    ("name", "data", "values"),
    [
        ("x.jsonl", '{"prompt": "a", "seed": 5}\n{"prompt": "b", "negative_prompt": "c"}', ["seed", "negative_prompt"]),
        ("x.json", '[{"caption": "a", "Width": 512, "id": 1}]', ["Width"]),
        ("x.csv", "id,prompt,cfg_scale\n1,a cat,7\n", ["cfg_scale"]),
        ("x.txt", "a (red car:1.3)\na (blue car:.5)", ["'(red car:1.3)'", 2]),
        ("x.txt", "a cube <LoRA:x:0.8>", ["'<LoRA:x:0.8>'"]),
        ("x.txt", "a cube --ar 16:9", ["'--ar'"]),
    ],
)
def test_what_only_other_programs_read_in_a_file_is_named(tmp_path, capfd, name, data, values):
    (tmp_path / name).write_text(data)
    prompts.read_prompts(str(tmp_path / name), Output(quiet=True))
    (line,) = capfd.readouterr().err.splitlines()
    assert names(line, "warning:", *values)


def test_parentheses_colons_and_dashes_of_plain_text_are_not_named(read, capfd):
    read("x.txt", "ratio (16:9), John (3:16), a (red: car), well--known -- x<y:z>")
    assert capfd.readouterr().err == ""


def test_comments_are_counted(tmp_path, capfd):
    (tmp_path / "x.txt").write_text("# one\na cat\n#two\n")
    assert prompts.read_prompts(str(tmp_path / "x.txt"), Output()) == ["a cat"]
    assert names(capfd.readouterr().err, "x.txt", 2)


def test_a_column_is_named_after_the_file(read, tmp_path):
    assert read("x.csv", "Long,short\na cat,x\na dog,y\n", ":Long") == TWO
    assert read("x.tsv", "big one\tb\na cat\tx\na dog\ty\n", ":big one") == TWO
    assert read("y:prompt.csv", "prompt\na cat\na dog\n") == TWO
    assert read("x.csv", "a cat\nnot this\na dog\n", ":a cat") == ["not this", "a dog"]
    with pytest.raises(InputError, match=r"x\.txt:prompt cannot be read"):
        read("x.txt", "a cat", ":prompt")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a cat\na dog\n", TWO),
        (b'"a cat"\n"a dog"', ['"a cat"', '"a dog"']),
        (b'"Hello" she said', ['"Hello" she said']),
        (b"{red|blue} cube\n12\n", ["{red|blue} cube", "12"]),
        (b"[1]\n", ["[1]"]),
    ],
)
def test_standard_input_is_text(pipe, data, expected):
    assert pipe(data) == expected


@pytest.mark.parametrize(
    ("name", "data", "values"),
    [
        ("x.txt", b"a cat\n\xff", "x.txt line 2 :: byte 6"),
        ("x.txt", "\n \n", "x.txt"),
        ("x.txt", "a\n\nb\x00c", "x.txt line 3"),
        ("x.jsonl", '"a"\n{"prompt": }', "x.jsonl line 2 :: column 12"),
        ("x.jsonl", '"a"\n\n{"a": 1}', "x.jsonl line 3 :: prompt, caption or text"),
        ("x.jsonl", '"a"\n7', "x.jsonl line 2"),
        ("x.jsonl", '{"caption": null}', "x.jsonl line 1 :: caption"),
        ("x.jsonl", '"\\ud800"', "x.jsonl line 1"),
        ("x.jsonl", "[" * 100_000, "x.jsonl line 1"),
        ("x.jsonl", "9" * 5000, "x.jsonl line 1"),
        ("x.txt", '{"prompt": "a"}\nb', "x.txt :: line 1"),
        ("x.csv", "", "x.csv"),
        ("x.csv", "prompt\n", "x.csv"),
        ("x.csv", "a,b\n1,2\n", "x.csv :: 'a', 'b'"),
        ("x.csv", "prompt,prompt\n1,2\n", "x.csv :: 2 columns 'prompt'"),
        ("x.csv", "a cat\na dog\n", "x.csv :: 'a cat'"),
        ("x.csv", "id;prompt\n1;a cat\n", "x.csv :: 'id;prompt'"),
        ("x.csv", 'prompt,n\n"a\nb",1\na cat, on a mat,2\n', "x.csv line 4 :: 3 cells"),
        ("x.csv", 'prompt\na\n"b" c\n', "x.csv line 3"),
        ("x.csv", 'prompt\n"a', "x.csv line 2"),
        ("x.csv", "prompt\n" + "a" * 2001, "x.csv line 2 :: 2,001"),
        ("x.csv", "Prompt\tCategory\na cat\tAnimals\n", "x.csv :: 'Prompt\\tCategory'"),
        ("x.json", "{", "x.json"),
        ("x.json", '{"prompt": "a cat"}\n{"prompt": "a dog"}\n', "x.json :: line 2 column 1"),
        ("x.json", '{"prompt": "a cat"}', "x.json"),
        ("x.json", '{"a":\n 1,}', "x.json :: line 2"),
        ("x.json", '{"images": []}', "x.json"),
        ("x.json", "3", "x.json"),
        ("x.json", '["a", 3]', "x.json entry 2"),
        ("x.json", '{"annotations": []}', "x.json"),
        ("x.json", '{"annotations": [3]}', "x.json annotation 1 :: image_id"),
        ("x.json", '{"annotations": [{"image_id": true, "id": 1}]}', "x.json annotation 1 :: image_id"),
        ("x.json", '{"annotations": [{"image_id": 1, "id": 1, "bbox": []}]}', "x.json annotation 1 :: caption"),
        ("x.json", '{"annotations": [{"image_id": 1, "id": 1, "caption": "a\\u0007"}]}', "x.json annotation 1"),
        ("x.pkl", b"\x80\x04\x95\x00", "x.pkl line 1"),
    ],
)
def test_a_refusal_names_the_file_and_the_line(read, name, data, values):
    with pytest.raises(InputError) as raised:
        read(name, data)
    for value in values.split(" :: "):
        assert value in raised.value.message
    assert raised.value.remedy
    assert "\n" not in raised.value.message


def test_a_column_that_is_not_there_is_told_with_those_that_are(read):
    with pytest.raises(InputError, match=r"'c'.*'a', 'b'"):
        read("x.csv", "a,b\n1,2\n", ":c")


def test_limits_are_those_of_the_form(read, monkeypatch):
    monkeypatch.setattr(prompts, "MAX_BYTES", 20)
    with pytest.raises(InputError, match="more than"):
        read("x.jsonl", '"a"\n' * 6)
    assert read("x.json", json.dumps(COCO)) == TWO
    monkeypatch.setattr(prompts, "MAX_JSON_BYTES", 20)
    with pytest.raises(InputError, match="more than"):
        read("x.json", json.dumps(COCO))
    monkeypatch.setattr(prompts, "MAX_PROMPTS", 3)
    assert len(read("x.txt", "a\n\n\nb\nc")) == 3
    with pytest.raises(InputError, match="more than 3 prompts"):
        read("x.txt", "a\nb\nc\nd")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(TWO),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["prompt", "text", "annotations", "id", "image_id", "caption"]), inner, max_size=4
        )
    ),
    max_leaves=9,
)
tables = st.lists(
    st.lists(st.sampled_from([*TWO, "prompt", "text", '"', "", "\n", "\t", "\x00"]), max_size=3), max_size=4
)
contents = (
    st.binary(max_size=60)
    | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | anything.map(lambda value: json.dumps(value).encode())
    | st.lists(anything, max_size=3).map(lambda values: "\n".join(map(json.dumps, values)).encode())
    | tables.map(lambda rows: "\n".join(map(",".join, rows)).encode())
)


def outcome(source):
    try:
        return prompts.read_prompts(source, OUT)
    except InputError as error:
        return error


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(contents, st.sampled_from(["x", "x.txt", "x.jsonl", "x.csv", "x.tsv", "x.json", "x.csv:text", "-"]))
def test_whatever_a_source_holds_there_is_a_list_of_prompts_or_a_refusal(tmp_path, data, name):
    (tmp_path / name.removesuffix(":text")).write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        found = outcome("-" if name == "-" else str(tmp_path / name))
    if isinstance(found, InputError):
        assert found.remedy
        assert "\n" not in found.message
    else:
        assert found
        assert all(prompt == prompts.check_prompt(prompt, "x") for prompt in found)


def test_prompts_are_counted_and_their_repeats_told(rapm, tmp_path, monkeypatch):
    (tmp_path / "x.csv").write_text("prompt\na red cube\na blue ball\na red cube\n")
    monkeypatch.chdir(tmp_path)
    argv = ("generate", "--base", "demo", "--lora", "nowhere", "--prompts")
    assert names(rapm(*argv, "x.csv")[2], 1, 3, "prompt", "x.csv")
    (tmp_path / "x.json").write_text('["a red cube", "a blue ball"]')
    assert names(rapm(*argv, "x.json")[2], 2, "x.json")
    code, _, err = rapm(*argv, "x.csv:colour")
    assert code == 3
    assert names(err, "x.csv", "'colour'", "'prompt'", "x.csv:COLUMN")


def test_a_distillation_learns_from_a_column(rapm, tmp_path):
    (tmp_path / "x.csv").write_text("n,colour\n1,a red cube\n2,a blue ball\n")
    few = ("--trajectories", "2", "--samples", "0", "--iterations", "1", "--fine-steps", "2", "--batch-size", "1")
    prompts, run = f"{tmp_path}/x.csv:colour", tmp_path / "run"
    code, _, err = rapm("distill", "--base", "demo", "--prompts", prompts, *few, "--output", str(run))
    assert code == 0, err
    stored = next(run.rglob("settings.json")).read_text()
    assert json.loads(stored)["prompts"] == ["a red cube", "a blue ball"]
