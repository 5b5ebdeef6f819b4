"""The built-in digits: complete or absent, always the same, never over something else."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnext_core.config import DataConfig
from resnext_core.data.decode import read_image
from resnext_core.data.demo import write_digits
from resnext_core.data.index import find_splits, open_index
from resnext_core.errors import DataError, UsageError

datasets = pytest.importorskip("sklearn.datasets")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("demo") / "digits")


def test_splits_are_stratified_and_share_nothing(digits: Path) -> None:
    splits = find_splits(digits, DataConfig(), need=("train", "val", "test"))
    indexes = {name: open_index(path) for name, path in splits.items()}
    names = {name: {p.rsplit("/")[-1] for p in index.paths} for name, index in indexes.items()}
    assert {name: len(index) for name, index in indexes.items()} == {"train": 1259, "val": 179, "test": 359}
    assert len(names["train"] | names["val"] | names["test"]) == 1797
    for name, index in indexes.items():
        assert index.classes == tuple("0123456789")
        counts = np.bincount(index.labels, minlength=10)
        assert counts.max() - counts.min() <= 7, name
    assert indexes["test"].paths[:3] == ("0/0036.png", "0/0072.png", "0/0126.png")  # the same for ever


def test_pictures_show_the_digits(digits: Path) -> None:
    source = datasets.load_digits()
    for path in sorted(digits.glob("test/*/*.png"))[::60]:
        image = read_image(path)
        sample = int(path.stem)
        assert image.size == (32, 32)
        assert source.target[sample] == int(path.parent.name)
        small = np.asarray(image.convert("L").reduce(4)) / 255 * 16
        assert np.corrcoef(small.ravel(), source.images[sample].ravel())[0, 1] > 0.97
    assert "CC BY 4.0" in (digits / "README.txt").read_text()


def test_a_complete_folder_is_kept(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without reading the digits or writing one again."""
    monkeypatch.setattr("resnext_core.data.demo._load_digits", lambda: pytest.fail("read again"))
    before = (digits / "README.txt").stat().st_mtime_ns
    assert write_digits(digits) == digits
    assert (digits / "README.txt").stat().st_mtime_ns == before


def test_other_content_is_refused(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds something other than 16 x 16 digits; choose another folder"):
        write_digits(digits, size=16)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="holds something other"):
        write_digits(tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="holds something other"):
        write_digits(tmp_path / "file")


def test_damage_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    folder.mkdir()  # an empty folder may be filled
    write_digits(folder, size=8)
    next(folder.glob("val/3/*.png")).unlink()
    with pytest.raises(UsageError, match="has 1796 of the 1797 digits; remove it"):
        write_digits(folder, size=8)


def test_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", fail)
    with pytest.raises(DataError, match=r"cannot write .*No space left"):
        write_digits(tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []


def test_without_scikit_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UsageError, match=r"pip install 'resnext-core\[demo\]'"):
        write_digits(tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []
