"""Engines: ONNX Runtime as Python has it, AscendCL imitated, ABIs that differ."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpp_cases import Done, Engine, Request, compile_library, manifest
from images import class_tree
from resnext_cpp_infer.lite import lite_home
from resnext_cpp_infer.program import onnxruntime_library, sources

from resnext_core.data.render import load_eval
from resnext_core.interfaces import ExportRequest
from resnext_core.model.init import init_weights
from resnext_core.model.preprocess import PreprocessSpec, normalize
from resnext_core.model.spec import model_spec
from resnext_core.model.weights import Weights
from resnext_core.serving.golden import synthetic_images

Infer = Callable[..., Done]
SPEC = PreprocessSpec(size=24, resize=28)
CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_tree(tmp_path_factory.mktemp("data"), per_class=4, side=40)


# -- ABI -----------------------------------------------------------------------------------------


def test_an_engine_of_another_abi_is_refused_with_both_numbers(
    infer: Infer, build_dir: Path, tmp_path: Path
) -> None:
    for path in build_dir.glob("*.so"):
        shutil.copy(path, tmp_path)
    source = (sources() / "engines" / "null.cpp").read_text()
    header = (sources() / "include" / "resnext_engine.h").read_text()
    (tmp_path / "resnext_engine.h").write_text(
        header.replace("#define RESNEXT_ENGINE_ABI 1", "#define RESNEXT_ENGINE_ABI 41")
    )
    (tmp_path / "null.cpp").write_text(source)
    compile_library(tmp_path / "null.cpp", tmp_path / "libresnext_engine_null.so", tmp_path)
    (tmp_path / "m.json").write_text(json.dumps(manifest(SPEC)))
    done = infer("--model", tmp_path / "m", "--engine", "null", "--engines", tmp_path, "--data", tmp_path)
    assert done.code == 4
    assert "has ABI 41, this program 1" in done.err


def test_unknown_engines_and_devices_list_those_there_are(infer: Infer, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"x")
    done = infer("--model", tmp_path / "m.onnx", "--engine", "onxx", "--data", tmp_path)
    assert (done.code, done.err.count("\n")) == (2, 1)
    engines = ["acl", *(["mslite"] if lite_home() else []), "null", "onnx"]
    assert f"available: {', '.join(engines)}" in done.err
    done = infer("--model", tmp_path / "m.onnx", "--device", "tpu", "--data", tmp_path)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "supported: cpu cuda cann" in done.err
    assert infer("--list-engines").out.split() == engines


# -- ONNX Runtime --------------------------------------------------------------------------------

needs_onnxruntime = pytest.mark.skipif(onnxruntime_library() is None, reason="onnxruntime is not installed")


@needs_onnxruntime
@pytest.mark.parametrize(
    ("content", "says"), [(b"", "m.onnx"), (b"no model" * 99, "m.onnx")], ids=["empty", "nonsense"]
)
def test_what_is_no_model_is_one_line(
    infer: Infer, data: Path, tmp_path: Path, content: bytes, says: str
) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    done = infer("--model", tmp_path / "m.onnx", "--runtime", onnxruntime_library(), "--data", data)
    assert done.code == 3
    assert done.err.count("\n") == 1
    assert done.err.startswith("resnext-infer: engine onnx: ")


@needs_onnxruntime
@pytest.mark.parametrize("device", ["cuda", "cann"])
def test_a_provider_that_is_not_built_in_is_said(
    infer: Infer, data: Path, tmp_path: Path, device: str
) -> None:
    (tmp_path / "m.onnx").write_bytes(b"x")
    words = [
        "--model",
        tmp_path / "m.onnx",
        "--runtime",
        onnxruntime_library(),
        "--data",
        data,
        "--device",
        device,
    ]
    done = infer(*words)
    assert done.code == 4
    assert f"{device.upper()} execution provider is not enabled in this build" in done.err


@pytest.fixture(scope="module")
def onnx_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small network as ONNX: in float32, with merged groups, and as other tools make float16 and INT8 of it."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("resnext_onnx.export")
    pytest.importorskip("onnxruntime.quantization")
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from resnext_onnx.export import export_onnx
    from resnext_onnx.options import OnnxOptions

    spec = model_spec("resnext_tiny", num_classes=3, image_size=SPEC.size)
    network = Weights(spec=spec, preprocess=SPEC, classes=CLASSES, tensors=init_weights(spec, 3))
    folder = tmp_path_factory.mktemp("onnx")
    files = {name: folder / f"{name}.onnx" for name in ("float32", "regrouped", "float16", "int8")}
    export_onnx(network, files["float32"], ExportRequest())
    export_onnx(network, files["regrouped"], ExportRequest(options=OnnxOptions(regroup=16)))
    onnx.save(convert_float_to_float16(onnx.load(files["float32"]), keep_io_types=True), files["float16"])

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            rng = np.random.default_rng(0)
            self.left = [rng.integers(0, 256, (4, 24, 24, 3), dtype=np.uint8) for _ in range(3)]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return {"images": self.left.pop()} if self.left else None

    quantize_static(files["float32"], files["int8"], Images())
    return files


@needs_onnxruntime
@pytest.mark.parametrize("kind", ["float32", "regrouped", "float16", "int8"])
def test_logits_are_those_of_the_same_runtime_in_python(
    infer: Infer, data: Path, onnx_files: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    import onnxruntime

    words = [
        "--model",
        onnx_files[kind],
        "--runtime",
        onnxruntime_library(),
        "--data",
        data,
        "--quiet",
        "--batch",
        12,
    ]
    (tmp_path / "home").mkdir()
    environ = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": ""}
    assert infer(*words, "--logits", tmp_path / "l.npy", env=environ).code == 0
    # its wheels would keep an identifier of the device there, and send events
    assert not [path for path in (tmp_path / "home").rglob("*") if "onnxruntime" in path.name.lower()]
    pixels = np.stack([load_eval(path, SPEC) for path in sorted(data.rglob("*.jpg"))])
    session = onnxruntime.InferenceSession(str(onnx_files[kind]), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"images": pixels})
    np.testing.assert_allclose(
        np.load(tmp_path / "l.npy"), expected, rtol=0, atol=1e-6 * np.abs(expected).max()
    )


def test_a_runtime_that_is_none(infer: Infer, build_dir: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"x")
    for library, says in (
        (tmp_path / "no.so", "no.so"),
        (build_dir / "libresnext_engine_null.so", "is not ONNX Runtime"),
    ):
        done = infer("--model", tmp_path / "m.onnx", "--runtime", library, "--data", data)
        assert (done.code, done.err.count("\n")) == (4, 1)
        assert says in done.err


# -- AscendCL ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fake_acl(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that imitates libascendcl.so."""
    target = tmp_path_factory.mktemp("acl") / "libascendcl.so"
    compile_library(Path(__file__).with_name("fake_acl.cpp"), target, sources() / "engines")
    return target


