"""The reference network against naive loops and central differences, and its predictor."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from resnext_core.config import LossConfig
from resnext_core.errors import DataError, UsageError
from resnext_core.interfaces import Predictor, PredictRequest
from resnext_core.model.init import random_weights
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.spec import BN_EPS, ModelSpec
from resnext_core.model.weights import Weights, save_weights
from resnext_core.ranks.info import RankInfo
from resnext_core.reference import ops, predictor
from resnext_core.reference.loss import LossFunction, loss_function
from resnext_core.reference.network import evaluate, normalize, train_pass
from resnext_core.reference.options import ReferenceOptions
from resnext_core.reference.plugin import resnext_backends
from resnext_core.testing.processes import imported_by

Array = np.ndarray[Any, Any]

TINY = ModelSpec(
    variant="tiny", depths=(2, 1), groups=2, base_width=16, stem_width=8, num_classes=4, image_size=19
)
FLOAT64 = np.dtype("float64")


def make_weights(spec: ModelSpec, seed: int = 3) -> Weights:
    return Weights(
        spec=spec,
        preprocess=PreprocessSpec(
            size=spec.image_size, resize=spec.image_size, mean=(100, 110, 120), std=(50, 60, 70)
        ),
        classes=tuple(f"c{i}" for i in range(spec.num_classes)),
        tensors=random_weights(spec, seed),
    )


def make_images(count: int, size: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def of_labels(*labels: int) -> LossFunction:
    """Return the usual loss of TINY's logits for these labels."""
    return loss_function(LossConfig(), TINY.num_classes, np.array(labels))


