"""Our HTTP service against the one that people write today (FastAPI and ONNX Runtime, 40 lines), and the runtime alone.

    pip install fastapi
    python benchmarks/serving.py --variant resnext50_32x4d

Both services serve the same ONNX file in processes of their own, on loopback, and take the same requests: a form with a
JPEG. They are measured in alternating rounds, at concurrency 1, 8 and 64, by threads that keep their connections.
`alone` is ONNX Runtime in a process without a server, on pixels that lie in memory: the most that is possible. Images
are photographs of --images, or made: 500 x 375, of about 110 kB. The first answers of both must agree.
"""

from __future__ import annotations

import argparse
import http.client
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resnext_core.errors import EXIT_OK, BackendUnavailable, DataError, ResnextError
from resnext_core.interfaces import ExportRequest
from resnext_core.model.init import init_weights
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.spec import model_spec
from resnext_core.model.weights import Weights

#: What people write: decode, resize, normalise, run; the server calls it in its threads.
PLAIN = """
import io, json, os
import numpy as np
import onnxruntime
from fastapi import FastAPI, File, UploadFile
from PIL import Image

SIZE, RESIZE = int(os.environ["SIZE"]), int(os.environ["RESIZE"])
CLASSES = [f"class {i}" for i in range(int(os.environ["CLASSES"]))]
session = onnxruntime.InferenceSession(os.environ["MODEL"], providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
app = FastAPI()


def preprocess(content):
    image = Image.open(io.BytesIO(content)).convert("RGB")
    scale = RESIZE / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.BILINEAR)
    left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
    return np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


@app.get("/ready")
def ready():
    return {"ready": True}


@app.post("/predict")
def predict(image: UploadFile = File(...)):
    pixels = preprocess(image.file.read())
    logits = session.run(None, {name: pixels[None]})[0][0]
    shares = softmax(logits)
    best = np.argsort(-shares)[:5]
    return {"top": [{"id": int(i), "name": CLASSES[i], "probability": float(shares[i])} for i in best]}
"""


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variant", default="resnext50_32x4d")
    parser.add_argument("--images", type=Path, help="folder of JPEG files (default: made ones)")
    parser.add_argument("--requests", type=int, default=2000, help="at each concurrency, to each service")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=4, help="alternating parts of the requests")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    try:
        found = run(args)
    except ResnextError as error:
        print(f"serving: {error}", file=sys.stderr)
        return error.exit_code
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return EXIT_OK


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; returns the figures."""
    bodies = [_form(content) for content in _photos(args.images)]
    found: dict[str, Any] = {"variant": args.variant, "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        model, preprocess, classes = _artefact(args.variant, Path(folder))
        found["alone"] = {str(batch): _alone(model, preprocess.size, batch) for batch in (1, 8)}
        most = max(found["alone"].values())
        print(
            f"runtime alone: {', '.join(f'batch {b}: {r:.1f}' for b, r in found['alone'].items())} images/s",
            flush=True,
        )
        with _ours(model) as ours, _plain(model, preprocess, classes, Path(folder)) as plain:
            _agree(ours, plain, bodies)
            services = {"resnext": ours, "plain": plain}
            for concurrency in args.concurrency:
                rates: dict[str, list[float]] = {name: [] for name in services}
                times: dict[str, list[float]] = {name: [] for name in services}
                for _ in range(args.rounds):
                    for name, port in services.items():
                        seconds, latencies = _load(port, bodies, args.requests // args.rounds, concurrency)
                        rates[name].append(len(latencies) / seconds)
                        times[name] += latencies
                ratios = [one / other for one, other in zip(rates["resnext"], rates["plain"], strict=True)]
                for name in services:
                    p50, p99 = np.percentile(times[name], [50, 99]) * 1000
                    row = {
                        "service": name, "concurrency": concurrency, "images_per_s": statistics.median(rates[name]),
                        "p50_ms": p50, "p99_ms": p99, "of_alone": statistics.median(rates[name]) / most,
                    }  # fmt: skip
                    found["rows"].append(row)
                    print(
                        f"{name:<8} concurrency {concurrency:>3}: {row['images_per_s']:7.1f} images/s, "
                        f"p50 {p50:7.1f} ms, p99 {p99:7.1f} ms, {row['of_alone']:.2f} of the runtime alone", flush=True,
                    )  # fmt: skip
                print(
                    f"         resnext is {statistics.median(ratios):.2f} times plain "
                    f"(rounds {min(ratios):.2f} to {max(ratios):.2f})", flush=True,
                )  # fmt: skip
    return found


def _photos(folder: Path | None) -> list[bytes]:
    if folder is not None:
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))[:200]
        if not files:
            raise DataError(f"no JPEG files in {folder}")
        return [file.read_bytes() for file in files]
    rng, found = np.random.default_rng(0), []
    for _ in range(50):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        noisy = np.clip(
            np.asarray(coarse, np.int16) + rng.normal(0, 14, (375, 500, 3)).astype(np.int16), 0, 255
        )
        stream = io.BytesIO()
        Image.fromarray(noisy.astype(np.uint8)).save(stream, "JPEG", quality=90)
        found.append(stream.getvalue())
    return found


def _form(content: bytes) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    return head + content + b"\r\n--b--\r\n"


def _artefact(variant: str, folder: Path) -> tuple[Path, PreprocessSpec, int]:
    from resnext_onnx.export import export_onnx

    spec = model_spec(variant, pool_padding="symmetric")
    preprocess = PreprocessSpec(size=spec.image_size, resize=spec.image_size * 8 // 7)
    classes = tuple(f"class {i}" for i in range(spec.num_classes))
    weights = Weights(spec=spec, preprocess=preprocess, classes=classes, tensors=init_weights(spec, seed=1))
    path = folder / "model.onnx"
    export_onnx(weights, path, ExportRequest())
    return path, preprocess, len(classes)


def _alone(model: Path, size: int, batch: int) -> float:
    """Images a second of ONNX Runtime on pixels in memory, best of three parts of a few seconds."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
    session.run(None, {name: images})
    rates = []
    for _ in range(3):
        started, calls = time.perf_counter(), 0
        while time.perf_counter() - started < 4:
            session.run(None, {name: images})
            calls += 1
        rates.append(calls * batch / (time.perf_counter() - started))
    return max(rates)


