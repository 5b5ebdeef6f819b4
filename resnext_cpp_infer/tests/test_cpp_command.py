"""``resnext-run cpp``, the backend through core's commands, and the ModelZoo's script."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cpp_cases import null_model
from images import class_tree
from resnext_cpp_infer.create_imagenet2012_label import labels
from resnext_cpp_infer.lite import lite_home
from resnext_cpp_infer.options import CppInferOptions
from resnext_cpp_infer.postprocess import accuracy
from resnext_cpp_infer.predictor import StreamPredictor
from resnext_cpp_infer.program import find_program, onnxruntime_library

from resnext_core.cli.main import main
from resnext_core.errors import BackendUnavailable, DataError, ResnextError, UsageError
from resnext_core.interfaces import READY, ExportRequest, PredictRequest
from resnext_core.model.init import init_weights
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.spec import model_spec
from resnext_core.model.weights import Weights
from resnext_core.plugins import load_plugins
from resnext_core.ranks.info import RankInfo
from resnext_cpp_infer import program as program_module

SPEC = PreprocessSpec(size=32, resize=36)


def say(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capfd.readouterr()
    try:
        code = main([str(word) for word in words])
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, *capfd.readouterr()


def test_path_and_run(program: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert say(capfd, "cpp", "path") == (0, f"{program}\n", "")
    code, out, _ = say(capfd, "cpp", "run", "--", "--version")
    assert code == 0
    assert out.startswith("resnext-infer ")
    assert say(capfd, "cpp", "run", "--", "--nonsense")[0] == 2


def test_a_program_that_is_not_built_says_how(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(program_module.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code, _, err = say(capfd, "cpp", "path")
    assert code == 4
    assert "build it with: resnext-run cpp build" in err
    assert "resnext-run cpp build" in str(load_plugins().get("cpp-infer").probe())
    monkeypatch.setenv(program_module.VARIABLE, str(tmp_path / "gone"))
    assert "no such program" in say(capfd, "cpp", "path")[2]


def test_tools_that_are_missing_are_named_with_their_packages(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = say(capfd, "cpp", "build", "--to", tmp_path / "build")
    assert code == 4
    assert "install cmake (cmake), c++ (g++)" in err


def test_a_build_that_fails_is_one_line(
    program: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, err = say(capfd, "cpp", "build", "--to", tmp_path / "b", "--define", "LITE_HOME=/nowhere")
    assert code == 3
    assert err.count("\n") == 1
    assert "failed: " in err
    assert say(capfd, "cpp", "build", "--define", "x")[0] == 2


# -- as a backend --------------------------------------------------------------------------------


@pytest.fixture
def onnx_file(program: Path, tmp_path: Path) -> Path:
    """A small network as ONNX."""
    exporter = (
        load_plugins().backends["onnx"].exporters["onnx"] if "onnx" in load_plugins().backends else None
    )
    if exporter is None or onnxruntime_library() is None:
        pytest.skip("needs resnext-onnx and onnxruntime")
    spec = model_spec("resnext_tiny", num_classes=3, image_size=32)
    weights = Weights(
        spec=spec, preprocess=SPEC, classes=("ant", "bee", "cat"), tensors=init_weights(spec, 3)
    )
    exporter(weights, tmp_path / "m.onnx", ExportRequest(options=None))
    return tmp_path / "m.onnx"


def test_the_runtime_is_found_however_the_engine_is_named(
    onnx_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = class_tree(tmp_path / "data", per_class=1)
    for engine in ([], ["--engine", "onnx"], ["--engine=onnx"]):
        code, _, err = say(capfd, "cpp", "run", "--", f"--model={onnx_file}", "--data", data, *engine)
        assert code == 0, engine
        assert "3 of 3 images" in err
    words = [f"--model={onnx_file}", "--data", data, "--runtime", "no-such-file"]
    code, _, err = say(capfd, "cpp", "run", "--", *words)
    assert code == 4
    assert "no-such-file" in err, "a runtime that is named is taken"


def test_core_commands_serve_through_it(
    onnx_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = class_tree(tmp_path / "data" / "val", per_class=3)
    found = {}
    for backend in ("onnx", "cpp-infer"):
        words = [
            "--backend",
            backend,
            "infer",
            "--weights",
            onnx_file,
            data,
            "--logits",
            tmp_path / f"{backend}.npy",
        ]
        code, out, err = say(capfd, *words, "--set", "data.workers=0")
        assert (code, err) == (0, "")
        found[backend] = out
    assert found["onnx"] == found["cpp-infer"]
    assert np.array_equal(np.load(tmp_path / "onnx.npy"), np.load(tmp_path / "cpp-infer.npy"))
    code, out, _ = say(
        capfd, "--backend", "cpp-infer", "eval", "--weights", onnx_file, "--data", data, "--json"
    )
    assert code == 0
    assert json.loads(out)["scored"] == 9
    words = ["bench", "eval", "--weights", onnx_file, "--batch-size", 2, "--steps", 2, "--warmup", 1]
    assert say(capfd, "--backend", "cpp-infer", *words)[0] == 0


def test_the_manifest_can_be_put_beside_what_is_made_from_the_file(
    onnx_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = say(capfd, "cpp", "run", "--", "--model", onnx_file, "--print-manifest")
    assert code == 0
    (tmp_path / "made.bin.json").write_text(out)
    data = class_tree(tmp_path / "data", per_class=1)
    words = ["--model", tmp_path / "made.bin", "--engine", "null", "--data", data, "--quiet"]
    assert say(capfd, "cpp", "run", "--", *words)[0] == 0


def test_many_images_go_in_several_frames(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = StreamPredictor(PredictRequest(path=onnx_file, rank=RankInfo()))
    images = np.random.default_rng(0).integers(0, 256, (23, 32, 32, 3), dtype=np.uint8)
    whole = predictor.logits(images)
    monkeypatch.setattr("resnext_cpp_infer.predictor._FRAME", 5 * 32 * 32 * 3)
    assert np.abs(predictor.logits(images) - whole).max() <= 2e-6 * np.abs(whole).max()
    with pytest.raises(DataError, match="not uint8"):
        predictor.logits(images[:, :-1])
    with pytest.raises(UsageError, match="normalisation inside"):
        predictor.logits_from_tensor(np.zeros((1, 3, 32, 32), np.float32))
    assert np.array_equal(predictor.logits(images[:3]), predictor.logits(images[:3])), (
        "it goes on after an error"
    )
    predictor.close()
    with pytest.raises(UsageError, match="closed"):
        predictor.logits(images)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"device": "tpu"}, UsageError, "supported: cpu cuda cann"),
        ({"device": "cuda"}, BackendUnavailable, "CUDA execution provider"),
        ({"engine": "trt"}, UsageError, "no engine 'trt'"),
        ({"program": "/nowhere/resnext-infer"}, BackendUnavailable, "no such program"),
    ],
)
def test_what_the_program_refuses_is_raised_in_its_words(
    onnx_file: Path, options: dict[str, str], error: type[ResnextError], says: str
) -> None:
    with pytest.raises(error, match=says):
        StreamPredictor(PredictRequest(path=onnx_file, rank=RankInfo(), options=CppInferOptions(**options)))


def test_a_program_that_dies_is_an_error_and_no_hang(onnx_file: Path) -> None:
    predictor = StreamPredictor(PredictRequest(path=onnx_file, rank=RankInfo()))
    assert predictor._process is not None
    predictor._process.kill()
    with pytest.raises(RuntimeError, match="ended with code -9"):
        predictor.logits(np.zeros((1, 32, 32, 3), np.uint8))


# -- the ModelZoo's commands ---------------------------------------------------------------------


def test_run_infer_310(program: Path, tmp_path: Path) -> None:
    """The script as it stands, with the engine that needs no device; one image cannot be read, and counts."""
    data = class_tree(tmp_path / "data", per_class=4)
    for folder in data.iterdir():
        for path in folder.iterdir():
            path.rename(folder / f"{folder.name}{path.name}")
    (data / "bee" / "bee001.jpg").write_bytes(b"")
    null_model(tmp_path, SPEC)
    (tmp_path / "model.bin").write_bytes(b"")
    script = Path(__file__).parents[1] / "scripts" / "run_infer_310.sh"
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", script, *map(str, words)],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )

    done = run(tmp_path / "model.bin", data, 0, "--", "--engine", "null", "--device", "cpu")
    assert done.returncode == 3, done.stderr
    line = (tmp_path / "acc.log").read_text()
    summary = json.loads((tmp_path / "infer.json").read_text())
    assert line == f"Total data: 12, top1 accuracy: {summary['top1']}, top5 accuracy: {summary['top5']}.\n"
    assert line in done.stdout
    assert "NN inference cost average time: " in done.stdout
    assert run(tmp_path / "model.bin").returncode == 2
    assert run(tmp_path / "no.mindir", data).returncode == 2
    done = run(tmp_path / "model.bin", data, 0, "--", "--engine", "acl")
    assert done.returncode == 4
    assert "AscendCL" in done.stderr


def test_postprocess_counts_what_has_no_result(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    for name, logits in (("a", [0, 9, 1, 2, 3, 4]), ("b", [9, 8, 7, 6, 5, 4])):
        np.array(logits, np.float32).tofile(tmp_path / "r" / f"{name}_0.bin")
    (tmp_path / "l.json").write_text(json.dumps({"a.JPEG": 1, "b.JPEG": 4, "c.JPEG": 0, "d.JPEG": 0}))
    text = accuracy(tmp_path / "r", tmp_path / "l.json")
    assert text == "Total data: 4, top1 accuracy: 0.25, top5 accuracy: 0.5."
    (tmp_path / "l.json").write_text(json.dumps({"a.JPEG": 6}))
    with pytest.raises(DataError, match="6 logits"):
        accuracy(tmp_path / "r", tmp_path / "l.json")


def test_postprocess_reads_the_float16_of_the_modelzoo(tmp_path: Path) -> None:
    """The line is what the ModelZoo's postprocess.py (resnext152_64x4d, at eab643f51) printed for these files."""
    raw = np.random.Philox(key=15).random_raw(12 * 1000).reshape(12, 1000)
    logits = ((raw >> np.uint64(50)).astype(np.float32) / 512).astype(np.float16)
    classes = {}
    (tmp_path / "r").mkdir()
    for i, row in enumerate(logits):
        row.tofile(tmp_path / "r" / f"image{i}_0.bin")
        best = np.argsort(-row.astype(np.float32), kind="stable")
        classes[f"image{i}.JPEG"] = int(best[(0, 3, 7)[i % 3]])
    (tmp_path / "l.json").write_text(json.dumps(classes))
    line = "Total data: 12, top1 accuracy: 0.3333333333333333, top5 accuracy: 0.6666666666666666."
    assert accuracy(tmp_path / "r", tmp_path / "l.json") == line
    assert accuracy(tmp_path / "r", tmp_path / "l.json", "float16") == line
    with pytest.raises(DataError, match="has 500 logits"):
        accuracy(tmp_path / "r", tmp_path / "l.json", "float32")
    (tmp_path / "r" / "image3_0.bin").write_bytes(bytes(2001))
    with pytest.raises(DataError, match="2001 bytes: no whole float16 logits"):
        accuracy(tmp_path / "r", tmp_path / "l.json", "float16")


