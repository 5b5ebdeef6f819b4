"""Files of one picture that differ in how they are stored and in how they are damaged: PNG and JPEG by structure."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from images import picture

Chunk = tuple[bytes, bytes]
SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEIGHT, WIDTH = 21, 26
#: Left, top, and steps across and down of the passes of Adam7.
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
#: Colour types of a PNG, the depths each may have, and its samples a pixel.
PNG_TYPES = {
    0: ((1, 2, 4, 8, 16), 1),
    2: ((8, 16), 3),
    3: ((1, 2, 4, 8), 1),
    4: ((8, 16), 2),
    6: ((8, 16), 4),
}


def chunk(kind: bytes, data: bytes = b"", *, flip: int = 0, length: int | None = None) -> bytes:
    """A chunk; `flip` spoils its checksum, `length` is written in place of the true one."""
    crc = zlib.crc32(kind + data) ^ flip
    return struct.pack(">I", len(data) if length is None else length) + kind + data + struct.pack(">I", crc)


def join(chunks: Sequence[Chunk]) -> bytes:
    """The PNG of `chunks`."""
    return SIGNATURE + b"".join(chunk(*c) for c in chunks)


def split(data: bytes) -> list[Chunk]:
    """The chunks of a whole PNG."""
    found, at = [], 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def header(kind: int, depth: int, *, height: int = HEIGHT, width: int = WIDTH, interlace: int = 0) -> bytes:
    """The data of IHDR."""
    return struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlace)


def rows(kind: int, depth: int, seed: int = 0, *, interlace: int = 0) -> bytes:
    """Filtered rows of random samples, all five filters, of the passes of Adam7 with `interlace`."""
    rng = np.random.default_rng(seed)
    bits, data = depth * PNG_TYPES[kind][1], b""
    for left, top, across, down in PASSES if interlace else ((0, 0, 1, 1),):
        width, height = -(-(WIDTH - left) // across), -(-(HEIGHT - top) // down)
        if width > 0 and height > 0:
            for y in range(height):
                data += bytes([y % 5]) + rng.integers(0, 256, (width * bits + 7) // 8, np.uint8).tobytes()
    return data


def png(kind: int, depth: int, seed: int = 0, *, interlace: int = 0) -> list[Chunk]:
    """The chunks of a PNG of random pixels in a colour type and depth."""
    palette = np.random.default_rng(seed).integers(0, 256, 3 * min(1 << depth, 256), np.uint8).tobytes()
    return [
        (b"IHDR", header(kind, depth, interlace=interlace)),
        *([(b"PLTE", palette)] if kind == 3 else []),
        (b"IDAT", zlib.compress(rows(kind, depth, seed, interlace=interlace))),
        (b"IEND", b""),
    ]


def png16(kind: int, values: np.ndarray, significant: int | None, *, interlace: int = 0) -> bytes:
    """A PNG of 16-bit `values` (H, W, samples), with an sBIT chunk where `significant` is a number."""
    step = [values] if not interlace else [
        values[top::down, left::across] for left, top, across, down in PASSES
    ]  # fmt: skip
    data = b"".join(b"\0" + row.astype(">u2").tobytes() for part in step for row in part if row.size)
    size = header(kind, 16, height=values.shape[0], width=values.shape[1], interlace=interlace)
    said = [(b"sBIT", bytes([significant] * values.shape[2]))] if significant is not None else []
    return join([(b"IHDR", size), *said, (b"IDAT", zlib.compress(data)), (b"IEND", b"")])


def png_types() -> Iterator[tuple[str, bytes]]:
    """Sound PNGs: every colour type and depth, plain and interlaced, with and without transparency and sBIT."""
    for kind, (depths, samples) in PNG_TYPES.items():
        for depth in depths:
            for interlace in (0, 1):
                chunks = png(kind, depth, interlace=interlace)
                name = f"type{kind}-{depth}{'-interlaced' * interlace}"
                yield name, join(chunks)
                clear = {0: b"\0\1", 2: b"\0\1" * 3, 3: bytes(range(0, 1 << min(depth, 3)))}.get(kind)
                if clear is not None:
                    yield f"{name}-tRNS", join([*chunks[:-2], (b"tRNS", clear), *chunks[-2:]])
                said = bytes([min(depth, 5)] * (3 if kind == 3 else samples))
                yield f"{name}-sBIT", join([chunks[0], (b"sBIT", said), *chunks[1:]])
                if depth == 16:
                    twelve = np.random.default_rng(kind).integers(0, 4096, (HEIGHT, WIDTH, samples))
                    for significant in (None, 12, 10):
                        yield (
                            f"{name}-twelve-{significant}",
                            png16(kind, twelve, significant, interlace=interlace),
                        )
                    yield f"{name}-twelve-scaled", png16(kind, twelve << 4, 12, interlace=interlace)


def png_damage() -> Iterator[tuple[str, bytes]]:
    """PNGs of wrong checksums, lengths, orders, and metadata, by chunk."""
    for form in (2, 3):
        base = png(form, 8)
        ihdr, idat, iend = base[0], base[-2], base[-1]
        plte = base[1:-2]
        extra = [
            (b"tEXt", b"Comment\0text"), (b"zTXt", b"Comment\0\0" + zlib.compress(b"text")),
            (b"iTXt", b"Comment\0\0\0\0\0text"), (b"iCCP", b"name\0\0" + zlib.compress(bytes(300))),
            (b"eXIf", b"MM\0*\0\0\0\x08\0\0"), (b"gAMA", struct.pack(">I", 45455)), (b"cHRM", bytes(32)),
            (b"sRGB", b"\0"), (b"pHYs", bytes(9)), (b"tIME", bytes(7)), (b"bKGD", bytes(6)), (b"hIST", bytes(4)),
            (b"sBIT", b"\5\5\5"), (b"tRNS", bytes(6)), (b"acTL", struct.pack(">II", 2, 0)), (b"prIv", b"x"),
            (b"fcTL", struct.pack(">IIIIIHHBB", 0, WIDTH, HEIGHT, 0, 0, 1, 1, 0, 0)), (b"fdAT", bytes(9)),
            (b"zTXt", b"a\0\0" + zlib.compress(bytes(3 << 20))), (b"iCCP", b"a\0\0" + zlib.compress(bytes(3 << 20))),
            (b"tEXt", b"a\0" + bytes(1_100_000)), (b"iCCP", b""), (b"iCCP", b"a\0\7x"), (b"zTXt", b"a\0\0broken"),
            (b"tRNS", bytes(1)), (b"sBIT", b""), (b"eXIf", b""), (b"acTL", b""), (b"fcTL", b"x"), (b"gAMA", b"x"),
            (b"pHYs", b""), (b"tEXt", b""), (b"iTXt", b"\xff"), (b"cICP", b"x"), (b"IDOT", bytes(28)),
        ]  # fmt: skip
        for i, (kind, data) in enumerate(extra):
            name = f"form{form}-{kind.decode()}-{i}"
            for flip in (0, 1):
                for place in ("before", "after"):
                    one = chunk(kind, data, flip=flip)
                    front, back = (one, b"") if place == "before" else (b"", one)
                    body = join([ihdr, *plte]) + front + chunk(*idat) + back + chunk(*iend)
                    yield f"{name}-{place}{'-crc' * flip}", body
            yield (
                f"{name}-longer",
                join([ihdr, *plte]) + chunk(kind, data, length=len(data) + 9) + chunk(*idat),
            )
        for i, (kind, data) in enumerate(base):
            name = f"form{form}-{kind.decode()}"
            before, after = join(base[:i]), b"".join(chunk(*c) for c in base[i + 1 :])
            yield f"{name}-crc", before + chunk(kind, data, flip=0x100) + after
            yield f"{name}-missing", before + after
            yield f"{name}-twice", before + chunk(kind, data) * 2 + after
            for change in (-1, 1, 4, 1 << 30, 1 << 31):
                length = len(data) + change
                if length >= 0:
                    yield f"{name}-length{change:+}", before + chunk(kind, data, length=length) + after
            yield f"{name}-lower", before + chunk(kind.lower(), data) + after
            yield f"{name}-odd", before + chunk(b"\0" + kind[1:], data) + after
            yield f"{name}-unknown", before + chunk(b"ABCD", b"x") + chunk(kind, data) + after
            yield f"{name}-short", before + chunk(kind, data[: len(data) // 2]) + after
            yield f"{name}-long", before + chunk(kind, data + b"abc") + after
        whole = idat[1]
        many = [(b"IDAT", whole[i : i + 7]) for i in range(0, len(whole), 7)]
        yield f"form{form}-idat-many", join([*base[:-2], *many, iend])
        yield f"form{form}-idat-empty", join([*base[:-2], (b"IDAT", b""), idat, (b"IDAT", b""), iend])
        parted = [(b"IDAT", whole[:40]), (b"tEXt", b"a\0b"), (b"IDAT", whole[40:])]
        yield f"form{form}-idat-parted", join([*base[:-2], *parted, iend])
        yield f"form{form}-after-end", join(base) + b"trailing" * 50
        yield f"form{form}-before-header", join([(b"tEXt", b"a\0b"), *base])
        data = zlib.decompress(whole)
        for name, raw in {
            "rows-few": data[: len(data) // 2], "rows-one-less": data[: -(len(data) // HEIGHT)], "rows-none": b"",
            "rows-a-byte-less": data[:-1], "rows-many": data + data, "rows-filter-9": b"\x09" + data[1:],
            "rows-black-end": data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
        }.items():  # fmt: skip
            yield f"form{form}-{name}", join([*base[:-2], (b"IDAT", zlib.compress(raw)), iend])
        yield f"form{form}-adler", join([*base[:-2], (b"IDAT", whole[:-1] + bytes([whole[-1] ^ 1])), iend])
        for cut in (1, 2, 4, 5, 20):
            yield f"form{form}-stream-cut{cut}", join([*base[:-2], (b"IDAT", whole[:-cut]), iend])
        yield f"form{form}-raw-deflate", join([*base[:-2], (b"IDAT", zlib.compress(data)[2:-4]), iend])
        yield f"form{form}-stored", join([*base[:-2], (b"IDAT", zlib.compress(data, 0)), iend])
        yield f"form{form}-not-zlib", join([*base[:-2], (b"IDAT", b"x" * 99), iend])
        for at in range(13):
            for value in (0, 1, 3, 0x7F):
                changed = bytearray(ihdr[1])
                changed[at] = value
                yield f"form{form}-header{at}={value}", join([(b"IHDR", bytes(changed)), *base[1:]])
    some = png(3, 8)
    for n in (0, 1, 2, 9, 300, 768, 771, 900):
        yield f"palette-of-{n}-bytes", join([some[0], (b"PLTE", (bytes(range(251)) * 4)[:n]), *some[2:]])
    for kind in (0, 2, 4, 6):
        other = png(kind, 8)
        for n in (0, 6, 7, 768, 900):
            yield f"type{kind}-palette-of-{n}-bytes", join([other[0], (b"PLTE", bytes(n)), *other[1:]])
    late = png(3, 8)
    yield "palette-late", join([late[0], late[2], late[1], late[3]])
    for depth, kind in ((3, 0), (16, 3), (1, 2), (4, 6), (8, 1), (8, 5), (8, 7), (0, 0), (32, 2)):
        yield f"no-type-{kind}-{depth}", join([(b"IHDR", header(kind, depth)), *png(2, 8)[1:]])


def broken_anyhow(name: str, whole: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """`whole` cut at `count` places, and with flipped bits, bytes removed and bytes repeated at as many."""
    rng = random.Random(seed)
    for _ in range(count):
        at = rng.randrange(len(whole))
        yield f"{name}-cut{at:05}", whole[:at]
        bit = rng.randrange(8)
        yield f"{name}-flip{at:05}.{bit}", whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :]
        n = rng.randrange(1, 9)
        yield f"{name}-gap{at:05}+{n}", whole[:at] + whole[at + n :]
        yield f"{name}-again{at:05}+{n}", whole[: at + n] + whole[at:]


# -- JPEG ------------------------------------------------------------------------------------------------------------


def jpeg(mode: str = "RGB", **options: object) -> bytes:
    """A sound JPEG."""
    stream = io.BytesIO()
    picture(40, 56).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


def segments(data: bytes) -> list[bytes]:
    """The segments of a JPEG up to its first scan; the last part is the rest."""
    found, at = [data[:2]], 2
    while data[at + 1] != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        found.append(data[at : at + 2 + length])
        at += 2 + length
    return [*found, data[at:]]


def segment(marker: int, data: bytes, length: int | None = None) -> bytes:
    """A segment; `length` is written in place of the true one."""
    return (
        bytes([0xFF, marker])
        + struct.pack(">H", (len(data) + 2 if length is None else length) & 0xFFFF)
        + data
    )


def jpeg_kinds() -> Iterator[tuple[str, bytes]]:
    """Sound JPEGs."""
    for mode in ("RGB", "L", "CMYK"):
        yield f"{mode}", jpeg(mode)
        yield f"{mode}-progressive", jpeg(mode, progressive=True)
        yield f"{mode}-restart", jpeg(mode, restart_marker_blocks=2)
        yield f"{mode}-optimize", jpeg(mode, optimize=True, quality=95)
    for sampling in (0, 1, 2):
        yield f"sampling{sampling}", jpeg(subsampling=sampling)
        yield f"sampling{sampling}-progressive", jpeg(subsampling=sampling, progressive=True)
    yield "keep-rgb", jpeg(keep_rgb=True)
    cmyk = segments(jpeg("CMYK"))
    for transform in (0, 1, 2, 7):
        adobe = segment(0xEE, b"Adobe" + bytes([0, 100, 0, 0, 0, 0, transform]))
        kept = [s for s in cmyk[1:] if s[1] not in (0xE0, 0xEE)]
        yield f"CMYK-adobe{transform}", b"".join([cmyk[0], adobe, *kept])
        rgb = segments(jpeg())
        yield f"RGB-adobe{transform}", b"".join([rgb[0], adobe, *(s for s in rgb[1:] if s[1] != 0xE0)])
    yield "CMYK-bare", b"".join([cmyk[0], *(s for s in cmyk[1:] if s[1] not in (0xE0, 0xEE))])
    yield "RGB-bare", b"".join([rgb[0], *(s for s in rgb[1:] if s[1] != 0xE0)])


def odd_segments(frame: bytes) -> dict[str, bytes]:
    """Segments that a JPEG may have, or should not have."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08"
    entries = b"\0\2\xb0\1\0\4\0\0\0\1\0\0\0\2\xb0\2\0\7\0\0\0\3\0\0\0\1\0\0\0\0"
    adobe = b"Adobe\0d\0\0\0\0"
    return {
        "exif-empty": segment(0xE1, b""),
        "exif-short": segment(0xE1, exif[:8]),
        "exif-broken": segment(0xE1, exif + b"\xff\xff"),
        "exif-odd": segment(0xE1, exif + b"\0\1\x01\x1a\0\5\0\0\0\1\xff\xff\xff\xff\0\0\0\0"),
        "icc-broken": segment(0xE2, b"ICC_PROFILE\0"),
        "icc-zero": segment(0xE2, b"ICC_PROFILE\0\0\0x"),
        "mpf": segment(0xE2, b"MPF\0MM\0*\0\0\0\x08"),
        "mpf-empty": segment(0xE2, b"MPF\0"),
        "mpf-broken": segment(0xE2, b"MPF\0MM\0*\0\0\0\x08" + entries),
        "photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\xff\xff"),
        "photoshop-odd": segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\2ab"),
        "jfif-short": segment(0xE0, b"JFIF\0"),
        "jfif-odd": segment(0xE0, b"JFIF\0\x09\x09\xff\0\0\0\0\xff\xff"),
        "adobe-short": segment(0xEE, b"Adobe"),
        "adobe-odd": segment(0xEE, adobe + b"\x09"),
        "comment": segment(0xFE, b"x" * 60000),
        "comment-empty": segment(0xFE, b""),
        "large": segment(0xE1, exif + bytes(65000)) * 17,
        "app-length-0": segment(0xE5, b"", 0),
        "app-length-1": segment(0xE5, b"", 1),
        "app-longer": segment(0xE5, b"abc", 2000),
        "padding": b"\xff" * 9,
        "junk": b"abc",
        "junk-ff": b"abc\xff\0\xff\xff\0d",
        "junk-app": b"\xff\1abc" + segment(0xE7, b"x") + b"abc",
        "stuffing": b"\xff\x01",
        "soi": b"\xff\xd8",
        "eoi": b"\xff\xd9",
        "rst": b"\xff\xd0",
        "reserved": segment(0xF0, b"x"),
        "dnl": segment(0xDC, b"\0\x28"),
        "dri": segment(0xDD, b"\0\5"),
        "dri-odd": segment(0xDD, b"\0"),
        "dqt-short": segment(0xDB, b"\0abc"),
        "dht-short": segment(0xC4, b"\0abc"),
        "dht-empty": segment(0xC4, b""),
        "dac": segment(0xCC, b"\0\1"),
        "exp": segment(0xDF, b"\1"),
        "sof-again": frame,
    }


