"""Writes imagenet_label.json: ``python -m resnext_cpp_infer.create_imagenet2012_label --img_path DIR``, as it was."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from resnext_core.console.program import run_program
from resnext_core.data.index import class_folders, remarks
from resnext_core.errors import EXIT_OK, DataError
from resnext_core.files import write_atomic


def main() -> int:
    """Write ``{file name: class number}`` of a folder of class folders into the working folder."""
    parser = argparse.ArgumentParser(description="write imagenet_label.json: {file name: class number}")
    parser.add_argument("--img_path", type=Path, required=True, help="folder with one folder per class")
    args = parser.parse_args()

    def work() -> int:
        write_atomic(Path("imagenet_label.json"), json.dumps(labels(args.img_path)))
        return EXIT_OK

    return run_program("create_imagenet2012_label", work)


def labels(folder: Path) -> dict[str, int]:
    """Return the class of each file; DataError where two have one name, since the old form cannot tell them apart."""
    index = class_folders(folder)
    for line in remarks([index]):
        print(f"create_imagenet2012_label: {line}", file=sys.stderr)
    found: dict[str, int] = {}
    for path, label in zip(index.paths, index.labels.tolist(), strict=True):
        name = Path(path).name
        if name in found:
            raise DataError(f"{folder} has two files {name}; file names must be unique")
        found[name] = label
    return found


if __name__ == "__main__":
    sys.exit(main())
