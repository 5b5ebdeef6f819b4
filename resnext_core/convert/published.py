"""The evaluation preprocessing that weights of torchvision, timm and mindcv were published with.

A file is recognised by its checksum (publishers put the first 8 digits of the file's SHA-256 into its name), by a
``config.json`` in timm's form beside it, or by its name. Sources, read in August 2026:

- torchvision/models/resnet.py, the enums ``ResNeXt*_Weights``: ``ImageClassification(crop_size, resize_size=256)``,
  bilinear, antialiased because it is Pillow's;
- timm/models/resnet.py, ``default_cfgs``, with timm/data/config.py and transforms_factory.py: the test size and the
  test crop where there are such, as timm's validate.py takes them; the shorter side becomes floor(size / crop_pct);
- mindcv/models/resnet.py and configs/resnext/*.yaml: bilinear of OpenCV, crop_pct 0.875.

timm lists torchvision's ``resnext101_64x4d`` with a crop of 0.875; torchvision's own 232 pixels are taken for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from resnext_core.errors import DataError, UsageError, quoted
from resnext_core.files.plain import parse_strict_json, read_text
from resnext_core.model.preprocess import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec

#: Bytes of a config.json; one with the names of 21,841 classes has 2 MB.
_MOST_CONFIG = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Published:
    """How images become the input of a published network; `name` is the publisher's, `by` how it was recognised.

    The shorter side (or with `mode` ``squash`` both) is `resize` at the published `size`, and floor(size / crop_pct)
    where there is a `crop_pct`. `left_out` says what of it this program cannot do.
    """

    name: str
    by: str = ""
    size: int = 224
    resize: int | None = None
    crop_pct: float | None = None
    mode: Literal["shorter-side", "squash"] = "shorter-side"
    filter: Literal["antialias", "bicubic", "plain"] = "antialias"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    left_out: tuple[str, ...] = field(default=())

    def settings(self, size: int) -> dict[str, Any]:
        """Return the keys of the configuration's section ``preprocess`` for images of `size` pixels."""
        if self.crop_pct is not None:
            resize = math.floor(size / self.crop_pct)
        else:
            resize = math.floor(Fraction(size * (self.resize or self.size), self.size) + Fraction(1, 2))
        return {
            "mode": self.mode, "filter": self.filter, "resize": resize, "mean": self.mean, "std": self.std
        }  # fmt: skip

    def __str__(self) -> str:
        return "; ".join([f"preprocessing of {self.name} ({self.by})", *self.left_out])


_V1, _V2 = {"resize": 256}, {"resize": 232}
_BILINEAR, _BICUBIC = {"crop_pct": 0.875}, {"crop_pct": 0.875, "filter": "bicubic"}
_RSB = {"size": 288, "crop_pct": 1.0, "filter": "bicubic"}
_RSB_A3 = {"size": 224, "crop_pct": 0.95, "filter": "bicubic"}
_TIMM = {"size": 288, "crop_pct": 0.95, "filter": "bicubic"}
_MINDCV = {"crop_pct": 0.875, "filter": "plain"}

#: By the first 8 digits of the file's SHA-256: timm's name of the weights (mindcv's has no tag), and what is not a
#: default of :class:`Published`.
TABLE: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "7cdf4587": ("resnext50_32x4d.tv_in1k", _V1),
    "8ba56ff5": ("resnext101_32x8d.tv_in1k", _V1),
    "1a0047aa": ("resnext50_32x4d.tv2_in1k", _V2),
    "110c445d": ("resnext101_32x8d.tv2_in1k", _V2),
    "173b62eb": ("resnext101_64x4d.tv_in1k", _V2),
    "0146ab0a": ("resnext50_32x4d.a1h_in1k", _RSB),
    "b5a91a1d": ("resnext50_32x4d.a1_in1k", _RSB),
    "efc76add": ("resnext50_32x4d.a2_in1k", _RSB),
    "3e450271": ("resnext50_32x4d.a3_in1k", _RSB_A3),
    "d733960d": ("resnext50_32x4d.ra_in1k", _TIMM),
    "0d0e0cc0": ("resnext101_64x4d.c1_in1k", _RSB),
    "c38310e5": ("resnext101_32x8d.fb_wsl_ig1b_ft_in1k", _BILINEAR),
    "c6f796b0": ("resnext101_32x16d.fb_wsl_ig1b_ft_in1k", _BILINEAR),
    "e4b90b00": ("resnext101_32x32d.fb_wsl_ig1b_ft_in1k", _BILINEAR),
    "3e41cc8a": ("resnext101_32x48d.fb_wsl_ig1b_ft_in1k", _BILINEAR),
    "ddb3e555": ("resnext50_32x4d.fb_ssl_yfcc100m_ft_in1k", _BILINEAR),
    "dc43570a": ("resnext101_32x4d.fb_ssl_yfcc100m_ft_in1k", _BILINEAR),
    "2cfe2f8b": ("resnext101_32x8d.fb_ssl_yfcc100m_ft_in1k", _BILINEAR),
    "15fffa57": ("resnext101_32x16d.fb_ssl_yfcc100m_ft_in1k", _BILINEAR),
    "72679e44": ("resnext50_32x4d.fb_swsl_ig1b_ft_in1k", _BILINEAR),
    "3f87e46b": ("resnext101_32x4d.fb_swsl_ig1b_ft_in1k", _BILINEAR),
    "b4712904": ("resnext101_32x8d.fb_swsl_ig1b_ft_in1k", _BILINEAR),
    "f3559a9c": ("resnext101_32x16d.fb_swsl_ig1b_ft_in1k", _BILINEAR),
    "e6a097c1": ("resnext50_32x4d.gluon_in1k", _BICUBIC),
    "b253c8c4": ("resnext101_32x4d.gluon_in1k", _BICUBIC),
    "f9a8e184": ("resnext101_64x4d.gluon_in1k", _BICUBIC),
    "af8aba16": ("resnext50_32x4d", _MINDCV),
    "3c1e9c51": ("resnext101_32x4d", _MINDCV),
    "8929255b": ("resnext101_64x4d", _MINDCV),
    "3aba275c": ("resnext152_64x4d", _MINDCV),
}

