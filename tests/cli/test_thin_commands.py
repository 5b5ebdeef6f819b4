"""A command is a thin layer: it parses, calls a job and prints, and knows no other command."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import resnext_core.cli
from resnext_core.cli import commands as builtin

CLI = Path(resnext_core.cli.__file__).parent
#: The modules of commands; the others in the folder are shared.
COMMANDS = {f"{command.module.rpartition('.')[2]}.py" for command in builtin.resnext_commands()}
#: What a command may import of core, by how it begins: what it calls and prints with, and no arithmetic.
ALLOWED = (
    "resnext_core.cli.common", "resnext_core.cli.output", "resnext_core.cli.data_pack", "resnext_core.cli.data_scan",
    "resnext_core.cli.data_show", "resnext_core.cli.bench_all", "resnext_core.cli.bench_text",
    "resnext_core.cli.eval_text",
    "resnext_core.console",
    "resnext_core.jobs", "resnext_core.plugins", "resnext_core.extras", "resnext_core.interfaces",
    "resnext_core.errors",
    "resnext_core.terminal", "resnext_core.files", "resnext_core.ranks.info", "resnext_core.ranks.children",
    "resnext_core.runs.records",
)  # fmt: skip
#: Lines of the longest command; what is longer does the work of a job.
LONGEST = 130


def imports(path: Path) -> set[str]:
    """Return the full name of all that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_command_has_its_module() -> None:
    assert {path.name for path in CLI.glob("*.py")} >= COMMANDS


@pytest.mark.parametrize("path", sorted(CLI.glob("*.py")), ids=lambda p: p.stem)
def test_no_module_imports_a_command(path: Path) -> None:
    commands = tuple(f"resnext_core.cli.{name.removesuffix('.py')}" for name in COMMANDS)
    assert not [
        name
        for name in imports(path)
        if name in commands or name.startswith(tuple(c + "." for c in commands))
    ]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_parses_calls_and_prints(name: str) -> None:
    core = {n for n in imports(CLI / name) if n.startswith("resnext_core")}
    assert not {n for n in core if not n.startswith(tuple(f"{a}." for a in ALLOWED))}
    assert any(n.startswith("resnext_core.jobs.") for n in core), "it calls no job"
    assert {n.split(".")[0] for n in imports(CLI / name)} <= {
        "__future__", "argparse", "collections", "json", "pathlib", "resnext_core", "sys", "time", "typing",
    }  # fmt: skip
    assert len((CLI / name).read_text(encoding="utf-8").splitlines()) <= LONGEST
