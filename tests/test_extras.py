"""What could be installed, as core's own metadata says, and the commands that messages name."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import CommandLine

from resnext_core import extras
from resnext_core.extras import install_hint, missing_plugins, others_hint

METADATA = {
    "Provides-Extra": ["fast", "pth", "tool"],
    "Requires-Dist": [
        "numpy>=1.26",
        'resnext-fast[engine]<0.2,>=0.1; extra == "fast"',
        "resnext-fast<0.2,>=0.1; extra == 'pth'",
        'scikit-learn>=1.3; extra == "tool"',
    ],
}


@pytest.fixture
def other_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "_metadata", lambda field: METADATA[field])


def test_the_extras_of_this_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"tensorboard", "demo", "pth"} <= extras.extras()
    assert set(missing_plugins()) <= extras.extras() - {"tensorboard", "demo", "dev", "pth"}
    monkeypatch.setattr(extras, "_is_installed", lambda distribution: False)
    assert len(missing_plugins()) >= 5


@pytest.mark.usefixtures("other_metadata")
def test_names_are_looked_up_among_the_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing_plugins() == ["fast"]
    assert install_hint("slow", "fast") == "pip install 'resnext-core[fast]'"
    assert install_hint(".pth.tar") == install_hint(".PTH") == "pip install 'resnext-core[pth]'"
    assert install_hint("slow") == install_hint("") == install_hint() == ""
    assert others_hint() == "; plugins that are not installed: resnext-core[fast]"
    monkeypatch.setattr(extras, "_is_installed", lambda distribution: distribution == "resnext-fast")
    assert (missing_plugins(), others_hint()) == ([], "")


EXPORT = ["export", "--weights", "W", "--to", "y", "--format"]
FAST, PTH = "pip install 'resnext-core[fast]'", "pip install 'resnext-core[pth]'"


@pytest.mark.usefixtures("other_metadata")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--backend", "fast", "train"], f"backend 'fast' is not installed: {FAST}"),
        (["convert", "x.pth", "y.safetensors"], f".pth files need a plugin that is not installed: {PTH}"),
        (["convert", "x.pth.tar", "y.safetensors"], PTH),
        (
            ["convert", "x.quick", "y.safetensors"],
            "known: .ckpt, .safetensors; plugins that are not installed: resnext-core[fast]",
        ),
        (
            ["infer", "--weights", "x.quick", "x.jpg"],
            "no installed backend serves '.quick' files; known: .safetensors; plugins that are not installed: resnext-",
        ),
        (["infer", "--weights", "x.fast", "x.jpg"], f"serves '.fast' files; {FAST} adds it"),
        ([*EXPORT, "fast"], f"no installed backend exports 'fast'; {FAST} adds it"),
        (
            [*EXPORT, "quick"],
            "no installed backend exports 'quick'; plugins that are not installed: resnext-",
        ),
    ],
    ids=[
        "backend",
        "weights",
        "tar",
        "no weights",
        "suffix",
        "suffix of an extra",
        "format of an extra",
        "format",
    ],
)
def test_what_is_unknown_names_what_would_install_it(
    cli: CommandLine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weights_file: Path,
    words: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("x.pth", "x.pth.tar", "x.quick", "x.fast", "x.jpg"):
        (tmp_path / name).write_bytes(b"nothing that is known")
    cli.refuses(2, *(weights_file if word == "W" else word for word in words), says=says)


@pytest.mark.usefixtures("other_metadata")
def test_doctor_names_plugins_that_are_not_installed(cli: CommandLine) -> None:
    assert cli.ok("doctor", "--json").json()["not_installed"] == ["fast"]
    assert "not installed: fast (pip install 'resnext-core[fast]')" in cli.ok("doctor").out
