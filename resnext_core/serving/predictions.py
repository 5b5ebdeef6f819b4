"""A table of what was predicted for each image: CSV, JSON lines or Parquet, written as it is made."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from resnext_core.data.index import Index
from resnext_core.data.sources.parquet_reader import pyarrow
from resnext_core.errors import DataError, UsageError, quoted, reason
from resnext_core.files.apart import kept_apart
from resnext_core.files.fresh import check_new, fresh_file
from resnext_core.interfaces import Batch
from resnext_core.ranks.collectives import Collectives
from resnext_core.ranks.exchange import exchange
from resnext_core.ranks.info import RankInfo
from resnext_core.serving.metrics import softmax

#: Kinds of tables, by the suffix of the file.
SUFFIXES = (".csv", ".jsonl", ".parquet")
#: Rows that a Parquet file gets at a time.
_GROUP = 4096
#: What programs for spreadsheets take for the start of a formula, or of one after white space.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NOT_A_NUMBER = "the network's output is not a number"


@dataclass(frozen=True, kw_only=True)
class Row:
    """An image of an evaluation, or the `error` why it has no prediction.

    `classes` are the positions of the most probable classes, the best first, and `probabilities` theirs (0..1);
    `of_true` is that of the true class.
    """

    position: int
    classes: Sequence[int] = ()
    probabilities: Sequence[float] = ()
    of_true: float | None = None
    error: str | None = None


class Table(Protocol):
    """A file that rows are added to."""

    def add(self, row: Row) -> None:
        """Add a row; rows come in the order of the index."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


def check_predictions(path: Path, top: int) -> None:
    """Raise what stands against a table at `path`, before work is spent on it: UsageError or DataError."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"predictions are written to {', '.join(SUFFIXES)} files, not {quoted(path.name)}")
    if top < 1:
        raise UsageError(f"predictions have 1 or more classes, not {top}")
    if path.suffix.lower() == ".parquet":
        pyarrow()
    check_new(path)


@contextmanager
def predictions(
    path: Path, index: Index, top: int, rank: RankInfo, collectives: Collectives
) -> Iterator[Callable[[Batch, NDArray[Any], Callable[[int], str]], None]]:
    """Yield what takes each batch of an evaluation, its logits, and what says why an image could not be read.

    Every rank must call it for every batch. Rank 0 writes a row for each image, in the order of the index, and keeps
    none; `path` is there once the block has ended well. A row has the `top` most probable classes. Raises DataError
    where `path` exists or cannot be written.
    """
    top = min(top, len(index.classes))
    with ExitStack() as stack:
        add: Callable[[Row], None] | None = None
        if rank.is_main:
            kinds: dict[str, Callable[[IO[bytes], Index, int], Table]] = {
                ".csv": _Csv, ".jsonl": _JsonLines, ".parquet": _Parquet,
            }  # fmt: skip
            add = stack.enter_context(_table(path, index, top, kinds[path.suffix.lower()]))

        def take(batch: Batch, logits: NDArray[Any], why: Callable[[int], str]) -> None:
            own = _rows(batch, logits, top, why)
            _, news = exchange(rank, collectives, False, {"rows": own} if own else {})
            if add is not None:
                rows = [Row(**fields) for part in news for fields in part.get("rows", ())]
                for row in sorted(rows, key=lambda row: row.position):
                    add(row)

        yield take


def _rows(batch: Batch, logits: NDArray[Any], top: int, why: Callable[[int], str]) -> list[dict[str, Any]]:
    """Return the fields of the :class:`Row` of each image in a batch."""
    made: list[dict[str, Any]] = []
    for row in np.flatnonzero(batch.index >= 0).tolist():
        position = int(batch.index[row])
        if not batch.valid[row] or np.isnan(logits[row]).any():
            error = _NOT_A_NUMBER if batch.valid[row] else why(position)
            made.append({"position": position, "error": error})
            continue
        shares = softmax(logits[row])
        best = np.argsort(-logits[row], kind="stable")[:top]
        made.append(
            {
                "position": position, "classes": best.tolist(),
                "probabilities": [short(share) for share in shares[best]],
                "of_true": short(shares[batch.labels[row]]),
            }
        )  # fmt: skip
    return made


def short(value: float) -> float:
    """Return a probability to six significant digits: a small one does not become 0."""
    return float(f"{value:.6g}")


@contextmanager
def csv_rows(path: Path, index: Index, top: int) -> Iterator[Callable[[Row], None]]:
    """Yield what takes a row for each image of `index`; the CSV file `path` is there once the block has ended well.

    Raises DataError where `path` exists or cannot be written.
    """
    with _table(path, index, min(top, len(index.classes)), _Csv) as add:
        yield add


@contextmanager
def _table(
    path: Path, index: Index, top: int, kind: Callable[[IO[bytes], Index, int], Table]
) -> Iterator[Callable[[Row], None]]:
    with kept_apart() as block, fresh_file(path) as stream:
        table = kind(stream, index, top)

        def add(row: Row) -> None:
            try:
                table.add(row)
            except OSError as error:
                raise DataError(f"cannot write {path}: {reason(error)}") from error

        try:
            with block():
                yield add
        except BaseException:
            with suppress(Exception):  # of a file that nobody will see
                table.close()
            raise
        table.close()


class _Csv:
    """A CSV file in UTF-8 with a header; a path that is not UTF-8 keeps its bytes.

    A program for spreadsheets runs text that begins with = + - or @ as a formula. Such a path gets ``./`` in front,
    which names the same file; a class or message that is no number gets an apostrophe (OWASP, "CSV Injection").
    """

    def __init__(self, stream: IO[bytes], index: Index, top: int) -> None:
        self._index, self._top = index, top
        self._text = io.TextIOWrapper(
            stream, "utf-8", errors="surrogateescape", newline="", write_through=True
        )
        self._writer = csv.writer(_Lines(self._text))
        best = (name for i in range(1, top + 1) for name in (f"class_{i}", f"probability_{i}"))
        self._writer.writerow(["path", "true", "predicted", "true_probability", "error", *best])

    def add(self, row: Row) -> None:
        names, index = self._index.classes, self._index
        label = index.labels[row.position]
        path, true = str(index.path(row.position)), _harmless(names[label]) if label >= 0 else ""
        path = f"./{path}" if path.startswith(_FORMULA) else path
        if row.error is not None:
            self._writer.writerow([path, true, "", "", _harmless(row.error), *[""] * (2 * self._top)])
            return
        best = (
            cell
            for i, share in zip(row.classes, row.probabilities, strict=True)
            for cell in (_harmless(names[i]), share)
        )
        self._writer.writerow([path, true, _harmless(names[row.classes[0]]), row.of_true, "", *best])

    def close(self) -> None:
        self._text.detach()


class _Lines:
    """Takes the rows of a ``csv.writer`` and ends them with a newline alone.

    Before Python 3.13 the writer quotes a carriage return in a cell only where its own line ends have one.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, row: str) -> int:
        return self._stream.write(row.removesuffix("\r\n") + "\n")


