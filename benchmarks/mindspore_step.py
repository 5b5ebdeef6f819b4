"""Time a training step: our MindSpore engine, a bare MindSpore loop and PyTorch, in alternating rounds on the CPU.

    python benchmarks/mindspore_step.py --torch-python ~/torch/bin/python

All three train the same network from the same weights on the same images in float32, and the benchmark
stops when their first losses disagree. Each has a process of its own, so that nothing that MindSpore needs in its
environment reaches PyTorch; only one of them computes at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # PyTorch's interpreter need not have resnext-core installed

from resnext_core.model.spec import BN_EPS, BN_MOMENTUM, ModelSpec, model_spec  # noqa: E402

MOMENTUM, DECAY, LR, SMOOTHING = 0.9, 1e-4, 0.01, 0.1
#: The first losses of the three agree to this share, or they do not train the same thing.
LOSS_TOLERANCE = 1e-4


def main() -> int:
    """Run the benchmark, or one of its workers; returns the exit code."""
    args = _arguments()
    spec = model_spec(args.model)
    spec = spec.replace(image_size=args.size or spec.image_size)
    if args.worker:
        return _serve(args.worker, spec, args)
    with tempfile.TemporaryDirectory(prefix="resnext-bench-") as folder:
        data = Path(folder) / "data.npz"
        _write_data(data, spec, args.batch)
        times, cpu, losses = _measure(args, data)
    result = _result(args, times, cpu, losses)
    print(json.dumps(result) if args.json else _text(result))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnext50_32x4d")
    parser.add_argument("--size", type=int, help="pixels of an image's side (default: the model's own)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps a round")
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter that has PyTorch")
    parser.add_argument("--skip", choices=("bare", "torch"), action="append", default=[])
    parser.add_argument("--channels-last", action="store_true", help="PyTorch in channels_last layout")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--worker", choices=("engine", "bare", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _write_data(path: Path, spec: ModelSpec, batch: int) -> None:
    from resnext_core.model.init import init_weights

    rng = np.random.default_rng(0)
    np.savez(
        path,
        images=rng.integers(0, 256, (batch, spec.image_size, spec.image_size, 3), dtype=np.uint8),
        labels=rng.integers(0, spec.num_classes, batch).astype(np.int32),
        **init_weights(spec, 1),
    )


# -- the parent: three workers, one at a time -----------------------------------------------------


def _measure(
    args: argparse.Namespace, data: Path
) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, float]]:
    """Return the seconds and the CPU seconds of every timed step and the first loss, by worker."""
    names = [n for n in ("engine", "bare", "torch") if n not in args.skip]
    workers = {name: _start(name, args, data) for name in names}
    try:
        losses = {name: _ask(worker, 1)["loss"] for name, worker in workers.items()}  # compiles
        for name, loss in losses.items():
            if not abs(loss / losses["engine"] - 1) <= LOSS_TOLERANCE:
                raise SystemExit(f"{name} starts at loss {loss}, the engine at {losses['engine']}")
        for worker in workers.values():
            _ask(worker, 1)  # warm
        times: dict[str, list[float]] = {name: [] for name in names}
        cpu: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(args.rounds):
            # Whoever comes first changes, so that none always follows the same other one.
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                answer = _ask(workers[name], args.steps)
                times[name] += answer["seconds"]
                cpu[name] += answer["cpu_seconds"]
        return times, cpu, losses
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()


def _start(name: str, args: argparse.Namespace, data: Path) -> subprocess.Popen[str]:
    python = args.torch_python if name == "torch" else sys.executable
    command = [python, __file__, "--worker", name, "--data", str(data), "--model", args.model]
    command += ["--batch", str(args.batch), "--threads", str(args.threads)]
    command += ["--size", str(args.size)] if args.size else []
    command += ["--channels-last"] if args.channels_last else []
    environment = dict(os.environ, OMP_NUM_THREADS=str(args.threads))
    if name == "torch":
        environment.pop("ONEDNN_MAX_CPU_ISA", None)
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def _ask(worker: subprocess.Popen[str], steps: int) -> dict[str, Any]:
    """Have a worker take some steps; returns their seconds and the last loss."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(f"{steps}\n")
    worker.stdin.flush()
    for line in worker.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise SystemExit(f"a worker ended early with exit code {worker.wait()}: {' '.join(worker.args)}")


