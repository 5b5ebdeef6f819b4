"""Two runs side by side: the numbers of both, what differs, and nothing else."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import CommandLine
from test_report import EVIL, Page, full, records, train

from resnext_core.errors import EXIT_DATA, EXIT_USAGE, DataError
from resnext_core.report.compare import Compared, difference_interval, render_comparison
from resnext_core.report.gather import make_comparison
from resnext_core.runs.folder import RunFolder
from resnext_core.serving.metrics import wilson_interval


def compared(name: str, settings: dict[str, Any], **changes: Any) -> Compared:
    return Compared(name=name, data=full(**changes), settings=settings)


def lines(page: Page) -> str:
    return "\n".join(page.texts).replace("\u202f", " ").replace("\u2212", "-")


def test_the_interval_of_a_difference_is_newcombes() -> None:
    """Newcombe 1998, table II, method 10: 56/70 - 48/80 has 0.0524 to 0.3339, 9/10 - 3/10 0.1705 to 0.8090."""
    for (a, m), (b, n), expected in (
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.1705, 0.8090)),
        ((10, 10), (0, 20), (0.6791, 1.0000)),
    ):
        found = difference_interval(b / n, wilson_interval(b, n), a / m, wilson_interval(a, m))
        assert found == pytest.approx(expected, abs=1e-4)


def test_what_differs_is_shown_and_what_does_not_is_not() -> None:
    one = {"optimizer": {"lr": 0.1, "kind": "sgd"}, "output": {"name": "a", "dir": "x"}, "only": 1}
    two = {"optimizer": {"lr": 0.2, "kind": "sgd"}, "output": {"name": "b", "dir": "y"}}
    evaluation = dict(full().evaluation) | {"dataset_digest": "sha256:1", "split": "val"}
    better = evaluation | {"top1": 150 / 152, "recall": [1.0, 0.9, 1.0], "support": [50, 50, 50]}
    evaluation |= {"recall": [0.8, 0.96, 1.0], "support": [50, 50, 50], "classes": ["ant", "bee", "cat"]}
    page = Page(render_comparison(
        compared("a", one, evaluation=evaluation),
        compared("b", two, evaluation=better, records=[*records(), train(210)]),
    ))  # fmt: skip
    said = lines(page)
    assert "optimizer.lr\n0.1\n0.2" in said
    assert "only\n1\n–" in said
    for equal in ("optimizer.kind", "output.name", "output.dir"):
        assert equal not in said
    assert "Top-1 accuracy\n90.79 %\n85.13 to 94.43\n98.68 %\n95.33 to 99.64\n+7.89 (+2.94 to +13.63)" in said
    assert "Steps\n200\n210" in said
    assert said.index("\nant\n80.0 %\n100.0 %\n+20.00") < said.index("\nbee\n96.0 %\n90.0 %\n-6.00")
    loss = next(a for a in page.all("svg") if a["aria-label"].startswith("Training loss"))
    assert "\na " in json.loads(loss["data-hover"])[0][1]
    assert "\nb " in json.loads(loss["data-hover"])[0][1]
    assert len(page.all("polyline", class_="line-1")) == len(page.all("polyline", class_="line-2")) >= 3
    assert "different images" not in said


def test_scores_of_different_images_are_no_comparison() -> None:
    one, two = (
        dict(full().evaluation) | {"dataset_digest": f"sha256:{k}", "split": s}
        for k, s in ((1, "val"), (2, "test"))
    )
    page = Page(render_comparison(compared("a", {}, evaluation=one), compared("b", {}, evaluation=two)))
    assert "different images (val and test)" in lines(page)
    assert "different classes" not in lines(page)
    assert not page.all("td", class_="num pass")
    assert "None: the two runs have the same settings." in lines(page)


def test_runs_of_different_classes_say_so_and_show_no_recall() -> None:
    evaluation = dict(full().evaluation) | {"recall": [0.5, 0.5, 0.5]}
    two = {"top1": 0.5, "classes": ["ant", "bee"], "recall": [0.5, 0.5]}
    said = lines(
        Page(render_comparison(compared("a", {}, evaluation=evaluation), compared("b", {}, evaluation=two)))
    )
    assert "different classes (3 and 2)" in said
    assert "Recall of each class" not in said
    assert "Images\n150 of 152\n" in said
    assert "– of –" not in said, "of the run that does not say it"


@pytest.mark.parametrize("evaluation", [{}, {"top1": math.nan}, {"top1": 0.5, "calibration": {"nll": None}}])
def test_a_run_that_lacks_something_is_compared_too(evaluation: dict[str, Any]) -> None:
    for records_ in ([], records()):
        Page(render_comparison(compared("a", {}, evaluation=evaluation, records=records_), compared("b", {})))


def test_hostile_names_stay_text() -> None:
    html = render_comparison(compared(EVIL, {EVIL: EVIL}), compared("b" + EVIL, {}))
    assert html.count("<script") == 1
    for _, attributes in Page(html).elements:
        assert {k for k, v in attributes.items() if "alert" in v} <= {
            "alt",
            "title",
            "aria-label",
            "data-hover",
        }


def test_numbers_of_images_that_do_not_fit_the_classes_are_named() -> None:
    evaluation = dict(full().evaluation) | {"recall": [0.5, 0.5, 0.5], "support": [1, 2]}
    with pytest.raises(DataError, match="do not fit 3 class names"):
        render_comparison(compared("a", {}, evaluation=evaluation), compared("b", {}, evaluation=evaluation))


def test_a_setting_that_an_earlier_version_did_not_have_is_the_default(
    finished_run: Path, tmp_path: Path
) -> None:
    for name in ("x/runs/one", "y/runs/one"):
        shutil.copytree(finished_run, tmp_path / name)
    config = tmp_path / "y/runs/one/config.yaml"
    values = yaml.safe_load(config.read_text())
    assert "mix" in values
    assert "stage_lr" in values["optimizer"]
    del values["mix"], values["optimizer"]["stage_lr"]
    values["optimizer"]["lr"] = 0.25
    config.write_text(yaml.safe_dump(values))
    page = make_comparison(RunFolder(tmp_path / "x/runs/one"), RunFolder(tmp_path / "y/runs/one"))
    said = lines(Page(page.read_text()))
    assert "optimizer.lr\n" in said
    assert "mix." not in said
    assert "stage_lr" not in said
    assert "x/runs/one and y/runs/one" in said, "names that tell them apart"


def test_the_command(
    cli: CommandLine, finished_run: Path, photos: Path, recipe: Path, tmp_path: Path
) -> None:
    words = ("train", "--recipe", recipe, "--data", photos, "--output", tmp_path, "--epochs", 1)
    cli.ok(*words, "--name", "one")
    cli.ok(*words, "--name", "two", "--set", "optimizer.lr=0.025")
    path = tmp_path / "one" / "compare-two.html"
    assert cli.ok("report", tmp_path / "one", tmp_path / "two", "--json").json() == {"report": str(path)}
    said = lines(Page(path.read_text()))
    assert "optimizer.lr\n0.05\n0.025" in said
    assert "different images" not in said
    out = tmp_path / "other.html"
    assert cli.ok("report", tmp_path / "one", tmp_path / "two", "--out", out).out == f"{out}\n"
    cli.ok("report", tmp_path / "one", "--out", tmp_path / "a.html")
    assert 'href="./one/config.yaml"' in (tmp_path / "a.html").read_text(), "links are relative to the page"
    cli.refuses(EXIT_USAGE, "report", tmp_path / "one", tmp_path / "one", says="the same run twice")
    cli.refuses(EXIT_DATA, "report", tmp_path / "one", tmp_path / "none", says="it does not exist")
