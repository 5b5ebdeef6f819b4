"""Which tests the parts of the day run; a test of the project checks that none of those for a GPU is left out."""

from __future__ import annotations

from dataclasses import dataclass

from gpu_day.place import ROOT


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Tests in `files` of resnext_gpu/tests by pytest's ``-k`` and ``-m``, in at most so many `processes`."""

    files: tuple[str, ...]
    keywords: str = ""
    marks: str = ""
    processes: int = 1

    def words(self) -> list[str]:
        """Return pytest's arguments."""
        words = [str(ROOT / "resnext_gpu/tests" / name) for name in self.files]
        words += ["-k", self.keywords] if self.keywords else []
        return words + (["-m", self.marks] if self.marks else [])


#: What needs many kernels of Triton or torch.compile, and so minutes in one process.
_COMPILES = "kernel or compiled or auto_measures"
#: On a card. Every test that is marked ``gpu`` is in one of them.
TESTS = {
    "hardware": Selection(
        files=("test_gpu_hardware.py", "test_gpu_device.py", "test_gpu_ranks.py", "test_gpu_peak.py"),
        keywords=f"not ({_COMPILES})", marks="gpu", processes=4,
    ),
    "contract": Selection(files=("test_contract_gpu.py",), marks="gpu", processes=4),
    "kernels": Selection(
        files=("test_gpu_hardware.py", "test_gpu_grouped_conv.py"),
        keywords=f"(test_gpu_hardware and ({_COMPILES})) or kernels_compile_for_a_gpu", processes=12,
    ),
    "norm": Selection(files=("test_gpu_norm_hardware.py",), marks="gpu", processes=12),
}  # fmt: skip
#: The same on the CPU, one or two of each.
SMOKE = {
    "hardware": Selection(files=("test_gpu_trainer.py",), keywords="impossible_batches or one_value_a_channel"),
    "contract": Selection(
        files=("test_contract_gpu.py",), processes=2,
        keywords="TestGpuOnCpu and (loss_falls or record_is_complete) and not Otherwise",
    ),
    "kernels": Selection(files=("test_gpu_grouped_conv.py",), keywords="weights_in_any_memory_order"),
    "norm": Selection(files=("test_gpu_norm.py",), keywords="where_it_is"),
}  # fmt: skip
