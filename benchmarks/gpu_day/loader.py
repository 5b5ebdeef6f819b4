"""A part: images/s of the loader on all cores, on generated JPEGs like ImageNet's, augmented as in training."""

from __future__ import annotations

import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from gpu_day.child import arguments, write
from resnext_core.errors import ResnextError
from resnext_core.jobs.bench import BenchJob, bench
from resnext_core.jobs.settings import Settings

#: A common size there. Its training images, 147.9 GB of 1,281,167, have 115 kB each; what these have is said.
SIZE, QUALITY = (500, 375), 88
FILES, BATCH, STEPS = 512, 128, 40


def main() -> int:
    """Measure with one worker, so that its cost for an image is known, and with one for each core."""
    args = arguments()
    files, batch, steps = (16, 4, 3) if args.smoke else (FILES, BATCH, STEPS)
    cpus = len(os.sched_getaffinity(0))
    rates: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        size = _write_images(data, files, cpus)
        for workers in (1,) if args.smoke else (cpus, 1):
            try:
                rates[workers] = _rate(data, workers, batch, max(3, steps if workers > 1 else steps // 8))
            except ResnextError as error:
                return write(args.into, right=False, said=str(error), rates=rates)
    best = max(rates, key=rates.__getitem__)
    said = f"{rates[best]:.0f} images/s with {best} workers on {cpus} cores, {size / 1e3:.0f} kB an image"
    table = [f"{workers:3} workers: {rate:8.0f} images/s" for workers, rate in rates.items()]
    return write(args.into, right=True, said=said, table=table, rates=rates, bytes=size)


def _rate(data: Path, workers: int, batch: int, steps: int) -> float:
    overrides = ("model.variant=resnext50_32x4d", f"data.workers={workers}")
    settings = Settings(data=str(data), batch_size=batch, overrides=overrides)
    return bench(BenchJob(what="data", steps=steps, settings=settings)).images_per_s


def _write_images(folder: Path, files: int, cpus: int) -> float:
    """Write `files` images in two classes; returns their mean size in bytes."""
    for name in ("one", "other"):
        (folder / "train" / name).mkdir(parents=True)
    paths = [folder / "train" / ("one", "other")[i % 2] / f"{i}.jpg" for i in range(files)]
    with ProcessPoolExecutor(min(cpus, 16)) as pool:
        return float(np.mean(list(pool.map(_write_image, paths, range(files)))))


def _write_image(path: Path, seed: int) -> int:
    """Write an image with detail at several scales, as photographs have; returns its bytes."""
    rng = np.random.default_rng(seed)
    width, height = SIZE
    pixels = np.zeros((height, width, 3))
    for step, weight in ((64, 70.0), (16, 40.0), (4, 24.0), (1, 14.0)):
        small = rng.normal(0, weight, (-(-height // step), -(-width // step), 3))
        pixels += np.kron(small, np.ones((step, step, 1)))[:height, :width]
    Image.fromarray(np.clip(pixels + 118, 0, 255).astype(np.uint8)).save(path, quality=QUALITY)
    return path.stat().st_size


if __name__ == "__main__":
    sys.exit(main())
