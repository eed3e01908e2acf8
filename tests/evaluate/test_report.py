"""The page of an evaluation: whole by itself, safe against what prompts say, and readable in a browser."""

import base64
import io
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from rapm_cli.cli.app import main
from rapm_cli.evaluate.charts import Line, line_chart
from rapm_cli.evaluate.html import (
    Chart,
    ChartsSection,
    FactsSection,
    ImageSection,
    Report,
    SheetRow,
    SheetSection,
    TableSection,
    embedded,
)
from rapm_cli.evaluate.report import _spent
from rapm_cli.evaluate.training_curves import training_charts
from rapm_cli.runs.run import Run

SVG = "{http://www.w3.org/2000/svg}"
EVIL = "<script>alert(1)</script> \"onload=x & 'y' {{ 7 * 7 }}"


def png(colour):
    held = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(held, "PNG")
    return held.getvalue()


def chart_of(lines, xs, **options):
    return ElementTree.fromstring(line_chart(lines, xs, "iteration", **options))


def points(path):
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path.get("d"))]


def test_a_line_goes_where_its_values_are():
    """Heights are a linear function of the values that the axis' numbers are on too."""
    values = [0.0, 3.0, 1.0, 4.0]
    svg = chart_of([Line("a", values)], [0, 1, 2, 3])
    drawn = points(svg.find("path"))
    xs, ys = np.array(drawn).T
    np.testing.assert_allclose(np.diff(xs), np.diff(xs)[0], atol=0.11)
    ticks = {float(t.text): float(t.get("y")) - 4 for t in svg.findall("text") if t.get("text-anchor") == "end"}
    slope, offset = np.polyfit(list(ticks), list(ticks.values()), 1)
    np.testing.assert_allclose(ys, slope * np.array(values) + offset, atol=0.11)
    assert sorted(ticks) == [0, 1, 2, 3, 4]
    far = ElementTree.fromstring(line_chart([Line("a", [2.0, 2.1])], [0, 1], "x", has_zero=False))
    assert min(float(t.text) for t in far.findall("text") if t.get("text-anchor") == "end") >= 1.9


def test_what_is_not_finite_leaves_a_gap_and_a_long_line_is_thinned():
    svg = chart_of([Line("a", [1, 2, float("nan"), 3, float("inf")])], range(5))
    assert svg.find("path").get("d").count("M") == 2
    assert len(points(svg.find("path"))) == 3
    long = chart_of([Line("a", [float(k) for k in range(10_000)])], range(10_000))
    assert 200 <= len(points(long.find("path"))) <= 400


@pytest.mark.parametrize("values", [[0.0], [5.0], [-1.0, -2.0], [1e-9, 1e9], [float("nan")] * 2, [0.0, 0.0]])
def test_any_values_make_a_chart(values):
    svg = chart_of([Line(EVIL, values)], list(range(len(values))), has_points=True)
    assert svg.get("viewBox")


class Page(HTMLParser):
    """Tags, what they refer to, and the text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.links, self.text = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data):
        self.text.append(data)


def report():
    image = embedded(png("red"))
    return Report(
        EVIL,
        EVIL,
        [
            TableSection("Figures", ["", "FID"], [[EVIL, "1"]], note=EVIL),
            ChartsSection("Curves", [Chart.of("Loss", [Line(EVIL, [1, 2])], [0, 1], "iteration", EVIL)]),
            SheetSection("Side by side", ["prompt", EVIL], [SheetRow(EVIL, [image], EVIL)]),
            ImageSection(EVIL, image),
            FactsSection("Recipe", {EVIL: EVIL}, {EVIL: EVIL}),
        ],
    )


def test_a_page_needs_nothing_else_and_says_what_prompts_say_as_text():
    page = report().html()
    seen = Page(page)
    assert "script" not in seen.tags
    assert {link.partition(";")[0] for link in seen.links} == {"data:image/png"}
    assert "http" not in page.replace("http-equiv", "")
    assert "".join(seen.text).count(EVIL) >= 9
    assert "49" not in "".join(seen.text)
    for link in seen.links:
        assert Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))).size == (16, 16)


def test_a_runs_log_makes_a_chart_of_each_target_and_of_both_sides_of_the_game(short_run):
    charts = training_charts(short_run / "metrics.jsonl")
    assert [chart.title for chart in charts] == [
        "Distance to the teacher's position", "Distance to the relative position",
        "The student's adversarial loss", "The discriminators' loss",
    ]  # fmt: skip
    assert charts[0].names == ["slot 3", "slot 2", "slot 1", "slot 0"]
    assert sorted(charts[2].names) == ["absolute", "relative"]
    entries = [json.loads(line) for line in (short_run / "metrics.jsonl").read_text().splitlines()]
    drawn = points(ElementTree.fromstring(charts[0].svg).find("path"))
    assert len(drawn) == len(entries)


def test_what_was_not_finite_in_a_log_is_a_gap(tmp_path):
    """Such as of an update that was skipped; JSON has null there."""
    values = [1.0, None, 3.0, 4.0]
    slots = [{"n": 0, "distance": {"absolute": value}, "adversarial": {"absolute": value}} for value in values]
    lines = [json.dumps({"iteration": count, "slots": [slot]}) for count, slot in enumerate(slots)]
    (tmp_path / "log").write_text("\n".join(lines))
    for chart in training_charts(tmp_path / "log"):
        path = ElementTree.fromstring(chart.svg).find("path").get("d")
        assert (path.count("M"), path.count("L")) == (2, 1)
    nothing = [json.dumps({"iteration": k, "slots": [{"n": 0, "distance": {"absolute": None}}]}) for k in range(3)]
    (tmp_path / "log").write_text("\n".join(nothing))
    assert len(training_charts(tmp_path / "log")) == 1


@pytest.mark.parametrize("record", ["{", "[]", '{"seconds": 3}', '{"seconds": {"training": 1}}'])
def test_a_damaged_record_of_the_run_costs_no_page(tmp_path, record):
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "result.json").write_text(record)
    assert _spent(Run(tmp_path)) == ["", "", ""]


def test_a_log_that_is_missing_or_cut_off_makes_none(tmp_path):
    assert training_charts(tmp_path / "absent") == []
    (tmp_path / "log").write_text('{"iteration": 0, "slots": []}\n{"iterat')
    assert training_charts(tmp_path / "log") == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_demo_bases_page_opens_in_a_browser(short_run, small_demo, home, tmp_path, scheme):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no chromium")
    argv = [
        "eval",
        "--base",
        "demo",
        "--lora",
        str(short_run),
        "--samples",
        "8",
        "--split",
        "held-out",
        "--teacher-samples",
        "16",
    ]
    assert main([*argv, "--output", str(tmp_path / "out"), "--quiet"]) == 0
    page = tmp_path / "out" / "report.html"
    image = tmp_path / "seen.png"
    number = {"dark": 0, "light": 1}[scheme]
    subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,3000",
         f"--blink-settings=preferredColorScheme={number}",
         f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={image}", page.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    seen = np.asarray(Image.open(image).convert("RGB")).astype(int)
    assert (seen[5, 5] > 200).all() == (scheme == "light")  # the paper
    assert len({tuple(colour) for colour in seen[::7, ::7].reshape(-1, 3)}) > 1000  # images are there
