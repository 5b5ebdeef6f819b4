"""The self-test: its parts in test mode, parts that go wrong, and the report."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from resnext_ascend.device import device_of
from resnext_ascend.selftest import jobs, machine, operators, ranks, report, samples, serving, steps
from resnext_ascend.selftest.parts import PARTS, chosen
from resnext_ascend.selftest.place import NotHere, Place, Refuted
from resnext_ascend.selftest.runner import Outcome, run_parts
from selftest_parts import part

from resnext_core.cli.main import main
from resnext_core.errors import BackendUnavailable, UsageError
from resnext_core.model.weights import load_weights
from resnext_core.ranks.info import RankInfo

TESTS = Path(__file__).parent


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(device="cpu", folder=tmp_path)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the processes of parts find selftest_parts."""
    path = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *([path] if path else [])]))


# -- parts that go wrong ----------------------------------------------------------------------


@pytest.mark.usefixtures("planted")
def test_what_goes_wrong_in_a_part_is_its_verdict_and_ends_no_other(place: Place) -> None:
    names = ("refuted", "error", "crash", "leave", "lacking")
    told: list[Outcome] = []
    parts = [*map(part, names), part("hang", limit_s=3), part("good", value=5)]
    outcomes, whole = run_parts(parts, place, told.append)
    assert whole
    assert told == outcomes
    found = {o.name: (o.verdict, o.reason) for o in outcomes}
    assert found == {
        "refuted": ("failed", "x is 3.0e-01, above 1e-04"),
        "error": ("failed", "RuntimeError: of a library"),
        "crash": ("failed", "crashed: SIGSEGV"),
        "leave": ("failed", "its process ended with 7 and no verdict; see its log"),
        "lacking": ("not possible here", "needs two devices; here is 1"),
        "hang": ("failed", "took more than 3 s and was ended"),
        "good": ("proved", ""),
    }
    assert outcomes[-1].measured == {"value": 5}
    assert outcomes[0].measured == {"x": 0.3, "lists": [["nan"], "inf"]}
    assert outcomes[-1].proves == "good on the CPU"
    assert "about to crash" in (place.folder / "crash.log").read_text()
    assert "Traceback" in (place.folder / "error.log").read_text()
    assert "GLOG_v=2" in (place.folder / "good.log").read_text()
    assert report.failed(outcomes) == ["refuted", "error", "crash", "leave", "hang"]


