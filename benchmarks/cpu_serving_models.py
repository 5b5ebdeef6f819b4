"""The networks of cpu_serving.py: trained, or made like trained ones, in float32 and as tools quantise them."""

from __future__ import annotations

import logging
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from resnext_onnx.export import build_model, export_onnx
from resnext_onnx.graph import IMAGES, LOGITS
from resnext_onnx.options import OnnxOptions
from resnext_onnx.quantize.job import QuantizeJob, quantize
from resnext_onnx.quantize.sample import LEAST, Sample, pick, read
from resnext_onnx.regroup import regroup
from resnext_onnx.runtime import onnxruntime

from resnext_core.data.splits import examine_splits, open_split
from resnext_core.errors import BackendUnavailable, DataError, reason
from resnext_core.interfaces import ExportRequest
from resnext_core.jobs.recorder import ignore
from resnext_core.jobs.settings import Settings, resolve
from resnext_core.model.init import random_weights
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.spec import BN_EPS, model_spec
from resnext_core.model.weights import Weights, save_weights
from resnext_core.plugins import load_plugins
from resnext_core.processor import processor
from resnext_core.serving.load import read_weights

Array = np.ndarray[Any, Any]
#: Images whose batch statistics a made network gets.
_STATISTICS = 32
#: Images that its dense layer is fitted to.
_FIT = 300
_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Data:
    """Images as the network sees them: the sample that all tools calibrate with, and all of validation."""

    calibration: Sample
    validation: Sample
    classes: tuple[str, ...]


def load_run(path: Path, data: str, calibration: int) -> tuple[Weights, Data]:
    """Return the weights of a run or a weights file, and images of the folder `data`, read as the weights say.

    `calibration` is the number of images that all tools calibrate with.
    """
    plugins = load_plugins()
    resolved = resolve(Settings(data=data), plugins)
    weights = read_weights(path, resolved.config, resolved.sources, plugins)
    return weights, _data(data, weights.preprocess, weights.classes, calibration, named=weights.has_names)


