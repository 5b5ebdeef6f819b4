"""Names that are not UTF-8, hold terminal escapes or line ends go through the whole job and come back as they were."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from command_line import CommandLine

from resnext_core.model.weights import load_weights
from resnext_core.runs.folder import RunFolder
from resnext_core.serving.load import find_model
from resnext_core.terminal import printable

#: Class folders of the data, and how they are shown.
ODD = {os.fsdecode(b"caf\xe9"): r"caf\xe9", "b\x1b[31mred\nline": r"b\x1b[31mred\nline"}
FILE = os.fsdecode(b"x\xff")
DATA, RUN = os.fsdecode(b"n\xe4u"), os.fsdecode(b"r\xe4n")


@pytest.fixture
def data(photos: Path, tmp_path: Path) -> Path:
    """Two classes of `photos` under odd names, with a file in val that is no image."""
    root = tmp_path / DATA
    for part in ("train", "val"):
        for name, original in zip(ODD, ("ant", "bee"), strict=True):
            (root / part / name).mkdir(parents=True)
            for i, image in enumerate(sorted((photos / part / original).iterdir())):
                shutil.copy(image, root / part / name / f"{FILE}{i}{image.suffix}")
        (root / part / name / f"{FILE}bad.png").write_bytes(b"no image")
    return root


def test_odd_names_go_through_the_whole_job(
    cli: CommandLine, data: Path, recipe: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    job = ["run", "--recipe", recipe, "--data", data, "--epochs", 1, "--output", runs, "--name", RUN]
    texts = [cli.ok(*job).out]
    run = RunFolder(runs / RUN)

    assert yaml.safe_load(run.config.read_text(encoding="utf-8"))["data"]["dir"] == str(data)
    assert sorted(load_weights(find_model(run.path)).classes) == sorted(ODD)
    evaluation = run.read_result("evaluation")
    assert evaluation["failed"] == 1
    assert list(evaluation["failures"]) == [str(data / "val" / list(ODD)[-1] / f"{FILE}bad.png")]
    for path in (run.path / "log.txt", run.report, run.records):
        path.read_bytes().decode("utf-8")
    page = run.report.read_text(encoding="utf-8")
    for shown in ODD.values():
        assert shown.split(r"\n")[0] in page  # a line end is a space in HTML

    texts += [cli.ok("report", run.path).out, cli.ok("runs", "list", runs).out]
    texts += [cli.ok("runs", action, run.path).out for action in ("show", "verify")]
    texts += [cli.ok("data", "info", data).out, cli("data", "scan", data, "--no-cache", "--workers", "1").out]
    texts += [cli.ok("eval", "--weights", run.path, "--data", data, "--set", "data.workers=0").out]
    for text in texts:
        assert printable(text) == text
        text.encode()
    image = next(p for p in (data / "val" / next(iter(ODD))).iterdir())
    answer = json.loads(cli.ok("infer", "--weights", run.path, image, "--set", "data.workers=0").out)
    assert answer["path"] == str(image)
    assert {top["name"] for top in answer["top"]} == set(ODD)


def test_a_list_of_odd_names_is_read_back(cli: CommandLine, data: Path, tmp_path: Path) -> None:
    """The list of `data scan` holds the bytes of a name, and a training that is given it tries none of them."""
    shutil.rmtree(data / "train" / list(ODD)[1])  # a line end in a name cannot stand in a list of lines
    shutil.rmtree(data / "val" / list(ODD)[1])
    name = next(iter(ODD))
    for part in ("train", "val"):
        (data / part / name / f"{FILE}bad.png").write_bytes(b"no image")
    listed = tmp_path / "bad.txt"
    cli("data", "scan", data, "--no-cache", "--workers", "1", "--list", listed)
    assert sorted(listed.read_bytes().splitlines()[1:]) == [
        os.fsencode(f"{part}/{name}/{FILE}bad.png") for part in ("train", "val")
    ]
    from resnext_core.data.quarantine import read_list

    assert sorted(read_list(listed)) == [f"{part}/{name}/{FILE}bad.png" for part in ("train", "val")]
