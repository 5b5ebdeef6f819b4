"""Teachers: what they say about the very pixels of a step, the same on any number of ranks, and what cannot be one."""

from __future__ import annotations

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from resnext_core.config import Config, LossConfig, OptimizerConfig, PrecisionConfig, load_config, parse_set
from resnext_core.data.mix import mixed_pixels, mixed_rows
from resnext_core.errors import DataError, UsageError
from resnext_core.interfaces import Backend, Batch, Distillation, Mix, Predictor, PredictRequest, TrainRequest
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.weights import Weights, save_weights
from resnext_core.plugins import load_plugins
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_core.reference.network import evaluate
from resnext_core.serving.load import LoadedModel
from resnext_core.testing.cases import oracle_trainer
from resnext_core.testing.distributed import ThreadGroup
from resnext_core.testing.tiny import CLASSES, noise_batches, rank_part, tiny_weights
from resnext_core.training import teacher as module
from resnext_core.training.teacher import (
    Teacher,
    check_classes,
    distillation,
    mixed_tensor,
    open_teacher,
    softened,
)

#: The teacher normalises its own way, not as the network that learns.
OWN = PreprocessSpec(size=16, resize=16, mean=(90, 120, 140), std=(70, 40, 55))
MIXES = (
    Mix(kind="mixup", lam=0.7, partner="rolled"),
    Mix(kind="cutmix", lam=1 - 6 * 9 / 256, box=(3, 4, 9, 13)),
    Mix(),
)


def reference() -> Backend:
    return load_plugins().get("reference")


def teaching(
    weights: Weights | None = None, *, temperature: float = 2.0, accumulate: int = 3, **changes: Any
) -> Teacher:
    """Return a teacher on the reference backend; `changes` are of its model."""
    weights = weights or tiny_weights(seed=8).replace(preprocess=OWN)
    backend = reference()
    assert backend.predictor is not None
    predictor = backend.predictor(PredictRequest(weights=weights, rank=RankInfo()))
    fields: dict[str, Any] = {
        "predictor": predictor, "backend": backend, "source": "teacher.safetensors", "spec": weights.spec,
        "preprocess": weights.preprocess, "classes": weights.classes, "digest": weights.digest,
    }  # fmt: skip
    model = LoadedModel(**(fields | changes))
    return Teacher(model=model, identity="own", temperature=temperature, accumulate=accumulate)


def expected(weights: Weights, batch: Batch, temperature: float, accumulate: int) -> NDArray[np.float64]:
    """Return softmax(logits / T), each pixel of each row mixed by hand, in float64."""
    size = len(batch) // accumulate
    rows = []
    for number, (mix, start) in enumerate(zip(batch.mix, range(0, len(batch), size), strict=True)):
        for i in range(size):
            other = (i - 1) % size if mix.partner == "rolled" else size - 1 - i
            own = batch.images[start + i].astype(np.float64)
            theirs = batch.images[start + other].astype(np.float64)
            both = batch.valid[start + i] and batch.valid[start + other]
            pixels = own.copy()
            if mix.kind == "mixup" and both:
                pixels = mix.lam * own + (1 - mix.lam) * theirs
            if mix.kind == "cutmix" and both:
                top, left, bottom, right = mix.box
                pixels[top:bottom, left:right] = theirs[top:bottom, left:right]
            rows.append((pixels - weights.preprocess.mean) / weights.preprocess.std)
        assert len(rows) == (number + 1) * size
    tensors = {name: array.astype(np.float64) for name, array in weights.tensors.items()}
    logits = evaluate(weights.spec, tensors, np.ascontiguousarray(np.stack(rows).transpose(3, 0, 1, 2)))
    powers = np.exp(logits / temperature)
    found: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return found


class Fixed(Predictor):
    """An artefact of one image size that has normalisation inside."""

    closed, value = False, 0.0

    def logits(self, images: NDArray[Any]) -> NDArray[Any]:
        if images.shape[1:3] != (16, 16):
            raise DataError(f"this file takes images of 16 pixels, not {images.shape}")
        return np.full((len(images), 5), self.value, np.float32)

    def logits_from_tensor(self, tensor: NDArray[Any]) -> NDArray[Any]:
        raise UsageError("this file normalises its images itself")

    def close(self) -> None:
        self.closed = True


def test_it_sees_the_mixed_pixels_with_its_own_mean_and_deviation() -> None:
    teacher, weights = teaching(), tiny_weights(seed=8).replace(preprocess=OWN)
    (batch,) = noise_batches(1, images=18)
    batch = dataclasses.replace(batch, mix=MIXES)
    said = teacher.probabilities(batch)
    assert (said.dtype, said.shape) == (np.float32, (18, CLASSES))
    np.testing.assert_allclose(said, expected(weights, batch, 2.0, 3), rtol=1e-4, atol=1e-6)
    unmixed = teacher.probabilities(dataclasses.replace(batch, mix=()))
    assert np.array_equal(unmixed[12:], said[12:])
    assert np.abs(unmixed[:12] - said[:12]).max(axis=1).min() > 1e-4, "every mixed row is another image"