class Ascend:
    """Runs an imitated .om model."""

    def __init__(self, infer: Infer, library: Path, data: Path, folder: Path) -> None:
        self._infer, self._library, self._data, self.folder = infer, library, data, folder

    def __call__(
        self, text: str, *more: object, fail: str = "", golden: list[list[float]] | None = None
    ) -> Done:
        (self.folder / "m.om").write_text(text)
        own = {} if golden is None else {"golden": {"compute": "float32", "logits": golden}}
        (self.folder / "m.om.json").write_text(json.dumps(manifest(SPEC, CLASSES) | own))
        env = {"FAKE_ACL_CLASSES": "3", "FAKE_ACL_SIDE": "24", "FAKE_ACL_REPORT": str(self.folder / "report")}
        return self._infer(
            "--model", self.folder / "m.om", "--data", self._data, "--device", "ascend310p", "--quiet",
            "--runtime", self._library, "--logits", self.folder / "l.npy", "--batch", 5, *more,
            env=env | ({"FAKE_ACL_FAIL": fail} if fail else {}),
        )  # fmt: skip

    def left(self) -> dict[str, int]:
        """Return what was made and not freed, all zero where nothing was."""
        path = self.folder / "report"
        return (
            {line.split()[0]: int(line.split()[1]) for line in path.read_text().splitlines()}
            if path.exists()
            else {}
        )


@pytest.fixture
def ascend(infer: Infer, fake_acl: Path, data: Path, tmp_path: Path) -> Ascend:
    return Ascend(infer, fake_acl, data, tmp_path)


@pytest.mark.parametrize("batches", ["1", "4", "8", "1 2 8", "2 16"])
@pytest.mark.parametrize(
    ("input_type", "output_type"), [("uint8", "float32"), ("float32", "float32"), ("uint8", "float16")]
)
def test_logits_for_every_batch_and_type(
    ascend: Ascend, data: Path, batches: str, input_type: str, output_type: str
) -> None:
    done = ascend(f"{input_type}\n{output_type}\n{batches}\n")
    assert done.code == 0, done
    paths = sorted(data.rglob("*.jpg"))
    pixels = np.stack([load_eval(path, SPEC) for path in paths])
    values = pixels if input_type == "uint8" else normalize(pixels, SPEC)
    flat = values.reshape(len(pixels), -1).astype(np.float64)
    expected = np.stack([flat[:, c::3].mean(axis=1) for c in range(3)], axis=1)
    tolerance = 2e-3 if output_type == "float16" else 1e-6
    assert np.abs(np.load(ascend.folder / "l.npy") - expected).max() <= tolerance * np.abs(expected).max()
    assert set(ascend.left().values()) == {0}


