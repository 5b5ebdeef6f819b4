"""Artefacts in few bits: the program reads them, and compares them with the proof of where it computes."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cpp_cases import Done, Engine, Request, compile_library
from images import class_tree
from resnext_cpp_infer.program import onnxruntime_library, sources

from resnext_core.data.render import load_eval
from resnext_core.model.init import random_weights
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.spec import model_spec
from resnext_core.model.weights import Weights
from resnext_core.processor import parse_processor, processor
from resnext_core.serving.proof import TOLERANCE

Infer = Callable[..., Done]
HERE = processor().instructions
TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_tree(tmp_path_factory.mktemp("data"), per_class=2, side=40)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network in 8 bits, without a proof."""
    pytest.importorskip("onnx")
    if onnxruntime_library() is None:
        pytest.skip("onnxruntime is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TESTS.parents[1] / "plugins" / "onnx" / "tests")
        from proof_cases import write_int8
    spec = model_spec("resnext_tiny", num_classes=3, image_size=24, stem_width=8, groups=2)
    weights = Weights(
        spec=spec, preprocess=PreprocessSpec(size=24, resize=28), classes=("ant", "bee", "cat"),
        tensors=random_weights(spec, 3),
    )  # fmt: skip
    return write_int8(weights, tmp_path_factory.mktemp("int8") / "m.onnx")


@pytest.fixture
def artefact(made: Path, tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(made.read_bytes())
    return path


def proven(path: Path, place: str, off: float = 0.0) -> Path:
    from proof_cases import proof_of, prove

    prove(path, place, proof_of(path, off))
    return path


def words(path: Path, data: Path, folder: Path) -> list[object]:
    return [
        "--model", path, "--runtime", onnxruntime_library(), "--data", data, "--quiet", "--summary", folder / "s.json",
        "--logits", folder / "l.npy", "--threads", 1,
    ]  # fmt: skip


def summary(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "s.json").read_text()))


def test_a_proven_file_is_served_without_a_word(
    infer: Infer, artefact: Path, data: Path, tmp_path: Path
) -> None:
    from onnx_cases import open_onnx

    done = infer(*words(proven(artefact, HERE), data, tmp_path))
    assert (done.code, done.err) == (0, "")
    assert summary(tmp_path)["precision"] == "int8"
    checked = summary(tmp_path)["self_check"]
    assert isinstance(checked, dict)
    assert checked["proven"] == HERE
    assert checked["content"] is True
    assert checked["golden"] <= TOLERANCE
    served = open_onnx(artefact)
    pixels = np.stack([load_eval(path, served.manifest.preprocess) for path in sorted(data.rglob("*.jpg"))])
    want = served.logits(pixels)
    assert np.abs(np.load(tmp_path / "l.npy") - want).max() <= TOLERANCE * np.abs(want).max()


@pytest.mark.parametrize("places", [(), ("other-set", "another")])
def test_a_file_that_is_not_proven_here_is_served_with_a_line(
    infer: Infer, artefact: Path, data: Path, tmp_path: Path, places: tuple[str, ...]
) -> None:
    for place in places:
        proven(artefact, place, off=1.0)  # not compared here
    done = infer(*words(artefact, data, tmp_path))
    assert done.code == 0, done
    where = f"proven on {', '.join(sorted(places))}, not on {HERE}" if places else f"not proven on {HERE}"
    assert done.err == (
        f"resnext-infer: note: {artefact}: int8, {where}; to prove it here, run: resnext-run validate --artefact "
        f"{artefact} --weights WEIGHTS\n"
    )
    checked = summary(tmp_path)["self_check"]
    assert isinstance(checked, dict)
    assert checked["proven"] is None
    assert infer(*words(artefact, data, tmp_path), "--self-check", "digest").err == ""


def test_a_file_that_does_not_hold_its_proof_is_refused(
    infer: Infer, artefact: Path, data: Path, tmp_path: Path
) -> None:
    done = infer(*words(proven(artefact, HERE, off=2 * TOLERANCE), data, tmp_path))
    assert (done.code, done.err.count("\n")) == (3, 1)
    assert f"the logits of its proof on {HERE} are off by 0.0" in done.err
    assert "--self-check off" in done.err
    assert infer(*words(artefact, data, tmp_path), "--self-check", "off").code == 0


