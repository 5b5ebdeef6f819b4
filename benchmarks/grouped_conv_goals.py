"""What a grouped convolution must move and compute at least, and whether the goals for our kernels are met."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resnext_core.model.spec import ModelSpec

PASSES = ("forward", "input gradient", "weight gradient")
FLAGSHIP = "resnext152_64x4d"
MOST_FLOORS, LEAST_CUDNN, LEAST_TIMM = 1.5, 2.0, 1.5
#: Bytes of a value of an image (16 bits), and of a weight or its gradient, which training keeps in float32.
IMAGE_BYTES, WEIGHT_BYTES = 2, 4


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """A grouped 3x3 convolution of an input of (`height`, `width`)."""

    channels: int
    group_width: int
    height: int
    width: int
    stride: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.channels}/{self.group_width} s{self.stride}"

    @property
    def out(self) -> tuple[int, int]:
        """Rows and columns of the output."""
        return (self.height - 1) // self.stride + 1, (self.width - 1) // self.stride + 1


@dataclass(frozen=True, kw_only=True)
class Card:
    """What was measured of a card: bytes that a copy reads and writes a second, operations of a dense product."""

    name: str
    capability: tuple[int, int] | None
    bytes_per_s: float
    operations_per_s: float


def convolutions(spec: ModelSpec) -> Counter[Convolution]:
    """Return the grouped convolutions of `spec` at its image size, in order of computation, and how many of each."""
    size, found = spec.image_size, Counter[Convolution]()
    if spec.stem == "imagenet":  # the stem's convolution and its pool halve, each rounding up
        size = (size + 3) // 4
    for block in spec.blocks:
        one = Convolution(
            channels=block.width, group_width=block.width // spec.groups, height=size, width=size,
            stride=block.stride,
        )  # fmt: skip
        found[one] += 1
        size = one.out[0]
    return found


def least_bytes(one: Convolution, images: int) -> int:
    """Return the bytes of input, output and weights, each once: the same for a convolution and for both gradients."""
    rows, columns = one.out
    pixels = images * (one.height * one.width + rows * columns)
    return pixels * one.channels * IMAGE_BYTES + one.channels * one.group_width * 9 * WEIGHT_BYTES


def operations(one: Convolution, images: int) -> int:
    """Return multiplications and additions, of the groups alone and with the border; the same for each pass."""
    rows, columns = one.out
    return 2 * images * rows * columns * one.channels * one.group_width * 9


def floor_ms(one: Convolution, images: int, card: Card) -> float:
    """Return the milliseconds below which no kernel comes on `card`."""
    moving = least_bytes(one, images) / card.bytes_per_s
    computing = operations(one, images) / card.operations_per_s
    return 1e3 * max(moving, computing)


# -- the goals ------------------------------------------------------------------------------------


def judge(
    rows: Sequence[Mapping[str, Any]], models: Sequence[Mapping[str, Any]], wanted: Sequence[str]
) -> dict[str, str]:
    """Return each goal with "met", "not met" or "not measured" and why.

    `rows` are all convolutions and passes, measured or not, `models` the trained ones, `wanted` those asked for. What
    is known to miss a goal decides; else all must have been measured.
    """
    near = [_share(row, "ours_ms", "floor_ms") for row in rows]
    flagship = [row for row in rows if FLAGSHIP in row["models"]]
    ahead = [_share(row, "cudnn_ms", "ours_ms") for row in flagship]
    faster = {name: _against_timm(models, name) for name in wanted}
    trained = "training step >= 1.5 x timm's best"
    return {
        "each kernel within 1.5 x of its floor": _verdict([None if n is None else n <= MOST_FLOORS for n in near]),
        f">= 2 x cuDNN channels_last on the shapes of {FLAGSHIP}": _verdict(
            [None if n is None else n >= LEAST_CUDNN for n in ahead]
        ),
        trained: _verdict([passed for passed, _ in faster.values()])
        + "".join(f"; {name} {said}" for name, (_, said) in faster.items()),
    }  # fmt: skip


def _share(row: Mapping[str, Any], above: str, below: str) -> float | None:
    """Return the quotient of two times of a row; None without them, and infinity or 0 where our result is wrong."""
    if row["wrong"]:
        return float("inf") if above == "ours_ms" else 0.0
    if row[above] is None or row[below] is None:
        return None
    return float(row[above] / row[below])


def _verdict(passed: Sequence[bool | None]) -> str:
    known = [p for p in passed if p is not None]
    counts = f"{sum(known)} of {len(passed)}"
    if not all(known):
        return f"not met ({counts})"
    if len(known) < len(passed) or not passed:
        return f"not measured ({len(known)} of {len(passed)} were, all of them within)"
    return f"met ({counts})"


def _against_timm(models: Sequence[Mapping[str, Any]], name: str) -> tuple[bool | None, str]:
    """Return whether our fastest step beats timm's fastest by enough, and by how much."""
    found = next((model for model in models if model["model"] == name), None)
    contenders = {} if found is None else found["contenders"]
    best = fastest(contenders, "ours"), fastest(contenders, "timm")
    if best[0] is None or best[1] is None:
        return None, "not measured"
    ratio = contenders[best[0]]["images_per_s"] / contenders[best[1]]["images_per_s"]
    if ratio < LEAST_TIMM:
        return False, f"{ratio:.2f}"
    if not {"timm", "timm, compiled"} <= set(contenders):
        return None, f"{ratio:.2f}, but not all of timm's ways were measured"
    return True, f"{ratio:.2f}"


