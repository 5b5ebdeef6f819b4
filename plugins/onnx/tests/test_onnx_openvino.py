"""The OpenVINO provider: the same logits and refusals as ONNX Runtime's, bfloat16 only when asked for, no reports."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
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
from openvino_cases import INSTALLED, needs_openvino
from PIL import Image
from resnext_onnx import openvino_sessions, plugin
from resnext_onnx.options import OnnxOptions
from resnext_onnx.ort_sessions import OrtRuntime
from resnext_onnx.predictor import IMAGE_TOLERANCE, OnnxPredictor

from resnext_core.errors import BackendUnavailable, DataError, UsageError
from resnext_core.jobs.environment import environment
from resnext_core.model.preprocess import eval_pixels
from resnext_core.processor import Processor, processor

#: float16 and bfloat16 logits against the reference.
LOW_TOLERANCE = 2e-2
PLAIN = Processor(name="Old CPU", cores=2, instructions="avx2", bfloat16=False)


needs_bfloat16 = pytest.mark.skipif(
    not processor().bfloat16, reason="this processor has no bfloat16 instructions"
)


@pytest.fixture(scope="module")
def weights():
    return make_weights(IMAGENET)


@pytest.fixture(scope="module")
def artefact(weights, tmp_path_factory) -> Path:
    return write(weights, tmp_path_factory.mktemp("openvino") / "m.onnx")


def open_openvino(path: Path, **options: object) -> OnnxPredictor:
    return open_onnx(path, provider="openvino", **options)


# -- without the package ---------------------------------------------------------------------


def test_without_the_package_it_says_how_to_get_it(artefact, monkeypatch):
    monkeypatch.setattr(openvino_sessions, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"openvino is not installed: pip install openvino$"):
        open_openvino(artefact)


def test_a_broken_package_is_one_line(artefact, monkeypatch):
    def broken(name: str) -> None:
        raise ImportError("libopenvino.so.1: cannot open shared object file")

    monkeypatch.setattr(openvino_sessions, "find_spec", lambda name: object())
    monkeypatch.setattr(openvino_sessions, "import_module", broken)
    with pytest.raises(
        BackendUnavailable, match=r"does not load \(libopenvino\.so\.1: .*--force-reinstall openvino$"
    ):
        open_openvino(artefact)
    assert "openvino_telemetry" not in sys.modules


def test_threads_that_import_it_at_once_get_the_whole_package(tmp_path, monkeypatch):
    """A package that is slow to load: the second thread comes while the first is in the middle of it."""
    (tmp_path / "openvino.py").write_text(
        "import sys, threading\nthreading.Event().wait(0.2)\n"
        "assert sys.modules['openvino_telemetry'] is None\nCore = dict\n"
    )
    for name in [name for name in sys.modules if name.partition(".")[0] == "openvino"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda: found.append(hasattr(openvino_sessions.openvino(), "Core")))
        for _ in range(3)
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.modules.pop("openvino", None)
    assert found == [True] * 3
    assert "openvino_telemetry" not in sys.modules


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"openvino_precision": "bfloat16"}, r"set onnx\.provider=openvino too"),
        ({"provider": "openvino", "openvino_precision": "bf16"}, "must be one of float32, bfloat16"),
        ({"provider": "openvino", "openvino_precision": None}, "openvino_precision must be one of"),
        ({"provider": "openvino", "cann_dump_graphs": True}, r"set onnx\.provider=cann too"),
        ({"provider": "OpenVINO"}, "must be one of cpu, cuda, cann, openvino"),
    ],
)
def test_options_that_are_refused(options, says):
    with pytest.raises(UsageError, match=says):
        OnnxOptions(**options)


def test_what_it_says_of_itself(monkeypatch):
    assert plugin.compute(OnnxOptions(provider="openvino", threads=3)).threads == 3
    assert plugin.compute(OnnxOptions(provider="openvino")).precision is None
    assert ("openvino" in environment()) == INSTALLED  # what doctor shows and a run records
    options = OnnxOptions(provider="openvino", openvino_precision="bfloat16")
    assert plugin.compute(options).precision == "bfloat16"
    assert plugin.compute(OnnxOptions(provider="cuda")).device == "cuda"
    monkeypatch.setattr(plugin, "find_spec", lambda name: None)
    missing = [str(v.readiness) for v in plugin.variants() if v.label.startswith("openvino")]
    assert missing == ["openvino is not installed: pip install openvino"] * 2
    monkeypatch.setattr(plugin, "find_spec", lambda name: object())
    monkeypatch.setattr(plugin, "processor", lambda: PLAIN)
    plain, low = (v for v in plugin.variants() if v.label.startswith("openvino"))
    assert plain.readiness.usable
    assert str(low.readiness) == "Old CPU has no bfloat16 instructions"


# -- the same logits -------------------------------------------------------------------------


@needs_openvino
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("request_", [{}, {"input": "float"}, {"batch_size": 4}, {"fold_bn": False}], ids=str)
def test_logits_are_those_of_the_reference(name, request_, tmp_path):
    spec = SPECS[name]
    network = make_weights(spec)
    served = open_openvino(write(network, tmp_path / "m.onnx", **request_))
    images = make_images(spec, 7)
    assert relative(served.logits(images), oracle(network).logits(images)) <= TOLERANCE
    tensor = normalised(images, network)
    assert relative(served.logits_from_tensor(tensor), oracle(network).logits(images)) <= TOLERANCE


@needs_openvino
def test_a_row_does_not_depend_on_its_batch_nor_on_the_layout_in_memory(artefact):
    images = make_images(IMAGENET, 9)
    images.flags.writeable = False
    served = open_openvino(artefact)
    whole = served.logits(images)
    kept = whole.copy()
    rows = np.concatenate([served.logits(images[i : i + 1]) for i in range(9)])
    np.testing.assert_allclose(whole, rows, rtol=0, atol=1e-6 * np.abs(whole).max())
    np.testing.assert_array_equal(served.logits(images[::-1]), served.logits(images[::-1].copy()))
    np.testing.assert_array_equal(whole, kept)  # what was returned is not written again


@needs_openvino
def test_threads_precision_and_one_stream_reach_openvino(artefact):
    compiled = open_openvino(artefact, threads=2)._images.parts[0]
    found = {name: str(compiled.get_property(name)) for name in (
        "INFERENCE_NUM_THREADS", "NUM_STREAMS", "ENABLE_CPU_PINNING", "INFERENCE_PRECISION_HINT"
    )}  # fmt: skip
    assert found == {
        "INFERENCE_NUM_THREADS": "2", "NUM_STREAMS": "1", "ENABLE_CPU_PINNING": "False",
        "INFERENCE_PRECISION_HINT": "<Type: 'float32'>",
    }  # fmt: skip


@needs_openvino
def test_one_predictor_serves_several_threads(artefact):
    served = open_openvino(artefact)
    batches = [make_images(IMAGENET, n, seed=n) for n in (1, 2, 3, 4)]
    wanted = [served.logits(batch) for batch in batches]
    wrong: list[object] = []

    def work(index: int) -> None:
        for _ in range(20):
            try:
                np.testing.assert_array_equal(served.logits(batches[index]), wanted[index])
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# -- bfloat16 --------------------------------------------------------------------------------


@needs_openvino
@needs_bfloat16
def test_bfloat16_is_close_and_not_float32(artefact, weights):
    images = make_images(IMAGENET, 5)
    got = open_openvino(artefact, openvino_precision="bfloat16").logits(images)
    assert got.dtype == np.float32
    error = relative(got, oracle(weights).logits(images))
    assert TOLERANCE < error <= LOW_TOLERANCE


@needs_openvino
@needs_bfloat16
@pytest.mark.parametrize(("kind", "hints"), [("uint8", ["float32", "bfloat16"]), ("float", ["bfloat16"])])
def test_what_comes_before_the_network_stays_in_float32(weights, tmp_path, kind, hints):
    served = open_openvino(
        write(weights, tmp_path / "m.onnx", input=kind, batch_size=2), openvino_precision="bfloat16"
    )
    session = served._images or served._tensor
    found = [str(part.get_property("INFERENCE_PRECISION_HINT")) for part in session.parts]
    assert found == [f"<Type: '{hint}'>" for hint in hints]
    images = make_images(IMAGENET, 3)
    assert relative(served.logits(images), oracle(weights).logits(images)) <= LOW_TOLERANCE


@needs_openvino
@needs_bfloat16
def test_bfloat16_needs_a_value_to_begin_from(artefact):
    model = onnx.load(artefact)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["inner" if name == "tensor" else name for name in names]
    options = OnnxOptions(provider="openvino", openvino_precision="bfloat16")
    with pytest.raises(openvino_sessions.SessionError, match="no value 'tensor' from which on"):
        openvino_sessions.OpenVinoRuntime(options).session(model.SerializeToString(), precision="float32")


@needs_openvino
def test_bfloat16_is_refused_where_the_processor_lacks_it(artefact, monkeypatch):
    monkeypatch.setattr(openvino_sessions, "processor", lambda: PLAIN)
    with pytest.raises(BackendUnavailable, match=r"\(Old CPU, 2 cores, avx2\) has no bfloat16 instructions"):
        open_openvino(artefact, openvino_precision="bfloat16")
    open_openvino(artefact).close()


@needs_openvino
def test_a_bfloat16_file_is_refused_where_the_processor_lacks_it(artefact, monkeypatch):
    runtime = openvino_sessions.OpenVinoRuntime(OnnxOptions(provider="openvino"))
    monkeypatch.setattr(openvino_sessions, "processor", lambda: PLAIN)
    with pytest.raises(BackendUnavailable, match=r"a bfloat16 file: .*Old CPU.* export\.precision=float16"):
        runtime.session(artefact.read_bytes(), precision="bfloat16")


@needs_openvino
@pytest.mark.parametrize("kind", ["float16", pytest.param("bfloat16", marks=needs_bfloat16)])
def test_files_of_16_bits(weights, tmp_path, kind):
    served = open_openvino(write(weights, tmp_path / "m.onnx", precision=kind))
    images = make_images(IMAGENET, 4)
    assert relative(served.logits(images), oracle(weights).logits(images)) <= LOW_TOLERANCE
    assert served.precision is None  # the file says it
    assert served.manifest.precision == kind


# -- images of any size ----------------------------------------------------------------------


@needs_openvino
@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=needs_bfloat16)])
@pytest.mark.parametrize("filter_", ["antialias", "bicubic", "plain"])
def test_files_with_the_whole_preprocessing(weights, tmp_path, precision, filter_):
    """The preprocessing stays in float32: in bfloat16 its weights would be off by more than a level of 255."""
    network = weights.replace(preprocess=dataclasses.replace(weights.preprocess, filter=filter_))
    path = write(network, tmp_path / "m.onnx", input="image")
    served = open_openvino(path, openvino_precision=precision)
    plain = open_openvino(write(network, tmp_path / "plain.onnx"), openvino_precision=precision)
    for height, width in [(36, 36), (40, 57), (211, 90), (13, 8), (1, 1)]:
        image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        pixels = eval_pixels(Image.fromarray(image), network.preprocess)[None]
        want = oracle(network).logits(pixels)
        got = served.logits_from_image(image)[None]
        assert relative(got, plain.logits(pixels)) <= IMAGE_TOLERANCE
        assert relative(got, want) <= (IMAGE_TOLERANCE if precision == "float32" else LOW_TOLERANCE)
        assert relative(served.logits(pixels), want) <= (
            TOLERANCE if precision == "float32" else LOW_TOLERANCE
        )


# -- files that must be refused --------------------------------------------------------------


def _pop(model: onnx.ModelProto) -> None:
    model.graph.node.pop(3)


def _cyclic(model: onnx.ModelProto) -> None:
    model.graph.node[4].input[0] = model.graph.node[-1].output[0]


@needs_openvino
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_pop, "."),
        (_cyclic, "."),
        (lambda m: setattr(m.opset_import[0], "version", 999), r"opset 999 is newer than .* \(\d+\)"),
        (lambda m: setattr(m, "ir_version", 999), "IR version 999 is newer"),
        (lambda m: setattr(m.graph.node[5], "op_type", "Nothing"), "Nothing"),
    ],
)
def test_graphs_that_openvino_refuses_are_one_line(artefact, tmp_path, capfd, change, says):
    model = onnx.load(artefact)
    change(model)
    with pytest.raises(openvino_sessions.SessionError, match=says) as caught:
        openvino_sessions.OpenVinoRuntime(OnnxOptions(provider="openvino")).session(
            model.SerializeToString(), precision="float32"
        )
    text = str(caught.value)
    assert "\n" not in text
    assert "src/" not in text
    assert "".join(capfd.readouterr()) == ""


# -- int8 ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quantised(artefact, tmp_path_factory):
    """The network in U8S8, with weights of 8 and of 7 bits."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([{"images": make_images(IMAGENET, 8)}])

        def get_next(self):
            return next(self.left, None)

    found = {}
    for bits in (8, 7):
        path = tmp_path_factory.mktemp("int8") / f"{bits}.onnx"
        quantize_static(
            artefact, path, Images(), quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=bits == 7,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, op_types_to_quantize=["Conv", "Gemm"],
        )  # fmt: skip
        found[bits] = path.read_bytes()
    return found


