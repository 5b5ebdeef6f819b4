"""What a message quotes of a user's value: one line, printable, short, whatever the value is."""

from __future__ import annotations

import errno
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from resnext_core.errors import MOST_SHOWN, counted, one_line, quoted, reason, shown, suggest


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("größer 日本", "größer 日本"),
        ("a\x1b[31mb\x07", r"a\x1b[31mb\x07"),
        ("two\nlines\r\n", r"two\nlines\r\n"),
        ("caf\udce9", r"caf\xe9"),
        ("\ud800", r"\ud800"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        (b"caf\xe9", r"caf\xe9"),
        (Path("a\tb"), r"a\tb"),
        (0, "0"),
        (True, "True"),
        (None, "None"),
        (float("nan"), "nan"),
        ([1, "a"], "[1, 'a']"),
        ({"a": [1]}, "{'a': [1]}"),
    ],
)
def test_a_value_is_shown_in_one_printable_line(value: Any, text: str) -> None:
    assert shown(value) == text
    assert quoted(value) == (f"'{text}'" if isinstance(value, (str, bytes, Path)) else text)


def test_long_values_are_cut() -> None:
    assert shown("x" * MOST_SHOWN) == "x" * MOST_SHOWN
    assert shown("x" * 81) == "x" * MOST_SHOWN + "..."
    assert len(shown("\x1b" * 1000)) == MOST_SHOWN + 3
    assert shown("x" * 1000, None) == "x" * 1000
    assert shown(10**300_000) == "an integer of 996579 bits"
    assert len(shown([10**300_000] * 1000)) <= MOST_SHOWN + 3


def test_a_value_that_refers_to_itself_a_billion_times_costs_little() -> None:
    bomb: Any = ["lol"] * 10
    for _ in range(9):
        bomb = [bomb] * 10
    tracemalloc.start()
    text = shown(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(text) <= MOST_SHOWN + 3
    assert peak < 1 << 20


def test_a_suggestion_is_bounded_too() -> None:
    assert suggest("trian", ["train", "eval"]) == "; did you mean 'train'?"
    assert suggest("x" * 100_000, ["train", "eval"]) == "; known: eval, train"
    many = suggest("?", [f"class {i}" for i in range(100_000)])
    assert many.endswith("(100000 in all)")
    assert len(many) < 1000


def test_an_error_in_one_line() -> None:
    assert one_line(ValueError("first\n  second\tthird")) == "first second third"
    assert one_line(ValueError("a long message"), 6) == "a long"
    assert one_line(TimeoutError()) == "TimeoutError"


def test_the_reason_of_an_os_error_leaves_out_the_file_name() -> None:
    assert (
        reason(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "x.txt"))
        == "No such file or directory"
    )
    assert reason(OSError("no number\nhere")) == "no number here"
    assert reason(ValueError("embedded null byte")) == "embedded null byte"


def test_one_thing_is_counted_in_the_singular() -> None:
    assert [counted(n, "image") for n in (0, 1, 2, 1_234_567)] == [
        "0 images",
        "1 image",
        "2 images",
        "1234567 images",
    ]
    assert [counted(n, "class", "classes") for n in (1, 10)] == ["1 class", "10 classes"]
    assert [counted(n, "epoch") for n in (1.0, 0.5)] == ["1 epoch", "0.5 epochs"]