def fastest(contenders: Mapping[str, Mapping[str, Any]], beginning: str) -> str | None:
    """Return the name of the fastest contender whose name begins so."""
    names = [name for name in contenders if name.startswith(beginning)]
    return max(names, key=lambda name: contenders[name]["images_per_s"], default=None)


# -- text -----------------------------------------------------------------------------------------


def long_table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each convolution and pass: everything that was measured."""
    yield f"{'convolution':<20} {'pass':<15} {'floor':>7} {'ours':>8} {'cuDNN':>8} {'NCHW':>8} ms   plan"
    for row in rows:
        times = " ".join(_number(row[name], 8, 3) for name in ("ours_ms", "cudnn_ms", "nchw_ms"))
        said = f"WRONG: {row['wrong'][0]}" if row["wrong"] else row["plan"] or row["why_not"]
        yield f"{row['shape']:<20} {row['pass']:<15} {row['floor_ms']:7.3f} {times}      {said}"


def short_table(rows: Sequence[Mapping[str, Any]], models: Sequence[str]) -> Iterator[str]:
    """Yield a line for each convolution: how often each model has it, the floor, and of each pass three numbers."""
    counts = " ".join(f"{_brief(model):>5}" for model in models)
    yield f"{'':<20} {counts} {'floor':>7}" + "".join(f" | {what:^20}" for what in PASSES)
    yield (
        f"{'convolution':<20} {'':<{len(counts)}} {'ms':>7}" + f" | {'ms':>6} {'/floor':>6} {'cuDNN/':>6}" * 3
    )
    for start in range(0, len(rows), len(PASSES)):
        group = rows[start : start + len(PASSES)]
        line = f"{group[0]['shape']:<20} " + " ".join(f"{group[0]['models'].get(m, 0):5}" for m in models)
        line += f" {group[0]['floor_ms']:7.3f}"
        for row in group:
            if row["wrong"]:
                line += f" | {'WRONG':^20}"
                continue
            shares = [_share(row, "ours_ms", "floor_ms"), _share(row, "cudnn_ms", "ours_ms")]
            line += (
                f" | {_number(row['ours_ms'], 6, 3)} {_number(shares[0], 6, 2)} {_number(shares[1], 6, 2)}"
            )
        yield line


def _brief(model: str) -> str:
    """Return the depth in the name of a model."""
    return model.removeprefix("resnext").split("_")[0][:5]


def _number(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"
