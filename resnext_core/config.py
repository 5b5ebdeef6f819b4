"""Configuration: typed sections, merged from recipe, user file and ``--set``, with where each value came from."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from resnext_core.errors import DataError, UsageError, quoted, shown, suggest
from resnext_core.files.plain import parse_yaml, read_text


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network. None means: the variant's own value, or for `num_classes` the data's.

    `pretrained` are weights to start from: a run, a checkpoint, a neutral file, or another program's. With
    `pretrained_momentum` its optimizer state is taken along, from a checkpoint folder that has it.
    """

    variant: str = "resnext50_32x4d"
    num_classes: int | None = None
    image_size: int | None = None
    pool_padding: Literal["same", "symmetric"] | None = None
    pretrained: str | None = None
    pretrained_momentum: bool = False


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images are: folders of class folders, or text lists of ``path label`` lines.

    `train`, `val` and `test` are relative to `dir`; None looks for the usual names there, ``none`` leaves a part out.
    `workers` None means one process a core, at most 8; 0 decodes in the main process. An image that cannot be read
    ends the run (`bad_images` ``fail``), or keeps its place as a row that counts as wrong (``count``), or so and is
    put on the run's list and not tried again (``quarantine``). A run ends when more than the share `max_bad` of its
    training images could not be read; None is 1 %, or 10 images where that is more, but at most a tenth and at least
    one image. `quarantine` is a list of files not to be tried.
    """

    dir: str | None = None
    train: str | None = None
    val: str | None = None
    test: str | None = None
    workers: int | None = None
    prefetch: int = 4
    bad_images: Literal["fail", "count", "quarantine"] = "count"
    max_bad: float | None = None
    quarantine: str | None = None


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """Evaluation preprocessing; `resize` None means image_size · 256 / 224."""

    mode: Literal["shorter-side", "squash"] = "squash"
    filter: Literal["antialias", "plain"] = "antialias"
    resize: int | None = None
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    scaled_decode: bool = False


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Training augmentation: random resized crop (area share, aspect ratio), flip, colour jitter."""

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    flip: float = 0.5
    color_jitter: tuple[float, float, float] = (0.4, 0.4, 0.4)
    scaled_decode: bool = True


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """SGD with momentum: v = momentum·v + (g + weight_decay·p); p −= lr·v.

    `lr` is meant at a global batch of `lr_batch` and scaled linearly to the real one (Goyal et al.,
    arXiv:1706.02677); `lr_batch` None takes `lr` as it is. Decay falls on convolution and dense weights only.
    `clip_norm` bounds the global gradient norm.
    """

    lr: float = 0.1
    lr_batch: int | None = 256
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip_norm: float | None = None


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over time; see :mod:`resnext_core.training.schedule`. `t_max` None means train.epochs."""

    kind: Literal["cosine-epoch", "cosine-step", "step", "constant"] = "cosine-epoch"
    warmup_epochs: float = 1.0
    t_max: float | None = None
    eta_min: float = 0.0
    milestones: tuple[float, ...] = (30.0, 60.0, 90.0, 120.0)
    gamma: float = 0.1


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Cross-entropy with smoothed targets.

    `smoothing_form` ``others``: 1 − ε for the class and ε / (K − 1) elsewhere (the ModelZoo's);
    ``uniform``: ε / K everywhere, plus 1 − ε for the class (Szegedy et al., arXiv:1512.00567).
    """

    smoothing: float = 0.1
    smoothing_form: Literal["others", "uniform"] = "others"


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """Arithmetic of a training step. Weights, momentum and the loss are float32 whatever `compute` is.

    `bn_float32` False computes batch normalisation in `compute` too (the ModelZoo's O3). The loss is
    multiplied by the scale and the gradients divided by it; ``dynamic`` starts at `scale`, halves it on
    overflow and doubles it after `growth_interval` good steps; a step that overflows is skipped.
    """

    compute: Literal["float32", "float64", "float16", "bfloat16"] = "float32"
    bn_float32: bool = True
    loss_scale: Literal["none", "fixed", "dynamic"] = "none"
    scale: float = 1024.0
    growth_interval: int = 2000


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The run. `batch_size` is global: samples an optimizer step, over all ranks and accumulated micro-batches.

    A checkpoint is saved every `checkpoint_every` epochs, at each evaluation, and with `checkpoint_steps` also every so
    many steps; `background_saving` writes it beside the training. A step whose loss is not a number ends the
    run (`nonfinite` ``stop``), or is left out and counted (``skip``).
    """

    epochs: int = 150
    batch_size: int = 256
    accumulate: int = 1
    ema_decay: float | None = None
    seed: int = 1
    eval_every: int = 1
    eval_start: int = 1
    checkpoint_every: int = 1
    checkpoint_steps: int | None = None
    background_saving: bool = True
    keep: int = 3
    best: Literal["top1", "top5"] = "top1"
    nonfinite: Literal["stop", "skip"] = "stop"
    log_every: int = 20


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation batch (a rank's); the result does not depend on it.

    `self_check` computes a model's golden logits, where it carries some, before it is used.
    """

    batch_size: int = 64
    self_check: bool = True


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Artefacts of a whole job; empty `formats` means every one that an available backend can write."""

    formats: tuple[str, ...] = ()
    batch_size: int | None = None
    input: Literal["uint8", "float"] = "uint8"
    fold_bn: bool = True


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Where runs go. `tensorboard` also writes event files."""

    dir: str = "runs"
    name: str | None = None
    tensorboard: bool = False


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole configuration; one field a section, `backends` the validated options by backend id."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    preprocess: PreprocessConfig = PreprocessConfig()
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    loss: LossConfig = LossConfig()
    precision: PrecisionConfig = PrecisionConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    export: ExportConfig = ExportConfig()
    output: OutputConfig = OutputConfig()
    backends: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain YAML types; backend sections stand beside the others under their id."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(dataclasses.replace(self, backends={})))
        del plain["backends"]
        for name, options in self.backends.items():
            plain[name] = _plain(dataclasses.asdict(options))
        return plain

    def to_yaml(self) -> str:
        """Return the configuration as YAML that :func:`load_config` takes back."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One source of values: a nested mapping and the words that tell where it came from."""

    source: str
    values: Mapping[str, Any]


