"""The backend's record: its probe, its options, and that looking at it imports nothing heavy."""

from __future__ import annotations

from importlib import metadata, util

import pytest
from resnext_mindspore import plugin
from resnext_mindspore.options import MindsporeOptions

from resnext_core.config import Layer, load_config
from resnext_core.errors import UsageError
from resnext_core.testing.processes import imported_by


def test_record_imports_no_framework() -> None:
    code = (
        "from resnext_mindspore import plugin\n"
        "record = next(iter(plugin.resnext_backends())); plugin.probe(); assert record.id == 'mindspore'"
    )
    assert imported_by(code, ["mindspore", "numpy", "torch"]) == []


def test_entry_point_names_the_plugin() -> None:
    entries = [e for e in metadata.entry_points(group="resnext") if e.name == "mindspore"]
    assert [e.value for e in entries] == ["resnext_mindspore.plugin"]


def test_probe_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    missing = plugin.probe()
    assert missing.state == "missing"
    assert missing.reason == "MindSpore is not installed: pip install 'resnext-core[mindspore]'"


@pytest.mark.parametrize(("version", "fits"), [("1.26.4", True), ("2.0.0", False), ("2.4.1", False)])
def test_probe_refuses_numpy_2(monkeypatch: pytest.MonkeyPatch, version: str, fits: bool) -> None:
    monkeypatch.setattr(util, "find_spec", lambda name: object())
    monkeypatch.setattr(metadata, "version", lambda name: version)
    answer = plugin.probe()
    assert answer.state == ("ready" if fits else "missing")
    assert fits or (version in answer.reason and "numpy<2" in answer.reason)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"device": "tpu"}, "mindspore.device"),
        ({"mode": "eager"}, "mindspore.mode"),
        ({"threads": 0}, "mindspore.threads"),
        ({"threads": "two"}, "mindspore.threads"),
        ({"cluster_timeout": 0}, "cluster_timeout"),
        ({"thread": 2}, "did you mean 'threads'"),
    ],
)
def test_wrong_options_are_refused(values: dict[str, object], word: str) -> None:
    layer = Layer(source="test", values={"mindspore": values})
    with pytest.raises(UsageError, match=word):
        load_config([layer], {"mindspore": MindsporeOptions})
