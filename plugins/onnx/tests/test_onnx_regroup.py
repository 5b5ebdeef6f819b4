"""The pass that merges groups, and its option: the same function on every network, nothing else touched, refusals."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx_cases import TOLERANCE, make_images, make_weights, open_onnx, oracle, relative, write
from resnext_onnx import regroup as regroup_module
from resnext_onnx.export import _zeros, build_model
from resnext_onnx.options import OnnxOptions
from resnext_onnx.regroup import block_diagonal, merge_factor, regroup

from resnext_core.errors import DataError, UsageError
from resnext_core.interfaces import ExportRequest
from resnext_core.model.spec import VARIANTS, ModelSpec, model_spec
from resnext_core.processor import processor

#: max |diff| over max |logit| of a regrouped graph against the plain one: the order of float32 sums may differ.
BOUND = 1e-6


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """The model's logits by ONNX Runtime on one thread."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings)
    logits: np.ndarray = session.run(None, {model.graph.input[0].name: images})[0]
    return logits


def plain(spec: ModelSpec, **request: object) -> onnx.ModelProto:
    """The exporter's model of random weights."""
    return onnx.ModelProto.FromString(build_model(make_weights(spec), ExportRequest(**request)))


def convolutions(model: onnx.ModelProto) -> dict[str, tuple[int, np.ndarray]]:
    """Groups and weight of every convolution by its name."""
    constants = {c.name: numpy_helper.to_array(c) for c in model.graph.initializer}
    return {
        node.name: (next(a.i for a in node.attribute if a.name == "group"), constants[node.input[1]])
        for node in model.graph.node
        if node.op_type == "Conv"
    }


def grouped_convolution(x: np.ndarray, weight: np.ndarray, groups: int) -> np.ndarray:
    """The sum of a grouped convolution, term by term, without padding or stride, in float64."""
    outputs, width, rows, columns = weight.shape
    height, wide = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    y = np.zeros((outputs, height, wide))
    for m in range(outputs):
        first = m // (outputs // groups) * width
        for c in range(width):
            for i in range(rows):
                for j in range(columns):
                    y[m] += weight[m, c, i, j] * x[first + c, i : i + height, j : j + wide]
    return y


@settings(max_examples=30, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 3, 4, 6, 8, 12]),
    width=st.integers(1, 4),
    outputs=st.integers(1, 4),
    channels=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_the_block_diagonal_weight_gives_the_same_sums(groups, width, outputs, channels, seed):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((groups * outputs, width, 3, 2))
    x = rng.standard_normal((groups * width, 5, 4))
    k = merge_factor(groups, width, channels)
    assert groups % k == 0
    assert k == groups or k * width >= channels
    assert not any(groups % less == 0 and less * width >= channels for less in range(1, k))
    wide = block_diagonal(weight, groups, k)
    assert wide.shape == (groups * outputs, k * width, 3, 2)
    assert np.count_nonzero(wide) == np.count_nonzero(weight)
    got, want = grouped_convolution(x, wide, groups // k), grouped_convolution(x, weight, groups)
    assert np.abs(got - want).max() <= 1e-12


@settings(max_examples=12, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 3, 5, 8, 16, 32]),
    base_width=st.sampled_from([4, 8, 12, 16]),
    depths=st.lists(st.integers(1, 2), min_size=1, max_size=3),
    stem=st.sampled_from(["imagenet", "cifar"]),
    size=st.integers(9, 24),
    fold_bn=st.booleans(),
    channels=st.integers(1, 70),
)
def test_logits_of_any_network_stay_the_same(groups, base_width, depths, stem, size, fold_bn, channels):
    spec = model_spec(
        "resnext_tiny",
        groups=groups,
        base_width=base_width,
        depths=tuple(depths),
        stem=stem,
        image_size=size,
    )
    model = plain(spec, fold_bn=fold_bn)
    images = make_images(spec, 2)
    regrouped = regroup(model, channels)
    onnx.checker.check_model(regrouped, full_check=True)
    assert relative(run(regrouped, images), run(model, images)) <= BOUND


def every_variant() -> list[object]:
    """The variants, those of the paper's full size as slow tests."""
    return [
        pytest.param(
            name, marks=[pytest.mark.slow] if spec.stem == "imagenet" and spec.stem_width == 64 else []
        )
        for name, spec in VARIANTS.items()
        if not name.startswith("resnext29") or name == "resnext29_32x4d"
    ] + [pytest.param(name, marks=pytest.mark.slow) for name in ("resnext29_8x64d", "resnext29_16x64d")]


