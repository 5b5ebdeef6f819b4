"""The loader with the decoder `turbo`: the same batches as with Pillow, and the same words on what cannot be read."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from images import bad_images, class_tree, good_odd_images, picture
from processes import data_workers

from resnext_core.config import AugmentConfig
from resnext_core.data.index import Index, open_index
from resnext_core.data.loader import Loader
from resnext_core.data.pillow import PILLOW
from resnext_core.data.sampler import Task, epoch_permutation, eval_tasks
from resnext_core.extensions import Decoder
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.plugins import load_plugins

SPEC = PreprocessSpec(size=48, resize=56, mode="shorter-side")


@pytest.fixture
def turbo(program: Path) -> Decoder:
    return load_plugins().decoder("turbo")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Photographs as JPEG, and files of every odd and every bad kind."""
    root = class_tree(tmp_path_factory.mktemp("data") / "train", per_class=2)
    for number in range(12):
        picture(200 + 31 * number, 300 - 17 * number, seed=number).save(root / "bee" / f"{number}.jpg")
    good_odd_images(root / "cat" / "odd")
    bad_images(root / "cat" / "bad")
    return open_index(root)


@pytest.mark.parametrize("augment", [None, AugmentConfig()], ids=["evaluation", "training"])
def test_batches_and_failures_do_not_depend_on_the_decoder(
    index: Index, turbo: Decoder, augment: AugmentConfig | None
) -> None:
    n = len(index)
    tasks = [*eval_tasks(n, 16), *(Task.of(epoch, epoch_permutation(n, 3, epoch)) for epoch in range(2))]
    if augment is not None:  # images that grow
        tasks += [replace(Task.of(2, epoch_permutation(n, 3, 2)), size=size) for size in (9, 80)]
    found = []
    for decoder, workers in ((PILLOW, 0), (turbo, 1), (turbo, 6)):
        with Loader(index, SPEC, augment, seed=3, workers=workers, decoder=decoder) as loader:
            batches = [
                np.hstack([b.images.reshape(len(b), -1), b.valid[:, None]]) for b in loader.batches(tasks)
            ]
            found.append((batches, loader.failures, sorted(loader.take_notes())))
    (expected, failures, notes), *others = found
    assert len(failures) > 8
    for batches, failed, noted in others:
        assert all(np.array_equal(a, b) for a, b in zip(batches, expected, strict=True))
        assert failed == failures
        assert noted == notes


def test_a_reader_that_crashes_ends_nothing(index: Index, turbo: Decoder) -> None:
    good = [i for i, path in enumerate(index.paths) if path.startswith("bee/")]
    tasks = [Task.of(step, np.array(good)) for step in range(40)]
    with Loader(index, SPEC, AugmentConfig(), workers=0) as loader:
        expected = [batch.images for batch in loader.batches(tasks)]
    with Loader(index, SPEC, AugmentConfig(), workers=4, decoder=turbo) as loader:
        for number, batch in enumerate(loader.batches(tasks)):
            assert np.array_equal(batch.images, expected[number])
            if number % 20 == 0:
                (pid,) = data_workers()
                os.kill(pid, signal.SIGSEGV)
        assert loader.failures == {}
        assert len(loader.take_notes()) >= 1
