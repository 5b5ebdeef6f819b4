"""The graph in 8 bits: steps and scales by hand, what stays float32, and the same logits as ONNX's own evaluator."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from quantize_cases import TRAIN, fitted_weights, float_model, images_of
from resnext_onnx.quantize.calibrate import all_ranges, histograms
from resnext_onnx.quantize.correct import beside_name, channel_means, corrected, with_layers_beside
from resnext_onnx.quantize.qdq import (
    Layers,
    Plan,
    Scheme,
    quantised,
    quantised_weight,
    scale_of,
    values_in,
    with_value_rounded,
)
from resnext_onnx.quantize.ranges import LEVELS, Range
from resnext_onnx.quantize.run import logits_of, values_of
from resnext_onnx.quantize.sensitivity import layer_errors, logit_error, refined
from resnext_onnx.quantize.targets import target_of
from resnext_onnx.regroup import regroup
from resnext_onnx.runtime import onnxruntime

from resnext_core.jobs.recorder import ignore
from resnext_core.processor import processor

SCHEMES = {"u8 8 bits": Scheme(), "u8 7 bits": Scheme(weights=64), "s8": Scheme(signed=True)}
IMAGES = images_of(0, TRAIN)[0]


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return regroup(float_model(fitted_weights()), 32)


@pytest.fixture(scope="module")
def ranges(model) -> dict[str, dict[str, Range]]:
    return all_ranges(histograms(model, IMAGES, 1, ignore))


@pytest.fixture(scope="module")
def plan(model, ranges) -> Plan:
    return Plan(layers=frozenset(Layers(model.graph).names), ranges=ranges["mse"])


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {c.name: numpy_helper.to_array(c) for c in model.graph.initializer}


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_weights_and_biases_are_within_half_a_step(model, plan, scheme):
    small, layers = constants(quantised(model, replace(plan, scheme=scheme))), Layers(model.graph)
    for name in layers.names:
        weight, scale = small[f"{name}.weight.q"], small[f"{name}.weight.scale"].astype(np.float64)
        assert weight.dtype == np.int8
        assert not small[f"{name}.weight.zero"].any()
        rows = layers.weight(name).reshape(len(weight), -1)
        off = np.abs(weight.reshape(len(weight), -1) * scale[:, None] - rows) / scale[:, None]
        assert off.max() <= 0.5 + 1e-5
        assert (np.abs(weight.reshape(len(weight), -1).astype(int)).max(axis=1) == scheme.weights).all()
        source = small[f"{layers.all[name].input[0]}.scale"] if name != "layer1.0.conv1" else None
        bias, step = small[f"{name}.bias.q"], small[f"{name}.bias.scale"].astype(np.float64)
        assert bias.dtype == np.int32
        assert (
            np.abs(bias * step - layers.bias(name)) <= step * (0.5 + 1e-5) + 1e-6 * np.abs(layers.bias(name))
        ).all()
        if source is not None:
            np.testing.assert_allclose(step, source * scale, rtol=1e-6)


def test_a_channel_without_weights_keeps_its_bias():
    weight = np.zeros((3, 4, 1, 1), np.float32)
    weight[1], weight[2] = 1e-30, 0.5
    bias = np.array([2.0, -300.0, 0.0], np.float32)
    steps, scale, whole = quantised_weight(weight, bias, np.float32(1e-3), 127)
    np.testing.assert_allclose(whole * (np.float32(1e-3) * scale).astype(np.float64), bias, rtol=1e-6)
    assert np.isfinite(scale).all()
    assert (scale > 0).all()
    assert not steps[:2].any()
    assert (steps[2] == 127).all()
    zero = quantised_weight(np.zeros((1, 1, 1, 1), np.float32), np.zeros(1, np.float32), np.float32(1), 127)
    assert [part.ravel().tolist() for part in zero] == [[0], [1.0], [0]]


@pytest.mark.parametrize(
    "cut", [Range(low=0, high=6), Range(low=-1.5, high=3.3), Range(low=-4, high=0), Range(low=2, high=5)]
)
@pytest.mark.parametrize("signed", [False, True])
def test_a_range_reaches_from_the_first_step_to_the_last_and_holds_zero_exactly(cut, signed):
    scale, zero = scale_of(cut, signed=signed)
    first, last = (-128, 127) if signed else (0, 255)
    assert scale.dtype == np.float32
    assert first <= zero <= last
    low, high = min(cut.low, 0), max(cut.high, 0)
    assert float(scale) == pytest.approx((high - low) / LEVELS)
    assert (first - zero) * scale == pytest.approx(low, abs=0.5 * scale + 1e-6)
    assert (last - zero) * scale == pytest.approx(high, abs=0.5 * scale + 1e-6)


def test_a_value_that_is_always_zero_has_a_step():
    assert scale_of(Range(low=0, high=0), signed=False) == (1.0, 0)
    assert scale_of(Range(low=0, high=0), signed=True) == (1.0, -128)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_logits_are_those_of_onnxs_own_evaluator(model, plan, scheme):
    small, images = quantised(model, replace(plan, scheme=scheme)), images_of(1, 2)[0]
    onnx.checker.check_model(small, full_check=True)
    same = onnx.ModelProto()
    same.CopyFrom(small)
    same.opset_import[
        0
    ].version = 19  # the evaluator has no older DequantizeLinear; for these types it is the same
    want = ReferenceEvaluator(same).run(["logits"], {"images": images})[0]
    got = logits_of(small, images, 1)
    # A sum near the middle between two steps may be rounded to either, by whatever adds it up.
    assert logit_error(got, want) < 0.02
    source = logits_of(model, images, 1)
    assert 1e-4 < logit_error(want, source) < 0.2


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_types_are_those_that_kernels_take(model, plan, scheme):
    small = quantised(model, replace(plan, scheme=scheme))
    kinds = {c.name: c.data_type for c in small.graph.initializer}
    activations = [n for n in small.graph.node if n.op_type == "QuantizeLinear"]
    assert {kinds[n.input[2]] for n in activations} == {
        TensorProto.INT8 if scheme.signed else TensorProto.UINT8
    }
    assert {n.op_type for n in small.graph.node if n.domain} == set()
    # Every layer reads and gives 8 bits, the last one but its logits; a pooled value has the steps of what was pooled.
    steps = constants(small)
    assert steps["pool.out.scale"] == steps["conv1.relu.out.scale"]
    assert steps["pool.out.zero"] == steps["conv1.relu.out.zero"]
    readers = {n.input[0]: n.op_type for n in small.graph.node}
    layers = Layers(model.graph)
    for node in (n for n in model.graph.node if n.op_type in ("Conv", "Add", "MaxPool")):
        assert readers[layers.result(node)] == "QuantizeLinear"
    assert not [
        c.name for c in small.graph.initializer if not any(c.name in n.input for n in small.graph.node)
    ]


def test_onnx_runtime_computes_all_of_it_in_integers(model, plan, tmp_path):
    here = target_of("auto", processor()).scheme
    small = quantised(model, replace(plan, scheme=here))
    assert {array.ndim for name, array in constants(small).items() if name.endswith(".out.scale")} == {0}
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3  # it warns that the file is for this processor
    onnxruntime.InferenceSession(small.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = Counter(n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node)
    source = Counter(n.op_type for n in model.graph.node)
    assert (kinds["QLinearConv"], kinds["QLinearAdd"]) == (source["Conv"], source["Add"])
    assert not kinds.keys() & {"Conv", "FusedConv", "Add", "Relu"}


def test_a_layer_that_stays_float_is_the_one_of_the_source(model, plan):
    name = "layer2.0.conv2"
    small = quantised(model, replace(plan, layers=plan.layers - {name}))
    node = next(n for n in small.graph.node if n.name == name)
    kept, source = constants(small), Layers(model.graph)
    np.testing.assert_array_equal(kept[node.input[1]], source.weight(name))
    np.testing.assert_array_equal(kept[node.input[2]], source.bias(name))
    assert kept[node.input[1]].dtype == np.float32
    assert not [
        c for c in kept if c.startswith(name + ".") and c.endswith((".q", ".zero")) and ".out" not in c
    ]
    # An addition behind a float layer is float too, and nothing is left of a network without layers in 8 bits.
    conv3 = "layer2.0.conv3"
    small = quantised(model, replace(plan, layers=plan.layers - {conv3}))
    add = next(n for n in small.graph.node if n.op_type == "Add" and n.name.startswith("layer2.0"))
    assert f"{source.all[conv3].output[0]}" in add.input
    nothing = quantised(model, replace(plan, layers=frozenset()))
    assert nothing.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_the_same_plan_gives_the_same_bytes(model, plan, ranges):
    again = Plan(
        layers=frozenset(sorted(plan.layers, reverse=True)), ranges=dict(reversed(ranges["mse"].items()))
    )
    one, two = (quantised(model, p).SerializeToString(deterministic=True) for p in (plan, again))
    assert one == two
    other = quantised(model, replace(plan, ranges=ranges["minmax"])).SerializeToString(deterministic=True)
    assert other != one


def test_histograms_are_those_of_the_values(model):
    found = histograms(model, IMAGES, 1, ignore)
    name = "layer1.0.conv3.out"
    values = np.concatenate([v for _, v in values_of(model, [name], IMAGES, 1)])
    assert (found[name].low, found[name].high) == (values.min(), values.max())
    assert found[name].total == values.size
    assert set(found) == set(Layers(model.graph).values())
    assert "logits" not in found


def shifts(model: onnx.ModelProto, plan: Plan) -> dict[str, float]:
    """The largest shift of a channel's mean of each layer, on the same float32 input."""
    nodes = Layers(model.graph).all
    outputs = [nodes[name].output[0] for name in sorted(plan.layers)]
    means = channel_means(
        with_layers_beside(model, plan), [*outputs, *map(beside_name, outputs)], IMAGES, 1, ignore
    )
    return {name: float(np.abs(means[name] - means[beside_name(name)]).max()) for name in outputs}