@pytest.mark.parametrize("variant", every_variant())
def test_logits_of_every_variant_stay_the_same(variant):
    spec = model_spec(variant)
    spec = spec.replace(image_size=min(spec.image_size, 64))
    model = plain(spec)
    images = make_images(spec, 2)
    want = run(model, images)
    for channels in (8, 16, 32, 64):
        assert relative(run(regroup(model, channels), images), want) <= BOUND


def test_only_the_grouped_convolutions_change():
    spec = model_spec("resnext26_16x8d_half", image_size=32)  # 4, 8, 16 and 32 channels a group
    model = plain(spec)
    before = model.SerializeToString(deterministic=True)
    regrouped = regroup(model, 16)
    assert model.SerializeToString(deterministic=True) == before
    old, new = convolutions(model), convolutions(regrouped)
    assert list(old) == list(new)
    merged = set()
    for name, (groups, weight) in old.items():
        by, wide = new[name]
        if groups == 1 or weight.shape[1] >= 16:
            assert by == groups
            assert np.array_equal(wide, weight)
            continue
        k = groups // by
        merged.add((name.split(".")[0], groups, by, wide.shape[1]))
        each = len(weight) // groups
        for m in range(len(weight)):
            start = m // each % k * weight.shape[1]
            inside = slice(start, start + weight.shape[1])
            assert np.array_equal(wide[m, inside], weight[m])
            assert np.count_nonzero(np.delete(wide[m], np.arange(inside.start, inside.stop), axis=0)) == 0
    assert merged == {("layer1", 16, 4, 16), ("layer2", 16, 8, 16)}
    # All the rest, put back, is the old graph to the byte.
    sizes = {c.name: c for c in model.graph.initializer}
    assert [c.name for c in regrouped.graph.initializer] == [c.name for c in model.graph.initializer]
    for constant in regrouped.graph.initializer:
        constant.CopyFrom(sizes[constant.name])
    for node in regrouped.graph.node:
        for attribute in node.attribute:
            if attribute.name == "group":
                attribute.i = old[node.name][0]
    assert regrouped.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("channels", [1, 8, 32, 10_000])
def test_a_second_call_changes_nothing(channels):
    once = regroup(plain(model_spec("resnext_tiny", groups=6)), channels)
    assert regroup(once, channels) == once
    assert all(groups == 1 for groups, _ in convolutions(once).values()) == (channels == 10_000)


