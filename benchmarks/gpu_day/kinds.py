"""The kinds of parts: tests by pytest, modules beside this one, benchmarks, and what compute-sanitizer watches."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_day import outcomes
from gpu_day.part import CUT, FAILED, RIGHT, WRONG, Command, Context, Part, Verdict
from gpu_day.place import BENCHMARKS, CORE, ROOT
from gpu_day.process import Ended
from gpu_day.selections import SMOKE, TESTS, Selection

#: Seconds of a benchmark's limit in which it may still print and end.
_ENDING = 12.0
#: Lines of a benchmark's own short table.
_SHORT = 40
_CODE_WRONG = 3


# -- tests ----------------------------------------------------------------------------------------


def pytest_words(context: Context, name: str, selection: Selection, seconds: float) -> Command:
    """Return the command that runs a selection of tests; its rows go to a file as they come."""
    place = context.place
    words = [
        context.python, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-o", "addopts=",
        "-o", f"timeout={seconds / 2:.0f}", "-p", "no:cacheprovider", "-p", "gpu_day.outcomes", "--strict-markers",
        "--basetemp", str(place.work / f"pytest-{name}"), "--continue-on-collection-errors", "-q", "-ra",
        "--tb=short", *selection.words(),
    ]  # fmt: skip
    processes = min(selection.processes, context.cpus) if not place.lacks(["xdist"]) else 1
    if processes > 1:
        words += ["-n", str(processes)]
    env = {outcomes.FILE: str(context.file(name)), "OMP_NUM_THREADS": str(max(1, context.cpus // processes))}
    env["PYTHONSAFEPATH"] = ""  # tests may start modules that are beside them
    if not context.smoke:
        env["RESNEXT_REQUIRE"] = "gpu"  # what is missing fails, and is not skipped
    return Command(words=words, env=env)


def judge_tests(context: Context, name: str, ended: Ended) -> Verdict:
    """Count what is known of each test."""
    rows = outcomes.read(context.file(name))
    by: dict[str, list[str]] = {}
    for test, row in rows.items():
        by.setdefault(row["outcome"], []).append(test)
    passed, failed, running = (by.get(word, []) for word in ("passed", "failed", "running"))
    said = f"{len(passed)} passed, {len(failed)} failed, {len(by.get('skipped', []))} skipped"
    if context.place.lacks(["xdist"]):
        said += "; in one process, as pytest-xdist is missing"
    if failed:
        said += f"; {_short(failed[0])}: {rows[failed[0]]['said'][:120]}"
    data = {
        "counts": {word: len(tests) for word, tests in by.items()},
        "failed": {t: rows[t] for t in failed},
    }
    data["slowest"] = sorted(
        ((row["seconds"], test) for test, row in rows.items() if "seconds" in row), reverse=True
    )[:10]
    if ended.up:
        return Verdict(
            status=CUT, said=f"{said}; was at {', '.join(map(_short, running[:4])) or 'no test'}", data=data
        )
    if failed:
        return Verdict(status=WRONG, said=said, data=data)
    if ended.code == 0 and passed:
        return Verdict(status=RIGHT, said=said, data=data)
    return Verdict(status=FAILED, said=f"exit code {ended.code}; {said}", data=data)


def _short(test: str) -> str:
    return test.rpartition("::")[2] or test


def tests(name: str, what: str, seconds: float, **more: Any) -> Part:
    """Return a part that is a selection of tests."""
    return Part(
        name=name, what=what, seconds=seconds, needs=(*CORE, "pytest"),
        command=lambda context, limit: pytest_words(context, name, (SMOKE if context.smoke else TESTS)[name], limit),
        judge=lambda context, ended, log: judge_tests(context, name, ended), **more,
    )  # fmt: skip


# -- programs of ours -----------------------------------------------------------------------------


def own(name: str, what: str, seconds: float, *, needs: tuple[str, ...] = tuple(CORE), **more: Any) -> Part:
    """Return a part that is a module beside this one, which writes ``{"right", "said", "table", ...}`` to a file."""

    def command(context: Context, limit: float) -> Command:
        module = [context.python, "-m", f"gpu_day.{name}", "--into", str(context.file(name))]
        module += ["--seconds", f"{limit:.0f}"]
        return Command(words=[*module, *(["--smoke"] if context.smoke else [])])

    return Part(
        name=name, what=what, seconds=seconds, needs=needs, command=command, judge=judge_own(name), **more
    )


def judge_own(name: str) -> Callable[[Context, Ended, str], Verdict]:
    """Return what judges by the file that the part wrote, whatever became of it after."""

    def judge(context: Context, ended: Ended, log: str) -> Verdict:
        data = _read(context.file(name))
        if data is None or "said" not in data:
            return broken(ended, log)
        status = RIGHT if data["right"] else WRONG
        if ended.up or ended.code not in (0, _CODE_WRONG):
            status = CUT if ended.up else FAILED
        return Verdict(status=status, said=data.pop("said"), table=data.pop("table", ()), data=data)

    return judge


def broken(ended: Ended, log: str, data: Any = None) -> Verdict:
    """Return what to say of a part that left no result: the last line that it printed."""
    lines = log.strip().splitlines()
    last = (lines[-1] if lines else "it printed nothing")[:200]
    if ended.up:
        return Verdict(status=CUT, said=f"last printed: {last}", data=data)
    return Verdict(status=FAILED, said=f"exit code {ended.code}: {ended.why or last}", data=data)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def conv(
    name: str, what: str, seconds: float, *words: str, needs: tuple[str, ...] = (*CORE, "triton"), log: str = ""
) -> Part:  # fmt: skip
    """Return a part that is grouped_conv.py, which saves what it finds as it goes."""

    def command(context: Context, limit: float) -> Command:
        saved = ["--save", str(context.file(name)), "--cache", str(context.place.work / "cache")]
        minutes = ["--minutes", f"{max(limit - _ENDING, limit / 2) / 60:.3f}"]
        size = "all" if "--networks-only" in words else "one-stage"
        smoke = ["--smoke", size] if context.smoke else []
        return Command(
            words=[context.python, str(BENCHMARKS / "grouped_conv.py"), *words, *saved, *minutes, *smoke]
        )

    def judge(context: Context, ended: Ended, log: str) -> Verdict:
        found = _read(context.file(name))
        if found is None or ended.up or ended.code not in (0, _CODE_WRONG):
            return broken(ended, log, found)
        stopped = [line.strip() for line in log.splitlines() if " s: stopped: " in line]
        stopped += [f"{name}: {why}" for m in found["models"] for name, why in _crashed(m)]
        rows, wrong = found["convolutions"], found["wrong"]
        said = [] if "--networks-only" in words else [
            f"{sum(row['checked'] for row in rows)} of {len(rows)} checked, {len(wrong)} wrong, "
            f"{sum(row['ours_ms'] is not None for row in rows)} timed"
        ]  # fmt: skip
        said += [f"{model['model']}: {_fastest(model)}" for model in found["models"]] or ["no network timed"]
        lines = log.split("\n\n")[-1].splitlines()
        status = WRONG if wrong else FAILED if stopped else RIGHT
        return Verdict(status=status, said="; ".join([*stopped, *said]), data=found, table=lines[-_SHORT:])

    return Part(
        name=name, what=what, seconds=seconds, needs=needs, command=command, judge=judge, log=log, least=60.0
    )


def against_timm(name: str, model: str, batch: int, seconds: float) -> Part:
    return conv(
        name, f"{model}, training and inference, against timm", seconds, "--networks-only", "--models", model,
        "--batch", str(batch), needs=(*CORE, "triton", "timm"), log="timm",
    )  # fmt: skip


def _crashed(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the contenders that ended with an exception, and its text; not those without time or memory."""
    failed = [*model["failed"].items(), *model["inference"]["failed"].items()]
    return [(name, why) for name, why in failed if re.match(r"\w+(Error|Exception): ", why)]


