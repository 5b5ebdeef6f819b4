"""The same images as a folder, a list, tar shards and a packed file, for tests of sources."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from images import picture

from resnext_core.data.index import Index, open_index
from resnext_core.data.packing import pack


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    """Write a tar archive of named contents, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1_700_000_000
            archive.addfile(info, io.BytesIO(content))
    return path


def all_sources(index: Index, folder: Path, wanted: Sequence[str]) -> dict[str, Path]:
    """Write the files of `index`, a folder of class folders, into `folder` in the forms that are wanted."""
    names = list(index.paths)
    contents = [(index.root / name).read_bytes() for name in names]
    said = [index.classes[label] for label in index.labels]
    third = -(-len(names) // 3)
    parts = [range(k * third, min((k + 1) * third, len(names))) for k in range(3)]
    forms = {"folder": Path(index.root)}
    if "list" in wanted:
        forms["list"] = folder / "list/all.txt"
        forms["list"].parent.mkdir(parents=True)
        files = [os.path.relpath(index.root / name, folder / "list") for name in names]
        forms["list"].write_text("".join(f"{file} {c}\n" for file, c in zip(files, said, strict=True)))
    if "class folders in shards" in wanted:
        for k, part in enumerate(parts):
            write_tar(folder / f"folders/a-{k:04}.tar", [(f"./{names[i]}", contents[i]) for i in part])
        forms["class folders in shards"] = folder / "folders"
        forms["a pattern"] = folder / "folders/a-{0000..0002}.tar"
    if "webdataset" in wanted:
        for k, part in enumerate(parts):
            pairs = [((f"{i:06}.cls", said[i].encode()), (f"{i:06}.jpg", contents[i])) for i in part]
            members = [member for pair in pairs for member in pair]
            write_tar(folder / f"webdataset/b-{k:04}.tar", members, tarfile.USTAR_FORMAT)
        forms["webdataset"] = folder / "webdataset/b-*.tar"
    if "one tar" in wanted:
        members = list(zip(names, contents, strict=True))
        forms["one tar"] = write_tar(folder / "single.tar", members, tarfile.GNU_FORMAT)
    for name, packed in (("packed", index), ("packed from shards", None)):
        if name in wanted:
            forms[name] = folder / f"{name}.pack"
            assert pack(packed or open_index(folder / "webdataset"), forms[name], None, workers=1) is not None
    return forms


def bad_kinds() -> dict[str, bytes]:
    """Return the contents of files that are no images, of twelve kinds, all of them small."""
    jpeg, png, gif = io.BytesIO(), io.BytesIO(), io.BytesIO()
    picture(60, 80).save(jpeg, "JPEG")
    picture(30, 40).save(png, "PNG")
    picture(30, 40).save(gif, "GIF")
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    huge = ((b"IHDR", header), (b"IDAT", b"x"), (b"IEND", b""))
    return {
        "empty.jpg": b"",
        "header_only.jpg": jpeg.getvalue()[:20],
        "cut.jpg": jpeg.getvalue()[: len(jpeg.getvalue()) // 2],
        "cut.png": png.getvalue()[: len(png.getvalue()) // 2],
        "cut.gif": gif.getvalue()[:30],
        "checksum.png": png.getvalue()[:-20] + b"????" + png.getvalue()[-16:],
        "huge.png": b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in huge),
        "text.jpg": b"this is no photograph\n" * 20,
        "page.jpg": b"<!doctype html><html><body>404</body></html>",
        "zeros.png": bytes(500),
        "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n%%EOF\n",
        "pointer.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 9\n" % 0,
    }


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
