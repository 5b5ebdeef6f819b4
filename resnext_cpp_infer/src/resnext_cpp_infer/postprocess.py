"""``python -m resnext_cpp_infer.postprocess``: accuracy from the ModelZoo's result_Files and imagenet_label.json."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from resnext_core.console.program import run_program
from resnext_core.errors import EXIT_OK, DataError

#: 1000 logits in float16.
_MODELZOO_BYTES = 2000


def main() -> int:
    """Print the accuracy in the ModelZoo's form; the exit code is 3 where results are missing or damaged."""
    parser = argparse.ArgumentParser(description="accuracy of result_Files against imagenet_label.json")
    parser.add_argument(
        "--result_path",
        type=Path,
        required=True,
        help="folder of <image>_0.bin, the logits of an image",
    )
    parser.add_argument("--label_path", type=Path, required=True, help="JSON: {file name: class number}")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        help="of the logits: float32 as resnext-infer writes them, float16 as the ModelZoo's program did "
        "(default: float32, or float16 for 1000 classes where the labels show it)",
    )
    args = parser.parse_args()

    def work() -> int:
        print(accuracy(args.result_path, args.label_path, args.dtype))
        return EXIT_OK

    return run_program("postprocess", work)


def accuracy(results: Path, labels: Path, dtype: str | None = None) -> str:
    """Return the line. Every labelled image counts: one without a result is wrong; the ModelZoo did not count it.

    `dtype` is that of the logits. None takes float32, or float16 for files of 2000 bytes where a label is above 499:
    the ModelZoo's postprocess.py was made for 1000 classes and nothing else.
    """
    try:
        wanted: dict[str, int] = json.loads(labels.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {labels}: {error}") from error
    if not wanted:
        raise DataError(f"{labels} lists no images")
    if not results.is_dir():
        raise DataError(f"no such folder: {results}")
    first, fifth, classes = 0, 0, max(wanted.values()) + 1
    for name, label in wanted.items():
        path = results / f"{Path(name).stem}_0.bin"
        if not path.is_file():
            continue
        content = path.read_bytes()
        modelzoo = len(content) == _MODELZOO_BYTES and classes > _MODELZOO_BYTES // 4
        narrow = dtype == "float16" or (dtype is None and modelzoo)
        stored = np.dtype(np.float16 if narrow else np.float32)
        if len(content) % stored.itemsize:
            raise DataError(f"{path} has {len(content)} bytes: no whole {stored} logits")
        logits = np.frombuffer(content, stored).astype(np.float32)
        if label >= len(logits):
            raise DataError(f"{path} has {len(logits)} logits, but the class of {name} is {label}")
        best = np.argsort(-logits, kind="stable")[:5].tolist()
        first += best[0] == label
        fifth += label in best
    total = len(wanted)
    return f"Total data: {total}, top1 accuracy: {first / total}, top5 accuracy: {fifth / total}."


if __name__ == "__main__":
    sys.exit(main())
