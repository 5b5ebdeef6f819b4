"""What ``data_vs_peers.py`` times, one contender a process: each reads, decodes and augments files on one core."""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

SIZE, RESIZE = 224, 256
SCALE, RATIO, JITTER = (0.08, 1.0), (3 / 4, 4 / 3), 0.4
#: The end of every row is uint8 pixels in the memory of this process; ``decode`` ends with the whole image.
ROWS = ("decode", "train", "jitter", "eval")

#: Does a row once for all files.
Row = Callable[[Sequence[str]], None]


def each(work: Callable[[str], object]) -> Row:
    """Return a row that does `work` for one file after the other."""

    def run(paths: Sequence[str]) -> None:
        for path in paths:
            work(path)

    return run


# -- ours ------------------------------------------------------------------------------------------


def ours(name: str) -> dict[str, Row]:
    """The decoder `name` as the readers of the loader call it."""
    import numpy as np

    from resnext_core.config import AugmentConfig
    from resnext_core.data.batch_worker import Row, Transform
    from resnext_core.data.content import read_file
    from resnext_core.model.preprocess import PreprocessSpec
    from resnext_core.plugins import load_plugins

    open = load_plugins().decoder(name).open
    spec = PreprocessSpec(size=SIZE, resize=RESIZE, mode="shorter-side")
    out = np.empty((SIZE, SIZE, 3), np.uint8)

    def row(augment: AugmentConfig | None) -> Row:
        transform = Transform(preprocess=spec, augment=augment, seed=1, open=open)

        def run(paths: Sequence[str]) -> None:
            for number, path in enumerate(paths):
                transform.write(out, read_file(path), 0, Row(0, number, b""), [])

        return run

    none = AugmentConfig(color_jitter=(0.0, 0.0, 0.0))
    return {"train": row(none), "jitter": row(AugmentConfig(color_jitter=(JITTER,) * 3)), "eval": row(None)}


# -- peers -----------------------------------------------------------------------------------------


def pillow() -> dict[str, Row]:
    from PIL import Image

    return {"decode": each(lambda path: Image.open(path).convert("RGB").load())}


def torchvision(backend: str) -> dict[str, Row]:
    """Transforms v2 on a PIL image, or on a tensor from ``decode_jpeg``."""
    import torch
    from PIL import Image
    from torchvision import io
    from torchvision.transforms import v2

    torch.set_num_threads(1)

    def opened(path: str) -> Any:
        if backend == "pil":
            return Image.open(path).convert("RGB")
        return io.decode_jpeg(io.read_file(path), mode=io.ImageReadMode.RGB)

    end = [v2.PILToTensor()] if backend == "pil" else []
    crop = [v2.RandomResizedCrop(SIZE, SCALE, RATIO, antialias=True), v2.RandomHorizontalFlip()]
    rows = {
        "train": crop, "jitter": [*crop, v2.ColorJitter(JITTER, JITTER, JITTER)],
        "eval": [v2.Resize(RESIZE, antialias=True), v2.CenterCrop(SIZE)],
    }  # fmt: skip
    made = {name: v2.Compose([*steps, *end]) for name, steps in rows.items()}
    opened(EXAMPLE[0])
    decode = {} if backend == "pil" else {"decode": each(opened)}
    return decode | {name: each(lambda path, made=made[name]: made(opened(path))) for name in rows}


def opencv() -> dict[str, Row]:
    """OpenCV's own decoder and INTER_AREA, its filter for smaller images."""
    import cv2
    import numpy as np

    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)

    def train(path: str) -> Any:
        image = cv2.imread(path, cv2.IMREAD_COLOR)
        left, top, width, height = crop(image.shape[1], image.shape[0], rng)
        image = cv2.resize(
            image[top : top + height, left : left + width], (SIZE, SIZE), interpolation=cv2.INTER_AREA
        )
        if rng.random() < 0.5:
            image = cv2.flip(image, 1)
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def jitter(path: str) -> Any:
        image = train(path)
        brightness, contrast, saturation = rng.uniform(1 - JITTER, 1 + JITTER, 3)
        image = cv2.convertScaleAbs(image, alpha=brightness)
        mean = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
        image = cv2.convertScaleAbs(image, alpha=contrast, beta=(1 - contrast) * mean)
        gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        return cv2.addWeighted(image, saturation, gray, 1 - saturation, 0)

    def evaluation(path: str) -> Any:
        image = cv2.imread(path, cv2.IMREAD_COLOR)
        scale = RESIZE / min(image.shape[:2])
        width, height = (max(RESIZE, round(side * scale)) for side in image.shape[1::-1])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        left, top = (width - SIZE) // 2, (height - SIZE) // 2
        return cv2.cvtColor(image[top : top + SIZE, left : left + SIZE], cv2.COLOR_BGR2RGB)

    decode = each(lambda path: cv2.imread(path, cv2.IMREAD_COLOR))
    return {"decode": decode, "train": each(train), "jitter": each(jitter), "eval": each(evaluation)}


