"""The whole job: train, evaluate, export, validate, report; with core alone, and with a plugin that exports."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import typing
from pathlib import Path

import pytest
from command_line import CommandLine, Outcome, in_process, write_plugin

from resnext_core.errors import EXIT_DATA, EXIT_USAGE
from resnext_core.interfaces import Backend
from resnext_core.model.weights import load_weights
from resnext_core.plugins import load_plugins, probe
from resnext_core.runs.folder import RunFolder

#: A format of its own: the neutral file under another name. CHANGE is what the exporter does to fc.bias.
TOY = """
import json
import numpy as np
from resnext_core.hookspecs import hookimpl
from resnext_core.interfaces import READY, Backend
from resnext_core.reference.predictor import ReferencePredictor
from resnext_core.model.weights import load_weights, save_weights

def export(weights, path, request):
    bias = weights.tensors["fc.bias"] + np.float32(CHANGE)
    save_weights(weights.replace(tensors={**weights.tensors, "fc.bias": bias}), path)
    path.with_name(path.name + ".json").write_text(json.dumps(weights.manifest()))

def predictor(request):
    w = load_weights(request.path)
    return ReferencePredictor(spec=w.spec, preprocess=w.preprocess, tensors=w.tensors)

@hookimpl
def resnext_backends():
    yield Backend(id="toy", summary="a toy", probe=lambda: READY, priority=-9, predictor=predictor,
                  formats=(".toy",), exporters={"toy": export})
"""


@pytest.fixture
def toy(site: Path, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line with a plugin that exports and serves ``.toy`` files."""
    return with_toy(site, capfd, "0")


def with_toy(site: Path, capfd: pytest.CaptureFixture[str], change: str) -> CommandLine:
    write_plugin(site, "toy", TOY.replace("CHANGE", change))
    importlib.invalidate_caches()
    return in_process(capfd)


def words(photos: Path, recipe: Path, output: Path) -> list[object]:
    return ["run", "--recipe", recipe, "--data", photos, "--output", output, "--name", "job"]


def test_the_whole_job_with_core_alone(cli: CommandLine, photos: Path, recipe: Path, tmp_path: Path) -> None:
    outcome = cli.ok(*words(photos, recipe, tmp_path), "--json")
    result = outcome.json()
    run = RunFolder.open(tmp_path / "job")
    assert result["run"] == str(run.path)
    assert (result["artefacts"], result["validations"]) == ([], [])
    weights = load_weights(Path(result["weights"]))
    assert result["digest"] == weights.digest
    assert result["evaluation"]["expected"] == result["evaluation"]["scored"] == 23
    assert result["evaluation"]["top1"] == result["evaluation"]["correct1"] / 23
    assert "val: top-1" in outcome.err, "lines for people go to standard error"
    report = (run.path / "report.html").read_text(encoding="utf-8")
    assert str(result["report"]) == str(run.report)
    assert report.lstrip().lower().startswith("<!doctype html>")
    for text in ("resnext_tiny", "reference", "ant", "fox"):
        assert text in report
    names = {p.name for p in run.path.iterdir()}
    assert names == {
        "config.yaml", "data.json", "run.json", "records.jsonl", "log.txt", "lock", "checkpoints", "evaluation.json",
        "artefacts.json", "validations.json", "report.html",
    }  # fmt: skip

    # what it says is what `eval` and a second `report` say
    again = cli.ok(
        "eval", "--weights", run.path, "--data", photos, "--set", "data.workers=0", "--json"
    ).json()
    assert again["confusion"] == run.read_result("evaluation")["confusion"]
    before = report
    assert cli.ok("report", run.path).out == f"{run.report}\n"
    assert (run.path / "report.html").read_text(encoding="utf-8") == before


