"""Artefacts of Ascend with stand-ins for the vendors' tools: what is called, what is kept, what is said."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ascend_cases import tiny_weights

from resnext_ascend import artefacts, diagnose, om
from resnext_core.cli.main import main
from resnext_core.errors import UsageError
from resnext_core.interfaces import ExportRequest, PredictRequest
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.sidecar import read_artefact
from resnext_core.model.weights import save_weights
from resnext_core.plugins import load_plugins
from resnext_core.ranks.info import RankInfo
from resnext_core.reference.options import ReferenceOptions
from resnext_core.reference.predictor import create_predictor

pytest.importorskip("onnx")

#: Writes what it was given and an artefact where --output says, as ATC does.
TOOL = """#!/bin/sh
printf '%s\\n' "$@" > "{calls}"
for word in "$@"; do
  case "$word" in
    --model=*) test -s "${{word#*=}}" || exit 3;;
    --insert_op_conf=*) cat "${{word#*=}}" > "{config}";;
    --output=*) printf artefact > "${{word#*=}}{ending}";;
  esac
done
"""


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_weights(tiny_weights(), path)
    return path


def tool(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("kind", "name", "ending", "words", "expected"),
    [
        (
            "om", "atc", ".om", ["--set", "export.input=float", "--set", "export.batch_size=4"],
            {
                "--framework=5", "--soc_version=Ascend310P3", "--input_shape=tensor:4,3,16,16", "--input_format=NCHW",
                "--precision_mode=allow_fp32_to_fp16", "--log=error",
            },
        ),
        (
            "om", "atc", ".om", ["--soc-version", "Ascend910B2", "--precision", "must_keep_origin_dtype",
            "--normalise", "graph"],
            {
                "--framework=5", "--soc_version=Ascend910B2", "--input_shape=images:1,16,16,3", "--input_format=ND",
                "--precision_mode=must_keep_origin_dtype", "--log=error",
            },
        ),
        (
            "om", "atc", ".om", ["--set", "export.batch_size=2"],
            {
                "--framework=5", "--soc_version=Ascend310P3", "--input_shape=tensor:2,3,16,16", "--input_format=NCHW",
                "--precision_mode=allow_fp32_to_fp16", "--log=error",
            },
        ),
        (
            "om", "atc", ".om", ["--dynamic-batch", "1,8,32", "--normalise", "graph"],
            {
                "--framework=5", "--soc_version=Ascend310P3", "--input_shape=images:-1,16,16,3", "--input_format=ND",
                "--precision_mode=allow_fp32_to_fp16", "--log=error", "--dynamic_batch_size=1,8,32",
            },
        ),
    ],
)  # fmt: skip
def test_tools_are_called_with_what_the_weights_say(
    kind: str, name: str, ending: str, words: list[str], expected: set[str], weights: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    calls, config = tmp_path / "calls", tmp_path / "config"
    tool(tmp_path, name, TOOL.format(calls=calls, config=config, ending=ending), monkeypatch)
    target = tmp_path / f"model{ending}"
    command = ["ascend", "export", "--weights", str(weights), "--format", kind, "--to", str(target), *words]
    assert main([*command, "--dry-run"]) == 0
    line, _, aipp = capsys.readouterr().out.partition("\n")
    shown = shlex.split(line)
    assert not calls.exists()
    assert not target.exists()
    assert main(command) == 0
    assert target.read_text() == "artefact"
    manifest, artefact = read_artefact(target)
    assert manifest.digest == tiny_weights().digest
    assert artefact["input"] == ("float" if "export.input=float" in words else "uint8")
    found = set(calls.read_text().splitlines())
    files = {w for w in found if w.split("=")[0] in ("--model", "--output", "--insert_op_conf")}
    assert found - files == expected
    assert (
        set(shown[1:]) - {w for w in shown if w.split("=")[0] in {f.split("=")[0] for f in files}} == expected
    )
    assert shown[0] == name
    normalised = [w for w in found if w.startswith("--insert_op_conf=")]
    assert bool(normalised) == (name == "atc" and "graph" not in words and "export.input=float" not in words)
    if normalised:
        assert config.read_text() == om.aipp_config(manifest.preprocess)
        assert aipp.strip() == f"{target.with_suffix('.cfg')}:\n{config.read_text()}".strip()
        assert artefact["normalise"] == "aipp"
    assert "not compared: it cannot be run here" in capsys.readouterr().out


def test_a_tool_that_fails_leaves_nothing(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "model.om"
    command = ["ascend", "export", "--weights", str(weights), "--format", "om", "--to", str(target)]
    tool(
        tmp_path, "atc", "#!/bin/sh\necho start\necho 'E10001: [OPP] not found' >&2\nexit 255\n", monkeypatch
    )
    assert main(command) == 3
    error = capsys.readouterr().err
    assert "atc failed with exit code 255: E10001: [OPP] not found (its command: " in error
    assert len(error.splitlines()) == 1
    tool(tmp_path, "atc", "#!/bin/sh\nexit 0\n", monkeypatch)
    assert main(command) == 3
    assert "atc succeeded but wrote no .om file" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert main(command) == 4
    assert "atc was not found; it comes with CANN's toolkit" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.glob("model*")) == []


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--format", "om", "--to", "x.onnx"], 2, "a file of format om ends in .om"),
        (["--format", "omm", "--to", "x.om"], 2, "invalid choice: 'omm'"),
        (["--format", "om", "--to", "x.om", "--soc-version", "310P3"], 2, "must be like Ascend310P3"),
        (["--format", "om", "--to", "x.om", "--precision", "fp16", "--dry-run"], 2, "ATC's precision is one of"),
        (["--format", "om", "--to", "x.om", "--dynamic-batch", "8"], 2, "has 2 to 100 sizes from 1 to 2048, ascending"),
        (["--format", "om", "--to", "x.om", "--dynamic-batch", "8,4"], 2, "has 2 to 100 sizes"),
        (["--format", "om", "--to", "x.om", "--dynamic-batch", "0,4"], 2, "has 2 to 100 sizes"),
        (["--format", "om", "--to", "x.om", "--dynamic-batch", "4,x"], 2, "must be like 1,8,32"),
        (["--format", "om", "--to", "x.om", "--dynamic-batch", "1,8", "--set", "export.batch_size=4", "--dry-run"], 2,
         "give export.batch_size or --dynamic-batch, not both"),
        (["--format", "air", "--to", "x.air", "--dynamic-batch", "1,8"], 2, "are options of --format om"),
        (["--format", "lite", "--to", "x.mindir"], 2, "invalid choice: 'lite'"),
    ],
)  # fmt: skip
def test_wrong_words_are_refused(
    words: list[str], code: int, says: str, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ascend", "export", "--weights", str(weights), *words]) == code
    assert says in capsys.readouterr().err


def test_air_elsewhere_names_the_other_way(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(diagnose, "hardware", lambda *_: "no Ascend device found")
    command = [
        "ascend",
        "export",
        "--weights",
        str(weights),
        "--format",
        "air",
        "--to",
        str(tmp_path / "x.air"),
    ]
    assert main(command) == 4
    error = capsys.readouterr().err
    assert "AIR can be written on an Ascend only: no Ascend device found" in error
    assert "--format onnx, then ATC" in error


def test_air_is_compiled_by_the_backend_that_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mindspore.nn")
    from resnext_mindspore import device

    class Opened(Exception):
        pass

    def open_device(wanted: device.Device) -> None:
        raise Opened(wanted.target, wanted.device_id, wanted.jit_level)

    monkeypatch.setattr(diagnose, "hardware", lambda *_: None)
    monkeypatch.setattr(device, "open_device", open_device)
    with pytest.raises(Opened, match=r"'Ascend', 3, 'O2'"):
        artefacts.export_air(tiny_weights(), tmp_path / "x.air", ExportRequest(batch_size=1), 3)


@pytest.mark.parametrize("normalise", ["aipp", "graph"])
@pytest.mark.parametrize("dynamic", [(), (1, 4)])
@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_atc_is_given_the_name_and_shape_of_the_onnx_file(
    kind: str, dynamic: tuple[int, ...], normalise: Any, tmp_path: Path
) -> None:
    """Read by onnx itself; where there is an AIPP file, the network behind it takes normalised tensors."""
    import onnx

    how = om.OmConversion(soc_version="Ascend310P3", normalise=normalise, dynamic=dynamic)
    request = ExportRequest(batch_size=None if dynamic else 2, input=kind)
    path = tmp_path / "network.onnx"
    artefacts.export_onnx(tiny_weights(), path, om.onnx_request(request, how), load_plugins())
    (given,) = onnx.load(path).graph.input
    shape = [d.dim_value or -1 for d in given.type.tensor_type.shape.dim]
    words = om.command(path, tmp_path / "x.om", tiny_weights().preprocess, request, how)
    assert f"--input_shape={given.name}:{','.join(map(str, shape))}" in words
    layout = {onnx.TensorProto.UINT8: "ND", onnx.TensorProto.FLOAT: "NCHW"}[given.type.tensor_type.elem_type]
    assert f"--input_format={layout}" in words


def aipp(text: str, images: np.ndarray) -> np.ndarray:
    """Compute what a static AIPP file does to RGB888_U8 images (N, S, S, 3): float32 (N, 3, S, S) of float16 values.

    From the text alone: pixel_out = (pixel_in - mean_chn - min_chn) * var_reci_chn (CANN commercial 8.0, ATC, "AIPP
    Normalization Configuration"), whose min_chn and var_reci_chn are float16 registers, as the result is.
    """
    found = dict(re.findall(r"^\s*(\w+)\s*:\s*(\S+)\s*$", text, re.MULTILINE))
    assert (found["aipp_mode"], found["input_format"], found["csc_switch"]) == (
        "static",
        "RGB888_U8",
        "false",
    )
    assert found["crop"] == found["rbuv_swap_switch"] == "false"
    assert images.shape[1:3] == (int(found["src_image_size_h"]), int(found["src_image_size_w"]))
    mean = np.array([int(found[f"mean_chn_{i}"]) for i in range(3)], np.float32)
    low, scale = (
        np.array([np.float16(found[f"{name}_{i}"]) for i in range(3)]).astype(np.float32)
        for name in ("min_chn", "var_reci_chn")
    )
    return ((images - mean - low) * scale).astype(np.float16).astype(np.float32).transpose(0, 3, 1, 2)


def test_logits_through_aipp_are_those_of_the_ordinary_path() -> None:
    """Within float16's tolerance, here also with other means per colour; a wrong file is far outside."""
    weights = tiny_weights()
    spec = PreprocessSpec(size=16, resize=18, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 37.0))
    served = create_predictor(
        PredictRequest(weights=weights.replace(preprocess=spec), rank=RankInfo(), options=ReferenceOptions())
    )
    rng = np.random.default_rng(5)
    images = (rng.integers(0, 256, (8, 16, 16, 3)) * np.array([1.0, 0.7, 0.4])).astype(np.uint8)
    expected, text = served.logits(images), om.aipp_config(spec)
    scale = np.abs(expected).max()

    def off(changed: str) -> float:
        return float(np.abs(served.logits_from_tensor(aipp(changed, images)) - expected).max() / scale)

    assert off(text) <= 2e-3
    for wrong in (
        re.sub(r"mean_chn_(\d): \d+", r"mean_chn_\1: 0", text),
        re.sub(r"var_reci_chn_2: \S+", "var_reci_chn_2: 0.0175", text),
        text.replace("mean_chn_0", "x").replace("mean_chn_2", "mean_chn_0").replace("x", "mean_chn_2"),
    ):
        assert off(wrong) > 1e-2


