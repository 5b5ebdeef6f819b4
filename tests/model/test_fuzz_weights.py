"""A short run of the fuzzer; ``python tests/model/fuzz_weights.py`` is the long one."""

from __future__ import annotations

from pathlib import Path

from fuzz_weights import Fuzz


def test_mutated_weights_files_end_in_one_line(tmp_path: Path) -> None:
    fuzz = Fuzz(tmp_path, seed=1)
    fuzz.run(3000)
    refused = {name.split(":")[0] for name in fuzz.outcomes if not name.endswith("loads")}
    assert refused == {name for name, _, _ in fuzz.kinds}
