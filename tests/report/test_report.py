"""The report: self-contained, well formed, safe against hostile text, whole with whatever is missing."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnext_core.errors import DataError
from resnext_core.report import ReportData, Sample, charts, render_report, text, write_report
from resnext_core.report.charts import tag, ticks
from resnext_core.report.model import NextStep, RunFile
from resnext_core.report.series import MAX_POINTS, read_history, smooth, thin, time_slices
from resnext_core.runs.records import End, Eval, Note, Record, Resume, Saved, Start, from_dict
from resnext_core.serving.calibration import Calibration

VOID = {"meta", "img", "br"}
EVIL = '<script>alert("1")</script>\'"&{{ 7 * 7 }}'


class Page(HTMLParser):
    """The elements and texts of a page; raises where tags are not balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.html = html
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} repeats an attribute"
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] not in ("script", "style"):
            self.texts.append(" ".join(data.split()))

    def all(self, name: str, **attributes: str) -> list[dict[str, str]]:
        wanted = {k.rstrip("_"): v for k, v in attributes.items()}
        return [a for n, a in self.elements if n == name and wanted.items() <= a.items()]


def train(step: int, **changes: Any) -> Record:
    line = {
        "kind": "train", "step": step, "epoch": (step - 1) // 20, "loss": 2.5 / (1 + step / 50), "lr": 0.1,
        "images": 640, "seconds": 2.0, "wait_s": 0.5, "compute_s": 1.25, "images_per_s": 320.0,
        "overflow_steps": 0, "loss_scale": 1.0, "time": 1000.0 + step,
    }  # fmt: skip
    return from_dict(line | changes)


def evaluation_line(step: int, top1: float) -> Record:
    return Eval(
        step=step, epoch=step // 20, split="val", metrics={"top1": top1, "top5": min(1.0, top1 + 0.2)},
        expected=100, scored=100, failed=0, seconds=3.0, best=False,
    )  # fmt: skip


def records() -> list[Record]:
    lines: list[Record] = [Start(time=1000.0)]
    for step in range(10, 201, 10):
        lines.append(train(step))
        if step % 20 == 0:
            lines.append(evaluation_line(step, 0.5 + step / 500))
            lines.append(Saved(step=step, epoch=0, seconds=0.5, bytes=9, path="p"))
    return [*lines, End(step=200, seconds=299.0, time=1300.0)]


def full(**changes: Any) -> ReportData:
    confusion = np.array([[40, 9, 1], [2, 48, 0], [0, 0, 50]])
    parts: dict[str, Any] = {
        "title": "A run",
        "summary": {"parameters": 114_971_944, "macs": 2294e7, "backend": "reference", "note": "demo"},
        "records": records(),
        "evaluation": {
            "top1": 138 / 152, "top5": 150 / 152, "expected": 152, "scored": 150, "failed": 2,
            "failures": {"val/broken.jpg": "cut off"}, "dataset_digest": "sha256:" + "ab" * 32,
            "confusion": confusion, "classes": ["ant", "bee", "cat"],
        },
        "samples": [
            Sample(thumbnail=Image.new("RGB", (8, 8), "red"), true="ant", predicted="ant", probability=0.9),
            Sample(thumbnail=jpeg(300, 200), true="ant", predicted="bee", probability=0.6, path="val/x.jpg"),
        ],
        "config_yaml": "optimizer:\n  lr: 0.1\n",
        "environment": {"python": "3.11", "cpu": {"name": "some", "cores": 2}},
        "artefacts": [{"path": "m.onnx", "size": 460_000_000, "digest": "sha256:" + 64 * "c", "format": "o"}],
        "validations": [
            {
                "name": "m.onnx", "backend": "onnx", "source_backend": "reference", "digest": "sha256:1",
                "artefact": "/x/m.onnx", "same_weights": True, "nonfinite": 0, "images": 64, "passed": True,
                "max_abs_diff": 3.1e-6, "max_rel_diff": 4.2e-7, "tolerance": 1e-5, "top1_agreement": 1.0,
                "top1_artefact": 0.921, "top1_source": 0.922, "agreement_interval": [0.943, 1.0], "drop": 0.1,
                "drop_interval": [-0.2, 0.4], "max_drop": 0.5, "failures": [], "latency_source": {"image_p50": 20.04},
                "latency_artefact": {"image_p50": 12.34, "image_p99": 15.0},
            },
            {"name": "q.onnx", "backend": "onnx", "passed": False, "nonfinite": 3, "reason": "too far off"},
        ],
    }  # fmt: skip
    return ReportData(**(parts | changes))


