"""Ways to serve a network on a CPU: float32, float32 with merged groups, bfloat16, and 8 bits as each tool makes them.

    python benchmarks/cpu_serving.py --data DIR                       resnext50_32x4d with weights like trained ones
    python benchmarks/cpu_serving.py --data DIR --weights runs/RUN

All contenders map the same uint8 images to logits, normalisation included, in one process, and are timed in turns. The
figures are images/s as a multiple of float32 with ONNX Runtime in the same round: the median, and the least and the
greatest of the rounds. Top-1 and agreement with the first guesses of float32 are those on the val part of DIR; all
tools calibrate with the same images of its train part. A contender that cannot run here is a row that says why.

``--clock cpu`` measures processor time, of one thread, instead of time: for a machine that does other work meanwhile.
Files are made in ``--work DIR`` and taken from there if they exist, so that a second run measures only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cpu_serving_models as models
import numpy as np
from resnext_onnx.graph import IMAGES
from resnext_onnx.openvino_sessions import OpenVinoRuntime
from resnext_onnx.options import OnnxOptions
from resnext_onnx.ort_sessions import OrtRuntime
from resnext_onnx.sessions import SessionError

from resnext_core.console.flags import positive
from resnext_core.errors import EXIT_OK, ResnextError, UsageError, one_line
from resnext_core.files import check_target
from resnext_core.processor import processor

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A row: the file `file` of the folder, loaded as one of `precision` by ONNX Runtime, or OpenVINO in `openvino`."""

    name: str
    file: str
    precision: str = "float32"
    openvino: str | None = None

    def session(self, folder: Path, threads: int | None) -> Any:
        """Return a session of ``resnext_onnx.sessions``; ResnextError where there is none here."""
        path = folder / self.file
        if self.openvino is None:
            runtime: Any = OrtRuntime(OnnxOptions(threads=threads), 0)
        else:
            runtime = OpenVinoRuntime(
                OnnxOptions(threads=threads, provider="openvino", openvino_precision=self.openvino)
            )
        return runtime.session(path.read_bytes(), precision=self.precision)


