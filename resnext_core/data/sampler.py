"""The order of images: pure functions of seed, epoch, step and rank, the same on every machine and in every release.

Everything random comes from Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011),
a counter-based generator: a stream is its key and counter, so the stream of a sample needs no history.
Only the raw 64-bit words and uniform doubles are used, not NumPy's shuffling, which may change with NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from resnext_core.errors import UsageError, counted

#: Second key word: the order of an epoch, what is drawn for a sample, how a micro-batch is mixed, which branches a step
#: leaves out, how many images of each class an epoch has, and their order in a class never share a stream.
_ORDER, _SAMPLE, _AUTO, _ERASING, _MIX, _BRANCHES, _QUOTAS, _MEMBERS = 1, 2, 3, 4, 5, 6, 8, 9


def epoch_permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of the `n` images in `epoch` (from 0): int64 (n,), a permutation.

    The images are sorted by a random 64-bit key each; equal keys keep their order.
    """
    keys = _philox(seed, _ORDER, epoch, 0).random_raw(n)
    return np.argsort(keys, kind="stable").astype(np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Order:
    """What an epoch takes in turn: `images` int64 (n,).

    `views` int64 (n,) count the appearances of an image in the epoch, from 0; None where each is there once.
    """

    images: NDArray[np.int64]
    views: NDArray[np.int64] | None = None


def draw_words(seed: int, epochs: int) -> list[int]:
    """Return a random number of 64 bits for each of the first `epochs`: it decides how often it shows each class."""
    words: list[int] = _philox(seed, _QUOTAS, 0, 0).random_raw(epochs).tolist()
    return words


def member_words(seed: int, label: int, start: int, stop: int) -> NDArray[np.uint64]:
    """Return the random numbers `start` to `stop` of a class, of 64 bits, from any place on: uint64 (stop - start,)."""
    block, skipped = divmod(start, 4)  # Philox gives four words for each value of its counter
    key, counter = _place(seed, _MEMBERS, 0, label)
    counter[0] = block
    words: NDArray[np.uint64] = np.random.Philox(key=key, counter=counter).random_raw(stop - start + skipped)
    return words[skipped:]


def steps_per_epoch(n: int, global_batch: int) -> int:
    """Return n // global_batch: whole batches only, other images are dropped in each epoch. UsageError when 0."""
    steps = n // global_batch
    if steps == 0:
        raise UsageError(
            f"batch_size {global_batch} is larger than the {counted(n, 'training image')}; "
            f"lower it with --set train.batch_size={max(n, 1)} or less"
        )
    return steps


def rank_slice(
    permutation: NDArray[np.int64], step: int, global_batch: int, rank: int, world: int
) -> NDArray[np.int64]:
    """Return the images of `rank` of `world` in `step` (from 0) of an epoch: int64 (global_batch / world,).

    The step takes permutation[step·B : (step + 1)·B]; ranks take equal neighbouring parts of it in order,
    so one rank that accumulates `world` micro-batches sees the same micro-batches. Raises UsageError when
    `world` does not divide `global_batch`.
    """
    if global_batch % world:
        raise UsageError(f"train.batch_size {global_batch} must be a multiple of the {world} processes")
    share = global_batch // world
    start = step * global_batch + rank * share
    if not 0 <= rank < world or step < 0 or (step + 1) * global_batch > len(permutation):
        raise ValueError(
            f"no step {step} of {global_batch} for rank {rank}/{world} in {len(permutation)} images"
        )
    return permutation[start : start + share]


def rank_task(
    order: Order | NDArray[np.int64],
    step: int,
    global_batch: int,
    rank: int,
    world: int,
    *,
    epoch: int,
    repeats: int = 1,
    size: int | None = None,
) -> Task:
    """Return what `rank` of `world` reads in `step` (from 0) of `epoch` (from 0), images of `size`.

    Without repeats as :func:`rank_slice`. With repeats, each image of the order is taken that many times in a
    row, every time as another view (Hoffer et al., arXiv:1901.09335; Berman et al., arXiv:1902.05509): an epoch has as
    many steps as ever, and shows the first images only. Within a step first views come first, then second ones, and so
    on: ranks and micro-batches, which are neighbouring parts, get different views of an image where they can. The rows
    of a step do not depend on `world`.
    """
    order = order if isinstance(order, Order) else Order(images=order)
    start, most = step * global_batch, len(order.images) * repeats
    if step < 0 or start + global_batch > most:
        raise ValueError(f"no step {step} of {global_batch} in {most} views")
    places = np.arange(start, start + global_batch)
    places = places[np.argsort(places % repeats, kind="stable")]
    mine = rank_slice(places, 0, global_batch, rank, world)
    entries = mine // repeats
    views = None
    if repeats > 1 or order.views is not None:
        views = (0 if order.views is None else order.views[entries] * repeats) + mine % repeats
    return replace(Task.of(epoch, order.images[entries]), views=views, size=size)


def epoch_length(n: int, global_batch: int, repeats: int) -> int:
    """Return how many images an epoch of `n` takes: whole batches, each image `repeats` times."""
    return -(-steps_per_epoch(n, global_batch) * global_batch // repeats)


def check_repeats(repeats: int, global_batch: int) -> None:
    """Raise UsageError where the views of an image do not fit into one step."""
    if repeats > global_batch:
        raise UsageError(
            f"augment.repeats {repeats} is more than train.batch_size {global_batch}: the views of an image come in "
            f"one step; lower it with --set augment.repeats={global_batch} or less"
        )


def eval_tasks(n: int, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[Task]:
    """Yield the tasks of `rank` in an evaluation of `n` images: indices and valid are (batch_size,).

    Over all ranks every index of 0..n−1 is valid exactly once. Rank r takes r, r + world, r + 2·world, …;
    all ranks yield the same number of batches, all of batch_size; padding rows have index 0 and valid False.
    """
    share = -(-n // world)
    mine = np.arange(rank, n, world, dtype=np.int64)
    for start in range(0, share, batch_size):
        part = mine[start : start + batch_size]
        indices, valid = np.zeros(batch_size, np.int64), np.zeros(batch_size, np.bool_)
        indices[: len(part)], valid[: len(part)] = part, True
        yield Task(epoch=0, indices=indices, valid=valid)


#: Generators that nobody uses at the moment: making one takes five times as long as setting one to a stream.
_SPARE: list[np.random.Generator] = []
_NOTHING_LEFT = np.zeros(4, np.uint64)


class Stream:
    """Random numbers of one purpose, from the start of their stream."""

    def __init__(self, seed: int, purpose: int, epoch: int, sample: int, view: int = 0) -> None:
        key, counter = _place(seed, purpose, epoch, sample, view)
        try:
            self._generator = _SPARE.pop()
        except IndexError:
            self._generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
            return
        self._generator.bit_generator.state = {
            "bit_generator": "Philox", "state": {"counter": counter, "key": key},
            "buffer": _NOTHING_LEFT, "buffer_pos": 4, "has_uint32": 0, "uinteger": 0,
        }  # fmt: skip

    def __del__(self, spare: list[np.random.Generator] = _SPARE) -> None:
        generator = self.__dict__.get("_generator")
        if generator is not None:
            spare.append(generator)

    @overload
    def random(self) -> float: ...
    @overload
    def random(self, size: int) -> NDArray[np.float64]: ...
    def random(self, size: int | None = None) -> float | NDArray[np.float64]:
        """Return the next numbers, uniform in [0, 1): float64 (size,), or one float."""
        return self._generator.random(size)


class SampleRng(Stream):
    """The random numbers of one view of a sample, in streams that never meet; see :func:`sample_rng`."""

    def __init__(self, seed: int, epoch: int, sample: int, view: int) -> None:
        super().__init__(seed, _SAMPLE, epoch, sample, view)
        self._seed, self._rest = seed, (epoch, sample, view)

    def stream(self, purpose: Literal["auto", "erasing"]) -> Stream:
        """Return the stream of another purpose, from its start."""
        return Stream(self._seed, {"auto": _AUTO, "erasing": _ERASING}[purpose], *self._rest)


def sample_rng(seed: int, epoch: int, sample: int, view: int = 0) -> SampleRng:
    """Return the random numbers of `sample` in `epoch`; `view` counts its appearances in that epoch from 0."""
    return SampleRng(seed, epoch, sample, view)


def mix_rng(seed: int, step: int, micro_batch: int) -> np.random.Generator:
    """Return the random generator of a micro-batch of `step`; use only its ``random()``.

    Steps count from 0 over the whole training, micro-batches over all ranks: `accumulate` of each, rank after rank.
    """
    return np.random.Generator(_philox(seed, _MIX, step, micro_batch))


def branch_rng(seed: int, step: int) -> np.random.Generator:
    """Return the random generator of the branches that `step` leaves out; use only its ``random()``.

    Steps count from 0 over the whole training.
    """
    return np.random.Generator(_philox(seed, _BRANCHES, step, 0))


def _philox(seed: int, purpose: int, epoch: int, sample: int) -> Any:
    key, counter = _place(seed, purpose, epoch, sample)
    return np.random.Philox(key=key, counter=counter)


def _place(
    seed: int, purpose: int, epoch: int, sample: int, view: int = 0
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the key and the first counter of a Philox stream.

    It counts in the first two counter words, so streams never meet.
    """
    return np.array([seed, purpose + (view << 8)], np.uint64), np.array([0, 0, sample, epoch], np.uint64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """The samples of one batch: `indices` int64 (N,) into the index; `valid` bool (N,), False on padding.

    `epoch` counts from 0 and is used only by augmentation, as are `views` int64 (N,): which view of the image in this
    epoch, from 0; None where all are the first. `size` is the side of training images in pixels, None that of the
    preprocessing; those of evaluation have no other.
    """

    epoch: int
    indices: NDArray[np.int64]
    valid: NDArray[np.bool_]
    views: NDArray[np.int64] | None = None
    size: int | None = None

    @classmethod
    def of(cls, epoch: int, indices: NDArray[Any]) -> Task:
        """A task without padding; `indices` (N,) of any integer type."""
        return cls(epoch=epoch, indices=indices.astype(np.int64), valid=np.ones(len(indices), np.bool_))

    def __len__(self) -> int:
        return len(self.indices)

    def row_views(self) -> NDArray[np.int64]:
        """Return the view of each row: int64 (N,)."""
        return np.zeros(len(self), np.int64) if self.views is None else self.views

    def __eq__(self, other: object) -> bool:
        """True for a task that gives the same batch."""
        return (
            isinstance(other, Task)
            and self.epoch == other.epoch
            and self.size == other.size
            and np.array_equal(self.indices, other.indices)
            and np.array_equal(self.valid, other.valid)
            and np.array_equal(self.row_views(), other.row_views())
        )
