"""Records are stored and read again without a loss, whatever version of this program wrote them."""

from __future__ import annotations

import json

import pytest

from resnext_core.runs.records import (
    KINDS,
    BadImage,
    End,
    Eval,
    Fit,
    Nonfinite,
    Note,
    Record,
    Resume,
    Saved,
    Start,
    Train,
    Unknown,
    decode,
    encode,
    from_dict,
)

#: Lines of version 0.1.0, one of each kind, and what they are.
LINES: dict[str, Record] = {
    '{"kind": "start", "step": 0, "decoder": null, "time": 1764260000.123}': Start(time=1764260000.123),
    '{"kind": "resume", "step": 12, "decoder": "pillow", "time": 1.5}': Resume(
        step=12, decoder="pillow", time=1.5
    ),
    (
        '{"kind": "train", "step": 20, "epoch": 2, "loss": 1.75, "lr": 0.05, "images": 160, "seconds": 2.5, '
        '"wait_s": 0.25, "compute_s": 2.0, "copy_s": null, "teacher_s": null, "images_per_s": 64.0, '
        '"nonfinite_steps": 1, "overflow_steps": 3, "loss_scale": 1024.0, "time": 2}'
    ): Train(
        step=20, epoch=2, loss=1.75, lr=0.05, images=160, seconds=2.5, wait_s=0.25, compute_s=2.0, images_per_s=64.0,
        nonfinite_steps=1, overflow_steps=3, loss_scale=1024.0, time=2,
    ),
    '{"kind": "nonfinite", "step": 9, "epoch": 2, "loss": "nan", "lr": 0.1, "path": null, "time": 1.0}': Nonfinite(
        step=9, epoch=2, loss="nan", lr=0.1, path=None, time=1.0
    ),
    (
        '{"kind": "bad_image", "step": 1, "split": "train", "index": 7, "path": "data/\\u00e4.jpg", '
        '"reason": "cut off", "count": 1, "time": 1.0}'
    ): BadImage(step=1, split="train", index=7, path="data/ä.jpg", reason="cut off", count=1, time=1.0),
    (
        '{"kind": "eval", "step": 20, "epoch": 2, "split": "val", "top1": 0.5, "top5": 1.0, "expected": 24, '
        '"scored": 23, "failed": 1, "seconds": 0.125, "best": true, "recall": [0.5, null, 1.0], '
        '"loss": 1.5, "time": 1.0}'
    ): Eval(
        step=20, epoch=2, split="val", metrics={"top1": 0.5, "top5": 1.0}, expected=24, scored=23, failed=1,
        seconds=0.125, best=True, recall=[0.5, None, 1.0], loss=1.5, time=1.0,
    ),
    (
        '{"kind": "checkpoint", "step": 20, "epoch": 2, "seconds": 0.5, "blocked_s": 0.25, "path": "step-00000020", '
        '"bytes": 1024, "time": 1.0}'
    ): Saved(step=20, epoch=2, seconds=0.5, blocked_s=0.25, path="step-00000020", bytes=1024, time=1.0),
    (
        '{"kind": "fit", "step": 12, "total": 90, "epochs": 3.75, "minutes": 2.0, "trained_s": 14.5, "step_s": 1.0, '
        '"eval_s": 2.5, "time": 1.0}'
    ): Fit(step=12, total=90, epochs=3.75, minutes=2.0, trained_s=14.5, step_s=1.0, eval_s=2.5, time=1.0),
    '{"kind": "end", "step": 20, "seconds": 7.5, "reason": null, "time": 1.0}': End(
        step=20, seconds=7.5, time=1.0
    ),
    '{"kind": "note", "step": 3, "text": "a line", "time": 1.0}': Note(step=3, text="a line", time=1.0),
}  # fmt: skip


def test_there_is_a_line_of_every_kind() -> None:
    assert {record.kind for record in LINES.values()} == set(KINDS)


@pytest.mark.parametrize("line", LINES, ids=lambda line: json.loads(line)["kind"])
def test_lines_of_this_version(line: str) -> None:
    """They are read into the record, and the record is stored as the very same line."""
    assert decode(line) == LINES[line]
    assert encode(LINES[line]) == line + "\n"


@pytest.mark.parametrize("line", LINES, ids=lambda line: json.loads(line)["kind"])
def test_fields_of_a_newer_version_are_kept(line: str) -> None:
    newer = json.loads(line) | {"device": {"name": "x", "metrics": [1]}, "metrics": {"a": 1}, "words": "w"}
    record = from_dict(newer)
    assert type(record) is type(LINES[line])
    assert json.loads(encode(record)) == newer


@pytest.mark.parametrize(
    ("kind", "absent"),
    [
        ("train", "copy_s"),
        ("train", "teacher_s"),
        ("train", "nonfinite_steps"),
        ("checkpoint", "blocked_s"),
        ("start", "decoder"),
    ],
)
def test_fields_that_an_older_version_did_not_write(kind: str, absent: str) -> None:
    older = next(json.loads(line) for line in LINES if json.loads(line)["kind"] == kind)
    del older[absent]
    record = from_dict(older)
    assert isinstance(record, KINDS[kind])
    assert older.items() <= record.to_dict().items()


@pytest.mark.parametrize(
    "line",
    [
        '{"kind": "gradient", "step": 4, "norm": 2.5, "time": 1.0}', '{"kind": "train", "step": 4}', "{}",
        '{"kind": ["train"]}', '{"kind": "end", "step": "4", "seconds": 1.0}', '{"kind": "end", "seconds": true}',
        '{"kind": "note", "step": 1, "text": null}', '{"kind": "eval", "step": 1, "top1": 0.5, "time": "late"}',
    ],
)  # fmt: skip
def test_what_cannot_be_interpreted_is_kept_as_it_is(line: str) -> None:
    record = decode(line)
    assert isinstance(record, Unknown)
    assert encode(record) == line + "\n"
    assert record.step == (4 if '"step": 4' in line else 1 if '"step": 1' in line else 0)


@pytest.mark.parametrize(
    "line", ["", "{", '{"kind": "train", "st', "[1]", "7", "null", '"start"', "[" * 100_000]
)
def test_what_is_no_record(line: str) -> None:
    assert decode(line) is None


def test_numbers_that_json_has_no_form_for_are_read_too() -> None:
    line = next(line for line in LINES if '"train"' in line).replace("1.75", "NaN")
    record = decode(line)
    assert isinstance(record, Train)
    assert record.loss != record.loss
    assert encode(record) == line + "\n"