@pytest.mark.parametrize("mix", MIXES)
def test_mixing_image_by_image_is_mixing_the_batch(mix: Mix) -> None:
    (batch,) = noise_batches(1, images=5)
    valid = np.array([True, True, True, False, True])
    rows = mixed_rows([mix], batch.labels, valid, batch.images.shape[1:3])
    planes = mixed_pixels(batch.images.astype(np.float32), rows)
    scaled = (planes - np.array(OWN.mean, np.float32)) / np.array(OWN.std, np.float32)
    found = mixed_tensor(batch.images, rows, OWN)
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found.transpose(0, 2, 3, 1), scaled, rtol=1e-6, atol=1e-6)


def test_rows_that_are_not_valid_are_uniform_and_in_nobodys_pixels() -> None:
    teacher, weights = teaching(), tiny_weights(seed=8).replace(preprocess=OWN)
    (batch,) = noise_batches(1, images=15)
    valid = np.ones(15, np.bool_)
    valid[[1, 8]] = False
    images = np.where(valid[:, None, None, None], batch.images, 0).astype(np.uint8)
    batch = dataclasses.replace(batch, images=images, valid=valid, mix=MIXES)
    said = teacher.probabilities(batch)
    assert np.array_equal(said[~valid], np.full((2, CLASSES), np.float32(1 / CLASSES)))
    np.testing.assert_allclose(said[valid], expected(weights, batch, 2.0, 3)[valid], rtol=1e-4, atol=1e-6)


