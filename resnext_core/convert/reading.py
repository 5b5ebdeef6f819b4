"""Convert another program's tensors to neutral weights: strict, and with a report on every tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.convert.containers import read_tensors
from resnext_core.convert.names import NAMINGS, Naming, detect, network_prefixes
from resnext_core.convert.published import Published, find_published
from resnext_core.convert.report import Change
from resnext_core.errors import DataError, UsageError, shown
from resnext_core.files import file_digest
from resnext_core.interfaces import StoredTensors, WeightFile
from resnext_core.model.preprocess import preprocess_spec
from resnext_core.model.sidecar import from_manifest, read_sidecar
from resnext_core.model.spec import VARIANTS, ModelSpec, PoolPadding
from resnext_core.model.weights import Weights, check_tensors, load_weights, read_manifest_text

#: Floating-point types that float32 holds without loss.
_WIDENED = (np.dtype(np.float16),)


@dataclass(frozen=True, kw_only=True, eq=False)
class Converted:
    """Neutral weights, the momentum found beside them (neutral names; empty if none), and what was done.

    `headless` is True if the file has no classifier, and that of `weights` is zeros. `published` is what the file was
    published with, where that is known; the preprocessing of `weights` has it but for what was given.
    """

    weights: Weights
    naming: Naming
    changes: tuple[Change, ...]
    headless: bool = False
    published: Published | None = None
    momentum: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """What is known about a file without a manifest: None is inferred from its tensors, or a default of its format.

    `spec` is the whole network, and leaves nothing to `variant` and the others. `preprocess` are settings of the
    configuration's section that differ from the scheme's defaults. `new_head` is the number of classes of a classifier
    that will be initialised, so that the file may lack one; None refuses such a file.
    """

    naming: str | None = None
    spec: ModelSpec | None = None
    variant: str | None = None
    num_classes: int | None = None
    image_size: int | None = None
    pool_padding: PoolPadding | None = None
    classes: Sequence[str] | None = None
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    new_head: int | None = None


def from_tensors(
    tensors: Mapping[str, NDArray[Any]] | StoredTensors,
    path: Path,
    given: ModelDescription = ModelDescription(),
    *,
    moments: bool = False,
) -> Converted:
    """Return `tensors` of the file `path` as neutral weights; with `moments` the optimizer's momentum too.

    Raises UsageError if the user must specify more, DataError listing what is missing, unexpected or misshapen.
    """
    stored = tensors if isinstance(tensors, StoredTensors) else StoredTensors(tensors=tensors)
    naming = _naming(stored.tensors, path, given)
    plain = _strip(stored.tensors, naming, path)
    dropped, kept, moved = _sort(plain, naming, moments)
    if naming.id == "torch":
        dropped += _only_network(plain, kept, path)
    headless = _without_head(kept, naming)
    if headless:
        dropped += _add_head(plain, kept, naming, given, path)
    spec = _spec(kept, naming, given, path)
    # before building tables of a network that no such file can hold: a manifest may claim 4096 blocks of 4096 groups
    if sum(spec.depths) * (spec.groups if naming.split else 1) > 4 * len(kept):
        raise DataError(
            f"{path} does not fit: {len(kept)} weights for {sum(spec.depths)} blocks of {spec.groups} groups"
        )
    pieces = naming.pieces(spec)
    dropped += [
        Change(kind="dropped", source=(n,), target=(), reason=why) for n, why in stored.others.items()
    ]
    changes, neutral = _gather(kept, pieces, plain, path, stored.widened)
    if headless:
        changes = [c for c in changes if not c.target[0].startswith("fc.")]
        neutral["fc.weight"] = np.zeros((spec.num_classes, spec.features), np.float32)
    momentum: dict[str, NDArray[Any]] = {}
    if moments:
        learned = {t.name: pieces[t.name] for t in spec.tensors if t.trainable}
        moved_changes, momentum = _gather(
            moved, learned, plain, path, stored.widened, prefix=naming.moments or ""
        )
        changes += moved_changes
    check_tensors(spec, neutral, where=str(path))
    digest = file_digest(path)
    published = find_published(path, digest, spec.variant, naming.id) if given.spec is None else None
    defaults = naming.preprocess
    if published is not None:
        stated = (
            given.preprocess.get("resize") or published.size
        )  # a smaller one belongs to the variant's own size
        if given.image_size is None and published.size <= stated:
            spec = spec.replace(image_size=published.size)
        defaults = replace(defaults, **published.settings(spec.image_size))
    weights = Weights(
        spec=spec,
        preprocess=preprocess_spec(replace(defaults, **given.preprocess), spec.image_size),
        classes=_classes(given, spec),
        named=given.classes is not None,
        tensors={t.name: neutral[t.name] for t in spec.tensors},
        origin={
            "file": path.name, "file_digest": digest, "names": naming.id,
            **({"entry": stored.entry} if stored.entry else {}),
            **({"published": published.name} if published is not None else {}),
        },
    )  # fmt: skip
    step = plain["global_step"][1] if "global_step" in plain else np.zeros(())
    return Converted(
        weights=weights, naming=naming, changes=tuple(changes + dropped), momentum=momentum, headless=headless,
        published=published,
        step=int(step.ravel()[0]) if step.size == 1 and np.isfinite(step).all() else 0,
    )  # fmt: skip


def read_foreign(
    path: Path, given: ModelDescription, plugins: Mapping[str, WeightFile]
) -> tuple[Weights, bool]:
    """Return the weights of a neutral file or of another program's, and whether its classifier is missing."""
    if path.suffix == ".safetensors" and read_manifest_text(path) is not None:
        return load_weights(path), False
    found = read_converted(path, given, plugins)
    return found.weights, found.headless


