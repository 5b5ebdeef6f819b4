"""Options of the backend ``reference``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ReferenceOptions:
    """Options of the section `reference`: the arithmetic of prediction (training takes precision.compute)."""

    compute: Literal["float32", "float64"] = "float32"
