"""Whether an artefact in few bits is proven where it computes, and whether it still computes what it did there.

In float32 a difference between machines is rounding. In few bits it can be more: processors without instructions for
sums of bytes saturate, and another runtime merges other layers. So an artefact carries the logits of each place where
it was compared with its source, see :mod:`resnext_core.model.proof`, and is compared tightly with those of its place.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from resnext_core.interfaces import Predictor
from resnext_core.model.proof import Golden
from resnext_core.model.weights import Manifest
from resnext_core.serving.golden import check_golden

#: Largest difference of logits from those of the proof of the same place, relative to the largest. Files in 8 bits gave
#: the same bits for 1 to 8 threads, batches of 1 to 32, and two releases of a runtime with two years between them. But
#: where a layer stays in float, its last bit may differ, which moves some values behind it by a step of 8 bits: the
#: last bits of all float constants changed at random gave up to 1.4e-2 (a network of 26 layers, 8 of them in float, 12
#: trials).
TOLERANCE = 2e-2
#: The same where a file in 8 bits is not proven, from its golden logits. The images of these are noise, on which 8 bits
#: differ most: by 5e-2 between two runtimes that were as accurate on photographs, by 0.28 where sums saturated.
UNPROVEN_INT8 = 0.15


@dataclass(frozen=True, kw_only=True)
class Known:
    """The logits that a model has to compute here.

    `golden` are compared within `tolerance`, None for the one of what they were computed in; `what` is their name in
    errors. `note` says in a line where the model is not proven, None where it is, or has nothing to prove.
    """

    golden: Golden | None
    tolerance: float | None = None
    what: str = "its golden logits"
    note: str | None = None

    def check(self, predictor: Predictor, manifest: Manifest, source: str) -> float | None:
        """Return the relative difference, None without golden logits; DataError where it is too large."""
        return check_golden(
            predictor, self.golden, manifest.spec, source, tolerance=self.tolerance, what=self.what
        )


def known(manifest: Manifest, predictor: Predictor, source: str) -> Known:
    """Return what the artefact `source` must compute on `predictor`: its proof of that place, or its golden logits."""
    if manifest.precision is None:
        return Known(golden=manifest.golden)
    place = predictor.computes_on
    proof = manifest.proofs.get(place) if place is not None else None
    if proof is not None:
        return Known(
            golden=Golden(compute=manifest.precision, logits=proof.logits),
            tolerance=TOLERANCE,
            what=f"the logits of its proof on {place}",
        )
    return Known(
        golden=manifest.golden,
        tolerance=UNPROVEN_INT8 if manifest.precision == "int8" else None,
        note=unproven(manifest, place, source),
    )


def unproven(manifest: Manifest, place: str | None, source: str) -> str:
    """Return the line that says that an artefact in few bits is not proven at `place`."""
    where = f"proven on {', '.join(manifest.proofs)}, not" if manifest.proofs else "not proven"
    if place is None:
        return (
            f"{source}: {manifest.precision}, {where} on this backend, which does not say where it computes"
        )
    return (
        f"{source}: {manifest.precision}, {where} on {place}; to prove it here, run with these settings: "
        f"resnext-run validate --artefact {shlex.quote(source)} --weights WEIGHTS"
    )