def test_bias_correction_takes_the_shift_of_means_back(model, plan):
    coarse = replace(plan, scheme=Scheme(weights=7))  # four bits: the shift is large
    before, after = shifts(model, coarse), shifts(model, corrected(model, coarse, IMAGES, 1, ignore))
    assert min(before.values()) > 1e-3
    steps = constants(quantised(model, coarse))
    for name, shift in after.items():
        output = Layers(model.graph).producer[name].name
        assert shift < 0.01 * before[name] + 0.51 * steps[f"{output}.bias.scale"].max(), name
    assert sum(after.values()) < 0.1 * sum(before.values())
    images = images_of(1, 5)[0]
    want = logits_of(model, images, 1)
    error, fixed = (
        logit_error(logits_of(quantised(model, p), images, 1), want)
        for p in (coarse, corrected(model, coarse, IMAGES, 1, ignore))
    )
    assert fixed < error


def test_layers_beside_the_network_leave_it_as_it_is(model, plan):
    beside = with_layers_beside(model, plan)
    onnx.checker.check_model(beside, full_check=True)
    images = images_of(1, 2)[0]
    np.testing.assert_allclose(
        logits_of(beside, images, 1), logits_of(model, images, 1), rtol=1e-4, atol=1e-5
    )


def test_sensitivity_names_the_layer_that_is_spoilt(model, plan):
    images = images_of(1, 4)[0]
    want, names = logits_of(model, images, 1), Layers(model.graph).names
    good = layer_errors(model, plan, names, images, want, 1, ignore)
    assert list(good) == list(names)
    assert all(0 < error < 0.1 for error in good.values())
    source = "layer2.0.conv1.relu.out"  # what conv2 alone reads
    narrow = plan.ranges[source].scaled(0.05)
    spoilt = replace(plan, ranges={**plan.ranges, source: narrow})
    bad = layer_errors(model, spoilt, names, images, want, 1, ignore)
    assert {name for name in names if bad[name] > 2 * good[name]} == {"layer2.0.conv1", "layer2.0.conv2"}


