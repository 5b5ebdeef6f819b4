"""The decoder `turbo`: pixels equal to the bit to core's Pillow path, and never for a file that Pillow refuses."""

from __future__ import annotations

import io
import random
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from images import bad_images, good_odd_images, picture
from mutants import broken_anyhow, damaged_files, exif_files, jpeg, lossless_jpeg, segments, sound_files
from PIL import Image
from resnext_cpp_infer.decoder import TurboDecoder, known, open_turbo
from resnext_cpp_infer.pixels import KINDS, LIBRARY, Pixels, Unread, load, readiness

from resnext_core.config import AugmentConfig
from resnext_core.data.decode import BadImage, opened_bytes
from resnext_core.data.exif import upright
from resnext_core.data.index import open_index
from resnext_core.data.loader import Loader
from resnext_core.data.operation import Operation
from resnext_core.data.operations import OPERATIONS, operated
from resnext_core.data.plan import Box, Plan, train_plan
from resnext_core.data.render import load_eval_bytes, load_train_bytes
from resnext_core.data.sampler import Task, sample_rng
from resnext_core.errors import BackendUnavailable
from resnext_core.extensions import READY, Decoder, NotSupported
from resnext_core.model.preprocess import PreprocessSpec
from resnext_cpp_infer import decoder as decoders
from resnext_cpp_infer import pixels as interface

FILTERS = ("antialias", "bicubic", "plain")


@pytest.fixture(scope="module")
def turbo(program: Path) -> Iterator[TurboDecoder]:
    load.cache_clear()
    decoders._opened.cache_clear()
    decoder = open_turbo()
    assert isinstance(decoder, TurboDecoder)
    yield decoder
    load.cache_clear()
    decoders._opened.cache_clear()


@pytest.fixture(params=[2, 1, 0], ids=["AVX-512", "AVX2", "any processor"])
def either(request: pytest.FixtureRequest, turbo: TurboDecoder) -> Iterator[TurboDecoder]:
    """The decoder with the most that the processor has of these instructions."""
    load().resnext_pixels_use_simd(request.param)
    yield turbo
    load().resnext_pixels_use_simd(2)