def jpeg_damage() -> Iterator[tuple[str, bytes]]:
    """JPEGs with odd segments, wrong headers and wrong ends."""
    for form, base in {"base": jpeg(restart_marker_blocks=2), "progressive": jpeg(progressive=True)}.items():
        parts = segments(base)
        frame = next(i for i, s in enumerate(parts) if s[1] in (0xC0, 0xC2))
        for name, one in odd_segments(parts[frame]).items():
            for place, at in (("first", 1), ("last", len(parts) - 1)):
                yield f"{form}-{name}-{place}", b"".join([*parts[:at], one, *parts[at:]])
        for i, part in enumerate(parts[1:-1], 1):
            yield f"{form}-without-{part[1]:02x}-{i}", b"".join([*parts[:i], *parts[i + 1 :]])
            yield f"{form}-twice-{part[1]:02x}-{i}", b"".join([*parts[:i], part, *parts[i:]])

        def changed(i: int, at: int, value: int, parts: list[bytes] = parts) -> bytes:
            part = parts[i][:at] + bytes([value]) + parts[i][at + 1 :]
            return b"".join([*parts[:i], part, *parts[i + 1 :]])

        for at in range(4, len(parts[frame])):
            for value in (0, 1, 4, 0x11, 0xFF):
                yield f"{form}-frame{at}={value}", changed(frame, at, value)
        for kind in (0xC0, 0xC1, 0xC2, *range(0xC5, 0xCC), 0xCD, 0xCE, 0xCF):
            yield f"{form}-frame-{kind:02x}", changed(frame, 1, kind)
        for at in range(2, 14):
            for value in (0, 1, 3, 0x3F, 0xFF):
                yield f"{form}-scan{at}={value}", changed(len(parts) - 1, at, value)
        for name, end in {
            "no": b"",
            "half": b"\xff",
            "odd": b"\xff\xd8",
            "zero": b"\0\0",
            "two": b"\xff\xd9" * 2,
        }.items():
            yield f"{form}-{name}-eoi", base[:-2] + end
        yield f"{form}-trailing", base + b"trailing" * 50
        yield f"{form}-two", base + base
        for cut in (3, 4, 5, 8, 20):
            yield f"{form}-cut{cut}", base[:-cut]
            yield f"{form}-cut{cut}-eoi", base[:-cut] + b"\xff\xd9"