_SECTIONS: Mapping[str, type] = {
    f.name: type(f.default) for f in dataclasses.fields(Config) if f.name != "backends"
}


def load_config(
    layers: Iterable[Layer], backend_options: Mapping[str, type] | None = None
) -> tuple[Config, dict[str, str]]:
    """Merge `layers`, the later over the earlier, into a Config and the source of every dotted key.

    `backend_options` maps backend ids to their option dataclasses. Unknown sections and keys, and values
    of the wrong type, raise UsageError naming the source.
    """
    sections = {**_SECTIONS, **(backend_options or {})}
    merged: dict[str, dict[str, Any]] = {name: {} for name in sections}
    sources: dict[str, str] = {}
    for layer in layers:
        for section, values in layer.values.items():
            if section not in sections:
                raise UsageError(
                    f"{layer.source}: unknown config section '{shown(section)}'{suggest(shown(section), sections)}"
                )
            if values is None:
                continue
            if not isinstance(values, Mapping):
                raise UsageError(
                    f"{layer.source}: section '{section}' must be a mapping, not {quoted(values)}"
                )
            hints = typing.get_type_hints(sections[section])
            for key, value in values.items():
                if key not in hints:
                    raise UsageError(
                        f"{layer.source}: unknown config key '{section}.{shown(key)}'{suggest(shown(key), hints)}"
                    )
                where = f"{layer.source}: {section}.{key}"
                merged[section][key] = _coerce(value, hints[key], where)
                sources[f"{section}.{key}"] = layer.source
    built = {}
    for name, cls in sections.items():
        for f in dataclasses.fields(cls):
            sources.setdefault(f"{name}.{f.name}", "default")
        try:
            built[name] = cls(**merged[name])
        except UsageError:
            raise
        except (TypeError, ValueError) as error:
            raise UsageError(f"config section '{name}': {error}") from error
    config = Config(
        **{name: built[name] for name in _SECTIONS},
        backends={name: built[name] for name in sections if name not in _SECTIONS},
    )
    _check(config, sources)
    return config, sources


def read_layer(path: Path) -> Layer:
    """Read a YAML file as a layer; UsageError when it is missing or not a mapping of sections."""
    try:
        values = parse_yaml(read_text(path), f"{path}:")
    except DataError as error:
        raise UsageError(f"cannot read config {path}: {error}") from error
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise UsageError(f"{path}: a config file is a mapping of sections, not {type(values).__name__}")
    return Layer(source=str(path), values=values)


