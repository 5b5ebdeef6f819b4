"""What the distributions install besides their packages."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from resnext_core.plugins import load_plugins

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(ROOT.glob("resnext_*/scripts/*.sh"))
RECIPES = [
    ROOT / "resnext_core" / "recipes",
    *ROOT.glob("*/src/*/recipes"),
    *ROOT.glob("plugins/*/src/*/recipes"),
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_a_script_of_the_modelzoo_is_installed_and_any_shell_reads_it(script: Path) -> None:
    """The ModelZoo's README says `sh`, which is no bash on Debian and Ubuntu."""
    assert f'"scripts/{script.name}"' in (script.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert script.read_text(encoding="utf-8").startswith("#!/bin/sh\n")
    done = subprocess.run(["sh", "-n", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_there_are_the_seven_scripts() -> None:
    assert len(SCRIPTS) == 7


@pytest.mark.parametrize("folder", RECIPES, ids=lambda p: p.parent.name)
def test_every_recipe_is_offered_and_goes_into_the_wheel(folder: Path) -> None:
    files = {path.stem: path for path in folder.glob("*.yaml")}
    assert files
    package = folder.parent
    project = package.parent if package.parent == ROOT else package.parents[1]
    declared = (
        (project / "pyproject.toml").read_text(encoding="utf-8").split("[tool.setuptools.package-data]")[1]
    )
    assert re.search(rf'^{package.name} = \[.*"recipes/\*\.yaml"', declared, re.MULTILINE)
    pytest.importorskip(f"{package.name}.plugin" if package.name != "resnext_core" else package.name)
    offered = {name: r.path for name, r in load_plugins().recipes.items() if r.path.parent == folder}
    assert offered == files
