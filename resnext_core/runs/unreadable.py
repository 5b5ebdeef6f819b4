"""The images of a run that could not be read: each is reported once; too many end the run."""

from __future__ import annotations

from collections.abc import Iterable, Set

from resnext_core.data.index import Index
from resnext_core.errors import DataError, counted, shown
from resnext_core.runs.records import BadImage, Record

#: Images that a message names.
_NAMED = 3


def allowed(images: int, max_bad: float | None) -> int:
    """Return how many of `images` may be unreadable: the share `max_bad` of them, rounded down.

    By default (None) 1 %, or 10 where that is more, but not above a tenth; and never none.
    """
    if max_bad is not None:
        return int(images * max_bad + 1e-9)
    return max(min(max(images // 100, 10), images // 10), 1)


class Unreadable:
    """The distinct unreadable images of one part (`split`) of the data, over the whole run and all ranks."""

    def __init__(self, index: Index, split: str) -> None:
        self._index, self._split = index, split
        self._called = "training" if split == "train" else split
        self._reasons: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._reasons)

    def __contains__(self, sample: int) -> bool:
        return sample in self._reasons

    def recorded(self, records: Iterable[Record]) -> list[tuple[int, str]]:
        """Return the images and reasons that the records of a run name."""
        return [(r.index, r.reason) for r in records if isinstance(r, BadImage) and r.split == self._split]

    def add(self, sample: int, reason: str, step: int) -> BadImage | None:
        """Add an image and return its record; None where it was known."""
        if sample in self._reasons:
            return None
        self._reasons[sample] = reason
        return BadImage(
            step=step, split=self._split, index=sample, path=str(self._index.path(sample)), reason=reason,
            count=len(self),
        )  # fmt: skip

    def excess(self, max_bad: float | None, folder: str | None) -> DataError | None:
        """Return the error of a run that has more of them than it may, None while it has not."""
        bound = allowed(len(self._index), max_bad)
        if len(self) <= bound:
            return None
        return DataError(
            f"{self.summary()}; data.max_bad allows {bound}: find them all with 'resnext-run data scan "
            f"{shown(folder or self._index.root, None)}' and repair or remove them, or raise data.max_bad"
        )

    def summary(self, listed: Set[int] = frozenset()) -> str:
        """Return how many there are, of how many, and the first ones with the reasons; "" where there are none.

        `listed` are those on a quarantine list, which nobody tried to read.
        """
        more = len(listed - self._reasons.keys())
        images = counted(len(self._index), f"{self._called} image")
        on_list = f"{more} of {images} {'is' if more == 1 else 'are'} left out by the quarantine list"
        if not self._reasons:
            return on_list if more else ""
        first = [
            f"{shown(self._index.path(i), None)}: {reason}"
            for i, reason in sorted(self._reasons.items())[:_NAMED]
        ]
        text = f"{len(self)} of {images} could not be read: {'; '.join(first)}"
        if len(self) > _NAMED:
            text += f"; and {len(self) - _NAMED} more"
        return f"{text}; {on_list}" if more else text
