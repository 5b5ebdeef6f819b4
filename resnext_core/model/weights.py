"""The neutral weights file: safetensors whose header carries the manifest as JSON. Nothing is executed on load."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from resnext_core.errors import DataError, ResnextError, one_line, quoted, shown
from resnext_core.files import atomic_path
from resnext_core.files.plain import MOST_JSON, parse_strict_json, read_text
from resnext_core.model.preprocess import PreprocessSpec, evaluated_at
from resnext_core.model.proof import Golden as Golden
from resnext_core.model.proof import Precision, Proof
from resnext_core.model.spec import ModelSpec

#: Key of the manifest in the safetensors header, and of every artefact's metadata.
MANIFEST_KEY = "resnext"
FORMAT_VERSION = 1
#: Most tensors in a weights file of any program; the largest network, with one convolution per group, has 20,000.
MOST_TENSORS = 100_000
#: Field of a weights file's manifest with the digest of all other fields; optional in artefacts.
_SEAL = "manifest_sha256"
#: Start of that field in the text; the digest is of the text before it, with a closing brace.
_SEAL_FIELD = f', "{_SEAL}": "'


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """A network ready to serve: its spec, preprocessing, class names and tensors.

    `tensors` are float32 arrays for every name of ``spec.tensors``, with the shapes there. `origin` says where
    they came from, `metrics` what they reached; both are JSON values for information. `golden` are logits with which a
    loader can check that it computes this network, see :mod:`resnext_core.serving.golden`; for these `tensors` only.
    `named` is True if `classes` are names and False if they are only numbers. None, as in older files:
    they are names unless they are 0, 1, ...
    """

    spec: ModelSpec
    preprocess: PreprocessSpec
    classes: tuple[str, ...]
    tensors: Mapping[str, NDArray[Any]]
    origin: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    golden: Golden | None = None
    named: bool | None = None

    def __post_init__(self) -> None:
        check_tensors(self.spec, self.tensors)
        if len(self.classes) != self.spec.num_classes:
            raise DataError(
                f"{len(self.classes)} class names for a network of {self.spec.num_classes} classes"
            )
        if (reason := bad_class_names(self.classes)) is not None:
            raise DataError(reason)

    @property
    def has_names(self) -> bool:
        """True where `classes` are names; see :func:`has_names`."""
        return has_names(self.classes, self.named)

    @property
    def digest(self) -> str:
        """``sha256:<hex>`` over names, shapes and bytes of all tensors in the order of the spec."""
        return tensor_digest(self.spec, self.tensors)

    def manifest(self) -> dict[str, Any]:
        """Return the manifest: everything but the tensors, as JSON types."""
        return {
            "format": FORMAT_VERSION,
            "model": self.spec.to_dict(),
            "preprocess": self.preprocess.to_dict(),
            "classes": list(self.classes),
            **({"named_classes": self.named} if self.named is not None else {}),
            "digest": self.digest,
            "origin": dict(self.origin),
            "metrics": dict(self.metrics),
            **({"golden": self.golden.to_dict()} if self.golden is not None else {}),
        }

    def evaluated_at(self, size: int | None, crop_pct: float | None = None) -> Weights:
        """Return the network for images of another `size`, see :func:`~resnext_core.model.preprocess.evaluated_at`.

        It is fully convolutional up to its mean over all places, so its tensors stay. Golden logits are of one size.
        """
        preprocess = evaluated_at(self.preprocess, size, crop_pct)
        if preprocess == self.preprocess:
            return self
        golden = self.golden if preprocess.size == self.spec.image_size else None
        spec = self.spec.replace(image_size=preprocess.size)
        return self.replace(spec=spec, preprocess=preprocess, golden=golden)

    def replace(self, **changes: Any) -> Weights:
        """Return a copy with some fields changed; other tensors, spec or preprocessing drop the golden logits."""
        if changes.keys() & {"tensors", "spec", "preprocess"}:
            changes = {"golden": None, **changes}
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A parsed manifest.

    `precision` is what an artefact computes in (``int8``, ``float16``, ``bfloat16``; None for float32), `proofs` what
    it was found to compute by instruction set, see :mod:`resnext_core.model.proof`. `content` is the digest that an
    artefact's exporter noted of all but its metadata, None where it noted none.
    """

    spec: ModelSpec
    preprocess: PreprocessSpec
    classes: tuple[str, ...]
    digest: str
    origin: Mapping[str, Any]
    metrics: Mapping[str, Any]
    golden: Golden | None = None
    named: bool | None = None
    precision: str | None = None
    proofs: Mapping[str, Proof] = field(default_factory=dict)
    content: str | None = None

    @property
    def has_names(self) -> bool:
        """True where `classes` are names; see :func:`has_names`."""
        return has_names(self.classes, self.named)

    def same_file(self, other: Manifest) -> bool:
        """Return whether `other` is of the same file, whose proofs may have changed meanwhile."""
        return replace(self, proofs={}) == replace(other, proofs={})


