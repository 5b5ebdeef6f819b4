"""What is known of image files from earlier scans, on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import PIL

from resnext_core.errors import DataError, reason
from resnext_core.files import Place, absolute, make_folder, write_atomic

#: Format of the cache; another one, or another Pillow, begins anew.
_FORMAT = 3


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a file. `pixels` is the digest of size and RGB pixels, None where `error` says why not.

    `sha256` is of the bytes; `width` and `height` are in pixels, 0 where unknown; `format` is Pillow's name.
    `remark` says what is probably wrong with a file that can be read. `orientation` is that of its EXIF data (1:
    upright), `alpha` whether it has transparency, `bits` the bits of its samples, 8 or more.
    """

    size: int
    mtime_ns: int
    sha256: str = ""
    pixels: str | None = None
    width: int = 0
    height: int = 0
    format: str | None = None
    error: str | None = None
    remark: str | None = None
    orientation: int = 1
    alpha: bool = False
    bits: int = 8

    @property
    def lasting(self) -> bool:
        """True where the same bytes would give the same again: not for a file that could not be opened."""
        return self.sha256 != ""


class ScanCache:
    """Facts of earlier scans of a data folder, a JSON line each, in ``<folder>/scan-<digest of root>.jsonl``.

    A file whose size and time of change are those of its line is not read again. Where `folder` is None, or cannot be
    written, nothing is cached; :attr:`trouble` then says why.
    """

    def __init__(self, folder: Path | None, root: Place) -> None:
        self.trouble: str | None = None
        self._stream: IO[str] | None = None
        self._path: Path | None = None
        self._facts: dict[str, Facts] = {}
        if folder is None:
            return
        name = hashlib.sha256(os.fsencode(absolute(root))).hexdigest()[:16]
        self._path = folder / f"scan-{name}.jsonl"
        self._head = {"format": _FORMAT, "pillow": PIL.__version__, "root": absolute(root)}
        try:
            make_folder(folder)
            self._facts = self._read()
            if not self._facts:
                self._path.write_text(self._line(self._head), encoding="utf-8")
            self._stream = self._path.open("a", encoding="utf-8", buffering=1)
            self._stream.write("\n")  # the last line may be torn
        except OSError as error:
            self.trouble = f"results are not cached: cannot write {self._path}: {reason(error)}"

    def recall(self, path: str, stamp: Callable[[], tuple[int, int]]) -> Facts | None:
        """Return the facts of a file that has not changed since, None of any other; `stamp` is a reader's."""
        known = self._facts.get(path)
        if known is None:
            return None
        try:
            return known if stamp() == (known.size, known.mtime_ns) else None
        except DataError:
            return None

    def orphans(self, paths: Sequence[str]) -> dict[str, Facts]:
        """Return by digest what is known of files that are not among `paths`: they may have moved."""
        present = set(paths)
        return {f.sha256: f for path, f in self._facts.items() if path not in present}

    def add(self, path: str, facts: Facts) -> None:
        """Remember the facts of a file."""
        if self._stream is None or not facts.lasting:
            return
        try:
            self._stream.write(self._line({"path": path, **asdict(facts)}))
        except OSError as error:
            self.trouble = f"further results are not cached: cannot write {self._path}: {reason(error)}"
            self._stream = None
        self._facts[path] = facts

    def close(self, keep: Sequence[str]) -> None:
        """Write the file anew with one line for each of `keep`."""
        if self._stream is None or self._path is None:
            return
        self._stream.close()
        kept = [self._line({"path": p, **asdict(f)}) for p in keep if (f := self._facts.get(p)) is not None]
        try:
            write_atomic(self._path, self._line(self._head) + "".join(kept))
        except DataError as error:
            self.trouble = str(error)

    def _read(self) -> dict[str, Facts]:
        assert self._path is not None
        if not self._path.exists():
            return {}
        found: dict[str, Facts] = {}
        with self._path.open(encoding="utf-8", errors="replace") as stream:
            head = _parse(stream.readline())
            if head != self._head:
                return {}
            for line in stream:
                value = _parse(line)
                if value is None or "path" not in value:  # torn by the end of a process
                    continue
                path = value.pop("path")
                with suppress(TypeError):
                    found[path] = Facts(**value)
        return found

    @staticmethod
    def _line(value: Mapping[str, Any]) -> str:
        return json.dumps(value, ensure_ascii=True) + "\n"


def _parse(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
