"""Pages are true to themselves: links lead somewhere, Python runs, the tutorial prints the example plugin."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from documents import DOCS, EXAMPLE, PAGES, ROOT, TUTORIAL, blocks, page_id, tutorial_files, without_blocks


def test_tutorial_prints_the_example_plugin() -> None:
    """Every file, byte for byte, and no other but the licence of this repository."""
    built = {"__pycache__", "build", "LICENSE"}
    files = {
        path.relative_to(EXAMPLE).as_posix(): path.read_text()
        for path in EXAMPLE.rglob("*")
        if path.is_file()
        and not any(part in built or part.endswith(".egg-info") for part in path.relative_to(EXAMPLE).parts)
    }
    printed = tutorial_files()
    assert sorted(printed) == sorted(files)
    for name, text in files.items():
        assert printed[name] == text, f"{name} is not what the tutorial prints"


def slugs(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def broken_links(page: Path) -> list[str]:
    """Return the relative links of `page` whose file or heading is not there."""
    text = without_blocks(page.read_text())
    links = re.findall(r"\]\(\s*<?([^)\s>]+)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    broken = []
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        missing = not target.exists() or not target.is_relative_to(ROOT)
        if missing or (anchor and target.suffix == ".md" and anchor not in slugs(target.read_text())):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_broken_links_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '# A head\n[a](page.md#a-head) [b](page.md#b) [c](no.md) <img src="no.png"> [d](https://a.b)\n'
    )
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert broken_links(page) == ["page.md#b", "no.md", "no.png"]


#: Their Python needs data, or a service: test_tutorial.py, test_python_page.py and tests of plugins run it.
ELSEWHERE = (TUTORIAL, ROOT / "README.md", *(DOCS / f"{name}.md" for name in ("python", "serving", "int8")))


@pytest.mark.parametrize("page", [p for p in PAGES if p not in ELSEWHERE], ids=page_id)
def test_python_on_pages_runs(page: Path) -> None:
    for block in blocks(page.read_text()):
        if block.language == "python":
            exec(compile(block.text, page_id(page), "exec"), {"__name__": "page", "__file__": "page.py"})


def test_pages_are_plain() -> None:
    """No path of a machine, and no page without a title."""
    for page in PAGES:
        text = page.read_text()
        assert not re.search(r"(?<![\w.])/(?:work|home|root|tmp|Users)/", text), page_id(page)
        assert not text or text.startswith(("# ", "<")), page_id(page)
