"""Classes of unlike size: what the loss does about them, and what is said about them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import Config, LossConfig
from resnext_core.data.balance import class_counts, shown_shares, unlike_classes
from resnext_core.data.index import Index
from resnext_core.errors import DataError, UsageError
from resnext_core.interfaces import MixedRows


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassLoss:
    """What the loss does about classes of unlike size; see the fields of the same names of TrainRequest."""

    class_weights: NDArray[np.float64] | None = None
    logit_offsets: NDArray[np.float32] | None = None


#: What it does where nothing is asked for.
UNWEIGHTED = ClassLoss()


def class_loss(config: Config, index: Index) -> ClassLoss:
    """Return what the configuration asks for in a training on `index`; the errors of :func:`check_class_loss`."""
    check_class_loss(config, index)
    counts = class_counts(index.labels, len(index.classes))
    shares = shown_shares(counts, config.data.balance)
    return ClassLoss(
        class_weights=class_weights(config.loss, counts, shares),
        logit_offsets=logit_offsets(config.loss, shares),
    )


def check_class_loss(config: Config, index: Index) -> None:
    """Raise UsageError or DataError where the loss cannot do what is asked of it about classes."""
    loss = config.loss
    check_weighted_targets(loss, weighted=loss.class_weights != "none", mixes=config.mix.on)
    if loss.logit_adjustment and loss.kind == "bce":
        raise UsageError(
            "loss.logit_adjustment is defined for cross-entropy, not for binary cross-entropy; set "
            "loss.logit_adjustment=0 or loss.kind=ce"
        )
    if loss.logit_adjustment:
        empty = np.flatnonzero(class_counts(index.labels, len(index.classes)) == 0)
        if len(empty):
            raise DataError(
                f"loss.logit_adjustment needs training images of every class, and {len(empty)} have none, e.g. "
                f"'{index.classes[empty[0]]}'; add some, or set loss.logit_adjustment=0"
            )


def check_weighted_targets(loss: LossConfig, *, weighted: bool, mixes: bool) -> None:
    """Raise UsageError where the parts of a mixed image's target cannot have the weights of their classes."""
    if weighted and mixes and loss.kind == "bce" and loss.bce_threshold is not None:
        raise UsageError(
            "loss.class_weights and loss.bce_threshold cannot both be used on mixed images: behind a threshold the "
            "parts of a target have no weights of their own; set loss.bce_threshold=null, loss.class_weights=none, "
            "or mix.mixup=0 and mix.cutmix=0"
        )


def class_weights(
    loss: LossConfig, counts: NDArray[np.int64], shares: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Return the weight of each class in the loss, float64 (K,); None where ``loss.class_weights`` is ``none``.

    `counts` are the training images of each class, `shares` its share in what epochs show: the mean weight of what they
    show is 1. ``effective`` is formula 4 of Cui et al. (arXiv:1901.05555). A class without images has weight 0.
    """
    if loss.class_weights == "none":
        return None
    known = counts > 0
    images = counts[known].astype(np.float64)
    if loss.class_weights == "effective" and loss.effective_beta > 0:
        images = -np.expm1(images * np.log(loss.effective_beta))
    elif loss.class_weights == "effective":  # one image says as much as many
        images = np.ones_like(images)
    weights = np.zeros(len(counts))
    weights[known] = 1 / images
    scaled: NDArray[np.float64] = weights / (shares * weights).sum()
    return scaled


def logit_offsets(loss: LossConfig, shares: NDArray[np.float64]) -> NDArray[np.float32] | None:
    """Return what is added to the logits of each class in the loss, float32 (K,); None without an adjustment.

    It is τ · log of the share of the class in what epochs show (Menon et al., arXiv:2007.07314, formula 10).
    """
    if not loss.logit_adjustment:
        return None
    offsets: NDArray[np.float32] = (loss.logit_adjustment * np.log(shares)).astype(np.float32)
    return offsets


def weighted_rows(
    weights: NDArray[np.float64], labels: NDArray[np.int32], mix: MixedRows | None
) -> tuple[NDArray[np.float64], MixedRows | None]:
    """Return the weight of each row, float64 (N,), and `mix` with the shares of the labels that belong to it.

    The loss is linear in its target. So a row of s · own + (1 - s) · partner's label, with class weights a and b, has
    the weight w = s · a + (1 - s) · b and the share s · a / w of its own label: its loss is then s · a · that of the
    own label + (1 - s) · b · that of the partner's. Pixels are mixed as before.
    """
    own: NDArray[np.float64] = weights[labels]
    if mix is None:
        return own, None
    kept: NDArray[np.float64] = mix.share * own
    total: NDArray[np.float64] = kept + (1 - mix.share) * weights[mix.labels]
    share = np.divide(kept, total, out=mix.share.copy(), where=total > 0)
    return total, replace(mix, share=share)


def imbalance(index: Index) -> str | None:
    """Return a line on classes of unlike size in a training on `index`, None where they are alike enough."""
    counts = class_counts(index.labels, len(index.classes))
    unlike = unlike_classes(counts)
    if unlike is None:
        return None
    most, least = unlike
    return (
        f"classes are imbalanced: '{index.classes[most]}' has {counts[most]} training images, "
        f"'{index.classes[least]}' {counts[least]}"
    )


def remedies(config: Config) -> list[str]:
    """Return the settings of a configuration that make small classes count for more."""
    loss = config.loss
    used = {
        f"loss.class_weights={loss.class_weights}": loss.class_weights != "none",
        f"loss.logit_adjustment={loss.logit_adjustment:g}": loss.logit_adjustment > 0,
        f"data.balance={config.data.balance:g}": config.data.balance > 0,
    }
    return [setting for setting, on in used.items() if on]
