"""EXIF orientation: read as Pillow reads it, applied before everything else, ignored where it is broken."""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from images import bad_images, good_odd_images, picture
from mutants import broken_anyhow, exif, exif_files, jpeg
from PIL import Image, ImageOps

from resnext_core.config import AugmentConfig
from resnext_core.data.decode import BadImage, decode, opened_bytes
from resnext_core.data.exif import BROKEN_EXIF, BrokenExif, exif_orientation, orientation, turned, upright
from resnext_core.data.index import open_index
from resnext_core.data.loader import Loader
from resnext_core.data.render import load_eval, load_eval_bytes, load_train
from resnext_core.data.sampler import Task, sample_rng
from resnext_core.model.preprocess import PreprocessSpec, eval_pixels

FORMATS = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}
APPLY = PreprocessSpec(size=24, resize=28, mode="shorter-side", orientation="apply")


def stored(form: str, value: int, height: int = 41, width: int = 60) -> bytes:
    """An image file with an orientation, as Pillow writes it."""
    data, stream = Image.Exif(), io.BytesIO()
    data[0x112] = value
    picture(height, width).save(stream, form, exif=data, **FORMATS[form])
    return stream.getvalue()


def read(content: bytes, minimum: int | None = None, *, oriented: bool = True) -> Image.Image:
    """The whole image, turned as its EXIF data says."""
    sides = None if minimum is None else (minimum, minimum)
    with opened_bytes(content, "x") as source:
        return decode(source, "x", sides, None, upright(content) if oriented else 1)[0]


def pillows(content: bytes) -> Image.Image:
    """What Pillow makes of it."""
    with Image.open(io.BytesIO(content)) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("value", range(10))
def test_images_are_turned_as_pillow_turns_them(tmp_path: Path, form: str, value: int) -> None:
    content, path = stored(form, value), tmp_path / "x"
    path.write_bytes(content)
    expected = pillows(content)
    got = read(content)
    assert got.size == expected.size
    assert np.array_equal(got, expected)
    for mode in ("squash", "shorter-side"):
        spec = PreprocessSpec(size=24, resize=28, mode=mode, filter="bicubic", orientation="apply")  # type: ignore[arg-type]
        assert np.array_equal(load_eval(path, spec), eval_pixels(expected, spec))
        assert np.array_equal(load_eval_bytes(content, spec), eval_pixels(expected, spec))
    if form != "TIFF":  # its own tag is always applied
        with Image.open(path) as image:
            assert np.array_equal(read(content, oriented=False), image.convert("RGB"))


@pytest.mark.parametrize("value", range(1, 9))
def test_a_crop_is_drawn_from_the_turned_image(tmp_path: Path, value: int) -> None:
    path, straight = tmp_path / "x.png", tmp_path / "straight.png"
    path.write_bytes(stored("PNG", value))
    pillows(path.read_bytes()).save(straight)
    for sample in range(8):
        for augment in (AugmentConfig(), AugmentConfig(ratio=(0.3, 0.4), scale=(0.2, 0.9))):
            crops = [load_train(p, APPLY, augment, sample_rng(1, 0, sample)) for p in (path, straight)]
            assert np.array_equal(*crops), sample


