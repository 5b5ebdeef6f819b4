"""Finding the rank that never started or hangs, from the progress of all ranks of a launch."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from resnext_ascend.beat import JOINING, VARIABLE, read


class Watch:
    """Looks at the beats of `count` ranks in `folder`, numbered from `first`, of `world` in all (None: these).

    Once a rank waits for the others they have `start_timeout` seconds to start. The job hangs if no rank makes progress
    for `hang_timeout` seconds (None: never): one that stops lets the others wait for it in the next sum, so that all
    fall silent, and the one with the least progress is the cause.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        *,
        first: int = 0,
        world: int | None = None,
        start_timeout: float,
        hang_timeout: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths = [folder / f"rank-{first + local}.beat" for local in range(count)]
        self._first, self._clock = first, clock
        self._all_here = world in (None, count)
        self._start_timeout, self._hang_timeout = start_timeout, hang_timeout
        self._changed = clock()
        self._waiting: float | None = None
        self._last: list[tuple[int, str]] = [(0, "")] * count
        folder.mkdir(parents=True, exist_ok=True)
        for path in self._paths:  # of a launch before this one
            path.unlink(missing_ok=True)

    def environment(self, local: int) -> dict[str, str]:
        """Return the environment that tells a rank its progress file."""
        return {VARIABLE: str(self._paths[local].absolute())}

    def suspect(self) -> tuple[int, str] | None:
        """Return a rank that fails and the reason, or None while all is well."""
        seen = [read(path) for path in self._paths]
        # A file that is just being written reads as nothing.
        now = [new if new[0] else old for new, old in zip(seen, self._last, strict=True)]
        if now != self._last:
            self._last, self._changed = now, self._clock()
        missing = [local for local, (number, _) in enumerate(now) if not number]
        joining = [local for local, (_, what) in enumerate(now) if what == JOINING]
        if joining and self._waiting is None:
            self._waiting = self._clock()
        waited = 0.0 if self._waiting is None else self._clock() - self._waiting
        if joining and waited > self._start_timeout:
            if missing:
                return self._blame(
                    missing, f"never started: the others have been waiting for it for {waited:.0f} s"
                )
            if self._all_here:
                return self._blame(
                    joining, f"did not find the others in {waited:.0f} s, though all are running"
                )
            return self._blame(
                joining, f"waited {waited:.0f} s for ranks of other servers that did not start"
            )
        silent = self._clock() - self._changed
        if self._hang_timeout is None or joining or silent <= self._hang_timeout:
            return None
        least = min(number for number, _ in now)
        behind = [local for local, (number, _) in enumerate(now) if number == least]
        what = now[behind[0]][1]
        if len(behind) == len(now) and len(now) > 1:
            return (
                self._first,
                f"and all others here have been hanging for {silent:.0f} s, in the same place: {what or 'the start'}",
            )
        return self._blame(behind, f"hangs: no progress for {silent:.0f} s, the last was: {what or 'none'}")

    def _blame(self, locals_: list[int], reason: str) -> tuple[int, str]:
        others = ", ".join(str(self._first + local) for local in locals_[1:])
        also = f" (so do ranks {others})" if others else ""
        return self._first + locals_[0], reason + also
