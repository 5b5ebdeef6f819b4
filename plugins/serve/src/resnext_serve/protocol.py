"""The Open Inference Protocol, version 2, over HTTP: requests to arrays, results to responses.

Source: the KServe V2 REST specification (kserve/open-inference-protocol, specification/protocol/inference_rest.md),
with two extensions of Triton (triton-inference-server/server, docs/protocol): binary tensor data and classification.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.errors import shown
from resnext_serve.errors import Refused

INPUT, OUTPUTS = "images", ("logits", "probabilities")
EXTENSIONS = ("classification", "binary_tensor_data")
#: The header that says where the JSON part of a binary body ends.
JSON_LENGTH = "Inference-Header-Content-Length"
VERSION = "1"


@dataclass(frozen=True, kw_only=True)
class WantedOutput:
    """An output that the client asks for: as it is, or its `classification` largest values with their names."""

    name: str
    classification: int = 0
    binary: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class InferRequest:
    """A request: `pixels` uint8 (N, H, W, 3), or `files`, N encoded images; never both."""

    id: str | None
    pixels: NDArray[np.uint8] | None = None
    files: Sequence[bytes] = ()
    outputs: Sequence[WantedOutput] = field(default_factory=lambda: [WantedOutput(name=n) for n in OUTPUTS])


def parse_infer(body: bytes, json_length: str | None, *, size: int, most_images: int) -> InferRequest:
    """Return the request in a body for a network that takes images of `size` pixels a side.

    `json_length` is the header of a binary body, None for one that is all JSON. Raises Refused (400) with a reason.
    """
    document, tail = _split(body, json_length)
    inputs = _field(document, "inputs", list)
    if len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Refused(400, f"inputs must be a list of one object: the input '{INPUT}'")
    given = inputs[0]
    if given.get("name") != INPUT:
        raise Refused(400, f"unknown input {shown(str(given.get('name')))}; the input is '{INPUT}'")
    shape, datatype = _shape(given), given.get("datatype")
    binary = _binary(given, tail)
    wanted = _outputs(document)
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        raise Refused(400, "id must be a string")
    if not shape or not 1 <= shape[0] <= most_images:
        raise Refused(400, f"a request has 1 to {most_images} images, not shape {shape}")
    if datatype == "UINT8":
        if shape[1:] != [size, size, 3]:
            raise Refused(400, f"the shape of '{INPUT}' must be [N, {size}, {size}, 3] as UINT8, not {shape}")
        return InferRequest(id=identity, pixels=_pixels(given, shape, binary), outputs=wanted)
    if datatype == "BYTES":
        if len(shape) != 1 and shape[1:] != [1]:
            raise Refused(400, f"the shape of '{INPUT}' must be [N] as BYTES, not {shape}")
        return InferRequest(id=identity, files=_files(given, shape[0], binary), outputs=wanted)
    raise Refused(400, f"the datatype of '{INPUT}' must be UINT8 or BYTES, not {shown(str(datatype))}")


def write_infer(
    request: InferRequest, model: str, tensors: Mapping[str, NDArray[np.float32]], classes: Sequence[str]
) -> tuple[bytes, dict[str, str]]:
    """Return the body of the response and its headers; `tensors` are the outputs by name, float32 (N, classes)."""
    outputs, tail = [], b""
    for wanted in request.outputs:
        values = tensors[wanted.name]
        if wanted.classification:
            output, raw = _classified(wanted, values, classes)
        else:
            output = {"name": wanted.name, "datatype": "FP32", "shape": list(values.shape)}
            raw = values.astype("<f4", copy=False).tobytes
            if not wanted.binary:
                output["data"] = values.ravel().tolist()
        if wanted.binary:
            content = raw()
            output["parameters"] = {"binary_data_size": len(content)}
            tail += content
        outputs.append(output)
    document = {"model_name": model, "model_version": VERSION, "outputs": outputs}
    if request.id is not None:
        document["id"] = request.id
    head = json.dumps(document).encode()
    if not tail:
        return head, {"Content-Type": "application/json"}
    return head + tail, {"Content-Type": "application/octet-stream", JSON_LENGTH: str(len(head))}


def _classified(
    wanted: WantedOutput, values: NDArray[np.float32], classes: Sequence[str]
) -> tuple[dict[str, Any], Callable[[], bytes]]:
    """Return the largest values of each row as texts ``value:index:label``, and what makes their binary form."""
    count = min(wanted.classification, values.shape[1])
    best = np.argsort(-values, axis=1, kind="stable")[:, :count]
    texts = [f"{values[i, j]:f}:{j}:{classes[j]}" for i, row in enumerate(best.tolist()) for j in row]
    output: dict[str, Any] = {"name": wanted.name, "datatype": "BYTES", "shape": [len(values), count]}
    if not wanted.binary:
        output["data"] = texts

    def raw() -> bytes:
        encoded = [text.encode(errors="surrogateescape") for text in texts]
        return b"".join(struct.pack("<I", len(one)) + one for one in encoded)

    return output, raw


def _split(body: bytes, json_length: str | None) -> tuple[dict[str, Any], bytes]:
    """Return the JSON object of a body, and the binary data behind it."""
    length = len(body)
    if json_length is not None:
        if not json_length.isascii() or not json_length.isdecimal() or int(json_length[:20]) > length:
            raise Refused(400, f"{JSON_LENGTH} must be a number of at most the {length} bytes of the body")
        length = int(json_length)
    try:
        document = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the request is not JSON: {str(error)[:100]}") from error
    if not isinstance(document, dict):
        raise Refused(400, "the request must be a JSON object")
    return document, body[length:]


def _field(document: Mapping[str, Any], name: str, kind: type) -> Any:
    value = document.get(name)
    if not isinstance(value, kind):
        raise Refused(400, f"{name} must be a {kind.__name__}")
    return value


def _parameters(given: Mapping[str, Any]) -> Mapping[str, Any]:
    found = given.get("parameters", {})
    if not isinstance(found, dict):
        raise Refused(400, "parameters must be an object")
    return found


def _shape(given: Mapping[str, Any]) -> list[int]:
    shape = _field(given, "shape", list)
    if not all(type(side) is int and 0 < side < 2**31 for side in shape):
        raise Refused(400, "shape must be a list of positive integers")
    return list(shape)


def _binary(given: Mapping[str, Any], tail: bytes) -> bytes | None:
    """Return the binary data of the one input, None where its data is in the JSON."""
    size = _parameters(given).get("binary_data_size")
    if size is None:
        if tail:
            raise Refused(
                400, f"{len(tail)} bytes after the JSON belong to no input; set its binary_data_size"
            )
        return None
    if type(size) is not int or size != len(tail):
        raise Refused(400, f"binary_data_size is {shown(str(size))}, but {len(tail)} bytes follow the JSON")
    if "data" in given:
        raise Refused(400, "an input has either data or binary_data_size")
    return tail


def _outputs(document: Mapping[str, Any]) -> list[WantedOutput]:
    all_binary = _flag(_parameters(document), "binary_data_output")
    if "outputs" not in document:
        return [WantedOutput(name=name, binary=all_binary) for name in OUTPUTS]
    wanted = []
    for one in _field(document, "outputs", list):
        name = one.get("name") if isinstance(one, dict) else one
        if not isinstance(one, dict) or name not in OUTPUTS:
            raise Refused(400, f"unknown output {shown(str(name))}; there are {', '.join(OUTPUTS)}")
        parameters = _parameters(one)
        count = parameters.get("classification", 0)
        if type(count) is not int or count < 0:
            raise Refused(400, "classification must be a number of classes")
        binary = _flag(parameters, "binary_data", default=all_binary)
        wanted.append(WantedOutput(name=name, classification=count, binary=binary))
    if not wanted or len({one.name for one in wanted}) != len(wanted):
        raise Refused(400, "outputs must name one output or more, each once")
    return wanted


def _flag(parameters: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise Refused(400, f"{name} must be true or false")
    return value


def _pixels(given: Mapping[str, Any], shape: list[int], binary: bytes | None) -> NDArray[np.uint8]:
    expected = int(np.prod(shape, dtype=np.int64))
    if binary is not None:
        if len(binary) != expected:
            raise Refused(400, f"shape {shape} of UINT8 is {expected} bytes, not {len(binary)}")
        return np.frombuffer(binary, np.uint8).reshape(shape)
    data = given.get("data")
    try:
        values = np.array(data)
    except (ValueError, OverflowError) as error:
        raise Refused(400, "data must be a list of numbers, flat or nested as its shape") from error
    if (
        values.dtype.kind not in "iu"
        or values.size != expected
        or (values.ndim != 1 and list(values.shape) != shape)
    ):
        raise Refused(400, f"data must be {expected} integers, flat or nested as its shape")
    if values.min() < 0 or values.max() > 255:
        raise Refused(400, "data must be from 0 to 255")
    return values.astype(np.uint8).reshape(shape)


def _files(given: Mapping[str, Any], count: int, binary: bytes | None) -> list[bytes]:
    """Return encoded images: in binary data each after its length, in JSON as base64."""
    if binary is not None:
        return _elements(binary, count)
    data = given.get("data")
    texts = (
        [one[0] if isinstance(one, list) and len(one) == 1 else one for one in data]
        if isinstance(data, list)
        else []
    )
    if len(texts) != count or not all(isinstance(text, str) for text in texts):
        raise Refused(400, f"data must be a list of {count} strings: image files in base64")
    try:
        return [base64.b64decode(text, validate=True) for text in texts]
    except (binascii.Error, ValueError) as error:
        raise Refused(400, f"data is not base64: {error}") from error


def _elements(binary: bytes, count: int) -> list[bytes]:
    """Split binary BYTES: each element behind its length, 4 bytes, little-endian."""
    found: list[bytes] = []
    at = 0
    while at < len(binary) and len(found) < count:
        (length,) = struct.unpack_from("<I", binary, at) if at + 4 <= len(binary) else (len(binary),)
        found.append(binary[at + 4 : at + 4 + length])
        at += 4 + length
    if len(found) != count or at != len(binary):
        raise Refused(400, f"the binary data is not {count} elements, each behind its length in 4 bytes")
    return found
