"""Places: URLs are told from paths, and joined and named as paths are."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from resnext_core.errors import shown
from resnext_core.files import Url, absolute, is_url, place


def test_urls_are_told_from_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(map(is_url, ("s3://bucket", "https://x.org/a", "memory://a", "hf://datasets/a/b", "S3://b")))
    assert not any(map(is_url, ("/data", "data", "c://x", "s3:/bucket", "s3://", "file:///x", "a/b://c", "")))
    assert place("s3://bucket/x/") == Url("s3://bucket/x")
    assert place("some/where") == Path("some/where")
    assert place("file:///some/where") == Path("/some/where")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd:").mkdir()
    (tmp_path / "odd:" / "x").touch()
    assert place("odd://x") == Path("odd://x"), "it is there, so it is a path"
    assert absolute("a/../b") == str(tmp_path / "b")
    assert absolute("s3://bucket/a") == absolute(Url("s3://bucket/a/")) == "s3://bucket/a"


def test_a_url_is_joined_and_named_as_a_path_is() -> None:
    url = Url("s3://bucket/train")
    assert url / "cat/1.jpg" == Url("s3://bucket/train/cat/1.jpg")
    assert url / "/cat" == Url("s3://bucket/train/cat")
    assert url / "gs://other/x" == Url("gs://other/x")
    assert [(url / "cat/1.jpg").name, (url / "cat/1.jpg").suffix, url.suffix] == ["1.jpg", ".jpg", ""]
    assert (url / "cat").parent == url
    assert url.parent == Url("s3://bucket")
    assert url.parent.parent == Url("s3://bucket")
    assert Url("s3://bucket").name == ""
    assert Url("HTTPS://X.org/a").scheme == "https"
    assert str(url) == os.fspath(url) == shown(url) == "s3://bucket/train"
    assert pickle.loads(pickle.dumps(url)) == url
    assert sorted([url / "b", url / "a"]) == [url / "a", url / "b"]
    assert len({url, Url("s3://bucket/train/")}) == 1
    assert url != "s3://bucket/train"
