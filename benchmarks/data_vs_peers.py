"""Images a second of a core: our readers against other loaders, on the same files, interleaved.

    python benchmarks/data_vs_peers.py --python PEERS/bin/python --json result.json
    python benchmarks/data_vs_peers.py --data IMAGENET --images 480

Each contender is a process of its own with one thread for each library; the files are in the page cache. A round does
every row of every contender once, and a rate is images divided by seconds of all cores that the process used, median
(lowest to highest) over the rounds. Rows: `decode` (the whole image to RGB), `train` (random resized crop to 224 px,
flip), `jitter` (the same with brightness, contrast and saturation by up to 0.4), `eval` (shorter side to 256 px,
centre crop of 224). `train` of ours decodes at a smaller scale where the crop allows it, as our recipes do; peers that
offer no such decoding do not. Peers may be in another environment (`--python`); those that are missing are named.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_peers import CONTENDERS, ROWS
from photographs import write_photographs

#: What is to be reached: row, contender, row of the other, the other, and the least ratio.
GOALS = (
    ("train", "resnext, turbo", "train", "torchvision, PIL", 2.2),
    ("train", "resnext, turbo", "decode", "Pillow", 1.3),
    ("jitter", "resnext, turbo", "jitter", "torchvision, PIL", 2.0),
    ("eval", "resnext, turbo", "eval", "torchvision, PIL", 2.2),
)
#: Epochs whose time is taken, after one in which the readers start.
_EPOCHS = 2
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")


@dataclass(kw_only=True)
class Contender:
    """A process that does rows, and the images per second of a core in each round, by row."""

    name: str
    process: subprocess.Popen[str]
    version: str
    rates: dict[str, list[float]] = field(default_factory=dict)

    def ask(self, row: str) -> None:
        """Do a row once and keep its rate."""
        assert self.process.stdin is not None
        print(row, file=self.process.stdin, flush=True)
        found = read_answer(self.process)
        self.rates.setdefault(row, []).append(found["images"] / found["cpu"])


def read_answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        return {"missing": f"its process ended with code {process.wait()}"}
    answer: dict[str, Any] = json.loads(line)
    return answer


def start(name: str, pythons: Sequence[str], files: Path) -> Contender | str:
    """Return a contender in the first environment that has it, or why none has."""
    reasons = []
    for python in pythons:
        process = subprocess.Popen(
            [python, str(Path(__file__).with_name("data_peers.py")), name, str(files)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, **dict.fromkeys(_ONE_THREAD, "1")},
        )  # fmt: skip
        answer = read_answer(process)
        if "rows" in answer:
            return Contender(
                name=name, process=process, version=answer["version"],
                rates={row: [] for row in ROWS if row in answer["rows"]},
            )  # fmt: skip
        process.communicate()
        reasons.append(answer["missing"])
    return reasons[-1]


def scaling(root: Path, decoders: Sequence[str], counts: Sequence[int], rounds: int) -> dict[str, Any]:
    """Return what the whole loader does by decoder and number of readers, in each round.

    Images per second; and milliseconds that the first batch of a later epoch comes after the last one of the epoch
    before it, less the median time between batches.
    """
    import numpy as np

    from resnext_core.config import AugmentConfig
    from resnext_core.data.index import open_index
    from resnext_core.data.loader import Loader
    from resnext_core.data.sampler import Task, epoch_permutation
    from resnext_core.model.preprocess import PreprocessSpec
    from resnext_core.plugins import load_plugins

    index = open_index(root / "train" if (root / "train").is_dir() else root)
    augment = AugmentConfig(color_jitter=(0.0, 0.0, 0.0))
    found: dict[str, dict[int, list[float]]] = {name: {n: [] for n in counts} for name in decoders}
    stalls: dict[str, list[float]] = {name: [] for name in decoders}
    size = 32

    def tasks(workers: int) -> Iterator[Task]:
        for epoch in range(1 + _EPOCHS):
            order = np.tile(epoch_permutation(len(index), 1, epoch), 2 * workers)
            steps = len(order) // size
            yield from (Task.of(epoch, order[step * size : (step + 1) * size]) for step in range(steps))

    for _, name, n in itertools.product(range(rounds), decoders, counts):
        decoder = load_plugins().decoder(name)
        with Loader(index, PreprocessSpec(), augment, workers=n, decoder=decoder) as loader:
            times = [time.perf_counter() for _ in loader.batches(tasks(n))]
        steps = len(times) // (1 + _EPOCHS)
        found[name][n].append(size * _EPOCHS * steps / (times[-1] - times[steps - 1]))
        gaps = np.diff(times[steps - 1 :])
        stalls[name] += (1e3 * (gaps[::steps] - np.median(gaps))).tolist()
    return {"images_per_s": found, "epoch_border_ms": stalls}


def processor() -> str:
    """Return the processor's name and the instruction sets that decoders use."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    values = dict(
        line.split("\t:", 1)
        for line in text.split("\n\n")[0].replace("\t\t:", "\t:").splitlines()
        if "\t:" in line
    )
    flags = values.get("flags", values.get("Features", "")).split()
    sets = [name for name in ("sse4_2", "avx2", "avx512f", "avx512bw", "asimd") if name in flags]
    return f"{values.get('model name', platform.processor()).strip()} ({', '.join(sets)}), {os.cpu_count()} cores"


