"""Random erasing: which boxes of an image are erased, and what fills them.

Source: Zhong et al., arXiv:1708.04896, in timm's form (``timm/data/random_erasing.py``); torchvision's is the same with
one box and other bounds. Both erase after normalisation, where 0 is the mean colour and noise is standard normal. Here
the box is filled before normalisation with the mean as bytes, or with mean + deviation · noise rounded to bytes: the
same up to rounding, and noise ends where bytes do (about 2 deviations from the mean).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from resnext_core.config import AugmentConfig
from resnext_core.data.operation import Operation, Uniforms, as_byte, chosen, normal
from resnext_core.model.preprocess import PreprocessSpec

_TRIES = 10
#: Standard deviation of the sum of eight uniform bytes, whose mean is 1020.
_BYTES_STD = math.sqrt(8 * (256**2 - 1) / 12)


def draw_erasing(augment: AugmentConfig, spec: PreprocessSpec, rng: Uniforms) -> Iterator[Operation]:
    """Draw the boxes to erase in an image of spec.size.

    The share of each box is uniform in `erasing_area` divided by the number of boxes, its ratio of height to width
    log-uniform in `erasing_ratio`; a box that does not fit after ten draws is left out. The boxes do not depend on
    `erasing_mode`.
    """
    if float(rng.random()) >= augment.erasing:
        return
    size = spec.size
    count = 1 + chosen(float(rng.random()), augment.erasing_count)
    low, high = (math.log(r) for r in augment.erasing_ratio)
    for _ in range(count):
        fill = rng.random(7).tolist()
        for _ in range(_TRIES):
            share, aspect, across, down = rng.random(4).tolist()
            area = augment.erasing_area[0] + share * (augment.erasing_area[1] - augment.erasing_area[0])
            area *= size * size / count
            ratio = math.exp(low + aspect * (high - low))
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < width < size and 0 < height < size:
                left, top = chosen(across, size - width + 1), chosen(down, size - height + 1)
                yield _fill((left, top, width, height), augment.erasing_mode, fill, spec)
                break


def _fill(box: tuple[int, int, int, int], mode: str, fill: list[float], spec: PreprocessSpec) -> Operation:
    if mode == "pixel":
        means = (round(mean * 65536) for mean in spec.mean)
        steps = (round(std * 65536 / _BYTES_STD) for std in spec.std)
        # A random double is a multiple of 2^-53: this is a whole number, exactly.
        return Operation(name="erase_noise", values=(*box, fill[6] * 2**53, *means, *steps))
    colour = list(spec.mean)
    if mode == "rand":
        colour = [
            m + s * normal(*fill[2 * c : 2 * c + 2])
            for c, (m, s) in enumerate(zip(spec.mean, spec.std, strict=True))
        ]
    return Operation(name="erase", values=(*box, *map(as_byte, colour)))
