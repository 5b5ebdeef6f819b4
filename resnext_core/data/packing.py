"""Writing a packed file: the bytes of every image, or the images made smaller, in the order of an index."""

from __future__ import annotations

import io
import shutil
import zlib
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from resnext_core.data.content import BadImage, Content
from resnext_core.data.decode import decode, opened_bytes
from resnext_core.data.exif import upright
from resnext_core.data.index import Index
from resnext_core.data.paths import encoded
from resnext_core.data.pool import Limits, Pool, WorkerDied
from resnext_core.data.sources.base import Reader
from resnext_core.data.sources.names import PACKED_MAGIC
from resnext_core.data.sources.packed import packed_meta
from resnext_core.data.sources.table import HEAD, TableBuilder
from resnext_core.data.worker import Memory, Portion
from resnext_core.errors import DataError
from resnext_core.files import existing_folder
from resnext_core.files.fresh import fresh_file

#: Images that a process gets at a time, and how many such portions wait for each process.
_PORTION, _WAITING = 8, 4
#: An image at which two processes died keeps its bytes.
_LIMITS = Limits(tries=2, deaths=None, idle=3)
_ORIENTATION = 0x0112
#: The most pixels of a side that libjpeg writes.
_LONGEST = 65_500


@dataclass(frozen=True, kw_only=True)
class Smaller:
    """Make images smaller: a `side` in pixels that the shorter one gets, as JPEG of `quality` (1 to 95).

    An image whose shorter side is at most that keeps its bytes, and so does one that would not become smaller in bytes,
    and one that cannot be decoded.
    """

    side: int
    quality: int


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What was written: images, those that were made smaller, bytes of the file, and why an image is not in it."""

    images: int
    smaller: int
    bytes: int
    unreadable: Mapping[str, str]


def pack(
    index: Index,
    path: Path,
    smaller: Smaller | None,
    *,
    workers: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> Packed | None:
    """Write the images of `index` into the new packed file `path`; None, and no file, when `stop` said so.

    A file that cannot be opened stays in it as an image that cannot be read, with the reason. Raises DataError where
    `path` exists or cannot be written, where the disk is too small, and where the source is gone.
    """
    total = len(index)
    builder = TableBuilder(checksums=True)
    unreadable: dict[int, str] = {}
    count = 0
    try:
        with fresh_file(path) as stream, closing(_contents(index, smaller, workers)) as found:
            if smaller is None:
                _check_space(path, sum(max(index.source.size(i), 0) for i in range(total)))
            stream.write(bytes(HEAD))
            at = HEAD
            for i, (content, is_smaller, why) in enumerate(found):
                if why is not None:
                    unreadable[i] = why
                stream.write(content)
                name = encoded(_inside(index.paths[i]))
                builder.add(name, int(index.labels[i]), at, len(content), zlib.crc32(content))
                at, count = at + len(content), count + is_smaller
                if i % _PORTION == 0:
                    on_progress(i, total)
                    if stop():
                        raise _Stopped
            made = None if smaller is None else {"side": smaller.side, "quality": smaller.quality}
            builder.write(stream, PACKED_MAGIC, packed_meta(index.classes, index.named, unreadable, made))
    except _Stopped:
        return None
    on_progress(total, total)
    return Packed(
        images=total, smaller=count, bytes=path.stat().st_size,
        unreadable={index.paths[i]: why for i, why in unreadable.items()},
    )  # fmt: skip


def made_smaller(content: Content, name: str, smaller: Smaller) -> bytes | None:
    """Return the JPEG that takes the place of an image file, None where it keeps its bytes. Raises BadImage.

    The EXIF orientation is kept, and no other metadata.
    """
    with opened_bytes(content, name) as source:
        short = min(source.size)
        if short <= smaller.side:
            return None
        width, height = (max(round(side * smaller.side / short), 1) for side in source.size)
        if max(width, height) > _LONGEST:
            return None
        image, _ = decode(
            source, name, (2 * width, 2 * height)
        )  # twice: the resize below decides on the quality
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    made = io.BytesIO()
    exif = Image.Exif()
    if (turned := upright(content)) != 1:
        exif[_ORIENTATION] = turned
    image.save(made, "JPEG", quality=smaller.quality, exif=exif if turned != 1 else b"")
    return made.getvalue() if made.tell() < len(content) else None


class _Stopped(Exception):
    pass


def _inside(path: str) -> str:
    """Return the name that an image of a list has in the packed file: nothing outside of it."""
    parts = ["_up" if part == ".." else part for part in path.lstrip("/").split("/")]
    return "/".join(parts)


def _check_space(path: Path, needed: int) -> None:
    try:
        free = shutil.disk_usage(existing_folder(path.parent)).free
    except OSError:
        return
    if needed > free:
        raise DataError(
            f"cannot write {path}: the images have {needed} bytes, and the disk has {free} left; "
            "make room, or make them smaller with --side"
        )


# -- contents ------------------------------------------------------------------------------------

#: The bytes to write, whether they were made smaller, and why there are none.
_Piece = tuple[Content, bool, "str | None"]


def _contents(index: Index, smaller: Smaller | None, workers: int) -> Generator[_Piece, None, None]:
    """Yield the piece of each image in order."""
    reader = index.source.reader()
    if smaller is None:
        for i in range(len(index)):
            yield _as_it_is(reader, index, i)
        return
    portions = deque(range(0, len(index), _PORTION))
    duty = _Encode(reader=reader, smaller=smaller)
    waiting: deque[tuple[int, int]] = deque()
    try:
        with Pool(duty, min(workers, len(portions)), _LIMITS, setting="--workers") as pool:
            while portions or waiting:
                while portions and len(waiting) < _WAITING * workers:
                    first = portions.popleft()
                    rows = range(first, min(first + _PORTION, len(index)))
                    files = [(i, index.source.locator(i)) for i in rows]
                    waiting.append((first, pool.submit(Portion(files=files))))
                first, ticket = waiting.popleft()
                made = pool.result(ticket)
                if made.lost is not None:
                    raise DataError(made.lost)
                for i in range(first, min(first + _PORTION, len(index))):
                    encoded_image = made.images.get(i)
                    yield (
                        _as_it_is(reader, index, i) if encoded_image is None else (encoded_image, True, None)
                    )
    except WorkerDied as error:
        raise DataError(
            "the processes that make images smaller end at once; check the machine's free memory"
        ) from error


def _as_it_is(reader: Reader, index: Index, i: int) -> _Piece:
    try:
        return reader.read(index.source.locator(i)), False, None
    except BadImage as error:
        if error.errno is not None:
            index.source.blame(i, error.errno)  # a folder that is gone is no matter of this image
        return b"", False, error.reason


@dataclass(frozen=True, kw_only=True)
class _Made:
    """Smaller images by number; those that keep their bytes are left out. Or why a source can no longer be read."""

    images: Mapping[int, bytes]
    lost: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Encode:
    """The duty of the processes."""

    reader: Reader
    smaller: Smaller

    def prepare(self) -> None:
        """Nothing needs to be opened."""

    def do(self, job: Portion[bytes], at: Callable[[int], None], memory: Memory) -> _Made:
        images: dict[int, bytes] = {}
        for number, locator in job.files:
            at(number)
            try:
                made = made_smaller(self.reader.read(locator), f"number {number}", self.smaller)
            except BadImage:
                continue  # it stays as it is, and stays bad
            except DataError as error:
                return _Made(images={}, lost=str(error))
            if made is not None:
                images[number] = made
        return _Made(images=images)
