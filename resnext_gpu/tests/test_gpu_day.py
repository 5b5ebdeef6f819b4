"""benchmarks/gpu_day.sh: it runs where nothing of ours is installed, and whatever a part does, the rest is written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import venv
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch.nn", reason="PyTorch is not installed")
ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are not beside these tests", allow_module_level=True)
sys.path.insert(0, str(ROOT / "benchmarks"))

from gpu_day import kinds, outcomes, parts, place, process, profile_step  # noqa: E402
from gpu_day.part import Context  # noqa: E402
from gpu_day.selections import TESTS  # noqa: E402

#: A folder of programs without any Python.
TOOLS = "/usr/bin:/bin"


# -- a machine on which nothing of ours is installed ----------------------------------------------


def _bare_python(folder: Path, hidden: tuple[str, ...] = ()) -> Path:
    """Return the folder of a ``python3`` that has what is installed here but for what is ours, and the `hidden`."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for path in sys.path:
        if not path.endswith("site-packages"):
            continue
        for entry in Path(path).iterdir():
            name = entry.name
            ours = name.startswith(("resnext", "__editable__", "_distutils")) or name.endswith(
                (".pth", ".egg-link")
            )
            other = name.partition("-")[0].partition(".")[0]
            if not ours and other not in hidden and not (site / name).exists():
                (site / name).symlink_to(entry)
    for name in ("python", "pip"):
        (folder / "bin" / name).unlink(missing_ok=True)
    return folder / "bin"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources without the version control, and without anything that was built."""
    folder = tmp_path_factory.mktemp("bare") / "a checkout"
    built = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist", ".*")
    for name in ("benchmarks", "plugins", *(path.name for path in ROOT.glob("resnext_*"))):
        shutil.copytree(ROOT / name, folder / name, ignore=built)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def _day(checkout: Path, python: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command as on a bare machine: no home, nothing in the environment but a PATH."""
    return subprocess.run(
        ["bash", str(checkout / "benchmarks/gpu_day.sh"), *words], cwd=cwd, env={"PATH": f"{python}:{TOOLS}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.timeout(3600)
def test_the_smoke_test_where_nothing_is_installed(checkout: Path, tmp_path: Path) -> None:
    """Every part on the CPU, found through the entry points that it lays out; nothing is written to the checkout."""
    pytest.importorskip("triton", reason="Triton is not installed")
    python = _bare_python(tmp_path / "python")
    asks = "from importlib import metadata, util; print(list(metadata.entry_points(group='resnext')), end='')"
    asks += "; print(util.find_spec('resnext_core'))"
    asked = subprocess.run(
        [python / "python3", "-c", asks],
        cwd=tmp_path,
        env={"PATH": TOOLS},
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout.strip() == "[]None", "or this shows nothing"
    for folder, folders, files in os.walk(checkout):
        for name in [*folders, *files]:
            path = Path(folder, name)
            path.chmod(path.stat().st_mode & ~0o222)
    before = sorted(checkout.rglob("*"))
    ran = _day(checkout, python, tmp_path, "--smoke", "--minutes", "55", "--out", "out")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    known = json.loads((tmp_path / "out/results.json").read_text())
    found = known["parts"]
    assert list(found) == list(parts.PARTS)
    no_timm = (
        {"timm_152", "timm_101", "timm_50", "batches"}
        if shutil.which("timm") is None and not _has("timm")
        else set()
    )
    for name, row in found.items():
        assert row["status"] == ("missing" if name in no_timm else "right"), row
    if no_timm:
        assert found["timm_152"]["said"] == "timm is not installed"
    assert found["versions"]["found"]["backends"]["gpu"] == "resnext-gpu"
    (where,) = found["versions"]["found"]["where"]
    assert where.endswith("/site")
    assert not Path(where).exists(), "the scratch folder is gone"
    assert found["hardware"]["found"]["counts"] == {"passed": 2}
    assert found["grouped_conv"]["found"]["convolutions"][0]["checked"]
    assert found["profile_step"]["found"]["largest"]
    assert sorted(checkout.rglob("*")) == before
    assert (tmp_path / "out/table.txt").read_text().strip() in ran.stdout


def _has(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def test_what_is_missing_is_named_and_can_be_brought(checkout: Path, tmp_path: Path) -> None:
    python = _bare_python(tmp_path / "python", hidden=("pluggy",))
    ran = _day(checkout, python, tmp_path, "--smoke", "--only", "versions", "hardware", "--out", "without")
    assert ran.returncode == 4, ran.stdout
    assert ran.stdout.splitlines()[0] == (
        "missing here: pluggy; where there is a network: benchmarks/gpu_day.sh --pack wheels pluggy; then here: "
        "benchmarks/gpu_day.sh --wheels wheels"
    )
    found = json.loads((tmp_path / "without/results.json").read_text())["parts"]
    assert (found["versions"]["status"], found["versions"]["said"]) == (
        "WRONG",
        "ModuleNotFoundError: No module named 'pluggy'",
    )
    assert found["hardware"]["status"] == "stopped"
    (tmp_path / "wheels").mkdir()
    _make_wheel("pluggy", tmp_path / "wheels")
    words = ["--smoke", "--only", "versions", "--wheels", "wheels", "--out", "with"]
    ran = _day(checkout, python, tmp_path, *words)
    assert ran.returncode == 0, ran.stdout
    assert ".whl: used" in ran.stdout
    assert "missing here" not in ran.stdout


def _make_wheel(name: str, folder: Path) -> Path:
    """Return a wheel of an installed distribution."""
    distribution = metadata.distribution(name)
    wheel = folder / f"{name}-{distribution.version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in distribution.files or ():
            if ".." not in file.parts and file.suffix != ".pyc":
                archive.write(file.locate(), str(file))
    return wheel


# -- what parts may do ----------------------------------------------------------------------------

_DRIVER = """
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # where the tests run under nohup it would be ignored
sys.path.insert(0, {benchmarks!r})
from gpu_day import __main__ as day
from gpu_day.part import Command, Part, Verdict

def part(name, script, seconds=60.0, rows=(), **more):
    def command(context, limit):
        return Command(words=["bash", "-c", script])
    def judge(context, ended, log):
        status = "out of time" if ended.up else "right" if ended.code == 0 else "failed"
        return Verdict(status=status, said=f"{{ended.code}}: {{log.strip()}}", table=list(rows))
    return Part(name=name, what="", seconds=seconds, command=command, judge=judge, **more)

day.FIRST = ({parts})
sys.exit(day.main({words!r}))
"""


def _drive(folder: Path, given: str, *words: str) -> list[str]:
    """Return the command that runs these parts in the place of the day's own."""
    folder.joinpath("driver.py").write_text(
        _DRIVER.format(
            benchmarks=str(ROOT / "benchmarks"), parts=given, words=["--out", str(folder / "out"), *words]
        )
    )
    return [sys.executable, str(folder / "driver.py")]


def _results(folder: Path) -> dict[str, Any]:
    known: dict[str, Any] = json.loads((folder / "out/results.json").read_text())["parts"]
    return known


def _drove(folder: Path, given: str, *words: str) -> tuple[int, dict[str, Any], str]:
    ran = subprocess.run(_drive(folder, given, *words), capture_output=True, text=True, check=False)
    assert ran.stderr == ""
    return ran.returncode, _results(folder), ran.stdout


FINE = 'part("fine", "echo well"),'


def test_all_is_right(tmp_path: Path) -> None:
    code, found, said = _drove(tmp_path, FINE + 'part("other", "echo well", rows=["a row"]),')
    assert code == 0
    assert [(row["status"], row["said"]) for row in found.values()] == [("right", "0: well")] * 2
    assert "-- other\na row\n" in said


def test_a_part_that_crashes_or_hangs_does_not_end_the_day(tmp_path: Path) -> None:
    """What it printed is there, and whatever it started has ended, also in a process group of its own."""
    ranks = f"setsid sleep 900 & echo $! > {tmp_path}/rank;"
    given = (
        FINE
        + 'part("crashes", "echo no memory; exit 7"),'
        + f'part("hangs", "trap \'\' INT; {ranks} echo began; sleep 900", seconds=3.0, least=1.0),'
        + 'part("not there", "exit 0", needs=("timm",)),'
        + 'part("last", "echo well"),'
    )
    code, found, _ = _drove(tmp_path, given)
    assert code == 3
    assert found["crashes"]["status"] == "failed"
    assert found["crashes"]["said"] == "7: no memory"
    assert found["hangs"]["status"] == "out of time"
    assert found["hangs"]["said"].endswith("began")
    assert found["hangs"]["code"] < 0
    assert found["not there"]["status"] == ("right" if _has("timm") else "missing")
    assert found["last"]["status"] == "right"
    _wait(lambda: not _lives(int((tmp_path / "rank").read_text())))


def _lives(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def _wait(done: Callable[[], bool]) -> None:
    while not done():  # as long as the test may take
        time.sleep(0.02)


def test_parts_that_no_longer_fit_are_named(tmp_path: Path) -> None:
    """A part that needs more than is left is not begun, and takes nothing from those before and after it."""
    given = (
        FINE
        + 'part("long", "echo long", seconds=900.0, least=800.0), part("short", "echo short", least=1.0),'
    )
    code, found, _ = _drove(tmp_path, given, "--minutes", "10")
    assert code == 0
    assert found["long"]["status"] == "no time left"
    assert found["long"]["said"].endswith(" s of 900 s")
    assert found["short"]["status"] == "right"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_writes_what_is_known(number: signal.Signals, tmp_path: Path) -> None:
    given = FINE + 'part("waits", "echo began; sleep 900", seconds=900.0), part("later", "echo later"),'
    driver = subprocess.Popen(
        _drive(tmp_path, given, "--minutes", "30"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "out/waits.log"
    _wait(lambda: log.exists() and "\nbegan" in log.read_text())
    driver.send_signal(number)
    said, complaint = driver.communicate()
    assert (driver.returncode, complaint) == (75, "")
    found = _results(tmp_path)
    assert [row["status"] for row in found.values()] == ["right", "stopped", "stopped"]
    assert "began" in found["waits"]["said"]
    assert f"interrupted ({number.name})" in said
    assert said.splitlines()[-1].endswith(f"results in {tmp_path / 'out'}")


def test_without_a_card_nothing_more_is_begun(tmp_path: Path) -> None:
    code, found, _ = _drove(tmp_path, 'part("first", "exit 1"), part("later", "echo later"),')
    assert code == 4
    assert [row["status"] for row in found.values()] == ["failed", "stopped"]


def test_results_that_cannot_be_read_are_a_failure_of_their_part(tmp_path: Path) -> None:
    given = FINE + 'part("odd", "echo well", rows=None), part("last", "echo well"),'
    code, found, _ = _drove(tmp_path, given)
    assert code == 3
    assert (found["odd"]["status"], found["odd"]["said"][:33]) == (
        "failed",
        "its results cannot be read: TypeE",
    )
    assert found["last"]["status"] == "right"


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    ended = process.run(
        ["/nowhere/python3"], env={}, cwd=tmp_path, log=tmp_path / "log", seconds=60, mark="none of this name"
    )
    assert ended.code == 127
    assert "No such file" in ended.why


def test_wrong_use_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/results.json").write_text("{}")
    for words, said in (
        (["--only", "hardwear"], "unknown part 'hardwear'; --list names them"),
        (["--minutes", "0"], "--minutes must be more than 0"),
        (["--wheels", str(tmp_path / "none")], "--wheels: there is no folder"),
        (["timm"], "unrecognized argument 'timm'"),
        (["--out", str(tmp_path / "file/out")], "cannot write results ("),
        (["--out", str(tmp_path / "out")], "cannot write results ("),
    ):
        ran = subprocess.run(
            ["bash", str(ROOT / "benchmarks/gpu_day.sh"), *words], cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "PYTHON": sys.executable}, check=False,
        )  # fmt: skip
        assert ran.returncode == 2, ran.stdout
        assert ran.stdout == ""
        assert ran.stderr.startswith(f"gpu_day: {said}")
        assert ran.stderr.count("\n") == 1


# -- what is selected and laid out ----------------------------------------------------------------


class _Collected:
    def __init__(self) -> None:
        self.tests: set[str] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.tests = {item.nodeid.rpartition("/")[2] for item in session.items}


def _collect(*words: str) -> set[str]:
    seen = _Collected()
    how = [
        "-c",
        str(ROOT / "pyproject.toml"),
        "-o",
        "addopts=",
        "-p",
        "no:cacheprovider",
        "--collect-only",
        "-qq",
    ]
    assert pytest.main([*how, *words], plugins=[seen]) in (0, 5)
    return seen.tests


def test_every_test_for_a_gpu_is_in_a_part(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is renamed or added does not silently vanish from the day."""
    monkeypatch.delenv("RESNEXT_REQUIRE", raising=False)
    chosen = {name: _collect(*selection.words()) for name, selection in TESTS.items()}
    wanted = _collect(str(ROOT / "resnext_gpu/tests"), "-m", "gpu")
    capsys.readouterr()
    assert all(chosen.values())
    assert set().union(*chosen.values()) - wanted == {
        "test_gpu_grouped_conv.py::test_the_kernels_compile_for_a_gpu"
    }
    assert wanted - set().union(*chosen.values()) == set()
    assert not chosen["hardware"] & chosen["kernels"]
    for name, words in {
        "hardware": ("feed", "graph", "reference", "does_not_fit", "without_a_gpu_of_their_own"),
        "contract": ("TestGpu::",),
        "kernels": ("kernel_is_right", "compiled", "graph_of_the_kernels"),
    }.items():
        for word in words:
            assert any(word in test for test in chosen[name]), (name, word)


def test_what_is_laid_out_is_what_pip_installs(tmp_path: Path) -> None:
    sources = place.lay_out(tmp_path)
    laid = {d.name: d for d in metadata.distributions(path=[str(tmp_path)])}
    assert {"resnext-core", "resnext-gpu"} <= set(laid)
    assert ROOT in sources
    assert ROOT / "resnext_gpu/src" in sources
    installed = [d for d in metadata.distributions() if d.name in laid and d.locate_file("") != tmp_path]
    assert installed, "or this shows nothing"
    for one in installed:
        other = laid[one.name]
        ours = [
            {(e.group, e.name, e.value) for e in d.entry_points if e.group == "resnext"} for d in (one, other)
        ]
        assert ours[0] == ours[1], one.name
        assert one.version == other.version
        extras = [set(d.metadata.get_all("Provides-Extra") or ()) for d in (one, other)]
        assert extras[0] <= extras[1], one.name  # an installation may be older than the file


def test_wheels_that_cannot_be_used(tmp_path: Path) -> None:
    wheels, target = tmp_path / "wheels", tmp_path / "target"
    wheels.mkdir()
    target.mkdir()
    assert place.unpack(wheels, target) == [f"{wheels}: no wheels there"]
    for name in ("pytest-1-py3-none-any", "no_such_thing-1-cp27-cp27m-any", "no_such_thing-2-py3-none-any"):
        (wheels / f"{name}.whl").write_text("not an archive")
    assert place.unpack(wheels, target) == [
        f"no_such_thing-1-cp27-cp27m-any.whl: not used, it is not for Python cp3{sys.version_info[1]}",
        "no_such_thing-2-py3-none-any.whl: not used, File is not a zip file",
        "pytest-1-py3-none-any.whl: not needed, pytest is installed",
    ]
    assert list(target.iterdir()) == []


def test_results_can_be_brought_home() -> None:
    """At most eight files, with plain names."""
    for chosen in (parts.FIRST, (parts.FIRST[0], *parts.SECOND)):
        names = {f"{part.log or part.name}.log" for part in chosen} | {"results.json", "table.txt"}
        assert len(names) <= 8
        assert all(name.replace(".", "").replace("_", "").isalnum() for name in names)
    assert all(part.least <= part.seconds for part in parts.PARTS.values())


# -- how ends are judged --------------------------------------------------------------------------


def _context(work: Path, *, missing: tuple[str, ...] = (), smoke: bool = False) -> Context:
    where = place.Place(work=work, env={}, missing=frozenset(missing))
    return Context(place=where, python="python3", smoke=smoke, cpus=16)


def test_tests_run_in_one_process_without_xdist(tmp_path: Path) -> None:
    many = kinds.pytest_words(_context(tmp_path), "contract", TESTS["contract"], 45)
    assert many.words[-2:] == ["-n", "4"]
    assert many.env["RESNEXT_REQUIRE"] == "gpu"
    one = kinds.pytest_words(_context(tmp_path, missing=("xdist",)), "contract", TESTS["contract"], 45)
    assert "-n" not in one.words
    told = kinds.judge_tests(
        _context(tmp_path, missing=("xdist",)), "contract", process.Ended(code=0, seconds=1)
    )
    assert told.said.endswith("in one process, as pytest-xdist is missing")
    assert told.status == "failed", "no test passed"


def test_a_run_of_tests_that_is_killed_says_where(tmp_path: Path) -> None:
    context = _context(tmp_path)
    rows = [
        {"test": "a.py::one", "outcome": "running"}, {"test": "a.py::one", "outcome": "passed", "seconds": 1.0},
        {"test": "a.py::two", "outcome": "running"},
        {"test": "a.py::two", "outcome": "failed", "seconds": 1.0, "said": "2 is not 3"},
        {"test": "a.py::three", "outcome": "running"},
    ]  # fmt: skip
    context.file("kernels").write_text("\n".join(json.dumps(row) for row in rows) + '\n{"test": "a.py::fo')
    killed = kinds.judge_tests(context, "kernels", process.Ended(code=-9, seconds=1, up=True))
    assert killed.status == "out of time"
    assert killed.said == "1 passed, 1 failed, 0 skipped; two: 2 is not 3; was at three"
    ended = kinds.judge_tests(context, "kernels", process.Ended(code=1, seconds=1))
    assert ended.status == "WRONG"


def test_outcomes_are_written_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_day.py").write_text(
        "import pytest\n\ndef test_fine(): pass\n\ndef test_bad(): assert 2 == 3\n\n"
        "@pytest.fixture\ndef broken(): raise ValueError('no such thing')\n\ndef test_setup(broken): pass\n"
    )
    (tmp_path / "test_import.py").write_text("import no_such_module\n")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "gpu_day.outcomes", "-p", "no:cacheprovider"]
    words += ["--continue-on-collection-errors", str(tmp_path), "-c", os.devnull, "--rootdir", str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks"), outcomes.FILE: str(tmp_path / "rows")}
    subprocess.run(words, env=env, capture_output=True, check=False)
    found = outcomes.read(tmp_path / "rows")
    assert {test.rpartition("::")[2]: row["outcome"] for test, row in found.items()} == {
        "test_fine": "passed", "test_bad": "failed", "test_setup": "failed", "test_import.py": "failed",
    }  # fmt: skip
    assert found["test_day.py::test_bad"]["said"] == "assert 2 == 3"


def test_a_benchmark_that_stopped_or_was_wrong(tmp_path: Path) -> None:
    context, part = _context(tmp_path), parts.PARTS["grouped_conv"]
    row = {"checked": True, "ours_ms": None}
    found: dict[str, Any] = {"convolutions": [row], "models": [], "wrong": []}
    context.file("grouped_conv").write_text(json.dumps(found))
    done = process.Ended(code=0, seconds=1)
    assert part.judge(context, done, "long\n\nshort").status == "right"
    assert part.judge(context, done, "long\n\nshort").table == ["short"]
    stopped = part.judge(context, done, "  3.0 s: stopped: CUDA error\n")
    assert (stopped.status, stopped.said[:30]) == ("failed", "3.0 s: stopped: CUDA error; 1 ")
    ways = {"ours": {"images_per_s": 9.0}, "timm": {"images_per_s": 3.0}}
    model: dict[str, Any] = {
        "model": "m", "contenders": ways, "failed": {"timm, compiled": "no time left"},
        "inference": {"contenders": {}, "failed": {"timm": "CUDA out of memory"}},
    }  # fmt: skip
    context.file("grouped_conv").write_text(json.dumps(found | {"models": [model]}))
    fine = part.judge(context, done, "")
    assert fine.status == "right"
    assert fine.said == "1 of 1 checked, 0 wrong, 0 timed; m: ours 9 images/s, timm 3 images/s"
    model["inference"]["failed"]["timm"] = "ZeroDivisionError: float division by zero"
    context.file("grouped_conv").write_text(json.dumps(found | {"models": [model]}))
    crashed = part.judge(context, done, "")
    assert (crashed.status, crashed.said[:30]) == ("failed", "timm: ZeroDivisionError: float")
    context.file("grouped_conv").write_text(json.dumps(found | {"wrong": ["a value"]}))
    assert part.judge(context, process.Ended(code=3, seconds=1), "").status == "WRONG"
    killed = part.judge(context, process.Ended(code=-9, seconds=1, up=True), "one\ntwo\n")
    assert (killed.status, killed.said, killed.data["wrong"]) == (
        "out of time",
        "last printed: two",
        ["a value"],
    )


def test_the_sanitizer_is_called_and_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = parts.PARTS["sanitizer"]
    context = _context(tmp_path)
    monkeypatch.setattr(kinds.shutil, "which", lambda *_, **__: None)
    assert str(part.command(context, 60)).startswith("compute-sanitizer is neither")
    monkeypatch.setattr(kinds.shutil, "which", lambda *_, **__: "/opt/compute-sanitizer")
    command = part.command(context, 60)
    assert not isinstance(command, str)
    assert command.words[0] == "/opt/compute-sanitizer"
    context.file("sanitizer").write_text(json.dumps({"right": True, "said": "12 kernels ran and are right"}))
    none = "========= ERROR SUMMARY: 0 errors\n"
    assert part.judge(context, process.Ended(code=0, seconds=1), none).status == "right"
    assert part.judge(context, process.Ended(code=0, seconds=1), "").status == "failed"
    some = part.judge(context, process.Ended(code=9, seconds=1), "========= ERROR SUMMARY: 2 errors\n")
    assert (some.status, some.said) == ("WRONG", "========= ERROR SUMMARY: 2 errors")


def test_the_loader_is_compared_with_the_fastest_step(tmp_path: Path) -> None:
    part = parts.PARTS["loader"]
    model = {"model": "m", "contenders": {"ours": {"images_per_s": 900.0}, "timm": {"images_per_s": 9000.0}}}
    context = Context(
        place=_context(tmp_path).place, python="python3", smoke=False, cpus=16,
        found={"timm_50": {"found": {"models": [model]}}, "versions": {"found": None}},
    )  # fmt: skip
    for rate, word in ((1000.0, "feeds"), (800.0, "does not feed")):
        context.file("loader").write_text(json.dumps({"right": True, "said": "said", "rates": {"16": rate}}))
        told = part.judge(context, process.Ended(code=0, seconds=1), "")
        assert told.said == f"said; it {word} m, ours, which takes 900"


# -- the profile ----------------------------------------------------------------------------------


def test_kernels_are_told_apart() -> None:
    ours = {"forward": "grouped 3x3, ours", "activate": "batch norm, ours"}
    conv = "aten::cudnn_convolution"
    back = "aten::convolution_backward"
    for kernel, op, dims, wanted in (
        ("forward", "", (), "grouped 3x3, ours"),
        ("activate", "", (), "batch norm, ours"),
        ("sm90_xmma", conv, [[8, 256, 56, 56], [64, 256, 1, 1], []], "1x1"),
        ("sm90_xmma", conv, [[8, 256, 56, 56], [256, 4, 3, 3], []], "grouped 3x3, cuDNN"),
        ("dgrad", back, [[8, 256, 56, 56], [8, 256, 56, 56], [256, 4, 3, 3]], "grouped 3x3, cuDNN"),
        ("wgrad", back, [[8, 64, 56, 56], [8, 256, 56, 56], [64, 256, 1, 1]], "1x1"),
        ("implicit_gemm", conv, [[8, 3, 224, 224], [64, 3, 7, 7]], "other convolutions"),
        ("bn_fw_tr_1C11", "aten::cudnn_batch_norm", (), "batch norm"),
        ("batch_norm_backward_kernel", "aten::native_batch_norm_backward", (), "batch norm"),
        ("multi_tensor_apply_kernel", "aten::_foreach_add_", (), "update"),
        ("multi_tensor_apply_kernel", "aten::_fused_sgd_", (), "update"),
        ("gemm", "aten::addmm", (), "fully connected"),
        ("vectorized_elementwise_kernel", "aten::relu_", (), "elementwise and others"),
    ):
        assert profile_step.kind_of(kernel, op, dims, ours) == wanted, kernel
    assert profile_step.kind_of("Memcpy HtoD", "aten::copy_", (), ours, "gpu_memcpy") == "copies"


def test_a_trace_is_summed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels overlap, so that their union is what the device is busy for; what is left of a step is idle."""
    monkeypatch.setattr(profile_step, "_own_kernels", lambda: {"forward": "grouped 3x3, ours"})

    def kernel(name: str, ts: float, dur: float, **args: int) -> dict[str, Any]:
        args = {"External id" if key == "id" else key: value for key, value in args.items()}
        return {"ph": "X", "cat": "kernel", "name": name, "ts": ts, "dur": dur, "args": args}

    dims = [[8, 64, 7, 7], [64, 64, 1, 1]]
    op = {"External id": 5, "Input Dims": dims}
    events = [
        {"ph": "M", "name": "process_name"},
        {"ph": "X", "cat": "cpu_op", "name": "aten::cudnn_convolution", "ts": 0, "dur": 9, "args": op},
        {"ph": "X", "cat": "cpu_op", "name": "no arguments", "ts": 0, "dur": 9},
        kernel("gemm", 0, 1000, id=5), kernel("gemm", 4000, 1000, id=5), kernel("forward", 500, 1500),
        {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy", "ts": 4500, "dur": 1000, "args": {"External id": 6}},
    ]  # fmt: skip
    found = profile_step.summary(events, 2, 2.5)
    assert found["busy_ms"] == pytest.approx((2.0 + 1.5) / 2)
    assert found["ms_by_kind"] == pytest.approx({"1x1": 1.0, "grouped 3x3, ours": 0.75, "copies": 0.5})
    assert found["shares"]["idle"] == pytest.approx(1 - 1.75 / 2.5)
    assert found["largest"][0] == {"kernel": "gemm", "kind": "1x1", "ms": 1.0, "calls": 1.0}


def test_the_names_of_our_kernels_are_known() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    found = profile_step._own_kernels()
    assert {found[name] for name in ("forward", "weight_gradient", "pack")} == {"grouped 3x3, ours"}
