"""Count the bytes that batch normalisation, ReLU and the grouped convolution move apart and fused, and the update.

    python benchmarks/fusion_counts.py

Per training step of a model, for the middle of its blocks: from the raw output of the first 1x1 convolution to the
input of the last. U is the image before the grouped convolution, V the one after it. Every tensor is read or written
once by each kernel that takes or gives it; statistics, weights and partial sums are left out, which are below 3 %.
The bandwidths are what copies on a card are expected to reach. No GPU is needed, and none was asked.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from grouped_conv_goals import FLAGSHIP, IMAGE_BYTES, Convolution, convolutions

from resnext_core.model.spec import ModelSpec, model_spec

#: Bytes a second that a copy within a card's memory is taken to reach: below the data sheets' 3.35 and 4.8.
BANDWIDTHS = {"H100": 3.0e12, "H200": 4.3e12}


@dataclass(frozen=True, kw_only=True)
class Way:
    """How often U and V are moved by the forward and the backward pass."""

    name: str
    forward: tuple[int, int]
    backward: tuple[int, int]

    def moved(self, one: Convolution, images: int) -> tuple[int, int]:
        """Return the bytes of the forward and of the backward pass of one block."""
        rows, columns = one.out
        before = images * one.height * one.width * one.channels * IMAGE_BYTES
        after = images * rows * columns * one.channels * IMAGE_BYTES
        forward, backward = (u * before + v * after for u, v in (self.forward, self.backward))
        return forward, backward


WAYS = (
    # Forward: statistics 1, normalise 2, ReLU in place 2 of U, the same of V, and the convolution U + V.
    # Backward, of V: ReLU 3, sums 2, normalisation 3; the convolution's gradients U + V each; of U the 8 of V.
    Way(name="PyTorch, kernel by kernel", forward=(6, 6), backward=(10, 10)),
    # A compiler joins ReLU to the normalisation, forward and backward.
    Way(name="ReLU joined, as by torch.compile", forward=(4, 4), backward=(7, 7)),
    # Statistics of U 1, the convolution U + V with the statistics of V, normalise V 2. Backward, of V: sums 2,
    # normalisation 3; gradient of weights U + V; gradient of U: V, U, U with its sums; normalisation 3 of U.
    Way(name="gpu.fused_bn", forward=(2, 3), backward=(6, 7)),
    # The statistics of U from the product that writes it.
    Way(name="gpu.fused_bn, statistics by the 1x1 convolution", forward=(1, 3), backward=(6, 7)),
)


#: Bytes a parameter of an optimizer step with EMA, in float32: now, and by one kernel over flat buffers. Now: weight,
#: gradient and momentum are read and two written (20), the EMA reads two and writes one (12); checked gradients are
#: read and written before (8); clipped ones are read once more (4), and written by the update (4); with several ranks
#: views are cleared and added to (16). Flat: weight, gradient, momentum and EMA are read, three written (28);
#: gradients must be views with one rank too (16); they are checked and measured in one reading (4).
UPDATES = {
    "one rank": (20 + 12, 28 + 16),
    "one rank, loss scale and clipping": (20 + 12 + 8 + 4 + 4, 28 + 16 + 4),
    "several ranks": (20 + 12 + 16, 28 + 16),
    "several ranks, loss scale and clipping": (20 + 12 + 16 + 8 + 4 + 4, 28 + 16 + 4),
}


def totals(spec: ModelSpec, images: int, way: Way) -> tuple[int, int]:
    """Return the bytes of a step's forward and backward passes, over all blocks."""
    moved = [(count, way.moved(one, images)) for one, count in convolutions(spec).items()]
    return sum(n * forward for n, (forward, _) in moved), sum(n * backward for n, (_, backward) in moved)


def lines(spec: ModelSpec, images: int) -> Iterator[str]:
    """Yield the table of all blocks, and that of the step."""
    yield f"{spec.variant}, batch {images}, 16 bits: MB of one block, forward + backward"
    yield f"{'block':<22} {'times':>5} " + " ".join(
        f"{n:>14}" for n in ("apart", "compiled", "fused", "and by 1x1")
    )
    for one, count in convolutions(spec).items():
        cells = (f"{f / 1e6:.0f} + {b / 1e6:.0f}" for f, b in (way.moved(one, images) for way in WAYS))
        yield f"{one!s:<22} {count:>5} " + " ".join(f"{cell:>14}" for cell in cells)
    yield ""
    yield f"{'step, all blocks':<50} {'GB':>6} " + " ".join(f"{name + ', ms':>9}" for name in BANDWIDTHS)
    for way in WAYS:
        moved = sum(totals(spec, images, way))
        times = " ".join(f"{1e3 * moved / speed:>9.1f}" for speed in BANDWIDTHS.values())
        yield f"{way.name:<50} {moved / 1e9:>6.1f} {times}"
    count = sum(prod(t.shape) for t in spec.tensors if t.trainable)
    yield ""
    yield f"{f'update of {count / 1e6:.0f} M parameters, H100':<50} {'now, ms':>9} {'flat, ms':>9}"
    for name, ways in UPDATES.items():
        now, flat = (1e3 * count * way / BANDWIDTHS["H100"] for way in ways)
        yield f"{name:<50} {now:>9.2f} {flat:>9.2f}"


def main() -> None:
    """Print the counts of a model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=FLAGSHIP)
    parser.add_argument("--batch", type=int, default=128)
    args = parser.parse_args()
    print("\n".join(lines(model_spec(args.model), args.batch)))


if __name__ == "__main__":
    main()