def _fastest(model: Mapping[str, Any]) -> str:
    ways = {name: row["images_per_s"] for name, row in model["contenders"].items()}
    said = []
    for who in ("ours", "timm"):
        own = {name: rate for name, rate in ways.items() if name.startswith(who)}
        if own:
            best = max(own, key=own.__getitem__)
            said.append(f"{best} {own[best]:.0f} images/s")
    return ", ".join(said) or "not measured"


def batches() -> Part:
    """Return the part that compares small and large batches of a small network."""

    def command(context: Context, limit: float) -> Command:
        words = [context.python, str(BENCHMARKS / "gpu_vs_timm.py"), "--no-compile"]
        if context.smoke:
            return Command(
                words=[*words, "--smoke", "--rounds", "1", "--steps", "1", "--warmup", "1", "--batch", "2"]
            )
        words += ["--rounds", "3", "--steps", "8", "--model", "resnext50_32x4d", "--batch", "64", "256"]
        return Command(words=words)

    def judge(context: Context, ended: Ended, log: str) -> Verdict:
        lines = [
            line
            for line in log.splitlines()
            if ", batch " in line or " / timm" in line or " left out: " in line
        ]
        if ended.up or ended.code != 0:
            return replace(broken(ended, log), table=lines)
        ratios = [line.strip() for line in lines if " / timm" in line]
        said = "; ".join(ratios) or "nothing to compare, see the log"
        return Verdict(status=RIGHT if ratios else FAILED, said=said, table=lines)

    return Part(
        name="batches", what="gpu_vs_timm.py: resnext50_32x4d at batches of 64 and 256", seconds=45,
        needs=(*CORE, "triton", "timm"), command=command, judge=judge, log="timm",
    )  # fmt: skip