def crop(width: int, height: int, rng: Any) -> tuple[int, int, int, int]:
    """Draw a random resized crop as torchvision does: left, top, width, height."""
    for _ in range(10):
        area = width * height * rng.uniform(*SCALE)
        ratio = math.exp(rng.uniform(*map(math.log, RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    return 0, 0, width, height


def simplejpeg() -> dict[str, Row]:
    import simplejpeg

    return {"decode": each(lambda path: simplejpeg.decode_jpeg(Path(path).read_bytes(), "RGB"))}


def turbojpeg() -> dict[str, Row]:
    from turbojpeg import TJPF_RGB, TurboJPEG

    library = TurboJPEG()
    return {"decode": each(lambda path: library.decode(Path(path).read_bytes(), pixel_format=TJPF_RGB))}


def kornia() -> dict[str, Row]:
    from kornia_rs import io

    read = getattr(io, "read_image_jpegturbo", None) or io.read_image_jpeg
    try:
        read(EXAMPLE[0])
    except TypeError:  # the release asks for the mode
        read = functools.partial(read, mode="rgb")
    return {"decode": each(read)}


def torchcodec() -> dict[str, Row]:
    from torchcodec import decoders

    decode = getattr(decoders, "decode_image", None) or getattr(decoders, "ImageDecoder", None)
    if decode is None:
        raise ImportError(f"torchcodec {metadata.version('torchcodec')} decodes no images")
    return {"decode": each(decode)}


def mindspore() -> dict[str, Row]:
    """The C++ pipeline of MindSpore's dataset, with one worker."""
    import mindspore.dataset as ds
    from mindspore.dataset import vision

    ds.config.set_num_parallel_workers(1)
    root = str(Path(EXAMPLE[0]).parents[1])
    crop = vision.RandomCropDecodeResize(SIZE, SCALE, RATIO, vision.Inter.LINEAR)
    train = [crop, vision.RandomHorizontalFlip()]
    rows = {
        "decode": [vision.Decode()], "train": train,
        "jitter": [*train, vision.RandomColorAdjust(JITTER, JITTER, JITTER)],
        "eval": [vision.Decode(), vision.Resize(RESIZE), vision.CenterCrop(SIZE)],
    }  # fmt: skip

    def row(steps: list[Any]) -> Row:
        data = ds.ImageFolderDataset(root, num_parallel_workers=1, shuffle=False)
        data = data.map(steps, "image", num_parallel_workers=1)

        def run(paths: Sequence[str]) -> None:
            found = sum(1 for _ in data.create_tuple_iterator(num_epochs=1, output_numpy=True))
            assert found == len(paths)

        return run

    return {name: row(steps) for name, steps in rows.items()}


def dali() -> dict[str, Row]:
    """DALI's operators for the CPU, with one thread."""
    from nvidia.dali import fn, pipeline_def, types

    batch = 16

    def row(name: str) -> Row:
        @pipeline_def(batch_size=batch, num_threads=1, device_id=None)
        def made() -> Any:
            files, _ = fn.readers.file(files=list(EXAMPLE))
            if name in ("train", "jitter"):
                images = fn.decoders.image_random_crop(
                    files, random_area=SCALE, random_aspect_ratio=RATIO, device="cpu"
                )
                images = fn.resize(images, size=(SIZE, SIZE), antialias=True)
                images = fn.flip(images, horizontal=fn.random.coin_flip())
            else:
                images = fn.decoders.image(files, device="cpu", output_type=types.RGB)
            if name == "jitter":
                drawn = {
                    key: fn.random.uniform(range=(1 - JITTER, 1 + JITTER))
                    for key in ("brightness", "contrast", "saturation")
                }
                images = fn.color_twist(images, **drawn)
            if name == "eval":
                images = fn.resize(images, resize_shorter=RESIZE, antialias=True)
                images = fn.crop(images, crop=(SIZE, SIZE))
            return images

        pipeline = made()
        pipeline.build()

        def run(paths: Sequence[str]) -> None:
            for _ in range(len(paths) // batch):
                pipeline.run()

        return run

    return {name: row(name) for name in ROWS}


#: By name: the packages to install, and what makes the rows.
CONTENDERS: dict[str, tuple[str, Callable[[], dict[str, Row]]]] = {
    "resnext, pillow": ("", lambda: ours("pillow")),
    "resnext, turbo": ("", lambda: ours("turbo")),
    "torchvision, PIL": ("torchvision", lambda: torchvision("pil")),
    "torchvision, decode_jpeg": ("torchvision", lambda: torchvision("tensor")),
    "Pillow": ("pillow", pillow),
    "OpenCV": ("opencv-python-headless", opencv),
    "MindSpore dataset": ("mindspore", mindspore),
    "DALI, CPU": ("nvidia-dali-cuda120", dali),
    "simplejpeg": ("simplejpeg", simplejpeg),
    "PyTurboJPEG": ("PyTurboJPEG", turbojpeg),
    "kornia-rs": ("kornia-rs", kornia),
    "torchcodec": ("torchcodec", torchcodec),
}
EXAMPLE: list[str] = []


def main() -> None:
    """Make the rows of a contender, then do each that is asked for on standard input; answers are JSON lines."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("files", type=Path, help="a text file with a path a line")
    args = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries may print

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    EXAMPLE[:] = args.files.read_text(encoding="utf-8").split("\n")
    package, make = CONTENDERS[args.contender]
    try:
        rows = make()
        version = metadata.version(package or "resnext-core")
        for row in rows.values():  # what is done once, and pages of files
            row(EXAMPLE)
    except Exception as error:
        answer(missing=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return
    answer(rows=list(rows), version=version, threads=sum(1 for _ in _threads()))
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        rows[line.strip()](EXAMPLE)
        answer(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu, images=len(EXAMPLE))


def _threads() -> Iterator[str]:
    with_them = Path("/proc/self/task")
    yield from os.listdir(with_them) if with_them.is_dir() else ()


if __name__ == "__main__":
    main()
