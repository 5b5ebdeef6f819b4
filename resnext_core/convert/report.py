"""What a conversion did to every tensor, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Kind = Literal["same", "renamed", "merged", "split", "dropped", "replaced"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One tensor: its names before and after, what happened to it, and the reason if it is not obvious.

    `dtype` is the stored type if it was not float32; such tensors are widened without loss.
    """

    kind: Kind
    source: tuple[str, ...]
    target: tuple[str, ...]
    reason: str = ""
    dtype: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def line(self) -> str:
        """Return the change as one line of text."""
        source, target = _some(self.source), _some(self.target)
        arrow = f"{source} -> {target}" if target and source != target else source or target
        notes = [n for n in (self.reason, f"{self.dtype} widened to float32" if self.dtype else "") if n]
        return f"{self.kind:<8} {arrow}" + (f"  ({'; '.join(notes)})" if notes else "")


def summary(changes: Iterable[Change]) -> list[str]:
    """Return a line for each kind and reason, with the count and one example."""
    groups: dict[tuple[str, str, str | None], list[Change]] = {}
    for change in changes:
        groups.setdefault((change.kind, change.reason, change.dtype), []).append(change)
    lines = []
    for members in groups.values():
        count = "" if len(members) == 1 else f"{len(members)} tensors, e.g. "
        kind, rest = members[0].line().split(maxsplit=1)
        lines.append(f"{kind:<8} {count}{rest}")
    return lines


def joined(first: Sequence[Change], second: Sequence[Change]) -> tuple[Change, ...]:
    """Return the changes of both steps as one, where `second` begins with the neutral names that `first` ends with."""
    if not second:
        return tuple(first)
    before = {change.target: change for change in first if change.target}
    whole = []
    for change in second:
        start = before.pop(change.source, None)
        if start is None or start.kind == "same":
            whole.append(replace(change, dtype=start.dtype if start is not None else None))
            continue
        kind: Kind = change.kind if change.kind in ("split", "merged") else start.kind
        if start.source == change.target:
            kind = "same"
        reason = "; ".join(r for r in (start.reason, change.reason) if r and kind != "same")
        whole.append(replace(start, kind=kind, target=change.target, reason=reason))
    return (*whole, *(change for change in first if not change.target))


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) < 3 else f"{names[0]} ... {names[-1]} ({len(names)})"
