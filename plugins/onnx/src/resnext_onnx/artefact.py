"""Read ONNX artefacts back: manifest, integrity, and the same network without its normalisation."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]
from onnx import TensorProto, helper

from resnext_core.errors import DataError, UsageError, reason
from resnext_core.files import atomic_path
from resnext_core.model.proof import Proof
from resnext_core.model.weights import MANIFEST_KEY, Manifest, parse_manifest, sealed
from resnext_onnx.graph import INPUTS, TENSOR

#: Number of the field ``metadata_props`` in ModelProto (onnx.proto).
_METADATA = 14


@dataclass(frozen=True, kw_only=True, eq=False)
class Artefact:
    """An ONNX file read back: its bytes, what it says of itself, and its manifest's ``artefact`` entry."""

    data: bytes
    manifest: Manifest
    entry: Mapping[str, Any]


def read_artefact(path: Path) -> Artefact:
    """Read and verify an ONNX file of resnext.

    Raises DataError when it is missing, is not ONNX, is cut, has no manifest, keeps constants in other files, or
    when its constants do not have the digest that the manifest states.
    """
    if not path.is_file():
        raise DataError(f"no such ONNX file: {path}")
    try:
        data = path.read_bytes()
        model = onnx.ModelProto.FromString(data)
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason(error)}") from error
    except (
        DecodeError,
        ValueError,
    ) as error:  # ValueError: text that is not UTF-8, in protobuf's pure Python form
        raise DataError(f"{path} is not an ONNX file, or it is truncated; export it again") from error
    text = _manifest_text(model)
    if text is None:
        raise DataError(f"{path} has no resnext manifest; write it with resnext-run export")
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise DataError(
            f"{path} keeps constants in another file (external data), where they cannot be verified; export it again, "
            "or write it as one file with onnx.save"
        )
    manifest = parse_manifest(text, where=str(path))
    entry = json.loads(text).get("artefact")
    if not isinstance(entry, dict) or entry.get("input") not in INPUTS:
        raise DataError(f"{path} has a broken manifest: no artefact entry that names its input")
    if entry.get("digest") != constants_digest(model.graph):
        raise DataError(f"{path} is damaged: checksum mismatch of its constants")
    if "content" in entry and entry["content"] != content_digest(data):  # files of older releases have none
        raise DataError(f"{path} is damaged: checksum mismatch of its graph")
    return Artefact(data=data, manifest=manifest, entry=entry)


def sealed_model(model: onnx.ModelProto, manifest: Mapping[str, Any], entry: Mapping[str, Any]) -> bytes:
    """Return `model` as a file with `manifest` and `entry` in its metadata, digests and a seal; same input, same bytes.

    `manifest` is that of the weights (:meth:`Weights.manifest`), perhaps with other ``golden`` logits, as JSON types.
    `entry` becomes its section ``artefact``: format, input, batch_size, fold_bn and opset; for a file that computes in
    few bits also ``compute`` and ``proofs``, see :mod:`resnext_core.model.proof`. The metadata of `model` is replaced.

    Raises DataError where the manifest would not be read back.
    """
    del model.metadata_props[:]
    entry = {
        **entry,
        "digest": constants_digest(model.graph),
        "content": content_digest(model.SerializeToString(deterministic=True)),
    }
    text = sealed({**manifest, "artefact": entry})
    parse_manifest(text, where="the artefact")
    helper.set_model_props(model, {MANIFEST_KEY: text})
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def add_proof(path: Path, place: str, proof: Proof, compared: Manifest) -> None:
    """Write the `proof` of `place` into the manifest of an artefact in few bits, in place of one that it has of there.

    `compared` is the manifest of the file whose logits these are. All but the metadata stays as it is, byte for byte.
    The file is replaced atomically and keeps its mode. Raises DataError where it cannot be read as such an artefact, is
    another one than `compared`, or cannot be written.
    """
    artefact = read_artefact(path)
    if not artefact.manifest.same_file(compared):
        raise DataError(f"{path} has changed since it was opened; validate it again")
    if not os.access(path, os.W_OK):
        raise DataError(f"cannot write {path}: it is read-only")
    manifest = json.loads(_manifest_text(onnx.ModelProto.FromString(artefact.data)) or "")
    manifest.pop("manifest_sha256", None)
    proofs = {**manifest["artefact"].get("proofs", {}), place: proof.to_dict()}
    manifest["artefact"]["proofs"] = proofs
    text = sealed(manifest)
    parse_manifest(text, where=str(path))
    metadata = onnx.ModelProto()
    helper.set_model_props(metadata, {MANIFEST_KEY: text})
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        for number, field in _fields(artefact.data):
            if number != _METADATA:
                stream.write(field)
        stream.write(metadata.SerializeToString(deterministic=True))


