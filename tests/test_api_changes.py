"""The Python API and the API of plugins do not break without a version, and the tool that says so finds every break."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from resnext_core import API_VERSION, __version__

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import api_changes
    finally:
        sys.path.pop(0)
    return api_changes


def test_nothing_broke_since_it_was_recorded(tool: ModuleType) -> None:
    record = json.loads(tool.RECORD.read_text(encoding="utf-8"))
    found = list(tool.breaks(record["modules"], tool.surface()))
    assert not found, (
        "raise the version (docs/versions.md), then run python tools/api_changes.py --record, "
        f"and say it in the changelog: {'; '.join(found)}"
    )
    if tool.released(__version__):
        assert record["version"] == __version__, "a release is recorded: python tools/api_changes.py --record"
        assert record["api_version"] == API_VERSION


def test_what_is_promised_is_recorded(tool: ModuleType) -> None:
    modules = tool.surface()
    assert {"train", "run", "evaluate", "load"} < set(modules["resnext_core.api"])
    assert ["id", "keyword", False] in modules["resnext_core.interfaces"]["Backend"]
    assert "resnext_backends" in modules["resnext_core.hookspecs"]
    assert modules["resnext_core.jobs.model"]["Model.predict"]


OLD = """
class Record:
    name: str
    size: int = 1
    def read(self, where, *, fast=False): ...
def work(first, second, third=0, *, more=None, **rest): ...
def _private(first): ...
"""


@pytest.mark.parametrize(
    ("was", "becomes", "says"),
    [
        ("def work", "def toil", "m.work is gone"),
        ("class Record", "class Records", "m.Record is gone"),
        ("def read", "def _read", "m.Record.read is gone"),
        ("    size: int = 1", "", "m.Record: size is gone"),
        ("size: int = 1", "size: int", "m.Record: size became required"),
        ("size: int = 1", "size: int = 1\n    unit: str", "m.Record: unit is new and required"),
        ("first, second, third=0", "second, first, third=0", "m.work: another order of first, second, third"),
        ("first, second, third=0", "zeroth, first, second, third=0", "m.work: zeroth is new and required"),
        ("third=0", "third", "m.work: third became required"),
        ("third=0, *,", "*, third=0,", "m.work: third was positional and is keyword"),
        ("more=None", "less=None", "m.work: more is gone"),
        ("more=None", "more=None, less", "m.work: less is new and required"),
        (", **rest", "", "m.work: rest is gone"),
        ("where, *, fast", "place, *, fast", "m.Record.read: where is gone"),
    ],
)
def test_every_break_is_found(tool: ModuleType, was: str, becomes: str, says: str) -> None:
    assert was in OLD
    assert says in list(tool.breaks({"m": names(tool, OLD)}, {"m": names(tool, OLD.replace(was, becomes))}))


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("size: int = 1", "size: int = 2\n    unit: str = ''"),
        ("third=0", "third=0, fourth=1"),
        ("more=None", "more=None, less=None"),
        ("*, fast=False", "fast=False"),
        ("second, third", "second=1, third"),
        ("def _private(first)", "def _private()"),
        ("class Record", "def new(x): ...\nclass Record"),
    ],
)
def test_what_nobody_notices_is_no_break(tool: ModuleType, was: str, becomes: str) -> None:
    assert was in OLD
    changed = names(tool, OLD.replace(was, becomes))
    assert list(tool.breaks({"m": names(tool, OLD)}, {"m": changed})) == []


def test_a_new_field_of_a_result_is_no_break(tool: ModuleType) -> None:
    more = names(tool, OLD.replace("name: str", "name: str\n    top5: float"))
    assert list(tool.breaks({"resnext_core.jobs.x": names(tool, OLD)}, {"resnext_core.jobs.x": more})) == []


@pytest.mark.parametrize(
    ("heading", "of", "may"),
    [
        ("## 0.1.0 (unreleased)", "0.1.0", True),
        ("## 0.1.0", "0.1.0", False),
        ("## [0.1.0] - 2026-12-01", "0.1.0", False),
        ("## [0.1.0] - 2026-12-01", "0.1.1", False),
        ("## [0.1.0] - 2026-12-01", "0.2.0", True),
    ],
)
def test_a_break_of_a_released_version_needs_a_new_one(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heading: str, of: str, may: bool
) -> None:
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n{heading}\n\n- things\n")
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    assert tool.allowed("0.1.0", of) == may


def names(tool: ModuleType, source: str) -> dict[str, list[list[object]]]:
    return dict(tool.entries(ast.parse(source)))
