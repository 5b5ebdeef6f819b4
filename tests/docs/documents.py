"""The pages, and what the tests of documents share: fenced blocks and tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
EXAMPLE = ROOT / "plugins" / "example"
TUTORIAL = DOCS / "writing-a-backend.md"
CONTRACT = DOCS / "contract.md"
#: The id that the tutorial gives to a reader's own backend.
READERS_ID = "mine"
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *DOCS.rglob("*.md"),
        *ROOT.glob("plugins/*/README.md"),
        *ROOT.glob("resnext_*/README.md"),
        *ROOT.glob("benchmarks/*.md"),
    ]
)


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: its language, its text, and the bold path on the line above it, if there is one."""

    language: str
    text: str
    path: str | None


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    pattern = (
        r"(?:^\*\*`(?P<path>[^`\n]+)`\*\*\n\n)?^(?P<fence>`{3,})(?P<language>\w*)\n(?P<text>.*?)^(?P=fence)$"
    )
    for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        yield Block(language=match["language"], text=match["text"], path=match["path"])


def without_blocks(text: str) -> str:
    return re.sub(r"^(`{3,}).*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)


def rows(page: Path, heading: str) -> list[list[str]]:
    """Return the cells of the first table under a heading, without its head."""
    section = page.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line.strip().strip("|").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def tutorial_files() -> dict[str, str]:
    """Return the plugin as the tutorial prints it: text by path."""
    files = {block.path: block.text for block in blocks(TUTORIAL.read_text()) if block.path is not None}
    assert len(files) >= 9, sorted(files)
    return files