def constants_digest(graph: onnx.GraphProto) -> str:
    """Return ``sha256:<hex>`` over names, types, shapes and bytes of the graph's constants in order."""
    digest = hashlib.sha256()
    for tensor in graph.initializer:
        digest.update(f"{tensor.name}:{tensor.data_type}:{list(tensor.dims)}".encode())
        digest.update(tensor.raw_data)
    return f"sha256:{digest.hexdigest()}"


def content_digest(data: bytes) -> str:
    """Return ``sha256:<hex>`` over all fields of the ONNX file `data` but its metadata, as they lie in it.

    The C++ program computes the same. DataError where `data` is no sequence of whole protobuf fields.
    """
    digest = hashlib.sha256()
    for number, field in _fields(data):
        if number != _METADATA:
            digest.update(field)
    return f"sha256:{digest.hexdigest()}"


def _manifest_text(model: onnx.ModelProto) -> str | None:
    return next((p.value for p in model.metadata_props if p.key == MANIFEST_KEY), None)


def _fields(data: bytes) -> Iterator[tuple[int, memoryview]]:
    """Yield the number and the bytes of each protobuf field of `data`; DataError where they are not whole."""
    at, view = 0, memoryview(data)
    while at < len(data):
        start = at
        tag, at = _varint(data, at)
        if tag & 7 == 0:
            _, at = _varint(data, at)
        elif tag & 7 == 2:
            length, at = _varint(data, at)
            at += length
        else:
            at += {1: 8, 5: 4}.get(tag & 7, len(data) + 1)
        if at > len(data):
            raise DataError("it is truncated, or not an ONNX file")
        yield tag >> 3, view[start:at]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return an integer of protobuf's wire format, and where the next thing begins: past the end for none."""
    value = 0
    for count in range(10):
        if at + count >= len(data):
            break
        byte = data[at + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, at + count + 1
    return 0, len(data) + 1


def without_normalisation(data: bytes) -> bytes:
    """Return the model `data` (``uint8`` or ``image`` input) rewritten to start from its inner value :data:`TENSOR`.

    This is how any artefact takes an already normalised tensor: the network behind that value is untouched. That of an
    ``image`` file then takes any number of rows: only what was in front of it is for one image.
    Raises UsageError when the graph has no such value.
    """
    model = onnx.ModelProto.FromString(data)
    graph = model.graph
    producers = {output: node for node in graph.node for output in node.output}
    if TENSOR not in producers:
        raise UsageError("this ONNX file has normalisation inside and cannot skip it; serve uint8 images")
    needed, names = {TENSOR}, [output.name for output in graph.output]
    while names:
        name = names.pop()
        if name not in needed:
            needed.add(name)
            names += producers[name].input if name in producers else ()
    nodes = [n for n in graph.node if TENSOR not in n.output and not needed.isdisjoint(n.output)]
    constants = [c for c in graph.initializer if c.name in needed]
    inner = next((value for value in graph.value_info if value.name == TENSOR), None)
    if inner is not None:
        dims = ["N", *(d.dim_value for d in inner.type.tensor_type.shape.dim[1:])]
        for output in graph.output:
            output.type.tensor_type.shape.dim[0].dim_param = "N"
    else:
        batch, height, width, channels = graph.input[0].type.tensor_type.shape.dim
        dims = [d.dim_param or d.dim_value for d in (batch, channels, height, width)]
    source = helper.make_tensor_value_info(TENSOR, TensorProto.FLOAT, dims)
    rest = helper.make_graph(nodes, graph.name, [source], graph.output, constants)
    model.graph.CopyFrom(rest)
    rewritten: bytes = model.SerializeToString()
    return rewritten
