"""The exporter: same numbers as the reference, same bytes twice, metadata that reads back, clear refusals."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_cases import (
    IMAGENET,
    SPECS,
    TOLERANCE,
    make_images,
    make_weights,
    normalised,
    open_onnx,
    oracle,
    relative,
    write,
)
from resnext_onnx.artefact import content_digest, read_artefact, sealed_model
from resnext_onnx.export import build_model
from resnext_onnx.graph import fold

from resnext_core.errors import DataError, UsageError
from resnext_core.interfaces import ExportRequest
from resnext_core.model.proof import Golden, Proof
from resnext_core.model.spec import VARIANTS
from resnext_core.model.weights import MANIFEST_KEY, parse_manifest


@pytest.mark.parametrize("fold_bn", [True, False], ids=["folded", "bn"])
@pytest.mark.parametrize("input", ["uint8", "float"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_logits_equal_the_reference_through_both_doors(tmp_path: Path, spec, input, fold_bn):
    weights = make_weights(spec)
    images = make_images(spec, 3)
    want = oracle(weights).logits(images)
    served = open_onnx(write(weights, tmp_path / "m.onnx", input=input, fold_bn=fold_bn))
    assert relative(served.logits(images), want) <= TOLERANCE
    assert relative(served.logits_from_tensor(normalised(images, weights)), want) <= TOLERANCE
    assert served.logits(images).dtype == np.float32


def test_paddings_are_different_functions(tmp_path: Path):
    same, symmetric = (make_weights(SPECS[name]) for name in ("same-even", "symmetric-even"))
    images = make_images(IMAGENET, 2)
    a, b = (
        open_onnx(write(w, tmp_path / f"{i}.onnx")).logits(images) for i, w in enumerate((same, symmetric))
    )
    assert relative(a, b) > 100 * TOLERANCE


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("input", ["uint8", "float"])
def test_static_batch_serves_any_number(tmp_path: Path, input, batch_size):
    weights = make_weights(IMAGENET)
    path = write(weights, tmp_path / "m.onnx", batch_size=batch_size, input=input)
    dims = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    assert dims[0].dim_value == batch_size
    images = make_images(IMAGENET, 5)
    want = oracle(weights).logits(images)
    served = open_onnx(path)
    for count in (1, 2, 3, 5):
        assert relative(served.logits(images[:count]), want[:count]) <= TOLERANCE
        tensor = normalised(images[:count], weights)
        assert relative(served.logits_from_tensor(tensor), want[:count]) <= TOLERANCE


def test_dynamic_batch_is_symbolic(tmp_path: Path):
    graph = onnx.load(write(make_weights(IMAGENET), tmp_path / "m.onnx")).graph
    assert [(i.name, i.type.tensor_type.elem_type) for i in graph.input] == [
        ("images", onnx.TensorProto.UINT8)
    ]
    assert [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == ["N", 36, 36, 3]
    assert [d.dim_param or d.dim_value for d in graph.output[0].type.tensor_type.shape.dim] == ["N", 7]


def test_folding_removes_bn_and_keeps_one_grouped_node(tmp_path: Path):
    weights = make_weights(IMAGENET)
    ops = {
        fold_bn: [
            n.op_type for n in onnx.load(write(weights, tmp_path / "m.onnx", fold_bn=fold_bn)).graph.node
        ]
        for fold_bn in (True, False)
    }
    convolutions = sum(t.role == "conv" for t in IMAGENET.tensors)
    assert "BatchNormalization" not in ops[True]
    assert ops[False].count("BatchNormalization") == convolutions
    assert ops[True].count("Conv") == ops[False].count("Conv") == convolutions


def test_bytes_are_deterministic(tmp_path: Path):
    weights = make_weights(IMAGENET)
    first, second = write(weights, tmp_path / "a.onnx"), write(weights, tmp_path / "b.onnx")
    assert first.read_bytes() == second.read_bytes()
    other = write(make_weights(IMAGENET, seed=4), tmp_path / "c.onnx")
    assert first.read_bytes() != other.read_bytes()


def test_file_has_the_normal_mode_and_no_neighbours(tmp_path: Path):
    umask = os.umask(0o022)
    try:
        path = write(make_weights(IMAGENET), tmp_path / "new" / "name with space.onnx")
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_manifest_round_trip(tmp_path: Path):
    weights = make_weights(IMAGENET)
    model = onnx.load(write(weights, tmp_path / "m.onnx", batch_size=4, input="float", fold_bn=False))
    text = {p.key: p.value for p in model.metadata_props}[MANIFEST_KEY]
    manifest = parse_manifest(text, where="m.onnx")
    assert (manifest.spec, manifest.preprocess) == (weights.spec, weights.preprocess)
    assert (manifest.classes, manifest.digest) == (weights.classes, weights.digest)
    assert (manifest.origin, manifest.metrics) == ({"made": "test"}, {"top1": 0.5})
    entry = json.loads(text)["artefact"]
    assert entry.pop("digest").startswith("sha256:")
    assert entry.pop("content") == content_digest((tmp_path / "m.onnx").read_bytes())
    assert list(json.loads(text))[-1] == "manifest_sha256"
    assert entry == {"format": "onnx", "input": "float", "batch_size": 4, "fold_bn": False, "opset": 17}
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)
    assert model.producer_name == "resnext-onnx"


def test_any_model_can_be_sealed(tmp_path: Path):
    weights = make_weights(IMAGENET)
    golden = Golden(compute="int8", logits=(tuple(range(len(weights.classes))),))
    proof = Proof(logits=golden.logits, images=8, top1_agreement=1.0)
    model = onnx.ModelProto.FromString(build_model(weights, ExportRequest()))
    model.graph.name = "changed"
    entry = {"format": "onnx", "input": "uint8", "compute": "int8", "proofs": {"avx2": proof.to_dict()}}
    data = sealed_model(model, weights.replace(golden=golden).manifest(), entry)
    assert data == sealed_model(model, weights.replace(golden=golden).manifest(), entry)
    (tmp_path / "m.onnx").write_bytes(data)
    found = read_artefact(tmp_path / "m.onnx")
    assert (found.manifest.precision, found.manifest.proofs) == ("int8", {"avx2": proof})
    assert found.manifest.golden == golden
    assert len(onnx.load(tmp_path / "m.onnx").metadata_props) == 1
    with pytest.raises(DataError, match="the artefact has a broken manifest: an artefact in int8 must have"):
        sealed_model(model, weights.manifest(), entry)


def test_fold_is_the_formula_in_float64():
    weights = make_weights(IMAGENET)
    weight, bias = fold(weights.tensors, "conv1", "bn1")
    t = {name: array.astype(np.float64) for name, array in weights.tensors.items()}
    scale = t["bn1.weight"] / np.sqrt(t["bn1.running_var"] + 1e-5)
    want = t["conv1.weight"] * scale.reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(weight, want.astype(np.float32))
    want = t["bn1.bias"] - t["bn1.running_mean"] * scale
    np.testing.assert_array_equal(bias, want.astype(np.float32))


def test_broken_statistics_are_refused_and_leave_the_old_file(tmp_path: Path):
    weights = make_weights(IMAGENET)
    path = write(weights, tmp_path / "m.onnx")
    before = path.read_bytes()
    name = "layer2.0.bn2.running_var"
    broken = weights.replace(tensors={**weights.tensors, name: -weights.tensors[name]})
    with pytest.raises(DataError, match=r"layer2\.0\.bn2 .*running_var"):
        write(broken, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "request_",
    [{"input": "bgr"}, {"batch_size": 0}, {"batch_size": -1}, {"batch_size": 1.5}, {"batch_size": True}],
)
def test_requests_that_mean_nothing(tmp_path: Path, request_):
    with pytest.raises(UsageError):
        write(make_weights(IMAGENET), tmp_path / "m.onnx", **request_)
    assert not list(tmp_path.iterdir())


def test_unwritable_place_is_a_data_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        write(make_weights(IMAGENET), tmp_path / "file" / "m.onnx")


def test_too_large_for_one_file_is_refused_before_any_work():
    weights = make_weights(IMAGENET)
    # Weights checks its tensors: give the spec of a giant to an object that already passed.
    object.__setattr__(weights, "spec", replace(VARIANTS["resnext152_64x4d"], base_width=64))
    with pytest.raises(UsageError, match="2 GiB"):
        build_model(weights, ExportRequest())


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_at_a_quarter_of_its_width(tmp_path: Path, variant):
    spec = VARIANTS[variant]
    spec = spec.replace(stem_width=max(16, spec.stem_width // 4))
    model = onnx.load(write(make_weights(spec), tmp_path / "m.onnx", fold_bn=False))
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    assert {t.name: shapes[t.name] for t in spec.tensors} == {t.name: t.shape for t in spec.tensors}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_in_full(tmp_path: Path, variant):
    """A minute and 3 GB for all."""
    weights = make_weights(VARIANTS[variant])
    path = write(weights, tmp_path / "m.onnx")
    logits = open_onnx(path, threads=2).logits(make_images(weights.spec, 1))
    assert np.isfinite(logits).all()
    path.unlink()