@pytest.mark.parametrize("value", [3, 5, 6, 8])
def test_scaled_decoding_keeps_the_sides_that_the_turned_image_needs(tmp_path: Path, value: int) -> None:
    """The crop is narrow, so that the sides that must be kept differ by a factor of 6."""
    smooth = picture(101, 151).resize((1200, 800), Image.Resampling.BICUBIC)
    data = Image.Exif()
    data[0x112] = value
    smooth.save(tmp_path / "x.jpg", quality=95, exif=data)
    narrow = {"scale": (0.1, 0.2), "ratio": (0.15, 0.2), "color_jitter": (0.0, 0.0, 0.0)}
    for sample in range(6):
        views = [
            load_train(
                tmp_path / "x.jpg",
                APPLY,
                AugmentConfig(scaled_decode=scaled, **narrow),
                sample_rng(4, 0, sample),
            ).astype(int)
            for scaled in (False, True)
        ]
        assert abs(views[0] - views[1]).mean() < 4, sample
    whole, half = (read((tmp_path / "x.jpg").read_bytes(), minimum).size for minimum in (None, 400))
    assert whole == ((800, 1200) if value >= 5 else (1200, 800))
    assert half == (whole[0] // 2, whole[1] // 2)


@pytest.mark.filterwarnings("ignore")  # Pillow's, about broken EXIF
def test_every_form_of_exif_is_read_as_pillow_reads_it() -> None:
    """What Pillow reads and the policy does not: other types than SHORT and LONG, several values, XMP, BigTIFF."""
    files, applied, broken, compared = exif_files(), 0, 0, 0
    for name, content in files.items():
        try:
            value = orientation(content)
        except BrokenExif:
            broken += 1
            value = 1
        image = read(content)
        assert np.array_equal(image, turned(read(content, oriented=False), value)), name
        applied += value > 1
        if any(part in name for part in ("kind", "count", "magic002b", "xmp", "-two.", "-crc.", "-cut.")):
            continue
        with suppress(OSError, SyntaxError, struct.error):  # some broken EXIF ends Pillow
            assert np.array_equal(image, pillows(content)), name
            compared += 1
    assert applied > 60
    assert compared > 100
    assert broken > 60


def test_a_broken_orientation_is_a_remark_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    for name, why in {
        "exif-cut5.jpg": "it has no TIFF header", "exif-cut12.jpg": "it is truncated", "exif-at60000.jpg": None,
        "exif-kind5.jpg": "its orientation has type 5 and count 1",
        "exif-value9-MM-3.jpg": "its orientation is 9, not 1 to 8",
        "exif-crc.png": "checksum mismatch in chunk eXIf", "exif-value0-II-3.png": None, "exif-xmp.jpg": None,
    }.items():  # fmt: skip
        path.write_bytes(exif_files()[name])
        remarks: list[str] = []
        load_eval(path, APPLY, remarks)
        assert remarks == ([f"{BROKEN_EXIF}: {why}"] if why else []), name
        load_train(path, APPLY, AugmentConfig(), sample_rng(0, 0, 0), remarks := [])
        assert len(remarks) == (why is not None)
        load_eval(path, PreprocessSpec(size=24, resize=28), remarks := [])
        assert remarks == []


def test_damaged_exif_never_raises_anything_else() -> None:
    whole = exif(6, before=3)
    for name, data in broken_anyhow("exif", whole, 400, 1):
        with suppress(BrokenExif):
            assert 1 <= exif_orientation(data) <= 8, name
    for name, data in broken_anyhow("jpeg", jpeg(exif=b"Exif\0\0" + whole)[:300], 200, 2):
        with suppress(BrokenExif):
            assert 1 <= orientation(data) <= 8, name


@pytest.mark.filterwarnings("error")
def test_every_odd_and_bad_image_with_every_filter_and_orientation(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for kind in ("antialias", "bicubic", "plain"):
        spec = PreprocessSpec(size=32, resize=36, filter=kind, orientation="apply")  # type: ignore[arg-type]
        for name, path in good_odd_images(tmp_path / "good").items():
            assert load_eval(path, spec).shape == (32, 32, 3), name
            assert load_train(path, spec, AugmentConfig(), sample_rng(1, 0, 3)).shape == (32, 32, 3), name
        for path in bad_images(tmp_path / "bad").values():
            with pytest.raises(BadImage):
                load_eval(path, spec)
        for path in (tmp_path / "bad").glob("folder.jpg"):
            path.rmdir()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_turns_images_and_passes_remarks_on(tmp_path: Path, workers: int) -> None:
    for name, content in {
        "a/0.jpg": stored("JPEG", 6), "a/1.png": stored("PNG", 7), "b/0.webp": stored("WEBP", 3),
        "b/1.jpg": exif_files()["exif-value9-II-3.jpg"],
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    index, augment = open_index(tmp_path), AugmentConfig()
    order = np.arange(4)
    for how in (None, augment):
        with Loader(index, APPLY, how, seed=3, workers=workers) as loader:
            (batch,) = loader.batches([Task.of(1, order)])
            for row, sample in enumerate(batch.index.tolist()):
                path = index.path(sample)
                expected = (
                    load_eval(path, APPLY)
                    if how is None
                    else load_train(path, APPLY, how, sample_rng(3, 1, sample))
                )
                assert np.array_equal(batch.images[row], expected), path
            assert any(BROKEN_EXIF in note for note in loader.take_notes()), "the remark is lost"
