"""Pictures of what was predicted: each image with its most probable classes below it."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from resnext_core.data.decode import BadImage, decode, opened_bytes
from resnext_core.data.exif import upright
from resnext_core.data.index import Index
from resnext_core.errors import DataError, reason
from resnext_core.files import check_folder, make_folder
from resnext_core.terminal import printable

#: Longest side of an image in pixels; a smaller one is enlarged in whole steps while it stays below `_LEAST`.
_LONGEST, _LEAST = 640, 256
#: Height of a line, size of its text, space around, and narrowest picture, in pixels.
_LINE, _TEXT, _SPACE, _NARROWEST = 26, 15, 10, 256
_PAPER, _INK, _MUTED, _BAR, _TRACK = "#ffffff", "#17212c", "#536070", "#0072b2", "#e3e8ee"
#: Characters of a file's name that are kept.
_MOST_NAME = 100


def check_pictures(folder: Path) -> None:
    """Raise DataError where `folder` holds something already, or no file can be made in it."""
    if os.path.isdir(folder) and any(os.scandir(folder)):
        raise DataError(f"{folder} is not empty; give a new folder for the pictures")
    try:
        check_folder(folder)
    except OSError as error:
        raise DataError(f"cannot write pictures into {folder}: {reason(error)}") from error


class Pictures:
    """Writes a JPEG file for each image of `index` into `folder`; none is ever replaced.

    A file has the name of its image, with a number where another has it already, whatever the case of its letters.
    With `oriented` an image is turned as EXIF says. `saved` counts them.
    """

    def __init__(self, folder: Path, index: Index, *, oriented: bool) -> None:
        self._folder, self._index, self._oriented = folder, index, oriented
        self._names: set[str] = set()
        self._reader = index.source.reader()
        self.saved = 0
        try:
            make_folder(folder)
        except OSError as error:
            raise DataError(f"cannot write pictures into {folder}: {reason(error)}") from error

    def save(self, position: int, guesses: Sequence[tuple[str, float]]) -> None:
        """Write the image at `position` with the names and probabilities of its classes, the most probable first.

        DataError where it cannot be written, or where the image cannot be read any more.
        """
        path = self._folder / self._name(self._index.paths[position])
        buffer = io.BytesIO()
        picture(self._read(position), guesses).save(buffer, "JPEG", quality=90)
        try:
            with path.open("xb") as stream:
                stream.write(buffer.getvalue())
        except OSError as error:
            raise DataError(f"cannot write {path}: {reason(error)}") from error
        self.saved += 1

    def _read(self, position: int) -> Image.Image:
        name = self._index.paths[position]
        try:
            content = self._reader.read(self._index.source.locator(position))
            turn = upright(content, None) if self._oriented else 1
            with opened_bytes(content, name) as opened:
                return decode(opened, name, (_LONGEST, _LONGEST), None, turn)[0]
        except BadImage as error:
            raise DataError(f"{name} was read before, and cannot be any more: {error.reason}") from error

    def _name(self, path: str) -> str:
        stem = (
            re.sub(r"[^\w.-]", "_", printable(PurePosixPath(path).stem))[:_MOST_NAME].lstrip(".") or "image"
        )
        name, number = stem, 1
        while name.casefold() in self._names:
            number += 1
            name = f"{stem}-{number}"
        self._names.add(name.casefold())
        return f"{name}.jpg"


def picture(image: Image.Image, guesses: Sequence[tuple[str, float]]) -> Image.Image:
    """Return `image` with a line for each of `guesses` below it: class, probability (0..1), and a bar as long."""
    image = image.convert("RGB")
    image.thumbnail((_LONGEST, _LONGEST))
    factor = max(_LEAST // max(image.size), 1)
    if factor > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    width = max(image.width, _NARROWEST)
    made = Image.new("RGB", (width, image.height + 2 * _SPACE + _LINE * len(guesses)), _PAPER)
    made.paste(image, ((width - image.width) // 2, 0))
    draw, font = ImageDraw.Draw(made), _font()
    room = width - 2 * _SPACE
    for row, (name, probability) in enumerate(guesses):
        top = image.height + _SPACE + row * _LINE
        share = f"{100 * probability:.1f} %"
        beside = draw.textlength(share, font)
        ink = _INK if row == 0 else _MUTED
        draw.text((_SPACE, top), _fitting(draw, name, font, room - beside - _SPACE), fill=ink, font=font)
        draw.text((width - _SPACE - beside, top), share, fill=ink, font=font)
        below = top + _TEXT + 5
        draw.rectangle((_SPACE, below, _SPACE + room - 1, below + 2), fill=_TRACK)
        if (length := round(room * min(max(probability, 0.0), 1.0))) > 0:
            draw.rectangle((_SPACE, below, _SPACE + length - 1, below + 2), fill=_BAR)
    return made


def _fitting(draw: ImageDraw.ImageDraw, name: str, font: Any, room: float) -> str:
    """Return a class name in one line, cut where it is longer than `room` pixels."""
    text = printable(name).replace("\n", " ").replace("\t", " ")
    if isinstance(font, ImageFont.ImageFont):  # Pillow's font of pixels has the letters of Latin-1 alone
        text = text.encode("latin-1", "replace").decode("latin-1")
    if draw.textlength(text, font) <= room:
        return text
    while text and draw.textlength(f"{text}...", font) > room:
        text = text[:-1]
    return f"{text}..."


def _font() -> Any:
    """Return the font that Pillow brings; before 10.1, and where it has no FreeType, that is one of pixels."""
    try:
        return ImageFont.load_default(_TEXT)
    except (TypeError, ImportError):
        return ImageFont.load_default()
