"""benchmarks/grouped_conv.py: its floors, its verdicts, what it does when time or memory ends, and its smoke test."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not beside these tests", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import grouped_conv  # noqa: E402
import grouped_conv_goals as goals  # noqa: E402
import grouped_conv_models as models  # noqa: E402
from gpu_interpreter import interpreted  # noqa: E402

from resnext_core.model.spec import model_spec  # noqa: E402

FLAGSHIP = goals.FLAGSHIP
STAGE3 = goals.Convolution(channels=1024, group_width=16, height=14, width=14, stride=1)


# -- floors ---------------------------------------------------------------------------------------


def test_every_grouped_convolution_is_found() -> None:
    """By arXiv:1611.05431, table 1: halves at the first block of stages 2 to 4, 3 + 8 + 36 + 3 blocks."""
    found = goals.convolutions(model_spec(FLAGSHIP))
    assert {str(one): count for one, count in found.items()} == {
        "56x56x256/4 s1": 3, "56x56x512/8 s2": 1, "28x28x512/8 s1": 7, "28x28x1024/16 s2": 1,
        "14x14x1024/16 s1": 35, "14x14x2048/32 s2": 1, "7x7x2048/32 s1": 2,
    }  # fmt: skip
    assert goals.convolutions(model_spec("resnext101_64x4d"))[STAGE3] == 22
    odd = goals.convolutions(model_spec("resnext50_32x4d", image_size=225))
    assert [one.height for one in odd] == [57, 57, 29, 29, 15, 15, 8]


def test_floors_worked_out_by_hand() -> None:
    # 128 images of 14 x 14 are 25,088 pixels, in and out, of 1024 values of 2 bytes; 1024 x 16 x 9 weights of 4 bytes.
    assert goals.least_bytes(STAGE3, 128) == 2 * 25_088 * 1024 * 2 + 147_456 * 4 == 103_350_272
    # Each of the 25,088 x 1024 values is a sum of 16 x 9 products: a multiplication and an addition each.
    assert goals.operations(STAGE3, 128) == 25_088 * 1024 * 144 * 2 == 7_398_752_256
    halving = goals.Convolution(channels=512, group_width=8, height=56, width=56, stride=2)
    assert goals.least_bytes(halving, 2) == 2 * (3136 + 784) * 512 * 2 + 512 * 8 * 9 * 4
    assert goals.operations(halving, 2) == 2 * (2 * 784 * 512 * 72)
    card = goals.Card(name="a card", capability=(9, 0), bytes_per_s=2e12, operations_per_s=5e14)
    assert goals.floor_ms(STAGE3, 128, card) == pytest.approx(0.051675, rel=1e-4), "memory: 103 MB at 2 TB/s"
    slow = goals.Card(name="a card", capability=(9, 0), bytes_per_s=2e12, operations_per_s=7.398752256e13)
    assert goals.floor_ms(STAGE3, 128, slow) == pytest.approx(0.1)


# -- verdicts -------------------------------------------------------------------------------------


def row(
    ours: float | None = 1.0, floor: float = 0.8, cudnn: float | None = 3.0, **other: Any
) -> dict[str, Any]:
    return {
        "shape": "s", "pass": "forward", "models": {FLAGSHIP: 1}, "ours_ms": ours, "floor_ms": floor,
        "cudnn_ms": cudnn, "wrong": [], "checked": True,
    } | other  # fmt: skip


def trained(ours: float, **timms: float) -> dict[str, Any]:
    rates = {"ours, triton": ours, **{name.replace("_", ", "): rate for name, rate in timms.items()}}
    return {"model": FLAGSHIP, "contenders": {n: {"images_per_s": rate} for n, rate in rates.items()}}


def verdicts(rows: list[Any], found: list[Any], wanted: tuple[str, ...] = (FLAGSHIP,)) -> list[str]:
    return [said.split(" (")[0] for said in goals.judge(rows, found, wanted).values()]


BOTH = {"timm": 100.0, "timm_compiled": 120.0}


def test_goals_that_are_met() -> None:
    assert verdicts([row(), row()], [trained(180.0, **BOTH)]) == ["met", "met", "met"]
    assert list(goals.judge([row()], [trained(180.0, **BOTH)], [FLAGSHIP]).values())[2] == (
        f"met (1 of 1); {FLAGSHIP} 1.50"
    )


def test_goals_that_are_not_met() -> None:
    assert verdicts([row(), row(ours=1.21)], [trained(179.0, **BOTH)]) == ["not met", "met", "not met"]
    assert verdicts([row(), row(cudnn=1.99)], [])[1] == "not met"
    wrong = row(wrong=["a value"])
    assert verdicts([row(), wrong], []) == ["not met", "not met", "not measured"], "wrong is no good time"
    missing = row(ours=None)
    assert verdicts([missing, row(ours=1.21, cudnn=1.0)], [])[:2] == ["not met", "not met"], "one is enough"
    assert verdicts([row()], [trained(100.0, timm=100.0)])[2] == "not met", (
        "timm's other way can only be faster"
    )


def test_goals_that_are_not_measured() -> None:
    assert verdicts([], []) == ["not measured"] * 3
    assert verdicts([row(), row(ours=None)], [trained(180.0, timm=100.0)]) == ["not measured"] * 3
    elsewhere = row(cudnn=1.0, models={"resnext50_32x4d": 1})
    assert verdicts([elsewhere], [])[1] == "not measured", "that goal is about the flagship"
    assert verdicts([row()], [trained(180.0, **BOTH)], (FLAGSHIP, "resnext50_32x4d"))[2] == "not measured"
    assert verdicts([row()], [{"model": FLAGSHIP, "contenders": {}}])[2] == "not measured"


def test_the_short_table_is_short_and_wrong_results_end_with_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = [one for name in grouped_conv.MODELS for one in goals.convolutions(model_spec(name))]
    rows = [
        row(shape=str(one), wrong=["much " * 99] if one.stride == 2 else [], plan="p", nchw_ms=9.0, why_not=None)
        | {"pass": what}
        for one in dict.fromkeys(shapes) for what in goals.PASSES
    ]  # fmt: skip
    ways = {
        "images_per_s": 9.0,
        "slowest": 9.0,
        "fastest": 9.0,
        "ms_a_step": 1.0,
        "mfu": None,
        "peak_mib": None,
    }
    timed = {
        "card": "a card", "torch": "2", "timm": "1", "batch": 8, "compute": "bfloat16", "rounds": 1, "steps": 1,
        "contenders": {"timm": ways, "ours, triton": ways}, "ratios": {}, "wrong": None,
        "failed": {"timm, compiled": models.NO_TIME},
    }  # fmt: skip
    found = {
        "card": "a card", "capability": (9, 0), "smoke": False, "versions": {"torch": "2"}, "bytes_per_s": 3e12,
        "operations_per_s": 7e14, "batch": 128, "compute": "bfloat16", "convolutions": rows,
        "models": [timed | {"model": name, "inference": timed | {"model": name}} for name in grouped_conv.MODELS],
        "names": list(grouped_conv.MODELS), "wrong": ["much " * 99] * 18,
        "goals": goals.judge(rows, [], grouped_conv.MODELS), "may_be_measured": None,
    }  # fmt: skip
    short = list(grouped_conv.short(found))
    assert len(short) <= 40
    assert len("\n".join(short)) < 8000
    assert not any("MEASURED" in line for line in short)
    assert "(9, 0) may be added to MEASURED" in "\n".join(
        grouped_conv.short(found | {"may_be_measured": (9, 0)})
    )
    monkeypatch.setattr(grouped_conv, "run", lambda args: found)
    monkeypatch.setattr(sys, "argv", ["grouped_conv.py"])
    assert grouped_conv.main() == 3
    told = capsys.readouterr()
    assert told.out.splitlines()[-len(short) :] == short, "last of all"
    assert told.err == "grouped_conv: 18 results are wrong, see above\n"


# -- time and memory ------------------------------------------------------------------------------


def contest(
    monkeypatch: pytest.MonkeyPatch, makers: dict[str, Any], seconds: float, compiling: float = 1.2
) -> Any:
    """Let `makers` compete on the CPU, each run a sleep; a block is thought to need `compiling` seconds."""
    monkeypatch.setattr(models, "_train", _contested(makers))
    monkeypatch.setattr(models, "_infer", _contested({}))
    args = argparse.Namespace(smoke=True, compute="float16", peak_tflops=None, batch=8)
    clock = models.Clock(seconds)
    clock.compiling_a_block = compiling
    return models.measure(args, torch, argparse, grouped_conv.SMOKE, clock, 1.0)


def _contested(makers: dict[str, Any]) -> Any:
    def train(args: Any, torch: Any, timm: Any, spec: Any, batch: int, clock: Any, end: float) -> Any:
        ready = {name: (lambda make=make: make(batch)) for name, make in makers.items()}
        return models._contest(args, torch, timm, spec, batch, ready, clock, end, "first loss")

    return train


def sleeper(seconds: float, loss: float = 1.0) -> Any:
    def run(steps: int) -> float:
        time.sleep(seconds)
        return loss

    return lambda batch: run


def test_a_batch_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    def large(batch: int) -> Any:
        if batch > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return sleeper(0.001)(batch)

    found = contest(monkeypatch, {"timm": sleeper(0.001), "ours": large}, 60)
    assert found["batch"] == 2
    assert set(found["contenders"]) == {"timm", "ours"}
    assert found["failed"] == {}


def test_what_there_is_no_time_for_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    makers = {"timm": sleeper(0.001), "ours, triton": sleeper(0.001), "timm, compiled": sleeper(0.001)}
    found = contest(monkeypatch, makers, 60, compiling=24)  # four blocks, of which each takes so many seconds
    assert set(found["contenders"]) == {"timm", "ours, triton"}
    assert found["failed"] == {"timm, compiled": models.NO_TIME}


def test_what_takes_too_long_leaves_time_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a card all was lost where a contender compiled until the end: no round was measured of those before it."""
    makers = {"timm": sleeper(0.001), "ours": sleeper(0.001), "ours, slow": lambda batch: time.sleep(600)}
    monkeypatch.setattr(models, "_free", lambda *_: None)  # it may take seconds on a busy machine
    found = contest(monkeypatch, makers, 6)
    assert set(found["contenders"]) == {"timm", "ours"}
    assert found["failed"] == {"ours, slow": models.NO_TIME}


