"""docs/api.md is what its generator writes from today's docstrings."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_api", DOCS / "generate_api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(generator: ModuleType) -> None:
    stale = (DOCS / "api.md").read_text(encoding="utf-8") != generator.page()
    assert not stale, "docs/api.md is stale: run python docs/generate_api.py"


def test_everything_on_the_page_has_a_docstring(generator: ModuleType) -> None:
    """A class or function of a public module explains itself."""
    for name in (name for names in generator.MODULES.values() for name in names):
        entries = "\n".join(generator._module(name)).split("\n#### ")[1:]
        bare = [entry.splitlines()[0] for entry in entries if not entry.split("```")[2].strip()]
        assert not bare, f"{name}: {', '.join(bare)}"
