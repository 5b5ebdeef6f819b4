"""The contact sheet: what training makes of some images, on one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from resnext_core.data.plan import Box
from resnext_core.files import write_atomic
from resnext_core.report.page import render_page
from resnext_core.report.pictures import data_uri

#: Longest side of a picture in pixels.
LONGEST = 240


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """One picture with its title, and what was done to it in a few words each; `box` is its crop of the original."""

    image: Image.Image
    title: str
    words: Sequence[str] = ()
    box: Box | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class SheetRow:
    """An image of the data: the file as it is, and what becomes of it; or why it cannot be read.

    `width` and `height` are those of the file.
    """

    title: str
    path: str
    width: int = 0
    height: int = 0
    original: Image.Image | None = None
    pictures: Sequence[Picture] = ()
    problem: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class SheetData:
    """A contact sheet; `facts` by name, `mixes` are batches of images with a title each, below a title for all."""

    title: str
    lead: str
    facts: Mapping[str, str]
    rows: Sequence[SheetRow]
    mixes: Sequence[tuple[str, Sequence[Picture]]] = ()
    mixes_title: str = "Mixed batches"
    mixes_lead: str = (
        "The pictures of epoch 1 as one micro-batch, mixed as the device does it. A picture that is its own partner "
        "stays as it is."
    )


def write_sheet(path: Path, data: SheetData) -> None:
    """Write :func:`render_sheet` to `path` atomically; raises DataError when it cannot be written."""
    write_atomic(path, render_sheet(data))


def render_sheet(data: SheetData) -> str:
    """Return the sheet as one HTML page that loads nothing from anywhere and runs no script; all text is escaped."""
    return render_page(
        "sheet.html.j2",
        styles=("style.css", "sheet.css"),
        data=data,
        rows=[_row(row) for row in data.rows],
        mixes=[(title, [_picture(p, title) for p in pictures]) for title, pictures in data.mixes],
    )


def _row(row: SheetRow) -> dict[str, Any]:
    shown: dict[str, Any] = {"row": row, "original": None, "pictures": [], "boxes": []}
    if row.original is not None:
        original = Picture(image=row.original, title="Original", words=[f"{row.width} × {row.height} pixels"])
        shown["original"] = _picture(original, row.title)
        shown["pictures"] = [_picture(picture, row.title) for picture in row.pictures]
        shown["boxes"] = [
            (number, picture.box) for number, picture in enumerate(row.pictures) if picture.box is not None
        ]
    return shown


def _picture(picture: Picture, of: str) -> dict[str, Any]:
    source, small = data_uri(picture.image, of, LONGEST)
    title = f", {picture.title}" if picture.title else ""
    said = f": {'; '.join(picture.words)}" if picture.words else ""
    return {"picture": picture, "source": source, "small": small, "alt": f"{of}{title}{said}"}
