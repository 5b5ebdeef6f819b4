"""The engine `mslite` with the real MindSpore Lite, on the CPU; skipped where it is not installed."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from cpp_cases import Done
from images import class_tree
from numpy.typing import NDArray
from resnext_cpp_infer.lite import LIBRARY, LiteHome
from resnext_cpp_infer.options import CppInferOptions
from resnext_cpp_infer.predictor import StreamPredictor
from resnext_cpp_infer.program import sources

from resnext_core.cli.main import main
from resnext_core.files import file_digest
from resnext_core.interfaces import Backend, ExportRequest, PredictRequest
from resnext_core.model.init import random_weights
from resnext_core.model.preprocess import PreprocessSpec, normalize
from resnext_core.model.sidecar import sidecar_path
from resnext_core.model.spec import VARIANTS, ModelSpec
from resnext_core.model.weights import Weights, save_weights
from resnext_core.plugins import get_backend, load_plugins
from resnext_core.ranks.info import RankInfo
from resnext_core.serving.golden import make_golden, synthetic_images
from resnext_core.testing import BackendContract
from resnext_core.testing.cases import oracle_predictor

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("resnext_onnx.export")

Infer = Callable[..., Done]
Array = NDArray[Any]
pytestmark = pytest.mark.usefixtures("lite", "program")
CLASSES = ("ant", "bee", "cat")
#: max |difference| of logits over max |logit|, against ONNX Runtime.
TOLERANCE = 1e-5


def write(
    suffix: str, weights: Weights, path: Path, *, kind: str = "uint8", batch: int | None = None
) -> Path:
    """Write `weights` as ONNX, or as a MINDIR that MindSpore Lite reads."""
    maker, name = ("onnx", "onnx") if suffix == ".onnx" else ("lite", "lite")
    backend = load_plugins().backends[maker]
    options = None if backend.options is None else backend.options()
    backend.exporters[name](weights, path, ExportRequest(batch_size=batch, input=kind, options=options))
    return path


def network(spec: ModelSpec) -> Weights:
    """Return random weights, with which every element of a tensor matters."""
    size = spec.image_size
    classes = CLASSES if spec.num_classes == 3 else tuple(f"class{i}" for i in range(spec.num_classes))
    preprocess = PreprocessSpec(size=size, resize=size + 4)
    return Weights(spec=spec, preprocess=preprocess, classes=classes, tensors=random_weights(spec, 3))


def small(variant: str) -> Weights:
    """Return a stand-in of a variant: its groups and widths, one block in each of two stages, on small images."""
    spec = VARIANTS[variant]
    return network(spec.replace(depths=(1, 1), num_classes=3, image_size=24))


@cache
def tiny() -> Weights:
    """Return a small network with the golden logits of the reference."""
    made = network(VARIANTS["resnext_tiny"].replace(num_classes=3, image_size=24))
    return made.replace(golden=make_golden(oracle_predictor(made), made.spec, "float32"))


def by_onnxruntime(path: Path, rows: Array) -> Array:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: rows})
    found: Array = logits
    return found


@contextmanager
def served(path: Path) -> Iterator[StreamPredictor]:
    predictor = StreamPredictor(
        PredictRequest(path=path, rank=RankInfo(), options=CppInferOptions(threads=1))
    )
    try:
        yield predictor
    finally:
        predictor.close()


def difference(got: Array, wanted: Array) -> float:
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


# -- the same logits as ONNX Runtime -------------------------------------------------------------


def compare(weights: Weights, kind: str, folder: Path) -> None:
    """Compare batches of 1, of 8 and of what is left, on one open model."""
    rows = synthetic_images(11, weights.spec.image_size)
    if kind == "float":
        rows = normalize(rows, weights.preprocess)
    wanted = by_onnxruntime(write(".onnx", weights, folder / "m.onnx", kind=kind), rows)
    with served(write(".mindir", weights, folder / "m.mindir", kind=kind)) as predictor:
        logits = predictor.logits if kind == "uint8" else predictor.logits_from_tensor
        for part in (slice(0, 8), slice(8, 11), slice(0, 1), slice(3, 11)):
            found = difference(logits(rows[part]), wanted[part])
            print(f"{weights.spec.variant} {kind} {part.start}:{part.stop} {found:.2e}")
            assert found <= TOLERANCE


@pytest.mark.parametrize("kind", ["uint8", "float"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_small_stand_in_of_every_variant(variant: str, kind: str, tmp_path: Path) -> None:
    compare(small(variant), kind, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["uint8", "float"])
@pytest.mark.parametrize("variant", [name for name, spec in VARIANTS.items() if spec.image_size == 224])
def test_every_variant(variant: str, kind: str, tmp_path: Path) -> None:
    compare(network(VARIANTS[variant]), kind, tmp_path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven images, so that no batch of 2 to 10 divides them."""
    folder = class_tree(tmp_path_factory.mktemp("data"), per_class=4, side=40)
    sorted(folder.rglob("*.jpg"))[-1].unlink()
    return folder


