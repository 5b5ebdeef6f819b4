"""Artefacts of Ascend with stand-ins for the vendors' tools: what is called, what is kept, what is said."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from ascend_cases import tiny_weights

from resnext_ascend import artefacts, diagnose
from resnext_core.cli.main import main
from resnext_core.model.sidecar import read_artefact
from resnext_core.model.weights import save_weights

pytest.importorskip("onnx")

#: Writes what it was given and an artefact where --output or --outputFile says, as the real ones do.
TOOL = """#!/bin/sh
printf '%s\\n' "$@" > "{calls}"
for word in "$@"; do
  case "$word" in
    --model=*|--modelFile=*) test -s "${{word#*=}}" || exit 3;;
    --configFile=*) cat "${{word#*=}}" > "{config}";;
    --output=*|--outputFile=*) printf artefact > "${{word#*=}}{ending}";;
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
            "om", "atc", ".om", ["--soc-version", "Ascend910B2", "--precision", "must_keep_origin_dtype"],
            {
                "--framework=5", "--soc_version=Ascend910B2", "--input_shape=images:1,16,16,3", "--input_format=NHWC",
                "--precision_mode=must_keep_origin_dtype", "--log=error",
            },
        ),
        (
            "lite", "converter_lite", ".mindir", ["--precision", "enforce_origin"],
            {
                "--fmk=ONNX", "--saveType=MINDIR", "--optimize=ascend_oriented:Ascend310P3",
                "--inputShape=images:1,16,16,3",
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
    shown = shlex.split(capsys.readouterr().out)
    assert not calls.exists()
    assert not target.exists()
    assert main(command) == 0
    assert target.read_text() == "artefact"
    manifest, artefact = read_artefact(target)
    assert manifest.digest == tiny_weights().digest
    assert artefact["input"] == ("float" if "export.input=float" in words else "uint8")
    found = set(calls.read_text().splitlines())
    files = {
        w
        for w in found
        if w.split("=")[0] in ("--model", "--modelFile", "--output", "--outputFile", "--configFile")
    }
    assert found - files == expected
    assert (
        set(shown[1:]) - {w for w in shown if w.split("=")[0] in {f.split("=")[0] for f in files}} == expected
    )
    assert shown[0] == name
    if kind == "lite":
        assert config.read_text() == (
            "[ascend_context]\nprecision_mode=enforce_origin\ninput_shape=images:1,16,16,3\n"
        )
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
        (["--format", "lite", "--to", "x.mindir", "--precision", "allow_fp32_to_fp16", "--dry-run"], 2,
         "MindSpore Lite's precision is one of enforce_fp16"),
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


def test_atc_takes_the_onnx_file_that_was_made(weights: Path, tmp_path: Path) -> None:
    """The names and shapes in the command line are those in the file, read by onnx itself."""
    import onnx

    from resnext_core.interfaces import ExportRequest
    from resnext_core.plugins import load_plugins

    for kind in ("uint8", "float"):
        request = ExportRequest(batch_size=2, input=kind)
        path = tmp_path / f"{kind}.onnx"
        artefacts.export_onnx(tiny_weights(), path, request, load_plugins())
        (given,) = onnx.load(path).graph.input
        shape = ",".join(str(d.dim_value) for d in given.type.tensor_type.shape.dim)
        assert artefacts.input_shape(16, request) == f"{given.name}:{shape}"