def test_the_whole_job_with_an_exporter(toy: CommandLine, photos: Path, recipe: Path, tmp_path: Path) -> None:
    outcome = toy.ok(*words(photos, recipe, tmp_path), "--json")
    result = outcome.json()
    (artefact,), (validation,) = result["artefacts"], result["validations"]
    assert artefact["format"] == "toy"
    assert artefact["backend"] == "toy"
    assert artefact["difference"] <= 1e-6
    assert artefact["weights_digest"] == result["digest"]
    assert Path(artefact["path"]).stat().st_size == artefact["bytes"]
    assert validation["passed"] is True
    assert validation["same_weights"] is True
    assert (validation["images"], validation["disagreements"]) == (23, 0)
    assert (validation["artefact_backend"], validation["source_backend"]) == ("toy", "reference")
    assert "resnext_tiny.toy" in (tmp_path / "job" / "report.html").read_text(encoding="utf-8")


def test_one_json_document_also_from_two_processes(
    spawn: CommandLine, photos: Path, recipe: Path, tmp_path: Path
) -> None:
    write_plugin(tmp_path / "site", "toy", TOY.replace("CHANGE", "0"))
    job = words(photos, recipe, tmp_path)
    more = ["--set", "export.formats=[toy]", "--devices", 2, "--epochs", 1, "--json"]
    result = json.loads(spawn.ok("--backend", "reference", *job, *more).out)
    assert result["run"] == str(tmp_path / "job")
    assert [a["format"] for a in result["artefacts"]] == ["toy"]
    assert (tmp_path / "job" / "report.html").is_file()


def test_an_export_that_lies_is_not_kept(
    site: Path,
    capfd: pytest.CaptureFixture[str],
    photos: Path,
    recipe: Path,
    tmp_path: Path,
    finished_run: Path,
) -> None:
    cli = with_toy(site, capfd, "[0, 0, 1, 0, 0, 0]")
    target = tmp_path / "m.toy"
    says = ("m.toy disagrees with its source by", "it was not kept")
    outcome = cli.refuses(EXIT_DATA, "export", "--weights", finished_run, "--to", target, says=says)
    assert outcome.out == ""
    assert not [p for p in tmp_path.iterdir() if "toy" in p.name]
    target.write_text("an older artefact")
    cli.refuses(EXIT_DATA, "export", "--weights", finished_run, "--to", target, says=says)
    assert target.read_text() == "an older artefact"


def test_an_unknown_format_does_not_wait_for_the_training(
    toy: CommandLine, photos: Path, recipe: Path, tmp_path: Path
) -> None:
    says = "no installed backend exports 'tay'; did you mean 'toy'?"
    job = words(photos, recipe, tmp_path)
    toy.refuses(EXIT_USAGE, *job, "--set", "export.formats=[tay]", says=says)
    assert not (tmp_path / "job").exists()


def test_export_takes_the_format_from_the_name(toy: CommandLine, finished_run: Path, tmp_path: Path) -> None:
    out = toy.ok("export", "--weights", finished_run, "--to", tmp_path / "m.toy").out
    assert out.startswith(f"toy: {tmp_path / 'm.toy'} (0.4 MB, logits agree within 0.0e+00) sha256:")
    out = toy.ok("export", "--weights", finished_run, "--to", tmp_path / "folder").out
    assert (tmp_path / "folder" / "resnext_tiny.toy").is_file()
    says = "no installed backend exports 'tpy'"
    toy.refuses(EXIT_USAGE, "export", "--weights", finished_run, "--to", tmp_path / "m.tpy", says=says)


def artefact_of(toy: CommandLine, run: Path, folder: Path) -> Path:
    toy.ok("export", "--weights", run, "--to", folder / "m.toy")
    return folder / "m.toy"


def test_an_artefact_is_served_evaluated_and_validated(
    toy: CommandLine, finished_run: Path, photos: Path, tmp_path: Path
) -> None:
    artefact = artefact_of(toy, finished_run, tmp_path)
    common = ["--data", photos, "--set", "data.workers=0", "--json"]
    ours, theirs = (toy.ok("eval", "--weights", w, *common).json() for w in (artefact, finished_run))
    assert (ours["backend"], theirs["backend"]) == ("toy", "reference")
    assert ours["confusion"] == theirs["confusion"]
    assert ours["digest"] == theirs["digest"]
    validate = ["validate", "--artefact", artefact, "--weights", finished_run, *common]
    assert toy.ok(*validate).json()["passed"] is True