def parse_set(assignments: Iterable[str]) -> list[Layer]:
    """Turn ``section.key=value`` arguments of ``--set`` into layers; the value is YAML."""
    layers = []
    for text in assignments:
        name, equals, value = text.partition("=")
        section, dot, key = name.strip().partition(".")
        if not equals or not dot or not key:
            raise UsageError(f"--set takes section.key=value, got '{shown(text)}'")
        source = f"--set {shown(text)}"
        layers.append(
            Layer(source=source, values={section: {key: parse_yaml(value, f"{source}: the value is")}})
        )
    return layers


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """Return `value` as `hint`; only int → float, numeric text → float and list → tuple are converted."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        rest = [a for a in args if a is not type(None)]
        for option in rest[:-1]:
            try:
                return _coerce(value, option, where)
            except UsageError:
                continue
        return _coerce(value, rest[-1], where)
    if origin is Literal:
        if value in args and type(value) in {type(a) for a in args}:
            return value
        hinted = suggest(shown(value), map(str, args))
        raise UsageError(f"{where}: must be one of {', '.join(map(str, args))}, not {quoted(value)}{hinted}")
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or (args[-1] is not ... and len(value) != len(args)):
            count = "" if args[-1] is ... else f" of {len(args)}"
            raise UsageError(f"{where}: must be a list{count}, not {quoted(value)}")
        kinds = [args[0]] * len(value) if args[-1] is ... else args
        return tuple(_coerce(v, k, where) for v, k in zip(value, kinds, strict=True))
    if hint is float and not isinstance(value, bool):
        if isinstance(value, (int, float, str)):  # YAML 1.1 reads 1e-4 as text
            try:
                return float(value)
            except (ValueError, OverflowError):
                pass
    elif hint is Any or (isinstance(hint, type) and type(value) is hint):
        return value
    name = {"str": "text", "int": "an integer", "float": "a number", "bool": "true or false"}.get(
        getattr(hint, "__name__", ""), str(hint)
    )
    raise UsageError(f"{where}: must be {name}, not {quoted(value)}")


def _check(config: Config, sources: Mapping[str, str]) -> None:
    """Refuse values that no run can have, naming where they came from."""
    positive = [
        "train.epochs", "train.batch_size", "train.accumulate", "train.eval_every", "train.checkpoint_every",
        "train.keep", "train.log_every", "eval.batch_size", "data.prefetch", "precision.scale",
        "precision.growth_interval",
    ]  # fmt: skip
    not_negative = [
        "data.workers", "optimizer.lr", "optimizer.weight_decay", "schedule.warmup_epochs", "train.seed",
        "schedule.eta_min",
    ]  # fmt: skip
    share = ["data.max_bad", "augment.flip", "loss.smoothing", "optimizer.momentum", "train.ema_decay"]

    def value(key: str) -> Any:
        section, name = key.split(".")
        return getattr(getattr(config, section), name)

    def refuse(key: str, rule: str) -> None:
        raise UsageError(f"{sources[key]}: {key} must be {rule}, not {quoted(value(key))}")

    for key in positive:
        if not value(key) > 0:
            refuse(key, "above 0")
    for key in not_negative:
        if value(key) is not None and not value(key) >= 0:
            refuse(key, "0 or more")
    for key in share:
        if value(key) is not None and not 0 <= value(key) <= 1:
            refuse(key, "between 0 and 1")
    if config.train.seed >= 2**63:
        refuse("train.seed", "below 2^63")
    optional = [
        "export.batch_size",
        "optimizer.lr_batch",
        "optimizer.clip_norm",
        "schedule.t_max",
        "train.checkpoint_steps",
    ]
    for key in optional:
        if value(key) is not None and not value(key) > 0:
            refuse(key, "above 0, or null")
    low, high = config.augment.scale
    if not 0 < low <= high <= 1:
        refuse("augment.scale", "two shares 0 < low <= high <= 1")
    low, high = config.augment.ratio
    if not 0 < low <= high:
        refuse("augment.ratio", "two ratios 0 < low <= high")
    if any(not 0 <= j <= 1 for j in config.augment.color_jitter):
        refuse("augment.color_jitter", "three numbers between 0 and 1")
    if not all(math.isfinite(m) for m in config.preprocess.mean):
        refuse("preprocess.mean", "three finite numbers")
    if not all(0 < s < math.inf for s in config.preprocess.std):
        refuse("preprocess.std", "three finite numbers above 0")
    for section in _SECTIONS:
        for name, given in vars(getattr(config, section)).items():
            key = f"{section}.{name}"
            if any(isinstance(v, float) and not math.isfinite(v) for v in _each(given)):
                refuse(key, "finite")
            if type(given) is int and given >= 2**31 and key != "train.seed":
                refuse(key, "below 2^31")
            if any(isinstance(v, str) and ("\0" in v or len(v) > _LONGEST_TEXT) for v in _each(given)):
                refuse(key, f"text of at most {_LONGEST_TEXT} characters without a null character")


#: Of a setting that is text: no path is longer.
_LONGEST_TEXT = 4096


def _each(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
