"""Quantisation as a whole: the file and its proof, the gate and the way back to float32, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx_cases import open_onnx, write
from quantize_cases import CLASSES, SIZE, TRAIN, VAL, Heard, float_model, images_of, save_fitted, write_images
from resnext_onnx import plugin
from resnext_onnx.artefact import read_artefact
from resnext_onnx.options import OnnxOptions
from resnext_onnx.quantize import qdq, speed
from resnext_onnx.quantize.gate import Verdict
from resnext_onnx.quantize.job import QuantizeJob, quantize
from resnext_onnx.quantize.ranges import Range
from resnext_onnx.quantize.result import QuantizeResult
from resnext_onnx.quantize.run import logits_of
from resnext_onnx.quantize.sample import pick
from resnext_onnx.quantize.sensitivity import logit_error
from resnext_onnx.quantize.summary import summary
from resnext_onnx.quantize.targets import TARGETS, target_of

from resnext_core.cli.main import main
from resnext_core.errors import DataError, UsageError
from resnext_core.interfaces import ExportRequest
from resnext_core.jobs.evaluate import EvaluateJob, evaluate_sizes
from resnext_core.jobs.settings import Settings
from resnext_core.model.weights import load_weights, save_weights
from resnext_core.processor import parse_processor, processor
from resnext_core.serving.golden import synthetic_images

#: Whatever this machine computes with, and the kind of numbers that another kind of machine computes with.
HERE = processor().instructions
ELSEWHERE = "vnni" if HERE.startswith("arm") else "arm"
#: The images of val are few: one is a point.
MAX_DROP = 3.0


@pytest.fixture(autouse=True, scope="module")
def briefly() -> Iterator[None]:
    """Measure speed with the fewest calls: no test looks at how fast something is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "_SECONDS", 0)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights and images."""
    folder = tmp_path_factory.mktemp("quantize")
    save_fitted(folder / "net.safetensors")
    write_images(folder / "data")
    return folder


def job(place: Path, **changes: object) -> QuantizeJob:
    settings = Settings(data=str(place / "data"), overrides=("data.workers=0", "onnx.threads=1"))
    given = {"settings": settings, "calibration": 48, "max_drop": MAX_DROP, "min_agreement": 0.9}
    return QuantizeJob(**{"weights": place / "net.safetensors"} | given | changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(place: Path) -> tuple[QuantizeResult, Heard]:
    heard = Heard()
    return quantize(job(place, target=place / "net.int8.onnx", report=place / "int8.html"), heard), heard


def constants(path: Path) -> dict[str, np.ndarray]:
    return {c.name: numpy_helper.to_array(c) for c in onnx.load(path).graph.initializer}


def test_the_file_is_an_artefact_like_any_other(place, made):
    result, _ = made
    weights, artefact = load_weights(place / "net.safetensors"), read_artefact(result.path)
    assert artefact.manifest.precision == "int8"
    assert (artefact.manifest.spec, artefact.manifest.classes) == (weights.spec, weights.classes)
    assert artefact.manifest.preprocess == weights.preprocess
    assert artefact.manifest.digest == weights.digest == result.digest
    assert artefact.entry["quantization"]["calibration"] == 48
    served, images = open_onnx(result.path), synthetic_images(2, SIZE)
    golden, proof = artefact.manifest.golden, artefact.manifest.proofs[HERE]
    assert golden is not None
    assert golden.compute == "int8"
    assert golden.logits == proof.logits
    np.testing.assert_allclose(served.logits(images), golden.logits, rtol=1e-3, atol=1e-4)
    assert (proof.images, proof.top1) == (len(CLASSES) * VAL, result.verdict.top1)
    assert result.proven == HERE


def test_top1_is_what_an_evaluation_says(place, made):
    result, _ = made
    (scored,) = evaluate_sizes(EvaluateJob(weights=result.path, settings=job(place).settings, split="val"))
    assert scored.evaluation.top1 == pytest.approx(
        result.verdict.top1, abs=0.011
    )  # rounding can flip a near-tie
    images, labels = images_of(1, VAL)
    model = float_model(load_weights(place / "net.safetensors"))
    assert result.verdict.top1_source == (logits_of(model, images, 1).argmax(axis=1) == labels).mean()
    assert result.verdict.images == len(labels)
    assert 0.8 < result.verdict.top1_source < 1


def test_most_layers_are_in_8_bits_and_the_file_says_which_are_not(made):
    result, _ = made
    kinds = {name: array.dtype for name, array in constants(result.path).items()}
    for layer in result.layers:
        assert (f"{layer.name}.weight.q" in kinds) == layer.int8
        assert (f"{layer.name}.weight" in kinds) != layer.int8
    assert sum(layer.int8 for layer in result.layers) >= len(result.layers) - 2
    assert read_artefact(result.path).entry["quantization"]["float"] == result.kept_float
    assert sum(layer.macs for layer in result.layers) == pytest.approx(1)
    assert all(layer.error > 0 for layer in result.layers)
    assert {one.what for one in result.tried} >= {
        "minmax",
        "entropy",
        "mse",
        "percentile 99.99",
        "bias correction",
    }
    # What was taken last is the best of its kind, so no rule was better than the one that was taken first.
    rules = [
        one for one in result.tried if "in int8" not in one.what and one.what in ("minmax", "entropy", "mse")
    ]
    first = next(one for one in result.tried if one.taken)
    assert first.what == result.ranges
    assert first.error == min(first.error, *(one.error for one in rules))


def test_long_work_is_seen_and_the_report_stands_alone(place, made):
    result, heard = made
    seen = {record.what for record in heard if record.kind == "progress"}
    assert {"calibrate", "sensitivity", "validate float32", "validate int8", "correct biases"} <= seen
    assert all(record.done <= record.total for record in heard if record.kind == "progress")
    page = (place / "int8.html").read_text()
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
    for layer in result.layers:
        assert layer.name in page
    assert "\u2013" not in page  # no number is missing


def test_weights_of_avx2_have_7_bits_and_a_fixed_batch_is_kept(place, tmp_path):
    given = job(place, target=tmp_path / "avx2.onnx", processor="avx2")
    settings = replace(given.settings, overrides=(*given.settings.overrides, "export.batch_size=2"))
    path = quantize(replace(given, settings=settings)).path
    weights = [array for name, array in constants(path).items() if name.endswith(".weight.q")]
    assert max(int(np.abs(array.astype(int)).max()) for array in weights) == 64
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    images = images_of(1, 1)[0][:3]
    want = logits_of(float_model(load_weights(place / "net.safetensors")), images, 1)
    assert logit_error(open_onnx(path).logits(images), want) < 0.1


def test_numbers_of_another_kind_of_processor_are_written_and_not_proven(place, tmp_path):
    heard = Heard()
    given = job(place, target=tmp_path / "other.onnx", processor=ELSEWHERE)
    settings = replace(given.settings, overrides=(*given.settings.overrides, "onnx.provider=openvino"))
    result = quantize(replace(given, settings=settings), heard)
    assert "quantize computes with onnx.provider=cpu, not openvino: validate there" in heard.lines
    assert read_artefact(result.path).manifest.proofs == {}
    assert (result.proven, result.speeds) == (None, [])
    assert any("not proven" in line for line in heard.lines)
    kind = TensorProto.INT8 if TARGETS[ELSEWHERE].scheme.signed else TensorProto.UINT8
    graph = onnx.load(result.path).graph
    zeros = {c.name: c.data_type for c in graph.initializer}
    assert {zeros[n.input[2]] for n in graph.node if n.op_type == "QuantizeLinear"} == {kind}


def test_a_file_that_is_only_timed_is_served_and_has_no_proof(place, tmp_path):
    weights = load_weights(place / "net.safetensors")
    variant = next(v for v in plugin.variants() if v.label == "int8")
    assert variant.exports == "onnx"
    assert variant.write is not None
    variant.write(weights, tmp_path / "m.onnx", ExportRequest(options=OnnxOptions(threads=1)))
    artefact = read_artefact(tmp_path / "m.onnx")
    assert artefact.manifest.precision == "int8"
    assert artefact.manifest.proofs == {}
    images = images_of(1, 2)[0]
    want = logits_of(float_model(weights), images, 1)
    assert logit_error(open_onnx(tmp_path / "m.onnx").logits(images), want) < 0.2


# -- the gate ------------------------------------------------------------------------------------------------------


def break_layers(monkeypatch: pytest.MonkeyPatch, names: set[str]) -> None:
    """Write the weights of some layers with steps that are far too small, as a wrong scale would."""
    real = qdq._Writer._weights

    def broken(writer, node, copy):
        found = real(writer, node, copy)
        if node.name in names:
            name = f"{node.name}.weight.scale"
            scale = numpy_helper.to_array(writer._made[name]) / 4
            writer._made[name] = numpy_helper.from_array(scale, name)
        return found

    monkeypatch.setattr(qdq._Writer, "_weights", broken)


def test_a_broken_quantisation_is_refused_and_an_old_file_stays(place, tmp_path, monkeypatch):
    real = qdq.scale_of

    def broken(cut: Range, *, signed: bool) -> tuple[np.float32, int]:
        scale, zero = real(cut, signed=signed)
        return scale / np.float32(8), zero

    monkeypatch.setattr(qdq, "scale_of", broken)
    target = tmp_path / "m.onnx"
    target.write_bytes(b"old")
    with pytest.raises(DataError, match=r"cannot be met .*nothing was kept") as caught:
        quantize(job(place, target=target, report=tmp_path / "r.html", max_drop=0, min_agreement=0.999))
    assert re.search(r"agree on \d\d?\.\d\d%, --min-agreement asks for 99\.90%", str(caught.value))
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_layer_that_spoils_it_goes_back_to_float(place, tmp_path, monkeypatch, made):
    broken = "layer2.0.conv2"
    break_layers(monkeypatch, {broken})
    heard = Heard()
    result = quantize(job(place, target=tmp_path / "m.onnx", max_drop=2, min_agreement=0.95), heard)
    assert broken in result.kept_float
    assert max(result.layers, key=lambda layer: layer.error).name == broken
    assert not result.first_verdict.holds(2, 0.95)
    assert result.verdict.holds(2, 0.95)
    assert any(line.startswith(f"{broken} back to float32: top-1") for line in heard.lines)
    kept, source = (
        constants(result.path),
        qdq.Layers(float_model(load_weights(place / "net.safetensors")).graph),
    )
    np.testing.assert_array_equal(kept[f"{broken}.bias"], source.bias(broken))
    assert kept[f"{broken}.weight"].dtype == np.float32
    assert set(result.kept_float) <= set(made[0].kept_float) | {broken}


def test_the_verdict_counts_pairs():
    verdict = Verdict(images=200, failed=10, agreed=180, correct=150, correct_source=152, lost=5, gained=3)
    assert verdict.drop == pytest.approx(1.0)
    assert verdict.agreement == pytest.approx(180 / 190)
    low, high = verdict.drop_interval
    assert low < 0 < verdict.drop < high
    assert verdict.holds(1.0, 0.94)
    assert not verdict.holds(0.9, 0.94)
    assert not verdict.holds(1.0, 0.95)
    assert "drop 1.00 points" in str(verdict)


def test_images_that_cannot_be_read_are_wrong_for_both(place, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(place / "data", data)
    for bad in ("val/ash/000.png", "val/birch/026.png", "train/cedar/061.png"):
        (data / bad).write_bytes((data / bad).read_bytes()[:60])
    settings = Settings(data=str(data), overrides=("data.workers=0",))
    heard = Heard()
    result = quantize(job(place, target=tmp_path / "m.onnx", settings=settings, calibration=100), heard)
    assert (result.verdict.images, result.verdict.failed) == (len(CLASSES) * VAL, 2)
    assert result.verdict.top1_source < 1
    assert str(result.verdict).endswith("; 2 images cannot be read")
    assert "; 2 images cannot be read" in summary(result)
    assert (
        f"{data / 'train'} gives 60 images to calibrate with and 60 to choose by, fewer than --calibration 100"
        in (heard.lines)
    )
    (left_out,) = [line for line in heard.lines if "left out" in line]
    assert re.match(
        r"1 of 60 (calibration|held-out) images cannot be read and is left out, e\.g\. ", left_out
    )
    assert "train/cedar/061.png" in left_out
    assert result.calibration == (59 if "calibration" in left_out else 60)


def test_a_part_without_a_readable_image_is_refused_before_the_work(place, tmp_path):
    shutil.copytree(place / "data", tmp_path / "data")
    for path in (tmp_path / "data" / "val").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    heard = Heard()
    settings = Settings(data=str(tmp_path / "data"), overrides=("data.workers=0",))
    with pytest.raises(DataError, match=r"val: no image can be read; use 'data scan'"):
        quantize(job(place, target=tmp_path / "m.onnx", settings=settings), heard)
    assert "calibrate" not in {record.what for record in heard if record.kind == "progress"}


def test_what_is_to_be_said_of_the_data_is_said_once(place, tmp_path):
    weights = load_weights(place / "net.safetensors").replace(classes=tuple("0123"))
    save_weights(weights, tmp_path / "numbers.safetensors")
    heard = Heard()
    quantize(job(place, weights=tmp_path / "numbers.safetensors", target=tmp_path / "m.onnx"), heard)
    assert len([line for line in heard.lines if "no class names" in line]) == 1


# -- the sample ----------------------------------------------------------------------------------------------------


def test_the_sample_takes_the_classes_in_turn_and_no_image_twice():
    labels = np.repeat(np.arange(3), [100, 20, 4]).astype(np.int32)
    one, other = pick(labels, ("a", "b", "c"), 40, 7, "train")
    assert len(one) == len(other) == 40
    assert not set(one.tolist()) & set(other.tolist())
    for found in (one, other):
        assert np.bincount(labels[found]).tolist() == [28, 10, 2]
        assert sorted(labels[found[:3]]) == [0, 1, 2]
    again = pick(labels, ("a", "b", "c"), 40, 7, "train")
    np.testing.assert_array_equal(one, again[0])
    assert not np.array_equal(one, pick(labels, ("a", "b", "c"), 40, 8, "train")[0])


def test_auto_is_this_processor():
    for instructions, name in {
        "avx2": "avx2",
        "avx512": "avx2",
        "avx512-vnni": "vnni",
        "amx-int8": "vnni",
        "arm64": "arm",
    }.items():
        here = replace(processor(), instructions=instructions)
        assert target_of("auto", here) is TARGETS[name]
    with pytest.raises(UsageError, match="riscv64; name one: --for avx2, vnni, arm"):
        target_of("auto", parse_processor("", "riscv64", 1))


# -- what is refused -----------------------------------------------------------------------------------------------


def run(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main(["quantize", *map(str, words)])
    out, err = capfd.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--for", "avx3"], "--for must be one of avx2, vnni, arm, auto, not 'avx3'"),
        (["--calibration", "31"], "--calibration must be an integer of 32 images or more, not 31"),
        (["--max-drop", "-1"], "--max-drop must be a number of points from 0"),
        (["--max-drop", "nan"], "--max-drop must be a number of points from 0"),
        (["--min-agreement", "1.01"], "--min-agreement must be a share from 0 to 1"),
        (["--to", "model.mindir"], "quantize writes .onnx files"),
        (["--max-drop", "101"], "--max-drop must be a number of points from 0 to 100"),
        (["--to", ""], "quantize writes .onnx files"),
        (["--to", "https://host/m.onnx"], "'https://host/m.onnx' is a URL, not a file"),
        (["--report", "https://host/r.html"], "'https://host/r.html' is a URL, not a file"),
        (["--report", "net.safetensors"], "give --report a name that ends in .html"),
        (["--set", "export.input=float"], "set export.input=uint8"),
        (["--set", "export.precision=float16"], "set export.precision=float32"),
        (["--split", "test"], "has no test part"),
        (["--set", "export.batch_size=0"], "batch_size"),
        (["--backend", "reference"], "a command of the backend onnx, not of 'reference'"),
        (["--split", "train"], "invalid choice: 'train'"),
    ],
)  # fmt: skip
def test_wrong_use_is_one_line_before_the_work(place, tmp_path, capfd, words, says):
    given = ["--weights", place / "net.safetensors", "--data", place / "data", "--to", tmp_path / "m.onnx"]
    code, _, err = run(capfd, *given, *words)
    assert (code, len(err.splitlines())) == (2, 1), err
    assert says in err
    assert list(tmp_path.iterdir()) == []


def test_the_images_of_train_decide_nothing(place, tmp_path):
    with pytest.raises(UsageError, match="--split must be val or test, not 'train'"):
        quantize(job(place, target=tmp_path / "m.onnx", split="train"))


def test_an_artefact_is_refused_and_a_quantised_one_by_that_name(place, made, tmp_path, capfd):
    given = ["--data", place / "data", "--to", tmp_path / "m.onnx", "--weights"]
    code, _, err = run(capfd, *given, made[0].path)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "is quantised already: quantize takes what it was made from" in err
    plain = write(load_weights(place / "net.safetensors"), tmp_path / "plain.onnx")
    code, _, err = run(capfd, *given, plain)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "is an artefact" in err


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        (lambda name: not name.startswith("train/birch"), "has no images of the class 'birch'"),
        (lambda name: not name.startswith("train/birch") or "033" in name, "has one image of the class 'birch'"),
        (lambda name: "train" not in name or int(name[-7:-4]) % TRAIN < 5, "has 20 images; quantisation needs 64 or"),
        (lambda name: not name.startswith("train"), "has no train part"),
    ],
    ids=["no image of a class", "one image of a class", "few images", "no train"],
)  # fmt: skip
def test_too_few_calibration_images(place, tmp_path, capfd, keep, says):
    data = tmp_path / "data"
    for path in (place / "data").rglob("*.png"):
        name = path.relative_to(place / "data").as_posix()
        if keep(name):
            (data / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, data / name)
    code, _, err = run(
        capfd, "--weights", place / "net.safetensors", "--data", data, "--to", tmp_path / "m.onnx"
    )
    assert code in (2, 3)
    assert len(err.splitlines()) == 1
    assert says in err
    assert not (tmp_path / "m.onnx").exists()


def test_other_classes_and_missing_data_are_refused(place, tmp_path, capfd):
    data = tmp_path / "data"
    shutil.copytree(place / "data", data)
    (data / "train" / "ash").rename(data / "train" / "elm")
    given = ["--weights", place / "net.safetensors", "--to", tmp_path / "m.onnx"]
    code, _, err = run(capfd, *given, "--data", data)
    assert (code, len(err.splitlines())) == (3, 1)
    assert "'elm'" in err
    code, _, err = run(capfd, *given)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "no data given" in err


def test_the_command_gives_the_same_bytes_and_one_json_line(place, made, tmp_path, capfd):
    words = [
        "--weights",
        place / "net.safetensors",
        "--data",
        place / "data",
        "--calibration",
        "48",
        "--max-drop",
        "3",
    ]
    words += ["--min-agreement", "0.9", "--set", "data.workers=0", "--set", "onnx.threads=1"]
    code, out, _ = run(capfd, *words, "--to", tmp_path / "a.onnx", "--json")
    found = json.loads(out)
    assert code == 0
    assert (tmp_path / "a.onnx").read_bytes() == made[0].path.read_bytes()
    assert found["proven"] == HERE
    assert found["verdict"]["images"] == len(CLASSES) * VAL
    assert [one["batch"] for one in found["speed"]] == [1, 8]
    assert {layer["name"] for layer in found["layers"] if not layer["int8"]} == set(found["float"])
    assert found["calibration"] == 48


def test_the_summary_is_a_table(made):
    lines = summary(made[0]).splitlines()
    assert lines[0].split() == ["float32", "int8"]
    assert [line.split("  ")[0] for line in lines[1:6]] == [
        "top-1", "same first guess", "size", "images/s, batch 1", "images/s, batch 8",
    ]  # fmt: skip
    assert f"proven on {HERE}" in lines[-2]
    assert lines[-1].startswith(str(made[0].path))
    assert all(line.isascii() for line in lines)


def test_the_python_on_the_page_runs(place, tmp_path, monkeypatch, capsys):
    page = Path(__file__).parents[3] / "docs" / "int8.md"
    (text,) = re.findall(
        r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    shutil.copy(place / "net.safetensors", tmp_path / "model.safetensors")
    (tmp_path / "photos").symlink_to(place / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Verdict, "holds", lambda *_: True)  # a percent of these few images is one
    exec(compile(text, "docs/int8.md", "exec"), {})
    assert capsys.readouterr().out.startswith("top-1 ")
    assert read_artefact(tmp_path / "model.int8.onnx").manifest.precision == "int8"
