"""Which batch sizes are tried where the largest that fits is asked for."""

from __future__ import annotations

from resnext_core.config import Config

#: An epoch of fewer steps is not chosen, however much memory there is.
LEAST_STEPS = 10
#: The fewest images at a time that are tried first: batch statistics of fewer cost accuracy (arXiv:1803.08494).
FEWEST = 8
#: Up to this global batch the linear scaling of the learning rate kept the accuracy of ResNet-50 on ImageNet
#: (Goyal et al., arXiv:1706.02677, figure 1).
LINEAR_UP_TO = 8192


def most_images(config: Config, world: int, images: int) -> int:
    """Return how many images at a time a rank may have at most, of a data set of so many `images`."""
    return min(images // LEAST_STEPS, LINEAR_UP_TO) // (world * config.train.accumulate)


def micro_batches(most: int) -> list[int]:
    """Return the numbers of images to try, ascending: powers of two from 8 on, and what lies halfway, up to `most`.

    All are multiples of 8, as tensor cores like them; where `most` is less, it is the largest power of two in it, 2 at
    least.
    """
    if most < FEWEST:
        return [max(2, 1 << max(most, 1).bit_length() - 1)]
    found, count = [], FEWEST
    while count <= most:
        found.append(count)
        between = count + count // 2
        if between % FEWEST == 0 and between <= most:
            found.append(between)
        count *= 2
    return found
