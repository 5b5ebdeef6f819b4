"""A batch size of ``auto``: the largest batch whose steps fit the memory of every rank."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from resnext_core.config import Config
from resnext_core.errors import BackendUnavailable, ResnextError, UsageError, counted
from resnext_core.jobs.plan import Plan, require, size
from resnext_core.jobs.preflight import training_memory
from resnext_core.jobs.training import train_request
from resnext_core.ranks.collectives import Collectives
from resnext_core.ranks.exchange import from_each
from resnext_core.ranks.info import RankInfo
from resnext_core.training.batch_sizes import LEAST_STEPS, LINEAR_UP_TO, micro_batches, most_images
from resnext_core.training.sizes import training_size

#: The share of the free memory that an estimate fills: it knows nothing of workspaces and of images on their way.
_SHARE = 0.7


@dataclass(frozen=True, kw_only=True)
class Found:
    """The largest micro-batch that fits a rank, the next that does not (None: more were not wanted), and why."""

    images: int
    too_many: int | None
    why: str


def with_fitting_batch(plan: Plan, rank: RankInfo, collectives: Collectives) -> tuple[Plan, str]:
    """Return the plan with the largest batch that fits every rank, the same on all, and a line about it.

    Every rank must call. Raises UsageError where none fits, BackendUnavailable where another rank found none.
    """
    found, problem = None, None
    try:
        found = _find(plan, rank, collectives)
    except ResnextError as error:
        problem = error
    each = from_each(rank, collectives, 0 if found is None else found.images)
    if problem is not None:
        raise problem
    assert found is not None
    if not each.all():
        raise BackendUnavailable(
            f"rank {int((each == 0).argmax())} found no batch size that fits; its log says why"
        )
    images, train = int(each.min()), plan.config.train
    config = _with_batch(plan.config, images * train.accumulate * plan.world)
    plan = replace(plan, config=config, finds_batch=False)
    require(plan)
    return plan, _line(config.train.batch_size, images, found, each.tolist())


def _line(batch: int, images: int, found: Found, each: list[int]) -> str:
    whose = "" if len(each) == 1 else " on each rank"
    if images < found.images:
        why = f"more do not fit rank {each.index(images)}"
    elif found.too_many is None:
        why = f"more were not tried: an epoch keeps {LEAST_STEPS} steps, and a step at most {LINEAR_UP_TO} images"
    else:
        why = f"{found.too_many} do not fit"
    return f"batch size {batch}: {counted(images, 'image')} at a time{whose}; {why} ({found.why})"


def _find(plan: Plan, rank: RankInfo, collectives: Collectives) -> Found:
    """Return what fits this rank: by trying it on the device, or by an estimate."""
    sizes = micro_batches(most_images(plan.config, plan.world, len(plan.data.train)))
    fits, why = _tried(plan, rank, collectives), "tried on the device"
    first = fits(sizes[0])
    if first is None:
        fits, why = _estimated(plan)
        first = fits(sizes[0])
    images, too_many = (sizes[0], None) if first else (0, sizes[0])
    # By doubling, and then once between: a size that does not fit takes as long to try as one that does.
    for step in (doubled(sizes), sizes):
        for more in step:
            if images and more > images and (too_many is None or more < too_many):
                if not fits(more):
                    too_many = more
                    break
                images = more
    if not images:
        images = next((fewer for fewer in (4, 2) if fewer < sizes[0] and fits(fewer)), 0)
    if not images:
        raise UsageError(
            f"not even "
            f"{counted(min(sizes[0], 2), 'image')} at a time fit the memory ({why}); use a smaller model or image size"
        )
    return Found(images=images, too_many=too_many, why=why)


def doubled(sizes: list[int]) -> list[int]:
    """Return those of `sizes` that are powers of two."""
    return [count for count in sizes if count & (count - 1) == 0]


def _tried(plan: Plan, rank: RankInfo, collectives: Collectives) -> Callable[[int], bool | None]:
    """Return what tries a micro-batch on the device; None where the backend cannot."""
    backend, settled = plan.trainer, plan.settled
    if backend.batch_fits is None:
        return lambda images: None
    try_it, weights = backend.batch_fits, plan.initial.weights
    weights = weights.replace(spec=weights.spec.replace(image_size=training_size(settled)))

    def fits(images: int) -> bool | None:
        config = _with_batch(settled, images * settled.train.accumulate * rank.world)
        return try_it(train_request(config, weights, backend, rank, collectives))

    return fits


def _estimated(plan: Plan) -> tuple[Callable[[int], bool], str]:
    """Return what compares the estimate of a micro-batch with the free memory, and a word on that."""
    free = free_memory()
    if free is None:
        raise UsageError("this machine does not say how much memory is free: give the batch size as a number")
    room = int(_SHARE * free / plan.world)

    def fits(images: int) -> bool:
        return training_memory(plan.spec, plan.settled, images).total <= room

    ranks = "" if plan.world == 1 else f" for {plan.world} ranks"
    return fits, f"estimated, with {size(free)} of memory free on this machine{ranks}"


def free_memory() -> int | None:
    """Return the bytes of memory that a new program can have here, within the limit of a container; None: unknown."""
    found = [_available(Path("/proc/meminfo")), _left(Path("/sys/fs/cgroup"))]
    known = [count for count in found if count is not None]
    if known:
        return min(known)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError):
        return None


def _available(path: Path) -> int | None:
    """Return Linux's estimate of what can be had without swapping."""
    try:
        for line in path.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except (OSError, ValueError, IndexError):
        pass
    return None


def _left(folder: Path) -> int | None:
    """Return what is left of the limit of this container (cgroup v2); None where there is none."""
    try:
        return max(int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text()), 0)
    except (OSError, ValueError):  # the file says "max" where there is no limit
        return None


def _with_batch(config: Config, batch: int) -> Config:
    return replace(config, train=replace(config.train, batch_size=batch))
