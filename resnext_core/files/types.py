"""The type of a file by its first bytes: for files that are not weights, and for weights with a wrong ending."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from resnext_core.errors import DataError, reason

#: Bytes that are looked at.
_HEAD = 1024
#: The endings of weights and artefacts whose content is known here. Another backend's may be JSON or a zip.
_TORCH, _SAFETENSORS, _CKPT, _ONNX = (
    (".pth", ".pt", ".bin", ".pth.tar"),
    (".safetensors",),
    (".ckpt",),
    (".onnx",),
)
_KINDS = (
    (_TORCH, "torch file"),
    (_SAFETENSORS, "safetensors file"),
    (_CKPT, "checkpoint"),
    (_ONNX, "ONNX file"),
)
_KNOWN = (*_TORCH, *_SAFETENSORS, *_CKPT, *_ONNX)

#: First bytes of a zip archive, which PyTorch writes since 1.6, and of its format before.
ZIP = b"PK\x03\x04"
LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."

_AGAIN = "the download failed; repeat it"
#: Text that is fetched in place of a file, whatever its ending: pattern, what it is, what to do.
_STAND_INS = (
    (rb"version https://(git-lfs\.github\.com|hawser\.github\.com)/spec/", "a Git LFS pointer", "run git lfs pull"),
    (rb"(\.\./)*(\./)?\.git/annex/objects/|/annex/objects/", "a git-annex pointer", "run git annex get"),
    (rb"\s*(outs:\s|md5: [0-9a-f]{32}\s)", "a DVC pointer", "run dvc pull"),
    (rb"(?i)\s*(<!--.*?-->\s*)?<(!doctype html|html|head|body|script)\b", "an HTML page", _AGAIN),
    (rb"(?is)\s*<\?xml\b.*<Error>|\s*<Error>", "an XML error message", _AGAIN),
)  # fmt: skip
#: Other formats, where the ending is one whose content is known: first bytes, what it is, what to do, its endings.
_FORMATS = (
    (rb"\x1f\x8b", "a gzip archive", "unpack it with gunzip or tar -xf", ()),
    (rb"BZh[1-9]1AY&SY", "a bzip2 archive", "unpack it", ()),
    (rb"\xfd7zXZ\x00", "an xz archive", "unpack it", ()),
    (rb"\x28\xb5\x2f\xfd", "a Zstandard archive", "unpack it", ()),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it", ()),
    (rb"Rar!\x1a\x07", "a RAR archive", "unpack it", ()),
    (rb"(?s).{257}ustar", "a tar archive", "unpack it", ()),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file", "it is Keras's or MATLAB's; save the weights as safetensors there", ()),
    (rb"\x93NUMPY", "a NumPy array", "save the weights as safetensors", ()),
    (rb"GGUF", "a GGUF file", "that is a language model's format", ()),
    (rb"%PDF-", "a PDF document", _AGAIN, ()),
    (rb"\x89PNG\r\n|\xff\xd8\xff|GIF8|RIFF....WEBP", "an image", "give the weights, not an image", ()),
    (rb"\x7fELF|MZ\x90\x00", "a program", "give the weights", ()),
    (rb"\x08[\x01-\x20](\x12[\x00-\x7f][ -~]+|\x3a)", "an ONNX file", "name it .onnx to serve it", _ONNX),
    (rb"\x0a\x050\.\d\.\d\x12\x09MindSpore", "a MINDIR file", "name it .mindir to serve it", ()),
    (re.escape(LEGACY), "a PyTorch file", "name it .pth", (*_TORCH, *_CKPT)),
    (rb"PK\x03\x04|PK\x05\x06", "a zip archive", "unpack it; if PyTorch wrote it, name it .pth", (*_TORCH, *_CKPT)),
    (rb"(?s)\s*[\[{]\s*(\"|\}|\]|\{|\[)", "JSON text", _AGAIN, ()),
    (rb"\s*<\?xml\b", "an XML document", _AGAIN, ()),
)  # fmt: skip


def refuse_foreign(path: Path) -> None:
    """Raise DataError saying what `path` is, where it is a stand-in for weights or clearly another kind of file.

    Of files with an unknown ending only stand-ins are recognised: Git LFS pointers and the like, pages of web servers.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason(error)}") from error
    for pattern, what, advice in _STAND_INS:
        if re.match(pattern, head):
            raise DataError(f"{path} is {what}, not weights: {advice}")
    if not path.name.endswith(_KNOWN):
        return
    if not head:
        kind = next(kind for endings, kind in _KINDS if path.name.endswith(endings))
        raise DataError(f"{path} is not a readable {kind}: it is empty; the download or the copy failed")
    if is_safetensors(head, size):
        if not path.name.endswith(_SAFETENSORS):
            raise DataError(f"{path} is a safetensors file by its content: name it .safetensors")
        return
    if not head.strip(b"\0") and len(head) == min(size, _HEAD) and size >= 16:
        raise DataError(f"{path} begins with zeros only: the download or the copy failed; repeat it")
    for pattern, what, advice, endings in _FORMATS:
        if re.match(pattern, head) and not path.name.endswith(endings or ("\0",)):
            raise DataError(f"{path} is {what}, not weights: {advice}")


def is_safetensors(head: bytes, size: int) -> bool:
    """Return whether a file of `size` bytes that begins with `head` has the frame of a safetensors file."""
    return len(head) > 9 and head[8:9] == b"{" and 2 <= struct.unpack("<Q", head[:8])[0] <= size - 8


def is_torch(path: Path) -> bool:
    """Return whether `path` begins as PyTorch's files do: a zip archive, or the format before PyTorch 1.6."""
    try:
        with path.open("rb") as stream:
            head = stream.read(len(LEGACY))
    except OSError:
        return False
    return head.startswith((ZIP, LEGACY))