@pytest.fixture(scope="module")
def files(lite: LiteHome, program: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small network as ONNX, and as MINDIR of any batch, of batch 4, and of float input."""
    folder = tmp_path_factory.mktemp("lite")
    return {
        "onnx": write(".onnx", tiny(), folder / "tiny.onnx"),
        "any": write(".mindir", tiny(), folder / "tiny.mindir"),
        "4": write(".mindir", tiny(), folder / "tiny4.mindir", batch=4),
        "float": write(".mindir", tiny(), folder / "tinyf.mindir", kind="float"),
    }


def copied(path: Path, folder: Path, **noted: Any) -> Path:
    """Copy an artefact and its sidecar; `noted` changes the section ``artefact``."""
    made = folder / path.name
    shutil.copy(path, made)
    manifest = json.loads(sidecar_path(path).read_text())
    manifest["artefact"] |= noted
    sidecar_path(made).write_text(json.dumps(manifest))
    return made


@pytest.mark.parametrize("batch", [1, 8, 11, 16])
def test_the_program_gives_the_same_for_every_batch(
    infer: Infer, files: dict[str, Path], data: Path, tmp_path: Path, batch: int
) -> None:
    words = ["--data", data, "--batch", batch, "--output", tmp_path / "out", "--logits", tmp_path / "l.npy"]
    assert infer("--model", files["onnx"], *words, "--quiet", "--runtime", onnx_library()).code == 0
    wanted, lines = np.load(tmp_path / "l.npy"), (tmp_path / "out").read_text()
    for name in ("any", "4", "float"):
        done = infer("--model", files[name], *words, "--summary", tmp_path / "s.json")
        assert (done.code, done.out) == (0, "")
        assert done.err.startswith("top-1 "), "Lite's log is kept out of it"
        assert done.err.count("\n") == 1
        assert difference(np.load(tmp_path / "l.npy"), wanted) <= TOLERANCE
        assert classes((tmp_path / "out").read_text()) == classes(lines)
        summary = json.loads((tmp_path / "s.json").read_text())
        assert summary["self_check"]["content"] is True
        assert summary["self_check"]["golden"] <= TOLERANCE


def classes(lines: str) -> list[str]:
    return [json.loads(line)["top"][0]["name"] for line in lines.splitlines()]


def onnx_library() -> Path:
    from resnext_cpp_infer.program import onnxruntime_library

    found = onnxruntime_library()
    assert found is not None
    return found


# -- batch sizes that a model was converted for --------------------------------------------------


@pytest.fixture(scope="module")
def recorder(lite: LiteHome, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See lite_recorder.cpp."""
    made = tmp_path_factory.mktemp("recorder") / "recorder.so"
    source = Path(__file__).with_name("lite_recorder.cpp")
    include = [f"-isystem{lite.root / 'runtime'}", f"-isystem{lite.include}"]
    subprocess.run(
        ["c++", "-std=c++17", "-shared", "-fPIC", *include, source, "-o", made, "-ldl"], check=True
    )
    return made


@pytest.mark.parametrize(
    ("batch", "computed"), [(1, {1}), (2, {4, 1}), (4, {4}), (8, {8, 4}), (11, {8, 4}), (30, {8, 4})]
)  # fmt: skip
def test_batches_are_padded_to_the_sizes_of_the_conversion(
    infer: Infer, files: dict[str, Path], recorder: Path, data: Path, tmp_path: Path, batch: int, computed: set[int]
) -> None:  # fmt: skip
    """As on an Ascend, where Resize refuses any other; 11 images in batches of up to `batch`."""
    words = [
        "--data",
        data,
        "--batch",
        batch,
        "--quiet",
        "--output",
        tmp_path / "out",
        "--logits",
        tmp_path / "l.npy",
    ]
    assert infer("--model", files["any"], *words).code == 0
    wanted = np.load(tmp_path / "l.npy")
    model = copied(files["any"], tmp_path, batch_sizes=[8, 1, 4])
    env = {"LD_PRELOAD": str(recorder), "LITE_RECORD": str(tmp_path / "record"), "LITE_ALLOWED": "1 4 8"}
    done = infer("--model", model, *words, "--self-check", "digest", env=env)
    assert (done.code, done.err) == (0, "")
    assert set(map(int, (tmp_path / "record").read_text().split())) == computed
    assert difference(np.load(tmp_path / "l.npy"), wanted) <= TOLERANCE


def test_a_batch_that_is_refused_is_said(
    infer: Infer, files: dict[str, Path], recorder: Path, data: Path, tmp_path: Path
) -> None:
    env = {"LD_PRELOAD": str(recorder), "LITE_RECORD": str(tmp_path / "record"), "LITE_ALLOWED": "1 8"}
    done = infer("--model", files["any"], "--data", data, "--batch", 5, "--self-check", "digest", env=env)
    assert (done.code, done.err.count("\n")) == (4, 1)
    assert "engine mslite: Model::Resize failed: " in done.err
    assert (tmp_path / "record").read_text() == "5\n"


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ([0], "must be an integer from 1"),
        ([], "must be 1 to 100 integers"),
        ([1] * 101, "must be 1 to 100 integers"),
        ("8", "must be a list"),
    ],
)
def test_batch_sizes_that_are_none(
    infer: Infer, files: dict[str, Path], data: Path, tmp_path: Path, sizes: object, says: str
) -> None:
    done = infer("--model", copied(files["any"], tmp_path, batch_sizes=sizes), "--data", data)
    assert (done.code, done.err.count("\n")) == (3, 1)
    assert "batch_sizes" in done.err
    assert says in done.err