def loader() -> Part:
    """Return the part that times the loader, and says whether it keeps up with the fastest step of this run."""
    part = own("loader", "images/s of the loader on all cores, on JPEGs like ImageNet's", 35, log="checks")

    def judge(context: Context, ended: Ended, log: str) -> Verdict:
        verdict = part.judge(context, ended, log)
        rates = [
            (row["images_per_s"], f"{model['model']}, {name}")
            for found in context.found.values() if found["found"]
            for model in found["found"].get("models", ()) for name, row in model["contenders"].items()
            if name.startswith("ours")
        ]  # fmt: skip
        if verdict.status != RIGHT or not rates:
            return verdict
        rate, name = max(rates)
        best = max(verdict.data["rates"].values())
        feeds = "feeds" if best >= rate else "does not feed"
        return replace(verdict, said=f"{verdict.said}; it {feeds} {name}, which takes {rate:.0f}")

    return replace(part, judge=judge)


# -- the sanitizer --------------------------------------------------------------------------------


def sanitizer() -> Part:
    name = "sanitizer"

    def command(context: Context, limit: float) -> Command | str:
        words = [context.python, "-m", "gpu_day.sanitizer", "--into", str(context.file(name))]
        if context.smoke:
            return Command(words=[*words, "--smoke"])
        path = os.pathsep.join([context.place.env.get("PATH", ""), "/usr/local/cuda/bin"])
        tool = shutil.which("compute-sanitizer", path=path)
        if tool is None:
            return "compute-sanitizer is neither on the PATH nor in /usr/local/cuda/bin"
        # PyTorch's allocator would hide what lies beyond a tensor.
        env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        return Command(words=[tool, "--tool", "memcheck", "--error-exitcode", "9", *words], env=env)

    def judge(context: Context, ended: Ended, log: str) -> Verdict:
        found = judge_own(name)(context, ended, log)
        lines = [line for line in log.splitlines() if "ERROR SUMMARY" in line]
        if ended.code == 9 and not ended.up:
            return Verdict(
                status=WRONG, said=lines[-1] if lines else "compute-sanitizer found errors, see the log"
            )
        if found.status == RIGHT and not context.smoke and not lines:
            return Verdict(status=FAILED, said="compute-sanitizer said nothing of errors", data=found.data)
        return found

    return Part(
        name=name, what="compute-sanitizer (memcheck) over kernels of two widths, both strides, all passes",
        seconds=70, least=40.0, needs=(*CORE, "triton"), command=command, judge=judge,
    )  # fmt: skip
