"""Decoding: what each odd file becomes, and that each bad one is one line."""

from __future__ import annotations

import io
import os
import socket
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from images import bad_images, good_odd_images, picture, pixels
from mutants import (
    HEIGHT,
    PNG_TYPES,
    SIGNATURE,
    WIDTH,
    broken_anyhow,
    chunk,
    join,
    jpeg_kinds,
    png,
    png16,
    segment,
    segments,
    split,
)
from PIL import Image

from resnext_core.config import AugmentConfig
from resnext_core.data import decode
from resnext_core.data.decode import BadImage, read_image
from resnext_core.data.depth import DARK_16_BITS
from resnext_core.data.jpeg import without_metadata
from resnext_core.data.render import load_eval, load_train
from resnext_core.data.sampler import sample_rng
from resnext_core.data.scan import examine
from resnext_core.data.sources.files import FileReader
from resnext_core.errors import DataError
from resnext_core.model.preprocess import PreprocessSpec


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return good_odd_images(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return bad_images(tmp_path_factory.mktemp("bad"))


def read(path: Path) -> np.ndarray:
    return np.asarray(read_image(path))


@pytest.mark.filterwarnings("error")
def test_every_odd_image_becomes_rgb(good: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    spec = PreprocessSpec(size=32, resize=36)
    for name, path in good.items():
        image = read_image(path)
        assert image.mode == "RGB", name
        for mode in ("squash", "shorter-side"):
            for kind in ("antialias", "bicubic", "plain"):
                view = PreprocessSpec(size=32, resize=36, mode=mode, filter=kind)
                assert load_eval(path, view).shape == (32, 32, 3), (name, mode, kind)
                assert load_train(path, view, AugmentConfig(), sample_rng(1, 0, 3)).shape == (32, 32, 3), name
        assert load_eval(path, spec).dtype == np.uint8
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("error")
def test_every_bad_image_is_one_line(bad: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    for name, path in bad.items():
        with pytest.raises(BadImage) as caught:
            read_image(path)
        message = str(caught.value)
        assert isinstance(caught.value, DataError)
        assert str(path) in message, name
        assert caught.value.reason, name
        assert "\n" not in message, name
        with pytest.raises(BadImage):
            load_train(path, PreprocessSpec(), AugmentConfig(), sample_rng(0, 0, 0))
    assert capfd.readouterr() == ("", "")


def test_reasons(bad: dict[str, Path]) -> None:
    def reason(name: str) -> str:
        with pytest.raises(BadImage) as caught:
            read_image(bad[name])
        return caught.value.reason

    assert reason("empty.jpg") == "the file is empty"
    assert "not an image of a known format (JPEG, PNG" in reason("text.jpg")
    assert reason("pointer.jpg") == "a Git LFS pointer, not an image; run git lfs pull"
    assert "not an image" in reason("script.jpg")  # PostScript is never tried
    assert "truncated" in reason("truncated.jpg")
    assert reason("missing.jpg") == "No such file or directory"
    assert "directory" in reason("folder.jpg").lower()
    assert "pixels" in reason("bomb.png")
    assert "16 bits" in reason("int32.tif")


def test_size_bound_does_not_depend_on_pillow_settings(
    tmp_path: Path, bad: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(BadImage, match="20000 x 20000 is more than 178956970 pixels"):
        read_image(bad["bomb.png"])
    monkeypatch.setattr(decode, "MAX_PIXELS", 99)
    picture(10, 10).save(tmp_path / "x.png")
    with pytest.raises(BadImage, match="10 x 10 is more than 99"):
        read_image(tmp_path / "x.png")


def test_16_bits_are_scaled_not_clipped(good: dict[str, Path]) -> None:
    ramp = np.linspace(0, 65535, 40 * 56).reshape(40, 56).astype(np.uint16)
    for name in ("gray16.png", "gray16.tif"):
        got = read(good[name])
        assert np.array_equal(got, np.repeat((ramp >> 8).astype(np.uint8)[..., None], 3, axis=2)), name
    assert read(good["gray16.png"]).min() == 0
    assert read(good["gray16.png"]).max() == 255


def test_alpha_is_dropped_and_gray_repeated(good: dict[str, Path]) -> None:
    assert np.array_equal(read(good["alpha.png"]), pixels(40, 56))
    for name in ("gray.jpg", "bilevel.png", "gray_alpha.png"):
        got = read(good[name])
        assert (got == got[..., :1]).all(), name
        assert got.std() > 10, name


def test_palette_transparency_changes_no_colour(good: dict[str, Path]) -> None:
    assert np.array_equal(read(good["palette.png"]), np.asarray(picture(40, 56).quantize(16).convert("RGB")))


def test_first_frame_orientation_and_content_not_suffix(good: dict[str, Path]) -> None:
    assert (read(good["animated.gif"]) == (255, 0, 0)).all()
    assert read(good["turned.jpg"]).shape == (40, 56, 3)
    assert np.array_equal(read(good["really_png.jpg"]), pixels(40, 56))
    for name in ("webp.webp", "bmp.bmp", "ppm.ppm", "tiff.tif"):
        assert np.array_equal(read(good[name]), pixels(40, 56)), name


def test_cmyk_looks_like_the_original(good: dict[str, Path], tmp_path: Path) -> None:
    got = read(good["cmyk.jpg"]).astype(float)
    assert abs(got - pixels(40, 56)).mean() < 12  # an inverted one would be off by about 100


@pytest.mark.parametrize(
    ("minimum", "expected"),
    [
        (None, (300, 201)),
        (201, (300, 201)),
        (101, (300, 201)),
        (100, (150, 101)),
        (50, (75, 51)),
        (3, (38, 26)),
    ],
)
def test_scaled_decoding_keeps_the_minimum(
    tmp_path: Path, minimum: int | None, expected: tuple[int, int]
) -> None:
    picture(201, 300).save(tmp_path / "x.jpg")
    image = read_image(tmp_path / "x.jpg", minimum=minimum)
    assert image.size == expected
    assert minimum is None or min(image.size) >= minimum
    whole = read_image(tmp_path / "x.jpg").reduce(round(300 / image.width))
    assert abs(np.asarray(image).astype(float) - np.asarray(whole)).mean() < 6


def test_a_programming_error_in_the_caller_is_not_a_bad_image(tmp_path: Path) -> None:
    picture(20, 20).save(tmp_path / "x.png")
    with pytest.raises(AttributeError):
        load_eval(tmp_path / "x.png", None)  # type: ignore[arg-type]


# -- metadata and checksums ----------------------------------------------------------------------


def chunks_of(tmp_path: Path) -> list[tuple[bytes, bytes]]:
    picture(40, 56).save(tmp_path / "plain.png")
    return split((tmp_path / "plain.png").read_bytes())


@pytest.mark.parametrize("flip", [0, 1], ids=["sound", "wrong-checksum"])
def test_metadata_of_a_png_never_matters(tmp_path: Path, flip: int) -> None:
    first, *rest = chunks_of(tmp_path)
    bomb = zlib.compress(bytes(3 << 20))
    for kind, data in {
        b"iCCP": b"name\0\0" + bomb,
        b"zTXt": b"Comment\0\0" + bomb,
        b"iTXt": b"Comment\0\1\0\0\0" + bomb,
        b"tEXt": b"Comment\0" + bytes(3 << 20),
        b"eXIf": bytes(3 << 20),
        b"tRNS": b"broken",
        b"acTL": b"",
        b"fdAT": bytes(9),
    }.items():
        odd = chunk(kind, data, flip=flip)
        body, end = b"".join(chunk(*c) for c in rest[:-1]), chunk(*rest[-1])
        for content in (
            join([first]) + odd + body + end,
            join([first]) + body + odd + end,
            join([first]) + body + odd[:20],
        ):
            path = tmp_path / "odd.png"
            path.write_bytes(content)
            assert np.array_equal(read(path), pixels(40, 56)), kind


def test_metadata_is_not_inflated(tmp_path: Path) -> None:
    first, *rest = chunks_of(tmp_path)
    bomb = zlib.compress(bytes(64 << 20))
    path = tmp_path / "bomb.png"
    path.write_bytes(join([first, (b"iCCP", b"name\0\0" + bomb), (b"zTXt", b"a\0\0" + bomb), *rest]))
    tracemalloc.start()
    try:
        assert np.array_equal(read(path), pixels(40, 56))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"IDAT"])
def test_a_wrong_checksum_of_a_critical_chunk_is_the_reason(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(SIGNATURE + b"".join(chunk(*c, flip=c[0] == kind) for c in png(3, 8)))
    with pytest.raises(BadImage) as caught:
        read_image(path)
    assert caught.value.reason == f"checksum mismatch in chunk {kind.decode()}"


@pytest.mark.parametrize("interlace", [0, 1])
@pytest.mark.parametrize("kind", [0, 2, 3])
def test_rows_that_are_not_there_are_no_black_rows(tmp_path: Path, kind: int, interlace: int) -> None:
    header, *palette, (_, data), end = png(kind, 8, interlace=interlace)
    data = zlib.decompress(data)
    path = tmp_path / "few.png"
    last = WIDTH * PNG_TYPES[kind][1] + 1
    for rows in (data[:-last], data[: last * 3], b""):
        path.write_bytes(join([header, *palette, (b"IDAT", zlib.compress(rows)), end]))
        with pytest.raises(BadImage):
            read_image(path)
    black = join([header, *palette, (b"IDAT", zlib.compress(data[:-last] + bytes(last))), end])
    path.write_bytes(black)
    assert read(path).shape == (HEIGHT, WIDTH, 3)


def test_a_png_of_many_pieces_is_that_of_one(tmp_path: Path) -> None:
    header, (_, data), end = png(2, 8)
    path = tmp_path / "pieces.png"
    path.write_bytes(join([header, (b"IDAT", data), end]))
    whole = read(path)
    for size in (1, 7, 64, 1000):
        path.write_bytes(
            join([header, *((b"IDAT", data[i : i + size]) for i in range(0, len(data), size)), end])
        )
        assert np.array_equal(read(path), whole)
        spoilt = data[:-1] + bytes([data[-1] ^ 1])  # the checksum within the compressed stream
        path.write_bytes(
            join([header, *((b"IDAT", spoilt[i : i + size]) for i in range(0, len(data), size)), end])
        )
        with pytest.raises(BadImage):
            read_image(path)


def test_a_jpeg_loses_nothing_but_its_metadata(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    for name, content in jpeg_kinds():
        parts = segments(content)
        path.write_bytes(content)
        plain = read(path)
        odd = [segment(0xE1, b"Exif\0\0" + bytes(65000))] * 3 + [segment(0xE2, b"ICC_PROFILE\0"), b"\xff\xff"]
        path.write_bytes(b"".join([parts[0], *odd, *parts[1:-1], *odd, parts[-1]]))
        assert np.array_equal(read(path), plain), name
        kept = without_metadata(path.read_bytes())
        assert len(kept) <= len(content), name
        assert without_metadata(kept) == kept, name


# -- 16 bits -------------------------------------------------------------------------------------


def reading(path: Path) -> tuple[np.ndarray, list[str]]:
    remarks: list[str] = []
    return np.asarray(read_image(path, remarks=remarks)), remarks


@pytest.mark.parametrize("interlace", [0, 1])
@pytest.mark.parametrize("kind", [0, 2, 4, 6])
def test_bits_that_a_png_says_to_use_are_scaled(tmp_path: Path, kind: int, interlace: int) -> None:
    path, samples = tmp_path / "x.png", PNG_TYPES[kind][1]
    values = np.random.default_rng(kind).integers(0, 4096, (HEIGHT, WIDTH, samples))
    colours = values[..., :3] if samples >= 3 else np.repeat(values[..., :1], 3, axis=-1)

    def got(shown: np.ndarray, significant: int | None) -> tuple[np.ndarray, list[str]]:
        path.write_bytes(png16(kind, shown, significant, interlace=interlace))
        return reading(path)

    image, remarks = got(values, 12)
    assert np.array_equal(image, colours >> 4)
    assert remarks == []
    image, remarks = got(values << 4, 12)  # as the specification wants them
    assert np.array_equal(image, colours >> 4)
    assert remarks == []
    image, remarks = got(values, None)
    assert np.array_equal(image, colours >> 8)
    assert remarks == [DARK_16_BITS]
    image, remarks = got(values, 10)  # it says less than it uses
    assert np.array_equal(image, colours >> 8)
    assert remarks == [DARK_16_BITS]
    image, remarks = got(values % 256 << 4, 12)  # dark, and scaled as it should be
    assert np.array_equal(image, (colours % 256 << 4) >> 8)
    assert remarks == []
    assert got(values * 16 + 15, None)[1] == []
    assert got(np.zeros_like(values), None)[1] == []


def tiff(values: np.ndarray, bits: int, most: int | None = None, *, deflate: bool = False) -> bytes:
    """A little-endian TIFF of (H, W) or (H, W, 3) values in 12 (packed) or 16 bits, `most` as MaxSampleValue."""
    height, width = values.shape[:2]
    samples = 3 if values.ndim == 3 else 1
    data = values.astype("<u2").tobytes()
    if bits == 12:
        even, odd = values[:, ::2], values[:, 1::2]
        data = np.stack([even >> 4, (even & 15) << 4 | odd >> 8, odd & 255], -1).astype(np.uint8).tobytes()
    if deflate:
        data = zlib.compress(data)
    data += bytes(len(data) % 2)
    tags = {
        256: [width],
        257: [height],
        258: [bits] * samples,
        259: [8 if deflate else 1],
        262: [2 if samples == 3 else 1],
    }
    tags |= {273: [8], 277: [samples], 278: [height], 279: [len(data)]} | (
        {281: [most] * samples} if most else {}
    )
    table, more = struct.pack("<H", len(tags)), b""
    at = 8 + len(data)
    for tag, numbers in tags.items():
        short = len(numbers) == 1
        value = struct.pack("<HH", numbers[0], 0) if short else struct.pack("<I", at + len(more))
        table += struct.pack("<HHI", tag, 3, len(numbers)) + value
        more += b"" if short else struct.pack(f"<{len(numbers)}H", *numbers)
    return b"II*\0" + struct.pack("<I", at + len(more)) + data + more + table + bytes(4)


def test_bits_that_a_tiff_says_to_use_are_scaled(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    gray = np.random.default_rng(1).integers(0, 4096, (10, 12))
    colour = np.random.default_rng(2).integers(0, 4096, (10, 12, 3))

    def got(content: bytes) -> tuple[np.ndarray, list[str]]:
        path.write_bytes(content)
        return reading(path)

    for deflate in (False, True):  # Pillow's own decoder, and libtiff's
        image, remarks = got(tiff(gray, 16, 4095, deflate=deflate))
        assert np.array_equal(image[..., 0], gray >> 4)
        assert remarks == []
        image, remarks = got(tiff(gray, 16, 1023, deflate=deflate))  # not true: a value is larger
        assert np.array_equal(image[..., 0], gray >> 8)
        assert remarks == [DARK_16_BITS]
        image, remarks = got(
            tiff(gray * 5, 16, 20475, deflate=deflate)
        )  # no number of bits, but a largest value
        assert np.array_equal(image[..., 0], gray * 5 >> 8)
        assert remarks == []
        image, remarks = got(tiff(colour, 16, deflate=deflate))
        assert np.array_equal(image, colour >> 8)
        assert remarks == [DARK_16_BITS]
        image, remarks = got(tiff(colour, 16, 4095, deflate=deflate))
        assert np.array_equal(image, colour >> 4)
        assert remarks == []
    image, remarks = got(tiff(gray, 12))
    assert np.array_equal(image[..., 0], gray >> 4)
    assert remarks == []


def test_pixels_of_16_bits_are_no_samples_of_16_bits(tmp_path: Path) -> None:
    """A BMP of 5, 6 and 5 bits a pixel is called ;16 by Pillow, too."""
    path = tmp_path / "x.bmp"
    head = struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, 16, 3, 4, 0, 0, 0, 0) + struct.pack(
        "<III", 0xF800, 0x7E0, 0x1F
    )
    path.write_bytes(b"BM" + struct.pack("<IHHI", 70, 0, 0, 66) + head + struct.pack("<HH", 0, 0x0821))
    image, remarks = reading(path)
    assert image.tolist() == [[[0, 0, 0], [8, 4, 8]]]
    assert remarks == []


# -- what is opened, and what is printed ---------------------------------------------------------


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "device.png").symlink_to(os.devnull)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.png"))
        for name, kind in {
            "pipe": "a pipe",
            "folder": "a directory",
            "device": "a device",
            "socket": "a socket",
        }.items():
            path = tmp_path / f"{name}.png"
            with pytest.raises(BadImage) as caught:
                read_image(path)
            assert caught.value.reason == f"{kind}, not a regular file"
            with pytest.raises(BadImage):
                load_train(path, PreprocessSpec(), AugmentConfig(), sample_rng(0, 0, 0))
            assert (
                examine(str(path), FileReader(), os.fsencode(path), {}).error == f"{kind}, not a regular file"
            )


def test_a_broken_file_of_a_known_format_is_told_as_that(tmp_path: Path) -> None:
    whole = io.BytesIO()
    for form, options in {"GIF": {}, "TIFF": {"compression": "tiff_lzw"}, "WEBP": {}, "JPEG": {}}.items():
        whole.seek(0)
        whole.truncate()
        picture(40, 56).save(whole, form, **options)
        path = tmp_path / f"x.{form.lower()}"
        path.write_bytes(whole.getvalue()[:40])
        with pytest.raises(BadImage) as caught:
            read_image(path)
        assert caught.value.reason.startswith(f"a broken {form}"), caught.value.reason


def test_decoders_print_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """libtiff prints a line for each of these, without a name of a file; Pillow logs some."""
    refused = 0
    for form in ("group4", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        whole = io.BytesIO()
        picture(60, 70).convert("1" if form == "group4" else "RGB").save(whole, "TIFF", compression=form)
        for name, content in broken_anyhow(form, whole.getvalue(), 12, 1):
            path = tmp_path / f"{name}.tif"
            path.write_bytes(content)
            try:
                read_image(path)
            except BadImage:
                refused += 1
    assert refused > 20
    assert capfd.readouterr() == ("", "")
