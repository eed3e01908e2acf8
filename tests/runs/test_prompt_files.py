import json

from tests.messages import names


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
