"""Logits by which whoever loads a model sees that it computes what it should: golden ones, and proofs of few bits.

In float32 one set of golden logits holds everywhere. In few bits processors differ by more than rounding, so an
artefact that computes in few bits has a proof for each instruction set on which it was compared with its source.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from resnext_core.errors import quoted

#: What an artefact can compute in, besides float32; the value of ``compute`` in the manifest's section ``artefact``.
PRECISIONS = ("int8", "float16", "bfloat16")

_MOST_ROWS, _MOST_PROOFS, _MOST_IMAGES = 8, 32, 10**9
#: A word of :attr:`resnext_core.processor.Processor.instructions`.
_INSTRUCTIONS = re.compile(r"[a-z0-9][a-z0-9_.-]{0,39}")


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Logits (images, classes) of the synthetic images of :mod:`resnext_core.serving.golden`, computed in `compute`."""

    compute: str
    logits: tuple[tuple[float, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types; :meth:`from_dict` takes them back."""
        return {"compute": self.compute, "logits": [list(row) for row in self.logits]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], classes: int) -> Golden:
        """Build from JSON types; ValueError, KeyError or TypeError on anything but rows of `classes` finite numbers."""
        rows = _rows(data["logits"], classes, "golden logits")
        if set(data) != {"compute", "logits"} or not isinstance(data["compute"], str):
            raise ValueError("golden logits have the fields compute and logits")
        return cls(compute=data["compute"], logits=rows)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What an artefact computed on one instruction set, and how it did beside its source there.

    `logits` (images, classes) are those of the synthetic images of :mod:`resnext_core.serving.golden`. It was compared
    on `images` images of a data set: `top1_agreement` is the share with the same first guess, `top1` and `top1_source`
    are the shares of right first guesses, both None without labels.
    """

    logits: tuple[tuple[float, ...], ...]
    images: int
    top1_agreement: float
    top1: float | None = None
    top1_source: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types; :meth:`from_dict` takes them back."""
        top1 = {} if self.top1 is None else {"top1": self.top1, "top1_source": self.top1_source}
        return {
            "logits": [list(row) for row in self.logits],
            "images": self.images,
            "top1_agreement": self.top1_agreement,
            **top1,
        }

    @classmethod
    def from_dict(cls, data: Any, classes: int) -> Proof:
        """Build from JSON types; ValueError, KeyError or TypeError on anything that :meth:`to_dict` does not return."""
        needed, optional = {"logits", "images", "top1_agreement"}, {"top1", "top1_source"}
        if not isinstance(data, dict) or set(data) not in (needed, needed | optional):
            raise ValueError(
                "a proof has the fields logits, images and top1_agreement, and perhaps top1 and top1_source"
            )
        if type(data["images"]) is not int or not 1 <= data["images"] <= _MOST_IMAGES:
            raise ValueError(f"images of a proof must be an integer from 1 to {_MOST_IMAGES}")
        return cls(
            logits=_rows(data["logits"], classes, "logits of a proof"),
            images=data["images"],
            **{name: _share(data[name], name) for name in data if name.startswith("top1")},
        )


@dataclass(frozen=True, kw_only=True)
class Precision:
    """What an artefact computes in, None for float32, and its proofs by instruction set."""

    compute: str | None = None
    proofs: Mapping[str, Proof] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, artefact: Mapping[str, Any], golden: Golden | None, classes: int) -> Precision:
        """Build from a manifest's section `artefact` and its `golden`; ValueError, KeyError or TypeError on others."""
        if "compute" not in artefact:
            if "proofs" in artefact:
                raise ValueError("artefact has proofs and no compute")
            return cls()
        compute = artefact["compute"]
        if compute not in PRECISIONS:
            raise ValueError(
                f"artefact compute must be one of {', '.join(PRECISIONS)}, not {quoted(compute)}"
            )
        if golden is None or golden.compute != compute:
            raise ValueError(f"an artefact in {compute} must have golden logits in {compute}")
        proofs = artefact.get("proofs", {})
        if not isinstance(proofs, dict) or len(proofs) > _MOST_PROOFS:
            raise ValueError(f"artefact proofs must be an object of at most {_MOST_PROOFS} proofs")
        for name in proofs:
            if not _INSTRUCTIONS.fullmatch(name):
                raise ValueError(f"{quoted(name)} is not the name of an instruction set")
        return cls(
            compute=compute,
            proofs={name: Proof.from_dict(proof, classes) for name, proof in proofs.items()},
        )


def _rows(rows: Any, classes: int, what: str) -> tuple[tuple[float, ...], ...]:
    found = tuple(tuple(_number(x) for x in row) for row in rows)
    wrong = any(len(row) != classes or not np.isfinite(row).all() for row in found)
    if not 1 <= len(found) <= _MOST_ROWS or wrong:
        raise ValueError(f"{what} must be 1 to {_MOST_ROWS} rows of {classes} finite numbers")
    return found


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{quoted(value)} is not a number")
    return float(value)


def _share(value: Any, what: str) -> float:
    number = _number(value)
    if not 0 <= number <= 1:
        raise ValueError(f"{what} of a proof must be from 0 to 1, not {value!r}")
    return number
