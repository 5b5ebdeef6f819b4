"""Build, check and time our kernels of the grouped convolution on one NVIDIA GPU, and whole networks, in 8 minutes.

    python benchmarks/grouped_conv.py

Measured in this order, as far as --minutes allow; what was not is named:

1. The card: what a large copy and a large product reach. They make the floor of each convolution: the time to move its
   input, output and weights once, or to do its operations, whichever is longer.
2. Every grouped convolution of the models, and both its gradients, by every plan: right against float64? Memory is full
   of NaN before. What is wrong is listed and not timed, and the exit code is 3.
3. The same, timed at the full batch: ours as training chooses it, and cuDNN's, on images in channels-last memory and in
   PyTorch's plain one. The L2 cache is emptied before every call; the time is the median.
4. Training steps of each model, ours in all ways against timm's, in alternating rounds as in gpu_vs_timm.py, and
   inference in the arithmetic of training. Ours copies its images to the GPU in each step, timm's lie there.

The last lines are a short table and the goals. --save writes what is known so far to a file after every convolution and
every model, for those who may have to stop this. --networks-only leaves out 2 and 3. --smoke runs the same code on the
CPU, in Triton's interpreter and on a tiny network, without torch.compile and CUDA graphs; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import gpu_vs_timm as against
from grouped_conv_goals import (
    FLAGSHIP,
    PASSES,
    Card,
    Convolution,
    convolutions,
    fastest,
    judge,
    long_table,
    short_table,
)
from grouped_conv_models import NO_TIME, Clock, TimeUp, measure

from resnext_core.errors import EXIT_DATA, EXIT_OK, BackendUnavailable, ResnextError, UsageError, one_line
from resnext_core.files import write_atomic
from resnext_core.model.spec import ModelSpec, model_spec

MODELS = (FLAGSHIP, "resnext101_64x4d", "resnext50_32x4d")
#: What --smoke takes: groups of 4, 8, 16 and 32 channels.
SMOKE = ModelSpec(
    variant="smoke", depths=(1, 1, 1, 1), groups=4, base_width=4, num_classes=10, image_size=32,
    pool_padding="symmetric",
)  # fmt: skip
#: A stage of it, which timm has not: one convolution.
ONE_STAGE = dataclasses.replace(SMOKE, variant="one stage", depths=(1,))
#: Of the time left for a model and those after it; the last takes all.
SHARE = 0.6
#: Of all time, kept for the models.
FOR_MODELS = 0.3
#: Seconds kept for printing.
PRINTING = 2.0
#: Lines of wrong results in the short table.
MOST_WRONG = 5


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = _Parser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--batch", type=int, default=128, help="images; halved for a model that does not fit")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything")
    parser.add_argument("--compute", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--networks-only", action="store_true", help="leave out the single convolutions")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the JSON object as it grows")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="keep timings of the kernels here (default: nowhere)"
    )
    parser.add_argument(
        "--smoke", nargs="?", const="all", choices=("all", "one-stage"),
        help="on the CPU, tiny, in float16: shows that the code runs; one-stage: with a single convolution",
    )  # fmt: skip
    try:
        args = parser.parse_args()
        found = run(args)
    except ResnextError as error:
        print(f"grouped_conv: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(found, indent=1) if args.json else "\n".join(text(found)), flush=True)
    if found["wrong"]:
        print(f"grouped_conv: {len(found['wrong'])} results are wrong, see above", file=sys.stderr)
        return EXIT_DATA
    return EXIT_OK


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Return all that was measured."""
    if not 0 < args.minutes < 1e4 or args.batch < 1:
        raise UsageError("--minutes and --batch must be more than 0")
    args.models = list(dict.fromkeys(args.models))
    small = ONE_STAGE if args.smoke == "one-stage" else SMOKE
    specs = [small] if args.smoke else [model_spec(name, pool_padding="symmetric") for name in args.models]
    args.peak_tflops = None  # for gpu_vs_timm, which knows those of some cards
    if args.smoke:
        args.batch, args.compute = 2, "float16"  # the interpreter's bfloat16 is not right
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
    clock = Clock(60 * args.minutes - PRINTING)
    torch, timm = against.import_torch(args), None
    try:
        timm = against.import_timm()
    except BackendUnavailable as error:  # the kernels can do without
        clock.say(str(error))
    with tempfile.TemporaryDirectory() as folder:
        # Nothing that was measured before, nothing that outlives this, unless asked for.
        os.environ["XDG_CACHE_HOME"] = str(args.cache or folder)
        return _measured(args, torch, timm, specs, clock)


