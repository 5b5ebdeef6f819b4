"""What a process of ``bench all`` does: write an artefact, or serve a model and time it turn by turn."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from resnext_core.errors import BackendUnavailable, DataError, ResnextError, one_line
from resnext_core.jobs.bench import timed_model
from resnext_core.jobs.bench_record import EvalBench
from resnext_core.jobs.bench_steps import random_batch, seconds_of, warm_up
from resnext_core.jobs.export import export_request
from resnext_core.jobs.settings import Settings, resolve
from resnext_core.model.weights import load_weights
from resnext_core.plugins import load_plugins
from resnext_core.ranks.parent import when_parent_ends
from resnext_core.serving.load import serve, serve_weights

#: Steps before a turn is timed take so many seconds: what other processes left in the caches is gone then.
_SETTLE_S = 0.2
#: Slower steps than this are timed at once: what lies in the caches makes no difference to them.
_SLOW_S = 1.0
#: prctl(2): the signal that a process gets when its parent ends.
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a process is told first. `path` is the artefact to write or to serve, None for the weights themselves.

    `writes` is the format to write, None to serve; `variant` the label of the backend's way of writing it. `expected`
    are variant and image size that the others have. `checked` asks for the model's golden logits, which what is written
    for a benchmark alone need not meet. `command` stands in the record.
    """

    label: str
    settings: Settings
    backend: str
    weights: str
    path: str | None = None
    writes: str | None = None
    variant: str | None = None
    batch_size: int = 1
    expected: tuple[str, int] | None = None
    checked: bool = True
    command: str = ""


def main(descriptor: int, parent: int) -> None:
    """Serve the pipe of this process until it ends; every failure becomes an answer."""
    _end_with(parent)
    with Connection(descriptor) as link:
        try:
            work: Work = link.recv()["work"]
            if work.writes is not None:
                _write(work)
                link.send({"written": True})
            else:
                _serve(work, link)
        except EOFError:
            return
        except ResnextError as error:
            link.send({"error": str(error)})
        except Exception as error:  # of a plugin or framework: it is a row that cannot be timed
            link.send({"error": f"{type(error).__name__}: {one_line(error, 300)}"})
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # a framework that is torn down may hang or crash, and all is said


def _write(work: Work) -> None:
    plugins = load_plugins()
    config = resolve(work.settings, plugins).config
    backend = plugins.available(work.backend)
    exporter = backend.exporters[str(work.writes)]
    if work.variant is not None:
        ways = backend.variants() if backend.variants is not None else ()
        way = next((w for w in ways if w.label == work.variant and w.exports == work.writes), None)
        if way is None:
            raise BackendUnavailable(f"backend '{backend.id}' no longer offers {work.variant}")
        exporter = way.write or exporter
    assert work.path is not None
    exporter(load_weights(Path(work.weights)), Path(work.path), export_request(config, backend))


def _serve(work: Work, link: Connection) -> None:
    plugins = load_plugins()
    resolved = resolve(work.settings, plugins)
    config, n = resolved.config, work.batch_size
    if work.path is None:
        weights = load_weights(Path(work.weights))
        model = serve_weights(weights, config, plugins, backend_id=work.backend, batch_size=n)
    else:
        model = serve(
            Path(work.path), config, resolved.sources, plugins, backend_id=work.backend, batch_size=n,
            self_check=work.checked,
        )  # fmt: skip
    spec = model.spec
    if work.expected not in (None, (spec.variant, spec.image_size)):
        raise DataError(f"its network is {spec.variant} at {spec.image_size} px, unlike the others")
    images = random_batch(n, spec.image_size, 1).images
    turns: list[list[float]] = []
    with closing(model.predictor) as predictor:

        def step() -> float:
            return seconds_of(lambda: predictor.logits(images))

        warmed = warm_up(step)
        link.send({"ready": True})
        while (message := link.recv()).get("turn") is not None:
            settled = min(turns[-1]) if turns and min(turns[-1]) > _SLOW_S else 0.0
            while settled < _SETTLE_S:
                settled += step()
            turns.append(_turn(step, message["turn"]))
            link.send({"ms": 1e3 * min(turns[-1])})
    file = None if work.path is None else Path(work.path)
    timed = timed_model(model, config, n, file=file, label=work.label)
    result = timed.result(
        EvalBench, [t for turn in turns for t in turn], warmup=warmed, rounds=turns, command=work.command
    )
    if timed.compute.peak is not None:
        result = timed.with_peak(result)
    link.send({"result": result.to_dict()})


def _turn(step: Callable[[], float], seconds: float) -> list[float]:
    times: list[float] = []
    ends = time.perf_counter() + seconds
    while not times or time.perf_counter() < ends:
        times.append(step())
    return times


def _end_with(parent: int) -> None:
    """Have this process end when process `parent` does; on Linux also where it is stopped."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)
    when_parent_ends(parent, lambda: os._exit(1))
