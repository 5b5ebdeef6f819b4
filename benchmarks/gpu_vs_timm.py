"""Time a training step on one NVIDIA GPU: our PyTorch engine and timm's own model and step, in alternating rounds.

    python benchmarks/gpu_vs_timm.py --model resnext152_64x4d --batch 64 128 256

Every contender trains the same network from the same weights on the same images in bfloat16, with smoothed labels,
momentum and decay groups; the benchmark stops when their first losses disagree. timm's settings are the best that its
documentation names: channels_last, AMP, its fused optimizer, with and without torch.compile. Ours are the engine's,
with and without torch.compile, and with CUDA graphs. Our step copies its batch to the GPU each time; timm's batch lies
there. All run in one process, one after the other, several rounds; ratios are of a round, quoted as median and spread.

--smoke runs the same code on the CPU with a tiny network; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from resnext_core.config import LossConfig, OptimizerConfig, PrecisionConfig
from resnext_core.errors import EXIT_OK, BackendUnavailable, DataError, ResnextError, UsageError, one_line
from resnext_core.interfaces import Batch, TrainRequest
from resnext_core.model.init import init_weights
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.spec import ModelSpec, model_spec
from resnext_core.model.weights import Weights
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo

MOMENTUM, DECAY, LR, SMOOTHING = 0.9, 1e-4, 0.01, 0.1
#: As the training loop calls our backend.
STEPS_PER_CALL = 8
#: The first losses agree to this share, or the contenders do not train the same thing.
LOSS_TOLERANCE = 2e-2
#: Dense bfloat16 (V100: float16) TFLOP/s of NVIDIA's data sheets, by what the card's name begins with.
PEAK_TFLOPS = {
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H200": 989.4,
    "NVIDIA A100": 312.0,
    "Tesla V100": 125.0,
}
#: What --smoke trains: every kind of layer, no size.
SMOKE = ModelSpec(
    variant="smoke", depths=(1, 1, 1, 1), groups=4, base_width=16, num_classes=10, image_size=32,
    pool_padding="symmetric",
)  # fmt: skip

#: Takes so many steps and returns the loss before the first.
Run = Callable[[int], float]


@dataclass(kw_only=True, eq=False)
class Contender:
    """One way to train: `run` after its making, its first `loss`, and what was measured of it."""

    name: str
    run: Run
    loss: float
    static: int
    seconds: list[float]
    peak: int = 0


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="resnext50_32x4d", help="a variant, e.g. resnext152_64x4d")
    parser.add_argument("--batch", type=int, nargs="+", default=[128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="steps a round")
    parser.add_argument("--warmup", type=int, default=10, help="steps before the rounds, compiling included")
    parser.add_argument(
        "--peak-tflops", type=float, help="of the card, for MFU (default: known for some cards)"
    )
    parser.add_argument("--compute", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--smoke", action="store_true", help="on the CPU, tiny: shows that the code runs")
    parser.add_argument("--grouped-conv", choices=("auto", "triton", "cudnn"), default="auto", help="of ours")
    parser.add_argument("--no-compile", action="store_true", help="leave out the contenders that compile")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    try:
        if args.rounds < 1 or args.steps < 1 or args.warmup < 1 or min(args.batch) < 1:
            raise UsageError("--rounds, --steps, --warmup and --batch must be 1 or more")
        torch, timm = import_torch(args), import_timm()
        results = []
        for batch in args.batch:
            results.append(measure(args, torch, timm, batch))
            if not args.json:
                print(text(results[-1]), end="\n\n", flush=True)
    except ResnextError as error:
        print(f"gpu_vs_timm: {error}", file=sys.stderr)
        return error.exit_code
    if args.json:
        print(json.dumps(results, indent=1))
    return EXIT_OK


def import_torch(args: argparse.Namespace) -> Any:
    """Return torch; BackendUnavailable without it, or without a GPU."""
    try:
        import torch
    except ImportError:
        raise BackendUnavailable("PyTorch is not installed: pip install 'resnext-core[gpu]'") from None
    if not args.smoke and not torch.cuda.is_available():
        raise BackendUnavailable(
            "PyTorch finds no NVIDIA GPU here, and figures need one; --smoke shows that the code runs"
        )
    return torch


def import_timm() -> Any:
    """Return timm; BackendUnavailable without it."""
    try:
        import timm
        import timm.loss
        import timm.optim
    except (ImportError, RuntimeError) as error:  # the latter where torchvision is of another PyTorch
        raise BackendUnavailable(f"timm is needed to compare with ({error}): pip install timm") from None
    return timm


def measure(args: argparse.Namespace, torch: Any, timm: Any, batch_size: int) -> dict[str, Any]:
    """Return the figures of every contender at one batch size."""
    spec = SMOKE if args.smoke else model_spec(args.model, pool_padding="symmetric")
    device = torch.device("cpu" if args.smoke else "cuda")
    weights, batch = noise(spec, batch_size)
    contenders, failed, first = [], {}, {}
    for name, make in _makers(args, torch, timm, weights, batch, device):
        made = contend(name, make, args.warmup, torch, device)
        if isinstance(made, str):
            failed[name] = made
        else:
            contenders.append(made)
            first[name] = made.loss
    check_losses(first)
    for _ in range(args.rounds):
        for contender in contenders:
            time_steps(contender, args.steps, torch, device)
    return result(args, torch, timm, spec, batch_size, contenders, failed)


def noise(
    spec: ModelSpec, batch_size: int, make: Callable[[ModelSpec, int], dict[str, Any]] = init_weights
) -> tuple[Weights, Batch]:
    """Return the weights that `make` gives, and a batch of noise."""
    weights = Weights(
        spec=spec, preprocess=PreprocessSpec(size=spec.image_size, resize=spec.image_size),
        classes=tuple(map(str, range(spec.num_classes))), tensors=make(spec, 1),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    batch = Batch(
        images=rng.integers(0, 256, (batch_size, spec.image_size, spec.image_size, 3), dtype=np.uint8),
        labels=rng.integers(0, spec.num_classes, batch_size).astype(np.int32),
        index=np.arange(batch_size), valid=np.ones(batch_size, bool),
    )  # fmt: skip
    return weights, batch


def contend(name: str, make: Callable[[], Run], warmup: int, torch: Any, device: Any) -> Contender | str:
    """Return what `make` makes after its first steps, or why it cannot be, with its memory given back."""
    before = _allocated(torch, device)
    try:
        run = make()
        loss = run(1)
        run(warmup)
    except (torch.cuda.OutOfMemoryError, UsageError) as error:
        why = one_line(error, 120)
    else:
        static = _allocated(torch, device) - before
        return Contender(name=name, run=run, loss=loss, static=static, seconds=[])
    run = None  # type: ignore[assignment]
    gc.collect()  # a network and its steps refer to each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return why


def _makers(
    args: argparse.Namespace, torch: Any, timm: Any, weights: Weights, batch: Batch, device: Any
) -> Iterator[tuple[str, Callable[[], Run]]]:
    """Yield the contenders by name, each with what makes it."""

    def mine(**options: Any) -> Run:
        return ours(args, weights, batch, grouped_conv=args.grouped_conv, **options)

    yield "ours", mine
    yield "timm", lambda: theirs(args, torch, timm, weights, batch, device, compiled=False)
    if not args.no_compile:
        yield "ours, compiled", lambda: mine(compile=True)
        yield "timm, compiled", lambda: theirs(args, torch, timm, weights, batch, device, compiled=True)
    if device.type == "cuda":
        yield "ours, CUDA graph", lambda: mine(cuda_graphs=True)
        if not args.no_compile:
            both = {"compile": True, "cuda_graphs": True}
            yield "ours, compiled, CUDA graph", lambda: mine(**both)


def ours(args: argparse.Namespace, weights: Weights, batch: Batch, **options: Any) -> Run:
    """Return our trainer's steps."""
    training = trainer(args, weights, batch, **options)

    def run(steps: int) -> float:
        losses = []
        for start in range(0, steps, STEPS_PER_CALL):
            count = min(STEPS_PER_CALL, steps - start)
            losses.append(training.run_steps([batch] * count, np.full(count, LR, np.float32)))
        return float(losses[0][0])

    return run


