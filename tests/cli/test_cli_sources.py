"""Commands on shards and packed files do what they do on folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import CommandLine
from source_data import write_tar

import resnext_core as rx
from resnext_core.data.index import open_index
from resnext_core.data.packing import pack
from resnext_core.errors import EXIT_OK, DataError
from resnext_core.model.weights import load_weights
from resnext_core.report.gather import gather as gathered
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.pointers import best_weights


@pytest.fixture
def stored(photos: Path, tmp_path: Path) -> Path:
    """The data set `photos` with its training images in shards and the others in packed files."""
    root = tmp_path / "stored"
    train = open_index(photos / "train")
    names = list(train.paths)
    for k in range(3):
        part = names[16 * k : 16 * (k + 1)]
        write_tar(root / f"train-{k}.tar", [(name, (photos / "train" / name).read_bytes()) for name in part])
    assert pack(open_index(photos / "val"), root / "val.pack", None, workers=1) is not None
    return root


def test_a_job_on_shards_is_the_job_on_folders(
    cli: CommandLine, photos: Path, stored: Path, recipe: Path, tmp_path: Path
) -> None:
    """The same weights and figures, and the same pictures in the report."""
    results, digests = {}, {}
    for data in (photos, stored):
        name = data.name
        outcome = cli(
            "--backend", "reference", "run", "--recipe", recipe, "--data", data,
            "--output", tmp_path / "runs", "--name", name,
        )  # fmt: skip
        assert outcome.code == EXIT_OK, outcome
        result = json.loads(next((tmp_path / "runs" / name).rglob("evaluation.json")).read_text())
        keys = ("expected", "scored", "correct1", "correct5", "confusion", "dataset_digest")
        results[data] = {key: result[key] for key in keys}
        digests[data] = load_weights(best_weights(RunFolder(tmp_path / "runs" / name).checkpoints)).digest
        assert gathered(RunFolder(tmp_path / "runs" / name)).samples_missing == 0
    assert results[photos] == results[stored]
    assert digests[photos] == digests[stored]


def test_predictions_of_what_is_in_archives(
    cli: CommandLine, photos: Path, stored: Path, weights_file: Path
) -> None:
    images = [photos / "val" / name for name in open_index(photos / "val").paths]
    given = (images[0], stored / "val.pack", images[1], stored / "train-1.tar")
    outcome = cli("--backend", "reference", "infer", "--weights", weights_file, *given)
    assert outcome.code == EXIT_OK, outcome
    found = [json.loads(line) for line in outcome.out.splitlines() if '"path"' in line]
    by_path = {value["path"]: value for value in found}
    assert len(found) == 2 + 23 + 16
    for image in images[:2]:
        inside = str(stored / "val.pack" / image.relative_to(photos / "val"))
        assert by_path[inside]["top"] == by_path[str(image)]["top"]
    with rx.load(weights_file, backend="reference") as model:
        packed, folder = model.predict(stored / "val.pack"), model.predict(photos / "val")
        assert [p.top for p in packed] == [p.top for p in folder]
        assert packed[0].path == str(stored / "val.pack" / images[0].relative_to(photos / "val"))
        whole = (stored / "val.pack").read_bytes()
        bad = stored / "bad.tar"
        write_tar(bad, [("ant/1.jpg", b"no image"), ("ant/2.jpg", images[0].read_bytes())])
        first, second = model.predict(bad, errors="report")
        assert (first.error is None, second.error is None) == (False, True)
        with pytest.raises(DataError, match=r"bad.tar/ant/1.jpg: not an image of a known format"):
            model.predict(bad)
        (stored / "val.pack").unlink()
        (stored / "val.pack").write_bytes(whole[:-1])
        with pytest.raises(DataError, match="is cut short"):
            model.predict(stored / "val.pack")