# -- EXIF ------------------------------------------------------------------------------------------------------------


def exif(
    value: int, *, order: str = "MM", kind: int = 3, count: int = 1, tag: int = 0x112, at: int = 8, before: int = 0,
    magic: bytes | None = None,
) -> bytes:  # fmt: skip
    """EXIF data, without its signature, that states an orientation behind `before` other entries."""
    mark = ">" if order == "MM" else "<"
    number = struct.pack(f"{mark}{'H' if kind == 3 else 'I'}", value).ljust(4, b"\0")
    entries = b"".join(struct.pack(f"{mark}HHII", 0x100 + i, 4, 1, i) for i in range(before))
    entries += struct.pack(f"{mark}HHI", tag, kind, count) + number
    head = order.encode() + (magic or struct.pack(f"{mark}H", 42)) + struct.pack(f"{mark}I", at)
    return head.ljust(at, b"\0") + struct.pack(f"{mark}H", before + 1) + entries + bytes(4)


def exif_data() -> dict[str, bytes]:
    """EXIF data of every orientation, of every form, and broken in every way."""
    six = exif(6)
    found = {f"value{v}-{order}-{kind}": exif(v, order=order, kind=kind)
             for v in (*range(10), 255, 65535) for order in ("MM", "II") for kind in (3, 4)}  # fmt: skip
    found |= {f"cut{n}": six[:n] for n in range(len(six))} | {
        f"at{n}": exif(6, at=n) for n in (9, 26, 1000, 60000)
    }
    found |= {f"kind{kind}": exif(6, kind=kind) for kind in (0, 1, 2, 5, 7, 8, 9, 12, 13, 255)}
    found |= {f"count{n}": exif(6, count=n) for n in (0, 2, 3, 1 << 31)}
    found |= {f"magic{m.hex()}": exif(6, magic=m) for m in (b"*\0", b"\0+", b"\0\0", b"\xff\xff")}
    return found | {
        "other-tag": exif(6, tag=0x113), "behind-others": exif(6, before=20), "no-order": b"XX" + six[2:],
        "prefixed": b"Exif\0\0" + six, "twice": six[:8] + b"\0\2" + six[10:22] + exif(3)[10:],
        "many-entries": six[:8] + b"\xff\xff" + six[10:], "many-entries-none": exif(6, tag=9)[:8] + b"\xff\xff",
        "outside": six[:4] + b"\0\0\1\0" + six[8:], "far-outside": six[:4] + b"\xff" * 4 + six[8:],
        "at-the-end": six[:4] + struct.pack(">I", len(six)) + six[8:], "at-zero": six[:4] + bytes(4) + six[8:],
    }  # fmt: skip


