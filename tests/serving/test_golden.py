"""The golden check: it accepts the right network and notices wrong ones."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command_line import CommandLine

from resnext_core.errors import EXIT_DATA, DataError, UsageError
from resnext_core.interfaces import Backend, Predictor, PredictRequest
from resnext_core.model.spec import PoolPadding, model_spec
from resnext_core.model.weights import Golden, load_weights, save_weights
from resnext_core.reference.network import evaluate, normalize
from resnext_core.reference.options import ReferenceOptions
from resnext_core.reference.plugin import resnext_backends
from resnext_core.runs.pointers import best_weights
from resnext_core.serving import golden as selfcheck
from resnext_core.serving.golden import check_golden, golden_images, make_golden, synthetic_images

PADDINGS: tuple[PoolPadding, ...] = ("same", "symmetric")


@pytest.fixture
def reference() -> Backend:
    return next(iter(resnext_backends()))


def with_predictor(backend: Backend, factory: Callable[[PredictRequest], Predictor]) -> Backend:
    return dataclasses.replace(backend, predictor=factory)


def test_reference_passes(reference: Backend) -> None:
    assert 0 < selfcheck.check_backend(reference) < 1e-5
    assert selfcheck.check_backend(reference, ReferenceOptions(compute="float64")) < 1e-7


@pytest.mark.parametrize("padding", PADDINGS)
def test_goldens_are_the_float64_logits(padding: PoolPadding) -> None:
    weights = selfcheck.golden_weights(padding)
    tensors = {n: a.astype(np.float64) for n, a in weights.tensors.items()}
    x = normalize(selfcheck.golden_images(), weights.preprocess, np.dtype("float64"))
    logits = evaluate(weights.spec, tensors, x)
    np.testing.assert_allclose(logits, selfcheck.GOLDEN_LOGITS[padding], rtol=0, atol=1e-11)


def test_images_and_weights_never_change() -> None:
    """The goldens were computed and confirmed elsewhere for exactly these bits."""
    images = selfcheck.golden_images()
    assert hashlib.sha256(images.tobytes()).hexdigest()[:16] == "9166320bc62ffddf"
    assert selfcheck.golden_weights().digest[:23] == "sha256:df7888917bafac5f"
    assert (images.min(), images.max()) == (0, 255)


def test_pool_paddings_are_told_apart() -> None:
    same, symmetric = (np.array(selfcheck.GOLDEN_LOGITS[p]) for p in PADDINGS)
    assert np.abs(same - symmetric).max() > 0.1


def test_every_channel_is_alive() -> None:
    """A dead channel would hide an error in whatever feeds it."""
    weights = selfcheck.golden_weights()
    tensors = {n: a.astype(np.float64) for n, a in weights.tensors.items()}
    x = normalize(selfcheck.golden_images(), weights.preprocess, np.dtype("float64"))
    golden = np.array(selfcheck.GOLDEN_LOGITS["same"])
    for tensor in weights.spec.tensors:
        if tensor.role != "bn_bias":
            continue
        for channel in range(0, tensor.size, 4):
            changed = tensors[tensor.name].copy()
            changed[channel] += 0.05
            logits = evaluate(weights.spec, {**tensors, tensor.name: changed}, x)
            assert np.abs(logits - golden).max() > 1e-4, f"{tensor.name}[{channel}]"


@pytest.mark.parametrize(
    "role", ["conv", "bn_weight", "bn_bias", "bn_mean", "bn_var", "fc_weight", "fc_bias"]
)
def test_a_wrong_tensor_is_noticed(reference: Backend, role: str) -> None:
    """Each tensor in turn has two of its rows swapped, as a transposed or shuffled load would."""
    assert reference.predictor is not None
    spec = selfcheck.golden_weights().spec
    for tensor in [t for t in spec.tensors if t.role == role][::3]:

        def broken(request: PredictRequest, name: str = tensor.name) -> Predictor:
            assert reference.predictor is not None
            assert request.weights is not None
            array = request.weights.tensors[name].copy()
            array[[0, 1]] = array[[1, 0]]
            weights = request.weights.replace(tensors={**request.weights.tensors, name: array})
            return reference.predictor(dataclasses.replace(request, weights=weights))

        assert selfcheck.check_backend(with_predictor(reference, broken)) > 1e-4, tensor.name


@dataclasses.dataclass
class Wrapped:
    """A predictor whose logits pass through `change`."""

    inner: Predictor
    change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
    closed: int = 0

    def logits(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return self.change(self.inner.logits(images))

    def logits_from_tensor(self, tensor: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return self.change(self.inner.logits_from_tensor(tensor))

    def close(self) -> None:
        self.closed += 1


def test_nan_is_infinitely_wrong_and_predictors_are_closed(reference: Backend) -> None:
    made: list[Wrapped] = []

    def factory(request: PredictRequest) -> Predictor:
        assert reference.predictor is not None
        made.append(Wrapped(reference.predictor(request), lambda logits: logits * np.float32("nan")))
        return made[-1]

    assert selfcheck.check_backend(with_predictor(reference, factory)) == float("inf")
    assert [w.closed for w in made] == [1, 1]


@pytest.mark.parametrize(
    "change", [lambda y: y[:2], lambda y: y.astype(np.float64)], ids=["short", "float64"]
)
def test_wrong_shape_or_dtype_is_an_error(reference: Backend, change: Callable[[Any], Any]) -> None:
    def factory(request: PredictRequest) -> Predictor:
        assert reference.predictor is not None
        return Wrapped(reference.predictor(request), change)

    with pytest.raises(DataError, match="float32"):
        selfcheck.check_backend(with_predictor(reference, factory))


def test_a_backend_without_predictor_is_refused(reference: Backend) -> None:
    with pytest.raises(UsageError, match="golden"):
        selfcheck.check_backend(dataclasses.replace(reference, predictor=None))
    with pytest.raises(UsageError, match="golden"):
        selfcheck.check_backend(dataclasses.replace(reference, formats=(".onnx",)))


# -- a model's own golden logits ---------------------------------------------------------------------


def test_the_images_are_those_of_the_golden_check() -> None:
    assert np.array_equal(synthetic_images(3, 36), golden_images())
    for size in (1, 7, 64):
        images = synthetic_images(2, size)
        assert (images.shape, images.dtype) == ((2, size, size, 3), np.uint8)
        assert np.array_equal(images, synthetic_images(2, size)), "the same every time"


def test_a_model_tells_whether_it_is_computed_rightly(
    cli: CommandLine, finished_run: Path, tmp_path: Path
) -> None:
    """A trained run carries golden logits; whoever computes others refuses to serve it, unless told to."""
    weights = load_weights(best_weights(finished_run / "checkpoints"))
    assert weights.golden is not None
    assert len(weights.golden.logits) == 2
    path = tmp_path / "w.safetensors"
    save_weights(weights, path)
    image = next((Path(cli_data(finished_run)) / "val" / "ant").iterdir())
    words = ["infer", "--weights", path, image, "--set", "data.workers=0"]
    cli.ok(*words)
    off = tuple(tuple(x * 1.01 for x in row) for row in weights.golden.logits)
    save_weights(weights.replace(golden=Golden(compute="float32", logits=off)), path)
    says = ("gives wrong results on this machine", "off by 0.0099", "eval.self_check=false")
    cli.refuses(EXIT_DATA, *words, says=says)
    cli.ok(*words, "--set", "eval.self_check=false")
    save_weights(weights.replace(golden=Golden(compute="bfloat16", logits=off)), path)
    cli.ok(*words)


def cli_data(run: Path) -> str:
    return str(yaml.safe_load((run / "config.yaml").read_text())["data"]["dir"])


class Answers:
    """A predictor of fixed logits."""

    def __init__(self, logits: object) -> None:
        self.answer = np.array(logits, np.float32)

    def logits(self, images: np.ndarray) -> np.ndarray:
        return self.answer


def test_golden_logits_that_are_no_numbers_are_not_kept() -> None:
    spec = model_spec("resnext_tiny", num_classes=2)
    assert make_golden(Answers([[1, 2], [3, np.inf]]), spec, "float16") is None  # type: ignore[arg-type]
    golden = make_golden(Answers([[1, 2], [3, 4]]), spec, "float16")  # type: ignore[arg-type]
    assert golden == Golden(compute="float16", logits=((1.0, 2.0), (3.0, 4.0)))
    assert check_golden(Answers([[1, 2], [3, 4]]), golden, spec, "it") == 0  # type: ignore[arg-type]
    assert check_golden(Answers([[1, 2], [3, 4]]), None, spec, "it") is None  # type: ignore[arg-type]
    with pytest.raises(DataError, match="it gives wrong results"):
        check_golden(Answers([[1, 2], [3, np.nan]]), golden, spec, "it")  # type: ignore[arg-type]
