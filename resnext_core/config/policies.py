"""Automatic augmentation as a configuration writes it: a text such as ``rand-m7-mstd0.5-inc1``, and its meaning."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

from resnext_core.errors import UsageError, quoted, suggest


@dataclass(frozen=True, kw_only=True)
class TimmRandAugment:
    """RandAugment (Cubuk et al., arXiv:1909.13719) as timm has it: ``rand``.

    An image goes through `layers` operations, drawn with replacement, each with `probability`. The magnitude is drawn
    from a normal distribution of `deviation` around `magnitude`, clipped to [0, `most`] (a deviation above 100: uniform
    in [0, `magnitude`]). `increasing` 1 takes the operations whose effect grows with the magnitude.
    """

    magnitude: float = 10
    layers: int = 2
    probability: float = 0.5
    deviation: float = 0
    most: float = 10
    increasing: int = 0


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """RandAugment as torchvision has it: ``randaugment``.

    An image goes through `num_ops` operations, drawn with replacement, of the magnitude number `magnitude` (from 0) of
    `bins`.
    """

    num_ops: int = 2
    magnitude: int = 9
    bins: int = 31


@dataclass(frozen=True, kw_only=True)
class TrivialAugmentWide:
    """TrivialAugment (Müller and Hutter, arXiv:2103.10158), wide: ``trivialaugment-wide``.

    An image goes through one operation of one of `bins` magnitudes.
    """

    bins: int = 31


@dataclass(frozen=True, kw_only=True)
class AugMix:
    """AugMix (Hendrycks et al., arXiv:1912.02781) as torchvision has it, without its second loss: ``augmix``.

    An image is mixed with `width` chains of `depth` operations (0: one to three), whose magnitudes are the first
    `severity` of ten.
    """

    severity: int = 3
    width: int = 3
    depth: int = 0


Policy: TypeAlias = TimmRandAugment | RandAugment | TrivialAugmentWide | AugMix

_KINDS: dict[str, type[Policy]] = {
    "rand": TimmRandAugment,
    "randaugment": RandAugment,
    "trivialaugment-wide": TrivialAugmentWide,
    "augmix": AugMix,
}
#: By name: of each letter the field, its type, the smallest and the largest value.
_LETTERS: dict[str, dict[str, tuple[str, type[int] | type[float], float, float]]] = {
    "rand": {
        "m": ("magnitude", int, 0, 30),
        "n": ("layers", int, 1, 16),
        "p": ("probability", float, 0, 1),
        "mstd": ("deviation", float, 0, 1000),
        "mmax": ("most", int, 1, 30),
        "inc": ("increasing", int, 1, 1),
    },
    "randaugment": {
        "n": ("num_ops", int, 1, 16),
        "m": ("magnitude", int, 0, 999),
        "b": ("bins", int, 2, 1000),
    },
    "trivialaugment-wide": {"b": ("bins", int, 2, 1000)},
    "augmix": {"m": ("severity", int, 1, 10), "w": ("width", int, 1, 16), "d": ("depth", int, 1, 16)},
}
_PART = re.compile(r"([a-z]+)(\d{1,6}(?:\.\d{1,6})?)")


@cache
def parse_policy(text: str) -> Policy | None:
    """Return what ``augment.auto`` says, None for ``none``; UsageError names the part that is wrong."""
    if text == "none":
        return None
    name = next((name for name in _KINDS if text == name or text.startswith(f"{name}-")), None)
    if name is None:
        choices = ("none", *_KINDS)
        raise UsageError(
            f"augment.auto must be one of {', '.join(choices)}, perhaps with parts as in "
            f"rand-m7-mstd0.5-inc1, not {quoted(text)}{suggest(text, choices)}"
        )
    values: dict[str, Any] = {}
    for part in text[len(name) + 1 :].split("-") if text != name else ():
        field, value = _read_part(part, name, text)
        if field in values:
            raise UsageError(
                f"augment.auto {quoted(text)}: two parts set the same value, the second is {quoted(part)}"
            )
        values[field] = value
    policy = _KINDS[name](**values)
    if isinstance(policy, RandAugment) and policy.magnitude >= policy.bins:
        raise UsageError(
            f"augment.auto {quoted(text)}: m counts the {policy.bins} magnitudes from 0 "
            f"and must be at most {policy.bins - 1}, not {policy.magnitude}"
        )
    return policy


def _read_part(part: str, name: str, text: str) -> tuple[str, int | float]:
    """Return the field that `part` of `text` sets, and its value."""
    letters = _LETTERS[name]
    found = _PART.fullmatch(part)
    if found is None or found[1] not in letters:
        raise UsageError(
            f"augment.auto {quoted(text)}: unknown part {quoted(part)}; "
            f"{name} takes {', '.join(letters)}, each followed by a number"
        )
    field, kind, low, high = letters[found[1]]
    number = float(found[2])
    if not low <= number <= high or (kind is int and "." in found[2]):
        what = "an integer" if kind is int else "a number"
        rule = f"{what} from {low:g} to {high:g}" if low < high else f"{low:g} or left out"
        raise UsageError(f"augment.auto {quoted(text)}: {found[1]} must be {rule}, not {found[2]}")
    return field, kind(number)
