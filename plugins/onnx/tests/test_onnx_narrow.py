"""Artefacts in 16 bits: the same network with constants and layers in them, and what cannot be is refused."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx_cases import SPECS, make_images, make_weights, normalised, open_onnx, oracle, relative, write
from proof_cases import manifest_of
from resnext_onnx.artefact import read_artefact
from resnext_onnx.narrow import narrow

import resnext_core as rx
from resnext_core.cli.main import main
from resnext_core.errors import BackendUnavailable, DataError, UsageError
from resnext_core.model.proof import Golden
from resnext_core.model.weights import Weights, save_weights
from resnext_core.processor import processor
from resnext_core.serving.golden import synthetic_images

IMAGENET = SPECS["same-even"]
#: Rounding of one number, and how many of them the logits of these small networks may be off.
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}


@pytest.mark.parametrize("input", ["uint8", "float"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_float16_computes_the_same_network(tmp_path: Path, spec, input) -> None:
    weights = make_weights(spec)
    images = make_images(spec, 3)
    want = oracle(weights).logits(images)
    served = open_onnx(write(weights, tmp_path / "m.onnx", input=input, precision="float16"))
    assert 0 < relative(served.logits(images), want) <= 8 * UNIT["float16"]
    assert relative(served.logits_from_tensor(normalised(images, weights)), want) <= 8 * UNIT["float16"]
    assert served.logits(images).dtype == np.float32


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_bfloat16_computes_the_same_network(tmp_path: Path) -> None:
    weights = make_weights(IMAGENET)
    images = make_images(IMAGENET, 3)
    path = write(weights, tmp_path / "m.onnx", precision="bfloat16")
    served = open_onnx(path, provider="openvino")
    assert 0 < relative(served.logits(images), oracle(weights).logits(images)) <= 8 * UNIT["bfloat16"]


def test_bfloat16_is_not_for_the_cpu_provider(tmp_path: Path) -> None:
    path = write(make_weights(IMAGENET), tmp_path / "m.onnx", precision="bfloat16")
    with pytest.raises(BackendUnavailable, match=r"no convolutions in bfloat16: set onnx\.provider=openvino"):
        open_onnx(path)


@pytest.mark.parametrize(
    ("precision", "kind"), [("float16", TensorProto.FLOAT16), ("bfloat16", TensorProto.BFLOAT16)]
)
def test_all_layers_are_in_16_bits_and_the_rest_is_not(tmp_path: Path, precision: str, kind: int) -> None:
    path = write(make_weights(IMAGENET), tmp_path / "m.onnx", precision=precision)
    model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    types = {v.name: v.type.tensor_type.elem_type for v in [*model.graph.value_info, *model.graph.output]}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "Add", "MaxPool", "Relu")]
    assert len(layers) > 20
    assert {types[node.output[0]] for node in layers} == {kind}
    assert types["tensor"] == types["logits"] == TensorProto.FLOAT
    kinds = {c.name: c.data_type for c in model.graph.initializer}
    assert {k for name, k in kinds.items() if not name.startswith("preprocess")} == {kind}
    assert {k for name, k in kinds.items() if name.startswith("preprocess")} == {TensorProto.FLOAT}


def test_constants_are_rounded_to_the_nearest() -> None:
    values = np.float32([1, 1 + 2**-9, 1 + 3 * 2**-9, 1 + 2**-8, -3.5, 0, 1e-3, 255])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["tensor", "c"], ["logits"])], "g",
        [onnx.helper.make_tensor_value_info("tensor", TensorProto.FLOAT, [8])],
        [onnx.helper.make_tensor_value_info("logits", TensorProto.FLOAT, [8])],
        [numpy_helper.from_array(values, "c")],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    (constant,) = narrow(model, "bfloat16").graph.initializer
    found = (np.frombuffer(constant.raw_data, "<u2").astype(np.uint32) << 16).view(np.float32)
    # 8 bits of mantissa: halfway cases go to the even neighbour
    np.testing.assert_array_equal(found, np.float32([1, 1, 1 + 2**-7, 1, -3.5, 0, 131 * 2**-17, 255]))
    (constant,) = narrow(model, "float16").graph.initializer
    assert numpy_helper.to_array(constant).dtype == np.float16


def test_a_constant_that_does_not_fit_names_its_layer(tmp_path: Path) -> None:
    weights = make_weights(IMAGENET)
    large = weights.tensors["fc.weight"].copy()
    large[0, 0] = 70000
    weights = weights.replace(tensors={**weights.tensors, "fc.weight": large})
    with pytest.raises(
        DataError, match=r"^fc\.weight has values up to 7e\+04, float16 holds 6\.55e\+04 at most"
    ):
        write(weights, tmp_path / "m.onnx", precision="float16")
    assert not (tmp_path / "m.onnx").exists()
    write(weights, tmp_path / "m.onnx", precision="bfloat16")


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"precision": "int8"}, "export precision must be float32, float16 or bfloat16, not 'int8'"),
        ({"precision": "float16", "fold_bn": False}, "needs export.fold_bn=true"),
        ({"precision": "float16", "input": "image"}, "written in float32 only"),
    ],
)
def test_requests_that_cannot_be(tmp_path: Path, request_: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        write(make_weights(IMAGENET), tmp_path / "m.onnx", **request_)


def test_a_network_that_gives_nan_is_no_file_in_16_bits(tmp_path: Path) -> None:
    weights = make_weights(IMAGENET)
    head = np.full_like(weights.tensors["fc.weight"], 3e38)
    weights = weights.replace(tensors={**weights.tensors, "fc.weight": head}, golden=None)
    with pytest.raises(DataError, match="the network gives NaN or infinity on synthetic images"):
        write(weights, tmp_path / "m.onnx", precision="bfloat16")
    assert list(tmp_path.iterdir()) == []


def test_the_golden_logits_are_those_of_float32(tmp_path: Path) -> None:
    weights = make_weights(IMAGENET)
    own = Golden(compute="float32", logits=(tuple(map(float, range(7))),))
    path = write(weights.replace(golden=own), tmp_path / "own.onnx", precision="float16")
    assert manifest_of(path)["golden"] == {"compute": "float16", "logits": [list(own.logits[0])]}
    path = write(weights, tmp_path / "m.onnx", precision="float16")
    found = read_artefact(path).manifest
    assert (found.precision, dict(found.proofs)) == ("float16", {})
    assert found.golden is not None
    want = oracle(weights).logits(synthetic_images(2, IMAGENET.image_size))
    assert relative(np.array(found.golden.logits), want) <= 1e-5
    assert write(weights, tmp_path / "again.onnx", precision="float16").read_bytes() == path.read_bytes()


def saved(weights: Weights, folder: Path) -> Path:
    save_weights(weights, folder / "w.safetensors")
    return folder / "w.safetensors"


def test_export_compares_and_validate_proves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = make_weights(IMAGENET)
    words = ["export", "--weights", str(saved(weights, tmp_path)), "--to", str(tmp_path / "m.onnx")]
    assert main([*words, "--set", "export.precision=float16", "--json"]) == 0
    (made,) = json.loads(capsys.readouterr().out)["artefacts"]
    assert 1e-5 < made["difference"] <= 1e-2
    assert (tmp_path / "m.onnx").stat().st_size < 0.6 * write(weights, tmp_path / "f.onnx").stat().st_size
    with pytest.warns(UserWarning, match=f"float16, not proven on {processor().instructions}"):
        rx.load(tmp_path / "m.onnx").close()
    monkeypatch.setattr("resnext_core.jobs.export._TOLERANCES", {"float16": 1e-6})
    assert main([*words, "--set", "export.precision=float16"]) == 3
    assert "disagrees with its source by" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mindir", "torchscript"])
def test_other_formats_are_float32_alone(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "export",
        "--weights",
        str(saved(make_weights(IMAGENET), tmp_path)),
        "--format",
        name,
        "--to",
        str(tmp_path / "x"),
    ]
    code = main([*words, "--set", "export.precision=float16"])
    err = capsys.readouterr().err
    assert code == 2
    if "no installed backend exports" not in err:
        assert f"format {name} cannot be written in float16: set export.precision to float32" in err