def plan_of(rng: random.Random, width: int, height: int, name: str, size: int = 24) -> Plan:
    """A random plan of an image that is stored with these sides, with small boxes as often as large ones."""
    orientation = rng.choice((1, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8))
    if orientation >= 5:
        width, height = height, width
    w, h = (
        max(1, round(side * rng.choice((1, rng.random(), rng.random() ** 3)))) for side in (width, height)
    )
    left, top = rng.randint(0, width - w), rng.randint(0, height - h)
    return Plan(
        box=Box(left=left, top=top, width=w, height=h),
        sides=(-(-size * width // w), -(-size * height // h)),
        size=size, filter=name, flip=rng.random() < 0.5, scaled_decode=rng.random() < 0.5,  # type: ignore[arg-type]
        orientation=orientation,
    )  # fmt: skip


def trained(turbo: TurboDecoder, content: bytes, plan: Plan) -> tuple[np.ndarray | None, np.ndarray | str]:
    """The pixels of `turbo`, None where it leaves them to Pillow, and Pillow's, or why it refuses the file."""
    out: np.ndarray | None = np.full((plan.size, plan.size, 3), 77, np.uint8)
    try:
        turbo.training(content, "x", lambda width, height: plan, out, [])  # type: ignore[arg-type]
    except NotSupported:
        out = None
    try:
        return out, load_train_bytes(content, lambda width, height: plan)
    except BadImage as error:
        return out, error.reason


def evaluated(
    turbo: TurboDecoder, content: bytes, spec: PreprocessSpec
) -> tuple[np.ndarray | None, np.ndarray | str]:
    out: np.ndarray | None = np.full((spec.size, spec.size, 3), 77, np.uint8)
    remarks: list[str] = []
    try:
        turbo.evaluation(content, "x", spec, out, remarks)  # type: ignore[arg-type]
    except NotSupported:
        out = None
    expected_remarks: list[str] = []
    try:
        expected: np.ndarray | str = load_eval_bytes(content, spec, remarks=expected_remarks)
    except BadImage as error:
        expected = error.reason
    assert out is None or remarks == expected_remarks
    return out, expected


def agree(ours: np.ndarray | None, theirs: np.ndarray | str, name: object) -> bool:
    """Assert that there are no other pixels than Pillow's; return whether there are any."""
    if ours is None:
        return False
    assert not isinstance(theirs, str), f"{name}: read, while Pillow says {theirs}"
    assert np.array_equal(ours, theirs), f"{name}: {np.abs(ours.astype(int) - theirs).max()} levels"
    return True


def test_every_form_of_exif_is_pythons(turbo: TurboDecoder) -> None:
    """Turned or not, with the same remarks; and a crop of training that is drawn from the turned image."""
    rng, read = random.Random(8), 0
    spec = PreprocessSpec(size=24, resize=28, mode="shorter-side", filter="bicubic", orientation="apply")
    for name, content in exif_files().items():
        turn = upright(content)
        read += agree(*evaluated(turbo, content, spec), name) and turn > 1
        with opened_bytes(content, name) as source:
            width, height = source.size[::-1] if turn >= 5 else source.size
        plan = plan_of(rng, width, height, "bicubic")
        while plan.orientation != 1:  # its box is of the turned image
            plan = plan_of(rng, width, height, "bicubic")
        agree(*trained(turbo, content, replace(plan, orientation=turn)), name)
    assert read > 60


# -- every kind of file ----------------------------------------------------------------------------


def kinds_of_jpeg(height: int, width: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """JPEGs of one size in all the ways that Pillow stores them."""
    image = picture(height, width, seed=seed)
    for sampling in (0, 1, 2):
        for more in ({}, {"progressive": True}, {"restart_marker_blocks": 1}, {"restart_marker_rows": 1}):
            stream = io.BytesIO()
            image.save(stream, "JPEG", subsampling=sampling, quality=85, **more)
            yield f"{width}x{height}-{sampling}-{'-'.join(more)}", stream.getvalue()
    for mode in ("L", "CMYK"):
        for more in ({}, {"progressive": True}):
            stream = io.BytesIO()
            image.convert(mode).save(stream, "JPEG", **more)
            yield f"{width}x{height}-{mode}-{'-'.join(more)}", stream.getvalue()
    stream = io.BytesIO()
    image.save(stream, "JPEG", keep_rgb=True)
    yield f"{width}x{height}-rgb", stream.getvalue()


def sampled(sampling: tuple[int, ...], width: int, height: int, seed: int) -> bytes:
    """A JPEG of random coefficients whose parts have these sampling factors, each as 16 times across plus down.

    The codes are random bits with the tables of Pillow, so that any sampling can be had without an encoder.
    """
    parts = segments(jpeg("RGB" if len(sampling) == 3 else "L", quality=98))
    body = []
    for part in parts[1:-1]:
        if part[1] == 0xC0:
            frame = bytearray(part)
            frame[5:9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
            for i, factors in enumerate(sampling):
                frame[11 + 3 * i] = factors
            part = bytes(frame)
        if part[1] == 0xDB:  # small steps of the mean, so that it does not leave 0..255
            table = bytearray(part)
            table[5] = 1
            part = bytes(table)
        body.append(part)
    scan = parts[-1][: 2 + int.from_bytes(parts[-1][2:4], "big")]
    codes = np.random.default_rng(seed).integers(0, 255, 4 * width * height + 4000, np.uint8)  # no 255
    return b"".join([parts[0], *body, scan, codes.tobytes(), b"\xff\xd9"])


SAMPLINGS = (
    (0x11, 0x11, 0x11), (0x21, 0x11, 0x11), (0x22, 0x11, 0x11), (0x41, 0x11, 0x11), (0x12, 0x11, 0x11),
    (0x42, 0x11, 0x11), (0x14, 0x11, 0x11), (0x22, 0x21, 0x21), (0x22, 0x12, 0x11), (0x14, 0x12, 0x11),
    (0x31, 0x11, 0x11), (0x11, 0x21, 0x11), (0x11,), (0x22,),
)  # fmt: skip


def boxes(turbo: TurboDecoder, files: list[tuple[str, bytes]], count: int, seed: int) -> int:
    """Compare `count` random plans of each file; return how many were made by `turbo`."""
    rng, made = random.Random(seed), 0
    for name, content in files:
        width, height = Image.open(io.BytesIO(content)).size
        for i in range(count):
            plan = plan_of(rng, width, height, FILTERS[i % 3], size=rng.choice((7, 16, 33)))
            made += agree(*trained(turbo, content, plan), (name, plan))
    return made


def test_boxes_of_jpegs_are_those_of_a_whole_decode(turbo: TurboDecoder) -> None:
    files = [
        *kinds_of_jpeg(97, 131, 0), *kinds_of_jpeg(64, 48, 1), *kinds_of_jpeg(17, 150, 2), *kinds_of_jpeg(150, 9, 3)
    ]  # fmt: skip
    assert boxes(turbo, files, 30, 1) == 30 * len(files) > 1500


@pytest.fixture(params=["Pillow's libjpeg", "linked libjpeg"])
def either_library(request: pytest.FixtureRequest, turbo: TurboDecoder) -> Iterator[TurboDecoder]:
    """The decoder with the library that Pillow uses, and with that of the program."""
    if request.param == "linked libjpeg":
        load().resnext_pixels_use_jpeg(None)
    yield turbo
    interface.use_pillows_jpeg(load())


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda s: "-".join(f"{f:x}" for f in s))
def test_boxes_of_every_sampling(either_library: TurboDecoder, sampling: tuple[int, ...]) -> None:
    files = [
        (f"{width}x{height}", sampled(sampling, width, height, seed=width))
        for width, height in ((130, 97), (64, 64), (33, 200), (201, 34))
    ]
    made = boxes(either_library, files, 30, 2)
    assert made == 30 * len(files)


def test_progressive_files_that_lack_scans(turbo: TurboDecoder) -> None:
    """libjpeg smooths over the borders of blocks where bits are missing."""
    stream = io.BytesIO()
    picture(120, 150, seed=5).save(stream, "JPEG", progressive=True, quality=90)
    whole, scans, at = stream.getvalue(), [], 0
    while (at := whole.find(b"\xff\xda", at + 1)) > 0:
        scans.append(at)
    files = [(f"{n} scans", whole[:at] + b"\xff\xd9") for n, at in enumerate(scans) if n]
    assert len(files) > 5
    assert boxes(turbo, files, 40, 3) == 40 * len(files)


def test_every_processor_makes_the_same_pixels(either: TurboDecoder) -> None:
    files = [*kinds_of_jpeg(75, 101, 4), ("png", _png(picture(75, 101)))]
    assert boxes(either, files, 9, 4) == 9 * len(files)
    for name, content in files:
        for filter_name in FILTERS:
            spec = PreprocessSpec(size=31, resize=40, mode="shorter-side", filter=filter_name)  # type: ignore[arg-type]
            assert agree(*evaluated(either, content, spec), name)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Pillow warns of what its `open` finds in damaged files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _png(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def test_every_odd_file(turbo: TurboDecoder, tmp_path: Path) -> None:
    files = {
        name: path.read_bytes() for name, path in good_odd_images(tmp_path / "odd").items()
    } | sound_files()
    files |= {n: p.read_bytes() for n, p in bad_images(tmp_path / "bad").items() if p.is_file()}
    rng = random.Random(6)
    made = 0
    for name, content in files.items():
        for mode in ("squash", "shorter-side"):
            for filter_name in FILTERS:
                for scaled in (False, True):
                    spec = PreprocessSpec(
                        size=24, resize=28, mode=mode, filter=filter_name, scaled_decode=scaled
                    )  # type: ignore[arg-type]
                    made += agree(*evaluated(turbo, content, spec), (name, spec))
        try:
            width, height = Image.open(io.BytesIO(content)).size
        except Exception:
            continue
        if width * height < 100_000_000:
            for i in range(6):
                plan = plan_of(rng, width, height, FILTERS[i % 3])
                made += agree(*trained(turbo, content, plan), (name, plan))
    assert made > 1000


def test_no_pixels_of_a_file_that_pillow_refuses(turbo: TurboDecoder) -> None:
    """Wherever a file is cut or changed, and wherever the box is."""
    rng = random.Random(7)
    files = damaged_files() | {"lossless.jpg": lossless_jpeg()}
    wholes = {"restart": {"restart_marker_blocks": 2}, "progressive": {"progressive": True}, "plain": {}}
    for name, options in wholes.items():
        stream = io.BytesIO()
        picture(64, 80, seed=8).save(stream, "JPEG", **options)
        files.update(broken_anyhow(name, stream.getvalue(), 60, 9))
    read = refused = 0
    for name, content in files.items():
        try:
            width, height = Image.open(io.BytesIO(content)).size
        except Exception:
            width, height = 26, 21
        if width * height > 10_000_000:
            continue
        ours, theirs = trained(turbo, content, plan_of(rng, width, height, rng.choice(FILTERS), size=8))
        read += agree(ours, theirs, name)
        refused += isinstance(theirs, str)
    assert read > 200
    assert refused > 200


def test_a_file_cut_below_the_box_is_refused(turbo: TurboDecoder) -> None:
    for options in ({}, {"restart_marker_rows": 1}, {"progressive": True}):
        stream = io.BytesIO()
        picture(200, 160, seed=10).save(stream, "JPEG", **options)
        whole = stream.getvalue()
        plan = Plan(
            box=Box(left=10, top=0, width=50, height=30), sides=(1, 1), size=16, filter="antialias", flip=False,
            scaled_decode=False,
        )  # fmt: skip
        assert agree(*trained(turbo, whole, plan), "whole")
        for cut in (whole[:-2], whole[:-40], whole[: len(whole) * 2 // 3]):
            ours, theirs = trained(turbo, cut, plan)
            assert (ours is None) == isinstance(theirs, str), "a missing end marker alone is no error"
            agree(ours, theirs, "cut")
        assert ours is None, "it lacks a third"
        # Another marker than the end's, below the box: an error of the whole file.
        middle = len(whole) * 2 // 3
        ours, theirs = trained(turbo, whole[:middle] + b"\xff\x5a" + whole[middle:], plan)
        assert (ours is None) == isinstance(theirs, str)


# -- operations ------------------------------------------------------------------------------------


def values_of(rng: random.Random, name: str, size: int) -> tuple[float, ...]:
    """Random values of an operation."""
    if name in ("brightness", "contrast", "saturation", "sharpness"):
        return (rng.choice((0.0, 1.0, rng.random(), 1 + rng.random(), rng.random() * 3, 1e6, -0.5)),)
    if name == "posterize":
        return (float(rng.randint(0, 8)),)
    if name == "solarize":
        return (rng.choice((rng.uniform(-5, 260), float(rng.randint(0, 256)))),)
    if name == "solarize_add":
        return (float(rng.randint(0, 128)),)
    if name == "affine":
        kind = rng.choice((0, 2, 3))
        colour = [float(rng.randint(0, 255)) for _ in range(3)]
        shape = rng.randrange(4)
        if shape == 0:  # a translation
            return (1.0, 0.0, rng.uniform(-size, size), 0.0, 1.0, rng.uniform(-9, 9), kind, *colour)
        if shape == 1:  # far away
            return (*(rng.uniform(-4e4, 4e4) for _ in range(6)), kind, *colour)
        near = [rng.uniform(0.6, 1.4), rng.uniform(-0.5, 0.5), rng.uniform(-9, 9)]
        return (*near, rng.uniform(-0.5, 0.5), rng.uniform(0.6, 1.4), rng.uniform(-9, 9), kind, *colour)
    if name in ("erase", "erase_noise"):
        width, height = rng.randint(1, size), rng.randint(1, size)
        box = (rng.randint(0, size - width), rng.randint(0, size - height), width, height)
        if name == "erase":
            return (*map(float, box), *(float(rng.randint(0, 255)) for _ in range(3)))
        means = (float(rng.randint(-(2**20), 2**24)) for _ in range(3))
        steps = (float(rng.randint(0, 2**16)) for _ in range(3))
        return (*map(float, box), float(rng.randrange(2**53)), *means, *steps)
    return ()


def images(size: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = np.array(picture(size, size, seed=seed))
    kind = seed % 5
    if kind == 1:
        image[...] = rng.integers(0, 256, 3)  # one colour
    elif kind == 2:
        image = rng.integers(0, 256, image.shape, np.uint8)
    elif kind == 3:
        image = (image // 64 * 30 + 40).astype(np.uint8)  # few levels
    return image


def test_every_operation_of_core_is_known() -> None:
    assert set(KINDS) == set(OPERATIONS) | {"branch", "add", "merge"}


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_operations_are_pillows(either: TurboDecoder, name: str) -> None:
    rng = random.Random(name)
    pixels = Pixels(load())
    for seed in range(60):
        size = rng.choice((1, 2, 3, 16, 17, 40))
        before = images(size, seed)
        operation = Operation(name=name, values=values_of(rng, name, size))
        out = before.copy()
        pixels.operate([operation], out)
        expected = np.asarray(operated(Image.fromarray(before), [operation]))
        assert np.array_equal(out, expected), (operation, size, np.abs(out.astype(int) - expected).max())


def test_sequences_of_operations(turbo: TurboDecoder) -> None:
    rng = random.Random(11)
    content = _png(picture(50, 60))
    for _ in range(150):
        operations: list[Operation] = []
        for _ in range(rng.randint(0, 4)):
            name = rng.choice(sorted(OPERATIONS))
            operations.append(Operation(name=name, values=values_of(rng, name, 24)))
        if rng.random() < 0.4:  # AugMix
            weights = [rng.randint(1, 20000) for _ in range(3)]
            operations.append(Operation(name="branch"))
            for weight in weights:
                for _ in range(rng.randint(1, 3)):
                    name = rng.choice(sorted(OPERATIONS))
                    operations.append(Operation(name=name, values=values_of(rng, name, 24)))
                operations.append(Operation(name="add", values=(float(weight),)))
            operations.append(Operation(name="merge", values=(float(65536 - sum(weights)),)))
        plan = replace(plan_of(rng, 60, 50, "antialias"), operations=tuple(operations))
        assert agree(*trained(turbo, content, plan), operations)


@pytest.mark.parametrize(
    "auto", ["rand-m9-mstd1-p1-n4", "randaugment-m30", "trivialaugment-wide", "augmix-m10-w4"]
)
def test_plans_as_policies_draw_them(turbo: TurboDecoder, auto: str) -> None:
    content = jpeg()
    for filter_name in ("nearest", "bilinear", "bicubic"):
        augment = AugmentConfig(
            auto=auto, auto_filter=filter_name, erasing=0.5, erasing_count=3,  # type: ignore[arg-type]
            erasing_mode="rand" if filter_name == "nearest" else "pixel",
        )  # fmt: skip
        for sample in range(25):
            rng = sample_rng(1, 0, sample)
            plan = train_plan(56, 40, PreprocessSpec(size=40, resize=44), augment, rng)
            assert agree(*trained(turbo, content, plan), plan)


def test_the_rest_of_a_plan_is_finished_by_core(program: Path) -> None:
    """Operations that the library does not know, or does otherwise on this machine."""
    turbo = TurboDecoder(lambda: Pixels(load()))
    turbo._kinds = frozenset(KINDS) - {"invert"}
    content = _png(picture(50, 60))
    operations = tuple(Operation(name=name) for name in ("equalize", "invert", "autocontrast"))
    plan = replace(plan_of(random.Random(0), 60, 50, "bicubic"), operations=operations)
    assert agree(*trained(turbo, content, plan), "plan")


@pytest.mark.parametrize(
    ("names", "count"),
    [
        ("brightness contrast", 2), ("brightness new contrast", 1), ("new", 0), ("", 0),
        ("branch invert add merge new", 4), ("invert branch new add merge", 1), ("add merge", 0),
        ("invert branch invert", 1), ("branch add merge branch new", 3),
    ],
)  # fmt: skip
def test_which_operations_are_known(names: str, count: int) -> None:
    operations = [Operation(name=name) for name in names.split()]
    assert known(operations, frozenset(KINDS)) == count


# -- arguments, threads, memory --------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"box": Box(left=-1, top=0, width=5, height=5)}, {"box": Box(left=0, top=0, width=61, height=5)},
        {"box": Box(left=0, top=0, width=0, height=5)}, {"box": Box(left=float("nan"), top=0, width=5, height=5)},
        {"operations": (Operation(name="posterize", values=(9.0,)),)},
        {"operations": (Operation(name="posterize", values=(1.0, 2.0)),)},
        {"operations": (Operation(name="affine", values=(float("inf"),) * 10),)},
        {"operations": (Operation(name="merge", values=(1.0,)),)},
        {"size": 9000},
    ],
)  # fmt: skip
def test_plans_that_cannot_be(program: Path, change: dict[str, object]) -> None:
    pixels = Pixels(load())
    pixels.open(_png(picture(50, 60)))
    plan = replace(plan_of(random.Random(0), 60, 50, "antialias"), **change)  # type: ignore[arg-type]
    with pytest.raises(Unread):
        pixels.train(plan, plan.operations, np.empty((plan.size, plan.size, 3), np.uint8))
    with pytest.raises(Unread, match="no image is opened"):
        pixels.evaluate(PreprocessSpec(size=8, resize=8), np.empty((8, 8, 3), np.uint8))


def test_where_pixels_cannot_be_written(turbo: TurboDecoder) -> None:
    content, spec = _png(picture(50, 60)), PreprocessSpec(size=8, resize=8)
    wide = np.zeros((8, 16, 3), np.uint8)
    fixed = np.zeros((8, 8, 3), np.uint8)
    fixed.flags.writeable = False
    for out in (wide, wide[:, ::2], wide[:, :8], np.zeros((8, 8, 3), np.int8), fixed):
        with pytest.raises(ValueError, match="writable C-contiguous"):
            turbo.evaluation(content, "x", spec, out, [])


def test_threads_at_once(turbo: TurboDecoder) -> None:
    files = [content for _, content in kinds_of_jpeg(97, 131, 12)] + [_png(picture(50, 60))]
    plans = [
        plan_of(random.Random(i), *Image.open(io.BytesIO(f)).size, FILTERS[i % 3])
        for i, f in enumerate(files)
    ]
    expected = [load_train_bytes(f, lambda w, h, p=p: p) for f, p in zip(files, plans, strict=True)]
    wrong: list[object] = []

    def work(first: int) -> None:
        try:
            out = np.empty((24, 24, 3), np.uint8)
            for round in range(40):
                i = (first + round) % len(files)
                turbo.training(memoryview(files[i]), "x", lambda w, h, i=i: plans[i], out, [])  # type: ignore[arg-type]
                if not np.array_equal(out, expected[i]):
                    wrong.append(i)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


_MEMORY = """
import resource, sys
import numpy as np
from resnext_cpp_infer.pixels import Pixels, load
from resnext_core.data.plan import Box, Plan
def kilobytes(path, pixels=Pixels(load())):
    header = pixels.open(open(path, "rb").read())
    box = Box(left=0, top=0, width=header.width, height=header.height)
    plan = Plan(box=box, sides=(1, 1), size=224, filter="bicubic", flip=False, scaled_decode=False)
    pixels.train(plan, (), np.empty((224, 224, 3), np.uint8))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = kilobytes(sys.argv[1])
print(kilobytes(sys.argv[2]) - before)
"""


def growth(folder: Path, height: int, width: int) -> int:
    """By how many kilobytes a process grows for an image of this size."""
    Image.new("RGB", (width, height), (90, 160, 30)).save(folder / "large.jpg")
    picture(60, 80).save(folder / "small.jpg")
    words = [sys.executable, "-c", _MEMORY, folder / "small.jpg", folder / "large.jpg"]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def test_a_large_image_is_never_there_as_a_whole(turbo: TurboDecoder, tmp_path: Path) -> None:
    assert growth(tmp_path, 6000, 4000) < 16 * 1024, "its pixels alone would take 72,000"


@pytest.mark.slow
def test_the_largest_image_is_bounded_in_memory(turbo: TurboDecoder, tmp_path: Path) -> None:
    assert growth(tmp_path, 13_000, 13_000) < 32 * 1024, "its pixels alone would take 507,000"
    content = io.BytesIO()
    Image.new("L", (20_000, 20_000)).save(content, "JPEG")
    with pytest.raises(NotSupported, match="20000 x 20000 is more than 178956970 pixels"):
        turbo.evaluation(content.getvalue(), "x", PreprocessSpec(), np.empty((224, 224, 3), np.uint8), [])


# -- where the library is not as it should be ------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a program and no library."""
    (tmp_path / "resnext-infer").write_text("#!/bin/sh\n")
    (tmp_path / "resnext-infer").chmod(0o755)
    monkeypatch.setenv("RESNEXT_INFER", str(tmp_path / "resnext-infer"))
    load.cache_clear()
    yield tmp_path
    load.cache_clear()


def test_a_library_that_is_missing(elsewhere: Path) -> None:
    answer = readiness()
    assert answer.state == "missing"
    assert answer.reason.endswith(f"{LIBRARY} is not built; build it with: resnext-run cpp build")
    with pytest.raises(BackendUnavailable):
        decoders._opened.__wrapped__()


def test_a_library_that_does_not_load(elsewhere: Path) -> None:
    (elsewhere / LIBRARY).write_text("no library")
    assert "does not load" in readiness().reason
    assert readiness().reason.endswith("run: resnext-run cpp build")


def test_a_library_of_another_interface(
    elsewhere: Path, build_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere / LIBRARY).symlink_to(build_dir / LIBRARY)
    assert readiness().state == "ready"
    load.cache_clear()
    monkeypatch.setattr(interface, "_ABI", 99)
    assert readiness().reason.endswith("has interface 1, not 99; run: resnext-run cpp build")


def test_pixels_that_differ_are_left_to_pillow(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a Pillow on another libjpeg."""
    from resnext_cpp_infer import comparison

    monkeypatch.setattr(comparison, "load_eval_bytes", lambda content, spec: np.zeros((40, 40, 3), np.uint8))
    turbo = TurboDecoder(lambda: Pixels(load()))
    turbo.compare()
    with pytest.raises(NotSupported):
        turbo.evaluation(jpeg(), "x", PreprocessSpec(size=8, resize=8), np.empty((8, 8, 3), np.uint8), [])
    monkeypatch.undo()
    (tmp_path / "x.jpg").write_bytes(jpeg())
    decoder = Decoder(name="other", summary="", probe=lambda: READY, open=lambda: turbo)
    with Loader(open_index(tmp_path), PreprocessSpec(size=8, resize=8), workers=0, decoder=decoder) as loader:
        list(loader.batches(2 * [Task.of(0, np.zeros(1, np.int64))]))
        assert loader.take_notes() == [
            "decoder turbo: it decodes a JPEG to other pixels than the installed Pillow; Pillow decodes every image"
        ]


def test_long_images_are_neither_wrong_nor_a_burden(turbo: TurboDecoder) -> None:
    """A side beyond 2^31 after the resize is left to Pillow, and one row takes the memory of one row."""
    out = np.empty((24, 24, 3), np.uint8)
    spec = PreprocessSpec(size=24, resize=256, mode="shorter-side")
    with pytest.raises(NotSupported, match="too long"):
        turbo.evaluation(png(Image.new("RGB", (9_000_000, 1))), "x", spec, out, [])
    content = png(Image.new("RGB", (2_000_000, 1), (7, 8, 9)))
    turbo.evaluation(content, "x", replace(spec, mode="squash", size=24, resize=24), out, [])
    assert np.array_equal(out, np.broadcast_to(np.array([7, 8, 9], np.uint8), out.shape))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_a_libjpeg_that_does_not_serve(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "libjpeg.so").write_text("no library")
    monkeypatch.setattr(interface, "pillow_module", lambda: tmp_path / "libjpeg.so")
    assert "libjpeg.so" in interface.use_pillows_jpeg(load())
    monkeypatch.setattr(interface, "pillow_module", lambda: program.parent / "libresnext_engine_null.so")
    assert interface.use_pillows_jpeg(load()) == "no libjpeg-turbo 1.5 or later"
    monkeypatch.undo()
    assert interface.use_pillows_jpeg(load()) == ""
    assert readiness().state == "ready"
