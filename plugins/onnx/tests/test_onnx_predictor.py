"""The predictor: batch invariance, both doors, options, and files that must be refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points, version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import resnext_onnx
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
from resnext_onnx import ort_sessions, plugin
from resnext_onnx.artefact import content_digest
from resnext_onnx.options import OnnxOptions

from resnext_core.errors import BackendUnavailable, DataError, UsageError
from resnext_core.interfaces import Batch, Predictor, PredictRequest
from resnext_core.model.weights import MANIFEST_KEY, save_weights, sealed
from resnext_core.ranks.info import RankInfo
from resnext_core.serving.validate import validate
from resnext_core.testing.processes import imported_by


@pytest.fixture(scope="module")
def weights():
    return make_weights(IMAGENET)


@pytest.fixture(scope="module")
def artefact(weights, tmp_path_factory) -> Path:
    return write(weights, tmp_path_factory.mktemp("artefact") / "m.onnx")


@pytest.fixture
def edited(artefact, tmp_path) -> Callable[[Callable[[onnx.ModelProto], object]], Path]:
    def edit(change: Callable[[onnx.ModelProto], object]) -> Path:
        model = onnx.load(artefact)
        change(model)
        reseal(model)
        path = tmp_path / "edited.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return edit


def reseal(model: onnx.ModelProto) -> None:
    """Give a model the digests of what it holds now: it lies, and is not merely damaged."""
    for entry in model.metadata_props:
        data = json.loads(entry.value)
        data.pop("manifest_sha256", None)
        if isinstance(data.get("artefact"), dict):
            rest = onnx.ModelProto()
            rest.CopyFrom(model)
            del rest.metadata_props[:]
            data["artefact"]["content"] = content_digest(rest.SerializeToString())
        entry.value = sealed(data)


# -- serving ---------------------------------------------------------------------------------


def test_a_row_does_not_depend_on_its_batch(artefact):
    images = make_images(IMAGENET, 9)
    served = open_onnx(artefact)
    whole = served.logits(images)
    rows = np.concatenate([served.logits(images[i : i + 1]) for i in range(9)])
    np.testing.assert_allclose(whole, rows, rtol=0, atol=1e-6 * np.abs(whole).max())
    np.testing.assert_array_equal(served.logits(images), whole)


@pytest.mark.parametrize("tensor_input", [True, False])
def test_tensor_door_skips_the_normalisation(artefact, weights, tensor_input):
    served = open_onnx(artefact, tensor_input=tensor_input)
    tensor = np.random.default_rng(1).standard_normal((4, 3, 36, 36)).astype(np.float32)
    want = oracle(weights).logits_from_tensor(tensor)
    assert relative(served.logits_from_tensor(tensor), want) <= TOLERANCE
    images = make_images(IMAGENET, 4)
    assert (
        relative(served.logits(images), served.logits_from_tensor(normalised(images, weights))) <= TOLERANCE
    )


def test_strided_input_is_served(artefact):
    images = make_images(IMAGENET, 4)
    served = open_onnx(artefact)
    np.testing.assert_array_equal(
        served.logits(images[::-1, :, ::-1]), served.logits(images[::-1, :, ::-1].copy())
    )


def test_predictor_follows_the_protocol_and_says_what_it_serves(artefact, weights):
    served = open_onnx(artefact)
    assert isinstance(served, Predictor)
    assert served.manifest.spec == weights.spec
    assert served.manifest.preprocess == weights.preprocess
    assert served.manifest.classes == weights.classes
    assert served.artefact["format"] == "onnx"


def test_closed_predictor_refuses(artefact):
    served = open_onnx(artefact)
    served.close()
    served.close()
    with pytest.raises(UsageError, match="closed"):
        served.logits(make_images(IMAGENET, 1))


@pytest.mark.parametrize(
    "shape", [(0, 36, 36, 3), (1, 37, 36, 3), (1, 36, 36, 1), (36, 36, 3), (1, 3, 36, 36)]
)
def test_wrong_images_are_refused(artefact, shape):
    with pytest.raises(DataError, match=r"images uint8 \(N, 36, 36, 3\)"):
        open_onnx(artefact).logits(np.zeros(shape, np.uint8))


def test_wrong_types_are_refused(artefact):
    served = open_onnx(artefact)
    with pytest.raises(DataError, match="not float32"):
        served.logits(np.zeros((1, 36, 36, 3), np.float32))
    with pytest.raises(DataError, match=r"tensor float32 \(N, 3, 36, 36\)"):
        served.logits_from_tensor(np.zeros((1, 3, 36, 36), np.float64))


def test_validate_accepts_the_export_and_refuses_another_network(artefact, weights):
    def batches():
        for seed in range(3):
            yield Batch(
                images=make_images(IMAGENET, 4, seed),
                labels=np.arange(4, dtype=np.int32),
                index=np.arange(4),
                valid=np.array([True, True, True, seed != 2]),
            )

    served = open_onnx(artefact)
    good = validate(served, oracle(weights), batches(), tolerance=TOLERANCE)
    assert good.passed, good.line()
    assert (good.images, good.disagreements) == (11, 0)
    bad = validate(served, oracle(make_weights(IMAGENET, seed=9)), batches())
    assert not bad.passed
    assert bad.max_rel_diff > 0.01


# -- options and plugin ----------------------------------------------------------------------


def test_threads_reach_the_session(artefact):
    images = make_images(IMAGENET, 2)
    one, two = open_onnx(artefact, threads=1), open_onnx(artefact, threads=2)
    assert two._images.session.get_session_options().intra_op_num_threads == 2
    assert relative(one.logits(images), two.logits(images)) <= 1e-6


@pytest.mark.parametrize(
    "options", [{"threads": 0}, {"threads": 1.5}, {"threads": True}, {"provider": "tpu"}]
)
def test_options_that_mean_nothing(options):
    with pytest.raises(UsageError, match=f"onnx.{next(iter(options))} must be"):
        OnnxOptions(**options)


@pytest.mark.parametrize(("provider", "name"), [("cuda", "CUDA"), ("cann", "CANN")])
def test_provider_that_is_not_there(artefact, provider, name):
    if f"{name}ExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip(f"this ONNX Runtime has {name}")
    with pytest.raises(
        BackendUnavailable, match=rf"pip install onnxruntime-{provider.replace('cuda', 'gpu')}"
    ):
        open_onnx(artefact, provider=provider)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_provider_whose_libraries_do_not_load_is_not_replaced_by_the_cpu(artefact, monkeypatch):
    # A wheel that has the provider, on a machine without its driver, goes on with the CPU and only warns.
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    if "CUDAExecutionProvider" in onnxruntime.InferenceSession(artefact).get_providers():
        pytest.skip("CUDA works here")
    with pytest.raises(BackendUnavailable, match=r"CUDAExecutionProvider|onnx.provider=cuda"):
        open_onnx(artefact, provider="cuda")


def test_weights_in_memory_are_refused(weights):
    with pytest.raises(UsageError, match="export the weights first"):
        plugin.predictor(PredictRequest(weights=weights, rank=RankInfo()))


def test_probe_names_what_is_missing(monkeypatch, weights, tmp_path):
    assert plugin.probe().state == "ready"
    monkeypatch.setattr(plugin, "find_spec", lambda name: None)
    assert plugin.probe().reason == "onnx and onnxruntime are not installed: pip install onnx onnxruntime"
    with pytest.raises(BackendUnavailable, match="pip install"):
        write(weights, tmp_path / "m.onnx")
    monkeypatch.setattr(plugin, "find_spec", lambda name: None if name == "onnx" else object())
    assert plugin.probe().reason == "onnx is not installed: pip install onnx"


def test_plugin_imports_nothing_heavy():
    code = "import resnext_onnx.plugin as p; b, = p.resnext_backends(); assert b.probe().state == 'ready'"
    assert imported_by(code, ["numpy", "onnx", "onnxruntime", "google.protobuf"]) == []


def test_entry_point_and_version():
    (point,) = entry_points(group="resnext", name="onnx")
    assert point.load() is plugin
    assert version("resnext-onnx") == resnext_onnx.__version__


# -- files that must be refused ---------------------------------------------------------------


def _refused(path: Path, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        open_onnx(path)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    _refused(tmp_path / "none.onnx", "no such ONNX file")


def test_files_of_other_kinds(tmp_path, weights):
    path = tmp_path / "other.onnx"
    path.write_text("hello, I am text\n" * 100)
    _refused(path, "not an ONNX file")
    path.write_bytes(b"")
    _refused(path, "no resnext manifest")
    save_weights(weights, path)
    _refused(path, "not an ONNX file|no resnext manifest")


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.99, 0.9999])
def test_cut_files(artefact, tmp_path, share):
    data = artefact.read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: int(len(data) * share)])
    _refused(path, "truncated|no resnext manifest|broken manifest")


def test_flipped_bit_in_the_constants(edited):
    def flip(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == "layer1.0.conv2.weight")
        raw = bytearray(tensor.raw_data)
        raw[5] ^= 1
        tensor.raw_data = bytes(raw)

    _refused(edited(flip), "is damaged")


def test_a_file_of_an_older_release_has_no_digest_of_its_graph(artefact, tmp_path):
    model = onnx.load(artefact)
    (entry,) = model.metadata_props
    data = json.loads(entry.value)
    del data["manifest_sha256"], data["artefact"]["content"]
    entry.value = json.dumps(data)
    path = tmp_path / "old.onnx"
    path.write_bytes(model.SerializeToString())
    open_onnx(path).close()


def test_every_flipped_bit_outside_the_constants(tmp_path):
    """Of graph and manifest: attributes that change the numbers a little, preprocessing, class names."""
    path = write(make_weights(IMAGENET), tmp_path / "m.onnx", fold_bn=False)
    data = path.read_bytes()
    constants = [t.raw_data for t in onnx.load(path).graph.initializer]
    inside = np.zeros(len(data), bool)
    for raw in constants:
        start = data.index(raw)
        inside[start : start + len(raw)] = True
    outside = np.flatnonzero(~inside)
    rng = np.random.default_rng(0)
    for position in rng.choice(outside, 300, replace=False):
        spoilt = bytearray(data)
        spoilt[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(spoilt)
        with pytest.raises(DataError):
            open_onnx(path)


def test_no_manifest(edited):
    _refused(edited(lambda m: m.ClearField("metadata_props")), "no resnext manifest")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d.pop("model"), "broken manifest: missing 'model'"),
        (lambda d: d.update(format=99), "manifest format 99"),
        (lambda d: d.pop("artefact"), "no artefact entry"),
        (lambda d: d["artefact"].update(input="bgr"), "no artefact entry"),
        (lambda d: d["model"].update(image_size=37), "preprocessing crops 36 pixels, the network takes 37"),
        (lambda d: (d["model"].update(num_classes=8), d["classes"].append("more")), "is damaged"),
    ],
)
def test_manifests_that_lie(edited, change, match):
    def edit(model: onnx.ModelProto) -> None:
        entry = next(p for p in model.metadata_props if p.key == MANIFEST_KEY)
        data = json.loads(entry.value)
        change(data)
        entry.value = json.dumps(data)

    _refused(edited(edit), match)


def test_graph_that_the_runtime_refuses(edited):
    _refused(edited(lambda m: m.graph.node.pop(3)), "cannot be loaded")


def _reshaped(model: onnx.ModelProto) -> None:
    """Let the answer be of 3 rows: that holds for a batch of 3, and fails in the run for another."""
    model.graph.node[-1].output[0] = "inner"
    shape = onnx.helper.make_tensor("s", onnx.TensorProto.INT64, [2], [3, IMAGENET.num_classes])
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["shape"], value=shape))
    model.graph.node.append(onnx.helper.make_node("Reshape", ["inner", "shape"], ["logits"]))


def _repeated(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = "inner"
    model.graph.node.append(onnx.helper.make_node("Concat", ["inner", "inner"], ["logits"], axis=0))


def test_graph_that_loads_and_fails_when_it_runs(edited):
    served = open_onnx(edited(_reshaped))
    assert served.logits(make_images(IMAGENET, 3)).shape == (3, IMAGENET.num_classes)
    with pytest.raises(DataError, match=r"cannot be run by CPUExecutionProvider: .*Reshape") as caught:
        served.logits(make_images(IMAGENET, 2))
    assert "\n" not in str(caught.value)


def test_graph_that_answers_other_rows_than_it_was_given(edited):
    with pytest.raises(DataError, match=r"is damaged: it returns float32 \(4, 7\) for 2 images"):
        open_onnx(edited(_repeated)).logits(make_images(IMAGENET, 2))


def _renamed(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "pixels"
    model.graph.node[0].input[0] = "pixels"


def _other_rank(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim.pop()


def _no_rows(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 0


def _other_answer(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = model.graph.output[0].name = "answer"


def _cyclic(model: onnx.ModelProto) -> None:
    model.graph.node[4].input[0] = model.graph.node[-1].output[0]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_renamed, "its graph does not match its manifest"),
        (_other_rank, "cannot be loaded|its graph does not match"),
        (_no_rows, "cannot be loaded|its graph does not match"),
        (_other_answer, "its graph does not match"),
        (_cyclic, "cannot be loaded"),
        (
            lambda m: setattr(m.opset_import[0], "version", 999),
            "cannot be loaded by CPUExecutionProvider: .*opset",
        ),
        (lambda m: setattr(m, "ir_version", 999), "cannot be loaded"),
        (lambda m: setattr(m.graph.node[5], "op_type", "Nothing"), "cannot be loaded"),
        (lambda m: setattr(m.graph.node[5], "domain", "elsewhere"), "cannot be loaded"),
        (lambda m: m.ClearField("graph"), "checksum mismatch of its constants"),
    ],
)
def test_graphs_of_other_makes_are_one_line(edited, change, match):
    _refused(edited(change), match)


def test_constants_in_another_file(artefact, tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(onnx.load(artefact), path, save_as_external_data=True, location="m.data", size_threshold=0)
    _refused(path, r"keeps constants in another file \(external data\)")
    (tmp_path / "m.data").write_bytes(b"cut")
    _refused(path, r"keeps constants in another file \(external data\)")


@pytest.mark.parametrize("change", [_reshaped, lambda m: m.graph.node.pop(3)], ids=["runs", "loads"])
def test_nothing_of_the_runtime_reaches_the_terminal_raw(edited, tmp_path, change):
    """It prints lines like `2026-11-26 [E:onnxruntime:, ...]` and `EP Error ... Falling back` beside what it raises."""
    from PIL import Image

    images = tmp_path / "images"
    images.mkdir()
    for i in range(2):
        Image.fromarray(make_images(IMAGENET, 1, seed=i)[0]).save(images / f"{i}.png")
    words = ["--backend", "onnx", "infer", "--weights", edited(change), images, "--set", "data.workers=0"]
    done = subprocess.run(
        [sys.executable, "-m", "resnext_core.cli", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "CPUExecutionProvider" in done.stderr
    assert done.stdout == ""


def test_no_other_provider_takes_over_when_one_fails(artefact, monkeypatch, capsys):
    """A provider that fails when the session is made: ONNX Runtime would print that, and go on with the CPU."""
    made = []

    def fail(self: object, providers: object, *rest: object) -> None:
        made.append(providers)
        raise RuntimeError("no device\nat all")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", fail)
    with pytest.raises(
        BackendUnavailable, match="cannot be loaded by CUDAExecutionProvider: no device at all"
    ):
        open_onnx(artefact, provider="cuda")
    assert len(made) == 1
    assert "".join(capsys.readouterr()) == ""


def test_file_replaced_while_open(artefact, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(artefact.read_bytes())
    served = open_onnx(path)
    write(make_weights(IMAGENET, seed=5), path)
    with pytest.raises(DataError, match="changed since"):
        served.logits_from_tensor(np.zeros((1, 3, 36, 36), np.float32))


def test_graph_without_a_normalised_value_cannot_skip_it(edited, weights):
    def rename(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = ["inner" if name == "tensor" else name for name in names]

    served = open_onnx(edited(rename))
    images = make_images(IMAGENET, 1)
    assert relative(served.logits(images), oracle(weights).logits(images)) <= TOLERANCE
    with pytest.raises(UsageError, match="cannot skip"):
        served.logits_from_tensor(normalised(images, weights))


# -- the CANN provider -----------------------------------------------------------------------


def test_what_the_cann_provider_is_given():
    assert OnnxOptions(provider="cann").cann_settings(3) == {
        "device_id": "3", "enable_cann_graph": "1", "enable_cann_subgraph": "0", "dump_graphs": "0",
        "dump_om_model": "0", "precision_mode": "must_keep_origin_dtype",
    }  # fmt: skip
    every = OnnxOptions(
        provider="cann", cann_device_id=1, cann_npu_mem_limit=2**33, cann_arena_extend_strategy="kSameAsRequested",
        cann_enable_cann_graph=False, cann_enable_cann_subgraph=True, cann_dump_graphs=True, cann_dump_om_model=True,
        cann_precision_mode="force_fp16", cann_op_select_impl_mode="high_precision",
        cann_optypelist_for_implmode="SoftmaxV2,Gelu",
    )  # fmt: skip
    assert every.cann_settings(0) == {
        "device_id": "1", "npu_mem_limit": "8589934592", "arena_extend_strategy": "kSameAsRequested",
        "enable_cann_graph": "0", "enable_cann_subgraph": "1", "dump_graphs": "1", "dump_om_model": "1",
        "precision_mode": "force_fp16", "op_select_impl_mode": "high_precision",
        "optypelist_for_implmode": "SoftmaxV2,Gelu",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"cann_device_id": -1}, "cann_device_id must be between 0 and 127, or null, not -1"),
        ({"cann_device_id": "x"}, "cann_device_id must be an integer"),
        ({"cann_npu_mem_limit": 0}, "cann_npu_mem_limit must be 1 or more, or null, not 0"),
        ({"cann_npu_mem_limit": 2**64}, "cann_npu_mem_limit must be below 2\\^64"),
        ({"cann_arena_extend_strategy": "0"}, "must be one of kNextPowerOfTwo, kSameAsRequested"),
        ({"cann_enable_cann_graph": 2}, "cann_enable_cann_graph must be true or false, not 2"),
        ({"cann_dump_om_model": "x"}, "cann_dump_om_model must be true or false, not 'x'"),
        ({"cann_precision_mode": "fp16"}, "cann_precision_mode must be one of force_fp32, cube_fp16in_fp32out"),
        ({"cann_op_select_impl_mode": "fast"}, "must be one of high_precision, high_performance, or null"),
        ({"cann_op_select_impl_mode": "high_precision", "cann_optypelist_for_implmode": "Gelu;Conv"},
         "must be names of operators with commas between"),
        ({"cann_optypelist_for_implmode": "Gelu"}, "onnx.cann_op_select_impl_mode holds: set both"),
    ],
)  # fmt: skip
def test_options_of_cann_that_it_would_refuse(options, says):
    with pytest.raises(UsageError, match=says):
        OnnxOptions(provider="cann", **options)


def test_options_of_cann_without_cann():
    with pytest.raises(UsageError, match=r"set onnx\.provider=cann too"):
        OnnxOptions(cann_dump_graphs=True)


def test_cann_without_its_toolkit_says_which_library_and_from_where(artefact, monkeypatch):
    """What onnxruntime-cann 1.24.4 raises without CANN, beside a library that needs one that is not there."""
    said = "/ort/pybind_state.cc:1189 std::shared_ptr<F> Create(const O&) create CANN ExecutionProvider fail"

    def fail(self: object, *rest: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CANNExecutionProvider"])
    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", fail)
    monkeypatch.setattr(
        ort_sessions, "_missing_library", lambda _: "libascendcl.so: cannot open shared object file"
    )
    with pytest.raises(BackendUnavailable) as raised:
        open_onnx(artefact, provider="cann")
    assert str(raised.value) == (
        "onnx.provider=cann: its libraries cannot be loaded (libascendcl.so: cannot open shared object file); "
        "install CANN's toolkit and source its set_env.sh, see docs/ascend.md, or set onnx.provider=cpu"
    )
    monkeypatch.setattr(ort_sessions, "_missing_library", lambda _: "")  # CANN is there: its own words count
    with pytest.raises(BackendUnavailable, match="CANNExecutionProvider: create CANN ExecutionProvider fail"):
        open_onnx(artefact, provider="cann")


def test_the_runtime_reports_to_nobody(tmp_path: Path) -> None:
    """Its wheels would keep an identifier of the device in the home folder, and send events."""
    write(make_weights(SPECS["cifar"]), tmp_path / "m.onnx")
    script = (
        "import sys; from resnext_core.cli.main import main;"
        "sys.exit(main(['infer', '--weights', 'm.onnx', '--tensor', 'x.npy', '--logits', 'y.npy']))"
    )
    np.save(tmp_path / "x.npy", normalised(make_images(SPECS["cifar"], 1), make_weights(SPECS["cifar"])))
    home = tmp_path / "home"
    home.mkdir()
    environ = {k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")}
    subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={**environ, "HOME": str(home)}, check=True
    )
    assert (tmp_path / "y.npy").exists()
    assert not [path for path in home.rglob("*") if "onnxruntime" in path.name.lower()]
