"""What the distributions say of themselves, and what they install besides their packages."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import pytest

from resnext_core import __version__
from resnext_core.plugins import load_plugins

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
PROJECTS = [
    ROOT / "pyproject.toml",
    *sorted(ROOT.glob("resnext_*/pyproject.toml")),
    *sorted(ROOT.glob("plugins/*/pyproject.toml")),
]
#: The tutorial prints it whole: a reader's own backend says other things of itself.
TEMPLATE = ROOT / "plugins" / "example" / "pyproject.toml"
SCRIPTS = sorted(ROOT.glob("resnext_*/scripts/*.sh"))
RECIPES = [
    ROOT / "resnext_core" / "recipes",
    *ROOT.glob("*/src/*/recipes"),
    *ROOT.glob("plugins/*/src/*/recipes"),
]


def project(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def tool(name: str) -> ModuleType:
    """Return a module of tools/, which is no package."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def package(path: Path) -> Path:
    """Return the folder of the package of a distribution."""
    (found,) = [
        p.parent
        for p in [*path.parent.glob("src/*/__init__.py"), *path.parent.glob("resnext_core/__init__.py")]
    ]
    return found


def project_id(path: Path) -> str:
    return str(path.parent.relative_to(ROOT))


@pytest.mark.parametrize("path", PROJECTS, ids=project_id)
def test_a_distribution_says_what_an_index_shows(path: Path) -> None:
    said = project(path)["project"]
    assert said["version"] == __version__
    assert said["license"] == "Apache-2.0"
    assert (path.parent / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (path.parent / said["readme"]).is_file()
    assert said["description"]
    if path == TEMPLATE:
        return
    assert said["license-files"] == ["LICENSE"]
    assert said["maintainers"]
    assert said["keywords"]
    classifiers = said["classifiers"]
    assert len(set(classifiers)) == len(classifiers)
    assert not [c for c in classifiers if c.startswith("License ::")], "PEP 639: the expression alone"
    # MindSpore 2.10 has wheels up to Python 3.12
    needs_mindspore = said["name"] in ("resnext-mindspore", "resnext-ascend")
    versions = ["3.10", "3.11", "3.12", *([] if needs_mindspore else ["3.13"])]
    assert re.findall(r"(?m)^Programming Language :: Python :: (3\.\d+)$", "\n".join(classifiers)) == versions
    assert said["requires-python"] == f">={versions[0]}"


@pytest.mark.parametrize("path", PROJECTS, ids=project_id)
def test_types_are_declared_where_they_are_shipped(path: Path) -> None:
    """PEP 561: the marker, its place in the wheel and the classifier, all or none."""
    said = project(path)
    name = package(path).name
    marked = (package(path) / "py.typed").is_file()
    assert marked == ("py.typed" in said["tool"]["setuptools"].get("package-data", {}).get(name, []))
    assert marked == ("Typing :: Typed" in said["project"].get("classifiers", []))
    assert marked == (path != TEMPLATE)


def test_the_version_is_the_same_everywhere_and_set_by_one_command() -> None:
    """The tool finds nothing to change for today's version, and every place for another one."""
    version = tool("version")
    assert version.version() == __version__
    assert [path for path, _ in version.changed(__version__)] == []
    changed = dict(version.changed("7.8.9"))
    assert set(PROJECTS) < set(changed)
    old = __version__.rpartition(".")[0]
    for path, text in changed.items():
        assert "7.8.9" in text
        assert not re.search(rf"resnext-[a-z-]+(\[[a-z,]+\])?>={re.escape(old)},", text), path
    core = tomllib.loads(changed[ROOT / "pyproject.toml"])["project"]
    assert core["optional-dependencies"]["onnx"] == ["resnext-onnx>=7.8,<7.9"]


def test_no_plugin_is_asked_for_without_bounds() -> None:
    for path in PROJECTS:
        said = project(path)["project"]
        for line in [*said["dependencies"], *chain(*said.get("optional-dependencies", {}).values())]:
            if line.startswith("resnext-") and not line.startswith("resnext-core["):
                assert re.search(r">=\d+\.\d+,<\d+\.\d+$", line), f"{path}: {line}"


def test_the_extra_all_has_every_plugin() -> None:
    extras = project(ROOT / "pyproject.toml")["project"]["optional-dependencies"]
    plugins = {
        project(path)["project"]["name"].removeprefix("resnext-") for path in PROJECTS[1:] if path != TEMPLATE
    }
    assert plugins <= set(extras)
    assert plugins <= set(re.findall(r"[\w-]+", extras["all"][0]))


@pytest.mark.parametrize("repository", [None, "https://host.example/owner/name"])
@pytest.mark.parametrize("path", PROJECTS, ids=project_id)
def test_the_readme_of_an_archive_has_no_dead_link(path: Path, repository: str | None) -> None:
    """An index shows it without the repository; `test_pages.py` checks that the links lead somewhere within it."""
    dist = tool("dist")
    text = (path.parent / "README.md").read_text(encoding="utf-8")
    folder = PurePosixPath(path.parent.relative_to(ROOT))
    made = dist.readme(text, folder, repository, "v1.2.3")
    assert dist.relative_links(made) == []
    for name in re.findall(rf"{repository}/(?:blob|raw)/v1\.2\.3/([^)#\s]+)", made):
        assert (ROOT / name).exists()
    if path == PROJECTS[0]:
        assert len(dist.relative_links(text)) > 10
        assert ("/raw/v1.2.3/docs/images/report.png)" in made) == (repository is not None)
    assert dist.readme(made, folder, None, "v1.2.3") == made


def test_links_of_a_readme_become_addresses_or_names() -> None:
    dist = tool("dist")
    text = "[a](../x/b.md#c) [../x/b.md](../x/b.md) ![p](p.png) [q](https://h.example) [r](#r)\n```\n[s](t.md)\n```\n"
    with_address = dist.readme(text, PurePosixPath("d"), "https://host.example/o/n", "v1")
    assert "[a](https://host.example/o/n/blob/v1/x/b.md#c)" in with_address
    assert "![p](https://host.example/o/n/raw/v1/d/p.png)" in with_address
    without = dist.readme(text, PurePosixPath("d"), None, "v1")
    assert without.startswith(
        "a (`x/b.md`) ../x/b.md (`x/b.md`) p (`d/p.png`) [q](https://h.example) [r](#r)\n"
    )
    for made in (with_address, without):
        assert "```\n[s](t.md)\n```" in made
        assert dist.relative_links(made) == []
    assert dist.relative_links(text) == ["../x/b.md#c", "../x/b.md", "p.png"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_a_script_of_the_modelzoo_is_installed_and_any_shell_reads_it(script: Path) -> None:
    """The ModelZoo's README says `sh`, which is no bash on Debian and Ubuntu."""
    declared = project(script.parents[1] / "pyproject.toml")["tool"]["setuptools"]["script-files"]
    installed = [name for name in declared if (script.parents[1] / name).resolve() == script]
    assert len(installed) == 1
    assert Path(installed[0]).name.startswith("resnext-"), "a name of its own among the programs of a machine"
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