def trainer(args: argparse.Namespace, weights: Weights, batch: Batch, **options: Any) -> Any:
    """Return our trainer."""
    from resnext_gpu.engine import GpuEngine
    from resnext_gpu.options import GpuOptions

    from resnext_core.training.trainer import Trainer

    precision = PrecisionConfig(compute=args.compute)
    if args.compute == "float16":
        precision = PrecisionConfig(compute="float16", loss_scale="fixed", scale=1024.0)
    request = TrainRequest(
        weights=weights, optimizer=OptimizerConfig(momentum=MOMENTUM, weight_decay=DECAY),
        loss=LossConfig(smoothing=SMOOTHING, smoothing_form="uniform"), precision=precision,
        batch_size=len(batch), rank=RankInfo(), collectives=SingleProcess(),
    )  # fmt: skip
    device = "cpu" if args.smoke else "cuda"
    chosen = GpuOptions(device=device, channels_last=True, **options)  # type: ignore[arg-type]
    return Trainer(request, GpuEngine(request, chosen))


def theirs(
    args: argparse.Namespace,
    torch: Any,
    timm: Any,
    weights: Weights,
    batch: Batch,
    device: Any,
    *,
    compiled: bool,
) -> Run:
    """Return timm's steps: those of its train.py, on a batch that is on the device and normalised there."""
    model, normalised = timm_network(args, torch, timm, weights, batch, device)
    optimizer = timm.optim.create_optimizer_v2(
        model, opt="momentum", lr=LR, weight_decay=DECAY, momentum=MOMENTUM, fused=True
    )
    loss_of = timm.loss.LabelSmoothingCrossEntropy(smoothing=SMOOTHING).to(device)
    scaler = torch.amp.GradScaler(device.type, enabled=args.compute == "float16")
    labels = torch.from_numpy(batch.labels.astype(np.int64)).to(device)
    forward = torch.compile(model) if compiled else model

    def run(steps: int) -> float:
        losses = []
        for _ in range(steps):
            given = normalised()
            with torch.autocast(device.type, dtype=getattr(torch, args.compute)):
                loss = loss_of(forward(given), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            losses.append(loss.detach())
        return float(losses[0])

    return run


def timm_network(
    args: argparse.Namespace, torch: Any, timm: Any, weights: Weights, batch: Batch, device: Any
) -> tuple[Any, Callable[[], Any]]:
    """Return timm's network with `weights`, and what normalises the batch, which lies on the device."""
    spec = weights.spec
    model = _timm_model(timm, spec)
    state = {name: torch.from_numpy(array.copy()) for name, array in weights.tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or any("num_batches" not in name for name in missing):
        raise DataError(f"timm's {spec.variant} has other tensors: {[*missing, *unexpected][:3]}")
    model = model.to(device=device, memory_format=torch.channels_last).train()
    images = torch.from_numpy(batch.images).to(device).permute(0, 3, 1, 2)
    mean, std = (
        torch.tensor(values, device=device).view(1, 3, 1, 1)
        for values in (weights.preprocess.mean, weights.preprocess.std)
    )

    def normalised() -> Any:
        return images.float().sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)

    return model, normalised


def _timm_model(timm: Any, spec: ModelSpec) -> Any:
    if timm.is_model(spec.variant):
        return timm.create_model(spec.variant, num_classes=spec.num_classes)
    from timm.models.resnet import Bottleneck, ResNet  # timm has no 152_64x4d by name

    return ResNet(
        Bottleneck, list(spec.depths), num_classes=spec.num_classes, cardinality=spec.groups,
        base_width=spec.base_width,
    )  # fmt: skip


def check_losses(first: dict[str, float], what: str = "first loss") -> None:
    """Raise DataError where first losses disagree, UsageError where there are none."""
    if not first:
        raise UsageError("nothing fits into this GPU's memory; give a smaller --batch")
    wanted = statistics.median(first.values())
    for name, loss in first.items():
        if not abs(loss - wanted) <= LOSS_TOLERANCE * abs(wanted):
            raise DataError(f"the {what} of {name} is {loss}, the others have {wanted}: not the same network")


def time_steps(contender: Contender, steps: int, torch: Any, device: Any) -> None:
    """Add the seconds of a step, and the peak of memory, to what was measured of `contender`."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    others = _allocated(torch, device) - contender.static
    started = time.perf_counter()
    contender.run(steps)
    if device.type == "cuda":
        torch.cuda.synchronize()
        contender.peak = max(contender.peak, torch.cuda.max_memory_allocated() - others)
    contender.seconds.append((time.perf_counter() - started) / steps)


def _allocated(torch: Any, device: Any) -> int:
    return int(torch.cuda.memory_allocated()) if device.type == "cuda" else 0


def result(
    args: argparse.Namespace, torch: Any, timm: Any, spec: ModelSpec, batch: int, contenders: list[Contender],
    failed: dict[str, str],
) -> dict[str, Any]:  # fmt: skip
    """Return what was measured, as JSON takes it."""
    card = "CPU, smoke test: these figures mean nothing" if args.smoke else torch.cuda.get_device_name()
    known = next((v for k, v in PEAK_TFLOPS.items() if card.startswith(k)), None)
    peak = args.peak_tflops or known
    rows = {}
    for c in contenders:
        rates = [batch / s for s in c.seconds]
        median = statistics.median(c.seconds)
        mfu = None if args.smoke or peak is None else 6 * spec.macs * batch / median / (peak * 1e12)
        rows[c.name] = {
            "images_per_s": statistics.median(rates), "slowest": min(rates), "fastest": max(rates),
            "ms_a_step": 1e3 * median, "mfu": mfu, "peak_mib": c.peak / 2**20 if c.peak else None,
        }  # fmt: skip
    return {
        "card": card, "torch": torch.__version__, "timm": getattr(timm, "__version__", None),
        "model": spec.variant, "batch": batch,
        "compute": args.compute, "rounds": args.rounds, "steps": args.steps, "contenders": rows, "failed": failed,
        "ratios": _ratios(contenders),
    }  # fmt: skip


def _ratios(contenders: list[Contender]) -> dict[str, dict[str, float]]:
    """Return how much faster our fastest is than each of timm's, round by round."""
    mine = [c for c in contenders if c.name.startswith("ours")]
    if not mine:
        return {}
    best = min(mine, key=lambda c: statistics.median(c.seconds))
    found = {}
    for other in contenders:
        if other.name.startswith("timm"):
            ratios = [b / a for a, b in zip(best.seconds, other.seconds, strict=True)]
            found[f"{best.name} / {other.name}"] = {
                "median": statistics.median(ratios), "least": min(ratios), "most": max(ratios),
            }  # fmt: skip
    return found


def text(result: dict[str, Any]) -> str:
    """Return the figures for people."""
    head = "{card}; torch {torch}, timm {timm}; {model}, batch {batch}, {compute}, {rounds} rounds of {steps} steps"
    lines = [head.format(**result)]
    for name, row in result["contenders"].items():
        mfu = "" if row["mfu"] is None else f", MFU {100 * row['mfu']:.1f} %"
        peak = "" if row["peak_mib"] is None else f", {row['peak_mib']:.0f} MiB"
        lines.append(
            f"  {name:<28} {row['images_per_s']:9.1f} images/s ({row['slowest']:.1f} to {row['fastest']:.1f}), "
            f"{row['ms_a_step']:.1f} ms a step{mfu}{peak}"
        )
    lines += [f"  {name:<28} left out: {reason}" for name, reason in result["failed"].items()]
    for name, ratio in result["ratios"].items():
        lines.append(f"  {name}: {ratio['median']:.3f} ({ratio['least']:.3f} to {ratio['most']:.3f})")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
