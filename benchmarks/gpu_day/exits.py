"""A part: NCCL with one rank, the exit codes of training, and the message when the card's memory runs out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gpu_day.child import arguments, write

_RECIPE = """\
model: {variant: resnext_tiny, image_size: 16}
preprocess: {resize: 16}
data: {workers: 0}
train: {epochs: 1, batch_size: 8, log_every: 1}
eval: {batch_size: 8}
"""
_MEMORY = "from gpu_day import exits_cases; exits_cases.memory({smoke})"
_NCCL = "from gpu_day import exits_cases; exits_cases.one_rank({smoke})"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command that must end with `code` after saying `word`; `act` does something to it while it runs."""

    name: str
    words: list[str]
    code: int
    word: str = ""
    env: dict[str, str] | None = None
    act: Callable[[subprocess.Popen[str]], None] | None = None


def main() -> int:
    """Run all cases, side by side as far as there are cores."""
    args = arguments()
    with tempfile.TemporaryDirectory() as name:
        cases = _cases(Path(name), args.smoke, args.end)
        with ThreadPoolExecutor(min(len(cases), len(os.sched_getaffinity(0)))) as pool:
            results = list(pool.map(lambda case: _run(case, args.end), cases))
    table = [f"{case.name}: {said or 'right'}" for case, said in zip(cases, results, strict=True)]
    wrong = [line for line, said in zip(table, results, strict=True) if said]
    said = "; ".join(wrong) or f"{len(cases)} of {len(cases)} right: {', '.join(case.name for case in cases)}"
    return write(args.into, right=not wrong, said=said, table=table)


def _cases(folder: Path, smoke: bool, end: float) -> list[Case]:
    _write_images(folder / "data")
    (folder / "tiny.yaml").write_text(_RECIPE)
    (folder / "damaged.safetensors").write_bytes(bytes(range(256)))
    cli = [sys.executable, "-m", "resnext_core.cli", "--backend", "gpu"]
    common = ["--recipe", str(folder / "tiny.yaml"), "--output", str(folder / "runs")]
    train = [*cli, "train", "--data", str(folder / "data"), *common]
    place = ["--set", "gpu.device=cpu"] if smoke else []

    def stop(process: subprocess.Popen[str]) -> None:
        records = folder / "runs/stopped/records.jsonl"
        while process.poll() is None and time.monotonic() < end - 4:
            if records.exists() and records.stat().st_size:
                process.send_signal(signal.SIGTERM)
                return
            time.sleep(0.05)

    python = [sys.executable, "-c"]
    damaged = ["--pretrained", str(folder / "damaged.safetensors")]
    cases = [
        Case(name="one rank over NCCL", words=[*python, _NCCL.format(smoke=smoke)], code=0, word="the same gradients"),
        Case(
            name="memory that runs out ends with 2", words=[*python, _MEMORY.format(smoke=smoke)], code=2,
            word="does not fit into the GPU's memory",
        ),
        Case(
            name="a signal ends with 75", words=[*train, *place, "--name", "stopped", "--epochs", "100000"],
            code=75, act=stop,
        ),
        Case(name="no card ends with 4", words=train, code=4, word="CUDA", env={"CUDA_VISIBLE_DEVICES": ""}),
        Case(
            name="an unknown setting ends with 2", words=[*train, "--set", "gpu.cuda_graph=true"], code=2,
            word="cuda_graph",
        ),
        Case(
            name="damaged weights end with 3", words=[*train, *place, *damaged], code=3,
            word="damaged.safetensors",
        ),
    ]  # fmt: skip
    if not smoke:
        cases.append(Case(name="a training ends with 0", words=[*train, "--name", "whole"], code=0))
    return cases


def _run(case: Case, end: float) -> str:
    """Return what is wrong with a case, in a line, or nothing."""
    process = subprocess.Popen(
        case.words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(case.env or {})},
    )
    try:
        if case.act is not None:
            case.act(process)
        out, _ = process.communicate(timeout=max(1.0, end - 3 - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
        return f"was not done in time; last said: {_last(out)}"
    print(f"$ {' '.join(case.words)}\n{out}exit code {process.returncode}\n", flush=True)
    if process.returncode != case.code:
        return f"ended with {process.returncode}: {_last(out)}"
    if case.word not in out:
        return f"said nothing of '{case.word}': {_last(out)}"
    return ""


def _last(out: str) -> str:
    lines = out.strip().splitlines()
    return lines[-1][:200] if lines else "nothing"


def _write_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for label in ("ant", "bee"):
            (folder / part / label).mkdir(parents=True)
            for i in range(8):
                pixels = rng.integers(0, 256, (18, 18, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / label / f"{i}.png")


if __name__ == "__main__":
    sys.exit(main())
