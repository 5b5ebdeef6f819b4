"""What one tar shard holds: its images, and the labels that stand beside them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from resnext_core.data.folders import NO_ENDING, SPECIAL, is_image
from resnext_core.data.lines import has_control
from resnext_core.data.paths import decoded
from resnext_core.data.sources.tar import FILE, FOLDER, LINK, Member, members
from resnext_core.errors import quoted, shown

#: A label's member may not be longer, in bytes.
_LONGEST = 1 << 20
#: The fields of a ``.json`` in which a label is looked for.
_FIELDS = ("label", "cls")


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image in a shard: its name, and where its `size` bytes begin."""

    name: bytes
    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Images in the order of the shard; label texts by image name; and how many other members by ending."""

    images: Sequence[Image]
    labels: Mapping[bytes, bytes]
    ignored: Mapping[str, int]


def contents(read: Callable[[int, int], bytes], total: int) -> Contents:
    """Return the contents of a shard of `total` bytes; ValueError with the reason where it cannot be used.

    A label is the text of ``KEY.cls``, or the field ``label`` or ``cls`` of ``KEY.json``, where KEY is the image's name
    without its ending, or up to the first dot of its file name, as WebDataset has it.
    """
    images: dict[bytes, Image] = {}
    tags: dict[bytes, bytes] = {}
    fields: dict[bytes, bytes] = {}
    ignored: Counter[str] = Counter()
    for member in members(read, total):
        name = member.name
        while name.startswith((b"./", b"/")):
            name = name[2:] if name.startswith(b"./") else name[1:]
        if member.kind == FOLDER or name.endswith(b"/") or name.rpartition(b"/")[2].startswith(b"."):
            continue
        text = decoded(name)
        if is_image(text):
            if member.kind == LINK:
                raise ValueError(
                    f"{shown(text)} is a link; put the file itself in, with tar --dereference --hard-dereference"
                )
            if member.kind == FILE:
                if name in images:
                    raise ValueError(f"it has two members called {shown(text)}; keep one of them")
                images[name] = Image(name=name, offset=member.offset, size=member.size)
                continue
        stem, _, ending = name.rpartition(b".")
        if member.kind == FILE and ending in (b"cls", b"json") and stem:
            label = (_tag if ending == b"cls" else _field)(_text(read, member), text)
            into = tags if ending == b"cls" else fields
            if stem in into:
                raise ValueError(f"it has two members called {shown(text)}; keep one of them")
            if label is not None:
                into[stem] = label
            continue
        ignored[_ending(text) if member.kind == FILE else SPECIAL] += 1
    return Contents(images=list(images.values()), labels=_matched(images, tags, fields), ignored=ignored)


def _matched(
    images: Mapping[bytes, Image], tags: Mapping[bytes, bytes], fields: Mapping[bytes, bytes]
) -> dict[bytes, bytes]:
    """Return the label of each image that has one; ValueError where two images would have the same one."""
    labels: dict[bytes, bytes] = {}
    if not tags and not fields:
        return labels
    owner: dict[bytes, bytes] = {}
    for name in images:
        folder, slash, file = name.rpartition(b"/")
        for key in (name.rpartition(b".")[0], folder + slash + file.partition(b".")[0]):
            found = tags.get(key, fields.get(key))
            if found is None:
                continue
            if key in owner:
                raise ValueError(
                    f"it has two images with the key {shown(key)}: {shown(owner[key])} and {shown(name)}; "
                    "keep one of them"
                )
            owner[key], labels[name] = name, found
            break
    return labels


def _text(read: Callable[[int, int], bytes], member: Member) -> bytes:
    if member.size > _LONGEST:
        return b""
    return member.head if len(member.head) == member.size else read(member.offset, member.size)


def _tag(content: bytes, name: str) -> bytes:
    """Return the label in a ``.cls`` file."""
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        text = ""
    if not text or has_control(text):
        raise ValueError(f"{shown(name)} holds no label: a number or a name in one line")
    return text.encode()


def _field(content: bytes, name: str) -> bytes | None:
    """Return the label in a ``.json`` file, None where it has none, or is no JSON."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    for field in _FIELDS:
        label = value.get(field)
        if isinstance(label, int) and not isinstance(label, bool) and label >= 0:
            return str(label).encode()
        if isinstance(label, str) and label.strip():
            if has_control(label.strip()):
                raise ValueError(f"the label {quoted(label)} in {shown(name)} has a control character")
            return label.strip().encode(errors="surrogatepass")
    return None


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower() or NO_ENDING
