"""The exporter `triton`: a repository that Triton's own definitions read, with the network as an ONNX file in it."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from onnx_cases import IMAGENET, SPECS, TOLERANCE, make_images, make_weights, open_onnx, oracle, relative
from resnext_onnx.triton import config, export_triton, model_name

from resnext_core.cli.main import main
from resnext_core.errors import EXIT_DATA
from resnext_core.interfaces import ExportRequest
from resnext_core.model.spec import VARIANTS
from resnext_core.model.weights import Weights, save_weights


def parsed(text: str) -> Any:
    """Return a config as Triton's own protobuf definition reads it; an unknown or misspelt field raises."""
    messages = pytest.importorskip(
        "tritonclient.grpc.model_config_pb2", reason="tritonclient[grpc] is not installed"
    )
    from google.protobuf import text_format

    return text_format.Parse(text, messages.ModelConfig())


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("input", ["uint8", "float"])
def test_the_config_describes_the_file(tmp_path: Path, input: str, batch_size: int | None) -> None:
    weights = make_weights(SPECS["same-even"])
    request = ExportRequest(input=input, batch_size=batch_size)
    export_triton(weights, tmp_path / "m.triton", request)
    (folder,) = (path for path in (tmp_path / "m.triton").iterdir() if path.is_dir())
    found = parsed((folder / "config.pbtxt").read_text())
    assert found.name == folder.name == model_name(weights)
    assert found.backend == "onnxruntime"
    (given,), (made,) = found.input, found.output
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "1/model.onnx", providers=["CPUExecutionProvider"])
    (real,), (result,) = session.get_inputs(), session.get_outputs()
    assert (given.name, made.name) == (real.name, result.name)
    kinds = {"tensor(uint8)": 2, "tensor(float)": 11}  # model_config.proto: TYPE_UINT8, TYPE_FP32
    assert (given.data_type, made.data_type) == (kinds[real.type], kinds[result.type])
    batch = [] if batch_size is None else [batch_size]
    assert [*batch, *real.shape[1:]] == list(given.dims)
    assert [*batch, *result.shape[1:]] == list(made.dims)
    assert (found.max_batch_size, found.HasField("dynamic_batching")) == (
        (32, True) if batch_size is None else (0, False)
    )
    labels = (folder / made.label_filename).read_text().splitlines()
    assert labels == list(weights.classes)
    assert found.parameters["resnext.digest"].string_value == weights.digest
    assert json.loads(found.parameters["resnext.preprocess"].string_value) == weights.preprocess.to_dict()


def test_the_file_in_it_is_the_network(tmp_path: Path) -> None:
    weights = make_weights(SPECS["cifar"])
    export_triton(weights, tmp_path / "m.triton", ExportRequest())
    images = make_images(weights.spec, 3)
    (file,) = (tmp_path / "m.triton").rglob("model.onnx")
    assert relative(open_onnx(file).logits(images), oracle(weights).logits(images)) <= TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_are_those_of_kubernetes(variant: str) -> None:
    weights = dataclasses.replace(make_weights(IMAGENET), spec=IMAGENET.replace(variant=variant))
    name = model_name(weights)
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name)  # RFC 1123
    assert f'name: "{name}"' in config(weights, ExportRequest())


def test_odd_class_names_are_one_line_each(tmp_path: Path) -> None:
    weights = dataclasses.replace(
        make_weights(IMAGENET), classes=("a", 'b "c"', "d\\e", "é", "f  g", "h:1", "i")
    )
    export_triton(weights, tmp_path / "m.triton", ExportRequest())
    (labels,) = (tmp_path / "m.triton").rglob("labels.txt")
    assert labels.read_text().splitlines() == ["a", 'b "c"', "d\\e", "é", "f g", "h:1", "i"]
    (text,) = (tmp_path / "m.triton").rglob("config.pbtxt")
    parsed(text.read_text())


def test_the_manifest_for_kserve_names_the_folder(tmp_path: Path) -> None:
    weights = make_weights(IMAGENET)
    export_triton(weights, tmp_path / "m.triton", ExportRequest())
    found = yaml.safe_load((tmp_path / "m.triton/kserve.yaml").read_text())
    assert (found["apiVersion"], found["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert found["metadata"]["name"] == model_name(weights)
    assert found["spec"]["predictor"]["model"]["modelFormat"] == {"name": "triton"}


def test_a_network_in_float16_keeps_the_types_of_its_ports(tmp_path: Path) -> None:
    weights, request = make_weights(SPECS["cifar"]), ExportRequest(precision="float16")
    export_triton(weights, tmp_path / "m.triton", request)
    (file,) = (tmp_path / "m.triton").rglob("model.onnx")
    images = make_images(SPECS["cifar"], 2)
    assert relative(open_onnx(file).logits(images), oracle(weights).logits(images)) <= 8 * 2.0**-11
    assert config(weights, request) == config(weights, ExportRequest())


def saved(tmp_path: Path) -> tuple[Path, Weights]:
    weights = make_weights(SPECS["cifar"])
    save_weights(weights, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors", weights


def test_the_command_writes_checks_and_replaces_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, weights = saved(tmp_path)
    words = ["export", "--weights", str(path), "--format", "triton", "--to", str(tmp_path), "--json"]
    assert main(words) == 0
    (artefact,) = json.loads(capfd.readouterr().out)["artefacts"]
    folder = Path(artefact["path"])
    assert folder == tmp_path / f"{weights.spec.variant}.triton"
    assert artefact["difference"] <= TOLERANCE
    assert artefact["bytes"] == sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    (folder / "mine.txt").write_text("keep me")
    assert main(words) == EXIT_DATA
    assert (
        capfd.readouterr().err == f"resnext-run: {folder} already exists; remove it, or choose another --to\n"
    )
    assert (folder / "mine.txt").read_text() == "keep me"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_repository_is_written_only_when_it_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, _ = saved(tmp_path)
    assert main(["export", "--weights", str(path), "--backend", "onnx", "--to", str(tmp_path), "--json"]) == 0
    assert [a["format"] for a in json.loads(capfd.readouterr().out)["artefacts"]] == ["onnx"]


def test_the_client_of_the_readme_gets_classes_from_a_server_of_that_protocol(tmp_path: Path) -> None:
    """No Triton here: the example's parts are those of its client library, and its pixels fit the config."""
    http = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
    weights = make_weights(SPECS["cifar"])
    export_triton(weights, tmp_path / "m.triton", ExportRequest())
    (block,) = re.findall(
        r"^```python\n(.*?)^```", (tmp_path / "m.triton/README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    asked: list[Any] = []

    class Client(http.InferenceServerClient):  # type: ignore[misc, name-defined]
        def infer(self, model_name: str, inputs: Any, **given: Any) -> Any:
            asked.append((model_name, inputs[0].name(), inputs[0].shape(), inputs[0].datatype()))
            raise ConnectionRefusedError

    original = http.InferenceServerClient
    http.InferenceServerClient = Client
    try:
        with pytest.raises(ConnectionRefusedError):
            exec(compile(block, "README.md", "exec"), {})
    finally:
        http.InferenceServerClient = original
    size = weights.spec.image_size
    assert asked == [(model_name(weights), "images", [1, size, size, 3], "UINT8")]
