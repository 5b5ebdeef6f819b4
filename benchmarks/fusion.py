"""Check and time the fused middle of ResNeXt's blocks on one NVIDIA GPU: gpu.fused_bn against what it fuses.

    python benchmarks/fusion.py

For each grouped convolution of a model, with both batch normalisations and ReLUs around it:

1. Right? Every plan of each convolution kernel against float64, given what the normalisation kernel gives; memory is
   full of NaN before. What is wrong is listed, and the exit code is 3. The whole operation is compared with PyTorch's
   in float64, in the norm, next to PyTorch's own distance in 16 bits.
2. Fast? Forward, and forward with backward, at the full batch: fused; apart with our plain kernels; apart with cuDNN.
   The best plans are timed first, as training does. The L2 cache is emptied before every call; the time is the median.
   The bound is the bytes of fusion_counts.py at the bandwidth of a large copy on this card.

The last line says how many milliseconds a step of the model takes in its middles by each way. --smoke runs the same
code on the CPU, in Triton's interpreter and on tiny images; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from fusion_counts import WAYS
from grouped_conv import _interpret
from grouped_conv_goals import FLAGSHIP, Convolution, convolutions

from resnext_core.errors import EXIT_DATA, EXIT_OK, ResnextError, one_line
from resnext_core.model.spec import model_spec

#: The ways that are timed, and the one of fusion_counts that bounds each.
TIMED = {"fused": WAYS[2], "apart, our kernels": WAYS[0], "apart, cuDNN": WAYS[0]}
#: What --smoke takes.
SMALL = {Convolution(channels=32, group_width=8, height=5, width=5, stride=2): 1}
#: Distance from float64 of the whole operation, over that of PyTorch in 16 bits, and what is always allowed.
MOST_TIMES, ALLOWED = 1.5, 4e-3


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", default=FLAGSHIP)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument(
        "--minutes", type=float, default=4.0, help="no further convolution is begun after that"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--smoke", action="store_true", help="on the CPU, tiny, in float16: shows that the code runs"
    )
    args = parser.parse_args()
    if args.smoke:
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_CACHE_HOME"] = folder  # nothing that was measured before
            found = run(args)
    except ResnextError as error:
        print(f"fusion: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(found, indent=1) if args.json else "\n".join(text(found)), flush=True)
    return EXIT_DATA if any(row["wrong"] for row in found["rows"]) else EXIT_OK


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Return all that was measured."""
    import torch
    from resnext_gpu.device import Device, open_device
    from resnext_gpu.grouped_conv import fused

    began = time.monotonic()
    dtype = torch.float16 if args.smoke else torch.bfloat16  # the interpreter's bfloat16 is not right
    device = open_device(Device(kind="cpu" if args.smoke else "cuda"))
    spec = model_spec(args.model)
    fused.fused_middle(
        True, spec, dtype, device, bn_float32=True, deterministic=False
    )  # UsageError if it cannot be
    import fusion_kernels as work  # only now, as Triton may be missing
    from resnext_gpu.grouped_conv import plans

    if args.smoke:
        _interpret(plans)

    card = work.measure_card(device, dtype, small=args.smoke)
    rows: list[dict[str, Any]] = []
    batch = 2 if args.smoke else args.batch
    for one, count in (SMALL if args.smoke else convolutions(spec)).items():
        row: dict[str, Any] = {"shape": str(one), "times": count, "wrong": [], "ms": {}, "why_not": None}
        row["bound_ms"] = {
            name: [1e3 * sum(part) / card.bytes_per_s for part in (moved[:1], moved)]
            for name, way in TIMED.items()
            for moved in [way.moved(one, batch)]
        }
        rows.append(row)
        if time.monotonic() - began > 60 * args.minutes:
            row["why_not"] = "no time left"
            continue
        try:
            row["wrong"] = work.check(one, batch, dtype, device, MOST_TIMES, ALLOWED)
            if not row["wrong"]:
                row["ms"] = work.times(one, batch, dtype, device)
        except RuntimeError as error:
            row["why_not"] = one_line(error, 200)
        print(f"{one}: {row['wrong'] or row['why_not'] or 'right, timed'}", file=sys.stderr, flush=True)
    return {
        "card": card.name, "bytes_per_s": card.bytes_per_s, "model": args.model, "batch": batch, "smoke": args.smoke,
        "versions": {"torch": torch.__version__, "triton": work.triton.__version__}, "rows": rows,
    }  # fmt: skip


def text(found: dict[str, Any]) -> Iterator[str]:
    """Yield the table, and the sum over the model last."""
    yield (
        f"{found['card']}, {found['bytes_per_s'] / 1e12:.2f} TB/s, batch {found['batch']}: ms forward, forward + "
        "backward (bound by bytes)"
    )
    for row in found["rows"]:
        cells = [f"{name} {_pair(row['ms'][name])} ({_pair(row['bound_ms'][name])})" for name in row["ms"]]
        said = row["why_not"] or "; ".join(cells)
        yield f"{row['shape']:<22} x {row['times']:<3} {said}"
        yield from (f"WRONG: {row['shape']}: {said[:150]}" for said in row["wrong"])
    if found["smoke"]:
        yield "smoke test on the CPU: these figures mean nothing"
    elif all(row["ms"] for row in found["rows"]):
        sums = {name: sum(row["times"] * row["ms"][name][1] for row in found["rows"]) for name in TIMED}
        yield f"all of {found['model']}: " + ", ".join(f"{name} {ms:.2f} ms" for name, ms in sums.items())
    else:
        yield "not all were measured: no sum"


def _pair(values: list[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


if __name__ == "__main__":
    sys.exit(main())
