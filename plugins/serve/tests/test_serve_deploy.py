"""The files for containers: no rights, nothing to write, and every file that they name exists."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[3]


def test_the_image_has_a_user_without_rights_and_copies_what_exists() -> None:
    text = (ROOT / "deploy/Dockerfile").read_text()
    last = text.rpartition("\nFROM ")[2]
    assert re.search(r"^USER 65532:65532$", last, re.MULTILINE)
    installed = re.search(r"pip install --no-cache-dir (.*)", text)
    assert installed is not None
    for folder in installed[1].split():
        assert (ROOT / folder / "pyproject.toml").is_file(), folder
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert all((ROOT / name).exists() for name in kept)


def test_the_compose_file_grants_nothing() -> None:
    service = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]["resnext"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["user"] == "65532:65532"
    assert "no-new-privileges:true" in service["security_opt"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert (ROOT / "deploy" / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
