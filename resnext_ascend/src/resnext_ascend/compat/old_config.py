"""An old ``default_config.yaml``: read, mapped to today's settings, with a report of keys without effect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnext_core.errors import DataError, UsageError, shown, suggest
from resnext_core.files.plain import parse_yaml, read_text

_NETWORKS = {
    "resnext50": "resnext50_32x4d",
    "resnext101": "resnext101_64x4d",
    "resnext152": "resnext152_64x4d",
}
_SCHEDULES = {"cosine_annealing": "cosine-epoch", "exponential": "step"}
#: Devices of the job that the ModelZoo's learning rate was chosen for.
_DEVICES = 8


@dataclass(frozen=True, kw_only=True)
class OldConfig:
    """`values` are settings by section, `flags` are values of the old programs' flags, `report` has lines to print."""

    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    flags: Mapping[str, Any] = field(default_factory=dict)
    report: tuple[str, ...] = ()


def _numbers(value: Any) -> list[float]:
    parts = value.split(",") if isinstance(value, str) else value
    return [float(part) for part in parts]


def _square(value: Any) -> int:
    sides = {int(side) for side in _numbers(value if isinstance(value, (str, list)) else [value])}
    if len(sides) != 1:
        raise ValueError(f"images must be square, not {value}")
    return sides.pop()


def _one_of(table: Mapping[str, str]) -> Callable[[Any], str]:
    def find(value: Any) -> str:
        if value not in table:
            raise ValueError(f"must be one of {', '.join(table)}, not {value}")
        return table[value]

    return find


#: Old key, today's setting, and how its value is read.
SETTINGS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "network": ("model.variant", _one_of(_NETWORKS)),
    "image_size": ("model.image_size", _square),
    "num_classes": ("model.num_classes", int),
    "lr_scheduler": ("schedule.kind", _one_of(_SCHEDULES)),
    "lr_epochs": ("schedule.milestones", _numbers),
    "lr_gamma": ("schedule.gamma", float),
    "eta_min": ("schedule.eta_min", float),
    "T_max": ("schedule.t_max", float),
    "max_epoch": ("train.epochs", int),
    "warmup_epochs": ("schedule.warmup_epochs", float),
    "weight_decay": ("optimizer.weight_decay", float),
    "momentum": ("optimizer.momentum", float),
    "ckpt_interval": ("train.checkpoint_every", int),
    "ckpt_save_max": ("train.keep", int),
}
#: Keys that are flags of the old programs too, which win.
FLAGS = (
    "per_batch_size", "data_url", "train_url", "checkpoint_url", "enable_modelarts", "run_eval", "data_path",
    "output_path", "load_path", "eval_interval", "eval_start_epoch", "eval_per_batch_size", "eval_data_dir",
    "data_dir", "pretrained",
)  # fmt: skip
#: Keys that are read together.
_TOGETHER = ("lr", "is_dynamic_loss_scale", "loss_scale", "label_smooth", "label_smooth_factor")
#: Keys without effect, and why.
NO_EFFECT: Mapping[str, str] = {
    "is_save_on_master": "only rank 0 writes",
    "rank_save_ckpt_flag": "only rank 0 writes",
    "run_distribute": "set by --is_distributed and the launcher",
    "device_target": "set by --platform",
    "device_id": "set by DEVICE_ID",
    "enable_profiling": "MindSpore's profiler has its own switch, MS_PROFILER_OPTIONS",
    "save_best_ckpt": "the best checkpoint is always kept",
    "best_ckpt_name": "the pointer checkpoints/best names the best checkpoint",
    "log_path": "the log is log.txt in the run folder",
    "outputs_dir": "set by --train_url",
    "ckpt_path": "set by --train_url",
    "checkpoint_path": "set by --pretrained",
    "checkpoint_file_path": "set by --pretrained",
    "eval_log_path": "the log is log.txt in the run folder",
    "eval_is_distributed": "every rank takes part in every evaluation, and the counts are added",
    "use_python_multiprocessing": "set by data.workers, which are processes",
    "data_sink_mode": "set by ascend.sink or --data_sink_mode",
    "batch_size": "set by a flag of export",
    "width": "set by a flag of export",
    "height": "set by a flag of export",
    "file_name": "set by a flag of export",
    "file_format": "set by a flag of export",
    "onnx_file_path": "resnext-run eval --weights FILE.onnx",
    "result_path": "resnext-run eval counts the images itself",
    "label_path": "resnext-run eval counts the images itself",
    "seed": "set by --seed of resnext-run; the default is 1, as in the ModelZoo",
}


def read(path: Path) -> OldConfig:
    """Read an old configuration; UsageError for unknown keys (with a suggestion) and wrong values."""
    try:
        old = parse_yaml(read_text(path), f"{path}:", first=True)  # others are its help texts and choices
    except DataError as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    old = {} if old is None else old
    if not isinstance(old, dict):
        raise UsageError(f"{path}: an old configuration is a mapping of keys, not {type(old).__name__}")
    known = {*SETTINGS, *FLAGS, *_TOGETHER, *NO_EFFECT}
    values: dict[str, dict[str, Any]] = {}
    report = []
    for key, value in old.items():
        if key not in known:
            raise UsageError(f"{path}: unknown key '{shown(key)}'{suggest(shown(key), known)}")
        if key in SETTINGS:
            name, convert = SETTINGS[key]
            section, _, field_ = name.partition(".")
            try:
                values.setdefault(section, {})[field_] = convert(value)
            except (TypeError, ValueError) as error:
                raise UsageError(f"{path}: {key}: {error}") from error
        elif key in NO_EFFECT:
            report.append(f"{path}: {key} no longer has an effect: {NO_EFFECT[key]}")
    try:
        report += _together(old, values, path)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from error
    flags = {key: old[key] for key in FLAGS if old.get(key) not in (None, "")}
    return OldConfig(values=values, flags=flags, report=tuple(report))


def _together(old: Mapping[str, Any], values: dict[str, dict[str, Any]], path: Path) -> list[str]:
    """Set what several keys define together; returns lines to report."""
    report = []
    if "lr" in old:
        batch = _DEVICES * int(old.get("per_batch_size", 128))
        values.setdefault("optimizer", {}).update(lr=float(old["lr"]), lr_batch=batch)
        report.append(
            f"{path}: lr {old['lr']} is for a global batch of {batch} (8 devices) and scaled to this job's; "
            "--lr is not scaled"
        )
    if "is_dynamic_loss_scale" in old or "loss_scale" in old:
        dynamic = bool(int(old.get("is_dynamic_loss_scale", 0)))
        scale = 65536.0 if dynamic else float(old.get("loss_scale", 1024))
        values.setdefault("precision", {}).update(loss_scale="dynamic" if dynamic else "fixed", scale=scale)
    if "label_smooth" in old or "label_smooth_factor" in old:
        smooth = bool(int(old.get("label_smooth", 1)))
        smoothing = float(old.get("label_smooth_factor", 0.1)) if smooth else 0.0
        values.setdefault("loss", {})["smoothing"] = smoothing
    return report