def _result(
    args: argparse.Namespace,
    times: dict[str, list[float]],
    cpu: dict[str, list[float]],
    losses: dict[str, float],
) -> dict[str, Any]:
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "model": args.model,
        "batch": args.batch,
        "threads": args.threads,
        "median_s": medians,
        "fastest_s": {name: min(values) for name, values in times.items()},
        # Work done, which a busy machine stretches far less than the wall clock.
        "median_cpu_s": {name: statistics.median(values) for name, values in cpu.items()},
        "steps": len(times["engine"]),
        "engine_to": {
            name: _ratio(times["engine"], v, args.steps) for name, v in times.items() if name != "engine"
        },
        "first_loss": losses,
        "load": os.getloadavg()[0],
    }


def _ratio(ours: list[float], others: list[float], steps: int) -> float:
    """Return the median over rounds of our time to theirs: neighbours in time had the same machine."""
    starts = range(0, len(ours), steps)
    return statistics.median(sum(ours[i : i + steps]) / sum(others[i : i + steps]) for i in starts)


def _text(result: dict[str, Any]) -> str:
    lines = [
        f"{result['model']}, batch {result['batch']}, float32, {result['threads']} threads, "
        f"{result['steps']} steps each, load {result['load']:.1f}"
    ]
    for name, median in result["median_s"].items():
        ratio = result["engine_to"].get(name)
        note = f"   engine / {name} = {ratio:.3f}" if ratio else ""
        fastest, cpu = result["fastest_s"][name], result["median_cpu_s"][name]
        lines.append(f"{name:8} median {median:.3f} s   fastest {fastest:.3f} s   CPU {cpu:.2f} s{note}")
    return "\n".join(lines)


# -- the workers ----------------------------------------------------------------------------------


def _serve(name: str, spec: ModelSpec, args: argparse.Namespace) -> int:
    """Take steps as standard input asks for them, and print their seconds and the last loss."""
    with np.load(args.data) as stored:
        data = dict(stored)
    images, labels = data.pop("images"), data.pop("labels")
    step = {"engine": _engine, "bare": _bare, "torch": _torch}[name](spec, data, images, labels, args)
    for line in sys.stdin:
        seconds, cpu_seconds, loss = [], [], 0.0
        for _ in range(int(line)):
            start, cpu_start = time.perf_counter(), time.process_time()
            loss = step()
            seconds.append(time.perf_counter() - start)
            cpu_seconds.append(time.process_time() - cpu_start)
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "loss": loss}), flush=True)
    return 0


def _engine(spec: ModelSpec, tensors: dict, images: np.ndarray, labels: np.ndarray, args) -> Any:
    """Our engine through the Trainer that the loop drives."""
    from resnext_mindspore.device import Device
    from resnext_mindspore.engine import MindsporeEngine

    from resnext_core.config import LossConfig, OptimizerConfig, PrecisionConfig
    from resnext_core.interfaces import Batch, TrainRequest
    from resnext_core.model.preprocess import PreprocessSpec
    from resnext_core.model.weights import Weights
    from resnext_core.ranks.collectives import SingleProcess
    from resnext_core.ranks.info import RankInfo
    from resnext_core.training.trainer import Trainer

    size = spec.image_size
    weights = Weights(
        spec=spec,
        preprocess=PreprocessSpec(size=size, resize=size),
        classes=tuple(map(str, range(spec.num_classes))),
        tensors=tensors,
    )
    request = TrainRequest(
        weights=weights,
        optimizer=OptimizerConfig(momentum=MOMENTUM, weight_decay=DECAY),
        loss=LossConfig(smoothing=SMOOTHING, smoothing_form="uniform"),
        precision=PrecisionConfig(),
        batch_size=len(labels),
        rank=RankInfo(),
        collectives=SingleProcess(),
    )
    trainer = Trainer(request, MindsporeEngine(request, Device(threads=args.threads)))
    batch = Batch(
        images=images, labels=labels, index=np.arange(len(labels)), valid=np.ones(len(labels), bool)
    )
    lrs = np.array([LR], np.float32)
    return lambda: float(trainer.run_steps([batch], lrs)[0])