def test_validate_fails_on_an_artefact_of_something_else(
    toy: CommandLine, finished_run: Path, weights_file: Path, photos: Path, tmp_path: Path
) -> None:
    artefact = artefact_of(toy, finished_run, tmp_path)
    validate = ["validate", "--artefact", artefact, "--data", photos, "--set", "data.workers=0"]
    outcome = toy(*validate, "--weights", weights_file, "--json")
    assert outcome.code == EXIT_DATA
    assert "does not agree with" in outcome.err
    assert outcome.json()["passed"] is False
    assert outcome.json()["same_weights"] is False
    (tmp_path / "m.toy.json").unlink()
    says = "m.toy has no manifest: m.toy.json is missing beside it"
    toy.refuses(EXIT_DATA, *validate, "--weights", weights_file, says=says)
    (tmp_path / "m.toy.json").write_bytes(b"\xff\xfe")
    toy.refuses(EXIT_DATA, *validate, "--weights", weights_file, says="m.toy.json is not text")


def test_a_run_without_val_is_refused_before_training(
    cli: CommandLine, photos: Path, recipe: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(photos / "train", data / "train")
    outcome: Outcome = cli(*words(data, recipe, tmp_path))
    assert outcome.code == EXIT_USAGE
    assert "has no val or test part to evaluate on" in outcome.err
    assert not (tmp_path / "job").exists(), "no hour of training before such a line"


# -- every backend that trains -------------------------------------------------------------------


def _test_mode(backend: Backend) -> list[str]:
    """Return the words that let `backend` compute on any machine: ``device=cpu``, where it has such an option."""
    devices = typing.get_type_hints(backend.options).get("device") if backend.options else None
    return [f"--set={backend.id}.device=cpu"] if "cpu" in typing.get_args(devices) else []


def _exported(backend: Backend) -> set[str]:
    """Return the formats that a whole job can write: not those on request alone, which nothing here serves."""
    return set(backend.exporters) - set(backend.on_request)


@pytest.mark.parametrize("backend_id", sorted(b.id for b in load_plugins().backends.values() if b.engine))
def test_the_whole_job_on_every_backend_that_trains(
    spawn: CommandLine, photos: Path, recipe: Path, tmp_path: Path, backend_id: str
) -> None:
    """A process computes on one device: what exports, compares and validates must be the backend that trained.

    Formats are its own where it has some, else those of backends that only serve.
    """
    plugins = load_plugins()
    backend = plugins.get(backend_id)
    if not (here := probe(backend)).usable:
        pytest.skip(here.reason)
    others = [b for b in plugins.backends.values() if b.engine is None and probe(b).usable]
    formats = sorted(_exported(backend)) or sorted({name for b in others for name in _exported(b)})
    words = ["--backend", backend_id, "run", "--recipe", recipe, "--data", photos, "--name", "job", "--json"]
    words += ["--epochs", 1, "--set", f"export.formats=[{','.join(formats)}]", *_test_mode(backend)]
    result = spawn.ok(*words).json()
    assert result["backend"] == backend_id
    assert result["evaluation"]["scored"] == 23
    assert sorted(a["format"] for a in result["artefacts"]) == formats
    for artefact, validation in zip(result["artefacts"], result["validations"], strict=True):
        assert artefact["difference"] <= 1e-4
        assert validation["passed"] is True
        assert validation["images"] == 23
        assert validation["source_backend"] == backend_id
        if backend.exporters:
            assert (artefact["backend"], validation["artefact_backend"]) == (backend_id, backend_id)


# -- ways on -------------------------------------------------------------------------------------


def test_a_run_knows_its_own_data(
    toy: CommandLine, photos: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(finished_run, tmp_path / "run")
    artefact = artefact_of(toy, run, run)
    expected = toy.ok("eval", "--weights", run, "--data", photos, "--json").json()
    said = f"data: {photos}, from run; use --data for other data"
    checkpoint = run / "checkpoints" / "step-00000012"
    for model in (run, checkpoint, checkpoint / "weights.safetensors", artefact):
        outcome = toy.ok("eval", "--weights", model, "--json")
        assert outcome.err.splitlines()[0] == said, model
        result = outcome.json()
        assert (result["confusion"], result["expected"]) == (expected["confusion"], 23)
    outcome = toy.ok("validate", "--artefact", artefact, "--weights", run, "--json")
    assert outcome.err.splitlines()[0] == said
    assert (outcome.json()["images"], outcome.json()["passed"]) == (23, True)

    # what is given goes before what is stored, and a file that lies in no run has no data
    assert said not in toy.ok("eval", "--weights", run, "--data", photos).err
    lone = shutil.copy(
        run / "checkpoints" / "step-00000012" / "weights.safetensors", tmp_path / "w.safetensors"
    )
    toy.refuses(EXIT_USAGE, "eval", "--weights", lone, says=("no data given", "or give a run as --weights"))


def test_a_test_part_without_labels_is_passed_over_by_eval_too(
    cli: CommandLine, photos: Path, finished_run: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(photos, tmp_path / "data")
    shutil.copytree(photos / "val" / "ant", data / "test")
    outcome = cli.ok("eval", "--weights", finished_run, "--data", data, "--json")
    assert outcome.json()["expected"] == 23
    assert f"{data / 'test'} has no labels: taking val" in outcome.err
    says = ("has no labels to evaluate against", "put its images into class folders")
    cli.refuses(EXIT_USAGE, "eval", "--weights", finished_run, "--data", data, "--split", "test", says=says)


def test_demo_data_is_announced_once_it_is_there(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # as if it were not installed
    outcome = cli.refuses(EXIT_USAGE, "run", says="pip install 'resnext-core[demo]', or give --data DIR")
    assert outcome.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["infer", "x.jpg", "--weights", "runs/nine"], "no model at runs/nine; did you mean 'mine'?"),
        (
            ["infer", "x.jpg", "--weights", "runs/x"],
            "no model at runs/x; known: mine, ours; or give a weights",
        ),
        (["infer", "x.jpg", "--weights", "runs"], "name one of its runs: mine, ours"),
        (["infer", "x.jpg", "--weights", "nowhere/x"], "'resnext-run train' and 'resnext-run run' make one"),
        (["eval", "--weights", "runs/x"], "no model at runs/x; known: mine, ours"),
        (
            ["runs", "show", "runs/nine"],
            "runs/nine is not a run folder (it does not exist); did you mean 'mine'?",
        ),
        (["report", "runs"], "is not a run folder (it has no config.yaml); name one of its runs: mine, ours"),
        (
            ["train", "--resume", "runs/x"],
            "runs/x is not a run folder (it does not exist); known: mine, ours",
        ),
        (["train", "--resume", "--output", "empty"], "no run folder in empty; name the run"),
        (["eval", "--weights", "runs/ours"], "continue with 'resnext-run train --resume runs/ours'"),
    ],
)
def test_a_model_or_run_that_is_not_there_names_a_way_on(
    cli: CommandLine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "ours"):
        (tmp_path / "runs" / name / "checkpoints").mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").touch()
    cli.refuses(EXIT_DATA, *words, says=says)


@pytest.mark.parametrize("command", ["infer", "data scan", "convert"])
def test_an_output_that_cannot_be_written_is_known_before_the_work(
    cli: CommandLine, photos: Path, finished_run: Path, tmp_path: Path, command: str
) -> None:
    """Nothing is computed, and nothing printed or written, for a file that could not be kept in the end."""
    (tmp_path / "file").touch()
    words = {
        "infer": ["infer", "--weights", finished_run, photos / "val" / "ant", "--logits"],
        "data scan": ["data", "scan", photos, "--cache", tmp_path / "cache", "--list"],
        "convert": ["convert", finished_run, tmp_path / "w.safetensors", "--report"],
    }[command]
    for target in (tmp_path / "file" / "x", tmp_path, Path("/proc/nowhere/x")):
        assert cli.refuses(EXIT_DATA, *words, target, says=f"cannot write {target}").out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
