"""What the distributions install besides their packages."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(ROOT.glob("resnext_*/scripts/*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_a_script_of_the_modelzoo_is_installed_and_any_shell_reads_it(script: Path) -> None:
    """The ModelZoo's README says `sh`, which is no bash on Debian and Ubuntu."""
    assert f'"scripts/{script.name}"' in (script.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert script.read_text(encoding="utf-8").startswith("#!/bin/sh\n")
    done = subprocess.run(["sh", "-n", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_there_are_the_seven_scripts() -> None:
    assert len(SCRIPTS) == 7
