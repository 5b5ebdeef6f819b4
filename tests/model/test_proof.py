"""What an artefact in few bits says of itself: parsed strictly, written as it is read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from resnext_core.errors import DataError
from resnext_core.model.proof import PRECISIONS, Golden, Proof
from resnext_core.model.weights import Weights, parse_manifest

ROW = (0.5, -1.0, 2.0, 0.0, 1.0, 3.0)
PROOF = Proof(logits=(ROW, ROW), images=100, top1_agreement=0.99, top1=0.8, top1_source=0.81)
UNLABELLED = Proof(logits=(ROW,), images=1, top1_agreement=1.0)


def text(weights: Weights, golden: Golden | None, artefact: Any) -> str:
    manifest = weights.replace(golden=golden).manifest()
    return json.dumps({**manifest, "artefact": artefact})


@pytest.mark.parametrize("compute", PRECISIONS)
def test_proofs_come_back(tiny_weights: Weights, compute: str) -> None:
    artefact = {
        "compute": compute,
        "proofs": {"avx2": PROOF.to_dict(), "avx512-vnni": UNLABELLED.to_dict()},
    }
    found = parse_manifest(text(tiny_weights, Golden(compute=compute, logits=(ROW,)), artefact), where="x")
    assert found.precision == compute
    assert found.proofs == {"avx2": PROOF, "avx512-vnni": UNLABELLED}
    assert "top1" not in UNLABELLED.to_dict()


def test_float32_states_nothing(tiny_weights: Weights) -> None:
    found = parse_manifest(text(tiny_weights, None, {"precision": "enforce_fp16"}), where="x")
    assert (found.precision, found.proofs) == (None, {})


@pytest.mark.parametrize(
    ("golden", "artefact", "said"),
    [
        ("int8", {"proofs": {}}, "artefact has proofs and no compute"),
        ("int8", {"compute": "int4"}, "artefact compute must be one of int8, float16, bfloat16, not 'int4'"),
        ("int8", {"compute": None}, "artefact compute must be one of"),
        (None, {"compute": "int8"}, "an artefact in int8 must have golden logits in int8"),
        ("float32", {"compute": "int8"}, "an artefact in int8 must have golden logits in int8"),
        ("int8", {"compute": "int8", "proofs": []}, "artefact proofs must be an object"),
        ("int8", {"compute": "int8", "proofs": {"AVX2": PROOF.to_dict()}}, "'AVX2' is not the name of"),
        ("int8", {"compute": "int8", "proofs": {"avx2": None}}, "a proof has the fields logits, images"),
        ("int8", {"compute": "int8", "proofs": {"avx2": {"images": 1}}}, "a proof has the fields logits"),
    ],
)
def test_what_is_not_stated_well(tiny_weights: Weights, golden: str | None, artefact: Any, said: str) -> None:
    own = None if golden is None else Golden(compute=golden, logits=(ROW,))
    with pytest.raises(DataError, match=f"^x has a broken manifest: {said}"):
        parse_manifest(text(tiny_weights, own, artefact), where="x")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"logits": []}, "logits of a proof must be 1 to 8 rows of 6 finite numbers"),
        ({"logits": [[1, 2, 3]]}, "logits of a proof must be 1 to 8 rows of 6 finite numbers"),
        ({"logits": [list(ROW)] * 9}, "logits of a proof must be 1 to 8 rows of 6 finite numbers"),
        ({"images": 0}, "images of a proof must be an integer from 1"),
        ({"images": 1.0}, "images of a proof must be an integer from 1"),
        ({"images": True}, "images of a proof must be an integer from 1"),
        ({"top1_agreement": 1.01}, "top1_agreement of a proof must be from 0 to 1, not 1.01"),
        ({"top1": "good"}, "'good' is not a number"),
        ({"top1_source": None}, "None is not a number"),
        ({"more": 1}, "a proof has the fields"),
    ],
)
def test_broken_proofs(tiny_weights: Weights, change: dict[str, Any], said: str) -> None:
    artefact = {"compute": "int8", "proofs": {"avx2": PROOF.to_dict() | change}}
    with pytest.raises(DataError, match=f"^x has a broken manifest: {said}"):
        parse_manifest(text(tiny_weights, Golden(compute="int8", logits=(ROW,)), artefact), where="x")


def test_one_share_of_right_guesses_alone_is_refused(tiny_weights: Weights) -> None:
    proof = {key: value for key, value in PROOF.to_dict().items() if key != "top1_source"}
    artefact = {"compute": "int8", "proofs": {"avx2": proof}}
    with pytest.raises(DataError, match="perhaps top1 and top1_source"):
        parse_manifest(text(tiny_weights, Golden(compute="int8", logits=(ROW,)), artefact), where="x")