def _measured(
    args: argparse.Namespace, torch: Any, timm: Any, specs: list[ModelSpec], clock: Clock
) -> dict[str, Any]:  # fmt: skip
    from resnext_gpu.device import Device, open_device
    from resnext_gpu.grouped_conv import op

    dtype = getattr(torch, args.compute)
    device = open_device(Device(kind="cpu" if args.smoke else "cuda"))
    for spec in specs:
        op.grouped_conv(
            "triton", spec, dtype, device, deterministic=False, graphed=False
        )  # UsageError where it cannot be
    import grouped_conv_kernels as work  # only now, as Triton may be missing
    from resnext_gpu.grouped_conv import plans

    if args.smoke:
        _interpret(plans)
    card = work.measure_card(device, dtype, small=bool(args.smoke))
    clock.say(f"{card.name}: {card.bytes_per_s / 1e12:.2f} TB/s, {card.operations_per_s / 1e12:.0f} TFLOP/s")
    counts = {spec.variant: convolutions(spec) for spec in specs}
    todo: list[Convolution] = list(dict.fromkeys(one for found in counts.values() for one in found))
    if args.networks_only:
        todo = []
    rows: list[dict[str, Any]] = []
    for one in todo:
        often = {name: found[one] for name, found in counts.items() if one in found}
        rows += [work.new_row(one, what, args.batch, often, card) for what in PASSES]
    models: list[dict[str, Any]] = []

    def save() -> None:
        found = _found(args, torch, card, rows, models, [spec.variant for spec in specs])
        if args.save is not None:
            write_atomic(args.save, json.dumps(found, indent=1))

    save()
    try:
        with clock.alarm():
            _kernels(args, work, todo, rows, clock, dtype, device, save)
    except TimeUp:
        clock.say("time is up")
    except RuntimeError as error:  # of a GPU that does not go on; what was measured before is worth printing
        clock.say(f"stopped: {one_line(error, 200)}")
    save()
    try:
        for number, spec in enumerate(specs):
            if any(row["wrong"] for row in rows if spec.variant in row["models"]):
                clock.say(f"{spec.variant}: not trained, as some of its convolutions are wrong")
            elif clock.left() > 0:
                share = 1.0 if number == len(specs) - 1 else SHARE
                models.append(measure(args, torch, timm, spec, clock, share))
                save()
    except Exception as error:
        clock.say(f"stopped: {one_line(error, 200)}")
    return _found(args, torch, card, rows, models, [spec.variant for spec in specs])


def _kernels(
    args: argparse.Namespace, work: Any, todo: list[Convolution], rows: list[dict[str, Any]], clock: Clock,
    dtype: Any, device: Any, save: Callable[[], None],
) -> None:  # fmt: skip
    """Fill `rows`: all are checked first, then timed, until too little time is left for the models."""
    kept = clock.left() * FOR_MODELS
    if todo and not args.smoke:
        clock.say(work.compile_all(todo, args.batch, dtype))
    for one in todo:
        if clock.left() > kept:
            own = [row for row in rows if row["shape"] == str(one)]
            work.check_rows(own, one, args.batch, dtype, device)
            clock.say(f"{one}: {'WRONG' if any(row['wrong'] for row in own) else 'right'}")
            save()
    for one in todo:
        own = [row for row in rows if row["shape"] == str(one) and row["checked"] and not row["wrong"]]
        if own and clock.left() > kept:
            work.time_rows(own, one, args.batch, dtype, device)
            clock.say(f"{one}: timed")
            save()


