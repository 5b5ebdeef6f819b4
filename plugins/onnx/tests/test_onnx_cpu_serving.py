"""benchmarks/cpu_serving.py: networks made like trained ones, and a run of it in small."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from onnx_cases import make_images, make_weights
from PIL import Image
from resnext_onnx.export import build_model
from resnext_onnx.quantize.sample import Sample

from resnext_core.interfaces import ExportRequest
from resnext_core.model.spec import BN_EPS, model_spec

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not beside these tests", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import cpu_serving  # noqa: E402
import cpu_serving_models as models  # noqa: E402


def values(weights, names: list[str], images: np.ndarray) -> dict[str, np.ndarray]:
    """Inner values of the network with batch normalisation as nodes of their own."""
    model = onnx.ModelProto.FromString(build_model(weights, ExportRequest(fold_bn=False)))
    model.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


def test_a_made_network_has_the_statistics_of_its_images_and_classes_with_margins():
    spec = model_spec("resnext_tiny", num_classes=3)
    images = make_images(spec, 30)
    labels = np.arange(30, dtype=np.int32) % 3
    made = models.trained_like(make_weights(spec), Sample(images=images, labels=labels))
    norms = [t.name.removesuffix(".weight") for t in spec.tensors if t.role == "bn_weight"]
    found = values(made, [f"{norm}.out" for norm in norms], images)
    for norm in norms:
        y = found[f"{norm}.out"].astype(np.float64)
        gamma, beta, var = (made.tensors[f"{norm}.{part}"] for part in ("weight", "bias", "running_var"))
        assert np.abs(y.mean(axis=(0, 2, 3)) - beta).max() < 1e-3
        # Exactly gamma where eps is nothing beside the variance.
        assert np.abs(y.std(axis=(0, 2, 3)) - gamma * np.sqrt(var / (var + BN_EPS))).max() < 1e-3
    session = onnxruntime.InferenceSession(build_model(made, ExportRequest()))
    logits = session.run(["logits"], {"images": images})[0]
    assert (logits.argmax(axis=1) == labels).mean() > 0.9
    assert np.abs(logits).max() == pytest.approx(10, abs=0.01)


def test_a_run_in_small(tmp_path, monkeypatch, capsys):
    for part, count in (("train", 32), ("val", 16)):
        for name in ("ant", "bee"):
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    words = [
        "--data", tmp_path / "data", "--variant", "resnext_tiny", "--batch", 1, 3, "--threads", 1, "--rounds", 2,
        "--seconds", 0, "--calibration", 32, "--only", "groups of 16", "the same", "int8, NNCF",
        "--json", tmp_path / "found.json",
        "--nncf", tmp_path / "no-python", "--work", tmp_path / "files",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["cpu_serving.py", *map(str, words)])
    assert cpu_serving.main() == 0
    found = json.loads((tmp_path / "found.json").read_text())
    rows = {row["contender"]["name"]: row for row in found["rows"]}
    assert next(iter(rows)) == "ONNX Runtime float32"
    assert not any("quantize" in name for name in rows)
    assert rows["ONNX Runtime float32, groups of 16"]["agreement"] == 1
    for name, row in rows.items():
        if row["missing"]:
            continue
        assert set(row["ratios"]) == {"1,1", "1,3"}, name
        assert all(len(rounds) == 2 for rounds in row["ratios"].values())
    assert rows["ONNX Runtime float32"]["ratios"] == {"1,1": [1, 1], "1,3": [1, 1]}
    assert "name one that has NNCF with --nncf PYTHON" in rows["ONNX Runtime int8, NNCF"]["missing"]
    table = capsys.readouterr().out
    assert all(f"| {name} |" in table for name in rows)


def test_processor_time_of_two_threads_is_refused(tmp_path, monkeypatch, capsys):
    words = ["--data", str(tmp_path), "--clock", "cpu", "--threads", "2"]
    monkeypatch.setattr(sys, "argv", ["cpu_serving.py", *words])
    assert cpu_serving.main() == 2
    assert "add --threads 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--only", "nobody"], 2, "no contender's name has one of the words nobody"),
        (["--json", "file/x.json"], 3, "cannot write file/x.json"),
    ],
)
def test_wrong_words_are_refused_before_the_work(tmp_path, monkeypatch, capsys, words, code, says):
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "make_weights", lambda *_: pytest.fail("work was spent"))
    monkeypatch.setattr(sys, "argv", ["cpu_serving.py", "--data", ".", *words])
    assert cpu_serving.main() == code
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--rounds", "--threads", "--batch", "--calibration"])
def test_counts_are_from_one_on(monkeypatch, capsys, flag):
    monkeypatch.setattr(sys, "argv", ["cpu_serving.py", "--data", ".", flag, "0"])
    with pytest.raises(SystemExit) as ended:
        cpu_serving.main()
    assert ended.value.code == 2
    assert "must be an integer from 1" in capsys.readouterr().err
