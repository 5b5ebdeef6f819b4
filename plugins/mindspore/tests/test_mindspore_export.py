"""MINDIR artefacts: what is written is what is served, and damage is noticed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from mindspore_cases import batches, relative, tiny_weights

from resnext_core.errors import DataError, UsageError
from resnext_core.interfaces import ExportRequest, Predictor, PredictRequest
from resnext_core.model.weights import parse_manifest, save_weights
from resnext_core.ranks.info import RankInfo

pytest.importorskip("mindspore.nn")
from resnext_mindspore.device import Device
from resnext_mindspore.exporters import export_mindir
from resnext_mindspore.predictor import create_predictor, in_batches, normalize

from resnext_core.model.sidecar import read_artefact, sidecar_path

WEIGHTS = tiny_weights(20, stem="imagenet", pool_padding="symmetric")
IMAGES = batches(1, 20, images=3)[0].images


def _serve(path: Path | None, batch_size: int = 32) -> Predictor:
    weights = WEIGHTS if path is None else None
    request = PredictRequest(path=path, weights=weights, batch_size=batch_size, rank=RankInfo())
    return create_predictor(request, Device())


@pytest.fixture(scope="module")
def source() -> np.ndarray:
    return _serve(None).logits(IMAGES)


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("a folder") / "any batch.mindir"
    export_mindir(WEIGHTS, path, ExportRequest())
    return path


def test_round_trip_takes_any_batch(artefact: Path, source: np.ndarray) -> None:
    served = _serve(artefact)
    for count in (3, 1):
        assert relative(served.logits(IMAGES[:count]), source[:count]) <= 1e-5
    assert artefact.stat().st_mode & 0o600 == 0o600
    manifest = parse_manifest(sidecar_path(artefact).read_text(), where="sidecar")
    assert manifest.spec == WEIGHTS.spec
    assert manifest.digest == WEIGHTS.digest
    with pytest.raises(UsageError, match="takes uint8 images and normalises them itself"):
        served.logits_from_tensor(normalize(IMAGES, WEIGHTS.preprocess))
    with pytest.raises(UsageError, match="20 x 20"):
        served.logits(np.zeros((1, 16, 16, 3), np.uint8))


def test_a_name_that_is_not_utf_8_is_served(artefact: Path, source: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.mindir")
    for ending in ("", ".json"):
        shutil.copyfile(f"{artefact}{ending}", f"{path}{ending}")
    np.testing.assert_array_equal(_serve(path).logits(IMAGES), _serve(artefact).logits(IMAGES))


def test_fixed_batch_of_floats(tmp_path: Path, source: np.ndarray) -> None:
    path = tmp_path / "float.mindir"
    export_mindir(WEIGHTS, path, ExportRequest(batch_size=2, input="float"))
    served = _serve(path)
    assert relative(served.logits(IMAGES), source) <= 1e-5
    assert relative(served.logits_from_tensor(normalize(IMAGES, WEIGHTS.preprocess)), source) <= 1e-5
    assert read_artefact(path)[1]["batch_size"] == 2


def test_damage_is_noticed(artefact: Path, tmp_path: Path) -> None:
    path = tmp_path / "copy.mindir"
    path.write_bytes(artefact.read_bytes())
    with pytest.raises(DataError, match=r"copy.mindir.json"):
        _serve(path)
    sidecar_path(path).write_text(sidecar_path(artefact).read_text())
    _serve(path).close()
    path.write_bytes(artefact.read_bytes()[:-1])
    with pytest.raises(DataError, match="damaged"):
        _serve(path)
    manifest = json.loads(sidecar_path(path).read_text())
    del manifest["artefact"]
    sidecar_path(path).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="section 'artefact'"):
        _serve(path)


def test_wrong_requests_write_nothing(tmp_path: Path) -> None:
    for name, request in (
        ("x.onnx", ExportRequest()),
        ("x.mindir", ExportRequest(input="jpeg")),
        ("x.mindir", ExportRequest(batch_size=0)),
    ):
        with pytest.raises(UsageError):
            export_mindir(WEIGHTS, tmp_path / name, request)
    assert not list(tmp_path.iterdir())


def test_weights_file_and_tensor_input(tmp_path: Path, source: np.ndarray) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(WEIGHTS, path)
    served = _serve(path, batch_size=2)
    np.testing.assert_allclose(served.logits(IMAGES), source, rtol=1e-5, atol=1e-6)
    tensor = normalize(IMAGES, WEIGHTS.preprocess)
    np.testing.assert_allclose(served.logits_from_tensor(tensor), source, rtol=1e-5, atol=1e-6)
    served.close()
    with pytest.raises(UsageError, match="closed"):
        served.logits(IMAGES)


def test_logits_do_not_depend_on_batch_mates(source: np.ndarray) -> None:
    served = _serve(None, batch_size=4)
    others = IMAGES.copy()
    others[1:] = 255 - others[1:]
    np.testing.assert_array_equal(served.logits(IMAGES)[0], served.logits(others)[0])
    assert relative(served.logits(IMAGES[:1]), source[:1]) <= 1e-6


def test_batches_are_padded_and_cut() -> None:
    seen = []

    def run(part: np.ndarray) -> np.ndarray:
        seen.append(part.shape)
        return part.sum(axis=1, keepdims=True)

    data = np.arange(14, dtype=np.float32).reshape(7, 2)
    np.testing.assert_array_equal(in_batches(data, 3, run), data.sum(axis=1, keepdims=True))
    assert seen == [(3, 2)] * 3


@pytest.mark.parametrize(
    "request_", [PredictRequest(rank=RankInfo()), PredictRequest(path=Path("a.om"), rank=RankInfo())]
)
def test_what_cannot_be_served_is_refused(request_: PredictRequest) -> None:
    with pytest.raises(UsageError):
        create_predictor(request_, Device())