def has_names(classes: Sequence[str], named: bool | None) -> bool:
    """Return whether `classes` are names: `named` if it is not None, otherwise whether they are not 0, 1, ..."""
    return named if named is not None else tuple(classes) != tuple(map(str, range(len(classes))))


def bad_class_names(classes: Sequence[str]) -> str | None:
    """Return why `classes` are not valid class names (a duplicate, an empty name), or None."""
    seen: dict[str, int] = {}
    for i, name in enumerate(classes):
        if not name:
            return f"class {i} has an empty name"
        if seen.setdefault(name, i) != i:
            return f"classes {seen[name]} and {i} have the same name {shown(name)}"
    return None


def check_tensors(spec: ModelSpec, tensors: Mapping[str, NDArray[Any]], where: str = "weights") -> None:
    """Raise DataError listing what is missing, unexpected, misshapen or not finite."""
    if (
        sum(spec.depths) > 4 * len(tensors) + 16
    ):  # before building a table of a network that no such file can hold
        raise DataError(
            f"{where} do not fit {shown(spec.variant)}: {len(tensors)} tensors for {sum(spec.depths)} blocks"
        )
    wanted = {t.name: t.shape for t in spec.tensors}
    problems = [f"missing {n}" for n in wanted if n not in tensors]
    problems += [f"unexpected {shown(n)}" for n in tensors if n not in wanted]
    for name, shape in wanted.items():
        if name not in tensors:
            continue
        array = tensors[name]
        if tuple(array.shape) != shape:
            problems.append(f"{name} is {shown(tuple(array.shape))}, not {shape}")
        elif array.dtype != np.float32:
            problems.append(f"{name} is {array.dtype}, not float32")
        elif not np.isfinite(array).all():
            problems.append(f"{name} holds NaN or infinity")
    if problems:
        listed = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise DataError(f"{where} do not fit {shown(spec.variant)} with {spec.num_classes} classes: {listed}")


def tensor_digest(spec: ModelSpec, tensors: Mapping[str, NDArray[Any]]) -> str:
    """Return ``sha256:<hex>`` over names, shapes and little-endian float32 bytes in the order of the spec."""
    digest = hashlib.sha256()
    for tensor in spec.tensors:
        digest.update(f"{tensor.name}{list(tensor.shape)}".encode())
        digest.update(np.ascontiguousarray(tensors[tensor.name], dtype="<f4").tobytes())
    return f"sha256:{digest.hexdigest()}"


def save_weights(weights: Weights, path: Path, *, parents: bool = True) -> None:
    """Write the neutral file atomically; raises DataError if it cannot be written.

    Missing parent folders are created, unless `parents` is False.
    """
    data = {t.name: np.ascontiguousarray(weights.tensors[t.name]) for t in weights.spec.tensors}
    metadata = {MANIFEST_KEY: sealed(weights.manifest())}
    with atomic_path(path, parents=parents) as temporary:
        try:
            safetensors.numpy.save_file(data, temporary, metadata=metadata)
        except safetensors.SafetensorError as error:
            raise OSError(None, str(error)) from error


def load_weights(path: Path) -> Weights:
    """Read a neutral file; DataError when it is missing, damaged, without a manifest or inconsistent with it."""
    tensors, text = read_safetensors(path)
    if text is None:
        raise DataError(
            f"{path} has no resnext manifest; to use weights of another program, run: resnext-run convert"
        )
    manifest = parse_manifest(text, where=str(path))
    check_tensors(manifest.spec, tensors, where=str(path))
    if tensor_digest(manifest.spec, tensors) != manifest.digest:
        raise DataError(f"{path} is damaged: checksum mismatch of its tensors")
    return Weights(
        spec=manifest.spec,
        preprocess=manifest.preprocess,
        classes=manifest.classes,
        tensors=tensors,
        origin=manifest.origin,
        metrics=manifest.metrics,
        golden=manifest.golden,
        named=manifest.named,
    )


def read_safetensors(path: Path) -> tuple[dict[str, NDArray[Any]], str | None]:
    """Return the tensors and the manifest text (None without one); DataError when the file is damaged."""
    with reading(path), safetensors.safe_open(path, framework="np") as stream:
        text = (stream.metadata() or {}).get(MANIFEST_KEY)
        return {name: stream.get_tensor(name) for name in tensor_names(stream)}, text


def tensor_names(stream: Any) -> list[str]:
    """Return the names in an open safetensors file; ValueError if there are more than any network has.

    Each name takes hundreds of bytes of memory, but few in the file.
    """
    names = list(stream.keys())
    if len(names) > MOST_TENSORS:
        raise ValueError(f"it has {len(names)} tensors, more than {MOST_TENSORS}")
    return names


