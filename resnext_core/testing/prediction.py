"""Prediction: the same logits as the reference, from whatever batch, out of pixels or tensors."""

from __future__ import annotations

import numpy as np
import pytest

from resnext_core.serving import golden as selfcheck
from resnext_core.testing import cases
from resnext_core.testing.base import ContractBase

#: A sample's logits may depend on its batch by as much as the order of additions does.
INVARIANCE_TOLERANCE = 2e-6
_TENSOR_NETWORKS = ("cifar", "same")
#: The most rows asked for at once: many times the usual batch, and no multiple of it.
MANY = 101


class PredictionContract(ContractBase):
    """The predictor of weights (or of an artefact made from them)."""

    @pytest.mark.parametrize("pool_padding", ["same", "symmetric"])
    def test_golden_logits(self, pool_padding: str) -> None:
        """The numbers in :mod:`resnext_core.serving.golden`, which are the same on every machine for ever."""
        network = selfcheck.golden_weights(pool_padding)  # type: ignore[arg-type]
        predictor = self.serve(f"golden-{pool_padding}", network)
        logits = predictor.logits(selfcheck.golden_images())
        predictor.close()
        golden = np.array(selfcheck.GOLDEN_LOGITS[pool_padding], np.float32)  # type: ignore[index]
        cases.assert_close(logits, golden, cases.TOLERANCE, f"golden logits, pool padding {pool_padding}")

    @pytest.mark.parametrize("network", cases.SPECS)
    def test_logits_equal_the_reference(self, network: str) -> None:
        pixels = cases.images(network, cases.PREDICT_BATCH)
        logits = self.kept_predictor(network, cases.weights(network)).logits(pixels)
        assert logits.dtype == np.float32
        expected = cases.oracle_predictor(cases.weights(network)).logits(pixels)
        cases.assert_close(logits, expected, cases.TOLERANCE, f"logits of {network}")

    @pytest.mark.parametrize("network", _TENSOR_NETWORKS)
    def test_logits_from_a_normalized_tensor(self, network: str) -> None:
        pixels = cases.images(network, cases.PREDICT_BATCH)
        predictor = self.kept_predictor(network, cases.weights(network), tensor_input=True)
        logits = predictor.logits_from_tensor(cases.normalized(network, pixels))
        assert logits.dtype == np.float32
        expected = cases.oracle_predictor(cases.weights(network)).logits(pixels)
        cases.assert_close(logits, expected, cases.TOLERANCE, f"logits of {network} from a tensor")

    def test_a_sample_does_not_depend_on_its_batch(self) -> None:
        """Alone, among others, and beside padding rows of zeros, also in more rows than the usual batch."""
        pixels = cases.images("cifar", MANY)
        predictor = self.kept_predictor("cifar", cases.weights("cifar"))
        together = predictor.logits(pixels)
        for count in (1, 3):
            alone = predictor.logits(pixels[:count])
            cases.assert_close(alone, together[:count], INVARIANCE_TOLERANCE, f"the first {count} alone")
        for row in (7, 31, 64, MANY - 1):
            alone = predictor.logits(pixels[row : row + 1])
            cases.assert_close(alone, together[row : row + 1], INVARIANCE_TOLERANCE, f"sample {row} alone")
        padded = np.concatenate([pixels[:2], np.zeros_like(pixels[:4])])
        beside = predictor.logits(padded)[:2]
        cases.assert_close(beside, together[:2], INVARIANCE_TOLERANCE, "two samples beside padding rows")
        expected = cases.oracle_predictor(cases.weights("cifar")).logits(pixels)
        cases.assert_close(together, expected, cases.TOLERANCE, f"logits of {MANY} samples at once")

    @pytest.mark.parametrize("made_for", ["uint8", "float"])
    def test_images_and_tensors_are_the_same_question(self, made_for: str) -> None:
        """Whichever of the two the predictor was made for; one of uint8 may refuse tensors."""
        network = cases.weights("cifar")
        predictor = self.kept_predictor("cifar", network, tensor_input=made_for == "float")
        self.both_doors(predictor, "cifar", network, f"a predictor for {made_for}")

    @pytest.mark.parametrize("input_kind", ["uint8", "float"])
    def test_artefact_of_a_fixed_batch_serves_any_number(self, input_kind: str) -> None:
        """Less than the batch, more, and no multiple of it; for backends that serve artefacts alone."""
        if ".safetensors" in self.record.formats:
            pytest.skip("serves weights in memory; its artefacts are tested with its exporters")
        network = cases.weights("one-stage")
        tensor_input = input_kind == "float"
        predictor = self.serve("fixed", network, tensor_input=tensor_input, export_batch=2)
        try:
            self.both_doors(predictor, "one-stage", network, f"an artefact of two {input_kind} images")
        finally:
            predictor.close()

    def test_prediction_has_no_memory(self) -> None:
        """The same images give the same bits again, and an earlier result is not written over."""
        first, second = cases.images("cifar", 4), cases.images("cifar", 4, seed=6)
        predictor = self.kept_predictor("cifar", cases.weights("cifar"))
        logits = predictor.logits(first)
        kept = logits.copy()
        assert not np.array_equal(predictor.logits(second), kept)
        assert np.array_equal(logits, kept), "a second call wrote over the result of the first"
        assert np.array_equal(predictor.logits(first), kept)

    def test_input_is_not_modified(self) -> None:
        network = "cifar"
        pixels = cases.images(network, 4).copy()  # writable, so that a write would succeed
        kept = pixels.copy()
        self.kept_predictor(network, cases.weights(network)).logits(pixels)
        assert np.array_equal(pixels, kept), "the predictor wrote into the images"
        tensor = cases.normalized(network, pixels)
        kept_tensor = tensor.copy()
        self.kept_predictor(network, cases.weights(network), tensor_input=True).logits_from_tensor(tensor)
        assert np.array_equal(tensor, kept_tensor), "the predictor wrote into the tensor"

    def test_strided_input(self) -> None:
        """A view with strides of its own is as good as a contiguous array."""
        pixels = cases.images("cifar", 8)
        planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        predictor = self.kept_predictor("cifar", cases.weights("cifar"))
        for view in (pixels[::2, :, ::-1], planes.transpose(0, 2, 3, 1)):
            expected = predictor.logits(np.ascontiguousarray(view))
            assert np.array_equal(predictor.logits(view), expected), "images"
        tensor = cases.normalized("cifar", pixels)
        predictor = self.kept_predictor("cifar", cases.weights("cifar"), tensor_input=True)
        for strided in (tensor[::2, :, ::-1], tensor.transpose(0, 1, 3, 2)):
            expected = predictor.logits_from_tensor(np.ascontiguousarray(strided))
            assert np.array_equal(predictor.logits_from_tensor(strided), expected), "tensor"
