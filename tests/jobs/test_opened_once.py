"""A job opens its data, its pretrained weights and its configuration once, and hands them on."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine

from resnext_core.config import load_config
from resnext_core.convert.reading import read_foreign
from resnext_core.data.index import open_index
from resnext_core.runs.checkpoint import load_checkpoint


@pytest.fixture
def calls(core_only: None, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the calls of what opens something, by function and the file or folder; whoever calls."""
    for command in ("run", "train", "eval"):
        __import__(f"resnext_core.cli.{command}")
    seen: Counter[str] = Counter()

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            where = Path(args[0]).name if isinstance(args[0], (str, Path)) else ""
            seen[f"{function.__name__} {where}".strip()] += 1
            return function(*args, **named)

        return call

    for function in (open_index, read_foreign, load_checkpoint, load_config):
        wrapped = counting(function)
        for name, module in list(sys.modules.items()):
            if name.startswith("resnext_core.") and vars(module).get(function.__name__) is function:
                monkeypatch.setattr(module, function.__name__, wrapped)
    return seen


def test_a_whole_job_opens_everything_once(
    calls: Counter[str], cli: CommandLine, photos: Path, recipe: Path, finished_run: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(photos, tmp_path / "photos")
    shutil.copytree(photos / "val", data / "test")
    start = next((finished_run / "checkpoints").glob("step-*"))
    words = ["run", "--recipe", recipe, "--data", data, "--output", tmp_path / "runs", "--name", "run"]
    words += ["--epochs", 1, "--pretrained", start, "--set", "model.pretrained_momentum=true"]
    cli.ok(*words)
    assert calls == {
        "load_config": 1,
        "open_index train": 1,
        "open_index val": 1,
        "open_index test": 1,
        "read_foreign weights.safetensors": 1,
        f"load_checkpoint {start.name}": 1,  # its momentum
    }


def test_a_training_opens_everything_once(
    calls: Counter[str], cli: CommandLine, photos: Path, recipe: Path, weights_file: Path, tmp_path: Path
) -> None:
    words = ["train", "--recipe", recipe, "--data", photos, "--output", tmp_path, "--epochs", 1]
    cli.ok(*words, "--pretrained", weights_file)
    assert calls["load_config"] == calls["open_index train"] == calls["open_index val"] == 1
    assert calls["read_foreign tiny.safetensors"] == 1
