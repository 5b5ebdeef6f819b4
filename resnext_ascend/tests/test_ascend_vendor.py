"""What MindSpore's real library says of Ascends: it answers without one, called from a small program."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path

import pytest
from resnext_mindspore import soc

CHIPS = ("ascend310", "ascend310b", "ascend310p", "ascend910", "ascend910b", "ascend910_93", "ascend950")
Ask = Callable[..., str]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """Returns what the program prints, for its words and more environment."""
    spec = util.find_spec("mindspore")
    if spec is None or not metadata.version("mindspore").startswith("2.10.") or shutil.which("c++") is None:
        pytest.skip("needs MindSpore 2.10 and a C++ compiler")
    assert spec.submodule_search_locations
    package = Path(next(iter(spec.submodule_search_locations)))
    include, library = package / "include", package / "lib"
    program = tmp_path_factory.mktemp("vendor") / "context"
    folders = ("mindspore/core/include", "mindspore/core", "mindspore", "", "third_party")
    subprocess.run(
        [
            "c++", "-std=c++17", "-w", "-D_GLIBCXX_USE_CXX11_ABI=0", *(f"-I{include / f}" for f in folders),
            Path(__file__).with_name("mindspore_context.cpp"), "-o", program, library / "libmindspore_core.so",
            f"-Wl,-rpath,{library}", "-Wl,--unresolved-symbols=ignore-in-shared-libs",
        ],
        check=True,
    )  # fmt: skip
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MS_", "RANK_", "MINDSPORE_"))}

    def run(*words: str, **environment: str) -> str:
        done = subprocess.run(
            [program, *words], env=clean | environment, capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()[-1]

    return run


@pytest.mark.parametrize(
    ("chip", "default"), [("ascend910", "O2"), ("ascend910b", "O0"), ("ascend910_93", "O0")]
)
def test_a_rank_table_decides_the_jit_level(chip: str, default: str, ask: Ask) -> None:
    """Unless the ranks form a cluster, as ours do; without a table it is what is asked for, or the chip's own."""
    for variable in ("RANK_TABLE_FILE", "MINDSPORE_HCCL_CONFIG_PATH"):
        table = {variable: "/tmp/table.json"}
        assert [ask("level", chip, *level, **table) for level in ([], ["O0"], ["O1"])] == ["O2"] * 3
        for cluster in ({}, {"MS_ROLE": "MS_WORKER"}, {"MS_ROLE": "MS_WORKER", "MS_SCHED_HOST": "10.0.0.1"}):
            given = {**table, **cluster} if cluster else {}
            assert ask("level", chip, **given) == default
            assert [ask("level", chip, level, **given) for level in ("O0", "O1", "O2")] == ["O0", "O1", "O2"]


def test_what_chips_can_do(ask: Ask) -> None:
    """As resnext_mindspore.soc says of them."""
    for feature, chips in (
        (soc._SATURATES, ["ascend910"]),
        (soc._FIRST, ["ascend910"]),
        (soc._BFLOAT16, ["ascend910b", "ascend910_93", "ascend950"]),
        ("jit_level_o2_default_ascend_jit", ["ascend910"]),
        ("no such feature", []),
    ):
        assert [chip for chip in CHIPS if ask("has", feature, chip) == "1"] == chips, feature
