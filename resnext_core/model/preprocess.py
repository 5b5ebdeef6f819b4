"""PreprocessSpec: how an image becomes the network's input, and its implementation with Pillow and NumPy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from resnext_core.errors import UsageError, quoted, shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image
    from PIL.Image import Resampling

    from resnext_core.config import PreprocessConfig

#: ImageNet's mean and standard deviation of each colour on 0..255, as every ResNet since 2016 uses them.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
#: How far Pillow's filters reach to either side, in pixels of the smaller of the two images.
FILTER_REACH: Mapping[str, float] = {"antialias": 1.0, "bicubic": 2.0}
#: Fields that are newer than the first release, with their defaults, with which they are left out of JSON: older
#: artefacts are read, and one that uses nothing new has the bytes that it always had.
_ADDED = {"orientation": "ignore"}


@dataclass(frozen=True, kw_only=True)
class PreprocessSpec:
    """Evaluation preprocessing, complete; JSON in every artefact.

    `mode` ``squash``: resize to `resize` × `resize` without keeping the aspect ratio, then centre crop
    `size` (the ModelZoo's); ``shorter-side``: resize the shorter side to `resize`, then centre crop.
    `filter` ``antialias`` is Pillow's bilinear and ``bicubic`` Pillow's bicubic (a = −0.5); the support of both grows
    with the reduction. ``plain`` is OpenCV's two-tap bilinear. `scaled_decode` allows the JPEG decoder to halve the
    image while it stays at least as large as needed. `orientation` ``apply`` turns the image as its EXIF data says,
    before everything else. Images are RGB; alpha is dropped. `mean` and `std` are on 0..255.
    """

    size: int = 224
    resize: int = 256
    mode: Literal["shorter-side", "squash"] = "squash"
    filter: Literal["antialias", "bicubic", "plain"] = "antialias"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    color_order: Literal["RGB"] = "RGB"
    scaled_decode: bool = False
    orientation: Literal["ignore", "apply"] = "ignore"

    def __post_init__(self) -> None:
        for field in ("mean", "std"):
            object.__setattr__(self, field, _three_numbers(field, getattr(self, field)))
        for field, allowed in (
            ("mode", ("shorter-side", "squash")),
            ("filter", ("antialias", "bicubic", "plain")),
            ("color_order", ("RGB",)),
            ("orientation", ("ignore", "apply")),
        ):
            value = getattr(self, field)
            if value not in allowed:
                raise UsageError(
                    f"preprocess {field} must be one of {', '.join(allowed)}, not {quoted(value)}"
                )
        for field in ("size", "resize"):
            value = getattr(self, field)
            if type(value) is not int or not 1 <= value <= 8192:
                raise UsageError(f"preprocess {field} must be an integer from 1 to 8192, not {quoted(value)}")
        if self.resize < self.size:
            raise UsageError(f"preprocess resize {self.resize} is below the crop size {self.size}")
        if not all(1e-6 <= s <= 1e6 for s in self.std) or not all(abs(m) <= 1e6 for m in self.mean):
            raise UsageError("preprocess mean and std are three numbers up to 1e6, std from 1e-6 on")
        if type(self.scaled_decode) is not bool:
            raise UsageError("preprocess scaled_decode is true or false")

    @property
    def oriented(self) -> bool:
        """True where images are turned as their EXIF data says."""
        return self.orientation == "apply"

    def words(self) -> str:
        """Return it for people, without what seldom differs."""
        turned = ", turned by EXIF" if self.oriented else ""
        return f"images {self.mode} {self.resize} -> {self.size} ({self.filter}{turned})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, without the newer fields if they are at their defaults."""
        data = dataclasses.asdict(self) | {"mean": list(self.mean), "std": list(self.std)}
        return {key: value for key, value in data.items() if _ADDED.get(key) != value}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PreprocessSpec:
        """Build from JSON types; every field is required but those of `_ADDED`, and no other allowed (UsageError)."""
        fields = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(data, Mapping) or not fields - set(_ADDED) <= set(data) <= fields:
            got = shown(sorted(map(str, data)), 200) if isinstance(data, Mapping) else type(data).__name__
            raise UsageError(f"a preprocess spec has the fields {sorted(fields)}, got {got}")
        return cls(**data)


def _three_numbers(field: str, values: Any) -> tuple[float, ...]:
    """Return three finite floats; UsageError on text, booleans and other counts."""
    if isinstance(values, (list, tuple)) and len(values) == 3:
        try:
            numbers = tuple(float(v) for v in values if not isinstance(v, (str, bool)))
        except (TypeError, ValueError, OverflowError):
            numbers = ()
        if len(numbers) == 3 and all(map(math.isfinite, numbers)):
            return numbers
    raise UsageError(f"preprocess {field} must be three finite numbers, not {quoted(values)}")


def preprocess_spec(config: PreprocessConfig, image_size: int) -> PreprocessSpec:
    """Return the spec of `config` for a network of `image_size` pixels.

    Without `config.resize` the image is resized to image_size · 256 / 224, rounded to the nearest integer
    (half up), so 224 gives 256.
    """
    resize = config.resize if config.resize is not None else (image_size * 256 + 112) // 224
    return PreprocessSpec(
        size=image_size,
        resize=resize,
        mode=config.mode,
        filter=config.filter,
        mean=config.mean,
        std=config.std,
        scaled_decode=config.scaled_decode,
        orientation=config.orientation,
    )


def evaluated_at(spec: PreprocessSpec, size: int | None, crop_pct: float | None = None) -> PreprocessSpec:
    """Return `spec` for images of another `size` (None: the same).

    With `crop_pct` the image is resized to floor(size / crop_pct), as in timm; without it in the ratio of `spec`,
    rounded to the nearest integer (half up). A result that is taken again stays the same.
    """
    new = spec.size if size is None else size
    resize = spec.resize if new == spec.size else (2 * spec.resize * new + spec.size) // (2 * spec.size)
    if crop_pct is not None:
        resize = math.floor(new / crop_pct)
        if resize > 8192:
            raise UsageError(
                f"crop_pct {crop_pct:g} resizes images of {new} pixels to {resize}; the most is 8192"
            )
    return dataclasses.replace(spec, size=new, resize=resize)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Where an image goes: resized to `height` × `width`, then cropped from (`top`, `left`)."""

    height: int
    width: int
    top: int
    left: int


def geometry(height: int, width: int, spec: PreprocessSpec) -> Geometry:
    """Return how an image of `height` × `width` is resized and where its crop of spec.size starts.

    ``squash`` resizes to resize × resize. ``shorter-side`` gives the shorter side `resize` and the longer
    one int(resize · longer / shorter), the fraction cut off. The crop starts at round((side − size) / 2),
    where a half goes to the even neighbour (16.5 → 16, 17.5 → 18). Both are torchvision's rules.
    """
    if spec.mode == "squash":
        new_height = new_width = spec.resize
    elif height <= width:
        new_height, new_width = spec.resize, spec.resize * width // height
    else:
        new_height, new_width = spec.resize * height // width, spec.resize
    return Geometry(
        height=new_height,
        width=new_width,
        top=round((new_height - spec.size) / 2),
        left=round((new_width - spec.size) / 2),
    )


def eval_pixels(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Resize and centre-crop an RGB image: uint8 (size, size, 3).

    Pillow's filters are applied to rows first, then to columns, each rounded to 8 bits. Two calls fix this order:
    in a single call, Pillow 13 starts with the columns of tall images, unlike earlier releases.

    An image longer than 16 times its shorter side is not resized as a whole (100,000 × 1 would become
    25,600,000 × 256): only its crop is computed, from the rows that it needs and in the same order; the result is
    equal within 1 level. The C++ program uses the same arithmetic, bit for bit.
    """
    import numpy as np

    place = geometry(image.height, image.width, spec)
    if spec.filter == "plain":
        rows = slice(place.top, place.top + spec.size)
        columns = slice(place.left, place.left + spec.size)
        return _bilinear(np.asarray(image), place.height, place.width, rows, columns)
    kernel = pillow_filter(spec.filter)
    right, bottom = place.left + spec.size, place.top + spec.size
    if max(place.height, place.width) <= 16 * spec.resize:
        wide = image.resize((place.width, image.height), kernel)
        resized = wide.resize((place.width, place.height), kernel)
        return np.asarray(resized.crop((place.left, place.top, right, bottom)))
    down, across = image.height / place.height, image.width / place.width
    reach = FILTER_REACH[spec.filter] * max(down, 1.0)  # of the filter, to either side
    first = max(math.floor(place.top * down - reach) - 1, 0)
    last = min(math.ceil(bottom * down + reach) + 1, image.height)
    part = image.crop((0, first, image.width, last))
    # Rounding must not leave the image.
    sides = (place.left * across, 0, min(right * across, image.width), last - first)
    wide = part.resize((spec.size, last - first), kernel, box=sides)
    ends = (0, place.top * down - first, spec.size, min(bottom * down - first, last - first))
    return np.asarray(wide.resize((spec.size, spec.size), kernel, box=ends))


def pillow_filter(name: str) -> Resampling:
    """Return Pillow's filter for a `filter` of a spec other than ``plain``."""
    from PIL.Image import Resampling

    return {"antialias": Resampling.BILINEAR, "bicubic": Resampling.BICUBIC}[name]


def resize_plain(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize uint8 (H, W, 3) to (height, width, 3) with the two-tap bilinear filter of OpenCV.

    The arithmetic is that of OpenCV's ``resize(INTER_LINEAR)`` on 8-bit images, integer by integer:
    half-pixel centres in float32, coefficients of 11 bits, the vertical sum shifted by 4, 16 and 2 bits.
    """
    return _bilinear(pixels, height, width, slice(0, height), slice(0, width))


def normalize(images: NDArray[Any], spec: PreprocessSpec) -> NDArray[np.float32]:
    """Turn uint8 or float32 (N, H, W, 3) into float32 (N, 3, H, W): (x − mean) / std for each colour."""
    import numpy as np

    mean = np.asarray(spec.mean, np.float32)[:, None, None]
    std = np.asarray(spec.std, np.float32)[:, None, None]
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32)
    planes -= mean
    planes /= std
    return planes


def _bilinear(
    pixels: NDArray[np.uint8], height: int, width: int, rows: slice, columns: slice
) -> NDArray[np.uint8]:
    """Return the window `rows`, `columns` of `pixels` resized to `height` × `width`."""
    import numpy as np

    above, below, down = _taps(pixels.shape[0], height, rows, clamp_fraction=False)
    left, right, across = _taps(pixels.shape[1], width, columns, clamp_fraction=True)
    used, position = np.unique(np.concatenate([above, below]), return_inverse=True)
    source = pixels[used]
    wide = source[:, left].astype(np.int32) * across[0][:, None]
    wide += source[:, right].astype(np.int32) * across[1][:, None]
    wide >>= 4
    top, bottom = position[: len(above)], position[len(above) :]
    result = (wide[top] * down[0][:, None, None]) >> 16
    result += (wide[bottom] * down[1][:, None, None]) >> 16
    result += 2
    result >>= 2
    pixels = result.clip(0, 255).astype(np.uint8)
    return pixels


def _taps(
    size: int, new_size: int, window: slice, *, clamp_fraction: bool
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32]]:
    """Return the two source positions of each place in `window`, and their weights · 2048 as int32 (2, n).

    OpenCV sets the fraction to 0 outside the image along x and repeats the edge along y; the two weights
    are rounded each on its own, a half to the even neighbour.
    """
    import numpy as np

    scale = 1.0 / (new_size / size)
    centre = ((np.arange(window.start, window.stop) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(centre).astype(np.intp)
    fraction = centre - first.astype(np.float32)
    if clamp_fraction:
        fraction[(first < 0) | (first >= size - 1)] = 0
    weights = np.rint(np.stack([1 - fraction, fraction]) * np.float32(2048)).astype(np.int32)
    return first.clip(0, size - 1), (first + 1).clip(0, size - 1), weights
