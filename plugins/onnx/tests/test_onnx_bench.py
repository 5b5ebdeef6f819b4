"""``resnext-run bench all`` writes an ONNX file and times it beside the weights; a file of the user is a row too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from onnx_cases import SPECS, make_images, make_weights, open_onnx, oracle, relative
from resnext_onnx.options import OnnxOptions
from resnext_onnx.plugin import compute, export, variants

from resnext_core.cli.main import main
from resnext_core.interfaces import ExportRequest
from resnext_core.jobs import bench_rows
from resnext_core.model.weights import save_weights

SHORT = ["--rounds", "2", "--seconds", "0.01", "--batch-size", "2", "--peak-tflops", "1", "--json"]


def test_artefacts_are_rows_beside_the_weights(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_rows, "_variants", lambda backend, skipped: ())  # they are timed elsewhere
    weights = make_weights(SPECS["cifar"])
    save_weights(weights, tmp_path / "net.safetensors")
    export(weights, tmp_path / "mine.onnx", ExportRequest(batch_size=3))
    export(make_weights(SPECS["same-even"]), tmp_path / "other.onnx", ExportRequest())
    files = [word for name in ("mine", "other") for word in ("--file", str(tmp_path / f"{name}.onnx"))]
    words = ["bench", "all", "--weights", str(tmp_path / "net.safetensors"), "--only", "onnx,reference"]
    assert main([*words, *files, *SHORT, "--threads", "1"]) == 0
    found = json.loads(capfd.readouterr().out)
    rows = {row["label"]: row for row in found["results"]}
    assert {"onnx .onnx", "onnx mine.onnx", "reference .safetensors"} <= set(rows)
    assert rows["onnx .onnx"]["file"] is None
    assert rows["onnx mine.onnx"]["file"] == str(tmp_path / "mine.onnx")
    assert {row["digest"] for row in rows.values()} == {weights.digest}
    onnx = rows["onnx .onnx"]
    assert (onnx["format"], onnx["device"], onnx["threads"], onnx["options"]) == (
        ".onnx",
        "cpu",
        1,
        {"threads": 1},
    )
    assert "onnxruntime" in onnx["versions"]
    skipped = {row["label"]: row["reason"] for row in found["skipped"]}
    assert skipped["onnx other.onnx"] == "its network is resnext_tiny at 36 px, unlike the others"


@pytest.mark.parametrize("name", ["cifar", "same-even"])
def test_the_file_in_8_bits_is_the_network(name: str, tmp_path: Path) -> None:
    """Every layer in 8 bits, by noise alone: not exact, and not another network either."""
    (int8,) = [way for way in variants() if way.label == "int8"]
    weights, path = make_weights(SPECS[name]), tmp_path / "int8.onnx"
    assert (int8.exports, int8.overrides) == ("onnx", ())
    int8.write(weights, path, ExportRequest(batch_size=3))
    served = open_onnx(path)
    images = make_images(SPECS[name], 4)
    assert served.manifest.precision == "int8"
    assert 1e-5 < relative(served.logits(images), oracle(weights).logits(images)) < 0.2


def test_what_a_provider_computes_with() -> None:
    assert compute(OnnxOptions(threads=2)).threads == 2
    card = compute(OnnxOptions(provider="cuda"))
    assert (card.device, card.threads) == ("cuda", None)