# -- files and libraries that do not serve -------------------------------------------------------


def refused(infer: Infer, data: Path, model: Path, *more: object, env: dict[str, str] | None = None) -> Done:
    done = infer("--model", model, "--data", data, *more, env=env or {})
    assert done.err.count("\n") == 1, done.err
    return done


def test_a_file_that_is_not_its_sidecars(
    infer: Infer, files: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """Truncated, changed, or of another network: the digest tells, before Lite opens it."""
    for name, content in (
        ("truncated", files["any"].read_bytes()[:100_000]),
        ("empty", b""),
        ("another", files["4"].read_bytes()),
    ):
        model = copied(files["any"], tmp_path)
        model.chmod(0o644)
        model.write_bytes(content)
        done = refused(infer, data, model)
        assert done.code == 3, name
        assert f"{model} is damaged, or not the file that {model}.json describes" in done.err


@pytest.mark.parametrize(
    ("cut", "says"),
    [
        (lambda b: b[: len(b) // 2], "is a truncated or damaged MINDIR; export it again"),
        (lambda b: b[:-1], "is a truncated or damaged MINDIR; export it again"),
        (lambda b: b"", "is not a MINDIR"),
        (lambda b: b"\x08\x07" + b"no model" * 9, "is not a MINDIR"),
        (lambda b: b[:30], "MINDIR"),
    ],
    ids=["half", "a byte short", "empty", "nonsense", "head"],
)
def test_what_is_no_whole_mindir_is_one_line(
    infer: Infer, files: dict[str, Path], data: Path, tmp_path: Path, cut: Callable[[bytes], bytes], says: str
) -> None:  # fmt: skip
    model = copied(files["any"], tmp_path)
    model.chmod(0o644)
    model.write_bytes(cut(files["any"].read_bytes()))
    done = refused(infer, data, model, "--self-check", "off")
    assert done.code == 3
    assert f"engine mslite: {model} " in done.err
    assert says in done.err


def test_a_whole_file_that_lite_cannot_open_gives_its_reason(
    infer: Infer, files: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """The fields are whole; what is in the graph is not."""
    model = copied(files["any"], tmp_path)
    model.chmod(0o644)
    model.write_bytes(b"\x0a\x050.1.1\x12\x09MindSpore\x2a\x052.0.0\x3a\x04\xff\xff\xff\xff\x68\x01")
    done = refused(infer, data, model, "--self-check", "off")
    assert done.code == 3
    assert f"{model} cannot be opened: ParseFromArray failed. | Failed to load MindIR model" in done.err
    shown = infer("--model", model, "--data", data, "--self-check", "off", env={"GLOG_v": "1"})
    assert "[ERROR] CORE(" in shown.err, "with Lite's own variable its log is not held back"


def test_a_mindir_of_another_network(
    infer: Infer, files: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """One whose manifest states no digest of the file, as one printed from the ONNX file."""
    manifest = json.loads(sidecar_path(files["any"]).read_text())
    del manifest["artefact"]
    spec = tiny().spec
    for name, changes, says in (
        ("size", {"image_size": 32}, "takes images (N, 32, 32, 3), not the manifest's (24, 24, 3)"),
        ("classes", {"num_classes": 5}, "does not give float32 logits for the manifest's 3 classes"),
    ):
        model = write(".mindir", network(spec.replace(**changes)), tmp_path / f"{name}.mindir")
        sidecar_path(model).write_text(json.dumps(manifest))
        done = refused(infer, data, model)
        assert done.code == 3
        assert f"engine mslite: {model} {says}; is it another network's?" in done.err
    sidecar_path(model).unlink()
    done = refused(infer, data, model)
    assert done.code == 3
    assert f"it needs a manifest beside the model: {model}.json" in done.err


def test_a_mindir_of_a_newer_mindspore_names_the_way(
    infer: Infer, files: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """Written by MindSpore 2.10 where it is installed; always: the same file with another number."""
    model = copied(files["any"], tmp_path)
    model.chmod(0o644)
    content = model.read_bytes()
    assert content.endswith(b"\x68\x01"), "mind_ir_version = 1"
    for version in (2, 3):
        model.write_bytes(content[:-1] + bytes([version]))
        done = refused(infer, data, model, "--self-check", "off")
        assert done.code == 3
        assert f"{model} is a MINDIR of IR version {version}, written by MindSpore 2.0.0; " in done.err
        assert (
            "MindSpore Lite 2.0.0 reads version 1: write it with resnext-run export --format lite" in done.err
        )
    backend = load_plugins().backends.get("mindspore")
    if backend is None or not backend.probe().usable:
        pytest.skip("MindSpore is not installed: its own file was not tried")
    made = tmp_path / "new.mindir"
    backend.exporters["mindir"](tiny(), made, ExportRequest())
    done = refused(infer, data, made)
    assert done.code == 3
    assert "is a MINDIR of IR version 3, written by MindSpore 2.1" in done.err


def test_an_ascend_that_is_not_here(infer: Infer, files: dict[str, Path], data: Path) -> None:
    done = refused(infer, data, files["any"], "--device", "ascend310p")
    if "libascend_kernel_plugin" not in done.err:
        pytest.skip("CANN is on this machine")
    assert done.code == 4
    assert done.err.endswith("; install CANN and source its set_env.sh\n")
    done = refused(infer, data, files["any"], "--device", "ascend310p", "--precision", "allow_fp32_to_fp16")
    assert done.code == 4
    assert "unknown precision 'allow_fp32_to_fp16'; available: enforce_fp16, " in done.err


def test_a_library_that_is_gone(
    infer: Infer, lite: LiteHome, files: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """An engine built with a Lite that is removed afterwards."""
    home, build = tmp_path / "home", tmp_path / "build"
    (home / "runtime").mkdir(parents=True)
    (home / "runtime" / "include").symlink_to(lite.include)
    (home / "runtime" / "lib").symlink_to(lite.lib)
    for step in (["-S", sources(), "-B", build], ["--build", build, "--target", "resnext_engine_mslite"]):
        env = os.environ | {"LITE_HOME": str(home)}
        subprocess.run(["cmake", *step], check=True, capture_output=True, env=env)
    words = ["--model", files["any"], "--data", data, "--engines", build, "--output", tmp_path / "out"]
    assert infer(*words, "--quiet").code == 0
    (home / "runtime" / "lib").unlink()
    done = infer(*words)
    assert (done.code, done.err.count("\n")) == (4, 1)
    assert "engine mslite cannot be loaded: " in done.err
    assert done.err.endswith("with MindSpore Lite: resnext-run cpp build --lite download\n")
    (home / "runtime" / "lib").mkdir()
    done_build = subprocess.run(
        ["cmake", "-S", sources(), "-B", build], capture_output=True, text=True, check=False
    )
    assert done_build.returncode != 0
    assert f"LITE_HOME has no MindSpore Lite: error: no file {home}/runtime/lib/{LIBRARY}" in " ".join(
        done_build.stderr.split()
    )


# -- core's commands -----------------------------------------------------------------------------


def test_validate_and_eval(
    files: dict[str, Path], data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_weights(tiny(), tmp_path / "w.safetensors")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "val").symlink_to(data)
    words = ["--backend", "cpp-infer", "validate", "--artefact", str(files["any"]), "--weights"]
    words += [str(tmp_path / "w.safetensors"), "--data", str(tmp_path / "data"), "--json"]
    assert main(words) == 0
    out, err = capfd.readouterr()
    found = json.loads(out.splitlines()[-1])
    assert found["passed"] is True
    assert found["images"] == 11
    assert found["max_rel_diff"] <= TOLERANCE
    assert "LITE(" not in err
    words = [
        "--backend",
        "cpp-infer",
        "eval",
        "--weights",
        str(files["any"]),
        "--data",
        str(tmp_path / "data"),
    ]
    assert main([*words, "--json"]) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["scored"] == 11


@pytest.mark.usefixtures("lite", "program")
class TestCppInferLite(BackendContract):
    """The contract kit through MINDIR files."""

    backend: ClassVar[Backend] = dataclasses.replace(get_backend("cpp-infer"), formats=(".mindir",))
    options: ClassVar[Mapping[str, Any]] = {"threads": 1}


# -- the ModelZoo's script -----------------------------------------------------------------------


def test_the_modelzoos_script_from_export_to_the_accuracy(
    program: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The script of an Ascend 310 as it stands, told to take the CPU."""
    for path in sorted(data.rglob("*.jpg")):  # the ModelZoo's files have names of their own
        (tmp_path / "val" / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "val" / path.parent.name / f"{path.parent.name}{path.name}")
    save_weights(tiny(), tmp_path / "w.safetensors")
    words = ["export", "--format", "lite", "--weights", str(tmp_path / "w.safetensors"), "--to"]
    assert main([*words, str(tmp_path / "resnext.mindir")]) == 0
    capfd.readouterr()
    script = Path(__file__).parents[1] / "scripts" / "run_infer_310.sh"
    done = subprocess.run(
        ["sh", script, "resnext.mindir", "val", "0", "--", "--device", "cpu", "--threads", "1"],
        cwd=tmp_path,
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    summary = json.loads((tmp_path / "infer.json").read_text())
    assert (summary["expected"], summary["scored"]) == (11, 11)
    assert summary["engine"] == "mslite"
    line = (tmp_path / "acc.log").read_text()
    top1, top5 = float(summary["top1"]), float(summary["top5"])
    assert line == f"Total data: 11, top1 accuracy: {top1}, top5 accuracy: {top5}.\n"
    times = (tmp_path / "time_Result" / "test_perform_static.txt").read_text()
    assert done.stdout == line + times
    assert times.startswith("NN inference cost average time: ")
    labels = json.loads((tmp_path / "imagenet_label.json").read_text())
    assert len(labels) == 11
    got = np.stack(
        [np.fromfile(tmp_path / "result_Files" / f"{Path(name).stem}_0.bin", np.float32) for name in labels]
    )
    right = (got.argmax(axis=1) == np.array(list(labels.values()))).mean()
    assert right == summary["top1"]


# -- by hand -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_is_bounded_over_ten_thousand_images(files: dict[str, Path], tmp_path: Path) -> None:
    """Batches of two sizes in turn, since each Resize lets Lite plan its memory anew."""
    images = synthetic_images(13, tiny().spec.image_size)
    sizes = []
    with served(files["any"]) as predictor:
        assert predictor._process is not None
        status = Path(f"/proc/{predictor._process.pid}/status")
        for done in range(0, 20_002, 13):
            predictor.logits(images[:8])
            predictor.logits(images[8:])
            if done % 1300 == 0:
                (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmRSS"))
                sizes.append(int(line.split()[1]))
    print("resident kB after each 1,300 images:", *sizes)
    assert sizes[-1] <= sizes[len(sizes) // 2] * 1.02


def test_the_digest_is_of_the_file(files: dict[str, Path]) -> None:
    noted = json.loads(sidecar_path(files["any"]).read_text())["artefact"]
    assert noted["file_digest"] == file_digest(files["any"])