# -- operations against loops ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "stride", "groups", "size"),
    [(1, 1, 1, 5), (1, 2, 1, 6), (3, 1, 2, 5), (3, 2, 4, 7), (7, 2, 1, 8)],
)
def test_conv_is_the_sum_over_its_window(kernel: int, stride: int, groups: int, size: int) -> None:
    rng = np.random.default_rng(1)
    x, weight = rng.normal(size=(4, 2, size, size + 1)), rng.normal(size=(8, 4 // groups, kernel, kernel))
    got = ops.conv(x, weight, stride, groups)
    half = kernel // 2
    for o, n, i, j in np.ndindex(*got.shape):
        total = 0.0
        for c, u, v in np.ndindex(4 // groups, kernel, kernel):
            row, column = i * stride + u - half, j * stride + v - half
            if 0 <= row < size and 0 <= column < size + 1:
                total += weight[o, c, u, v] * x[o // (8 // groups) * (4 // groups) + c, n, row, column]
        assert got[o, n, i, j] == pytest.approx(total, abs=1e-12)
    assert got.shape[2:] == ((size - 1) // stride + 1, size // stride + 1)


@pytest.mark.parametrize(("padding", "size"), list(product(["same", "symmetric"], [6, 7])))
def test_max_pool_is_the_maximum_of_its_window(padding: str, size: int) -> None:
    """All values are negative: a pool that pads with zeros fails."""
    spec = TINY.replace(pool_padding=padding)
    x = -1 - np.random.default_rng(2).random((2, 2, size, size))
    before = 0 if padding == "same" and size % 2 == 0 else 1
    pads = spec.pool_pads(size)
    got, winner = ops.max_pool(x, pads, pads)
    assert got.shape[2] == (size + 1) // 2
    for c, n, i, j in np.ndindex(*got.shape):
        top, left = 2 * i - before, 2 * j - before
        window = x[c, n, max(top, 0) : top + 3, max(left, 0) : left + 3]
        assert got[c, n, i, j] == window.max()
        row, column = divmod(int(winner[c, n, i, j]), 3)
        assert got[c, n, i, j] == x[c, n, top + row, left + column]
    dx = ops.max_pool_backward(np.ones_like(got), winner, x.shape, pads, pads)
    assert dx.sum() == got.size
    assert not dx[~np.isin(x, got)].any()


def test_max_pool_first_of_equals_wins_and_nan_wins_over_all() -> None:
    x = np.zeros((1, 1, 4, 4))
    assert ops.max_pool(x, (0, 1), (0, 1))[1].tolist() == [[[[0, 0], [0, 0]]]]
    x[0, 0, 1, 1] = np.nan
    assert np.isnan(ops.max_pool(x, (0, 1), (0, 1))[0]).tolist() == [[[[True, False], [False, False]]]]


def test_bn_train_against_its_definition() -> None:
    rng = np.random.default_rng(4)
    x, weight, bias = rng.normal(2, 3, (3, 2, 4, 5)), rng.normal(size=3), rng.normal(size=3)
    y, normalized, inv_std, mean, var = ops.bn_train(x.copy(), weight, bias, BN_EPS)
    for c in range(3):
        assert mean[c] == pytest.approx(x[c].mean())
        assert var[c] == pytest.approx(((x[c] - x[c].mean()) ** 2).mean())
        expected = (x[c] - x[c].mean()) / (x[c].var() + BN_EPS) ** 0.5
        np.testing.assert_allclose(normalized[c], expected, atol=1e-12)
        np.testing.assert_allclose(y[c], expected * weight[c] + bias[c], atol=1e-12)
        assert inv_std[c] == pytest.approx((x[c].var() + BN_EPS) ** -0.5)


def test_smoothed_targets() -> None:
    labels = np.array([2, 0])
    others = ops.smoothed_targets(labels, 5, 0.1, "others")
    assert others[0] == pytest.approx([0.025, 0.025, 0.9, 0.025, 0.025])
    uniform = ops.smoothed_targets(labels, 5, 0.1, "uniform")
    assert uniform[1] == pytest.approx([0.92, 0.02, 0.02, 0.02, 0.02])
    assert ops.smoothed_targets(labels[1:], 1, 0.0, "others").tolist() == [[1.0]]


def test_cross_entropy_of_large_logits() -> None:
    logits = np.array([[1e4, 0.0], [0.0, 1e4]], np.float32)
    loss, gradient = ops.cross_entropy(logits, np.array([[1.0, 0.0], [1.0, 0.0]], np.float32))
    assert loss == pytest.approx(5e3)
    np.testing.assert_allclose(gradient, np.array([[0.0, 0.0], [-0.5, 0.5]]))


# -- the whole network -------------------------------------------------------------------------

CASES = {
    "same": (TINY, LossConfig(smoothing=0.1)),
    "symmetric": (
        TINY.replace(pool_padding="symmetric", image_size=20),
        LossConfig(smoothing=0.2, smoothing_form="uniform"),
    ),
    "cifar": (
        TINY.replace(stem="cifar", image_size=7, groups=4, depths=(1, 1, 1)),
        LossConfig(smoothing=0.0),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_slopes_of_the_loss(case: str) -> None:
    """Central differences in float64, along a random direction of every parameter tensor."""
    spec, config = CASES[case]
    tensors = {n: a.astype(np.float64) for n, a in random_weights(spec, 5).items()}
    x = normalize(make_images(3, spec.image_size), PreprocessSpec(), FLOAT64)
    loss, rng = loss_function(config, spec.num_classes, np.array([3, 0, 1])), np.random.default_rng(6)
    found = train_pass(spec, tensors, x, loss)
    assert set(found.gradients) == {t.name for t in spec.tensors if t.trainable}
    for name, gradient in found.gradients.items():
        assert gradient.shape == tensors[name].shape
        direction = rng.normal(size=gradient.shape)
        direction /= np.linalg.norm(direction)
        sides = [
            train_pass(spec, {**tensors, name: tensors[name] + step * direction}, x, loss).loss
            for step in (1e-6, -1e-6)
        ]
        slope = (sides[0] - sides[1]) / 2e-6
        # 1e-8 is the rounding of the difference itself: 1e-16 of a loss near 1, over 2e-6, with room
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-8), name


def test_running_statistics_take_the_unbiased_variance() -> None:
    tensors = {n: a.astype(np.float64) for n, a in random_weights(TINY, 5).items()}
    x = normalize(make_images(3, 19), PreprocessSpec(), FLOAT64)
    running = train_pass(TINY, tensors, x, of_labels(0, 1, 2)).running
    assert set(running) == {t.name for t in TINY.tensors if not t.trainable}
    y = ops.conv(x, tensors["conv1.weight"], 2, 1).reshape(8, -1)
    np.testing.assert_allclose(
        running["bn1.running_mean"], 0.9 * tensors["bn1.running_mean"] + 0.1 * y.mean(axis=1)
    )
    np.testing.assert_allclose(
        running["bn1.running_var"], 0.9 * tensors["bn1.running_var"] + 0.1 * y.var(axis=1, ddof=1)
    )


def test_evaluation_equals_training_when_the_statistics_are_the_batchs() -> None:
    """Two code paths, one function: feed the batch's own statistics as the running ones, layer by layer."""
    tensors = {n: a.astype(np.float64) for n, a in random_weights(TINY, 5).items()}
    x = normalize(make_images(4, 19), PreprocessSpec(), FLOAT64)
    found = train_pass(TINY, tensors, x, of_labels(0, 0, 0, 0))
    for tensor in TINY.tensors:
        if tensor.role in ("bn_mean", "bn_var"):
            batch = (found.running[tensor.name] - 0.9 * tensors[tensor.name]) / 0.1
            tensors[tensor.name] = batch
    counts = {"bn1": 4 * 100, "layer1": 4 * 25, "layer2.0.bn1": 4 * 25, "layer2": 4 * 9}
    for name in [n for n in tensors if n.endswith("running_var")]:
        count = next(c for prefix, c in counts.items() if name.startswith(prefix))
        tensors[name] = tensors[name] * (count - 1) / count
    np.testing.assert_allclose(evaluate(TINY, tensors, x), found.logits, rtol=1e-9, atol=1e-9)


def test_training_leaves_its_inputs_alone() -> None:
    tensors = random_weights(TINY, 5)
    images = make_images(3, 19)
    x = normalize(images, PreprocessSpec(), np.dtype("float32"))
    before = {n: a.copy() for n, a in tensors.items()}, x.copy()
    found = train_pass(TINY, tensors, x, of_labels(0, 1, 2))
    assert all(np.array_equal(tensors[n], a) for n, a in before[0].items())
    assert np.array_equal(x, before[1])
    assert {g.dtype for g in found.gradients.values()} == {np.dtype("float32")}


def test_normalize_is_x_minus_mean_over_std() -> None:
    images = make_images(2, 5)
    got = normalize(images, PreprocessSpec(mean=(1, 2, 3), std=(4, 5, 6)), FLOAT64)
    for c in range(3):
        np.testing.assert_allclose(got[c], (images[..., c].astype(float) - (c + 1)) / (c + 4))


def test_labels_must_be_classes_and_statistics_need_two_values() -> None:
    tensors = random_weights(TINY, 5)
    x = normalize(make_images(1, 5), PreprocessSpec(), np.dtype("float32"))
    for label in (-1, 4):
        with pytest.raises(DataError, match="4 classes"):
            train_pass(TINY, tensors, x, of_labels(label))
    with pytest.raises(UsageError, match="batch_size"):
        train_pass(TINY, tensors, x, of_labels(0))


# -- predictor ---------------------------------------------------------------------------------


def predict(
    weights: Weights | None = None,
    path: Path | None = None,
    compute: Literal["float32", "float64"] = "float32",
) -> Predictor:
    backend = next(iter(resnext_backends()))
    assert backend.predictor is not None
    assert backend.options is ReferenceOptions
    options = backend.options(compute=compute)
    return backend.predictor(PredictRequest(weights=weights, path=path, rank=RankInfo(), options=options))


def test_predictor_from_memory_and_from_file_agree(tmp_path: Path) -> None:
    weights, images = make_weights(TINY), make_images(3, 19)
    save_weights(weights, tmp_path / "w.safetensors")
    logits = predict(weights).logits(images)
    assert logits.shape == (3, 4)
    assert logits.dtype == np.float32
    assert np.array_equal(predict(path=tmp_path / "w.safetensors").logits(images), logits)


def test_float32_is_close_to_float64() -> None:
    weights, images = make_weights(TINY), make_images(3, 19)
    exact = predict(weights, compute="float64").logits(images)
    difference = np.abs(predict(weights).logits(images) - exact).max()
    assert 0 < difference < 1e-6 * np.abs(exact).max()


def test_logits_from_tensor_equals_logits() -> None:
    weights, images = make_weights(TINY), make_images(3, 19)
    mean, std = np.array(weights.preprocess.mean), np.array(weights.preprocess.std)
    tensor = ((images - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    for server in (predict(weights), predict(weights, compute="float64")):
        np.testing.assert_allclose(server.logits_from_tensor(tensor), server.logits(images), atol=2e-6)


def test_batch_mates_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    server, images = predict(make_weights(TINY)), make_images(5, 19)
    together = server.logits(images)
    monkeypatch.setattr(predictor, "_CHUNK_PIXELS", 2 * 19 * 19)
    np.testing.assert_allclose(server.logits(images), together, atol=1e-6)
    for i in range(5):
        np.testing.assert_allclose(server.logits(images[i : i + 1])[0], together[i], atol=1e-6)


def test_predictor_refuses_what_it_cannot_serve(tmp_path: Path) -> None:
    weights = make_weights(TINY)
    for request in ({}, {"weights": weights, "path": tmp_path / "w.safetensors"}):
        with pytest.raises(UsageError, match="either"):
            predict(**request)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"x\.onnx"):
        predict(path=tmp_path / "x.onnx")
    with pytest.raises(DataError, match="no weights file"):
        predict(path=tmp_path / "none.safetensors")
    server, images = predict(weights), make_images(2, 19)
    for bad in (images.astype(np.float32), images[0], images[..., :1], images[:0]):
        with pytest.raises(UsageError, match="uint8"):
            server.logits(bad)
    with pytest.raises(UsageError, match="float32"):
        server.logits_from_tensor(images)
    server.close()
    with pytest.raises(UsageError, match="closed"):
        server.logits(images)


def test_plugin_is_light() -> None:
    code = (
        "import resnext_core.reference.plugin as p; b = next(iter(p.resnext_backends()));"
        "assert b.probe().state == 'ready'"
    )
    assert imported_by(code, ["numpy", "safetensors", "yaml"]) == []
