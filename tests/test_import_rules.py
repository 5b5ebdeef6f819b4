"""Who may import whom: the contracts of pyproject.toml hold, and core knows no framework by any name."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOREIGN = {
    "mindspore", "torch", "torchvision", "onnx", "onnxruntime", "openvino", "tensorflow", "jax", "acl", "tensorrt",
}  # fmt: skip
PLUGINS = {
    "resnext_mindspore", "resnext_onnx", "resnext_ascend", "resnext_gpu", "resnext_cpp_infer", "resnext_serve",
}  # fmt: skip


def test_the_contracts_hold() -> None:
    pytest.importorskip("importlinter.cli")
    pytest.importorskip("resnext_mindspore.plugin")
    pytest.importorskip("resnext_onnx.plugin")
    pytest.importorskip("resnext_gpu.plugin")
    pytest.importorskip("resnext_ascend.plugin")
    pytest.importorskip("resnext_cpp_infer.plugin")
    pytest.importorskip("resnext_serve.plugin")
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "5 kept, 0 broken" in done.stdout


def imported(path: Path) -> set[str]:
    """Return the top names of every import in a file, also of those inside functions and conditions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_core_imports_only_what_it_declares() -> None:
    declared = {
        "resnext_core", "numpy", "PIL", "yaml", "pluggy", "safetensors", "jinja2", "rich",
        "markupsafe",  # jinja2's own
        "sklearn", "tensorboardX", "fsspec", "pyarrow",  # extras, imported where they are asked for
        "pytest",  # the contract kit
    }  # fmt: skip
    for path in sorted((ROOT / "resnext_core").rglob("*.py")):
        strangers = imported(path) - declared - set(sys.stdlib_module_names)
        assert not strangers, f"{path.relative_to(ROOT)} imports {', '.join(sorted(strangers))}"


@pytest.mark.parametrize(
    "plugin",
    sorted(ROOT.glob("*/src/*/plugin.py")) + sorted(ROOT.glob("plugins/*/src/*/plugin.py")),
    ids=lambda p: p.parent.name,
)
def test_a_plugin_module_is_light(plugin: Path) -> None:
    tree = ast.parse(plugin.read_text(encoding="utf-8"))
    top = ast.Module(
        body=[n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))], type_ignores=[]
    )
    names = {a.name.split(".")[0] for n in top.body if isinstance(n, ast.Import) for a in n.names}
    names |= {(n.module or "").split(".")[0] for n in top.body if isinstance(n, ast.ImportFrom)}
    assert not names & FOREIGN


def test_core_names_no_plugin() -> None:
    for path in sorted((ROOT / "resnext_core").rglob("*.py")):
        assert not imported(path) & (PLUGINS | FOREIGN), path


def core_imports(path: Path) -> set[Path]:
    """Return the files of core that a file imports, also inside functions, but not for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unread = {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If)
        and isinstance(branch.test, ast.Name)
        and branch.test.id == "TYPE_CHECKING"
        for statement in branch.body
        for node in ast.walk(statement)
    }
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and node not in unread:
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node not in unread:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    files = {ROOT / (name.replace(".", "/") + ".py") for name in names}
    files |= {ROOT / name.replace(".", "/") / "__init__.py" for name in names}
    return {file for file in files if file.is_file() and "resnext_core" in file.parts and file != path}


def test_no_files_of_core_import_each_other_in_a_circle() -> None:
    graph = {path: core_imports(path) for path in (ROOT / "resnext_core").rglob("*.py")}
    assert sum(map(len, graph.values())) > 500
    # a package's face re-exports its modules, which may import the package's neighbours: it is no part of a circle
    for path in [p for p in graph if p.name == "__init__.py"]:
        graph[path] = {p for p in graph[path] if p.parent != path.parent}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the files
