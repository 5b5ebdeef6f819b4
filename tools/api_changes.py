"""What of the public API changed since it was recorded: ``python tools/api_changes.py``; ``--record`` records today's.

Compared are the names of the Python API and of the API of plugins, the parameters of functions and methods, and the
fields of classes, as `docs/generate_api.py` lists their modules. A change that callers or plugins notice is a break: a
name is gone, a parameter or field is gone, was renamed, moved or became required, or a required one is new. New names
and new optional parameters are none. `docs/versions.md` says when a break is allowed.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import version

ROOT = version.ROOT
RECORD = ROOT / "tests" / "compatibility" / "api.json"
#: Groups of pages in docs/generate_api.py that callers and plugins are promised.
PROMISED = ("Python API", "Commands of plugins", "Backends and plugins")
#: Modules whose classes are results: callers read them and do not make them.
RESULTS = "resnext_core.jobs."
#: A parameter or field: [name, kind, whether it may be left out].
Parameter = list[Any]


def surface() -> dict[str, dict[str, list[Parameter]]]:
    """Return the parameters of every public function, method and class by module and qualified name."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import generate_api  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    return {name: dict(entries(_parsed(name))) for title in PROMISED for name in generate_api.MODULES[title]}


def _parsed(name: str) -> ast.Module:
    path = ROOT.joinpath(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def entries(tree: ast.Module) -> Iterator[tuple[str, list[Parameter]]]:
    """Yield the public functions, classes and methods of a module, each with its parameters or fields."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and _public(node.name):
            yield node.name, _parameters(node)
        if isinstance(node, ast.ClassDef) and _public(node.name):
            yield node.name, list(_fields(node))
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and (_public(item.name) or item.name == "__init__"):
                    yield f"{node.name}.{item.name}", _parameters(item)[1:]


def _public(name: str) -> bool:
    return not name.startswith("_")


def _parameters(node: ast.FunctionDef) -> list[Parameter]:
    given = node.args
    ordered = [*given.posonlyargs, *given.args]
    needed = len(ordered) - len(given.defaults)
    found: list[Parameter] = [[a.arg, "positional", i >= needed] for i, a in enumerate(ordered)]
    if given.vararg:
        found.append([given.vararg.arg, "*", True])
    for item, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        found.append([item.arg, "keyword", default is not None])
    if given.kwarg:
        found.append([given.kwarg.arg, "**", True])
    return found


def _fields(node: ast.ClassDef) -> Iterator[Parameter]:
    marks = " ".join(ast.unparse(item) for item in node.decorator_list)
    kind = "positional" if "dataclass" in marks and "kw_only=True" not in marks else "keyword"
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and _public(item.target.id):
            yield [item.target.id, kind, item.value is not None]


def breaks(
    old: dict[str, dict[str, list[Parameter]]], new: dict[str, dict[str, list[Parameter]]]
) -> Iterator[str]:
    """Yield what callers of `old` would notice in `new`, a line each."""
    for module, names in old.items():
        for name, before in names.items():
            after = new.get(module, {}).get(name)
            where = f"{module}.{name}"
            if after is None:
                yield f"{where} is gone"
                continue
            now = {parameter: (kind, optional) for parameter, kind, optional in after}
            for parameter, kind, optional in before:
                if parameter not in now:
                    yield f"{where}: {parameter} is gone"
                elif optional and not now[parameter][1]:
                    yield f"{where}: {parameter} became required"
                elif kind != now[parameter][0] and (kind, now[parameter][0]) != ("keyword", "positional"):
                    yield f"{where}: {parameter} was {kind} and is {now[parameter][0]}"
            if not (module.startswith(RESULTS) and name[0].isupper() and "." not in name):
                known = {parameter for parameter, _, _ in before}
                added = [
                    parameter for parameter, _, optional in after if parameter not in known and not optional
                ]
                yield from (f"{where}: {parameter} is new and required" for parameter in added)
            first = [p for p, kind, _ in before if kind == "positional"]
            if [p for p, kind, _ in after if kind == "positional"][: len(first)] != first and set(
                first
            ) <= set(now):
                yield f"{where}: another order of {', '.join(first)}"


def contract() -> int:
    """Return API_VERSION, the version of the contract between core and backends."""
    match = re.search(
        r"^API_VERSION = (\d+)$", (ROOT / version.SOURCE).read_text(encoding="utf-8"), re.MULTILINE
    )
    assert match is not None
    return int(match[1])


def released(of: str) -> bool:
    """Return whether the changelog has this version without saying that it is unreleased."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heading = re.search(rf"^## \[?{re.escape(of)}\]?(.*)$", text, re.MULTILINE)
    return heading is not None and "unreleased" not in heading[1].lower()


def allowed(recorded: str, of: str) -> bool:
    """Return whether a version may break what another one recorded: a new minor version, or one not yet released."""
    return version.bounds(recorded) != version.bounds(of) or not released(recorded)


def main() -> int:
    """Compare with the record, or write it."""
    stored = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else None
    now, modules = version.version(), surface()
    found = list(breaks(stored["modules"], modules)) if stored else []
    if sys.argv[1:] not in ([], ["--record"]):
        print("usage: python tools/api_changes.py [--record]", file=sys.stderr)
        return 2
    print("\n".join(found) or "nothing that callers or plugins would notice")
    if not sys.argv[1:]:
        return int(bool(found))
    if stored and found and not allowed(stored["version"], now):
        print(
            f"{stored['version']} is released: a break needs a new minor version, see docs/versions.md",
            file=sys.stderr,
        )
        return 1
    lines = json.dumps({"version": now, "api_version": contract(), "modules": modules}, indent=1)
    one_line = re.sub(r"\[\s+(\"[^\"]+\"),\s+(\"[^\"]+\"),\s+(true|false)\s+\]", r"[\1, \2, \3]", lines)
    RECORD.write_text(one_line + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
