"""A part: a few kernels of the grouped convolution, each run once and compared, for compute-sanitizer to watch."""

from __future__ import annotations

import os
import sys

from gpu_day.child import arguments, write

#: Groups of 4 channels share a block with others, those of 32 fill one.
WIDTHS = (4, 32)
#: Error over the largest value; what is wrong by a tap or a channel is far above.
MOST = 2e-2


def main() -> int:
    """Run forward, input gradient and weight gradient of two widths and both strides, on images of odd sizes."""
    args = arguments()
    if args.smoke:
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
    import grouped_conv_kernels as work
    import torch

    device = torch.device("cpu" if args.smoke else "cuda")
    dtype = torch.float16 if args.smoke else torch.bfloat16
    wrong, count = [], 0
    for width in WIDTHS[:1] if args.smoke else WIDTHS:
        for stride in (1, 2):
            one = work.Convolution(
                channels=2 * max(width, 16), group_width=width, height=7, width=9, stride=stride
            )
            given = work.Operands.make(one, 2, dtype, device)
            for what in work.PASSES:
                found = given.ours(what, work.plans.default_plan(what, given.shape)).double()
                wanted = given.library(what).double()
                apart = float((found - wanted).abs().max() / wanted.abs().max())
                count += 1
                print(f"{one}, {what}: {apart:.1e} of the largest value from the library's", flush=True)
                if not apart <= MOST:
                    wrong.append(f"{one}, {what}: off by {apart:.1e} of the largest value")
    if not args.smoke:
        torch.cuda.synchronize()
    said = "; ".join(wrong) or f"{count} kernels ran and are right"
    return write(args.into, right=not wrong, said=said, wrong=wrong)


if __name__ == "__main__":
    sys.exit(main())
