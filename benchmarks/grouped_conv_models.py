"""Time training steps and inference of whole networks with our grouped convolutions, against timm's, in rounds."""

from __future__ import annotations

import argparse
import functools
import gc
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gpu_vs_timm as against
import numpy as np

from resnext_core.errors import DataError, UsageError, one_line
from resnext_core.interfaces import Batch
from resnext_core.model.init import random_weights
from resnext_core.model.spec import ModelSpec
from resnext_core.model.weights import Weights

ROUNDS, STEPS, WARMUP = 5, 5, 2
#: Without these two at one batch size there is nothing to compare.
NEEDED = ("timm", "ours")
NO_TIME = "no time left"


class TimeUp(BaseException):
    """The budget is spent; no Exception, so that nothing on the way takes it for a failure of its own."""


class Clock:
    """Counts down `seconds`, and says on standard error what is done when."""

    def __init__(self, seconds: float) -> None:
        self._began, self._seconds = time.monotonic(), seconds
        #: Guessed for the first network that torch.compile takes, then measured.
        self.compiling_a_block = 1.2

    def left(self) -> float:
        """Return the seconds that are left."""
        return self._seconds - (time.monotonic() - self._began)

    def say(self, words: str) -> None:
        """Say a line of progress."""
        print(f"{self._seconds - self.left():6.1f} s: {words}", file=sys.stderr, flush=True)

    @contextmanager
    def alarm(self, kept: float = 0.0) -> Iterator[None]:
        """Raise TimeUp inside when no more than `kept` seconds are left, also in the middle of compiling.

        Not for code that imports: a module whose import was broken off stays broken in this process.
        """
        armed = True

        def up(*_: Any) -> None:
            if armed:
                raise TimeUp

        before = signal.signal(signal.SIGALRM, up)
        # Again later, as Python drops what is raised in a destructor.
        other = signal.setitimer(signal.ITIMER_REAL, max(self.left() - kept, 0.01), 5.0)
        try:
            yield
        finally:
            armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            signal.setitimer(signal.ITIMER_REAL, *other)


def measure(
    args: argparse.Namespace, torch: Any, timm: Any, spec: ModelSpec, clock: Clock, share: float
) -> dict[str, Any]:
    """Return the figures of one network: of training at the first batch that fits of args.batch, a half, and so on.

    Takes `share` of the time left. Contenders that there is no time or memory for are named in ``failed``.
    """
    end = clock.left() * (1 - share)  # what shall be left afterwards
    middle = end + 0.15 * (clock.left() - end)
    batch = args.batch
    while True:
        clock.say(f"{spec.variant}, training, batch {batch}")
        found = _train(args, torch, timm, spec, batch, clock, middle)
        short = [name for name in NEEDED if "memory" in found["failed"].get(name, "")]
        if not short or batch == 1:
            break
        batch //= 2
    clock.say(f"{spec.variant}, inference, batch {batch}")
    found["inference"] = _infer(args, torch, timm, spec, batch, clock, end)
    for row in found["inference"]["contenders"].values():
        row["mfu"] = None  # that of a training step
    return found


def _train(
    args: argparse.Namespace, torch: Any, timm: Any, spec: ModelSpec, batch_size: int, clock: Clock, end: float
) -> dict[str, Any]:  # fmt: skip
    given = _noise(spec, batch_size)
    device = torch.device("cpu" if args.smoke else "cuda")

    def ours(**options: Any) -> Callable[[], against.Run]:
        return lambda: against.ours(args, *given(), **options)

    def theirs(compiled: bool) -> Callable[[], against.Run]:
        return lambda: against.theirs(args, torch, timm, *given(), device, compiled=compiled)

    makers = {"timm": theirs(False), "ours": ours()}
    if args.smoke:
        makers["ours, triton"] = ours(grouped_conv="triton", batch_norm="triton")
    else:  # the most telling first
        makers |= {
            "ours, CUDA graph": ours(cuda_graphs=True),
            "ours, PyTorch's kernels, CUDA graph": ours(
                grouped_conv="cudnn", batch_norm="torch", cuda_graphs=True
            ),
            "ours, triton": ours(grouped_conv="triton", batch_norm="triton"),
            "timm, compiled": theirs(True),
            "ours, compiled": ours(compile=True),
            "ours, compiled, CUDA graph": ours(compile=True, cuda_graphs=True),
        }
    return _contest(args, torch, timm, spec, batch_size, makers, clock, end, "first loss")