def read_manifest_text(path: Path) -> str | None:
    """Return the manifest of a safetensors file without reading its tensors; None when it has none."""
    with reading(path), safetensors.safe_open(path, framework="np") as stream:
        return (stream.metadata() or {}).get(MANIFEST_KEY)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn any exception from reading a damaged safetensors file into a DataError."""
    if not path.is_file():
        raise DataError(f"no weights file {path}")
    try:
        yield
    except (safetensors.SafetensorError, OSError, TypeError, ValueError, KeyError, OverflowError) as error:
        reason = shown(one_line(error), 300)
        raise DataError(f"{path} is not a readable safetensors file: {reason}") from error


def parse_manifest(text: str, where: str) -> Manifest:
    """Parse the JSON of a manifest strictly; DataError with `where` and what is wrong."""
    try:
        data = parse_strict_json(text)
        if not isinstance(data, dict):
            raise ValueError(f"it must be a JSON object, not {type(data).__name__}")
        if _SEAL in data and not _sealed_well(text):
            raise DataError(f"{where} is damaged: checksum mismatch of its manifest")
        if type(data["format"]) is not int or data["format"] != FORMAT_VERSION:
            raise DataError(
                f"{where} has manifest format {shown(data['format'])}, this resnext reads {FORMAT_VERSION}"
            )
        spec = ModelSpec.from_dict(data["model"])
        if not isinstance(data["classes"], list):
            raise ValueError("classes must be a list")
        classes = tuple(data["classes"])
        if len(classes) != spec.num_classes or not all(isinstance(c, str) for c in classes):
            raise ValueError(f"{len(classes)} class names for {spec.num_classes} classes")
        if (reason := bad_class_names(classes)) is not None:
            raise ValueError(reason)
        if not isinstance(data.get("named_classes"), (bool, type(None))):
            raise ValueError("named_classes must be true or false")
        check_digest(data["digest"], "digest")
        artefact = data.get("artefact", {})  # what an exporter records about a file
        if not isinstance(artefact, dict):
            raise ValueError("artefact must be an object")
        if "content" in artefact:
            check_digest(artefact["content"], "artefact content")
            if _SEAL not in data:  # exporters write both or none
                raise ValueError(f"missing {_SEAL}")
        for key in ("origin", "metrics"):
            if not isinstance(data[key], dict):
                raise ValueError(f"{key} must be an object")
        preprocess = PreprocessSpec.from_dict(data["preprocess"])
        if preprocess.size != spec.image_size:
            raise ValueError(
                f"preprocessing crops {preprocess.size} pixels, the network takes {spec.image_size}"
            )
        golden = Golden.from_dict(data["golden"], spec.num_classes) if "golden" in data else None
        precision = Precision.from_dict(artefact, golden, spec.num_classes)
        return Manifest(
            spec=spec,
            preprocess=preprocess,
            classes=classes,
            digest=data["digest"],
            origin=data["origin"],
            metrics=data["metrics"],
            golden=golden,
            named=data.get("named_classes"),
            precision=precision.compute,
            proofs=precision.proofs,
            content=artefact.get("content"),
        )
    except DataError:
        raise
    except (ResnextError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        detail = f"missing {error}" if isinstance(error, KeyError) else one_line(error)
        raise DataError(f"{where} has a broken manifest: {shown(detail, 400)}") from error


def manifest_text(path: Path) -> str:
    """Return the text of the file `path`, which holds a manifest alone; DataError when it cannot be read."""
    try:
        return read_text(path, MOST_JSON)
    except DataError as error:
        if isinstance(error.__cause__, UnicodeDecodeError):
            raise DataError(f"{path} is not text") from error
        raise DataError(f"cannot read {path}: {error}") from error


def sealed(manifest: Mapping[str, Any]) -> str:
    """Return `manifest` as JSON that ends with its own digest, which :func:`parse_manifest` checks."""
    text = json.dumps(manifest)
    return f'{text[:-1]}{_SEAL_FIELD}{hashlib.sha256(text.encode()).hexdigest()}"}}'


def _sealed_well(text: str) -> bool:
    """Return whether the last field is the digest of the text before it, as :func:`sealed` writes it."""
    body, _, seal = text.strip(" \t\r\n").rpartition(_SEAL_FIELD)
    return seal == hashlib.sha256(f"{body}}}".encode()).hexdigest() + '"}'


def check_digest(text: Any, what: str) -> None:
    """Raise ValueError unless `text` is ``sha256:`` and 64 hexadecimal digits."""
    if not isinstance(text, str) or not re.fullmatch(r"sha256:[0-9a-f]{64}", text):
        raise ValueError(f"{what} must be sha256: and 64 hexadecimal digits, not {quoted(text)}")