def test_labels_need_names_of_their_own(tmp_path: Path) -> None:
    data = class_tree(tmp_path / "data", per_class=1)
    with pytest.raises(DataError, match=r"two files 000\.jpg"):
        labels(data)


def test_the_program_is_found_where_it_was_built(program: Path) -> None:
    assert find_program() == program


def test_the_program_of_a_wheel_is_taken_where_none_was_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(program_module.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    packaged, built = (
        tmp_path / "package" / program_module.NAME,
        program_module.build_folder() / program_module.NAME,
    )
    monkeypatch.setattr(program_module, "PACKAGED", packaged.parent)
    assert say(capfd, "cpp", "path")[0] == 4
    for made in (packaged, built):  # what was built here, with other engines perhaps, goes before
        made.parent.mkdir(parents=True)
        made.write_text("")
        made.chmod(0o755)
        assert find_program() == made
    with pytest.raises(BackendUnavailable, match="no such program"):
        find_program(str(tmp_path / "other"))


# -- what is here, and what it was built from ----------------------------------------------------


def test_a_program_of_other_sources_is_not_taken_but_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(program_module.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    copy = tmp_path / "cpp"
    shutil.copytree(program_module.sources(), copy)
    monkeypatch.setattr(program_module, "sources", lambda: copy)
    folders = []
    for name in ("src/main.cpp", "CMakeLists.txt", "engines/ort_api.h", "include/resnext_engine.h"):
        program_module.sources_digest.cache_clear()
        folders.append(program_module.build_folder())
        made = folders[-1] / program_module.NAME
        made.parent.mkdir(parents=True)
        made.write_text("")
        made.chmod(0o755)
        assert find_program() == made
        with (copy / name).open("a") as stream:
            stream.write(" ")
        program_module.sources_digest.cache_clear()
        code, _, err = say(capfd, "cpp", "path")
        assert code == 4
        assert "was built from other sources; run: resnext-run cpp build" in err, name
    assert len(set(folders)) == 4
    program_module.sources_digest.cache_clear()


def test_what_each_engine_lacks_is_said(
    build_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The engines beside the program, and the libraries that they need; empty files stand in for CANN's."""
    shutil.copytree(build_dir, tmp_path / "here", ignore=shutil.ignore_patterns("CMake*", "*.a"))
    (tmp_path / "here" / "libresnext_engine_mslite.so").unlink(missing_ok=True)
    monkeypatch.setenv(program_module.VARIABLE, str(tmp_path / "here" / "resnext-infer"))
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    answer = load_plugins().backends["cpp-infer"].format_probe
    assert answer is not None
    assert "cpp build --lite download" in str(answer(".mindir"))
    assert "install CANN" in str(answer(".om"))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    (tmp_path / "libascendcl.so").touch()
    assert answer(".om") == READY
    monkeypatch.setattr(program_module, "onnxruntime_library", lambda: None)
    assert "pip install onnxruntime" in str(answer(".onnx"))
    code, out, _ = say(capfd, "backends", "--json")
    (found,) = (b for b in json.loads(out)["backends"] if b["id"] == "cpp-infer")
    assert (code, set(found["formats_not_here"])) == (0, {".onnx", ".mindir"})
    (tmp_path / "libonnxruntime.so.1").touch()
    assert answer(".onnx") == READY
    (tmp_path / "here" / "libresnext_engine_onnx.so").unlink()
    assert "the engine 'onnx' is not built" in str(answer(".onnx"))


def test_doctor_checks_what_it_can_and_calls_a_healthy_program_ready(
    onnx_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = say(capfd, "--backend", "cpp-infer", "doctor", "--json")
    (found,) = json.loads(out)["backends"]
    states = {f["format"]: f["state"] for f in found["formats"]}
    assert (code, found["state"], states[".onnx"]) == (0, "ready", "ready")
    assert states[".mindir"] == ("ready" if lite_home() else "not here")
    assert found["difference"] < 1e-5


def test_the_extra_brings_a_runtime() -> None:
    root = Path(__file__).parents[2]
    (line,) = (x for x in (root / "pyproject.toml").read_text().splitlines() if x.startswith("cpp-infer ="))
    assert "resnext-cpp-infer[onnxruntime]" in line
    assert '\nonnxruntime = ["onnxruntime>=' in (root / "resnext_cpp_infer" / "pyproject.toml").read_text()