def test_each_rank_gets_the_rows_of_one_that_accumulates() -> None:
    teacher = teaching(accumulate=6)
    (batch,) = noise_batches(1, images=24)
    batch = dataclasses.replace(batch, mix=MIXES * 2)
    alone = teacher.probabilities(batch)
    for world in (2, 3):
        own = dataclasses.replace(teacher, accumulate=6 // world)
        parts = [
            own.probabilities(rank_part(batch, RankInfo(rank=rank, world=world))) for rank in range(world)
        ]
        assert np.array_equal(np.concatenate(parts), alone)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_softened_logits(temperature: float) -> None:
    logits = np.array([[1000.0, 998.0, -1000.0], [0.25, 0.5, 0.75]], np.float32)
    said = softened(logits, temperature)
    for row, found in zip(logits.tolist(), said.tolist(), strict=True):
        powers = [math.exp((x - max(row)) / temperature) for x in row]
        assert found == pytest.approx([p / sum(powers) for p in powers], rel=1e-6)


def test_logits_that_are_not_finite_end_the_run_unless_their_row_does_not_count() -> None:
    predictor = Fixed()
    predictor.value = np.inf
    teacher = teaching(predictor=predictor, accumulate=1)
    (batch,) = noise_batches(1, images=4)
    with pytest.raises(DataError, match="logits that are not finite"):
        teacher.probabilities(batch)
    nothing = dataclasses.replace(batch, valid=np.zeros(4, np.bool_))
    assert np.isfinite(teacher.probabilities(nothing)).all()


# -- learning from it ----------------------------------------------------------------------------


def test_a_network_that_says_what_its_teacher_says_has_nothing_to_learn() -> None:
    """All of the loss is the teacher's, and the teacher is the network itself: the loss is the entropy of its answers.

    All but the classifier is frozen: its batch normalisation uses the running statistics, as the teacher's does.
    """
    weights = tiny_weights(seed=8)
    request = TrainRequest(
        weights=weights, batch_size=15, accumulate=3, mixes=True, frozen=2, rank=RankInfo(),
        optimizer=OptimizerConfig(weight_decay=0.0), loss=LossConfig(),
        precision=PrecisionConfig(compute="float64"), collectives=SingleProcess(),
        distillation=Distillation(weight=1.0, temperature=1.0),
    )  # fmt: skip
    (batch,) = noise_batches(1, images=15)
    batch = dataclasses.replace(batch, mix=MIXES)
    (taught,) = teaching(weights, temperature=1.0).taught([batch])
    trainer = oracle_trainer(request)
    (loss,) = trainer.run_steps([taught], np.array([0.1], np.float32))
    assert taught.teacher is not None
    said = taught.teacher.astype(np.float64)
    assert loss == pytest.approx(-(said * np.log(said)).sum(axis=1).mean(), rel=1e-5)
    state = trainer.state().tensors
    assert {n for n in state if n.startswith("momentum/")} == {"momentum/fc.weight", "momentum/fc.bias"}
    assert max(float(np.abs(a).max()) for n, a in state.items() if n.startswith("momentum/")) < 1e-6
    other = oracle_trainer(request)
    wrong = dataclasses.replace(taught, teacher=np.roll(taught.teacher, 1, axis=1))
    other.run_steps([wrong], np.array([0.1], np.float32))
    assert float(np.abs(other.state().tensors["momentum/fc.bias"]).max()) > 1e-2, "the check can fail"


def test_how_much_it_counts() -> None:
    sets = ["train.teacher=x", "train.teacher_weight=0.9", "train.teacher_temperature=4"]
    train = configured(*sets).train
    assert distillation(train) == Distillation(weight=0.9, temperature=4.0)
    assert distillation(dataclasses.replace(train, teacher=None)) is None


# -- what can be a teacher -----------------------------------------------------------------------


def configured(*sets: str) -> Config:
    return load_config(parse_set(["model.image_size=16", "train.batch_size=8", "train.accumulate=2", *sets]))[
        0
    ]


def opened(config: Config, classes: tuple[str, ...] = tuple("abcde"), **changes: Any) -> Any:
    fields: dict[str, Any] = {"prefer": "reference", "rank": RankInfo(), "collectives": SingleProcess()}
    return open_teacher(config, classes, load_plugins(), **(fields | changes))


@pytest.fixture
def file(core_only: None, tmp_path: Path) -> Path:
    path = tmp_path / "teacher.safetensors"
    save_weights(tiny_weights(seed=8).replace(preprocess=OWN), path)
    return path


def test_none_is_opened_where_none_is_asked_for(core_only: None) -> None:
    with opened(configured()) as teacher:
        assert teacher is None


def test_weights_are_opened_for_any_size_and_say_who_they_are(file: Path) -> None:
    """What the configuration says about the network that learns, and about evaluation, is not about the teacher."""
    config = configured(
        f"train.teacher={file}", "train.teacher_temperature=3", "augment.start_size=8", "mix.cutmix=1",
        "model.variant=resnext50_32x4d", "preprocess.mean=[1,2,3]", "eval.size=32", "eval.crop_pct=0.5",
    )  # fmt: skip
    with opened(config) as teacher:
        assert teacher.model.preprocess == OWN
        assert (teacher.temperature, teacher.accumulate) == (3.0, 2)
        assert teacher.identity == f"digest {tiny_weights(seed=8).digest[:19]}"
        assert "reference" in teacher.note
    with pytest.raises(UsageError, match="closed"):
        teacher.probabilities(noise_batches(1, images=8)[0])


@pytest.mark.parametrize(
    ("own", "named", "classes", "says"),
    [
        ("abc", True, "abd", "number 2 is 'c' there and 'd' here"),
        ("abc", True, "acb", "number 1 is 'b' there and 'c' here"),
        ("abc", True, "abcd", "has 3 classes, the data has 4"),
        ("012", False, "ab", "has 3 classes, the data has 2"),
        ("012", False, "123", "class numbers from 0"),
    ],
)
def test_other_classes_are_refused(own: str, named: bool, classes: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_classes("teacher.onnx", tuple(own), named, tuple(classes))


@pytest.mark.parametrize(("own", "named", "classes"), [("abc", True, "abc"), ("012", False, "abc")])
def test_equal_classes_and_as_many_without_names_are_taken(own: str, named: bool, classes: str) -> None:
    check_classes("teacher.onnx", tuple(own), named, tuple(classes))


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["mix.mixup=0.2"], "cannot take mixed images of 16 pixels.*mix.mixup=0 and mix.cutmix=0"),
        (["augment.start_size=12"], "cannot take images of 12 pixels"),
        (["model.image_size=20"], "cannot take images of 20 pixels"),
    ],
)
def test_what_it_cannot_take_is_refused_before_the_first_step(
    core_only: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sets: list[str], says: str
) -> None:
    path, predictor = tmp_path / "fixed.fake", Fixed()
    path.write_bytes(b"artefact")
    monkeypatch.setattr(module, "serve", lambda *_, **__: teaching(predictor=predictor).model)
    with opened(configured(f"train.teacher={path}")) as teacher:
        assert ", file sha256:" in teacher.identity
    with pytest.raises(UsageError, match=says) as refusal, opened(configured(f"train.teacher={path}", *sets)):
        pytest.fail("it was opened")
    assert "\n" not in str(refusal.value)
    assert predictor.closed


def test_ranks_with_different_teachers_are_refused_together(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_weights(tiny_weights(seed=9), other)

    def answers(*paths: Path) -> list[str]:
        """Return what each rank, a thread, gets to know."""
        group = ThreadGroup(len(paths))

        def open_on(number: int) -> str:
            rank = RankInfo(rank=number, world=len(paths))
            try:
                with opened(
                    configured(f"train.teacher={paths[number]}"), rank=rank, collectives=group.of(number)
                ) as found:
                    return str(found.identity)
            except DataError as error:
                return str(error)

        with ThreadPoolExecutor(len(paths)) as ranks:
            return list(ranks.map(open_on, range(len(paths))))

    (same,) = set(answers(file, file))
    assert same.startswith("digest ")
    assert all("rank 1 has another teacher than rank 0" in said for said in answers(file, other))