_FILTERS = {"bilinear": "antialias", "bicubic": "bicubic"}
_MODES = {"center": "shorter-side", "squash": "squash"}


def find_published(path: Path, digest: str, variant: str, naming: str) -> Published | None:
    """Return what the file `path` was published with; None if it is not known.

    `digest` is ``sha256:<hex>`` of the file, `variant` and `naming` are what its tensors tell: a name or a config.json
    of another network, or of the other framework, is not used. Raises DataError where a config.json in timm's form
    cannot be used.
    """
    by_name = naming in ("torch", "mindcv")
    rows = {
        checksum: row
        for checksum, row in TABLE.items()
        if by_name and row[0].split(".")[0] == variant and (row[1] is _MINDCV) == (naming == "mindcv")
    }
    checksum = digest.removeprefix("sha256:")[:8]
    if checksum in rows:
        return _of_row(rows[checksum], "recognised by its checksum")
    if naming == "torch":
        found = _beside(path, variant)
        if found is not None:
            return found
    places = [part.rpartition("--")[2] for part in path.absolute().parts[-4:]]  # --: Hugging Face's cache
    for checksum, row in rows.items():
        tagged = "." in row[0] and any(p == row[0] or p.startswith(f"{row[0]}.") for p in places)
        if tagged or f"-{checksum}" in path.name:
            return _of_row(row, "recognised by its name")
    return None


def _of_row(row: tuple[str, Mapping[str, Any]], by: str) -> Published:
    name, values = row
    publisher = "mindcv" if values is _MINDCV else "torchvision" if ".tv" in name else "timm"
    return Published(name=f"{publisher}'s {name}", by=by, **values)


def _beside(path: Path, variant: str) -> Published | None:
    """Return what a ``config.json`` beside `path` says, in timm's form; None without one of this network."""
    config = path.with_name("config.json")
    if not config.is_file():
        return None
    try:
        content = parse_strict_json(read_text(config, _MOST_CONFIG))
    except (DataError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read {config}: {error}; repair it, or move it away") from error
    given = content.get("pretrained_cfg") if isinstance(content, dict) else None
    if not isinstance(given, dict) or content.get("architecture", variant) != variant:
        return None
    try:
        return _of_config(given, content.get("architecture", variant))
    except (UsageError, ValueError, TypeError, OverflowError, ZeroDivisionError) as error:
        raise DataError(
            f"{config}: pretrained_cfg is not usable: {error}; correct it, or move it away"
        ) from error


def _of_config(given: Mapping[str, Any], architecture: Any) -> Published:
    left_out = []
    interpolation, mode = given.get("interpolation", "bicubic"), given.get("crop_mode", "center")
    for key, value in (("interpolation", interpolation), ("crop_mode", mode)):
        if not isinstance(value, str):
            raise ValueError(f"its {key} must be text, not {quoted(value)}")
    if interpolation not in _FILTERS:
        left_out.append(f"its interpolation {quoted(interpolation)} is not supported: bicubic is used")
    if mode not in _MODES:
        left_out.append(f"its crop_mode {quoted(mode)} is not supported: center is used")
    channels, height, width = _three(given, "test_input_size") or _three(given, "input_size") or (3, 224, 224)
    if channels != 3 or height != width:
        raise ValueError(f"images of {channels} x {height} x {width} are not supported")
    crop = given.get("test_crop_pct") or given.get("crop_pct") or 0.875
    if type(crop) not in (int, float) or not 0 < crop <= 1:
        raise ValueError(f"its crop_pct must be above 0 and up to 1, not {quoted(crop)}")
    tag = given.get("tag")
    found = Published(
        name=f"{architecture}.{tag}" if isinstance(tag, str) and tag else str(architecture),
        by="its config.json",
        size=height,
        crop_pct=float(crop),
        mode=_MODES.get(mode, "shorter-side"),  # type: ignore[arg-type]
        filter=_FILTERS.get(interpolation, "bicubic"),  # type: ignore[arg-type]
        mean=_of_255(_three(given, "mean"), IMAGENET_MEAN),
        std=_of_255(_three(given, "std"), IMAGENET_STD),
        left_out=tuple(left_out),
    )
    PreprocessSpec(size=height, **found.settings(height))  # checks every value
    return found


def _three(given: Mapping[str, Any], key: str) -> list[Any] | None:
    """Return the three numbers under `key`, None where there are none; ValueError for anything else."""
    value = given.get(key)
    if value is None or (
        isinstance(value, list) and len(value) == 3 and all(type(v) in (int, float) for v in value)
    ):
        return value
    raise ValueError(f"its {key} must be three numbers, not {quoted(value)}")


def _of_255(values: Any, default: tuple[float, float, float]) -> tuple[float, float, float]:
    """Return a mean or a standard deviation on 0..255; 0.485 becomes 123.675, not 123.67499999999998."""
    if values is None:
        return default
    red, green, blue = (round(255 * value, 6) for value in values)
    return red, green, blue
