"""Time and memory of opening a list of images, or a folder of them.

The list has 1,000 images of each class, with names as ImageNet has them, in order or (``--shuffle``) not. The images
of all classes are the same 1,000 empty files, reached through a link for each class, so that ten million paths are
all looked up, and the disk needs no ten million files. ``--folder`` opens the folder instead.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CLASS = 1000


def write(root: Path, lines: int, shuffle: bool) -> None:
    """Write files, links and ``train.txt``."""
    classes = -(-lines // CLASS)
    (root / "files").mkdir()
    names = [f"n{i:08}_{i * 7}.JPEG" for i in range(CLASS)]
    for name in names:
        (root / "files" / name).touch()
    (root / "train").mkdir()
    for label in range(classes):
        os.symlink("../files", root / "train" / f"n{label:08}")
    order = list(range(classes))
    rng = random.Random(1)
    with (root / "train.txt").open("w") as stream:
        if not shuffle:
            for label in order:
                stream.write("".join(f"train/n{label:08}/{name} {label}\n" for name in sorted(names)))
            return
        for _ in range(CLASS):  # a random image of each class, the classes in random order
            rng.shuffle(order)
            stream.write("".join(f"train/n{i:08}/{rng.choice(names)} {i}\n" for i in order))


def measure(path: Path) -> None:
    """Open `path`, and print what it took as JSON."""
    from resnext_core.data.index import open_index

    started, cpu = time.perf_counter(), time.process_time()
    index = open_index(path)
    value = {
        "images": len(index), "classes": len(index.classes), "seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),
        "last": index.paths[-1],
    }  # fmt: skip
    print(json.dumps(value))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--shuffle", action="store_true")
    parser.add_argument("--folder", action="store_true", help="open the folder instead of the list")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root, args.lines, args.shuffle)
        target = root / ("train" if args.folder else "train.txt")
        # in a process of its own: what made the list is not to be counted
        subprocess.run([sys.executable, __file__, "--measure", target], check=True)


if __name__ == "__main__":
    main()
