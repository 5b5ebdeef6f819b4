"""What can be configured: one dataclass a section, with the bounds of each value beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from resnext_core.bounds import Above, Ascending, AtLeast, Between, Bits, OneOf
from resnext_core.config.policies import parse_policy
from resnext_core.errors import UsageError
from resnext_core.metrics import METRICS


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network. None means: the variant's own value, or for `num_classes` the data's.

    `pretrained` are weights to start from: a run, a checkpoint, a neutral file, or another program's. With
    `pretrained_momentum` its optimizer state is taken along, from a checkpoint folder that has it.

    With `stochastic_depth` above 0 the residual branch of a block is left out in training, for each image by itself,
    with a probability that grows linearly from 0 at the first block to that at the last one (Huang et al.,
    arXiv:1603.09382); the branches that stay are divided by their probability to stay.
    """

    variant: str = "resnext50_32x4d"
    num_classes: int | None = None
    image_size: int | None = None
    pool_padding: Literal["same", "symmetric"] | None = None
    pretrained: str | None = None
    pretrained_momentum: bool = False
    stochastic_depth: Annotated[float, Between(0, 0.95)] = 0.0


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images are: folders of class folders, or text lists of ``path label`` lines.

    `train`, `val` and `test` are relative to `dir`; None looks for the usual names there, ``none`` leaves a part out.
    `workers` None means one reader a core, at most 32; 0 decodes in the main process. An image that cannot be read
    ends the run (`bad_images` ``fail``), or keeps its place as a row that counts as wrong (``count``), or so and is
    put on the run's list and not tried again (``quarantine``). A run ends when more than the share `max_bad` of its
    training images could not be read; None is 1 %, or 10 images where that is more, but at most a tenth and at least
    one image. `quarantine` is a list of files not to be tried. `decoder` is what decodes the images: the best that is
    ready here (``auto``), or a named one; the pixels do not depend on it.

    `dir` and the parts may be URLs (``s3://...``). What is read there is kept in the folder `cache`, None for one in
    the user's cache folder, up to `cache_gb` · 10⁹ bytes (0: nothing is kept); what fails is tried `tries` times.

    With `balance` b, training images are drawn so that a class of n images is seen in proportion to n ** (1 - b): as
    often as it occurs with 0, all classes alike with 1. An epoch stays as long as it is.
    """

    dir: str | None = None
    train: str | None = None
    val: str | None = None
    test: str | None = None
    workers: Annotated[int | None, AtLeast(0)] = None
    prefetch: Annotated[int, Above(0)] = 4
    bad_images: Literal["fail", "count", "quarantine"] = "count"
    max_bad: Annotated[float | None, Between(0, 1)] = None
    quarantine: str | None = None
    decoder: str = "auto"
    cache: str | None = None
    cache_gb: Annotated[float, AtLeast(0)] = 20.0
    tries: Annotated[int, Above(0)] = 6
    balance: Annotated[float, Between(0, 1)] = 0.0


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """Evaluation preprocessing; `resize` None means image_size · 256 / 224.

    `filter` and `orientation` hold in training too.
    """

    mode: Literal["shorter-side", "squash"] = "squash"
    filter: Literal["antialias", "bicubic", "plain"] = "antialias"
    resize: int | None = None
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: Annotated[tuple[float, float, float], Above(0)] = (58.395, 57.12, 57.375)
    scaled_decode: bool = False
    orientation: Literal["ignore", "apply"] = "ignore"


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Training augmentation: random resized crop (area share, aspect ratio), flip, `auto`, colour jitter, erasing.

    They come in this order. `auto` and erasing draw from random numbers of their own: turning one on changes nothing
    about the others.

    `auto` is an automatic augmentation, see :mod:`resnext_core.config.policies`; recipes that use one have no colour
    jitter besides. Its rotations, shears and shifts use `auto_filter` (None: bicubic where `preprocess.filter` is, else
    bilinear; ``random`` is bilinear or bicubic) and fill with `auto_fill` (None: the mean for timm's ``rand``, black
    for the others).

    With probability `erasing`, one to `erasing_count` boxes are erased (Zhong et al., arXiv:1708.04896): each takes
    a share of the image in `erasing_area`, divided by their number, and has a ratio of height to width in
    `erasing_ratio`. They are filled with the mean colour (``const``), one random colour (``rand``) or noise
    (``pixel``), normal with the mean and deviation of `preprocess`.

    With `repeats` above 1 an epoch has as many steps as ever and shows fewer images, each that many times in a step,
    every time with other draws.

    With `start_size`, training images have that many pixels a side at first. After as many epochs as the first of
    `size_epochs` says, they grow linearly, to multiples of `size_step`, and have the model's own size after the second.
    """

    scale: Annotated[tuple[float, float], Ascending("shares", most=1)] = (0.08, 1.0)
    ratio: Annotated[tuple[float, float], Ascending("ratios")] = (0.75, 1.3333333333333333)
    flip: Annotated[float, Between(0, 1)] = 0.5
    color_jitter: Annotated[tuple[float, float, float], Between(0, 1)] = (0.4, 0.4, 0.4)
    scaled_decode: bool = True
    auto: str = "none"
    auto_filter: Literal["nearest", "bilinear", "bicubic", "random"] | None = None
    auto_fill: Literal["mean", "black"] | None = None
    erasing: Annotated[float, Between(0, 1)] = 0.0
    erasing_mode: Literal["const", "rand", "pixel"] = "const"
    erasing_area: Annotated[tuple[float, float], Ascending("shares", most=1)] = (0.02, 0.3333333333333333)
    erasing_ratio: Annotated[tuple[float, float], Ascending("ratios")] = (0.3, 3.3333333333333335)
    erasing_count: Annotated[int, Between(1, 100)] = 1
    repeats: Annotated[int, Between(1, 1000)] = 1
    start_size: Annotated[int | None, Between(1, 8192)] = None
    size_epochs: Annotated[tuple[float, float] | None, AtLeast(0)] = None
    size_step: Annotated[int, Between(1, 8192)] = 32

    def __post_init__(self) -> None:
        parse_policy(self.auto)


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Mixing training images with each other: mixup (arXiv:1710.09412) and cutmix (arXiv:1905.04899).

    `mixup` and `cutmix` are alpha of the Beta distribution of the shares; 0 leaves that one out. Each micro-batch is
    mixed with the probability `prob`; where both are on, by cutmix with the probability `switch_prob`. `partner` is
    which image each is mixed with: the micro-batch ``reversed`` (timm), or ``rolled`` by one (torchvision). `box` is
    what is rounded down of the box of cutmix: its ``halves`` (torchvision), or its ``sides`` alone (timm 1.0.31).
    Epochs after `off_epoch` are not mixed; None mixes all.
    """

    mixup: Annotated[float, AtLeast(0)] = 0.0
    cutmix: Annotated[float, AtLeast(0)] = 0.0
    prob: Annotated[float, Between(0, 1)] = 1.0
    switch_prob: Annotated[float, Between(0, 1)] = 0.5
    off_epoch: Annotated[int | None, Above(0)] = None
    partner: Literal["reversed", "rolled"] = "reversed"
    box: Literal["halves", "sides"] = "halves"

    @property
    def on(self) -> bool:
        """True where a training mixes images at all."""
        return max(self.mixup, self.cutmix) > 0


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How gradients g move parameters p. The formulas are in ``docs/contract.md``.

    `kind` ``sgd`` is SGD with `momentum`: v = momentum·v + (g + weight_decay·p); p −= lr·v, or with `nesterov`
    p −= lr·(g + weight_decay·p + momentum·v). ``lamb`` (You et al., arXiv:1904.00962) and ``adamw`` (Loshchilov and
    Hutter, arXiv:1711.05101) use `betas` and `eps` (None: 1e-6 for lamb, 1e-8 for adamw). LAMB scales the step of each
    tensor that decays by its trust ratio, with `trust_all` that of the others too, with `trust_clip` by 1 at most.

    `lr` is meant at a global batch of `lr_batch` and scaled linearly to the real one (Goyal et al.,
    arXiv:1706.02677); `lr_batch` None takes `lr` as it is. Decay falls on convolution and dense weights; with
    `decay_norm` also on the parameters of batch normalisation, with `decay_bias` also on the classifier's bias.
    `clip_norm` bounds the global gradient norm. `agc` bounds the norm of each output's gradient by that share of the
    norm of its weights, but for the classifier (Brock et al., arXiv:2102.06171).

    The learning rate of the last stage is multiplied by `stage_lr`, that of the stage before by its square, and so on
    to the stem; the classifier has all of it.
    """

    kind: Literal["sgd", "lamb", "adamw"] = "sgd"
    lr: Annotated[float, AtLeast(0)] = 0.1
    lr_batch: Annotated[int | None, Above(0)] = 256
    momentum: Annotated[float, Between(0, 1)] = 0.9
    nesterov: bool = False
    betas: Annotated[tuple[float, float], Between(0, 0.999999)] = (0.9, 0.999)
    eps: Annotated[float | None, Above(0)] = None
    weight_decay: Annotated[float, AtLeast(0)] = 1e-4
    decay_norm: bool = False
    decay_bias: bool = False
    clip_norm: Annotated[float | None, Above(0)] = None
    agc: Annotated[float | None, Above(0)] = None
    trust_all: bool = False
    trust_clip: bool = False
    stage_lr: Annotated[float, Above(0), Between(0, 1)] = 1.0


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over time: warm-up, then a curve. The formulas are at :func:`resnext_core.training.schedule.lr_at`.

    In `warmup_epochs` the rate rises linearly to ``optimizer.lr``: from the first step's own share of it, or from the
    share `warmup_start`; at every step, or with `warmup_per` ``epoch`` once an epoch, as torchvision does.

    `kind` is what follows: half a cosine down to `eta_min`, stepped once an epoch (``cosine-epoch``) or at every step
    (``cosine-step``); a straight line down to `eta_min` (``linear``); a factor `gamma` at each of the `milestones`, in
    epochs (``step``); or nothing (``constant``). `t_max` is the length of the curve in epochs, None up to the end.
    Curve and milestones count from the start of the training, with `after_warmup` from the end of the warm-up: so
    do torchvision and mmpretrain.

    ``one-cycle`` (Smith and Topin, arXiv:1708.07120; known as OneCycleLR) rises in `warmup_epochs` along half a cosine
    from the rate divided by `div_factor`, then falls to the first rate divided by `final_div`.
    """

    kind: Literal["cosine-epoch", "cosine-step", "linear", "one-cycle", "step", "constant"] = "cosine-epoch"
    warmup_epochs: Annotated[float, AtLeast(0)] = 1.0
    warmup_start: Annotated[float | None, Between(0, 1)] = None
    warmup_per: Literal["step", "epoch"] = "step"
    after_warmup: bool = False
    t_max: Annotated[float | None, Above(0)] = None
    eta_min: Annotated[float, AtLeast(0)] = 0.0
    milestones: tuple[float, ...] = (30.0, 60.0, 90.0, 120.0)
    gamma: float = 0.1
    div_factor: Annotated[float, AtLeast(1)] = 25.0
    final_div: Annotated[float, AtLeast(1)] = 10000.0

    def __post_init__(self) -> None:
        if self.warmup_per == "epoch" and self.warmup_epochs % 1:
            raise UsageError(
                f"schedule.warmup_per is epoch, and schedule.warmup_epochs {self.warmup_epochs:g} is not a whole "
                "number of epochs; round it, or set schedule.warmup_per=step"
            )
        if self.kind == "one-cycle":
            own = ScheduleConfig()  # the values that leave it alone
            for key in ("warmup_start", "warmup_per", "after_warmup", "t_max", "eta_min"):
                if getattr(self, key) != getattr(own, key):
                    raise UsageError(
                        f"schedule.{key} does not apply to schedule.kind one-cycle, whose warm-up and end are given by "
                        "schedule.warmup_epochs, div_factor and final_div; remove it"
                    )
            return
        for key, default in (("div_factor", 25.0), ("final_div", 10000.0)):
            if getattr(self, key) != default:
                raise UsageError(
                    f"schedule.{key} is of schedule.kind one-cycle, not of {self.kind}; remove it, or set "
                    "schedule.kind=one-cycle"
                )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Cross-entropy (`kind` ``ce``) or binary cross-entropy of each class (``bce``), with smoothed targets.

    `smoothing_form` ``others``: 1 − ε for the class and ε / (K − 1) elsewhere (the ModelZoo's);
    ``uniform``: ε / K everywhere, plus 1 − ε for the class (Szegedy et al., arXiv:1512.00567).

    Binary cross-entropy is the mean over the classes, with `bce_sum` their sum. With `bce_threshold` t its targets are
    1 where they are above t and 0 elsewhere (Wightman et al., arXiv:2110.00476).

    For classes of unlike size: `class_weights` weigh the images of a class by the inverse of its number of training
    images (``inverse``), or of the effective number (1 - β ** n) / (1 - β) with β = `effective_beta` (``effective``;
    Cui et al., arXiv:1901.05555); the mean weight of the images that are trained on is 1. `logit_adjustment` τ adds
    τ·log of the share of each class in these images to the logits in the loss (Menon et al., arXiv:2007.07314). Both
    take ``data.balance`` into account.
    """

    kind: Literal["ce", "bce"] = "ce"
    smoothing: Annotated[float, Between(0, 1)] = 0.1
    smoothing_form: Literal["others", "uniform"] = "others"
    bce_sum: bool = False
    bce_threshold: Annotated[float | None, Between(0, 1)] = None
    class_weights: Literal["none", "inverse", "effective"] = "none"
    effective_beta: Annotated[float, Between(0, 0.999999)] = 0.9999
    logit_adjustment: Annotated[float, AtLeast(0)] = 0.0


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
    scale: Annotated[float, Above(0)] = 1024.0
    growth_interval: Annotated[int, Above(0)] = 2000


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The run. `batch_size` is global: samples an optimizer step, over all ranks and accumulated micro-batches.

    A checkpoint is saved every `checkpoint_every` epochs, at each evaluation, and with `checkpoint_steps` also every so
    many steps; `background_saving` writes it beside the training. A step whose loss is not a number ends the
    run (`nonfinite` ``stop``), or is left out and counted (``skip``).

    `ema_decay` keeps a moving average of the weights, which is what is evaluated and exported, moved every `ema_every`
    steps. With `ema_scaled` the decay is max(0, 1 − (1 − ema_decay) · batch_size · ema_every / epochs), as in
    torchvision. `ema_warmup` ``copy`` copies the weights while the learning rate warms up (torchvision), ``power``
    keeps the decay below 1 − (1 + t) ** −`ema_power` after t updates (timm).

    `freeze` keeps the first parts of the network as they are, batch statistics too: 1 the stem, 2 the stem and the
    first stage, and so on. `teacher` is a model whose predictions are learnt too (Hinton et al., arXiv:1503.02531):
    the loss is (1 − w) · loss + w · T² · cross-entropy with its softmax at temperature T, where w is `teacher_weight`
    and T `teacher_temperature`.

    Training ends early where `best` has not risen in `patience` evaluations. With `minutes` the schedule is fitted to
    what can be done in that time instead of `epochs`.
    """

    epochs: Annotated[int, Above(0)] = 150
    batch_size: Annotated[int, Above(0)] = 256
    accumulate: Annotated[int, Above(0)] = 1
    ema_decay: Annotated[float | None, Between(0, 1)] = None
    ema_every: Annotated[int, Above(0)] = 1
    ema_scaled: bool = False
    ema_warmup: Literal["none", "copy", "power"] = "none"
    ema_power: Annotated[float, Above(0), Between(0, 1)] = 0.6666666666666666
    freeze: Annotated[int, AtLeast(0)] = 0
    teacher: str | None = None
    teacher_weight: Annotated[float, Above(0), Between(0, 1)] = 0.5
    teacher_temperature: Annotated[float, Above(0)] = 1.0
    patience: Annotated[int | None, Above(0)] = None
    minutes: Annotated[float | None, Above(0)] = None
    seed: Annotated[int, AtLeast(0), Bits(63)] = 1
    eval_every: Annotated[int, Above(0)] = 1
    eval_start: int = 1
    checkpoint_every: Annotated[int, Above(0)] = 1
    checkpoint_steps: Annotated[int | None, Above(0)] = None
    background_saving: bool = True
    keep: Annotated[int, Above(0)] = 3
    best: Annotated[str, OneOf(tuple(METRICS))] = "top1"
    nonfinite: Literal["stop", "skip"] = "stop"
    log_every: Annotated[int, Above(0)] = 20


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation batch (a rank's); the result does not depend on it.

    `size` evaluates, exports and serves at another image size than the training's (None: the same), `crop_pct` resizes
    to floor(size / crop_pct) before the crop; None keeps the ratio of the model's preprocessing. With `tta` ``flip``
    evaluations, also those of a training, score the mean of the probabilities of each image and its mirror image.
    `self_check` computes a model's golden logits, where it carries some, before it is used.
    """

    batch_size: Annotated[int, Above(0)] = 64
    size: Annotated[int | None, Between(1, 8192)] = None
    crop_pct: Annotated[float | None, Above(0), Between(0, 1)] = None
    tta: Literal["none", "flip"] = "none"
    self_check: bool = True


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Artefacts of a whole job; empty `formats` means every one that an available backend can write.

    `input` ``image`` puts the whole preprocessing into the artefact, which then takes one image of any size.
    `precision` is what the network computes in; inputs, normalisation and logits keep their types.
    """

    formats: tuple[str, ...] = ()
    batch_size: Annotated[int | None, Above(0)] = None
    input: Literal["uint8", "float", "image"] = "uint8"
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    fold_bn: bool = True

    def __post_init__(self) -> None:
        if self.input == "image" and self.batch_size not in (None, 1):
            raise UsageError(
                "export.input=image takes one image of any size at a time: export.batch_size must be 1 or null, not "
                f"{self.batch_size}"
            )


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
    mix: MixConfig = MixConfig()
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
        import yaml  # every start of the program imports this module, and few write YAML

        return yaml.safe_dump(self.to_dict(), sort_keys=False)


#: The sections of core, by name.
SECTIONS: Mapping[str, type] = {
    f.name: type(f.default) for f in dataclasses.fields(Config) if f.name != "backends"
}


#: The source of a value that nobody set.
DEFAULT = "default"


def stated(sources: Mapping[str, str]) -> frozenset[str]:
    """Return the dotted keys that were set, of all keys and where their values came from."""
    return frozenset(key for key, source in sources.items() if source != DEFAULT)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
