"""From neutral weights to another world's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.convert.names import Naming
from resnext_core.convert.report import Change
from resnext_core.errors import UsageError
from resnext_core.model.weights import Weights


def to_tensors(
    weights: Weights,
    naming: Naming,
    *,
    momentum: Mapping[str, NDArray[Any]] | None = None,
    any_padding: bool = False,
) -> tuple[dict[str, NDArray[Any]], tuple[Change, ...]]:
    """Return the tensors under the names of `naming`, with `momentum` (neutral names) as its moments, and the changes.

    Raises UsageError if that scheme's networks pad the max-pool in another way, and so would compute something
    else with these weights, unless `any_padding`; and if it cannot store moments.
    """
    spec = weights.spec
    if spec.stem == "imagenet" and spec.pool_padding != naming.pool_padding and not any_padding:
        raise UsageError(
            f"{naming.id} networks pad their max-pool '{naming.pool_padding}', this one '{spec.pool_padding}': logits "
            "would differ there. To write it anyway, use --any-padding"
        )
    if momentum and naming.moments is None:
        raise UsageError(f"{naming.id} files cannot store moments; drop --moments keep")
    pieces = naming.pieces(spec)
    tensors: dict[str, NDArray[Any]] = {}
    changes = _spread(weights.tensors, pieces, tensors, "", "")
    if momentum:
        learned = {name: names for name, names in pieces.items() if name in momentum}
        changes += _spread(momentum, learned, tensors, "momentum/", naming.moments or "")
    return tensors, tuple(changes)


def _spread(
    neutral: Mapping[str, NDArray[Any]],
    pieces: Mapping[str, tuple[str, ...]],
    tensors: dict[str, NDArray[Any]],
    label: str,
    prefix: str,
) -> list[Change]:
    changes = []
    for name, names in pieces.items():
        targets = tuple(prefix + n for n in names)
        for target, piece in zip(targets, np.split(neutral[name], len(names), axis=0), strict=True):
            tensors[target] = np.ascontiguousarray(piece)
        changes.append(
            Change(
                kind="split" if len(names) > 1 else "same" if targets == (label + name,) else "renamed",
                source=(label + name,), target=targets,
                reason="one convolution per group, along axis 0" if len(names) > 1 else "",
            )
        )  # fmt: skip
    return changes