def test_a_mean_is_split_so_that_float16_keeps_it() -> None:
    text = om.aipp_config(PreprocessSpec(mean=(123.675, 116.0, 0.25), std=(58.395, 57.12, 1.0)))
    assert "mean_chn_0: 123\n  mean_chn_1: 116\n  mean_chn_2: 0\n" in text
    assert "min_chn_0: 0.675\n  min_chn_1: 0\n  min_chn_2: 0.25\n" in text
    assert "var_reci_chn_0: 0.0171247538\n" in text
    assert "src_image_size_w: 224\n  src_image_size_h: 224\n  crop: false\n" in text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mean": (256.0, 0.0, 0.0)}, "AIPP subtracts a mean from 0 to 255"),
        ({"mean": (-1.0, 0.0, 0.0)}, "AIPP subtracts a mean from 0 to 255"),
        ({"std": (1e-5, 1.0, 1.0)}, "AIPP multiplies by 1/std in float16"),
        ({"std": (1e5, 1.0, 1.0)}, "AIPP multiplies by 1/std in float16"),
        ({"size": 1}, "AIPP takes images of 2 to 4096 pixels, not 1"),
    ],
)
def test_what_aipp_cannot_represent_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as raised:
        om.aipp_config(PreprocessSpec(**changes))
    assert "--normalise graph has no such limit" in str(raised.value)


@pytest.mark.parametrize("kind", ["om", "air"])
@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("export.input=image", "cannot contain the preprocessing (export.input=image)"),
        ("export.precision=float16", "cannot be written in float16: set export.precision to float32"),
    ],
)
def test_settings_of_other_formats_are_refused(
    kind: str, setting: str, says: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / f"model.{kind}"
    command = ["ascend", "export", "--weights", str(weights), "--format", kind, "--to", str(target)]
    assert main([*command, "--set", setting]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not target.exists()