@dataclass(kw_only=True)
class Row:
    """What was found of a contender: `ratios` by setting (threads, batch) are of the rounds; `missing` says why not."""

    contender: Contender
    top1: float | None = None
    agreement: float | None = None
    missing: str = ""
    rates: dict[str, list[float]] = field(default_factory=dict)
    ratios: dict[str, list[float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return asdict(self)


#: The first is what the others are compared with.
BASE = Contender(name="ONNX Runtime float32", file="float32.onnx")
CONTENDERS = (
    BASE,
    Contender(name="ONNX Runtime float32, groups of 16", file="float32-16.onnx"),
    Contender(name="ONNX Runtime int8, its own tool (S8S8)", file="stock-s8s8.onnx", precision="int8"),
    Contender(name="ONNX Runtime int8, its own tool, U8S8", file="stock-u8s8.onnx", precision="int8"),
    Contender(name="ONNX Runtime int8, the same, groups of 32", file="stock-u8s8-32.onnx", precision="int8"),
    Contender(name="ONNX Runtime int8, NNCF", file="nncf.onnx", precision="int8"),
    Contender(name="ONNX Runtime int8, NNCF, groups of 32", file="nncf-32.onnx", precision="int8"),
    Contender(
        name="ONNX Runtime int8, NNCF with accuracy control, groups of 32",
        file="nncf-control-32.onnx",
        precision="int8",
    ),
    Contender(name="ONNX Runtime int8, resnext-run quantize", file="ours.onnx", precision="int8"),
    Contender(name="OpenVINO float32", file="float32.onnx", openvino="float32"),
    Contender(name="OpenVINO bfloat16", file="float32.onnx", openvino="bfloat16"),
    Contender(
        name="OpenVINO int8, ONNX Runtime's tool, U8S8",
        file="stock-u8s8.onnx",
        precision="int8",
        openvino="float32",
    ),
    Contender(
        name="OpenVINO int8, the same, groups of 32",
        file="stock-u8s8-32.onnx",
        precision="int8",
        openvino="float32",
    ),
    Contender(name="OpenVINO int8, NNCF", file="nncf.onnx", precision="int8", openvino="float32"),
    Contender(
        name="OpenVINO int8, resnext-run quantize", file="ours.onnx", precision="int8", openvino="float32"
    ),
)


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with train and val")
    parser.add_argument("--weights", type=Path, help="run folder or weights file (default: made ones)")
    parser.add_argument("--variant", default="resnext50_32x4d", help="of weights that are made")
    parser.add_argument("--batch", type=positive, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=positive, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--seconds", type=float, default=0.4, help="of each contender in each round")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor time, of one thread")
    parser.add_argument(
        "--calibration", type=positive, default=300, help="images that every tool calibrates with"
    )
    parser.add_argument("--max-drop", type=float, default=0.3, help="of resnext-run quantize")
    parser.add_argument("--min-agreement", type=float, default=0.99, help="of resnext-run quantize")
    parser.add_argument(
        "--nncf", metavar="PYTHON", default=sys.executable, help="an interpreter that has NNCF"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", help="contenders whose name has one of these words"
    )
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="folder of the files (default: a temporary one)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    try:
        if args.json:
            check_target(args.json)  # before minutes of work
        with tempfile.TemporaryDirectory() as scratch:
            folder = args.work or Path(scratch)
            folder.mkdir(parents=True, exist_ok=True)
            found = run(args, folder)
    except ResnextError as error:
        print(f"cpu_serving: {error}", file=sys.stderr)
        return error.exit_code
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return EXIT_OK


def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure and print; returns the figures."""
    if args.clock == "cpu" and args.threads != [1]:
        raise UsageError("processor time compares one thread only: add --threads 1")
    if args.only and not any(_wanted(one.name, args.only) for one in CONTENDERS):
        raise UsageError(f"no contender's name has one of the words {', '.join(args.only)}")
    weights_path = args.weights or folder / "weights.safetensors"
    if not weights_path.exists() and args.weights is None:
        models.make_weights(args.variant, args.data, weights_path)
    weights, data = models.load_run(weights_path, args.data, args.calibration)
    rows = [Row(contender=one) for one in CONTENDERS if one is BASE or _wanted(one.name, args.only)]
    makers: Mapping[str, Callable[[Path], None]] = {
        "float32.onnx": lambda path: models.float32(weights, path),
        "float32-16.onnx": lambda path: models.float32(weights, path, 16),
        "stock-s8s8.onnx": lambda path: models.stock(weights, data, path, unsigned=False),
        "stock-u8s8.onnx": lambda path: models.stock(weights, data, path, unsigned=True),
        "stock-u8s8-32.onnx": lambda path: models.stock(weights, data, path, unsigned=True, channels=32),
        "nncf.onnx": lambda path: models.nncf(weights, data, path, args.nncf),
        "nncf-32.onnx": lambda path: models.nncf(weights, data, path, args.nncf, channels=32),
        "nncf-control-32.onnx": lambda path: models.nncf(
            weights, data, path, args.nncf, channels=32, control=args.max_drop
        ),
        "ours.onnx": lambda path: models.ours(
            weights_path,
            args.data,
            path,
            calibration=args.calibration,
            max_drop=args.max_drop,
            min_agreement=args.min_agreement,
        ),
    }
    _header(weights, data, args)
    for row in rows:
        file = row.contender.file
        try:
            if not (folder / file).exists():
                started = time.perf_counter()
                makers[file](folder / file)
                print(f"made {file} in {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
            row.contender.session(folder, 1)
        except (ResnextError, SessionError) as error:
            row.missing = one_line(error)
    _accuracy(rows, folder, data)
    settings = [(threads, batch) for threads in args.threads for batch in args.batch]
    for threads, batch in settings:
        _time(rows, folder, data, threads, batch, args)
    _table(rows, settings, len(data.validation))
    return {
        "processor": asdict(processor()), "variant": weights.spec.variant, "versions": _versions(),
        "images": len(data.validation), "rounds": args.rounds, "clock": args.clock,
        "rows": [row.to_dict() for row in rows],
    }  # fmt: skip


def _wanted(name: str, words: Sequence[str] | None) -> bool:
    return words is None or any(word.lower() in name.lower() for word in words)


def _header(weights: Any, data: models.Data, args: argparse.Namespace) -> None:
    origin = str(args.weights) if args.weights else "weights like trained ones"
    spec = weights.spec
    print(f"{spec.variant}, {spec.image_size} pixels, {origin}; {processor()}")
    print(", ".join(f"{name} {number}" for name, number in _versions().items()))
    print(
        f"{args.rounds} rounds of {args.seconds:g} s in turns, {args.clock} time; "
        f"{len(data.calibration)} images to calibrate with, {len(data.validation)} of val\n",
        flush=True,
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in ("onnxruntime", "openvino", "nncf", "onnx"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _accuracy(rows: Sequence[Row], folder: Path, data: models.Data) -> None:
    want = None
    for row in rows:
        if row.missing:
            continue
        guesses = models.logits(row.contender.session(folder, None), data.validation.images).argmax(axis=1)
        want = guesses if want is None else want
        row.top1 = float((guesses == data.validation.labels).mean())
        row.agreement = float((guesses == want).mean())


def _time(
    rows: Sequence[Row], folder: Path, data: models.Data, threads: int, batch: int, args: argparse.Namespace
) -> None:
    """Add the rounds of one number of threads and one batch size to `rows`."""
    images = np.ascontiguousarray(
        np.resize(data.validation.images, (batch, *data.validation.images.shape[1:]))
    )
    here = [row for row in rows if not row.missing]
    sessions = [row.contender.session(folder, threads) for row in here]
    key = f"{threads},{batch}"
    for session in sessions:
        session.run(IMAGES, images)
    for _ in range(args.rounds):
        for row, session in zip(here, sessions, strict=True):
            session.run(IMAGES, images)  # threads of the contender before still spin
            row.rates.setdefault(key, []).append(batch * _calls_per_s(session, images, args))
    base = here[0].rates[key]
    for row in here:
        row.ratios[key] = [one / other for one, other in zip(row.rates[key], base, strict=True)]


def _calls_per_s(session: Any, images: Any, args: argparse.Namespace) -> float:
    clock = CLOCKS[args.clock]
    calls, started, begun = 0, time.perf_counter(), clock()
    while time.perf_counter() - started < args.seconds or calls < 2:
        session.run(IMAGES, images)
        calls += 1
    return calls / (clock() - begun)


def _table(rows: Sequence[Row], settings: Sequence[tuple[int, int]], images: int) -> None:
    """Print a table in Markdown."""
    names = [f"{t} thread{'s' * (t > 1)}, batch {b}" for t, b in settings]
    print(f"| | top-1 of {images} | same guess | {' | '.join(names)} |")
    print("|---|---|---|" + "---|" * len(names))
    for row in rows:
        if row.missing:
            print(f"| {row.contender.name} | not measured: {row.missing} |" + " |" * (1 + len(names)))
            continue
        cells = [_cell(row, f"{threads},{batch}") for threads, batch in settings]
        assert row.top1 is not None
        assert row.agreement is not None
        print(
            f"| {row.contender.name} | {row.top1:.2%} | {row.agreement:.2%} | {' | '.join(cells)} |",
            flush=True,
        )


def _cell(row: Row, key: str) -> str:
    rate, ratios = statistics.median(row.rates[key]), row.ratios[key]
    if row.contender is BASE:
        return f"{rate:.1f} images/s"
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), {rate:.1f}"


if __name__ == "__main__":
    sys.exit(main())
