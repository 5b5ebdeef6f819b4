"""What only this backend does: folding, chunks, and its artefact."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("resnext_example.plugin", reason="install it first: pip install ./plugins/example")

from resnext_example.artefact import export_npz, read_npz
from resnext_example.network import constants
from resnext_example.plugin import ExampleOptions
from resnext_example.predictor import ExamplePredictor, create_predictor

from resnext_core.cli.main import main
from resnext_core.config import load_config, parse_set
from resnext_core.errors import DataError, UsageError
from resnext_core.interfaces import ExportRequest, PredictRequest
from resnext_core.ranks.info import RankInfo
from resnext_core.serving.golden import golden_images, golden_weights


def predictor(chunk: int = 8, **source: object) -> ExamplePredictor:
    return create_predictor(PredictRequest(rank=RankInfo(), options=ExampleOptions(chunk=chunk), **source))


def test_folding_leaves_no_scale() -> None:
    folded = constants(golden_weights(), fold_bn=True)
    plain = constants(golden_weights(), fold_bn=False)
    scales = {name for name in plain if name.endswith(".scale")}
    assert set(plain) - set(folded) == scales
    assert len(scales) == sum(t.role == "conv" for t in golden_weights().spec.tensors)
    by_hand = plain["conv1.kernel"] * plain["conv1.scale"][:, None, None, None]
    np.testing.assert_allclose(folded["conv1.kernel"], by_hand, rtol=1e-6)


def test_chunks_do_not_matter() -> None:
    one, all_at_once = predictor(1, weights=golden_weights()), predictor(8, weights=golden_weights())
    expected = all_at_once.logits(golden_images())
    difference = np.abs(one.logits(golden_images()) - expected).max()
    assert difference <= 2e-6 * np.abs(expected).max()


@pytest.mark.parametrize("fold_bn", [True, False])
def test_artefact_computes_the_same_bits(tmp_path: Path, fold_bn: bool) -> None:
    weights, path = golden_weights(), tmp_path / "model.npz"
    export_npz(weights, path, ExportRequest(fold_bn=fold_bn))
    arrays = constants(weights, fold_bn=fold_bn)
    expected = ExamplePredictor(weights, arrays, 8).logits(golden_images())
    assert np.array_equal(predictor(path=path).logits(golden_images()), expected)


@pytest.mark.parametrize("damage", ["cut", "other file", "no sidecar", "no file", "no digest", "not JSON"])
def test_damaged_artefact_is_refused(tmp_path: Path, damage: str) -> None:
    path, sidecar = tmp_path / "model.npz", tmp_path / "model.npz.json"
    export_npz(golden_weights(), path, ExportRequest())
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "other file":
        np.savez(path, **constants(golden_weights("symmetric"), fold_bn=False))
    elif damage == "no sidecar":
        sidecar.unlink()
    elif damage == "no file":
        path.unlink()
    elif damage == "no digest":
        manifest = json.loads(sidecar.read_text())
        del manifest["artefact"]
        sidecar.write_text(json.dumps(manifest))
    else:
        sidecar.write_text("{")
    with pytest.raises(DataError, match=r"model\.npz"):
        read_npz(path)


def test_options_are_checked() -> None:
    section = {"example": ExampleOptions}
    assert load_config(parse_set(["example.chunk=2"]), section)[0].backends["example"].chunk == 2
    for wrong in ("example.chunk=0", "example.chunk=two", "example.fold_bn=1", "example.chunks=2"):
        with pytest.raises(UsageError, match=r"chunk|fold_bn"):
            load_config(parse_set([wrong]), section)


def test_wrong_use_is_one_line(tmp_path: Path) -> None:
    served = predictor(weights=golden_weights())
    with pytest.raises(UsageError, match="uint8"):
        served.logits(golden_images().astype(np.float32))
    with pytest.raises(UsageError, match="float32"):
        served.logits_from_tensor(golden_images())
    served.close()
    with pytest.raises(UsageError, match="closed"):
        served.logits(golden_images())
    with pytest.raises(UsageError, match="either"):
        predictor(weights=golden_weights(), path=tmp_path / "model.npz")


def test_a_benchmark_times_its_files_and_variants(capfd: pytest.CaptureFixture[str]) -> None:
    words = [
        "bench",
        "all",
        "--only",
        "example",
        "--rounds",
        "1",
        "--seconds",
        "0.01",
        "--peak-tflops",
        "1",
        "--json",
    ]
    tiny = ["--set", "model.variant=resnext_tiny", "--set", "model.image_size=8", "--batch-size", "2"]
    assert main([*words, *tiny, "--classes", "3"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert {row["label"]: row["options"] for row in found["results"]} == {
        "example .safetensors": {}, "example .npz": {}, "example .safetensors unfolded": {"fold_bn": False},
        "example .npz unfolded": {"fold_bn": False},
    }  # fmt: skip
    assert found["skipped"] == []
