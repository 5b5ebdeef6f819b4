"""Bounds of configuration values, written beside the field: ``epochs: Annotated[int, Above(0)] = 150``.

A bound applies to the numbers of a tuple one by one, and never to None nor to a word that stands beside a number
(``int | Literal["auto"]``). Numbers that have none are still finite, and below 2^31; texts are not endless.
"""

from __future__ import annotations

import math
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from resnext_core.errors import UsageError, quoted

#: Of a setting that is text: no path is longer.
_LONGEST_TEXT = 4096
_COUNTS = {2: "two", 3: "three"}


class Bound(Protocol):
    """What a value must be."""

    @property
    def rule(self) -> str:
        """The bound in words, to follow ``must be``."""

    def allows(self, value: Any) -> bool:
        """Return whether `value`, or the pair of an :class:`Ascending`, keeps the bound; NaN never does."""


@dataclass(frozen=True)
class Above:
    """Greater than `low`."""

    low: float

    @property
    def rule(self) -> str:
        return f"above {self.low}"

    def allows(self, value: Any) -> bool:
        return bool(value > self.low)


@dataclass(frozen=True)
class AtLeast:
    """Not less than `low`."""

    low: float

    @property
    def rule(self) -> str:
        return f"{self.low} or more"

    def allows(self, value: Any) -> bool:
        return bool(value >= self.low)


@dataclass(frozen=True)
class Between:
    """From `low` to `high`, both included."""

    low: float
    high: float

    @property
    def rule(self) -> str:
        return f"between {self.low} and {self.high}"

    def allows(self, value: Any) -> bool:
        return bool(self.low <= value <= self.high)


@dataclass(frozen=True)
class Bits:
    """An integer that fits in `bits` bits, without a sign; integers without this bound fit in 31."""

    bits: int

    @property
    def rule(self) -> str:
        return f"below 2^{self.bits}"

    def allows(self, value: Any) -> bool:
        return bool(value < 2**self.bits)


@dataclass(frozen=True)
class Ascending:
    """A pair 0 < low <= high, and high at most `most`; `what` is what the two are called."""

    what: str
    most: float = math.inf

    @property
    def rule(self) -> str:
        return f"two {self.what} 0 < low <= high" + (f" <= {self.most}" if self.most < math.inf else "")

    def allows(self, value: Any) -> bool:
        low, high = value
        return bool(0 < low <= high <= self.most)


@dataclass(frozen=True)
class OneOf:
    """One of the texts `names`."""

    names: tuple[str, ...]

    @property
    def rule(self) -> str:
        return f"one of {', '.join(self.names)}"

    def allows(self, value: Any) -> bool:
        return value in self.names


def check_bounds(section: str, values: Any) -> None:
    """Raise UsageError for the first field of the dataclass `values` out of bounds; it is named ``section.field``.

    For the ``__post_init__`` of a backend's options, which a caller may also build without a configuration.
    """
    for name, hint in typing.get_type_hints(type(values), include_extras=True).items():
        value = getattr(values, name)
        rule = broken_rule(hint, value)
        if rule is not None:
            raise UsageError(f"{section}.{name} must be {rule}, not {quoted(value)}")


def broken_rule(hint: Any, value: Any) -> str | None:
    """Return the rule that `value` breaks, to follow ``must be``, None for none; `hint` is the type of its field."""
    if value is None:
        return None
    kinds = _kinds(hint)
    words = _words(kinds)
    if value in words:
        return None
    also = f", or one of {', '.join(words)}" if words else ""
    if int in kinds and float not in kinds and type(value) is not int:  # where nothing checked types before
        return f"an integer{also}"
    bounds: tuple[Bound, ...] = getattr(hint, "__metadata__", ())
    each = value if isinstance(value, tuple) else (value,)
    for bound in bounds:
        if not (bound.allows(value) if isinstance(bound, Ascending) else all(map(bound.allows, each))):
            return (
                f"{_how_many(hint, value, bound)}{bound.rule}{', or null' if type(None) in kinds else also}"
            )
    for one in each:
        if isinstance(one, float) and not math.isfinite(one):
            return "finite"
        if type(one) is int and one >= 2**31 and not any(isinstance(b, Bits) for b in bounds):
            return Bits(31).rule
        if isinstance(one, str) and ("\0" in one or len(one) > _LONGEST_TEXT):
            return f"text of at most {_LONGEST_TEXT} characters without a null character"
    return None


def _words(kinds: tuple[Any, ...]) -> tuple[str, ...]:
    """Return the words that a field of `kinds` takes beside numbers."""
    literals = (kind for kind in kinds if typing.get_origin(kind) is Literal)
    return tuple(word for kind in literals for word in typing.get_args(kind)) if len(kinds) > 1 else ()


def _how_many(hint: Any, value: Any, bound: Bound) -> str:
    if not isinstance(value, tuple) or isinstance(bound, Ascending):
        return ""
    if any(Ellipsis in typing.get_args(kind) for kind in _kinds(hint)):  # as many as one likes
        return "numbers "
    return f"{_COUNTS.get(len(value), len(value))} numbers "


def _kinds(hint: Any) -> tuple[Any, ...]:
    """Return the types that a field may have, without bounds."""
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
