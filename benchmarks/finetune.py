"""What fine-tuning saves: a network trained on half of the classes goes on to a few images of the other half.

    python benchmarks/finetune.py --data DIR [--work DIR] [--backend ID] [--set gpu.device=cpu]

DIR has train and val folders of class folders; without it the handwritten digits of `resnext-run data demo` are
written and used. Of the classes in sorted order, those at even places are trained on first, with all their images. Of
the others `--images` of each class are used for training, the first ones by name, and all images of val for
validation. On these the network is trained from scratch and, from the weights of the first half, in three ways: all of
it; with lower learning rates for earlier stages; with the stem and the first stage frozen. Schedule, epochs and
everything else are the same, but the learning rate: each way has the best of `--rates` by its own mean, so that none
is handicapped.

The table has, as means over the seeds: the best validation top-1, and after how many epochs and seconds of training
the mean curve first reached the best mean top-1 of training from scratch. What is tuned on the validation images is
the same for all ways; the numbers say how they compare, not what is reached on new images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

import resnext_core as rx
from resnext_core.config import parse_set
from resnext_core.data.demo import write_digits
from resnext_core.errors import UsageError
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.records import End, Eval, Train

#: Images that files of a folder may be.
IMAGES = (".jpg", ".jpeg", ".png")
#: Ways to train on the second half: the name of their runs, and settings beside the common ones. None starts from
#: scratch.
WAYS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "from scratch": ("scratch", None),
    "fine-tuned, all": ("all", {}),
    "fine-tuned, rates of stages": ("rates", {"optimizer.stage_lr": 0.7}),
    "fine-tuned, stem and stage 1 frozen": ("frozen", {"train.freeze": 2}),
}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The validation top-1 after each epoch, and the seconds of training until then, evaluations not counted."""

    top1: list[float]
    seconds: list[float]


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, help="folder with train and val of class folders (default: digits)"
    )
    parser.add_argument(
        "--work",
        type=Path,
        help="folder for links and runs (default: a temporary one); what is trained there is kept",
    )
    parser.add_argument("--backend")
    parser.add_argument(
        "--model", help="default: resnext26_16x8d_half, or resnext20_4x16d_quarter for digits"
    )
    parser.add_argument("--size", type=int, help="pixels; default: 48, or 16 for digits")
    parser.add_argument("--first-epochs", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument(
        "--images", type=int, default=40, help="training images of each class of the second half"
    )
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[0.02, 0.005], help="learning rates, a batch of 32"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--set", action="append", default=[], help="settings of all trainings: section.key=value"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        found = measure(args, work)
    print(json.dumps(found))
    return 0


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train everything and return the curves and the table; the table is printed too."""
    data = args.data or write_digits(work / "digits")
    first, second = halves(data, args.images, work)
    recipe = work / "common.yaml"
    recipe.write_text(yaml.safe_dump(settings_of(args)))
    trained = partial(finished, work / "runs", recipe=str(recipe), backend=args.backend)
    before = trained(
        "first", data=first, epochs=args.first_epochs, seed=1,
        overrides={"optimizer.lr": args.rates[0], "train.eval_every": args.first_epochs},
    )  # fmt: skip
    classes = len(list((second / "train").iterdir()))
    curves: dict[str, Curve] = {}
    for way, (name, settings) in WAYS.items():
        start = {} if settings is None else {"pretrained": before, "num_classes": classes}
        try:
            tried = [
                mean([
                    curve(trained(
                        f"{name}-{rate:g}-{seed}", data=second, epochs=args.epochs, seed=seed,
                        overrides={**(settings or {}), "optimizer.lr": rate}, **start,
                    ))
                    for seed in range(1, args.seeds + 1)
                ])
                for rate in args.rates
            ]  # fmt: skip
        except UsageError as error:  # the backend cannot do it
            print(f"{way}: left out, {error}")
            continue
        curves[way] = max(tried, key=lambda found: max(found.top1))
    goal = max(curves["from scratch"].top1)
    table = {}
    for way, found in curves.items():
        at = next((i for i, top1 in enumerate(found.top1) if top1 >= goal), None)
        reached = None if at is None else {"epochs": at + 1, "seconds": round(found.seconds[at], 1)}
        table[way] = {"top1": round(max(found.top1), 4), "at the best of scratch": reached}
        when = "never" if reached is None else f"after {reached['epochs']} epochs, {reached['seconds']} s"
        print(f"{way:<38} top-1 {100 * max(found.top1):5.2f} %   {100 * goal:.2f} % {when}")
    top1 = {way: [round(x, 4) for x in found.top1] for way, found in curves.items()}
    return {"table": table, "curves": top1}


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the configuration that all trainings share, as a recipe has it."""
    photographs = args.data is not None
    settings: dict[str, Any] = {
        "model": {
            "variant": args.model or ("resnext26_16x8d_half" if photographs else "resnext20_4x16d_quarter"),
            "image_size": args.size or (48 if photographs else 16),
        },
        "preprocess": {"mode": "shorter-side"},
        "augment": {
            "scale": [0.35 if photographs else 0.7, 1.0], "ratio": [0.85, 1.18], "color_jitter": [0, 0, 0],
            "flip": 0.5 if photographs else 0.0,
        },
        "optimizer": {"lr_batch": 32, "weight_decay": 0.0005},
        "schedule": {"kind": "cosine-step", "warmup_epochs": 1},
        "loss": {"smoothing_form": "uniform"},
        "train": {"batch_size": 20, "eval_every": 1},
        "eval": {"batch_size": 64},
    }  # fmt: skip
    for layer in parse_set(args.set):
        for section, keys in layer.values.items():
            settings[section] = {**settings.get(section, {}), **keys}
    return settings


def finished(runs: Path, name: str, **arguments: Any) -> Path:
    """Train and return the run `name` in the folder `runs`; one that is there and at its end is kept."""
    run = runs / name
    if run.is_dir() and any(isinstance(record, End) for record in RunFolder(run).read_records()):
        return run
    return rx.train(output=runs, name=name, **arguments).run


def halves(data: Path, images: int, work: Path) -> tuple[Path, Path]:
    """Make folders of links to the images of both halves in `work` and return them."""
    folders = sorted(path for path in (data / "train").iterdir() if path.is_dir())
    val = next(data / name for name in ("val", "validation") if (data / name).is_dir())
    for half, most in ((0, None), (1, images)):
        for part, source, limit in (("train", data / "train", most), ("val", val, None)):
            for name in (path.name for path in folders[half::2]):
                target = work / f"half-{half + 1}" / part / name
                target.mkdir(parents=True, exist_ok=True)
                for path in sorted(p for p in (source / name).iterdir() if p.suffix.lower() in IMAGES)[
                    :limit
                ]:
                    link = target / path.name
                    if not link.exists():
                        link.symlink_to(path.resolve())
    return work / "half-1", work / "half-2"


def curve(run: Path) -> Curve:
    """Return what the records of a run say."""
    seconds, top1, times = 0.0, [], []
    for record in RunFolder(run).read_records():
        if isinstance(record, Train):
            seconds += record.seconds
        elif isinstance(record, Eval):
            top1.append(record.metrics["top1"])
            times.append(seconds)
    return Curve(top1=top1, seconds=times)


def mean(runs: list[Curve]) -> Curve:
    """Return the mean of curves of equal length."""
    return Curve(
        top1=[statistics.mean(values) for values in zip(*(run.top1 for run in runs), strict=True)],
        seconds=[statistics.mean(values) for values in zip(*(run.seconds for run in runs), strict=True)],
    )


if __name__ == "__main__":
    raise SystemExit(main())
