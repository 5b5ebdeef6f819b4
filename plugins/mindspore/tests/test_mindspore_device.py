"""The environment that MindSpore is opened in; each case in a process of its own, as it happens once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from resnext_mindspore.device import Device, device_of
from resnext_mindspore.options import MindsporeOptions

from resnext_core.ranks.info import RankInfo

pytest.importorskip("mindspore.nn")

#: Opens the device, then convolves where oneDNN says which code it takes.
_CONVOLVE = """
import os
from resnext_mindspore.device import Device, open_device
ms = open_device(Device())
print("left:", os.environ.get("ONEDNN_MAX_CPU_ISA"), os.environ["MS_OM_PATH"] != os.getcwd())
x, w = ms.ops.ones((2, 64, 14, 14)), ms.ops.ones((64, 64, 3, 3))
ms.ops.Conv2D(64, 3, pad_mode="pad", pad=1)(x, w).asnumpy()
"""


def _run(code: str, **environment: str) -> str:
    base = {k: v for k, v in os.environ.items() if k != "ONEDNN_MAX_CPU_ISA"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**base, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _convolutions(output: str) -> list[str]:
    return [line for line in output.splitlines() if "exec" in line and "convolution" in line]


def test_the_folder_of_a_killed_process_is_cleared_away(tmp_path: Path) -> None:
    code = "import os; from resnext_mindspore.device import _quiet_environment as q; q(); os.kill(os.getpid(), 9)"
    found = []
    for _ in range(2):
        env = {k: v for k, v in os.environ.items() if k != "MS_OM_PATH"} | {"TMPDIR": str(tmp_path)}
        assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == -9
        found.append({p.name for p in tmp_path.iterdir()})
    assert [len(names) for names in found] == [1, 1]
    assert found[0] != found[1]


def test_fast_convolutions_and_nothing_left_behind() -> None:
    output = _run(_CONVOLVE, ONEDNN_VERBOSE="1")
    assert "left: None True" in output
    last = _convolutions(output)[-1]
    assert "ic64oc64" in last
    assert ":ref" not in last
    assert "avx512" not in last


def test_the_users_own_cap_stays() -> None:
    output = _run(_CONVOLVE, ONEDNN_VERBOSE="1", ONEDNN_MAX_CPU_ISA="SSE41")
    assert "left: SSE41 True" in output
    assert "avx" not in _convolutions(output)[-1]


def test_a_process_keeps_its_first_device() -> None:
    code = (
        "from resnext_core.errors import UsageError\n"
        "from resnext_mindspore.device import Device, open_device\n"
        "assert open_device(Device()) is open_device(Device())\n"
        "try:\n    open_device(Device(mode='pynative'))\n"
        "except UsageError as error:\n    print(error)"
    )
    assert "already uses" in _run(code)


def test_missing_accelerator_is_one_line() -> None:
    code = (
        "from resnext_core.errors import BackendUnavailable\n"
        "from resnext_mindspore.device import Device, open_device\n"
        "try:\n    open_device(Device(target='Ascend'))\n"
        "except BackendUnavailable as error:\n    print('one line:', error)"
    )
    output = _run(code)
    assert "one line: MindSpore has no device Ascend" in output


#: An Ascend that set_device accepts, as it does one in use, with these features of its chip.
_ASCEND = """
import mindspore as ms
from resnext_core.errors import BackendUnavailable
from resnext_mindspore import soc
from resnext_mindspore.device import Device, open_device
said = []
ms.set_device = lambda *given: said.append(given)
soc._has = lambda feature: feature in {features}
precision = ms.device_context.ascend.op_precision
precision.conv_allow_hf32 = lambda value: said.append(("conv", value))
precision.matmul_allow_hf32 = lambda value: said.append(("matmul", value))
"""


def test_a_device_that_fails_at_its_first_operation_is_told_when_it_is_opened() -> None:
    """As an Ascend in use does; among ranks it is left alone until they have met."""
    code = _ASCEND.format(features=()) + (
        "class Failing:\n"
        "    def __init__(self, value): pass\n"
        "    def __add__(self, other): raise RuntimeError('Call aclrtSetDevice failed, ret[507033]')\n"
        "ms.Tensor = Failing\n"
        "try:\n    open_device(Device(target='Ascend', device_id=3))\n"
        "except BackendUnavailable as error:\n    print('one line:', error)\n"
        "open_device(Device(target='Ascend', device_id=3), alone=False)\n"
        "print('told:', said)"
    )
    output = _run(code)
    assert "one line: MindSpore cannot compute on Ascend 3: Call aclrtSetDevice failed, ret[507033]" in output
    assert "told: [('Ascend', 3), ('Ascend', 3)]" in output


@pytest.mark.parametrize("hf32", [False, True])
def test_float32_is_shortened_only_where_asked(hf32: bool) -> None:
    code = _ASCEND.format(features={"train_hq_dtype_line"}) + (
        f"open_device(Device(target='Ascend', hf32={hf32}))\n"
        "print('told:', said, soc.has_bfloat16('Ascend'), soc.has_bfloat16('CPU'))"
    )
    expected = [("Ascend", 0), ("conv", hf32), ("matmul", hf32)]
    assert f"told: {expected} True False" in _run(code)


def test_chips_are_asked_as_mindspore_asks() -> None:
    """By names that its library knows: an unknown one is false for every chip, silently."""
    code = (
        "import inspect, mindspore\n"
        "from mindspore.nn.wrap import loss_scale\n"
        "from resnext_mindspore import soc\n"
        "source = inspect.getsource(loss_scale)\n"
        "assert soc._SATURATES in source and soc._BFLOAT16 in source and soc._MODE in source\n"
        "assert not soc.saturates('CPU') and not soc._has(soc._SATURATES)\n"
        "library = open(mindspore.__path__[0] + '/lib/libmindspore_core.so', 'rb').read()\n"
        "assert all(name.encode() in library for name in (soc._SATURATES, soc._FIRST, soc._BFLOAT16))"
    )
    _run(code)


def test_ranks_share_the_cores() -> None:
    both = RankInfo(rank=1, world=2, local_rank=1)
    assert device_of(MindsporeOptions(), RankInfo()).threads is None
    assert device_of(MindsporeOptions(), both).threads == max(1, len(os.sched_getaffinity(0)) // 2)
    assert device_of(MindsporeOptions(threads=3), both).threads == 3
    assert device_of(MindsporeOptions(device="gpu"), both) == Device(target="GPU", device_id=1)
