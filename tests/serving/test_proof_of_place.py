"""Artefacts in few bits: compared tightly where they are proven, loosely elsewhere, with a line that says so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from resnext_core.errors import DataError
from resnext_core.interfaces import Predictor
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.proof import Golden, Proof
from resnext_core.model.spec import model_spec
from resnext_core.model.weights import Manifest
from resnext_core.serving.proof import TOLERANCE, known

SPEC = model_spec("resnext_tiny", image_size=8, num_classes=2)
GOLDEN = Golden(compute="int8", logits=((1.0, 4.0), (2.0, 3.0)))


class Computed(Predictor):
    """Gives the golden logits, all of them `off` by so much."""

    def __init__(self, off: float, computes_on: str | None) -> None:
        self.off, self.computes_on = off, computes_on

    def logits(self, images: NDArray[Any]) -> NDArray[Any]:
        return (np.array(GOLDEN.logits) + self.off).astype(np.float32)[: len(images)]


def manifest(*places: str, off: float = 0.0) -> Manifest:
    rows = tuple(tuple(x + off for x in row) for row in GOLDEN.logits)
    return Manifest(
        spec=SPEC, preprocess=PreprocessSpec(size=8, resize=8), classes=("a", "b"), digest="", origin={}, metrics={},
        golden=GOLDEN, precision="int8",
        proofs={place: Proof(logits=rows, images=9, top1_agreement=1.0) for place in places},
    )  # fmt: skip


def test_the_proof_of_this_place_is_compared_tightly() -> None:
    found = manifest("avx2", off=0.4)
    within, outside = (
        Computed(0.4 + 4 * 0.9 * TOLERANCE, "avx2"),
        Computed(0.4 + 4.4 * 1.1 * TOLERANCE, "avx2"),
    )
    expected = known(found, within, "m.onnx")
    assert expected.note is None
    difference = expected.check(within, found, "m.onnx")
    assert difference is not None
    assert 0 < difference <= TOLERANCE
    with pytest.raises(
        DataError, match=r"^m\.onnx gives wrong results .* its proof on avx2 are off by 0\.022"
    ):
        known(found, outside, "m.onnx").check(outside, found, "m.onnx")


def test_without_a_proof_of_this_place_it_is_compared_loosely_and_says_so() -> None:
    found = manifest("avx512-vnni", "amx-int8", off=100.0)
    near, far = Computed(4 * 0.14, "avx2"), Computed(4 * 0.16, "avx2")
    expected = known(found, near, "my model.onnx")
    assert expected.note == (
        "my model.onnx: int8, proven on avx512-vnni, amx-int8, not on avx2; to prove it here, run with these settings: "
        "resnext-run validate --artefact 'my model.onnx' --weights WEIGHTS"
    )
    assert expected.check(near, found, "m.onnx") == pytest.approx(0.14, rel=1e-3)
    with pytest.raises(
        DataError, match=r"its golden logits are off by 0\.16 of the largest \(allowed 0\.15\)"
    ):
        expected.check(far, found, "m.onnx")


def test_what_is_proven_nowhere_and_what_cannot_be() -> None:
    found = manifest()
    assert "m.onnx: int8, not proven on avx2; to prove" in str(
        known(found, Computed(0, "avx2"), "m.onnx").note
    )
    note = known(manifest("avx2"), Computed(0, None), "m.onnx").note
    assert note == "m.onnx: int8, proven on avx2, not on this backend, which does not say where it computes"


def test_float32_has_nothing_to_prove() -> None:
    golden = replace(GOLDEN, compute="float32")
    found = replace(manifest(), precision=None, golden=golden)
    for place in (None, "avx2"):
        expected = known(found, Computed(0, place), "m.onnx")
        assert (expected.note, expected.tolerance, expected.golden) == (None, None, golden)
    far = Computed(4 * 2e-4, "avx2")
    with pytest.raises(DataError, match=r"allowed 0\.0001"):
        known(found, far, "m.onnx").check(far, found, "m.onnx")
    far.precision = "bfloat16"  # it computes a file in float32 in fewer bits
    assert known(found, far, "m.onnx").check(far, found, "m.onnx") == pytest.approx(2e-4, rel=1e-2)
