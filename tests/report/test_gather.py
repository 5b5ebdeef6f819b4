"""From a run folder to its report: what a training alone leaves, and links to the files."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest
from command_line import CLASSES, TRAIN, VAL, CommandLine

from resnext_core.errors import EXIT_UNAVAILABLE
from resnext_core.report.gather import _link, gather, make_comparison, make_report
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.pointers import best_weights
from resnext_core.serving.gallery import MISTAKES


def test_a_training_alone_has_its_best_evaluation_in_the_report(
    cli: CommandLine, recipe: Path, photos: Path, tmp_path: Path
) -> None:
    run = tmp_path / "r"
    cli.ok("train", "--recipe", recipe, "--data", photos, "--output", tmp_path, "--name", "r")
    found = RunFolder(run).read_result("evaluation")
    best = [r for r in RunFolder(run).read_records() if getattr(r, "best", False)][-1]
    assert found["top1"] == best.metrics["top1"]
    assert sum(map(sum, found["confusion"])) == 23
    again = cli.ok("eval", "--weights", run, "--json").json()
    assert again["confusion"] == found["confusion"]
    assert again["calibration"]["bins"]["images"] == found["calibration"]["bins"]["images"]
    cli.ok("report", run)
    html = (run / "report.html").read_text()
    assert "Confident mistakes" in html
    assert "Reliability" in html
    links = re.findall(r'href="([^"#][^"]*)"', html)
    wrong = [sample for sample in found["samples"] if sample["true"] != sample["predicted"]]
    assert 0 < len(wrong) == min(23 - found["correct1"], MISTAKES)
    samples = {Path(sample["path"]).resolve() for sample in found["samples"]}
    linked = {(run / unquote(link)).resolve() for link in links}
    assert samples < linked, "every sample that is a file can be opened"
    others = {str(path.relative_to(run)) for path in linked - samples}
    weights = str(best_weights(run / "checkpoints").relative_to(run))
    assert others == {"config.yaml", "records.jsonl", "log.txt", weights}
    assert RunFolder(run).read_result("data") == {
        "classes": list(CLASSES), "parts": {"train": list(TRAIN), "val": list(VAL)},
    }  # fmt: skip
    for name, images in zip(CLASSES, TRAIN, strict=True):
        assert re.search(rf'<th scope="row">{name}</th><td class="rate">{images}<', html)
    assert f"resnext-run infer --weights {run} {found['samples'][0]['path']}" in html
    assert f"resnext-run export --weights {run} --to artefacts" in html
    assert "--resume" not in html[html.index('id="next"') : html.index('id="setup"')]
    assert [s["probability"] for s in wrong] == sorted((s["probability"] for s in wrong), reverse=True)


def test_links_are_relative_and_never_anything_else(tmp_path: Path) -> None:
    odd = tmp_path / "javascript:alert(1) %41?#'\".jpg"
    odd.write_bytes(b"")
    link = _link(str(odd), tmp_path)
    assert link.startswith("./javascript%3Aalert")
    assert not set(link) & set(":?#'\" ")
    assert unquote(link) == f"./{odd.name}"
    (tmp_path / "run").mkdir()
    assert _link(str(odd), tmp_path / "run").startswith("../javascript%3A")
    assert _link("s3://bucket/a.jpg", tmp_path) == ""
    assert _link(str(tmp_path / "shard.tar" / "a.jpg"), tmp_path) == ""


def test_the_commands_of_a_report_work_as_they_stand(
    cli: CommandLine, recipe: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another folder, of a run whose path needs quotes; one that was interrupted can be resumed."""
    output = tmp_path / "my runs"
    words = ("train", "--recipe", recipe, "--data", photos, "--output", output, "--epochs", 1)
    for name in ("one", "two"):
        cli.ok(*words, "--name", name)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run = RunFolder(output / "two")
    steps = {step.command.split()[1]: step.command for step in gather(run).steps}
    assert list(steps) == ["infer", "eval", "data", "export", "report"]
    for command in steps.values():
        assert str(photos) in command or shlex.quote(str(run.path)) in command
        outcome = cli(*shlex.split(command)[1:])
        # core alone writes no artefact
        assert outcome.code == (EXIT_UNAVAILABLE if " export " in command else 0), outcome
    assert (run.path / "compare-one.html").is_file()
    lines = run.records.read_text().splitlines(keepends=True)
    run.records.write_text("".join(lines[:-1]))  # without its end
    assert gather(run).steps[0].command == shlex.join(["resnext-run", "train", "--resume", str(run.path)])


def test_a_run_of_an_earlier_version_shows_its_best_evaluation(finished_run: Path, tmp_path: Path) -> None:
    run = RunFolder(Path(shutil.copytree(finished_run, tmp_path / "run")))
    best = [r for r in run.read_records() if getattr(r, "best", False)][-1]
    for name in ("evaluation.json", "data.json"):
        (run.path / name).unlink()
    data = gather(run)
    assert data.evaluation["top1"] == best.metrics["top1"]
    assert (data.evaluation["split"], data.images, data.samples) == ("val", {}, [])


def test_artefacts_are_linked_wherever_the_run_folder_lies(finished_run: Path, tmp_path: Path) -> None:
    """They were written by a path that another folder, or another machine, does not have."""
    run = RunFolder(Path(shutil.copytree(finished_run, tmp_path / "moved")))
    (run.path / "m.npz").write_bytes(b"x" * 9)
    about = {"format": "npz", "bytes": 9, "digest": "sha256:1"}
    run.write_result("artefacts", [{**about, "path": f"runs/old/{name}"} for name in ("m.npz", "gone.npz")])
    here, gone = gather(run).artefacts
    assert (here["path"], here["link"], here["size"]) == ("m.npz", "./m.npz", 9)
    assert (gone["path"], gone["link"]) == ("gone.npz", "")
    assert shlex.join(["eval", "--weights", str(run.path / "m.npz")]) in " ".join(
        s.command for s in gather(run).steps
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((name, "3") for name in ("run", "evaluation", "artefacts", "validations", "data")),
        ("evaluation", "[1, 2]"), ("artefacts", "[1, null]"), ("evaluation", '{"top1": 0.5, "top1_interval": 5}'),
        ("evaluation", '{"top1": 0.5, "samples": {"a": 1}}'), ("evaluation", "{"),
    ],
)  # fmt: skip
def test_a_damaged_result_is_as_if_it_were_not_there(
    name: str, content: str, finished_run: Path, tmp_path: Path
) -> None:
    for copy in ("one", "two"):
        shutil.copytree(finished_run, tmp_path / copy)
    (tmp_path / "two" / f"{name}.json").write_text(content)
    run = RunFolder(tmp_path / "two")
    assert make_report(run).is_file()
    assert make_comparison(RunFolder(tmp_path / "one"), run).is_file()
