"""A URL where a file of this machine is wanted: said, and not mangled into a path."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from resnext_core.cli.main import main
from resnext_core.errors import EXIT_USAGE, UsageError
from resnext_core.files import local_path

URL = "https://example.org/a/b.onnx"


@pytest.mark.parametrize(
    "words",
    [
        ["infer", "--weights", URL, "photo.jpg"],
        ["infer", "--weights", "{weights}", URL],
        ["eval", f"--weights={URL}", "--data", "photos"],
        ["convert", URL, "out.safetensors"],
        ["convert", "{weights}", "out.safetensors", "--classes", URL],
        ["export", "--weights", URL, "--format", "onnx", "--to", "x.onnx"],
        ["validate", "--artefact", URL, "--weights", "{weights}"],
        ["train", "--recipe", "digits", "--pretrained", URL],
        ["train", "--recipe", "{recipe}"],
        ["train", "--recipe", "digits", "--set", f"data.cache={URL}"],
        ["data", "demo", URL],
        ["doctor", "--run", URL],
        ["report", URL],
        ["runs", "list", URL],
    ],
    ids=lambda words: " ".join(words)[:40],
)
def test_an_address_is_no_file(
    weights_file: Path, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"data:\n  quarantine: {URL}\n")
    assert main([w.format(weights=weights_file, recipe=recipe) for w in words]) == EXIT_USAGE
    error = capsys.readouterr().err
    assert "://" in error
    assert error.endswith(" is a URL, not a file; download it first and give its path\n")
    assert error.count("\n") == 1


def test_an_address_in_a_list_on_standard_input(
    weights_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{URL}\n".encode())))
    words = ["--backend", "reference", "infer", "--weights", str(weights_file), "-"]
    assert main(words) == EXIT_USAGE
    assert f"'{URL}' is a URL" in capsys.readouterr().err


def test_what_is_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in (URL, Path(URL), "hf:/x", "file:///x/y", "s3://b"):
        with pytest.raises(UsageError, match="is a URL"):
            local_path(text)
    for text in ("a:b", "c:/x", "x/https://y", "", "/x://y", "://x"):
        assert local_path(text) == Path(text)
    (tmp_path / "odd:").mkdir()
    (tmp_path / "odd:" / "x").touch()
    assert local_path("odd://x") == Path("odd:/x"), "it is there, so it is a file"
