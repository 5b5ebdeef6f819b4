"""Find the network in a training program's checkpoint: the moving average if there is one.

Layouts: timm (``state_dict``, ``state_dict_ema``), torchvision's references (``model``, ``model_ema``), Lightning and
mmengine (``state_dict``; there ``ema_state_dict`` holds what was averaged), PyTorch's tutorials
(``model_state_dict``), fastai (``model``), DeepSpeed (``module``), Ultralytics (objects in place of a state dict).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnext_core.convert.pickles import Name, Object, Persistent
from resnext_core.errors import DataError, quoted, shown

#: Moving averages of the weights, and the weights: the first entry that holds tensors is taken.
AVERAGES = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema_model_state_dict",
    "model_ema_state_dict",
    "ema_model",
    "ema",
)
WEIGHTS = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "params_ema", "params",
    "weights",
)  # fmt: skip
#: Levels of a checkpoint that are searched: {"ema": {"module": {...}}}.
_DEPTH = 3
_WEIGHT = re.compile(r".+\.(weight|gamma|running_mean|moving_mean)")
_AVERAGED = "other weights of the checkpoint; {taken} was taken"

IsTensor = Callable[[Any], bool]


@dataclass(frozen=True, kw_only=True)
class State:
    """The tensors of a network, the `entry` that had them ('' at the top), and `others` left out, with reasons."""

    tensors: Mapping[str, Any]
    entry: str = ""
    others: Mapping[str, str] = field(default_factory=dict)


def find_state(path: Path, content: Any, is_tensor: IsTensor) -> State:
    """Return the network in the `content` of the file `path`; DataError with the reason if there is none."""
    found = _find(content, is_tensor, _DEPTH)
    if found is not None:
        return found
    whole = _whole_model(content, is_tensor)
    if whole is not None:
        raise DataError(
            f"{path} is not a state dict: {whole}; load it with the program that made it, and save its state_dict()"
        )
    several = _unnamed(content, is_tensor)
    if len(several) > 1:
        some = ", ".join(quoted(key, 40) for key in several[:4])
        raise DataError(f"{path} holds several networks ({some}); save the state_dict of only one")
    raise DataError(f"{path} is not a state dict: it must map names to tensors")


def _find(content: Any, is_tensor: IsTensor, depth: int) -> State | None:
    if not isinstance(content, dict) or depth < 0:
        return None
    for key in _candidates(content):
        inner = _find(content[key], is_tensor, depth - 1) if isinstance(content[key], dict) else None
        if inner is not None:
            return _nested(content, key, inner, is_tensor)
    tensors = {str(k): v for k, v in content.items() if is_tensor(v)}
    alone = _unnamed(content, is_tensor)
    if len(alone) == 1 and not any(map(_WEIGHT.fullmatch, tensors)):
        inner = _find(content[alone[0]], is_tensor, 0)
        return _nested(content, alone[0], inner, is_tensor) if inner is not None else None
    if not tensors:
        return None
    return State(
        tensors=tensors, others={str(k): "not a tensor" for k, v in content.items() if not is_tensor(v)}
    )


def _candidates(content: Mapping[Any, Any]) -> list[str]:
    averages = [
        key for key in AVERAGES if key in content and not (key == "ema_state_dict" and _is_mmengine(content))
    ]
    return averages + [key for key in WEIGHTS if key in content]


def _is_mmengine(content: Mapping[Any, Any]) -> bool:
    meta = content.get("meta")
    return "state_dict" in content and (
        "message_hub" in content or (isinstance(meta, dict) and "mmengine_version" in meta)
    )


def _nested(content: Mapping[Any, Any], key: str, inner: State, is_tensor: IsTensor) -> State:
    entry = f"{key}.{inner.entry}" if inner.entry else key
    rest = {k: v for k, v in content.items() if k != key}
    others = {
        str(k): "a tensor beside the network" if is_tensor(v) else _what(k, v, key, content)
        for k, v in rest.items()
    }
    return State(tensors=inner.tensors, entry=entry, others={**inner.others, **others})


def _unnamed(content: Any, is_tensor: IsTensor) -> list[Any]:
    """Return the keys that hold a network, by the names of its tensors."""
    if not isinstance(content, dict):
        return []
    inner = {k: v for k, v in content.items() if isinstance(v, dict) and k not in AVERAGES + WEIGHTS}
    return [
        k for k, v in inner.items()
        if any(is_tensor(t) and isinstance(n, str) and _WEIGHT.fullmatch(n) for n, t in v.items())
    ]  # fmt: skip


def _whole_model(content: Any, is_tensor: IsTensor) -> str | None:
    """Describe what is stored instead of a state dict, if it is an object of the training program."""
    entries = [("", content)]
    if isinstance(content, dict):
        entries = [(k, content[k]) for k in AVERAGES + WEIGHTS if k in content]
    for key, value in entries:
        where = f"its entry {quoted(key)}" if key else "it"
        if isinstance(value, Object) and not is_tensor(value):
            return f"{where} is a whole {shown(value.name)}"
        if isinstance(value, Name):
            return f"{where} is {shown(value.text)}"
        if key and isinstance(value, list) and any(map(is_tensor, value)):
            return f"{where} is a list of tensors without names"
    return None


def _what(key: Any, value: Any, taken: str, content: Mapping[Any, Any]) -> str:
    if key == "ema_state_dict" and _is_mmengine(content):
        return "the weights before averaging; mmengine keeps the average in 'state_dict'"
    if isinstance(value, dict) and key in AVERAGES + WEIGHTS:
        return _AVERAGED.format(taken=quoted(taken))
    if isinstance(key, str) and re.match(r"opt(im\w*)?$|optimizer", key):
        return "state of torch's optimizer"
    if isinstance(value, Object):
        return f"not weights: {shown(value.name.rpartition('.')[2], 40)}"
    if isinstance(value, (Name, Persistent)):
        return "not weights: a reference"
    return f"not weights: {type(value).__name__}"
