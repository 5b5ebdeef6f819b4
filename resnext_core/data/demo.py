"""Demo data that needs no download: scikit-learn's handwritten digits as image folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnext_core.data.sampler import epoch_permutation
from resnext_core.errors import DataError, UsageError, reason
from resnext_core.files import make_folder
from resnext_core.files.scratch import Scratch

#: Fractions of the test and validation splits in each class; the rest is for training.
_TEST, _VAL = 0.2, 0.1
_SEED = 1797
_COUNT = 1797

_README = """\
Handwritten digits, {size} x {size} PNG, 10 classes, 1797 images in train, val and test.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998, https://doi.org/10.24432/C50P49, licence CC BY 4.0; its test part, as scikit-learn ships
it in sklearn.datasets.load_digits. Enlarged from 8 x 8 (bicubic) and split by class, about 70/10/20, by
resnext_core.data.demo.
"""


def write_digits(folder: str | Path, size: int = 32) -> Path:
    """Write the digits under `folder` as train, val and test folders of class folders; return `folder`.

    The split is by class and always the same. The folder appears complete or not at all; a complete one of
    this `size` is kept. Raises UsageError when scikit-learn is missing or `folder` holds something else, and
    DataError when it cannot be written.
    """
    folder = Path(folder)
    if _is_complete(folder, size):
        return folder
    if folder.is_symlink():  # a link to an empty folder: that folder is filled, and the link stays
        write_digits(Path(os.path.realpath(folder)), size)
        return folder
    digits = _load_digits()
    try:
        make_folder(folder.parent)
        with Scratch("digits", folder.parent) as temporary:
            temporary.chmod(0o755)
            _write(temporary, digits.images, digits.target, size)
            try:
                os.rename(temporary, folder)
            except OSError:  # another process may have been faster
                if not _is_complete(folder, size):
                    raise
    except OSError as error:
        raise DataError(f"cannot write {folder}: {reason(error)}; choose another folder") from error
    return folder


def _load_digits() -> Any:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UsageError(
            "the demo digits need scikit-learn: pip install 'resnext-core[demo]', or give --data DIR"
        ) from None
    return load_digits()


def _is_complete(folder: Path, size: int) -> bool:
    """True when `folder` holds these digits; False when it is missing or empty; else UsageError."""
    if not folder.exists():
        return False
    if folder.is_dir():
        if not any(folder.iterdir()):
            return False
        readme = folder / "README.txt"
        if readme.is_file() and readme.read_text(errors="replace") == _README.format(size=size):
            images = sum(1 for _ in folder.glob("*/*/*.png"))
            if images == _COUNT:
                return True
            raise UsageError(f"{folder} has {images} of the {_COUNT} digits; remove it to write it again")
    raise UsageError(f"{folder} holds something other than {size} x {size} digits; choose another folder")


def _write(folder: Path, images: NDArray[Any], labels: NDArray[Any], size: int) -> None:
    for label in range(10):
        members = np.flatnonzero(labels == label)
        members = members[epoch_permutation(len(members), _SEED, label)]
        test, val = round(_TEST * len(members)), round(_VAL * len(members))
        parts = {"test": members[:test], "val": members[test : test + val], "train": members[test + val :]}
        for split, samples in parts.items():
            target = folder / split / str(label)
            target.mkdir(parents=True)
            for sample in samples.tolist():
                gray = np.rint(images[sample] * (255 / 16)).astype(np.uint8)
                image = Image.fromarray(gray).resize((size, size), Image.Resampling.BICUBIC)
                image.convert("RGB").save(target / f"{sample:04}.png")
    (folder / "README.txt").write_text(_README.format(size=size))
