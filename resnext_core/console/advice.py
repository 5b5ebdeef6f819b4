"""What to write in place of an unknown flag: a config key for ``--set``, or a flag that is close."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from resnext_core.errors import shown, suggest

#: Spellings of other programs that are not the name of the key or flag here: to a config key, or to a flag.
_USUAL = {
    "learning_rate": "optimizer.lr",
    "wd": "optimizer.weight_decay",
    "clip_grad": "optimizer.clip_norm",
    "label_smoothing": "loss.smoothing",
    "scheduler": "schedule.kind",
    "sched": "schedule.kind",
    "lr_scheduler": "schedule.kind",
    "warmup": "schedule.warmup_epochs",
    "arch": "model.variant",
    "model": "model.variant",
    "img_size": "model.image_size",
    "input_size": "model.image_size",
    "amp": "precision.compute",
    "fp16": "precision.compute",
    "grad_accum_steps": "train.accumulate",
    "print_freq": "train.log_every",
    "model_ema_decay": "train.ema_decay",
    "num_workers": "data.workers",
    "j": "data.workers",
    "b": "--batch-size",
    "bs": "--batch-size",
    "data_dir": "--data",
    "data_path": "--data",
    "output_dir": "--output",
    "gpus": "--devices",
    "num_gpus": "--devices",
    "nproc_per_node": "--devices",
}

#: The least likeness of names that are taken for a slip, and the longest name that is compared.
_CLOSE, _LONGEST = 0.6, 200


def is_unknown(word: str, flags: Collection[str]) -> bool:
    """Return whether `word` stands for a flag that is not among `flags`; of short ones, those that are usual."""
    flag = word.split("=")[0]
    if flag.startswith("--"):
        return flag not in flags
    return flag.startswith("-") and flag[1:] in _USUAL and flag not in flags


def advice(flag: str, flags: Collection[str], keys: Iterable[str]) -> str:
    """Return what to append to a message on the unknown `flag`, from the `flags` and config `keys` that there are.

    A key of that name comes first, then the closest flag or key, then the list of flags.
    """
    name = flag.lstrip("-").lower().replace("-", "_")
    known = list(keys)
    exact = [key for key in known if name in (key.split(".")[1], key, key.replace(".", "_"))]
    usual = _USUAL.get(name)
    if not exact and usual in known:
        exact = [str(usual)]
    if exact:
        return f"; use {' or '.join(f'--set {key}=...' for key in exact)}"
    if usual in flags:
        return f"; use {usual}"
    begins = [f for f in flags if name and _bare(f).startswith(name)]
    if len(begins) == 1:
        return f"; did you mean '{begins[0]}'?"
    near = max(((_likeness(name, _bare(f)), f) for f in flags), default=(0.0, ""))
    near_key = max(((_likeness(name, key.split(".")[1]), key) for key in known), default=(0.0, ""))
    if max(near[0], near_key[0]) < _CLOSE:
        return suggest("", set(flags) - {"--help"})
    if near_key[0] > near[0]:
        return f"; did you mean '--set {near_key[1]}=...'?"
    return f"; did you mean '{shown(near[1])}'?"


def _bare(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def _likeness(name: str, other: str) -> float:
    if len(name) > _LONGEST:  # comparing takes time by the square of the length
        return 0.0
    return difflib.SequenceMatcher(None, other, name).ratio()
