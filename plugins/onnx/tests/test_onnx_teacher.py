"""An ONNX artefact as a teacher: the same training as with the weights that it was made from, at its own size."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from onnx_cases import SPECS, make_images, make_weights, write

from resnext_core.config import LossConfig, OptimizerConfig, PrecisionConfig, load_config, parse_set
from resnext_core.errors import UsageError
from resnext_core.interfaces import Batch, Distillation, Mix, TrainRequest
from resnext_core.model.weights import save_weights
from resnext_core.plugins import load_plugins
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_core.testing.cases import oracle_trainer
from resnext_core.training.teacher import Teacher, open_teacher

SPEC = SPECS["cifar"]
#: A row's logits in ONNX Runtime and in the reference backend differ by about 1e-6; so do probabilities.
ROUNDING = 1e-5


def opened(path: Path, *sets: str) -> AbstractContextManager[Teacher | None]:
    size = f"model.image_size={SPEC.image_size}"
    config = load_config(
        parse_set([size, f"train.teacher={path}", "train.batch_size=12", "train.accumulate=2", *sets])
    )[0]
    return open_teacher(
        config, make_weights(SPEC).classes, load_plugins(), prefer="reference", rank=RankInfo(),
        collectives=SingleProcess(),
    )  # fmt: skip


def batch(*mixes: Mix) -> Batch:
    return Batch(
        images=make_images(SPEC, 12), labels=np.arange(12, dtype=np.int32) % 5, index=np.arange(12),
        valid=np.ones(12, np.bool_), mix=mixes,
    )  # fmt: skip


@pytest.mark.parametrize("input", ["uint8", "float"])
def test_an_artefact_teaches_what_its_weights_teach(tmp_path: Path, input: str) -> None:
    weights = make_weights(SPEC, seed=8)
    save_weights(weights, tmp_path / "teacher.safetensors")
    paths = [tmp_path / "teacher.safetensors", write(weights, tmp_path / "teacher.onnx", input=input)]
    mixes = (
        Mix(kind="mixup", lam=0.7),
        Mix(kind="cutmix", lam=1 - 20 / SPEC.image_size**2, box=(3, 4, 7, 9)),
    )
    given, said, states = [batch(*mixes)], [], []
    for path in paths:
        with opened(path, "mix.mixup=0.2", "mix.cutmix=1") as teacher:
            assert teacher is not None
            taught = teacher.taught(given)
            said.append(taught[0].teacher)
        request = TrainRequest(
            weights=make_weights(SPEC), batch_size=12, accumulate=2, mixes=True, rank=RankInfo(),
            optimizer=OptimizerConfig(), loss=LossConfig(), precision=PrecisionConfig(compute="float64"),
            collectives=SingleProcess(), distillation=Distillation(weight=0.6, temperature=1.0),
        )  # fmt: skip
        trainer = oracle_trainer(request)
        trainer.run_steps(taught, np.array([0.01], np.float32))
        states.append(trainer.state().tensors)
    np.testing.assert_allclose(said[1], said[0], rtol=ROUNDING, atol=1e-7)
    for name, array in states[0].items():
        np.testing.assert_allclose(
            states[1][name], array, rtol=ROUNDING, atol=ROUNDING * float(np.abs(array).max()), err_msg=name
        )


def test_an_artefact_is_of_one_size(tmp_path: Path) -> None:
    path = write(make_weights(SPEC), tmp_path / "teacher.onnx")
    with opened(path) as teacher:
        assert teacher is not None
        assert teacher.identity.startswith(f"digest {make_weights(SPEC).digest[:19]}, file sha256:")
    for other in ("augment.start_size=12", "model.image_size=24"):
        with (
            pytest.raises(UsageError, match=r"cannot take images of (12|24) pixels: .*take its weights"),
            opened(path, other),
        ):
            pytest.fail("it was opened")
