"""Duties for worker processes that die of them; a module of its own, so that workers import no more than this."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Numbers:
    """A job that is nothing but its items."""

    items: Sequence[int]

    def without(self, items: Collection[int]) -> Numbers:
        return Numbers([n for n in self.items if n not in items])


class DieAtOdd:
    """Returns the numbers, and dies at odd ones."""

    def do(self, job: Numbers, at: Callable[[int], None], memory: int) -> list[int]:
        for number in job.items:
            at(number)
            if number % 2:
                os._exit(7)
        return list(job.items)


@dataclass(frozen=True)
class DieOnce:
    """Returns the numbers; the first process to be at number 1 dies, and leaves a file that says so."""

    mark: Path

    def do(self, job: Numbers, at: Callable[[int], None], memory: int) -> list[int]:
        for number in job.items:
            at(number)
            if number == 1 and not self.mark.exists():
                self.mark.touch()
                os._exit(7)
        return list(job.items)


class DieIdle:
    """Dies before it is at any number."""

    def do(self, job: Numbers, at: Callable[[int], None], memory: int) -> list[int]:
        os._exit(7)
