"""Micro-batches: what is computed together, in which order, and what happens to those who do not wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest
from resnext_serve.batcher import Batcher
from resnext_serve.errors import Refused


class Device:
    """A device that waits until it is let go; its logits are the first pixel of each image."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.go = threading.Event()
        self.begun = threading.Event()
        self.error: Exception | None = None

    def __call__(self, images: Any) -> Any:
        self.sizes.append(len(images))
        self.begun.set()
        assert self.go.wait(60)
        if self.error is not None:
            raise self.error
        return images.reshape(len(images), -1)[:, :1].astype(np.float32)


def images(*values: int) -> Any:
    return np.full((len(values), 1, 1, 3), 0, np.uint8) + np.array(values, np.uint8)[:, None, None, None]


def play(device: Device, scene: Any, **changes: Any) -> Any:
    """Run `scene`, a coroutine of the batcher, and close the batcher."""

    async def main() -> Any:
        batcher = Batcher(device, **{"most": 4, "window": 30.0, "queue": 8, **changes})
        try:
            return await asyncio.wait_for(scene(batcher), 60)
        finally:
            device.go.set()
            await batcher.close(lambda: None)

    return asyncio.run(main())


async def later(*work: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    """Start tasks and let them begin."""
    tasks = [asyncio.create_task(one) for one in work]
    await asyncio.sleep(0)
    return tasks


async def begun(device: Device) -> None:
    await asyncio.get_running_loop().run_in_executor(None, device.begun.wait, 60)


def test_a_lone_request_does_not_wait() -> None:
    device = Device()
    device.go.set()
    answer = play(device, lambda batcher: batcher.submit(images(7)))
    assert answer.logits.tolist() == [[7]]
    assert answer.queue_seconds < 30  # the window


def test_what_comes_while_the_device_is_busy_is_computed_together_in_order() -> None:
    device = Device()

    async def scene(batcher: Batcher) -> Any:
        (first,) = await later(batcher.submit(images(1)))
        await begun(device)
        others = await later(*(batcher.submit(images(value, value + 1)) for value in (2, 4, 6)))
        assert batcher.waiting == 6
        device.go.set()
        return [(await task).logits.ravel().tolist() for task in (first, *others)]

    assert play(device, scene) == [[1], [2, 3], [4, 5], [6, 7]]
    assert device.sizes == [1, 4, 2]


def test_a_batch_waits_for_requests_on_their_way() -> None:
    device = Device()
    device.go.set()

    async def scene(batcher: Batcher) -> Any:
        with batcher.arriving():
            (first,) = await later(batcher.submit(images(1)))
            await asyncio.sleep(0)
            assert device.sizes == []
        second = batcher.submit(images(2))  # before the batcher runs again
        return [(await second).logits.tolist(), (await first).logits.tolist()]

    assert play(device, scene) == [[[2]], [[1]]]
    assert device.sizes == [2]


def test_a_batch_does_not_wait_beyond_its_window() -> None:
    device = Device()
    device.go.set()

    async def scene(batcher: Batcher) -> Any:
        with batcher.arriving():
            return (await batcher.submit(images(1))).logits.tolist()

    assert play(device, scene, window=0.01) == [[1]]


def test_a_large_request_is_computed_in_parts() -> None:
    device = Device()
    device.go.set()
    answer = play(device, lambda batcher: batcher.submit(images(*range(11))))
    assert answer.logits.ravel().tolist() == list(range(11))
    assert device.sizes == [4, 4, 3]


def test_a_full_queue_refuses_and_recovers() -> None:
    device = Device()

    async def scene(batcher: Batcher) -> None:
        tasks = await later(batcher.submit(images(1)))
        await begun(device)
        tasks += await later(batcher.submit(images(*range(8))))
        with pytest.raises(Refused) as refused:
            await batcher.submit(images(1))
        assert (refused.value.status, refused.value.retry_after) == (503, 1)
        device.go.set()
        await asyncio.gather(*tasks)
        await batcher.submit(images(1))

    play(device, scene)


def test_who_goes_away_is_not_computed() -> None:
    device = Device()

    async def scene(batcher: Batcher) -> None:
        (first,) = await later(batcher.submit(images(1)))
        await begun(device)
        gone, stays = await later(batcher.submit(images(2, 3)), batcher.submit(images(4)))
        gone.cancel()
        device.go.set()
        await asyncio.gather(first, stays)
        assert batcher.waiting == 0

    play(device, scene)
    assert device.sizes == [1, 1]


def test_changes_of_the_queue_add_up_to_what_waits() -> None:
    device, changes = Device(), []

    async def scene(batcher: Batcher) -> None:
        tasks = await later(batcher.submit(images(1)))
        await begun(device)
        gone, stays = await later(batcher.submit(images(2, 3)), batcher.submit(images(4)))
        assert sum(changes) == batcher.waiting == 3
        gone.cancel()
        device.go.set()
        await asyncio.gather(*tasks, stays)

    play(device, scene, queued=changes.append)
    assert sum(changes) == 0


def test_a_failure_reaches_all_of_the_batch_and_no_other() -> None:
    device = Device()

    async def scene(batcher: Batcher) -> None:
        device.error = RuntimeError("device lost")
        tasks = await later(batcher.submit(images(1)))
        await begun(device)
        device.go.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(error) for error in found] == ["device lost"]
        device.error = None
        assert (await batcher.submit(images(5))).logits.tolist() == [[5]]

    play(device, scene)


def test_work_apart_runs_between_batches_in_the_computing_thread() -> None:
    device = Device()
    device.go.set()

    async def scene(batcher: Batcher) -> None:
        assert (await batcher.apart(threading.current_thread)).name.startswith("resnext-compute")

    play(device, scene)