def read_converted(
    path: Path, given: ModelDescription, plugins: Mapping[str, WeightFile], *, moments: bool = False
) -> Converted:
    """Return what a file of another world holds. A manifest beside it takes the place of `given`."""
    manifest = read_sidecar(path)
    if manifest is not None:
        given = ModelDescription(
            naming=given.naming, spec=manifest.spec, classes=manifest.classes,
            image_size=manifest.spec.image_size,
        )  # fmt: skip
    found = from_tensors(read_tensors(path, plugins), path, given, moments=moments)
    if manifest is None:
        return found
    return replace(found, weights=from_manifest(found.weights, manifest, path))


def _naming(tensors: Mapping[str, Any], path: Path, given: ModelDescription) -> Naming:
    if all(not array.size for array in tensors.values()):
        raise DataError(
            f"the tensors of {path} are empty: it is one part of a DeepSpeed ZeRO-3 checkpoint; join the parts "
            "with its zero_to_fp32.py"
        )
    if given.naming is not None:
        return NAMINGS[given.naming]
    naming = detect(tensors)
    if naming is None:
        _say_why(tensors, path)
        some = ", ".join(shown(name) for name in sorted(tensors)[:3])
        raise DataError(
            f"the tensors of {path} ({some}, ...) are not a ResNeXt of {', '.join(NAMINGS)}; "
            "if they are one of these, name it with --from"
        )
    return naming


def _say_why(tensors: Mapping[str, NDArray[Any]], path: Path) -> None:
    """Raise DataError if it is obvious why the file is not a ResNeXt."""
    numbered = sum(re.match(r"(\w+\.)?\d+\.", name) is not None for name in tensors)
    if 2 * numbered > len(tensors):
        raise DataError(
            f"the layers of {path} are numbered, as by nn.Sequential and fastai, so that a ResNeXt cannot be "
            "recognised by name; save the state_dict of the network from which they were taken"
        )


def _only_network(plain: _Plain, kept: dict[str, NDArray[Any]], path: Path) -> list[Change]:
    """Remove from `kept` the prefix of a module around the network, and drop tensors outside of the network.

    Of several networks the one named as an average is taken. Raises DataError if that is not unique.
    """
    prefixes = network_prefixes(kept)
    if not prefixes or "" in prefixes:
        return []
    averages = [p for p in prefixes if re.search(r"(^|[._])(ema|averaged?|swa)([._]|$)", p)]
    if len(prefixes) > 1 and len(averages) != 1:
        some = ", ".join(shown(p) for p in prefixes[:4])
        raise DataError(f"{path} holds several networks ({some}); save the state_dict of only one")
    prefix = (averages or prefixes)[0]
    reason = f"outside of the network '{shown(prefix)}'"
    if len(prefixes) > 1:
        reason += ", which was taken as the average"
    outside = [name for name in kept if not name.startswith(prefix)]
    dropped = [Change(kind="dropped", source=(plain[n][0],), target=(), reason=reason) for n in outside]
    inside = {
        name[len(prefix) :]: (plain[name], array) for name, array in kept.items() if name.startswith(prefix)
    }
    kept.clear()
    for short, (original, array) in inside.items():
        kept[short], plain[short] = array, original
    return dropped


