"""Images for tests: photographs that are none, and every odd file that a real data set has once."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cat")


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture with edges, slopes and noise: uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / (3 + c + seed % 5)) + np.cos(y / (5 + 2 * c)) for c in range(3)], axis=-1)
    values = 128 + 55 * waves + rng.normal(0, 8, (height, width, 3))
    values[height // 4 : height // 2, width // 3 : width // 2] = rng.integers(0, 256, 3)
    return values.clip(0, 255).astype(np.uint8)


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """:func:`pixels` as an image."""
    return Image.fromarray(pixels(height, width, seed))


def class_tree(root: Path, per_class: int = 4, side: int = 48, classes: tuple[str, ...] = CLASSES) -> Path:
    """Write `per_class` JPEG files of different shapes into a folder for each class; return `root`."""
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            image = picture(side + 7 * i, side + 5 * c + 3, seed=10 * c + i)
            image.save(root / name / f"{i:03}.jpg", quality=90)
    return root


def good_odd_images(folder: Path) -> dict[str, Path]:
    """Write readable files of every unusual kind; return their paths by kind."""
    folder.mkdir(parents=True, exist_ok=True)
    image, size = picture(40, 56), (56, 40)
    ramp16 = np.linspace(0, 65535, 40 * 56).reshape(40, 56).astype(np.uint16)
    rgba = np.dstack([pixels(40, 56), np.tile(np.arange(56, dtype=np.uint8) * 4, (40, 1))])
    palette = image.quantize(16)
    palette.info["transparency"] = bytes(range(16))
    files = {
        "cmyk.jpg": (image.convert("CMYK"), {}),
        "gray.jpg": (image.convert("L"), {}),
        "bilevel.png": (image.convert("1"), {}),
        "gray16.png": (Image.fromarray(ramp16), {}),
        "gray16.tif": (Image.fromarray(ramp16), {}),
        "alpha.png": (Image.fromarray(rgba), {}),
        "gray_alpha.png": (Image.fromarray(rgba).convert("LA"), {}),
        "palette.png": (palette, {"transparency": bytes(range(16))}),
        "webp.webp": (image, {"lossless": True}),
        "bmp.bmp": (image, {}),
        "ppm.ppm": (image, {}),
        "tiff.tif": (image, {"compression": "tiff_lzw"}),
        "wide.png": (Image.new("RGB", (20_000, 30), (10, 200, 30)), {}),
        "tiny.png": (Image.new("RGB", (1, 1), (1, 2, 3)), {}),
        "thread.png": (Image.new("RGB", (20_000, 1), (9, 8, 7)), {}),
        "progressive.jpg": (image, {"progressive": True}),
        "really_png.jpg": (image, {"format": "PNG"}),
    }
    for name, (picture_, options) in files.items():
        picture_.save(folder / name, **options)
    frames = [Image.new("RGB", size, color) for color in ("red", "lime", "blue")]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: rotate by 90 degrees
    image.save(folder / "turned.jpg", exif=turned)
    image.save(folder / "turned.png", exif=turned)
    image.save(folder / "turned.webp", exif=turned, lossless=True)
    return {path.name: path for path in sorted(folder.iterdir())}


def endless_image(path: Path) -> Path:
    """Write a file that keeps whoever reads it busy for days: a PPM whose header is a comment of 1 TB, all a hole.

    So a test can be certain which file a process reads.
    """
    with path.open("wb") as stream:
        stream.write(b"P6\n#")
        stream.truncate(1 << 40)
    return path


def bad_images(folder: Path) -> dict[str, Path]:
    """Write files that no one can read as images; return their paths by kind."""
    folder.mkdir(parents=True, exist_ok=True)
    picture(200, 300).save(folder / "whole.jpg")
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "whole.jpg").unlink()
    picture(200, 300).save(folder / "whole.png")
    whole_png = (folder / "whole.png").read_bytes()
    (folder / "whole.png").unlink()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "header_only.jpg").write_bytes(whole[:20])
    (folder / "truncated.png").write_bytes(whole_png[: len(whole_png) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("this is no photograph\n" * 100)
    (folder / "zeros.png").write_bytes(bytes(5000))
    (folder / "script.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n%%EOF\n")
    (folder / "pointer.jpg").write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{0:064d}\nsize 9\n"
    )
    (folder / "bomb.png").write_bytes(_png_bomb(20_000, 20_000))
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(folder / "float.tif")
    Image.fromarray(np.full((8, 8), 1 << 20, np.int32)).save(folder / "int32.tif")
    (folder / "folder.jpg").mkdir()
    return {path.name: path for path in sorted(folder.iterdir())} | {"missing.jpg": folder / "missing.jpg"}


def _png_bomb(width: int, height: int) -> bytes:
    """A valid PNG of 1-bit zeros: some kilobytes that decode to width · height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 7) // 8 + 1) * height, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