def test_time_ends_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes while a contender runs; what is written down then stays, and nothing more is begun."""
    clocks = []

    class Stopped(models.Clock):
        def __init__(self, seconds: float) -> None:
            super().__init__(seconds)
            self.up = False
            clocks.append(self)

        def left(self) -> float:
            return -1.0 if self.up else super().left()

    def ends(batch: int) -> Any:
        clocks[0].up = True
        signal.raise_signal(signal.SIGALRM)
        raise AssertionError("time is up")

    monkeypatch.setattr(models, "Clock", Stopped)
    monkeypatch.setattr(
        torch._dynamo, "reset", lambda: None if not clocks[0].up else pytest.fail("time is up")
    )
    found = contest(monkeypatch, {"timm": sleeper(0.0), "ours, triton": ends, "ours": sleeper(0.0)}, 590)
    assert found["contenders"] == {}
    assert found["failed"] == dict.fromkeys(["timm", "ours, triton", "ours"], models.NO_TIME)
    assert found["inference"]["contenders"] == {}


def test_the_alarm_is_set_and_taken_back() -> None:
    before = signal.getsignal(signal.SIGALRM)
    outer = signal.getitimer(signal.ITIMER_REAL)[0] > 0  # that of pytest-timeout
    with models.Clock(590).alarm():
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 590
        with pytest.raises(models.TimeUp):
            signal.raise_signal(signal.SIGALRM)
    assert signal.getsignal(signal.SIGALRM) is before
    assert (signal.getitimer(signal.ITIMER_REAL)[0] > 0) == outer
    with pytest.raises(models.TimeUp), models.Clock(0).alarm():
        signal.pause()  # until it comes


def test_a_contender_that_breaks_is_named_and_another_network_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(batch: int) -> Any:
        raise ValueError("no such layer")

    makers = {"timm": sleeper(0.001), "ours, triton": sleeper(0.001), "ours": broken}
    found = contest(monkeypatch, makers, 60)
    assert found["failed"] == {"ours": "ValueError: no such layer"}
    assert found["wrong"] is None
    found = contest(monkeypatch, makers | {"ours": sleeper(0.001, loss=1.1)}, 60)
    assert found["wrong"] == "the first loss of ours is 1.1, the others have 1.0: not the same network"
    assert found["contenders"] == {}


# -- the check ------------------------------------------------------------------------------------


@pytest.fixture
def work() -> Iterator[Any]:
    """The module that checks and times, on interpreted kernels."""
    with interpreted():
        sys.modules.pop("grouped_conv_kernels", None)
        import grouped_conv_kernels

        yield grouped_conv_kernels
        del sys.modules["grouped_conv_kernels"]


SMALL = goals.Convolution(channels=16, group_width=4, height=5, width=6, stride=2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_check_sees_a_single_value(dtype: Any, work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is off by a few roundings; where results are right, it sees nothing."""
    fine = {"forward": [], "input gradient": [], "weight gradient": []}
    if dtype == torch.float16:  # the interpreter cuts bfloat16 off where a GPU rounds it
        assert work.check(SMALL, 2, dtype, torch.device("cpu")) == fine
    for what in goals.PASSES:

        def ours(given: Any, asked: str, plan: Any, what: str = what) -> Any:
            wide = [t.double() for t in (given.x, given.weight.to(dtype), given.dy)]
            exact = work._passes(*wide, given.one.stride)[goals.PASSES.index(asked)]
            found = exact.float() if asked == "weight gradient" else exact.to(dtype)
            if asked == what:
                at = tuple(int(i) for i in (found.abs() == found.abs().max()).nonzero()[0])
                found[at] *= 1.0001 if asked == "weight gradient" else 1.02
            return found

        monkeypatch.setattr(work.Operands, "ours", ours)
        wrong = work.check(SMALL, 2, dtype, torch.device("cpu"))
        assert all(": 1 of " in said for said in wrong[what])
        assert len(wrong[what]) >= 2, "every plan"
        assert wrong | {what: []} == fine