def exif_files() -> dict[str, bytes]:
    """JPEG and PNG files with :func:`exif_data`; all of them can be read."""
    plain, base = segments(jpeg()), png(2, 8)
    sign, xmp = b"Exif\0\0", b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'

    def with_segments(*more: bytes, place: int = 1) -> bytes:
        return b"".join([*plain[:place], *more, *plain[place:]])

    files = {}
    for name, data in exif_data().items():
        files[f"exif-{name}.jpg"] = with_segments(segment(0xE1, sign + data))
        files[f"exif-{name}.png"] = join([base[0], (b"eXIf", data), *base[1:]])
    six, three = exif(6), exif(3)
    return files | {
        "exif-last.jpg": with_segments(segment(0xE1, sign + six), place=-1),
        "exif-behind-junk.jpg": with_segments(b"abc\xff\xff", segment(0xE1, sign + six), place=2),
        "exif-in-two.jpg": with_segments(segment(0xE1, sign + six[:15]), segment(0xE1, sign + six[15:])),
        "exif-two.jpg": with_segments(segment(0xE1, sign + six), segment(0xE1, sign + three)),
        "exif-no-signature.jpg": with_segments(segment(0xE1, six)),
        "exif-other-segment.jpg": with_segments(segment(0xE2, sign + six)),
        "exif-xmp.jpg": with_segments(segment(0xE1, xmp)),
        "exif-after-the-image.jpg": jpeg() + segment(0xE1, sign + six),
        "exif-gray.jpg": jpeg("L", exif=sign + six), "exif-cmyk.jpg": jpeg("CMYK", exif=sign + six),
        "exif-progressive.jpg": jpeg(progressive=True, exif=sign + six),
        "exif-after.png": join([*base[:-1], (b"eXIf", six), base[-1]]),
        "exif-after-end.png": join([*base, (b"eXIf", six)]),
        "exif-two.png": join([base[0], (b"eXIf", six), (b"eXIf", three), *base[1:]]),
        "exif-crc.png": join(base[:1]) + chunk(b"eXIf", six, flip=1) + join(base[1:])[8:],
        "exif-signed.png": join([base[0], (b"eXIf", sign + six), *base[1:]]),
        "exif-palette.png": join([*png(3, 4)[:2], (b"eXIf", six), *png(3, 4)[2:]]),
        "exif-interlaced.png": join([*png(2, 8, interlace=1)[:1], (b"eXIf", six), *png(2, 8, interlace=1)[1:]]),
        "exif-cut.png": join(base[:-1]) + chunk(b"eXIf", six)[:-6],
    }  # fmt: skip


