"""The peak that the backend measures for ``resnext-run bench``, on the CPU."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from resnext_gpu.options import GpuOptions  # noqa: E402
from resnext_gpu.plugin import resnext_backends  # noqa: E402

from resnext_gpu import peak  # noqa: E402


def test_a_peak_counts_two_operations_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that advances by a millisecond a look: one product takes one look to the next."""
    looks = iter(range(10_000))
    monkeypatch.setattr(peak.time, "perf_counter", lambda: next(looks) / 1e3)
    monkeypatch.setattr(peak, "_SIZES", {"cpu": (32, 64)})
    found = peak.measured_peak(GpuOptions(device="cpu"), "float32")
    assert found == pytest.approx(2 * 64**3 / 1e-3)


def test_formats_that_are_not_known_have_none() -> None:
    assert peak.measured_peak(GpuOptions(device="cpu"), "int8") is None


@pytest.mark.gpu
def test_a_card_has_a_peak() -> None:
    """A GPU multiplies faster in 16 bits than in float32; any has more than 1 TFLOP/s."""
    slow, fast = (peak.measured_peak(GpuOptions(), name) for name in ("float32", "bfloat16"))
    assert 1e12 < slow < fast


def test_what_the_backend_says_that_it_computes_with() -> None:
    (backend,) = resnext_backends()
    cpu = backend.compute(GpuOptions(device="cpu", threads=3))
    assert (cpu.device, cpu.threads, cpu.precision) == ("cpu", 3, None)
    card = backend.compute(GpuOptions(tf32=True))
    assert (card.device, card.threads, card.precision) == ("cuda", None, "tf32")
    assert cpu.peak("int8") is None