def make_weights(variant: str, data: str, path: Path) -> None:
    """Write weights like trained ones of `variant`, for the classes of the folder `data`, at `path`.

    Random weights (:func:`resnext_core.model.init.random_weights`) get what training would give them: the statistics of
    each batch normalisation are those of real images in this very network, so that activations are alive and have the
    ranges that the weights of the normalisation give them; and the dense layer is the ridge regression of the
    labels of 300 images of train on their features, so that classes have margins, and top-1 a meaning.
    """
    splits, faults = examine_splits(resolve(Settings(data=data), load_plugins()).config)
    if splits is None or faults:
        raise faults[0]
    classes = splits.train.classes
    spec = model_spec(variant, num_classes=len(classes), pool_padding="symmetric")
    preprocess = PreprocessSpec(size=spec.image_size, resize=spec.image_size * 8 // 7, mode="shorter-side")
    sample = _data(data, preprocess, classes, _FIT, named=True).calibration
    made = Weights(spec=spec, preprocess=preprocess, classes=classes, tensors=random_weights(spec, seed=1))
    save_weights(trained_like(made, sample), path)


def trained_like(weights: Weights, sample: Sample) -> Weights:
    """Return random `weights` with the statistics and the dense layer that fit `sample`; see :func:`make_weights`."""
    tensors = dict(weights.tensors)
    tensors.update(_batch_statistics(weights, sample.images[:_STATISTICS]))
    weights = replace(weights, tensors=tensors)
    model = _model(weights)
    features = _outputs(model, ["features.out"], sample.images)["features.out"].astype(np.float64)
    mean = features.mean(axis=0)
    centered = features - mean
    targets = np.eye(weights.spec.num_classes)[sample.labels] - 1 / weights.spec.num_classes
    # The dual form: there are fewer images than features.
    gram = centered @ centered.T
    ridge = 0.1 * np.trace(gram) / len(gram)
    matrix = np.linalg.solve(gram + ridge * np.eye(len(gram)), targets).T @ centered
    scale = 10 / np.abs(matrix @ centered.T).max()  # logits of the size of a trained network's
    tensors["fc.weight"] = (scale * matrix).astype(np.float32)
    tensors["fc.bias"] = (-scale * matrix @ mean).astype(np.float32)
    return replace(weights, tensors=tensors)


def _batch_statistics(weights: Weights, images: Array) -> dict[str, Array]:
    """Return running means and variances by name: those of `images` in the network normalised by their own batch."""
    graph = _model(weights, fold_bn=False).graph
    nodes: list[onnx.NodeProto] = []
    outputs: list[onnx.ValueInfoProto] = []
    for node in graph.node:
        if node.op_type != "BatchNormalization":
            nodes.append(node)
            continue
        x, gamma, beta, mean, var = node.input
        n = node.name
        side = {"axes": [0, 2, 3], "keepdims": 1}
        nodes += [
            helper.make_node("ReduceMean", [x], [f"{mean}.now"], **side),
            helper.make_node("Sub", [x, f"{mean}.now"], [f"{n}.centered"]),
            helper.make_node("Mul", [f"{n}.centered", f"{n}.centered"], [f"{n}.squared"]),
            helper.make_node("ReduceMean", [f"{n}.squared"], [f"{var}.now"], **side),
            helper.make_node("Add", [f"{var}.now", "eps"], [f"{n}.var"]),
            helper.make_node("Sqrt", [f"{n}.var"], [f"{n}.deviation"]),
            helper.make_node("Div", [f"{n}.centered", f"{n}.deviation"], [f"{n}.unit"]),
            helper.make_node("Reshape", [gamma, "column"], [f"{n}.gamma"]),
            helper.make_node("Reshape", [beta, "column"], [f"{n}.beta"]),
            helper.make_node("Mul", [f"{n}.unit", f"{n}.gamma"], [f"{n}.scaled"]),
            helper.make_node("Add", [f"{n}.scaled", f"{n}.beta"], list(node.output)),
        ]
        outputs += [
            helper.make_tensor_value_info(f"{name}.now", onnx.TensorProto.FLOAT, None) for name in (mean, var)
        ]
    read = {name for node in nodes for name in node.input}
    constants = [
        *(constant for constant in graph.initializer if constant.name in read),
        numpy_helper.from_array(np.float32(BN_EPS), "eps"),
        numpy_helper.from_array(np.array([1, -1, 1, 1]), "column"),
    ]
    made = helper.make_graph(nodes, "statistics", graph.input, outputs, constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    names = [output.name for output in outputs]
    session = _session(model)
    found = dict(zip(names, session.run(names, {IMAGES: images}), strict=True))
    return {name.removesuffix(".now"): values.reshape(-1) for name, values in found.items()}


# -- files -----------------------------------------------------------------------------------------


def float32(weights: Weights, path: Path, channels: int | None = None) -> None:
    """Write what our exporter writes, with groups of at least `channels` channels."""
    options = OnnxOptions() if channels is None else OnnxOptions(regroup=channels)
    export_onnx(weights, path, ExportRequest(options=options))


def stock(weights: Weights, data: Data, path: Path, *, unsigned: bool, channels: int | None = None) -> None:
    """Quantise with ``quantize_static`` of ONNX Runtime.

    Its defaults are signed activations and one scale a tensor of weights. `unsigned` takes what its documentation
    advises for x86: unsigned activations, one scale a channel, 7-bit weights where the processor saturates.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Images(CalibrationDataReader):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            self.left = _batches(data.calibration.images)

        def get_next(self) -> dict[str, Array] | None:
            part = next(self.left, None)
            return None if part is None else {IMAGES: part}

    model = _model(weights)
    advised: dict[str, Any] = {}
    if unsigned:
        advised = {
            "activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True,
            "reduce_range": processor().saturates,
        }  # fmt: skip
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it asks for a preprocessing that our exporter has done
    try:
        quantize_static(model if channels is None else regroup(model, channels), path, Images(), **advised)
    finally:
        root.setLevel(level)


def ours(
    weights: Path, data: str, path: Path, *, calibration: int, max_drop: float, min_agreement: float
) -> None:
    """Quantise with ``resnext-run quantize``; DataError where its gate is not met."""
    quantize(
        QuantizeJob(
            weights=weights, target=path, settings=Settings(data=data), max_drop=max_drop,
            min_agreement=min_agreement, calibration=calibration,
        )
    )  # fmt: skip


def nncf(
    weights: Weights,
    data: Data,
    path: Path,
    python: str,
    *,
    channels: int | None = None,
    control: float | None = None,
) -> None:
    """Quantise with NNCF in the interpreter `python`, see cpu_serving_nncf.py; BackendUnavailable where it has none.

    `control` is the drop in points that ``quantize_with_accuracy_control`` allows; None: ``quantize``.
    """
    model = _model(weights)
    with tempfile.TemporaryDirectory() as scratch:
        source, images, target = (
            Path(scratch) / name for name in ("source.onnx", "images.npz", "target.onnx")
        )
        onnx.save(model if channels is None else regroup(model, channels), source)
        np.savez(
            images,
            calibration=data.calibration.images,
            validation=data.validation.images,
            labels=data.validation.labels,
        )
        words = [python, Path(__file__).with_name("cpu_serving_nncf.py"), source, images, target]
        words += [] if control is None else ["--control", control]
        advice = "name one that has NNCF with --nncf PYTHON"
        try:
            done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
        except OSError as error:
            raise BackendUnavailable(f"cannot run {python}: {reason(error)}; {advice}") from error
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise BackendUnavailable(f"NNCF failed in {python}: {last}; {advice}")
        shutil.copyfile(target, path)


# -- images and sessions ---------------------------------------------------------------------------


def logits(session: Any, images: Array) -> Array:
    """Return float32 logits (N, classes) of uint8 `images` by a session of ``resnext_onnx.sessions``."""
    return np.concatenate([session.run(IMAGES, part) for part in _batches(images)])


def _data(
    data: str, preprocess: PreprocessSpec, classes: tuple[str, ...], count: int, *, named: bool
) -> Data:
    plugins = load_plugins()
    config = resolve(Settings(data=data), plugins).config
    decoder = plugins.decoder(config.data.decoder)
    train, validation = (open_split(config.data, split, classes, named=named) for split in ("train", "val"))
    if len(validation) < LEAST:
        raise DataError(
            f"{validation.root} has {len(validation)} images; this benchmark needs {LEAST} or more"
        )
    chosen, _ = pick(train.labels, classes, count, config.train.seed, data)
    places = np.arange(len(validation))
    return Data(
        calibration=read(train, chosen, preprocess, config, decoder, "train", ignore),
        validation=read(validation, places, preprocess, config, decoder, "validation", ignore),
        classes=classes,
    )


def _model(weights: Weights, *, fold_bn: bool = True) -> onnx.ModelProto:
    model: onnx.ModelProto = onnx.ModelProto.FromString(build_model(weights, ExportRequest(fold_bn=fold_bn)))
    del model.metadata_props[:]  # a quantised file is not what they describe
    return model


def _session(model: onnx.ModelProto) -> Any:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def _outputs(model: onnx.ModelProto, names: list[str], images: Array) -> dict[str, Array]:
    for name in names:
        if name != LOGITS:
            model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = _session(model)
    parts = [session.run(names, {IMAGES: part}) for part in _batches(images)]
    return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}


def _batches(images: Array, rows: int = _BATCH) -> Iterator[Array]:
    for start in range(0, len(images), rows):
        yield np.ascontiguousarray(images[start : start + rows])