def test_the_check_sees_what_was_not_written(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = work.launch._convolve

    def lazy(x: Any, packed: Any, y: Any, stride: int, plan: Any) -> None:
        other = y.clone()
        real(x, packed, other, stride, plan)
        y[:, :, :-1] = other[:, :, :-1]

    monkeypatch.setattr(work.launch, "_convolve", lazy)
    wrong = work.check(SMALL, 1, torch.float16, torch.device("cpu"))
    assert all("nan for" in said for said in wrong["forward"])
    assert wrong["forward"]
    assert not torch.are_deterministic_algorithms_enabled()


_COMPILE_ALL = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

class Card:
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))

driver.set_active(Card())
import grouped_conv_kernels as work
one = work.Convolution(channels=16, group_width=4, height=5, width=6, stride=2)
print(work.compile_all([one], 128, torch.bfloat16))
"""


def test_all_kernels_compile_at_once(tmp_path: Path) -> None:
    """For an H100 that is not there; 4 cuts that write images and 3 that sum, and 2 kernels that pack weights."""
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    if not hasattr(triton, "AsyncCompileMode"):
        pytest.skip(f"Triton {triton.__version__} compiles one kernel after the other")
    (tmp_path / "all.py").write_text(_COMPILE_ALL)
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(tmp_path / "cache")}
    words = [sys.executable, str(tmp_path / "all.py")]
    ran = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    # The input gradient of stride 2 is a kernel of its own.
    assert ran.stdout.startswith(f"{4 + 4 + 3 + 2} kernels compiled by ")
    assert len(list((tmp_path / "cache").iterdir())) == 4 + 4 + 3 + 2


# -- all of it ------------------------------------------------------------------------------------


def test_the_smoke_test(tmp_path: Path) -> None:
    """The whole benchmark on the CPU; it leaves nothing behind."""
    pytest.importorskip("triton", reason="Triton is not installed")
    (tmp_path / "home").mkdir()
    env = {k: v for k, v in os.environ.items() if k != "XDG_CACHE_HOME"} | {"HOME": str(tmp_path / "home")}
    words = [sys.executable, str(BENCHMARKS / "grouped_conv.py"), "--smoke", "--json", "--minutes", "9"]
    words += ["--save", str(tmp_path / "saved.json")]
    ran = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(ran.stdout)
    assert len(found["convolutions"]) == 4 * len(goals.PASSES)
    for one in found["convolutions"]:
        assert one["checked"]
        assert one["wrong"] == []
        assert min(one["ours_ms"], one["cudnn_ms"], one["nchw_ms"]) > 0
    (model,) = found["models"]
    assert {"ours, triton", "ours"} <= set(model["contenders"])
    assert "ours, triton" in model["inference"]["contenders"]
    assert found["goals"] == {}
    assert json.loads((tmp_path / "saved.json").read_text()) == found
    assert not (tmp_path / "home/.cache/resnext").exists()


def test_networks_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """No convolution was checked, so that nothing is said of them; an error in a network leaves what was saved."""
    pytest.importorskip("triton", reason="Triton is not installed")
    sys.modules.pop("grouped_conv_kernels", None)

    def broken(*_: Any) -> None:
        raise ValueError("no such network")

    monkeypatch.setattr(grouped_conv, "measure", broken)
    saved = tmp_path / "saved.json"
    words = ["--smoke", "--networks-only", "--save", str(saved), "--cache", str(tmp_path / "cache")]
    monkeypatch.setattr(sys, "argv", ["grouped_conv.py", *words])
    with interpreted():
        assert grouped_conv.main() == 0
    sys.modules.pop("grouped_conv_kernels", None)
    told = capsys.readouterr()
    assert "stopped: no such network" in told.err
    assert "MEASURED" not in told.out
    found = json.loads(saved.read_text())
    assert (found["convolutions"], found["models"], found["may_be_measured"]) == ([], [], None)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--batch", "0"], 2, "--minutes and --batch must be more than 0"),
        (["--models", "resnext51"], 2, "unknown model variant 'resnext51'; did you mean"),
        (["--fast"], 2, "unrecognized arguments: --fast"),
        ([], 4, "PyTorch finds no NVIDIA GPU here, and figures need one; --smoke shows that the code runs"),
    ],
)
def test_wrong_use_is_one_line(
    words: list[str],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["grouped_conv.py", *words])
    assert grouped_conv.main() == code
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"grouped_conv: {said}")
    assert told.err.count("\n") == 1