def _harmless(text: str) -> str:
    if not text.startswith(_FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


class _JsonLines:
    """JSON lines, in the form of ``resnext-run infer``, with the true class."""

    def __init__(self, stream: IO[bytes], index: Index, top: int) -> None:
        self._stream, self._index = stream, index

    def add(self, row: Row) -> None:
        names, index = self._index.classes, self._index
        line: dict[str, Any] = {
            "path": str(index.path(row.position)), "true": names[index.labels[row.position]],
        }  # fmt: skip
        if row.error is not None:
            line["error"] = row.error
        else:
            best = zip(row.classes, row.probabilities, strict=True)
            line |= {
                "predicted": names[row.classes[0]], "true_probability": row.of_true,
                "top": [{"id": i, "name": names[i], "probability": share} for i, share in best],
            }  # fmt: skip
        self._stream.write(json.dumps(line).encode("ascii") + b"\n")

    def close(self) -> None:
        pass


class _Parquet:
    """A Parquet file; text that is not UTF-8 has the escapes of Python (``\\udcff``) in place of its bytes."""

    def __init__(self, stream: IO[bytes], index: Index, top: int) -> None:
        arrow, parquet = pyarrow()
        text, number = arrow.string(), arrow.float64()
        self._arrow, self._index = arrow, index
        self._schema = arrow.schema(
            [
                ("path", text), ("true", text), ("predicted", text), ("true_probability", number), ("error", text),
                ("classes", arrow.list_(text)), ("probabilities", arrow.list_(number)),
            ]
        )  # fmt: skip
        self._writer = parquet.ParquetWriter(stream, self._schema)
        self._rows: list[dict[str, Any]] = []

    def add(self, row: Row) -> None:
        names, index = self._index.classes, self._index
        best = [_utf8(names[i]) for i in row.classes]
        self._rows.append(
            {
                "path": _utf8(str(index.path(row.position))), "true": _utf8(names[index.labels[row.position]]),
                "predicted": best[0] if best else None, "true_probability": row.of_true,
                "error": None if row.error is None else _utf8(row.error), "classes": best,
                "probabilities": list(row.probabilities),
            }
        )  # fmt: skip
        if len(self._rows) == _GROUP:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(self._arrow.Table.from_pylist(self._rows, schema=self._schema))
        self._rows.clear()

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