#: Names of other kinds of classifiers, beside torch's name.
_HEADS = re.compile(r"(fc|head|classifier|cls_head|last_linear|neck)(\.\w+)*\.(weight|bias)")


def _without_head(kept: Mapping[str, Any], naming: Naming) -> bool:
    """Return whether the file has a network, recognised by its stem, and no classifier."""
    head = {naming.rename("fc.weight"), naming.rename("fc.bias")}
    return naming.rename("conv1.weight") in kept and not head & set(kept)


def _add_head(
    plain: _Plain, kept: dict[str, NDArray[Any]], naming: Naming, given: ModelDescription, path: Path
) -> list[Change]:
    """Add a classifier of zeros to `kept` and drop one of another kind; DataError if no new classifier is wanted."""
    others = [name for name in kept if _HEADS.fullmatch(name)]
    if given.new_head is None:
        other = f" named {naming.rename('fc.weight')}, but {shown(others[0])}" if others else ""
        raise DataError(
            f"{path} has no classifier{other}: it is a backbone and cannot classify; train a classifier with: "
            "resnext-run train --pretrained"
        )
    dropped = []
    for name in others:
        del kept[name]
        reason = "another classifier; a new one is initialised"
        dropped.append(Change(kind="dropped", source=(plain[name][0],), target=(), reason=reason))
    for name in ("fc.weight", "fc.bias"):
        there = naming.rename(name)
        kept[there] = np.zeros(given.new_head if name == "fc.bias" else (given.new_head, 0), np.float32)
        plain[there] = (name, kept[there])
    return dropped


_Plain = dict[str, tuple[str, NDArray[Any]]]


def _strip(tensors: Mapping[str, NDArray[Any]], naming: Naming, path: Path) -> _Plain:
    """Return original name and tensor by the name without prefixes."""
    plain: _Plain = {}
    moments = naming.moments or "\0"
    for name, array in tensors.items():
        head, rest = (moments, name[len(moments) :]) if name.startswith(moments) else ("", name)
        short = head + naming.strip(rest)
        if short.startswith(moments) and not head:  # the prefix stood before `moments.`
            short = moments + naming.strip(short[len(moments) :])
        if short in plain:
            raise DataError(f"{path} holds {shown(short)} twice")
        plain[short] = (name, array)
    return plain


def _sort(
    plain: _Plain, naming: Naming, moments: bool
) -> tuple[list[Change], dict[str, Any], dict[str, Any]]:
    """Return the tensors that are left out (with reasons), the weights, and the moments by their weight's name."""
    dropped: list[Change] = []
    kept: dict[str, NDArray[Any]] = {}
    moved: dict[str, NDArray[Any]] = {}
    for short, (name, array) in plain.items():
        if naming.moments is not None and short.startswith(naming.moments):
            if moments:
                moved[short[len(naming.moments) :]] = array
            else:
                reason = "momentum of the optimizer; use --moments keep to keep it"
                dropped.append(Change(kind="dropped", source=(name,), target=(), reason=reason))
            continue
        why = naming.extra(short)
        if why is not None:
            dropped.append(Change(kind="dropped", source=(name,), target=(), reason=why))
        else:
            kept[short] = array
    return dropped, kept, moved


def _gather(
    found: Mapping[str, NDArray[Any]],
    pieces: Mapping[str, tuple[str, ...]],
    plain: _Plain,
    path: Path,
    widened: Mapping[str, str],
    prefix: str = "",
) -> tuple[list[Change], dict[str, NDArray[Any]]]:
    """Return the changes and the tensors under neutral names; DataError listing names that do not match."""
    wanted = [name for names in pieces.values() for name in names]
    missing = [prefix + name for name in wanted if name not in found]
    unexpected = [prefix + name for name in found if name not in set(wanted)]
    if missing or unexpected:
        problems = [f"missing {n}" for n in missing] + [f"unexpected {shown(n)}" for n in unexpected]
        more = f"; and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise DataError(f"{path} does not fit: {'; '.join(problems[:6])}{more}")
    changes, neutral = [], {}
    for target, names in pieces.items():
        originals = tuple(plain[prefix + name][0] for name in names)
        arrays = [
            _float32(found[name], original, path) for name, original in zip(names, originals, strict=True)
        ]
        if len({a.shape for a in arrays}) > 1:
            raise DataError(f"{path}: the pieces of {target} have different shapes")
        array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=0)
        neutral[target] = np.ascontiguousarray(array)
        types = {widened.get(o, found[n].dtype.name) for n, o in zip(names, originals, strict=True)}
        narrow = ", ".join(sorted(types - {"float32"}))
        label = f"{'momentum/' if prefix else ''}{target}"
        changes.append(
            Change(
                kind="merged" if len(names) > 1 else "same" if originals == (label,) else "renamed",
                source=originals, target=(label,), dtype=narrow or None,
                reason="grouped weight from its groups, along axis 0" if len(names) > 1 else "",
            )
        )  # fmt: skip
    return changes, neutral