def test_golden_logits_and_their_tolerance_on_an_ascend(ascend: Ascend) -> None:
    """The logits are means of the pixels, so Python can say what the synthetic images give."""
    flat = synthetic_images(3, SPEC.size).reshape(3, -1).astype(np.float64)
    right = np.stack([flat[:, c::3].mean(axis=1) for c in range(3)], axis=1)
    summary = ascend.folder / "s.json"

    def served(off: float) -> Done:
        return ascend("uint8\nfloat32\n1 2 8\n", "--summary", summary, golden=(right * (1 + off)).tolist())

    done = served(0)
    assert (done.code, done.err) == (0, "")
    assert json.loads(summary.read_text())["self_check"]["golden"] < 1e-6
    assert served(0.02).code == 0, "it computes in float16"
    done = served(0.1)
    assert (done.code, done.err.count("\n")) == (3, 1)
    assert "(allowed 0.05)" in done.err
    assert set(ascend.left().values()) == {0}
    done = ascend("uint8\nfloat32\n1 2 8\n")
    assert done.code == 0
    assert "has no golden logits: its results on this machine were not checked" in done.err


def api_calls() -> list[str]:
    """Return the functions that can fail, from the engine's own source."""
    text = (sources() / "engines" / "acl.cpp").read_text()
    return sorted(set(re.findall(r'"(acl\w+)"\)', text)))


@pytest.mark.parametrize("call", api_calls())
def test_every_call_that_fails_is_named_and_leaves_nothing(ascend: Ascend, call: str) -> None:
    assert len(api_calls()) >= 17
    done = ascend("uint8\nfloat32\n1 2 8\n", fail=f"{call}:1")
    assert done.code == 4, done
    lines = done.err.splitlines()
    assert len(lines) == 1
    assert f"engine acl: {call} failed with code" in lines[0]
    assert "E99999: the fake says no" in lines[0]
    assert set(ascend.left().values()) <= {0}


def test_a_model_is_opened_used_and_closed_by_three_threads(
    fake_acl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of which only the first has made the context, without which the others could free nothing."""
    for name, value in (("CLASSES", "3"), ("SIDE", "24"), ("REPORT", str(tmp_path / "report"))):
        monkeypatch.setenv(f"FAKE_ACL_{name}", value)
    (tmp_path / "m.om").write_text("uint8\nfloat32\n4\n")
    library, engines = tmp_path / "engine.so", sources() / "engines"
    compile_library(engines / "acl.cpp", library, engines, sources() / "include")
    get = ctypes.CDLL(str(library)).resnext_engine_get
    get.restype = ctypes.POINTER(Engine)
    own = ctypes.c_uint32()
    engine = get(1, ctypes.byref(own)).contents
    request = Request(
        path=str(tmp_path / "m.om").encode(), device=b"ascend310p", runtime=str(fake_acl).encode(), precision=b"",
        batch=4, image_size=24, classes=3,
    )  # fmt: skip
    error = ctypes.create_string_buffer(200)
    images = np.random.default_rng(5).integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)
    logits = np.zeros((4, 3), np.float32)

    def in_a_thread(call: Callable[..., Any], *given: Any) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(call, *given).result()

    model = in_a_thread(engine.open, ctypes.byref(request), error, 200)
    assert model, error.value
    run = (model, images.ctypes.data, 4, logits.ctypes.data, logits.size, error, 200)
    assert in_a_thread(engine.run, *run) == 0, error.value
    in_a_thread(engine.close, model)
    expected = images.reshape(4, -1, 3).mean(axis=1)
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
    left = dict(line.split() for line in (tmp_path / "report").read_text().splitlines())
    assert set(left.values()) == {"0"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("int4\nfloat32\n1\n", "neither uint8 nor float32"),
        ("uint8\nint8\n1\n", "neither float32 nor float16"),
    ],
)
def test_models_that_do_not_fit(ascend: Ascend, text: str, says: str) -> None:
    done = ascend(text)
    assert done.code == 4
    assert says in done.err


def test_a_precision_is_refused_and_not_passed_over(ascend: Ascend) -> None:
    done = ascend("uint8\nfloat32\n1\n", "--precision", "allow_fp32_to_fp16")
    assert done.code == 4
    assert "its precision was set in ATC" in done.err


def test_without_cann_it_says_what_to_install(infer: Infer, data: Path, tmp_path: Path) -> None:
    (tmp_path / "m.om").write_text("")
    (tmp_path / "m.om.json").write_text(json.dumps(manifest(SPEC)))
    env = {"LD_LIBRARY_PATH": ""} if "LD_LIBRARY_PATH" in os.environ else {}
    done = infer("--model", tmp_path / "m.om", "--data", data, "--device", "ascend310", env=env)
    if done.code == 4 and "AscendCL cannot be loaded" not in done.err:
        pytest.skip("AscendCL is on this machine")
    assert done.code == 4
    assert "install CANN and source its set_env.sh" in done.err