def sound_files() -> dict[str, bytes]:
    """Files that must be read, by name with a suffix."""
    return {f"{n}.png": b for n, b in png_types()} | {f"{n}.jpg": b for n, b in jpeg_kinds()}


def damaged_files() -> dict[str, bytes]:
    """Files that may be read or not, by name with a suffix."""
    files = {f"{n}.png": b for n, b in png_damage()} | {f"{n}.jpg": b for n, b in jpeg_damage()}
    for kind, depth, interlace in ((2, 8, 0), (3, 4, 0), (0, 16, 1), (6, 8, 1)):
        whole = join(png(kind, depth, interlace=interlace))
        files |= {f"{n}.png": b for n, b in broken_anyhow(f"png{kind}-{depth}", whole, 8, kind)}
    for i, options in enumerate(
        ({}, {"progressive": True}, {"restart_marker_blocks": 2}, {"mode": "L"}, {"mode": "CMYK"})
    ):
        files |= {f"{n}.jpg": b for n, b in broken_anyhow(f"jpeg{i}", jpeg(**options), 14, i)}  # type: ignore[arg-type]
    return files


def lossless_jpeg() -> bytes:
    """A JPEG of process 14 (SOF3): 16 x 16 pixels of gray 128. Only libjpeg-turbo 3 and later decodes it."""
    frame = segment(0xC3, bytes([8, 0, 16, 0, 16, 1, 1, 0x11, 0]))
    table = segment(0xC4, bytes([0, 1, *[0] * 16]))
    scan = segment(0xDA, bytes([1, 1, 0, 1, 0, 0]))
    return b"\xff\xd8" + frame + table + scan + bytes(32) + b"\xff\xd9"
