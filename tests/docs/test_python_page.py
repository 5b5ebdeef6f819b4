"""The Python on docs/python.md and in the README runs as it stands."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from documents import DOCS, ROOT, blocks
from PIL import Image

import resnext_core as rx
from resnext_core import plugins
from resnext_core.plugins import loading

TINY = {"model.variant": "resnext_tiny", "model.image_size": 8, "data.workers": 0}


@pytest.fixture(autouse=True)
def core_and_onnx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Work in a new folder, with core's own backend and the ONNX one."""
    pytest.importorskip("resnext_onnx.predictor")
    pytest.importorskip("onnxruntime.capi")
    kept = [
        e for e in loading.metadata.entry_points(group="resnext")
        if e.dist and e.dist.name in (plugins.CORE, "resnext-onnx")
    ]  # fmt: skip
    monkeypatch.setattr(loading.metadata, "entry_points", lambda **_: kept)
    plugins.load_plugins.cache_clear()
    monkeypatch.chdir(tmp_path)
    yield
    plugins.load_plugins.cache_clear()


def python_of(page: Path) -> list[str]:
    return [block.text for block in blocks(page.read_text(encoding="utf-8")) if block.language == "python"]


def test_every_block_of_the_page_runs() -> None:
    found = python_of(DOCS / "python.md")
    assert len(found) >= 8
    names: dict[str, Any] = {"__name__": "a notebook"}
    for number, text in enumerate(found, 1):
        exec(compile(text, f"docs/python.md, block {number}", "exec"), names)
    assert Path(names["done"].report).is_file()


def test_the_blocks_on_benchmarking_run(capsys: pytest.CaptureFixture[str]) -> None:
    (text,) = python_of(DOCS / "benchmarking.md")
    exec(compile(text, "docs/benchmarking.md", "exec"), {})
    assert capsys.readouterr().out


def test_the_whole_job_in_the_readme(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (text,) = python_of(ROOT / "README.md")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("import")]
    assert len(lines) <= 10
    for job in ("train", "evaluate", "export", "load"):
        assert f"rx.{job}(" in text
    Path("photos").symlink_to(photos)
    with Image.open(photos / "val" / "ant" / "00.jpg") as image:
        image.save("photo.jpg")
    small = functools.partial(rx.train, epochs=1, batch_size=8, overrides=TINY)  # else it takes minutes
    monkeypatch.setattr(rx, "train", small)
    exec(compile(text, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert re.search(r"top-1 \d+\.\d\d %.* 23 of 23 images", out)
    assert "resnext_tiny.onnx: passed: 23 images" in out
    assert re.search(r"photo.jpg: \w+ [\d.]+ %, \w+ [\d.]+ %, \w+ [\d.]+ %", out)