def jpeg(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(buffer, "JPEG")
    return buffer.getvalue()


def test_whole_report(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, full())
    html = path.read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>")
    page = Page(html)
    shown = "\n".join(page.texts)
    for words in (
        "A run", "115 M", "114 971 944", "22.9 G", "90.79 %", "320", "5 min 0 s", "reference", "demo",
        "Loss", "Accuracy on val", "best top-1 90.00 %", "Learning rate", "Throughput",
        "waiting for data", "150", "152", "val/broken.jpg: cut off", "Confusion matrix", "80.0 %",
        "2 of 152 images could not be decoded",
        "1 of 2 validations failed", "✓ passed", "✗ failed", "reason: too far off", "absolute 3.1e-6",
        "460.0 MB",
        "cpu.cores", "is ant", "lr: 0.1", "4.2e-7", "allowed 1e-5", "12.3 / 15", "source 20 / –", "92.10 %",
        "against reference", "nonfinite: 3", "94.30 % to 100.00 %", "drop 0.1 points (-0.2 to 0.4), allowed 0.5",
    ):  # fmt: skip
        assert words in shown.replace("\u202f", " "), words
    assert "Confusion matrix of 3 classes, 138 of 150 right." in html
    assert "same weights" not in shown
    assert "failures" not in shown
    assert "nonfinite: 0" not in shown


def test_interval_is_wilsons_where_the_evaluation_gives_none() -> None:
    assert "95 % interval 85.13 to 94.43" in "\n".join(Page(render_report(full())).texts).replace(
        "\u202f", " "
    )
    given = full(evaluation={"top1": 0.5, "top1_interval": [0.4, 0.6]})
    assert "interval 40.00 to 60.00" in render_report(given)
    assert "interval" not in "".join(Page(render_report(full(evaluation={"top1": 0.5}))).texts[:9])


def test_nothing_is_loaded_from_anywhere() -> None:
    html = render_report(full())
    assert not re.search(r"https?:|[\"'(]//", html)
    page = Page(html)
    for _, attributes in page.elements:
        assert attributes.get("src", "data:image/").startswith("data:image/")
        assert attributes.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert "@import" not in html
    assert "url(" not in html
    assert not page.all("link")
    assert {a["id"] for a in page.all("section")} == {a["href"][1:] for a in page.all("a")}


def test_only_the_own_script_may_run() -> None:
    html = render_report(full())
    scripts = re.findall(r"<script>(.*?)</script>", html, re.S)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = next(a["content"] for _, a in Page(html).elements if "http-equiv" in a)
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_all_text_is_escaped() -> None:
    evil = full(
        title=EVIL,
        subtitle=EVIL,
        summary={"backend": EVIL, EVIL: EVIL, "device": EVIL},
        records=[*records(), from_dict({"kind": EVIL, "step": EVIL}), Note(text=EVIL)],
        evaluation={
            "top1": 0.5, "expected": 2, "scored": 2, "failed": 1, "failures": {EVIL: EVIL}, EVIL: EVIL,
            "confusion": [[1, 1], [1, 1]], "classes": [EVIL, "x" + EVIL],
        },
        samples=[Sample(thumbnail=jpeg(9, 9), true=EVIL, predicted="b" + EVIL, probability=0.5, path=EVIL)],
        config_yaml=EVIL,
        environment={EVIL: {EVIL: EVIL}},
        artefacts=[{"path": EVIL, "size": EVIL, "digest": EVIL, "format": EVIL}],
        validations=[{"name": EVIL, "backend": EVIL, "passed": True, EVIL: EVIL, "max_abs_diff": EVIL}],
    )  # fmt: skip
    html = render_report(evil)
    assert html.count("<script") == 1
    assert "alert(&#34;1&#34;)" in html
    assert "{{ 7 * 7 }}" in html  # text is never taken for template
    page = Page(html)
    # Names from data may stand in texts for people, never in an attribute that means something.
    for _, attributes in page.elements:
        hostile = {k for k, v in attributes.items() if "alert" in v}
        assert hostile <= {"alt", "title", "aria-label"}
    assert any(EVIL in a.get("alt", "") for a in page.all("img"))


@pytest.mark.parametrize(
    "changes",
    [
        {"records": []},
        {"records": [train(10)]},
        {"records": [train(0, loss=math.nan, lr=None, images_per_s="?", seconds=0)]},
        {
            "records": [
                from_dict(r) for r in ({"kind": "train"}, {}, {"kind": "eval", "step": 3}, {"kind": "resume"})
            ]
        },
        {
            "records": [
                train(k, loss=math.nan if k == 20 else math.inf if k == 30 else 1.0) for k in (10, 20, 30, 40)
            ]
        },
        {"records": [train(10, lr=0.0, loss=0.0), evaluation_line(10, math.nan), evaluation_line(20, 1.0)]},
        {"evaluation": {}},
        {"evaluation": {"top1": math.nan, "top5": None, "expected": 0, "scored": 0, "failed": 0}},
        {"evaluation": {"confusion": np.zeros((2, 2), int), "classes": ["a", "b"]}},
        {"evaluation": {"confusion": [[5]], "classes": ["only"]}},
        {"validations": [{}]},
        {"artefacts": [{}]},
        {
            "samples": [
                Sample(thumbnail=Image.new("L", (2, 2)), true="a", predicted="a", probability=math.nan)
            ]
        },
        {
            "samples": [
                Sample(thumbnail=Image.new("RGBA", (400, 2)), true="a", predicted="b", probability=2.0)
            ]
        },
        {"environment": {"none": None, "list": [1, 2], "yes": True}},
    ],
)
def test_missing_and_odd_parts(changes: dict[str, Any]) -> None:
    for data in (full(**changes), ReportData(title="t", **changes)):
        html = render_report(data)
        Page(html)
        for attributes in Page(html).all("polyline"):
            assert "nan" not in attributes["points"]
            assert "inf" not in attributes["points"]


def test_empty_report_has_no_sections() -> None:
    page = Page(render_report(ReportData(title="Nothing yet")))
    assert page.all("section") == []
    assert page.all("svg") == []
    assert "Nothing yet" in page.texts


def test_notes_tell_what_went_wrong() -> None:
    newer = from_dict({"kind": "weather", "step": 20})
    lines = [Start(time=1.0), train(10, loss=math.nan), train(20, overflow_steps=3), newer]
    notes = "\n".join(Page(render_report(ReportData(title="t", records=lines, samples_missing=2))).texts)
    assert "not a finite number in 1 of 2 training records" in notes
    assert "3 steps overflowed" in notes
    assert "interrupted or is still going" in notes
    assert "1 record is of kinds unknown to this version" in notes
    assert "2 sample images cannot be read any more" in notes
    assert "interrupted" not in render_report(full())


def test_charts_have_text_alternatives_and_tooltips() -> None:
    page = Page(render_report(full()))
    charts = page.all("svg")
    assert len(charts) == 6
    for attributes in charts:
        assert attributes["role"] == "img"
        assert len(attributes["aria-label"]) > 20
        width = float(attributes["viewbox"].split()[2])
        for x, words in json.loads(attributes.get("data-hover", "[]")):
            assert 0 <= x <= width
            assert words
    assert sum("data-hover" in a for a in charts) == 5
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(a["alt"] for a in page.all("img"))


def test_steps_are_counted_in_whole_numbers() -> None:
    """A run of three steps has no step 2.5 and no step 0.5."""
    for last in (1, 2, 3, 4, 7, 12, 2500):
        lines = [train(step, images_per_s=50.0 + step) for step in sorted({1, last})]
        page = Page(
            render_report(
                ReportData(title="t", records=[*lines, evaluation_line(1, 0.1), evaluation_line(last, 0.2)])
            )
        )
        assert page.all("svg")
        for label in re.findall(r'class="tick middle(?: minor)?"[^>]*>([^<]*)<', page.html):
            assert label.replace("\u202f", "").isdecimal(), label
    assert ticks(0, 3, whole=True) == [0, 1, 2, 3]
    assert ticks(0, 12, whole=True) == pytest.approx([0, 2, 4, 6, 8, 10, 12])
    assert ticks(0, 1, whole=True) == [0, 1]


def test_a_single_evaluation_is_a_number() -> None:
    data = ReportData(
        title="t", records=[Start(time=1.0), train(1), evaluation_line(1, 0.4), End(step=1, seconds=1.0)]
    )
    page = Page(render_report(data))
    assert page.all("svg") == []
    shown = "\n".join(page.texts).replace("\u202f", " ")
    assert "Accuracy on val\nstep 1 · epoch 0\ntop-1\n40.00 %\ntop-5\n60.00 %" in shown
    assert "Loss\ntraining\n2.4510" in shown


def test_validation_loss_is_a_curve_beside_that_of_training() -> None:
    lines = [train(step) for step in (10, 20, 30)]
    evals = [dataclasses.replace(evaluation_line(step, 0.5), loss=2.0 - step / 20) for step in (10, 20, 30)]
    page = Page(render_report(ReportData(title="t", records=[*lines, *evals])))
    loss = next(a for a in page.all("svg") if a["aria-label"].startswith("Loss over steps"))
    assert "validation 0.5000 at the end" in loss["aria-label"]
    assert "validation loss 1.0000" in json.loads(loss["data-hover"])[1][1]
    assert "validation, plain labels" in page.texts
    assert "validation, plain labels" not in Page(render_report(full())).texts, "older records have none"


def test_the_headline_names_its_split_and_its_bar_has_a_legend() -> None:
    evaluation = dict(full().evaluation) | {"split": "test"}
    page = Page(render_report(full(evaluation=evaluation)))
    at = page.texts.index("Top-1 accuracy")
    assert page.texts[at + 1] == "test"
    assert "Evaluation on test" in page.texts
    assert "Accuracy on val" in page.texts, "the curve is of another part"
    assert "up to the lower end of the interval" in page.texts
    assert "Top-5 accuracy" not in page.texts, "five guesses of three classes are always right"


def test_images_of_the_training_part_are_shown_and_tables_can_be_sorted() -> None:
    images = {"train": {"ant": 70, "bee": 1200, "cat": 5}, "val": {"ant": 50, "bee": 50, "cat": 52}}
    page = Page(render_report(full(images=images)))
    shown = "\n".join(page.texts).replace("\u202f", " ")
    assert "In training" in shown
    assert shown.index("\nbee\n1 200\n50\n") < shown.index("\nant\n70\n50\n") < shown.index("\ncat\n5\n52\n")
    assert {a["data-sort"] for a in page.all("table") if "data-sort" in a} == {
        "classes",
        "mistakes",
        "counts",
    }
    assert not page.all("button"), "they are made by the script: without it there is nothing to click in vain"


def test_files_and_next_steps_are_shown_as_they_are() -> None:
    steps = [NextStep(does="predict", command="resnext-run infer --weights '/r u n' a.jpg")]
    files = [RunFile(name="log.txt", holds="what was printed", link="./log.txt", size=1234)]
    artefacts = [{"path": "m.onnx", "size": 46e6, "digest": "d", "format": "o", "link": "./m.onnx"}]
    page = Page(render_report(full(steps=steps, files=files, artefacts=artefacts)))
    assert "resnext-run infer --weights '/r u n' a.jpg" in page.texts
    assert {"./log.txt", "./m.onnx"} <= {a["href"] for a in page.all("a")}
    assert "1.2 kB" in page.texts
    assert "46.0 MB" in page.texts


def test_many_classes_become_a_table_of_pairs() -> None:
    rng = np.random.default_rng(1)
    confusion = rng.integers(0, 5, (40, 40))
    confusion[7, 3] = 99
    names = [f"class-{k}" for k in range(40)]
    html = render_report(ReportData(title="t", evaluation={"confusion": confusion, "classes": names}))
    page = Page(html)
    assert page.all("svg") == []
    assert "The other 10 classes" in page.texts
    pairs = html[html.index("Most frequent mistakes") :]
    assert pairs.count("<tr>") == 1 + 25
    assert re.search(r"class-7</th>\s*<td>class-3</td>\s*<td class=\"num\">99<", pairs)


def test_a_thousand_classes_stay_readable() -> None:
    """The thirty with the lowest recall are shown, of equals the one with most images first; the others are folded."""
    confusion = np.diag(
        np.arange(1000)
    )  # a class has as many images as its number says, and all are right, ...
    confusion[500:, 0] = 1  # ... but for one of each large class
    support = confusion.sum(axis=1)
    support[7] += 7  # which could not be read
    names = [f"class-{k}" for k in range(1000)]
    evaluation = {"confusion": confusion, "classes": names, "support": support, "recall": [0.0] * 1000}
    html = render_report(ReportData(title="t", evaluation=evaluation))
    page = Page(html)
    assert "The other 970 classes" in page.texts
    rows = re.findall(
        r'<th scope="row">class-(\d+)</th>\s*<td class="rate">([^<]*)<.*?class="num">([^<]*)<', html
    )
    rates = [row for row in rows if row[1] != "–"][:3]
    assert rates == [("7", "50.0\u202f%", "14"), ("500", "99.8\u202f%", "501"), ("501", "99.8\u202f%", "502")]
    assert rows[999][0] == "0"  # without images, it has no recall
    assert len(html) < 500_000


def test_imbalanced_classes_are_pointed_out() -> None:
    def notes(*support: int) -> str:
        evaluation = {"confusion": np.diag(support), "classes": ["ant", "bee", "cat"], "support": support}
        return render_report(ReportData(title="t", evaluation=evaluation))

    assert "imbalanced" not in notes(50, 10, 0)
    said = "Classes are imbalanced: ant has 51 of the evaluated images, bee 10."
    assert said in notes(51, 10, 0)
    for setting in ("loss.class_weights", "loss.logit_adjustment", "data.balance", "train.best"):
        assert setting in notes(51, 10, 0)
    lacking = {"confusion": np.eye(3, dtype=int), "classes": ["a", "b", "c"], "support": [1, 2]}
    with pytest.raises(DataError, match="do not fit 3 class names"):
        render_report(ReportData(title="t", evaluation=lacking))


def test_confusion_must_fit_its_classes() -> None:
    with pytest.raises(DataError, match="does not fit 2 class names"):
        render_report(full(evaluation={"confusion": np.zeros((3, 3)), "classes": ["a", "b"]}))


def test_thumbnails() -> None:
    page = Page(render_report(full()))
    large, small = (io.BytesIO(base64.b64decode(a["src"].partition(",")[2])) for a in page.all("img"))
    assert Image.open(small).format == "PNG"  # tiny images keep every pixel
    assert Image.open(small).getpixel((3, 3)) == (255, 0, 0)
    assert Image.open(large).size == (192, 128)
    assert [a["class"] for a in page.all("li") if a.get("class") in ("right", "wrong")] == ["wrong", "right"]
    for broken in (b"no image", jpeg(50, 50)[:-200]):
        with pytest.raises(DataError, match=r"thumbnail of val/x\.jpg is not a readable image"):
            render_report(
                full(
                    samples=[
                        Sample(thumbnail=broken, true="a", predicted="a", probability=1, path="val/x.jpg")
                    ]
                )
            )


def test_report_of_a_long_run_stays_small() -> None:
    lines = [train(k * 20, loss=1 + math.sin(k)) for k in range(1, 9_000)]
    assert len(render_report(ReportData(title="t", records=lines))) < 400_000


def test_history_of_a_resumed_run() -> None:
    """What followed its checkpoint is not in its records any more, see RunFolder.rewind."""
    lines = [
        train(10),
        train(20),
        evaluation_line(20, 0.4),
        Resume(step=20),
        train(30),
        evaluation_line(40, 0.6),
    ]
    history = read_history(lines)
    assert [r.step for r in history.train] == [10, 20, 30]
    assert [r.metrics["top1"] for r in history.evals] == [0.4, 0.6]
    assert history.resumes == [20]
    assert (history.train_s, history.eval_s) == (6.0, 6.0)
    assert (history.wait_s, history.compute_s, history.other_s) == (1.5, 3.75, 0.75)
    assert history.images_per_s == 3 * 640 / 6.0


def test_smooth_is_centred_and_passes_over_nan() -> None:
    line = [float(k) for k in range(20)]
    assert smooth(line, 7) == pytest.approx(line)  # a straight line is not bent or shifted
    assert smooth([1.0, 3.0, math.nan, 5.0, 9.0], 3) == pytest.approx([1, 2, math.nan, 7, 9], nan_ok=True)
    assert smooth([], 5) == []


def test_thin_keeps_ends_and_extremes() -> None:
    x = [float(k) for k in range(5000)]
    y = [math.sin(k / 90) for k in range(5000)]
    y[1234], y[4321] = 50.0, -50.0
    tx, ty = thin(x, y)
    assert len(tx) <= MAX_POINTS + 2
    assert tx == sorted(tx)
    assert (tx[0], tx[-1]) == (0.0, 4999.0)
    assert (1234.0, 50.0) in zip(tx, ty, strict=True)
    assert (4321.0, -50.0) in zip(tx, ty, strict=True)


def test_time_slices_cover_the_run_and_sum_to_one() -> None:
    lines = [train(k * 10, wait_s=k / 100) for k in range(1, 131)]
    slices = time_slices(lines)
    assert len(slices) == 60
    assert slices[0].start == 0
    assert slices[-1].end == 1300
    for before, after in pairwise(slices):
        assert before.end == after.start
    for part in slices:
        assert part.wait + part.compute + part.other == pytest.approx(1)
    assert time_slices([]) == []


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0.3, 2.5, [0.5, 1, 1.5, 2, 2.5]), (0, 3740, [0, 1000, 2000, 3000]),
     (1, 1, []), (0, math.nan, [])],
)  # fmt: skip
def test_ticks(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_tag_escapes_everything_but_markup() -> None:
    inner = tag("b", "<&>")
    assert tag("a", inner, "<", class_='"x"', data_y=1.50) == (
        '<a class="&#34;x&#34;" data-y="1.5"><b>&lt;&amp;&gt;</b>&lt;</a>'
    )


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (text.percent(0.93421), "93.42 %"), (text.percent(math.nan), "–"), (text.percent(None), "–"),
        (text.count(49984), "49 984"), (text.short(114_971_944), "115 M"), (text.short(22.94e9), "22.9 G"),
        (text.short(999.7e3), "1 M"), (text.short(0), "0"), (text.steps(25.0), "25"), (text.steps(12_500), "12 500"),
        (text.steps(250_000), "250 k"), (text.tick(2.5), "2.5"), (text.tick(50), "50"), (text.tick(1250), "1.25 k"),
        (text.loss(1.35489), "1.3549"), (text.loss(1e-7), "1e-7"), (text.moment(1795837044.5), "2026-11-28 03:37 UTC"),
        (text.moment(1e12), "–"), (text.sig(3.14e-6, 3), "3.14e-6"),
        (text.sig(True), "–"), (text.size(459_887_776), "459.9 MB"), (text.size(2.5e9), "2.50 GB"),
        (text.size(12_345), "12.3 kB"), (text.size(12), "12 B"),
        (text.duration(8000), "2 h 13 min"), (text.duration(59.99), "1 min 0 s"),
        (text.duration(8.34), "8.3 s"),
        (text.duration(0.0124), "12 ms"), (text.fact([1, "a", None]), "1, a, –"),
    ],
)  # fmt: skip
def test_numbers_as_text(made: str, expected: str) -> None:
    assert made.replace("\u202f", " ") == expected


