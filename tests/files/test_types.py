"""What is no weights file says what it is, under every ending that is read."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from command_line import CommandLine

from resnext_core.convert.ckpt import write_ckpt
from resnext_core.errors import EXIT_DATA, DataError
from resnext_core.files.types import LEGACY, refuse_foreign

ENDINGS = [".pth", ".pt", ".bin", ".pth.tar", ".ckpt", ".safetensors", ".onnx"]


def archive(name: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as target:
        target.writestr(name, b"x")
    return stream.getvalue()


def tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as target:
        target.addfile(tarfile.TarInfo("weights.pth"))
    return stream.getvalue()


LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{0:064d}\nsize 1\n".encode()
#: Stand-ins, which are told under any ending.
STAND_INS = [
    (LFS, "is a Git LFS pointer, not weights: run git lfs pull"),
    (b"../../.git/annex/objects/X1/2p/SHA256E-s1--0.pth/SHA256E-s1--0.pth", "is a git-annex pointer"),
    (b"/annex/objects/SHA256E-s1--0\n", "is a git-annex pointer"),
    (
        b"outs:\n- md5: d41d8cd98f00b204e9800998ecf8427e\n  path: w.pth\n",
        "is a DVC pointer, not weights: run dvc pull",
    ),
    (b"<html>403</html>", "is an HTML page, not weights: the download failed"),
    (b"\n\n <!DOCTYPE html>\n<html lang=en>", "is an HTML page"),
    (b"<!-- saved --><HTML><body>Sign in", "is an HTML page"),
    (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>', "is an XML error message"),
]
#: What is plainly something else, under an ending whose content is known.
OTHERS = [
    (b"", "file: it is empty|checkpoint: it is empty"),
    (b"\0" * 5000, "begins with zeros only"),
    (b'{"error": "Repository not found"}', "is JSON text, not weights: the download failed"),
    (b"[]", "is JSON text"),
    (gzip.compress(b"x"), "is a gzip archive, not weights: unpack it"),
    (tar(), "is a tar archive"),
    (b"\x89HDF\r\n\x1a\n" + b"\0" * 100, "is an HDF5 file"),
    (b"GGUF\x03\0\0\0", "is a GGUF file"),
    (b"\x89PNG\r\n\x1a\n", "is an image"),
]


@pytest.mark.parametrize("ending", [*ENDINGS, ".npz", ".mindir", ""])
@pytest.mark.parametrize(("content", "says"), STAND_INS, ids=[says for _, says in STAND_INS])
def test_a_stand_in_is_told_under_any_ending(tmp_path: Path, ending: str, content: bytes, says: str) -> None:
    path = tmp_path / f"w{ending}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=says):
        refuse_foreign(path)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(("content", "says"), OTHERS, ids=[says for _, says in OTHERS])
def test_another_format_is_told_where_the_ending_is_known(
    tmp_path: Path, ending: str, content: bytes, says: str
) -> None:
    path = tmp_path / f"w{ending}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=says):
        refuse_foreign(path)
    other = tmp_path / "w.of-another-backend"
    other.write_bytes(content)
    refuse_foreign(other)


def test_weights_under_the_ending_of_others_say_their_own(tmp_path: Path) -> None:
    tensors = {"a": np.ones(3, np.float32)}
    neutral, checkpoint = tmp_path / "n.safetensors", tmp_path / "c.ckpt"
    safetensors.numpy.save_file(tensors, neutral)
    write_ckpt(checkpoint, tensors)
    onnx = b"\x08\x0a\x12\x07pytorch" + b"\0" * 90
    for content, own, says in (
        (
            neutral.read_bytes(),
            (".safetensors",),
            "is a safetensors file by its content: name it .safetensors",
        ),
        (onnx, (".onnx",), "is an ONNX file, not weights"),
        (LEGACY + b"\0" * 90, (".pth", ".pt", ".bin", ".pth.tar", ".ckpt"), "is a PyTorch file"),
        (archive("w/data.pkl"), (".pth", ".pt", ".bin", ".pth.tar", ".ckpt"), "is a zip archive"),
        (checkpoint.read_bytes(), tuple(ENDINGS), ""),  # has no mark of its own
        (b"anything", tuple(ENDINGS), ""),
        (struct.pack("<Q", 1 << 60) + b"{}", tuple(ENDINGS), ""),
    ):
        for ending in ENDINGS:
            path = tmp_path / f"w{ending}"
            path.write_bytes(content)
            if ending in own:
                refuse_foreign(path)
            else:
                with pytest.raises(DataError, match=says):
                    refuse_foreign(path)


@pytest.mark.parametrize("ending", [".pth", ".ckpt", ".safetensors", ".onnx"])
def test_every_command_says_so(cli: CommandLine, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"w{ending}"
    path.write_bytes(LFS)
    says = f"{path} is a Git LFS pointer, not weights: run git lfs pull"
    cli.refuses(EXIT_DATA, "convert", path, tmp_path / "x.safetensors", says=says)
    cli.refuses(EXIT_DATA, "eval", "--weights", path, "--data", tmp_path, says=says)
    cli.refuses(EXIT_DATA, "infer", "--weights", path, tmp_path, says=says)
