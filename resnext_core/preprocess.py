"""PreprocessSpec: how an image becomes the network's input, and its Pillow / NumPy form."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from resnext_core.errors import UsageError

#: ImageNet's mean and standard deviation of each colour on 0..255, as every ResNet since 2016 uses them.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True, kw_only=True)
class PreprocessSpec:
    """Evaluation preprocessing, complete; JSON in every artefact.

    `mode` ``squash``: resize to `resize` × `resize` without keeping the aspect ratio, then centre crop
    `size` (the ancestor's); ``shorter-side``: resize the shorter side to `resize`, then centre crop.
    `filter` ``antialias`` is Pillow's bilinear (support grows with the reduction), ``plain`` is OpenCV's and
    MindSpore's two-tap bilinear. `scaled_decode` allows the JPEG decoder to halve the image while
    it stays at least as large as needed. Images are RGB; EXIF orientation is ignored; alpha is dropped.
    `mean` and `std` are on 0..255.
    """

    size: int = 224
    resize: int = 256
    mode: Literal["shorter-side", "squash"] = "squash"
    filter: Literal["antialias", "plain"] = "antialias"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    color_order: Literal["RGB"] = "RGB"
    scaled_decode: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(m) for m in self.mean))
        object.__setattr__(self, "std", tuple(float(s) for s in self.std))
        for field, allowed in (
            ("mode", ("shorter-side", "squash")),
            ("filter", ("antialias", "plain")),
            ("color_order", ("RGB",)),
        ):
            value = getattr(self, field)
            if value not in allowed:
                raise UsageError(f"preprocess {field} must be one of {', '.join(allowed)}, not {value!r}")
        for field in ("size", "resize"):
            value = getattr(self, field)
            if type(value) is not int or not 1 <= value <= 8192:
                raise UsageError(f"preprocess {field} must be an integer from 1 to 8192, not {value!r}")
        if self.resize < self.size:
            raise UsageError(f"preprocess resize {self.resize} is below the crop size {self.size}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(0 < s < 1e6 for s in self.std):
            raise UsageError("preprocess mean and std are three numbers, std above 0")
        if type(self.scaled_decode) is not bool:
            raise UsageError("preprocess scaled_decode is true or false")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; :meth:`from_dict` takes them back."""
        return dataclasses.asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PreprocessSpec:
        """Build from JSON types; every field must be there and no other (UsageError)."""
        fields = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(data, Mapping) or set(data) != fields:
            got = sorted(map(str, data)) if isinstance(data, Mapping) else type(data).__name__
            raise UsageError(f"a preprocess spec has the fields {sorted(fields)}, got {got}")
        return cls(**data)