def theme(css: str, name: str) -> dict[str, tuple[float, ...]]:
    """Return the colours of a theme as sRGB 0..1; the dark one changes some of the light one's."""
    light, dark = (
        re.search(p, css, re.S) for p in (r":root \{(.*?)\n\}", r"dark\) \{\n  :root \{(.*?)\n  \}")
    )
    assert light
    assert dark
    text = light[1] + (dark[1] if name == "dark" else "")
    return {
        key: tuple(int(code[i : i + 2], 16) / 255 for i in (0, 2, 4))
        for key, code in re.findall(r"--([\w-]+): #([0-9a-f]{6});", text)
    }


def contrast(one: tuple[float, ...], two: tuple[float, ...]) -> float:
    """Return the contrast ratio of WCAG 2.2."""

    def luminance(colour: tuple[float, ...]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_text_has_contrast(name: str) -> None:
    css = (Path(charts.__file__).parent / "style.css").read_text(encoding="utf-8")
    colours = theme(css, name)
    for text_name in ("ink", "muted", "accent", "good", "bad"):
        for ground in ("page", "surface"):
            assert contrast(colours[text_name], colours[ground]) >= 4.5, (text_name, ground)
    assert contrast(colours["warn-ink"], colours["warn"]) >= 4.5
    for curve in ("c1", "c2", "c3"):
        assert contrast(colours[curve], colours["surface"]) >= 3, curve
    inks = {"ink": "ink", "ink-mid": "mid", "ink-over": "over"}
    for right, fill in ((True, "hit"), (False, "miss")):
        for step in range(101):
            strength = step / 100
            share = charts.cell_opacity(strength)
            cell = tuple(
                share * a + (1 - share) * b for a, b in zip(colours[fill], colours["empty"], strict=True)
            )
            ink = colours[inks[charts.ink_of(strength, right=right)]]
            assert contrast(ink, cell) >= 3.8, (fill, strength)


def calibration() -> dict[str, Any]:
    """Three bins in use: 10 images at about 0.5, 30 at about 0.9, 60 at about 0.98."""
    images, correct, confidence = np.zeros((3, 15))
    images[[7, 13, 14]] = 10, 30, 60
    correct[[7, 13, 14]] = 8, 15, 60
    confidence[[7, 13, 14]] = 5, 27, 58.8
    return Calibration(
        images=images, correct=correct, confidence=confidence, nll_sum=40, brier_sum=20
    ).to_dict()


def test_calibration_is_drawn() -> None:
    evaluation = dict(full().evaluation) | {"calibration": calibration()}
    page = Page(render_report(full(evaluation=evaluation)))
    shown = "\n".join(page.texts).replace("\u202f", " ")
    for words in ("Reliability", "ECE 16.20 %", "Confidence", "mean 90.8 %, right 83.0 %"):
        assert words in shown, words
    assert "calibration" not in shown.lower(), "its bins are no fact to be listed"
    diagram, histogram = (
        next(a for a in page.all("svg") if a["aria-label"].startswith(f"Share of {what} "))
        for what in ("right predictions", "images")
    )
    assert "expected calibration error 16.20" in diagram["aria-label"]
    tips = [words for _, words in json.loads(diagram["data-hover"])]
    assert len(tips) == 3
    assert tips == [words for _, words in json.loads(histogram["data-hover"])]
    assert "10 images\nright 80.0\u202f%\nmean confidence 50.0\u202f%" in tips[0]
    shares, gaps, spare = (page.all("rect", class_=name) for name in ("share", "gap", "spare"))
    assert (len(shares), len(gaps), len(spare)) == (6, 1, 2)
    height = [float(a["height"]) for a in shares]
    assert height[0] / height[2] == pytest.approx(0.8, abs=0.01), "right in bin 7 against all right in bin 14"
    assert float(gaps[0]["height"]) / height[2] == pytest.approx(0.4, abs=0.01), "0.9 and half of them right"
    assert float(spare[0]["height"]) / height[2] == pytest.approx(0.3, abs=0.01), "0.5 and 0.8 of them right"
    assert height[3] / height[5] == pytest.approx(10 / 60, abs=0.01)


@pytest.mark.parametrize("bins", [{}, {"images": [0, 0], "correct": [0, 0], "confidence": [0, 0]}])
def test_nothing_to_calibrate_is_not_drawn(bins: dict[str, Any]) -> None:
    evaluation = dict(full().evaluation) | {"calibration": {"ece": math.nan, "bins": bins}}
    assert "Reliability" not in Page(render_report(full(evaluation=evaluation))).texts


@pytest.mark.parametrize("found", [{"bins": {"images": [1]}}, {"bins": 3}, [1], {"bins": {"images": ["x"]}}])
def test_damaged_calibration_is_one_line(found: Any) -> None:
    evaluation = dict(full().evaluation) | {"calibration": found}
    with pytest.raises(DataError, match="calibration of the evaluation is damaged"):
        render_report(full(evaluation=evaluation))


def test_mistakes_come_first_and_link_to_their_files() -> None:
    samples = [
        Sample(
            thumbnail=jpeg(9, 9),
            true="ant",
            predicted="bee",
            probability=0.987,
            path="x.jpg",
            link="../d/x.jpg",
        ),
        Sample(thumbnail=jpeg(9, 9), true="bee", predicted="bee", probability=0.5),
        Sample(thumbnail=jpeg(9, 9), true="cat", predicted="ant", probability=0.6, path="s.tar/y.jpg"),
    ]
    page = Page(render_report(full(samples=samples)))
    shown = "\n".join(page.texts).replace("\u202f", " ")
    order = [
        shown.index(words) for words in ("Confident mistakes", "98.7 %", "60.0 %", "Right\n", "✓ bee\n50 %")
    ]
    assert order == sorted(order)
    assert [a["href"] for a in page.all("a") if not a["href"].startswith("#")] == ["../d/x.jpg"]
    assert "s.tar/y.jpg" in page.texts
