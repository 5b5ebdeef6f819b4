"""The parts of the day in the order of their value: of the first nine minutes, and of a second run."""

from __future__ import annotations

from gpu_day.kinds import against_timm, batches, conv, loader, own, sanitizer, tests
from gpu_day.place import CORE

FLAGSHIP = "resnext152_64x4d"
FIRST = (
    own("versions", "the card, its driver, versions, and the backend found through its entry point", 45, needs=()),
    tests("hardware", "tests of feed, graphs, memory and steps against the reference, on the card", 75),
    tests("contract", "contract kit on the card, in four processes", 45),
    conv(
        "grouped_conv", f"every kernel of {FLAGSHIP} checked and timed, alone on the card", 270,
        "--models", FLAGSHIP,
    ),
    tests("kernels", "tests of the kernels and of torch.compile, in twelve processes", 120, least=40.0),
    own("profile_step", f"profile of one training step of {FLAGSHIP}", 45, needs=(*CORE, "triton"), least=35.0),
)  # fmt: skip
SECOND = (
    against_timm("timm_152", FLAGSHIP, 128, 130),
    against_timm("timm_101", "resnext101_64x4d", 128, 70),
    against_timm("timm_50", "resnext50_32x4d", 256, 60),
    batches(),
    loader(),
    own(
        "exits",
        "NCCL with one rank, exit codes, the message when memory runs out",
        45,
        log="checks",
        least=25.0,
    ),
    own(
        "repeat", "the same seed gives the same bits, and so does a resumed run", 40, log="checks", least=25.0
    ),
    tests("norm", "tests of the kernels of batch normalisation, in twelve processes", 60, least=20.0),
    sanitizer(),
)
PARTS = {part.name: part for part in (*FIRST, *SECOND)}