@contextmanager
def _ours(model: Path) -> Iterator[int]:
    words = [
        sys.executable,
        "-m",
        "resnext_core.cli",
        "serve",
        "--weights",
        str(model),
        "--port",
        "0",
        "--backend",
        "onnx",
    ]
    with _process(words, {}, lambda line: line.rpartition("live at ")[2].rpartition(":")[2]) as port:
        _until_ready(port, "/v2/health/ready")
        yield port


@contextmanager
def _plain(model: Path, preprocess: PreprocessSpec, classes: int, folder: Path) -> Iterator[int]:
    try:
        import fastapi  # noqa: F401
    except ImportError as error:
        raise BackendUnavailable("FastAPI is not installed: pip install fastapi") from error
    (folder / "plain.py").write_text(PLAIN)
    port = _free_port()
    words = [sys.executable, "-m", "uvicorn", "plain:app", "--port", str(port), "--no-access-log"]
    environ = {
        "MODEL": str(model), "SIZE": str(preprocess.size), "RESIZE": str(preprocess.resize), "CLASSES": str(classes),
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    with _process(words, environ, None):
        _until_ready(port, "/ready")
        yield port


@contextmanager
def _process(
    words: Sequence[str], environ: dict[str, str], port_of: Callable[[str], str] | None
) -> Iterator[int]:
    """Start a service; `port_of` reads its port from its first line."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, **environ})
    try:
        assert process.stdout is not None
        yield int(port_of(process.stdout.readline())) if port_of is not None else 0
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _until_ready(port: int, path: str) -> None:
    for _ in range(1200):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise BackendUnavailable(f"the service at port {port} did not become ready in two minutes")


def _ask(connection: http.client.HTTPConnection, body: bytes) -> dict[str, Any]:
    connection.request("POST", "/predict", body, {"Content-Type": "multipart/form-data; boundary=b"})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise DataError(f"answered {answer.status}: {content[:200]!r}")
    found: dict[str, Any] = json.loads(content)
    return found


def _agree(ours: int, plain: int, bodies: Sequence[bytes]) -> None:
    """Compare the probabilities of the classes that both name: random networks have near ties."""
    for body in bodies[:5]:
        found, other = (
            {guess["id"]: guess["probability"] for guess in _ask(_connection(port), body)["top"]}
            for port in (ours, plain)
        )
        common = found.keys() & other.keys()
        if not common or any(abs(found[one] - other[one]) > 0.02 for one in common):
            raise DataError(f"the services do not compute the same: {found}, {other}")


def _connection(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=300)


def _load(port: int, bodies: Sequence[bytes], requests: int, concurrency: int) -> tuple[float, list[float]]:
    """Return the seconds of so many requests, and those of each; DataError where one fails."""
    numbers, latencies, failures = itertools.count(), [], []

    def work() -> None:
        connection = _connection(port)
        try:
            while (number := next(numbers)) < requests:
                started = time.perf_counter()
                _ask(connection, bodies[number % len(bodies)])
                latencies.append(time.perf_counter() - started)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(concurrency)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    if failures:
        raise DataError(f"{len(failures)} of {concurrency} clients failed: {failures[0]}")
    return seconds, latencies


if __name__ == "__main__":
    sys.exit(main())