def _normalized(images: np.ndarray) -> np.ndarray:
    from resnext_core.model.preprocess import IMAGENET_MEAN, IMAGENET_STD

    mean, std = np.array(IMAGENET_MEAN, np.float32), np.array(IMAGENET_STD, np.float32)
    return np.ascontiguousarray(((images.astype(np.float32) - mean) / std).transpose(0, 3, 1, 2))


def _bare(spec: ModelSpec, tensors: dict, images: np.ndarray, labels: np.ndarray, args) -> Any:
    """The bare loop in a process of its own, with MindSpore's device set up as the engine does it."""
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
    import mindspore as ms

    ms.set_device("CPU")
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.device_context.cpu.op_tuning.threads_num(args.threads)
    return bare_loop(spec, tensors, images, labels)


def bare_loop(spec: ModelSpec, tensors: dict, images: np.ndarray, labels: np.ndarray) -> Any:
    """What one writes by hand with MindSpore's own layers: nn.Momentum and nn.TrainOneStepCell."""
    import mindspore as ms
    from mindspore import nn

    def conv(inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
        return nn.Conv2d(
            inside, outside, kernel, stride, pad_mode="pad", padding=kernel // 2, group=groups, has_bias=False
        )

    def norm(channels: int) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(channels, eps=BN_EPS, momentum=1 - BN_MOMENTUM)

    class Block(nn.Cell):
        def __init__(self, block: Any) -> None:
            super().__init__()
            self.conv1, self.bn1 = conv(block.in_channels, block.width, 1), norm(block.width)
            self.conv2 = conv(block.width, block.width, 3, block.stride, spec.groups)
            self.bn2 = norm(block.width)
            self.conv3, self.bn3 = conv(block.width, block.out_channels, 1), norm(block.out_channels)
            self.relu = nn.ReLU()
            self.downsample = nn.Identity()
            if block.downsample:
                self.downsample = nn.SequentialCell(
                    conv(block.in_channels, block.out_channels, 1, block.stride), norm(block.out_channels)
                )

        def construct(self, x: Any) -> Any:
            y = self.relu(self.bn1(self.conv1(x)))
            y = self.relu(self.bn2(self.conv2(y)))
            return self.relu(self.bn3(self.conv3(y)) + self.downsample(x))

    class Net(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            imagenet = spec.stem == "imagenet"
            self.conv1 = conv(3, spec.stem_width, 7 if imagenet else 3, 2 if imagenet else 1)
            self.bn1, self.relu = norm(spec.stem_width), nn.ReLU()
            self.pool = nn.MaxPool2d(3, 2, pad_mode="same") if imagenet else nn.Identity()
            self.blocks = nn.SequentialCell([Block(b) for b in spec.blocks])
            self.fc = nn.Dense(spec.features, spec.num_classes)

        def construct(self, x: Any) -> Any:
            x = self.blocks(self.pool(self.relu(self.bn1(self.conv1(x)))))
            return self.fc(x.mean((2, 3)))

    net = Net()
    # The Parameters of MindSpore's layers come in the same order as the tensors of the spec, role by role.
    ours = {"gamma": "bn_weight", "beta": "bn_bias", "moving_mean": "bn_mean", "moving_variance": "bn_var"}
    pools: dict[str, list] = {}
    for parameter in net.get_parameters():
        role = ours.get(parameter.name.rsplit(".", 1)[-1]) or (
            "conv" if parameter.ndim == 4 else "fc_weight" if parameter.ndim == 2 else "fc_bias"
        )
        pools.setdefault(role, []).append(parameter)
    for role, parameters in pools.items():
        for tensor, parameter in zip([t for t in spec.tensors if t.role == role], parameters, strict=True):
            parameter.set_data(ms.Tensor(tensors[tensor.name]))
    decayed = [p for p in net.trainable_params() if p.ndim > 1]
    others = [p for p in net.trainable_params() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = nn.Momentum(groups, LR, MOMENTUM)
    loss = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    step = nn.TrainOneStepCell(nn.WithLossCell(net, loss), optimizer).set_train()
    x, y = ms.Tensor(_normalized(images)), ms.Tensor(labels)
    return lambda: float(step(x, y).asnumpy())


def _torch(spec: ModelSpec, tensors: dict, images: np.ndarray, labels: np.ndarray, args) -> Any:
    """The same network and recipe in eager PyTorch."""
    import torch
    from torch import nn

    torch.set_num_threads(args.threads)

    def conv(inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
        return nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False)

    class Block(nn.Module):
        def __init__(self, block: Any) -> None:
            super().__init__()
            self.conv1, self.bn1 = conv(block.in_channels, block.width, 1), nn.BatchNorm2d(block.width)
            self.conv2 = conv(block.width, block.width, 3, block.stride, spec.groups)
            self.bn2 = nn.BatchNorm2d(block.width)
            self.conv3 = conv(block.width, block.out_channels, 1)
            self.bn3 = nn.BatchNorm2d(block.out_channels)
            self.downsample = nn.Identity()
            if block.downsample:
                self.downsample = nn.Sequential(
                    conv(block.in_channels, block.out_channels, 1, block.stride),
                    nn.BatchNorm2d(block.out_channels),
                )

        def forward(self, x: Any) -> Any:
            y = torch.relu_(self.bn1(self.conv1(x)))
            y = torch.relu_(self.bn2(self.conv2(y)))
            return torch.relu_(self.bn3(self.conv3(y)) + self.downsample(x))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            imagenet = spec.stem == "imagenet"
            self.conv1 = conv(3, spec.stem_width, 7 if imagenet else 3, 2 if imagenet else 1)
            self.bn1 = nn.BatchNorm2d(spec.stem_width)
            # On even sizes rounding up pads as "same" does: nothing before, one after.
            self.pool = nn.MaxPool2d(3, 2, ceil_mode=True) if imagenet else nn.Identity()
            self.names = [block.name for block in spec.blocks]
            for stage in range(len(spec.depths)):
                prefix = f"layer{stage + 1}."
                blocks = [Block(b) for b in spec.blocks if b.name.startswith(prefix)]
                setattr(self, prefix[:-1], nn.Sequential(*blocks))
            self.fc = nn.Linear(spec.features, spec.num_classes)

        def forward(self, x: Any) -> Any:
            x = self.pool(torch.relu_(self.bn1(self.conv1(x))))
            for stage in range(len(spec.depths)):
                x = getattr(self, f"layer{stage + 1}")(x)
            return self.fc(x.mean((2, 3)))

    net = Net().train()
    missing, unexpected = net.load_state_dict(
        {name: torch.from_numpy(array) for name, array in tensors.items()}, strict=False
    )
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    x, y = torch.from_numpy(_normalized(images)), torch.from_numpy(labels).long()
    if args.channels_last:
        net, x = net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    decayed = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim == 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=LR,
        momentum=MOMENTUM,
    )
    criterion = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)

    def step() -> float:
        optimizer.zero_grad()
        loss = criterion(net(x), y)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


if __name__ == "__main__":
    sys.exit(main())
