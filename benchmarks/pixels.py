"""Decode and resize in C++ against Pillow, per core: in one process and interleaved, so that a busy machine hits both.

    python benchmarks/pixels.py FOLDER [--rounds N] [--images N]

FOLDER has JPEG files. For each way the best of N rounds counts for each image (its thread's processor time), and the
table has images/s per core, the mean time, and the ratio to Pillow's bare decode. ``pillow crop`` is what
torchvision's RandomResizedCrop and flip do with Pillow: decode the whole, crop, resize, mirror.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from resnext_cpp_infer.decoder import open_turbo

from resnext_core.config import AugmentConfig
from resnext_core.data.plan import Plan, train_plan
from resnext_core.data.render import load_eval_bytes, load_train_bytes
from resnext_core.data.sampler import sample_rng
from resnext_core.model.preprocess import PreprocessSpec

_PLAIN = AugmentConfig(color_jitter=(0.0, 0.0, 0.0))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--images", type=int, default=300)
    args = parser.parse_args()
    paths = [p for p in sorted(args.folder.rglob("*")) if p.suffix.lower() in (".jpg", ".jpeg")]
    files = [path.read_bytes() for path in paths[: args.images]]
    spec, turbo = PreprocessSpec(mode="shorter-side"), open_turbo()
    out = np.empty((spec.size, spec.size, 3), np.uint8)

    def plans(augment: AugmentConfig) -> list[Plan]:
        sizes = [Image.open(io.BytesIO(content)).size for content in files]
        return [train_plan(*size, spec, augment, sample_rng(0, 0, i)) for i, size in enumerate(sizes)]

    crops, jittered = plans(_PLAIN), plans(AugmentConfig())
    ways: dict[str, Callable[[int], object]] = {
        "pillow decode": lambda i: Image.open(io.BytesIO(files[i])).load(),
        "pillow crop": lambda i: _crop(files[i], crops[i]),
        "core train": lambda i: load_train_bytes(files[i], lambda w, h: crops[i]),
        "core eval": lambda i: load_eval_bytes(files[i], spec),
        "turbo train": lambda i: turbo.training(files[i], "", lambda w, h: crops[i], out, []),
        "turbo train, jitter": lambda i: turbo.training(files[i], "", lambda w, h: jittered[i], out, []),
        "turbo eval": lambda i: turbo.evaluation(files[i], "", spec, out, []),
    }
    best = {name: np.full(len(files), np.inf) for name in ways}
    for _ in range(args.rounds):
        for i in range(len(files)):
            for name, way in ways.items():
                begun = time.thread_time()
                way(i)
                best[name][i] = min(best[name][i], time.thread_time() - begun)
    size = sum(map(len, files)) / len(files) / 1000
    print(f"{len(files)} files of {size:.0f} kB on average, {args.rounds} rounds")
    base = best["pillow decode"].mean()
    for name, seconds in best.items():
        mean = seconds.mean()
        print(f"{name:20} {1 / mean:8.0f} images/s {mean * 1e3:8.3f} ms {base / mean:6.2f} x pillow decode")


def _crop(content: bytes, plan: Plan) -> np.ndarray:
    box = plan.box
    image = Image.open(io.BytesIO(content)).convert("RGB")
    image = image.crop(
        (round(box.left), round(box.top), round(box.left + box.width), round(box.top + box.height))
    )
    image = image.resize((plan.size, plan.size), Image.Resampling.BILINEAR)
    if plan.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


if __name__ == "__main__":
    main()
