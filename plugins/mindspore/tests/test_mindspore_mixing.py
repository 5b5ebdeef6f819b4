"""Mixed images on MindSpore: one compiled graph for every draw, and pixels against core."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from mindspore_cases import batches, train_request, trainer_on
from resnext_mindspore.device import Device, open_device

from resnext_core.config import MixConfig
from resnext_core.data import mix as core
from resnext_core.interfaces import Batch, Mix
from resnext_core.training.inputs import step_inputs

pytest.importorskip("mindspore.nn")
from resnext_mindspore.mixing import MixPixels, packed


def mixed_batches(count: int, micro_batches: int) -> list[Batch]:
    """Batches of noise, each mixed in its own way, the last not at all."""
    config, made = MixConfig(mixup=1.0, cutmix=1.0), []
    for step, batch in enumerate(batches(count)):
        drawn = core.draw_mixes(
            config, batch.images.shape[1:3], seed=1, step=step, epoch=1, micro_batches=range(micro_batches)
        )
        made.append(dataclasses.replace(batch, mix=drawn if step < count - 1 else ()))
    return made


@pytest.mark.parametrize(("accumulate", "graph"), [(1, "whole"), (2, "micro")])
def test_a_graph_is_compiled_once_for_every_draw(accumulate: int, graph: str) -> None:
    """What was drawn are inputs of the graph. Another number of images is what compiles again, which shows here too."""
    request = train_request(mixes=True, accumulate=accumulate)
    trainer, steps = trainer_on(Device(), request), mixed_batches(5, accumulate)
    assert len({batch.mix for batch in steps}) == 5
    trainer.run_steps(steps, np.full(5, 0.05, np.float32))
    compiled = trainer.engine._graphs[graph].compile_cache
    assert len(compiled) == 1
    half = dataclasses.replace(request, batch_size=2, accumulate=1)
    less = dataclasses.replace(
        steps[-1], images=steps[-1].images[:2], labels=steps[-1].labels[:2], index=steps[-1].index[:2],
        valid=steps[-1].valid[:2],
    )  # fmt: skip
    if accumulate == 1:
        list(trainer.engine.queue(step_inputs(half, [less], [0.05]), lambda: 1.0))
        assert len(compiled) == 2
    trainer.close()


@pytest.mark.parametrize(
    "mix",
    [
        Mix(kind="mixup", lam=0.3),
        Mix(kind="cutmix", lam=1 - 12 / 63, box=(1, 3, 5, 6), partner="rolled"),
        Mix(),
    ],
    ids=lambda mix: mix.kind,
)
def test_pixels_are_those_of_core(mix: Mix) -> None:
    ms = open_device(Device())
    images = np.random.default_rng(1).integers(0, 256, (5, 7, 9, 3)).astype(np.float32)
    valid = np.array([True, True, False, True, True])
    rows = core.mixed_rows([mix], np.zeros(5, np.int32), valid, (7, 9))
    found = MixPixels()(ms.Tensor(images), *[ms.Tensor(array) for array in packed(rows)]).asnumpy()
    expected = core.mixed_pixels(images.astype(np.float64), rows)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    alone = rows.share == 1
    assert np.array_equal(found[alone], images[alone]), "a row that is not mixed is the same bits"
    if mix.kind == "cutmix":
        assert np.array_equal(found, expected), "cutmix moves pixels and computes nothing"