@pytest.mark.usefixtures("planted")
def test_ctrl_c_writes_what_is_there(tmp_path: Path) -> None:
    out = tmp_path / "report"
    done = subprocess.run(
        [sys.executable, "-m", "selftest_parts", str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 75, done.stdout + done.stderr
    found = json.loads((out / "report.json").read_text())
    assert [(p["name"], p["verdict"]) for p in found["parts"]] == [
        ("good", "proved"), ("interrupt", "stopped"), ("refuted", "not run"),
    ]  # fmt: skip
    assert (
        (out / "summary.txt")
        .read_text()
        .splitlines()[-1]
        .startswith("3 parts: 1 proved, 1 stopped, 1 not run")
    )
    assert "about to hang" in (out / "logs/interrupt.log").read_text()


# -- the report -------------------------------------------------------------------------------


def outcomes(*verdicts: str) -> list[Outcome]:
    return [
        Outcome(name=f"part-{i}", proves="it works", verdict=v, reason="" if v == "proved" else "why", seconds=1.5,
                measured={"host": "10.1.2.3"})
        for i, v in enumerate(verdicts)
    ]  # fmt: skip


def test_a_report_names_no_person_and_no_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("LOGNAME", "somebody")
    monkeypatch.setattr(socket, "gethostname", lambda: "atlas-17")
    log = "atlas-17: /home/somebody/x, somebody at 10.1.2.3, then 10.1.2.4 and 10.1.2.3; 127.0.0.1, 2.10.0, atlas-170\n"
    (tmp_path / "part-0.log").write_text(log)
    (tmp_path / "part-0/ranks").mkdir(parents=True)
    (tmp_path / "part-0/ranks/rank-1.log").write_text("somebody\n")
    out = tmp_path / "ascend.tar.gz"
    summary = report.write(out, outcomes("proved", "failed"), tmp_path, "ascend")
    with tarfile.open(out) as packed:
        files = {m.name: packed.extractfile(m).read().decode() for m in packed.getmembers()}  # type: ignore[union-attr]
    assert sorted(files) == [
        "ascend/logs/part-0.log", "ascend/logs/part-0/ranks/rank-1.log", "ascend/report.json", "ascend/summary.txt",
    ]  # fmt: skip
    assert files["ascend/logs/part-0/ranks/rank-1.log"] == "USER\n"
    assert files["ascend/logs/part-0.log"] == (
        "HOST: ~/x, USER at ADDRESS-1, then ADDRESS-2 and ADDRESS-1; 127.0.0.1, 2.10.0, atlas-170\n"
    )
    assert json.loads(files["ascend/report.json"])["parts"][0]["measured"] == {"host": "ADDRESS-1"}
    assert files["ascend/summary.txt"] == summary + "\n"
    assert summary.splitlines() == [
        "part-0          proved                 1.5 s  it works",
        "part-1          failed                 1.5 s  why",
        "2 parts: 1 proved, 1 failed",
    ]


def test_long_logs_keep_their_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_MOST", 10)
    (tmp_path / "part-0.log").write_text("x" * 90 + "0123456789")
    report.write(tmp_path / "out", outcomes("proved"), tmp_path, "cpu")
    kept = (tmp_path / "out/logs/part-0.log").read_text()
    assert kept == "[the first 90 bytes are left out]\n0123456789"
    assert "nothing here speaks for an Ascend" in (tmp_path / "out/summary.txt").read_text()


def test_where_a_report_cannot_go_is_said_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    (tmp_path / "file").touch()
    for out, code, says in (
        ("full", 2, "already exists; give another --out"), ("x.zip", 2, "must be a folder or end in .tar.gz"),
        ("file/report", 3, "is a file, not a folder"), ("file/report.tar.gz", 3, "cannot write"),
    ):  # fmt: skip
        assert main(["ascend", "selftest", "--device", "cpu", "--out", str(tmp_path / out)]) == code
        assert says in capsys.readouterr().err


def test_parts_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ascend", "selftest", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [p.name for p in PARTS]
    assert [p.name for p in chosen("recipe, device")] == ["device", "recipe"]
    with pytest.raises(UsageError, match=r"no part 'recipee'; did you mean 'recipe'\?"):
        chosen("recipee")


def test_on_a_machine_without_an_ascend_the_driver_fails_the_self_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if Path("/dev/davinci0").exists():
        pytest.skip("an Ascend is here")
    out = tmp_path / "r.tar.gz"
    assert main(["ascend", "selftest", "--only", "packages,rank-table", "--out", str(out)]) == 3
    text = capsys.readouterr().out
    assert "packages        failed" in text
    assert "rank-table      not possible here" in text


# -- the parts in test mode ------------------------------------------------------------------


def test_packages(place: Place) -> None:
    found = machine.packages(place)
    assert found["environment"]["mindspore"]
    assert found["driver"] == "not looked for in test mode"


def test_packages_on_a_device(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a driver that stands in: what npu-smi shows is kept, and what may fail later is a verdict."""
    sample = TESTS / "samples/npu-smi-310p3-duo.txt"
    tool = place.folder / "npu-smi"
    tool.write_text(f"#!/bin/sh\ncat {sample}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place.folder}:/usr/bin:/bin")
    monkeypatch.setattr(machine.diagnose, "hardware", lambda: None)
    monkeypatch.setattr(machine.diagnose, "doubts", tuple)
    here = Place(device="ascend", folder=place.folder)
    found = machine.packages(here)
    assert found["npu_smi"] == "25.2.0"
    assert found["chips"] == ["310P3: OK, 1529 of 44280 MiB", "310P3: OK, 1412 of 43693 MiB"]
    monkeypatch.setattr(machine.diagnose, "doubts", lambda: ("the package te cannot be imported",))
    with pytest.raises(Refuted, match="the package te cannot be imported") as raised:
        machine.packages(here)
    assert raised.value.measured["chips"] == found["chips"]
    monkeypatch.setattr(machine.diagnose, "hardware", lambda: "no Ascend driver is installed")
    with pytest.raises(Refuted, match=r"^no Ascend driver is installed$"):
        machine.packages(here)


def test_device(place: Place) -> None:
    assert machine.device(place)["target"] == "CPU"


def test_a_device_that_does_not_open_is_a_failure(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(_: object) -> None:
        raise BackendUnavailable("MindSpore has no device Ascend")

    monkeypatch.setattr(machine, "open_device", closed)
    with pytest.raises(Refuted, match="MindSpore has no device Ascend"):
        machine.device(place)


def test_a_command_that_is_not_available_or_fails(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    weights = serving._saved(place, samples.small_weights())
    with pytest.raises(NotHere, match=r"^atc was not found; "):
        place.command(
            "ascend", "export", "--weights", weights, "--format", "om", "--to", place.folder / "x.om"
        )
    with pytest.raises(Refuted, match=r"resnext_core\.cli eval --weights .* ended with 3: no .*not-there"):
        place.command("eval", "--weights", place.folder / "not-there")
    assert "usage: " in place.command("ascend", "--help")


def level(place: Place) -> Any:
    """Return the level at which this process, which has one device, compiles."""
    return device_of(place.options(), RankInfo()).jit_level


def test_convolution(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    found = operators.convolution(place, level(place))
    assert max(found[f"float32_{n}"] for n in ("output", "input_gradient", "weight_gradient")) <= 1e-5
    right = operators.reference.conv
    monkeypatch.setattr(operators.reference, "conv", lambda *given: right(*given) * 1.01)
    with pytest.raises(Refuted, match=r"float32_output is 9.9.e-03, above 1e-04$"):
        operators.convolution(place, level(place))
    with pytest.raises(NotHere, match="level O2 compiles by CANN's graph engine"):
        operators.convolution(place, "O2")


def test_a_type_that_fails_does_not_hide_the_other(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a chip whose max-pool has no float32."""
    right = operators.reference.max_pool
    given: list[Any] = []

    def once(*values: Any) -> Any:
        given.append(values)
        if len(given) == 1:
            raise RuntimeError("MaxPool does not support float32")
        return right(*values)

    monkeypatch.setattr(operators.reference, "max_pool", once)
    with pytest.raises(Refuted, match=r"^float32: MaxPool does not support float32$") as raised:
        operators.pool(place)
    assert raised.value.measured == {"float16_output": 0, "float16_gradient": 0}
    assert operators.pool(place)["float32_gradient"] == 0


def test_norm(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    found = operators.norm(place)
    assert found["running_variance_is_unbiased"]
    assert found["running_variance"] <= 1e-5
    right = operators.reference.bn_train
    monkeypatch.setattr(
        operators.reference, "bn_train", lambda *given: (*right(*given)[:4], right(*given)[4] * 2)
    )
    with pytest.raises(Refuted, match="running_variance is"):
        operators.norm(place)


def test_overflow(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    found = steps.overflow(place)
    assert (found["fitting_skipped"], found["too_large_skipped"], found["fitting_again_skipped"]) == (0, 3, 0)
    monkeypatch.setattr(steps, "_TOO_MUCH", 1024.0)  # an overflow that the device does not report
    with pytest.raises(Refuted, match="with a loss scale of 1024 0 of 3 steps were skipped, not 3"):
        steps.overflow(place)


def test_two_steps(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    found = steps.two_steps(place)
    assert found["weights_difference"] <= 1e-5

    def other(self: Place, module: str, path: Path, kind: str) -> str:
        with np.load(path) as file:
            arrays = dict(file)
        np.savez(path, **{k: v * (1.001 if k == "losses" else 1) for k, v in arrays.items()})
        return ""

    lamb = steps.two_steps(place, kind="lamb")
    assert max(lamb["weights_difference"], lamb["variance_difference"]) <= 1e-5
    assert np.abs(np.subtract(lamb["loss"], found["loss"])).max() > 1e-3, "the loss is that of other steps"
    mixed = steps.two_steps(place, kind="mixed")
    assert mixed["weights_difference"] <= 1e-5
    assert np.abs(np.subtract(mixed["loss"], found["loss"])).max() > 1e-3, "nothing was mixed"
    monkeypatch.setattr(Place, "python", other)
    with pytest.raises(Refuted, match=r"losses_difference is 9\.9.e-04, above 1e-05"):
        steps.two_steps(place, kind="mixed")


def of_rank(skipped: list[int], weight: float = 1.0) -> dict[str, Any]:
    moved = np.diff([0, *skipped]) == 0
    return {
        "skipped": np.array(skipped), "moved": moved, "weights/fc.bias": np.array([weight, 2.0]),
        "weights/bn1.running_mean": np.array([weight]),
    }  # fmt: skip


def test_ranks_that_part_ways_are_found() -> None:
    """An overflow that one rank alone sees: it skips, the other steps."""
    assert ranks.verdict([of_rank([0, 1, 1]), of_rank([0, 1, 1])])["weights_apart"] == 0
    for second, says in (
        (of_rank([0, 0, 0]), "each must have"),
        (of_rank([1, 2, 3]), "each must have"),
        (of_rank([0, 1, 1], weight=1.001), "the weights of two ranks differ by 5.00e-04"),
        (of_rank([0, 1, 1]) | {"moved": np.array([True, True, True])}, "only the second may not"),
    ):
        with pytest.raises(Refuted, match=says):
            ranks.verdict([of_rank([0, 1, 1]), second])


def test_what_needs_a_device_says_so(place: Place) -> None:
    for call in (
        jobs.recipe, serving.infer_acl, lambda p: serving.om_export(p, "aipp"), lambda p: serving.om_export(p, "graph"),
    ):  # fmt: skip
        with pytest.raises(NotHere, match=r"^needs a device: "):
            call(place)
    if not Path("/dev/davinci1").exists():
        with pytest.raises(NotHere, match="needs two devices; here is"):
            ranks.two_devices(Place(device="ascend", folder=place.folder))


def test_om_by_a_stand_in_for_atc(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a chip named, ATC is all that this part needs."""
    tool = place.folder / "bin/atc"
    tool.parent.mkdir()
    tool.write_text(
        '#!/bin/sh\nfor w in "$@"; do case $w in --output=*) printf om > "${w#*=}.om";; esac; done\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    found = serving.om_export(Place(device="cpu", folder=place.folder, soc_version="Ascend310P3"), "aipp")
    assert found == {"bytes": 2, "soc_version": "Ascend310P3"}


def test_lite_without_the_program_says_what_to_build(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESNEXT_INFER", str(place.folder / "none"))
    with pytest.raises(NotHere, match=r"no such program|no installed backend exports 'lite'"):
        serving.infer_lite(place)


def test_images_are_the_same_everywhere(tmp_path: Path) -> None:
    samples.write_images(tmp_path, train=3, val=2)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png")) == [
        "train/blue/002.png", "train/green/001.png", "train/red/000.png", "val/green/001.png", "val/red/000.png",
    ]  # fmt: skip
    weights = samples.small_weights(stem="imagenet")
    path = serving._saved(Place(device="cpu", folder=tmp_path), weights)
    assert load_weights(path).digest == weights.digest


@pytest.mark.slow
def test_the_whole_self_test(tmp_path: Path) -> None:
    """Everything that MindSpore's CPU device can do is proved on it; the rest says what it needs."""
    out = tmp_path / "report"
    assert main(["ascend", "selftest", "--device", "cpu", "--out", str(out)]) == 0
    found = {p["name"]: p for p in json.loads((out / "report.json").read_text())["parts"]}
    needs = {n for n, p in found.items() if p["verdict"] == "not possible here"}
    assert needs - {"infer-lite"} == {"convolution-O2", "recipe", "om-aipp", "om-graph", "infer-acl"}
    assert {p["verdict"] for n, p in found.items() if n not in needs} == {"proved"}
    assert found["training"]["measured"]["difference"] == 0
    for name in ("two-devices", "rank-table"):
        assert found[name]["measured"]["skipped_after_each_step"] == [[0, 1, 1], [0, 1, 1]]