@needs_openvino
def test_int8_is_read_as_onnx_runtime_reads_it(quantised):
    images = make_images(IMAGENET, 8)
    options = OnnxOptions(provider="openvino", threads=1)
    got, want = (
        runtime.session(quantised[7], precision="int8").run("images", images)
        for runtime in (openvino_sessions.OpenVinoRuntime(options), OrtRuntime(OnnxOptions(threads=1), 0))
    )
    assert relative(got, want) <= 5e-2


@needs_openvino
def test_int8_that_would_saturate_is_refused(quantised, monkeypatch):
    runtime = openvino_sessions.OpenVinoRuntime(OnnxOptions(provider="openvino"))
    monkeypatch.setattr(openvino_sessions, "processor", lambda: PLAIN)
    with pytest.raises(DataError, match=r"wrong results for this int8 file on avx2.* set onnx\.provider=cpu"):
        runtime.session(quantised[8], precision="int8")
    runtime.session(quantised[7], precision="int8")
    monkeypatch.setattr(
        openvino_sessions, "processor", lambda: dataclasses.replace(PLAIN, instructions="avx-vnni")
    )
    runtime.session(quantised[8], precision="int8")


# -- no reports ------------------------------------------------------------------------------


@needs_openvino
def test_openvino_reports_to_nobody(tmp_path):
    """Its import alone would keep an identifier in the home folder and send an event."""
    write(make_weights(SPECS["cifar"]), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", normalised(make_images(SPECS["cifar"], 1), make_weights(SPECS["cifar"])))
    script = (
        "import json, sys; told = []\n"
        "sys.addaudithook(lambda name, _: told.append(name) if name.startswith('socket.') else None)\n"
        "from resnext_core.cli.main import main\n"
        "code = main(['infer', '--weights', 'm.onnx', '--tensor', 'x.npy', '--logits', 'y.npy', "
        "'--set', 'onnx.provider=openvino'])\n"
        "print(json.dumps([code, told, 'openvino' in sys.modules, 'openvino_telemetry' in sys.modules]))"
    )
    home = tmp_path / "home"
    home.mkdir()
    environ = {k: v for k, v in os.environ.items() if k not in ("CI", "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={**environ, "HOME": str(home)},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == [0, [], True, False]
    assert done.stderr.count("\n") <= 1, done.stderr
    assert (tmp_path / "y.npy").exists()
    assert not list(home.rglob("*"))