def spread(rates: Sequence[float]) -> str:
    return f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})"


def table(rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    lines = [f"| {' | '.join(words)} |" for words in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def report(
    contenders: Sequence[Contender], missing: Mapping[str, str], scaled: Mapping[str, Any] | None
) -> str:
    """Return the tables as Markdown."""
    by_name = {c.name: c for c in contenders}
    parts = [table(
        [
            [f"{c.name} {c.version}", *(spread(c.rates[row]) if row in c.rates else "" for row in ROWS)]
            for c in contenders
        ],
        ["images/s of a core", *ROWS],
    )]  # fmt: skip
    for row, name, other_row, other, least in GOALS:
        if name in by_name and other in by_name:
            pairs = zip(by_name[name].rates[row], by_name[other].rates[other_row], strict=True)
            ratios = [ours / theirs for ours, theirs in pairs]
            parts.append(
                f"{name}, {row}: {statistics.median(ratios):.2f} x {other}, {other_row} "
                f"({min(ratios):.2f} to {max(ratios):.2f}); goal {least}"
            )
    if scaled is not None:
        for name, found in scaled["images_per_s"].items():
            first = min(found)
            one = statistics.median(found[first]) / first
            rows = [
                [str(n), spread(rates), f"{100 * statistics.median(rates) / (n * one):.0f} %"]
                for n, rates in found.items()
            ]
            parts.append(table(rows, [f"{name}: readers", "images/s", "of linear"]))
            stall = spread(scaled["epoch_border_ms"][name])
            parts.append(f"{name}: at an epoch's border the next batch comes {stall} ms later than elsewhere")
    parts += [
        f"missing: {name}: {why}; pip install {CONTENDERS[name][0] or 'resnext-cpp-infer'}"
        for name, why in missing.items()
    ]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="folder of class folders of JPEGs (default: made by this program)"
    )
    parser.add_argument(
        "--images", type=int, default=96, help="how many of them, a multiple of 16 (default 96)"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--python", action="append", default=[], help="Python of an environment with peers")
    parser.add_argument("--only", action="append", choices=CONTENDERS, help="leave the others out")
    parser.add_argument(
        "--no-scaling", action="store_true", help="leave out the rates over numbers of readers"
    )
    parser.add_argument("--json", type=Path, help="write all rates to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        if args.data is None:
            paths = write_photographs(made, args.images)
            root = made
        else:
            found = sorted(p for p in args.data.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
            paths = link(found[:: max(len(found) // args.images, 1)][: args.images], made)
            root = made
        (made / "files.txt").write_text("\n".join(map(str, paths)), encoding="utf-8")
        run(args, root, made / "files.txt", len(paths))


def link(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Link to the chosen files from class folders, so that loaders of folders see no others."""
    linked = []
    for number, path in enumerate(paths):
        target = folder / "train" / f"class{number % 4}" / f"{number:05}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path.resolve())
        linked.append(target)
    return linked


def run(args: argparse.Namespace, root: Path, files: Path, count: int) -> None:
    contenders: list[Contender] = []
    missing: dict[str, str] = {}
    for name in args.only or CONTENDERS:
        own = [sys.executable, *(args.python if CONTENDERS[name][0] else [])]
        answer = start(name, own, files)
        if isinstance(answer, Contender):
            contenders.append(answer)
        else:
            missing[name] = answer
        print(f"{name}: {answer if isinstance(answer, str) else answer.version}", file=sys.stderr)
    for number in range(args.rounds):
        for row in ROWS:
            turn = [c for c in contenders if row in c.rates]
            for contender in turn[number % len(turn) :] + turn[: number % len(turn)] if turn else ():
                contender.ask(row)
    for contender in contenders:
        contender.process.communicate()
    scaled = None
    if not args.no_scaling:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        counts = sorted({1, cores, *(2**n for n in range(8) if 2**n < cores)})
        decoders = [name for name in ("turbo", "pillow") if f"resnext, {name}" not in missing]
        scaled = scaling(root, decoders, counts, max(args.rounds // 3, 1))
    size = sum(Path(path).stat().st_size for path in files.read_text(encoding="utf-8").split("\n")) / count
    print(f"{processor()}; {count} JPEGs of {size / 1000:.0f} kB; {args.rounds} rounds\n")
    print(report(contenders, missing, scaled))
    if args.json is not None:
        rates = {c.name: {"version": c.version, "images_per_core_s": c.rates} for c in contenders}
        result = {"processor": processor(), "images": count, "mean_bytes": size, "contenders": rates,
                  "missing": missing, "scaling": scaled}  # fmt: skip
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