def _infer(
    args: argparse.Namespace, torch: Any, timm: Any, spec: ModelSpec, batch_size: int, clock: Clock, end: float
) -> dict[str, Any]:  # fmt: skip
    """Time the predictor of a trainer, which computes in the arithmetic of training, against timm's in AMP.

    Ours takes its images from the host and brings the logits back; timm's lie on the device.
    """
    given = _noise(spec, batch_size)
    device = torch.device("cpu" if args.smoke else "cuda")

    def ours(**options: Any) -> against.Run:
        predictor, images = against.trainer(args, *given(), **options).predictor(), given()[1].images
        return lambda steps: max(_score(predictor.logits(images)) for _ in range(steps))

    def theirs(compiled: bool) -> against.Run:
        model, normalised = against.timm_network(args, torch, timm, *given(), device)
        forward = torch.compile(model.eval()) if compiled else model.eval()

        def run(steps: int) -> float:
            with torch.no_grad(), torch.autocast(device.type, dtype=getattr(torch, args.compute)):
                found = [forward(normalised()) for _ in range(steps)]
            return _score(found[0].float().cpu().numpy())

        return run

    makers = {"timm": lambda: theirs(False), "ours": ours}
    if args.smoke:
        makers["ours, triton"] = lambda: ours(grouped_conv="triton")
    else:
        makers["timm, compiled"] = lambda: theirs(True)
    return _contest(args, torch, timm, spec, batch_size, makers, clock, end, "root of the mean square logit")


def _noise(spec: ModelSpec, batch_size: int) -> Callable[[], tuple[Weights, Batch]]:
    """Return what makes weights and a batch at its first call; initial weights would hide the grouped convolutions."""
    return functools.cache(lambda: against.noise(spec, batch_size, random_weights))


def _score(logits: Any) -> float:
    """Return one number that any error in the logits moves: the root of their mean square."""
    return float(np.sqrt(np.mean(np.square(logits))))


def _contest(
    args: argparse.Namespace, torch: Any, timm: Any, spec: ModelSpec, batch_size: int,
    makers: dict[str, Callable[[], against.Run]], clock: Clock, end: float, what: str,
) -> dict[str, Any]:  # fmt: skip
    """Make the contenders, and let them run in turns until `end` seconds are left."""
    device = torch.device("cpu" if args.smoke else "cuda")
    contenders: list[against.Contender] = []
    failed = dict.fromkeys(makers, NO_TIME)
    wrong: str | None = None
    rounds, steps, two_rounds = 0, 1 if args.smoke else STEPS, 0.0
    if clock.left() > end:
        torch._dynamo.reset()  # it counts networks of the same class, and gives up after some
        _free(torch, device)
    try:
        for name, make in makers.items():
            if timm is None and name.startswith("timm"):
                failed[name] = "no timm here"
                continue
            compiling = "compiled" in name
            before = clock.left()
            guess = clock.compiling_a_block * sum(spec.depths) if compiling else 0.0
            if before - guess - two_rounds < end:
                continue
            try:
                # What takes too long leaves the time for two rounds of those that are ready.
                with clock.alarm(end + two_rounds if contenders else 0.0):
                    made = _made(name, make, contenders, torch, device)
            except TimeUp:
                _free(torch, device)
                clock.say(f"{name}: {NO_TIME}")
                if not contenders:
                    raise
                continue
            if compiling:
                clock.compiling_a_block = (before - clock.left()) / sum(spec.depths)
            clock.say(f"{name}: {made if isinstance(made, str) else 'ready'}")
            if isinstance(made, against.Contender):
                contenders.append(made)
                del failed[name]
                before = clock.left()
                made.run(1)
                two_rounds += 2 * steps * (before - clock.left())
                continue
            failed[name] = made
            if name in NEEDED and "memory" in made:
                break
        if clock.left() <= 0:
            raise TimeUp
        with clock.alarm():
            if contenders:
                against.check_losses({c.name: c.loss for c in contenders}, what)
            while contenders and rounds < (1 if args.smoke else ROUNDS):
                before = clock.left()
                for contender in contenders:
                    against.time_steps(contender, steps, torch, device)
                rounds += 1
                if 2 * clock.left() - before < end:
                    break
    except DataError as error:
        wrong = str(error)
    except (RuntimeError, UsageError) as error:
        clock.say(f"stopped: {one_line(error, 120)}")
    except TimeUp:
        clock.say("time is up")
    for contender in contenders:
        del contender.seconds[rounds:]  # of a round that was not finished
    if not rounds:
        failed |= dict.fromkeys((c.name for c in contenders), wrong or NO_TIME)
        contenders = []
    args = argparse.Namespace(**{**vars(args), "rounds": rounds, "steps": steps})
    return against.result(args, torch, timm, spec, batch_size, contenders, failed) | {"wrong": wrong}


def _made(
    name: str, make: Callable[[], against.Run], others: Sequence[against.Contender], torch: Any, device: Any
) -> against.Contender | str:
    """Return a contender that leaves memory to the others, or why there is none."""
    try:
        made = against.contend(name, make, WARMUP, torch, device)
    except Exception as error:  # a table with a gap that is named is worth more than none
        made = f"{type(error).__name__}: {one_line(error, 120)}"
    if isinstance(made, against.Contender) and "graph" in name and not _fit_beside(others, torch):
        made = "no memory for its graph beside the other contenders"
    if isinstance(made, str):
        _free(torch, device)
    return made


def _free(torch: Any, device: Any) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _fit_beside(contenders: Sequence[against.Contender], torch: Any) -> bool:
    """True where those that allocate anew in each step still can."""
    try:
        for contender in contenders:
            if "graph" not in contender.name:
                contender.run(1)
    except (torch.cuda.OutOfMemoryError, UsageError):
        return False
    return True