def test_a_file_in_float16_is_read(infer: Infer, made: Path, data: Path, tmp_path: Path) -> None:
    from onnx_cases import make_weights, open_onnx, write

    spec = model_spec("resnext_tiny", num_classes=3, image_size=24, stem_width=8, groups=2)
    path = write(
        make_weights(spec).replace(classes=("ant", "bee", "cat")), tmp_path / "m.onnx", precision="float16"
    )
    done = infer(*words(path, data, tmp_path))
    assert done.code == 0, done
    assert done.err.startswith(f"resnext-infer: note: {path}: float16, not proven on {HERE}; ")
    served = open_onnx(path)
    pixels = np.stack([load_eval(image, served.manifest.preprocess) for image in sorted(data.rglob("*.jpg"))])
    want = served.logits(pixels)
    assert np.abs(np.load(tmp_path / "l.npy") - want).max() <= TOLERANCE * np.abs(want).max()
    done = infer(*words(proven(path, HERE), data, tmp_path))
    assert (done.code, done.err) == (0, "")
    assert summary(tmp_path)["precision"] == "float16"


@pytest.fixture(scope="module")
def processor_words(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("processor") / "words"
    source = sources() / "src"
    built = [
        "c++",
        "-std=c++17",
        f"-I{source}",
        TESTS / "processor_words.cpp",
        source / "processor.cpp",
        "-o",
        target,
    ]
    subprocess.run(list(map(str, built)), check=True)
    return target


CPUINFO = [
    "", "flags : avx2 fma", "flags: avx2", "Flags\t\t:  fma   avx2 ", "flags : avx2 fma avx_vnni",
    "flags : avx512f avx512bw avx2 fma", "flags : avx512f avx512bw avx512_vnni avx2 fma",
    "flags : amx_int8 amx_tile avx512_vnni avx512f", "flags : amx_int8 avx512_vnni avx512f avx2 fma",
    "flags : sse\nflags : avx2 fma", "flags :\nfeatures : i8mm asimddp", "Features\t: fp asimddp", "Features : fp i8mm",
    "model name : x : avx2 fma\nflags : sse2\n", "flags avx2 fma", " flags : avx2\tfma\r\n", "flags : avx2fma",
]  # fmt: skip


@pytest.mark.parametrize("machine", ["x86_64", "AMD64", "aarch64", "arm64", "ppc64le", "riscv64"])
def test_both_have_one_word_for_a_processor(processor_words: Path, machine: str) -> None:
    for text in CPUINFO:
        done = subprocess.run(
            [processor_words, machine], input=text, capture_output=True, text=True, check=True
        )
        found = parse_processor(text, machine, 1)
        assert done.stdout == f"{found.instructions} {int(found.saturates)}\n", text


def test_both_have_one_word_for_this_processor(processor_words: Path) -> None:
    done = subprocess.run([processor_words], capture_output=True, text=True, check=True)
    assert done.stdout == f"{HERE} {int(processor().saturates)}\n"


STUB = """
#include <cstdlib>
#include "processor.h"
namespace resnext {
std::string instruction_set() { return std::getenv("INSTRUCTIONS"); }
bool saturates(const std::string& word) { return word == "avx2"; }
}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the runtime is a library of Linux here")
@pytest.mark.parametrize(
    ("instructions", "entries"), [("avx2", ["session.x64quantprecision=1"]), ("avx-vnni", [])]
)
def test_sums_do_not_saturate_where_they_could(
    program: Path,
    artefact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    instructions: str,
    entries: list[str],
) -> None:
    (tmp_path / "stub.cpp").write_text(STUB)
    engines, include = sources() / "engines", sources() / "include"
    folders = (engines, include, sources() / "src")
    compile_library(engines / "onnx.cpp", tmp_path / "engine.so", *folders, more=(tmp_path / "stub.cpp",))
    compile_library(TESTS / "session_entries.cpp", tmp_path / "runtime.so", *folders)
    for name, value in {
        "INSTRUCTIONS": instructions, "ENTRIES": tmp_path / "entries", "REAL_RUNTIME": onnxruntime_library(),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    get = ctypes.CDLL(str(tmp_path / "engine.so")).resnext_engine_get
    get.restype = ctypes.POINTER(Engine)
    own = ctypes.c_uint32()
    engine = get(1, ctypes.byref(own)).contents
    request = Request(
        path=str(artefact).encode(), device=b"cpu", runtime=str(tmp_path / "runtime.so").encode(), precision=b"",
        threads=1, batch=2, image_size=24, classes=3,
    )  # fmt: skip
    error = ctypes.create_string_buffer(200)
    model = engine.open(ctypes.byref(request), error, 200)
    assert model, error.value
    images, logits = np.zeros((2, 24, 24, 3), np.uint8), np.zeros((2, 3), np.float32)
    run = (model, images.ctypes.data, 2, logits.ctypes.data, logits.size, error, 200)
    assert engine.run(*run) == 0, error.value
    engine.close(model)
    path = tmp_path / "entries"
    assert (path.read_text().splitlines() if path.exists() else []) == entries