def _float32(array: NDArray[Any], name: str, path: Path) -> NDArray[np.float32]:
    if array.dtype == np.float32:
        return array
    if array.dtype in _WIDENED:
        return array.astype(np.float32)
    raise DataError(
        f"{path}: {name} is {array.dtype}, which float32 cannot hold without loss; convert it first"
    )


def _spec(kept: Mapping[str, NDArray[Any]], naming: Naming, given: ModelDescription, path: Path) -> ModelSpec:
    if given.spec is not None:
        return given.spec
    spec = _inferred(kept, naming, path) if given.variant is None else VARIANTS[given.variant]
    changes: dict[str, Any] = {"pool_padding": given.pool_padding or naming.pool_padding}
    if given.variant is not None:
        head = next((a for n, a in kept.items() if n == naming.rename("fc.bias")), None)
        if head is not None and head.ndim == 1 and head.size:
            changes["num_classes"] = int(head.size)
    if given.num_classes is not None:
        changes["num_classes"] = given.num_classes
    if given.image_size is not None:
        changes["image_size"] = given.image_size
    return spec.replace(**changes)


def _inferred(kept: Mapping[str, NDArray[Any]], naming: Naming, path: Path) -> ModelSpec:
    """Return the ModelSpec inferred from names and shapes: everything but the image size, which is the variant's."""
    back = {naming.rename(n): n for n in ("conv1.weight", "fc.bias")}
    shape_of = {back[n]: a.shape for n, a in kept.items() if n in back}
    blocks: dict[tuple[int, int], tuple[int, ...]] = {}
    pattern = re.compile(r"(?:backbone\.)?layer(\d+)\.(\d+)\.conv1\.weight")
    for name, array in kept.items():
        if match := pattern.fullmatch(name):
            blocks[int(match[1]), int(match[2])] = array.shape
    try:
        stem, classes = shape_of["conv1.weight"], shape_of["fc.bias"]
        stages = sorted({stage for stage, _ in blocks})
        depths = tuple(sum(s == stage for s, _ in blocks) for stage in stages)
        width = blocks[1, 0][0]
        head = naming.rename("layer1.0.conv2.weight")
        pieces = sum(n.startswith(head.removesuffix("weight") + "convs.") for n in kept)
        groups = pieces if naming.split else width // kept[head].shape[1]
        widths = [blocks[stage, 0][0] // groups for stage in stages]
        lowest = -(-(width // groups) * 64 // stem[0])
        fits = (
            base
            for base in range(lowest, lowest + 65)
            if all((stem[0] << i) * base // 64 == w for i, w in enumerate(widths))
        )
        base = next(fits, lowest)
        known = VARIANTS.values()
        match_ = next(
            (v for v in known if (v.depths, v.groups, v.base_width, v.stem_width) == (depths, groups, base, stem[0])
             and (v.stem == "imagenet") == (stem[2] == 7)),
            None,
        )  # fmt: skip
        if match_ is not None:
            return match_.replace(num_classes=classes[0])
        return ModelSpec(
            variant=f"resnext{3 * sum(depths) + 2}_{groups}x{base}d", depths=depths, groups=groups, base_width=base,
            stem="imagenet" if stem[2] == 7 else "cifar", stem_width=stem[0], num_classes=classes[0],
            image_size=224 if stem[2] == 7 else 32,
        )  # fmt: skip
    except (KeyError, IndexError, ZeroDivisionError, UsageError) as error:
        raise DataError(
            f"cannot infer the network of {path} from its tensors; name it with --variant ({error})"
        ) from error


def _classes(given: ModelDescription, spec: ModelSpec) -> tuple[str, ...]:
    if given.classes is None:
        return tuple(str(i) for i in range(spec.num_classes))
    return tuple(given.classes)