def _interpret(plans: Any) -> None:
    """Triton's stopwatch is the GPU's, and half of its interpreter's time goes into looking for overflows."""
    from triton.runtime.interpreter import interpreter_builder as builder

    plans._milliseconds = _by_the_wall
    if hasattr(builder.options, "sanitize_overflow"):
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def _by_the_wall(call: Any) -> float:
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def _found(
    args: argparse.Namespace, torch: Any, card: Card, rows: list[dict[str, Any]], models: list[dict[str, Any]],
    names: list[str],
) -> dict[str, Any]:  # fmt: skip
    import triton

    wrong = [f"{row['shape']}, {row['pass']}: {said}" for row in rows for said in row["wrong"]]
    for model in models:
        wrong += [f"{model['model']}: {m['wrong']}" for m in (model, model["inference"]) if m["wrong"]]
    right = not wrong and bool(rows) and all(row["checked"] for row in rows)
    return {
        "card": card.name, "capability": card.capability, "smoke": bool(args.smoke),
        "versions": {
            "torch": torch.__version__, "triton": triton.__version__, "cuDNN": torch.backends.cudnn.version(),
        },
        "bytes_per_s": card.bytes_per_s, "operations_per_s": card.operations_per_s, "batch": args.batch,
        "compute": args.compute, "convolutions": rows, "models": models, "names": names, "wrong": wrong,
        "goals": {} if args.smoke else judge(rows, models, names),
        "may_be_measured": card.capability if right else None,
    }  # fmt: skip


# -- text -----------------------------------------------------------------------------------------


def text(found: dict[str, Any]) -> Iterator[str]:
    """Yield everything, and the short table last."""
    if found["convolutions"]:
        yield from long_table(found["convolutions"])
    for model in found["models"]:
        yield from ("", against.text(model), f"inference of {against.text(model['inference'])}")
    yield from ("", *(f"WRONG: {said}" for said in found["wrong"]), *short(found))


def short(found: dict[str, Any]) -> Iterator[str]:
    """Yield at most 40 lines: card, convolutions, models, goals, and what is wrong or was not measured."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    capability = "" if found["capability"] is None else " (capability {}.{})".format(*found["capability"])
    yield f"{found['card']}{capability}; {versions}; {found['compute']}, batch {found['batch']}"
    yield (
        f"measured: copy {found['bytes_per_s'] / 1e12:.3f} TB/s, product {found['operations_per_s'] / 1e12:.0f} "
        "TFLOP/s; cuDNN on channels-last images; /floor is ours over the floor, cuDNN/ is cuDNN's over ours"
    )
    if found["convolutions"]:
        yield from short_table(found["convolutions"], found["names"])
    trained = {model["model"]: model for model in found["models"]}
    for name in found["names"]:
        model = trained.get(name)
        yield f"{name}: " + ("not measured" if model is None else f"training {_brief(model)}")
        if model is not None:
            yield f"{'':<{len(name)}}  inference {_brief(model['inference'])}"
    wrong, rows = found["wrong"], found["convolutions"]
    yield from (f"WRONG: {said[:150]}" for said in wrong[:MOST_WRONG])
    if len(wrong) > MOST_WRONG:
        yield f"WRONG: and {len(wrong) - MOST_WRONG} more, see above"
    if wrong:
        plans = [said for said in wrong if " squares, " in said]
        by = {family: sum(f"({family})" in said for said in plans) for family in ("wgmma", "mma.sync")}
        if any(by.values()):
            yield (
                f"WRONG by instruction of the tensor cores: {by['wgmma']} plans with wgmma (4 and 8 warps, 64 squares "
                f"and more), {by['mma.sync']} with mma.sync (all others)"
            )
    unchecked, untimed = (sum(not row[key] for row in rows) for key in ("checked", "ours_ms"))
    if unchecked or untimed:
        yield f"of {len(rows)} convolutions and passes {unchecked} were not checked and {untimed} not timed"
    if found["smoke"]:
        yield "smoke test on the CPU: these figures mean nothing, and no goal is judged"
    yield from (f"goal: {goal}: {said}" for goal, said in found["goals"].items())
    if found["may_be_measured"] is not None:
        yield f"all kernels were right: {found['may_be_measured']} may be added to MEASURED in grouped_conv/op.py"


def _brief(model: dict[str, Any]) -> str:
    """Return our fastest way and timm's in a line."""
    ways = model["contenders"]
    best = [fastest(ways, who) for who in ("ours", "timm")]
    said = [f"{name} {ways[name]['images_per_s']:.0f} images/s" for name in best if name is not None]
    if best[0] is not None and best[1] is not None:
        said.append(f"{ways[best[0]]['images_per_s'] / ways[best[1]]['images_per_s']:.2f} x")
    missing = [name for name, why in model["failed"].items() if why == NO_TIME]
    if missing:
        said.append(f"no time for {len(missing)} ways")
    return f"at batch {model['batch']}: " + ("; ".join(said) or "not measured")


if __name__ == "__main__":
    sys.exit(main())
