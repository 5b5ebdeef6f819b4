"""Workflows, hooks and papers of the repository name what is there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from resnext_core import __version__

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
#: How the runner of a host is asked for its Debian packages.
PACKAGES = "cmake g++ libjpeg-dev libpng-dev"


def steps(path: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
    return [step for job in jobs for step in job.get("steps", [])]


def test_the_workflows_are_there() -> None:
    assert [path.stem for path in WORKFLOWS] == ["release", "tests", "wheels"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_a_workflow_has_few_rights_and_an_end(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert "uses" in job or job["timeout-minutes"] <= 90, name
        rights = job.get("permissions", {})
        assert rights == ({"id-token": "write"} if name == "publish" else {}), name
    text = path.read_text(encoding="utf-8")
    assert "secrets." not in text
    for used in re.findall(r"uses: (\S+)", text):
        publisher = used == "pypa/gh-action-pypi-publish@release/v1"  # as its authors say; a branch of theirs
        assert used.startswith("./") or publisher or re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", used), used
        assert not used.startswith("./") or (ROOT / used).is_file(), used
    for step in steps(path):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_a_job_in_a_container_trusts_its_checkout() -> None:
    """It runs as root and the files are another user's: git, which lists what is built, refuses them otherwise."""
    seen = 0
    for path in WORKFLOWS:
        for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values():
            if "container" in job:
                commands = [step.get("run", "") for step in job["steps"]]
                trusts = [k for k, line in enumerate(commands) if "--add safe.directory" in line]
                makes = [k for k, line in enumerate(commands) if line.startswith("make ")]
                assert trusts
                assert trusts[0] < makes[0]
                seen += 1
    assert seen


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_a_workflow_runs_what_the_makefile_has(path: Path) -> None:
    for step in steps(path):
        command = step.get("run", "")
        # what comes from outside reaches a shell as a variable, never as text
        assert "${{" not in command
        for target in re.findall(r"\bmake ([a-z-]+)", command):
            assert target in TARGETS, target
        if "apt-get" in command:
            assert command.endswith(f" {PACKAGES}")


def test_the_tests_run_on_every_python_that_core_names() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))["jobs"]
    named = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert jobs["core"]["strategy"]["matrix"]["python"] == named
    mindspore = (ROOT / "plugins/mindspore/pyproject.toml").read_text(encoding="utf-8")
    assert jobs["all"]["strategy"]["matrix"]["python"] == re.findall(r"Python :: (3\.\d+)", mindspore)
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1]
    assert any(step.get("run", "").startswith(run) for step in jobs["all"]["steps"])


def test_pre_commit_checks_what_make_lint_checks() -> None:
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert recipe is not None
    lines = recipe[1].replace("$(BIN)", ".venv/bin").replace(" $(FORMATTED)", "").splitlines()
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [hook["entry"] for hook in repository["hooks"]] == [line.strip() for line in lines]


def test_the_issue_form_asks_for_doctor() -> None:
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text(encoding="utf-8"))
    asked = {item["id"]: item for item in form["body"] if "id" in item}
    assert "`resnext-run doctor --json`" in asked["doctor"]["attributes"]["label"]
    assert asked["doctor"]["validations"]["required"] is True


def test_the_citation_has_the_version_and_the_licence() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (__version__, "Apache-2.0")
    assert citation["authors"]
    paper = citation["references"][0]
    assert paper["title"] == "Aggregated Residual Transformations for Deep Neural Networks"


def test_the_container_for_development_makes_the_environment_of_the_makefile() -> None:
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    command = container["postCreateCommand"]
    assert PACKAGES in command
    assert command.endswith("make .venv/.ready-dev")
    assert "$(VENV)/.ready-dev:" in MAKEFILE
