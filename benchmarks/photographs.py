"""Photographs that benchmarks make: JPEGs with the size, the subsampling and the bytes of ImageNet's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

#: Width and height of the first images of ImageNet's validation set, roughly in the proportion in which they occur.
SIZES = ((500, 375), (500, 333), (375, 500), (500, 375), (500, 334), (333, 500), (500, 400), (640, 480))
#: Bytes of a mean image of ImageNet.
BYTES = 110_000


def write_photographs(folder: Path, count: int) -> list[Path]:
    """Write `count` JPEGs, 4:2:0, of about :data:`BYTES` each, into class folders; those that are there stay."""
    paths = []
    for number in range(count):
        path = folder / "train" / f"class{number % 4}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _fitted(photograph(*SIZES[number % len(SIZES)], seed=number), path)
        paths.append(path)
    return paths


def photograph(width: int, height: int, seed: int) -> Image.Image:
    """Return an image whose spectrum falls with the frequency as that of photographs, with colours that vary slowly."""
    rng = np.random.default_rng(seed)
    across, down = np.meshgrid(np.fft.fftfreq(width), np.fft.fftfreq(height))
    fall = 1 / np.maximum(np.hypot(across, down), 1 / max(width, height)) ** 1.15

    def layer(power: float) -> np.ndarray:
        noise = np.fft.fft2(rng.standard_normal((height, width)))
        values = np.fft.ifft2(noise * fall**power).real
        return values / values.std()

    light, red, blue = layer(1.0), layer(1.5), layer(1.5)
    pixels = 118 + 52 * light[..., None] + 22 * np.stack([red, -0.4 * red - 0.4 * blue, blue], axis=-1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _fitted(image: Image.Image, path: Path) -> None:
    """Save at the quality that comes nearest to the bytes of an image of this area."""
    wanted = BYTES * image.width * image.height / (500 * 375)
    best = None
    for quality in range(80, 99, 2):
        image.save(path, quality=quality, subsampling="4:2:0")
        off = abs(path.stat().st_size - wanted)
        if best is not None and off > best[0]:
            break
        best = (off, quality)
    assert best is not None
    image.save(path, quality=best[1], subsampling="4:2:0")
