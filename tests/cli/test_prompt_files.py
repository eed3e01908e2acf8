import json


def test_prompts_are_counted_and_their_repeats_told(rapm, tmp_path, monkeypatch):
    (tmp_path / "x.csv").write_text("prompt\na red cube\na blue ball\na red cube\n")
    monkeypatch.chdir(tmp_path)
    argv = ("generate", "--base", "demo", "--lora", "nowhere", "--prompts")
    assert "1 of 3 prompts from column prompt of x.csv repeat" in rapm(*argv, "x.csv")[2]
    (tmp_path / "x.json").write_text('["a red cube", "a blue ball"]')
    assert "2 prompts from x.json\n" in rapm(*argv, "x.json")[2]
    code, _, err = rapm(*argv, "x.csv:colour")
    assert code == 3
    assert "x.csv has no column 'colour' among 'prompt'; name one: x.csv:COLUMN\n" in err


def test_a_distillation_learns_from_a_column(rapm, tmp_path):
    (tmp_path / "x.csv").write_text("n,colour\n1,a red cube\n2,a blue ball\n")
    few = ("--trajectories", "2", "--samples", "0", "--iterations", "1", "--fine-steps", "2", "--batch-size", "1")
    prompts, run = f"{tmp_path}/x.csv:colour", tmp_path / "run"
    code, _, err = rapm("distill", "--base", "demo", "--prompts", prompts, *few, "--output", str(run))
    assert code == 0, err
    stored = next(run.rglob("settings.json")).read_text()
    assert json.loads(stored)["prompts"] == ["a red cube", "a blue ball"]