def test_refined_ranges_are_those_with_the_least_error_of_each_value(model, plan, ranges):
    images = images_of(0, 4)[0]
    want = logits_of(model, images, 1)
    source = "layer2.0.conv1.relu.out"
    spoilt = replace(plan, ranges={**plan.ranges, source: plan.ranges[source].scaled(0.1)})
    found = refined(model, spoilt, ranges, images, want, 1, ignore)
    assert found.layers == plan.layers

    def error(name: str, cut: Range) -> float:
        return logit_error(logits_of(with_value_rounded(model, name, cut, signed=False), images, 1), want)

    assert found.ranges[source] != spoilt.ranges[source]
    assert error(source, found.ranges[source]) == min(error(source, rule[source]) for rule in ranges.values())
    for name in values_in(model, plan):
        assert error(name, found.ranges[name]) <= error(name, spoilt.ranges[name])


def test_logit_error_is_of_what_changes_probabilities():
    want = np.array([[1.0, 3.0, -4.0], [0.0, 2.0, 1.0]])
    assert logit_error(want, want) == 0
    assert logit_error(want + np.array([[5.0], [-7.0]]), want) < 1e-12
    centered = want - want.mean(axis=1, keepdims=True)
    off = np.array([[0.1, -0.1, 0], [0, 0.2, -0.2]])
    assert logit_error(want + off, want) == pytest.approx(np.sqrt((off**2).mean() / (centered**2).mean()))
    assert logit_error(np.full_like(want, np.nan), want) == np.inf
    large = (want * 1e25).astype(np.float32)  # their squares are no float32
    assert logit_error(-large, large) == pytest.approx(2)