def hand_made(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], *, given: tuple[str, ...] = ()
) -> onnx.ModelProto:
    """A graph from x, float32 (1, 8, 4, 4), to y, with `constants` and those of them that are `given` from outside."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 4, 4])]
    inputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, constants[n].shape) for n in given]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "hand", inputs, [output], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_weight_of_two_convolutions_is_made_once_and_none_is_left_over():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((8, 2, 1, 1)).astype(np.float32)
    nodes = [helper.make_node("Conv", [a, "w"], [b], name=b, group=4) for a, b in (("x", "h"), ("h", "y"))]
    model = hand_made(nodes, {"w": weight, "unread": weight})
    regrouped = regroup(model, 4)
    assert {c.name: list(c.dims) for c in regrouped.graph.initializer} == {
        "unread": [8, 2, 1, 1],
        "w.by2": [8, 4, 1, 1],
    }
    x = rng.standard_normal((1, 8, 4, 4)).astype(np.float32)
    assert relative(run(regrouped, x), run(model, x)) <= BOUND


def test_a_weight_that_something_else_reads_too_stays():
    weight = np.random.default_rng(1).standard_normal((8, 2, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], group=4),
        helper.make_node("ReduceSum", ["w"], ["s"], keepdims=0),
        helper.make_node("Add", ["h", "s"], ["y"]),
    ]
    model = hand_made(nodes, {"w": weight, "w.by4": np.ones(1, np.float32)})
    regrouped = regroup(model, 8)
    assert [c.name for c in regrouped.graph.initializer] == ["w", "w.by4", "w.by4_"]
    x = np.random.default_rng(2).standard_normal((1, 8, 4, 4)).astype(np.float32)
    assert relative(run(regrouped, x), run(model, x)) <= BOUND


def test_depthwise_convolutions_stay_and_one_dimension_works():
    weight = np.random.default_rng(1).standard_normal((8, 1, 3, 3)).astype(np.float32)
    depthwise = hand_made([helper.make_node("Conv", ["x", "w"], ["y"], group=8)], {"w": weight})
    assert regroup(depthwise, 32) == depthwise
    two_each = hand_made(
        [helper.make_node("Conv", ["x", "w"], ["y"], group=8)], {"w": np.repeat(weight, 2, axis=0)}
    )
    x = np.random.default_rng(2).standard_normal((1, 8, 4, 4)).astype(np.float32)
    assert regroup(two_each, 4).graph.initializer[0].dims == [16, 4, 3, 3]
    assert relative(run(regroup(two_each, 4), x), run(two_each, x)) <= BOUND


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_the_type_of_the_weights_stays(kind):
    weight = np.arange(16, dtype=np.float32).reshape(8, 2, 1, 1)  # exact in every one of them
    typed = helper.make_tensor("w", kind, weight.shape, weight.flatten())
    model = hand_made([helper.make_node("Conv", ["x", "w"], ["y"], group=4)], {"w": weight})
    model.graph.initializer[0].CopyFrom(typed)
    (made,) = regroup(model, 4).graph.initializer
    assert made.data_type == kind
    wide = numpy_helper.to_array(made).astype(np.float32)
    assert np.array_equal(wide, block_diagonal(weight, 4, 2))


@pytest.mark.parametrize("channels", [0, -3, 2.0, True, "16", None])
def test_refuses_channels_that_mean_nothing(channels):
    with pytest.raises(UsageError, match="integer of channels above 0"):
        regroup(plain(model_spec("resnext_tiny")), channels)


def test_refuses_a_weight_that_is_no_constant():
    weight = np.ones((8, 2, 1, 1), np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="c", group=4)
    with pytest.raises(DataError, match="convolution c: its weight w is not a constant"):
        regroup(hand_made([node], {"w": weight}, given=("w",)), 4)
    quantised = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["y"], name="c", group=4),
    ]
    constants = {"q": weight.astype(np.int8), "s": np.float32(0.1)}
    with pytest.raises(DataError, match="before it is quantised"):
        regroup(hand_made(quantised, constants), 4)
    with pytest.raises(DataError, match="does not fit 3 groups"):
        regroup(hand_made([helper.make_node("Conv", ["x", "w"], ["y"], group=3)], {"w": weight}), 4)


# -- the option ----------------------------------------------------------------------------------


def test_the_exporter_regroups_and_says_so(tmp_path: Path):
    weights = make_weights(model_spec("resnext_tiny"))  # 4, 8 and 16 channels a group
    images = make_images(weights.spec, 3)
    path = write(weights, tmp_path / "m.onnx", options=OnnxOptions(regroup=16))
    assert {w.shape[1] for g, w in convolutions(onnx.load(path)).values() if g > 1} == {16}
    served = open_onnx(path)
    assert served.artefact["regroup"] == 16
    assert relative(served.logits(images), oracle(weights).logits(images)) <= TOLERANCE
    written = path.read_bytes()
    assert write(weights, path, options=OnnxOptions(regroup=16)).read_bytes() == written


@pytest.mark.parametrize("instructions", ["amx-int8", "avx2", "arm-i8mm"])
def test_auto_takes_what_was_measured_on_this_instruction_set(monkeypatch, instructions):
    here = dataclasses.replace(processor(), instructions=instructions)
    monkeypatch.setattr(regroup_module, "processor", lambda: here)
    measured = regroup_module.FLOAT32_CHANNELS.get(instructions)
    assert (measured is not None) == (instructions == "amx-int8")
    weights = make_weights(model_spec("resnext_tiny"))
    made, named, without = (
        build_model(weights, ExportRequest(options=OnnxOptions(regroup=setting)))
        for setting in ("auto", measured or "none", "none")
    )
    assert made == named
    assert without == build_model(weights, ExportRequest())
    assert (made != without) == (measured is not None)


def test_groups_that_make_a_file_too_large_are_refused_before_any_work():
    weights = make_weights(model_spec("resnext_tiny"))
    object.__setattr__(weights, "spec", VARIANTS["resnext152_64x4d"])  # 0.4 GiB as it is
    with pytest.raises(UsageError, match=r"GiB.*set onnx.regroup to fewer channels"):
        build_model(weights, ExportRequest(options=OnnxOptions(regroup=4096)))


def test_what_the_size_is_estimated_from_is_what_is_added():
    spec = model_spec("resnext26_16x8d_half", image_size=32)
    one, other = (
        sum(c.ByteSize() for c in model.graph.initializer)
        for model in (plain(spec), plain(spec, options=OnnxOptions(regroup=32)))
    )
    assert abs(other - one - 4 * _zeros(spec, 32)) < 100  # lengths and shapes in a few bytes more


@pytest.mark.parametrize("value", [0, -1, True, "yes", 2.5])
def test_the_option_takes_words_and_channels_only(value):
    with pytest.raises(UsageError, match=r"onnx.regroup must be .*or one of none, auto, not"):
        OnnxOptions(regroup=value)
