"""The program as people use it: results, counts, failures, wrong words, disks and signals."""

from __future__ import annotations

import csv
import json
import os
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpp_cases import Done, null_model
from images import class_tree, picture
from resnext_cpp_infer.options import CppInferOptions
from resnext_cpp_infer.predictor import StreamPredictor

from resnext_core.data.index import open_index
from resnext_core.data.loader import Loader
from resnext_core.interfaces import PredictRequest
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.ranks.collectives import SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_core.serving.evaluate import evaluate
from resnext_core.serving.metrics import softmax

Infer = Callable[..., Done]
SPEC = PreprocessSpec(size=24, resize=28)
CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """35 images of seven classes, three of them unreadable."""
    folder = class_tree(tmp_path_factory.mktemp("data"), per_class=5, side=40, classes=CLASSES)
    (folder / "ant" / "002.jpg").write_bytes(b"")
    (folder / "bee" / "001.jpg").write_text("no photograph")
    whole = (folder / "fox" / "004.jpg").read_bytes()
    (folder / "fox" / "004.jpg").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture
def model(tmp_path: Path) -> list[object]:
    return null_model(tmp_path, SPEC, CLASSES)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_counts_are_those_of_the_evaluation_in_core(
    infer: Infer, program: Path, model: list[object], data: Path, tmp_path: Path
) -> None:
    """The same model through core's evaluation and through the program."""
    done = infer(*model, "--data", data, "--summary", tmp_path / "s.json", "--output", tmp_path / "o.jsonl")
    assert done.code == 3, done
    summary = json.loads((tmp_path / "s.json").read_text())
    predictor = StreamPredictor(
        PredictRequest(path=tmp_path / "model.bin", rank=RankInfo(), options=CppInferOptions(engine="null"))
    )
    index = open_index(data)
    with Loader(index, SPEC, workers=0) as loader:
        expected = evaluate(
            predictor, loader, index, batch_size=4, rank=RankInfo(), collectives=SingleProcess()
        )
    predictor.close()
    for key in ("expected", "scored", "failed", "correct1", "correct5", "top1", "top5"):
        assert summary[key] == getattr(expected, key), key
    assert summary["top1_interval"] == pytest.approx(expected.top1_interval, abs=1e-12)
    assert (summary["expected"], summary["failed"]) == (35, 3)


def test_lines_are_in_order_and_say_what_is_asked(
    infer: Infer, model: list[object], data: Path, tmp_path: Path
) -> None:
    done = infer(*model, "--data", data, "--top", 2, "--logits", tmp_path / "l.npy")
    rows = lines(done.out)
    paths = sorted(map(str, data.rglob("*.jpg")))
    assert [row["path"] for row in rows] == paths
    logits = np.load(tmp_path / "l.npy")
    assert logits.shape == (35, 7)
    for row, values in zip(rows, logits, strict=True):
        assert row["label"] == CLASSES.index(Path(row["path"]).parent.name)
        if "error" in row:
            assert np.isnan(values).all()
            continue
        best = np.argsort(-values, kind="stable")[:2]
        assert [t["id"] for t in row["top"]] == best.tolist()
        assert [t["name"] for t in row["top"]] == [CLASSES[i] for i in best]
        assert [t["probability"] for t in row["top"]] == pytest.approx(
            softmax(values)[best].tolist(), abs=1e-6
        )
    errors = {Path(row["path"]).parent.name: row["error"] for row in rows if "error" in row}
    assert errors == {
        "ant": "the file is empty", "bee": "neither JPEG nor PNG; other formats are not supported",
        "fox": "the file is truncated",
    }  # fmt: skip


@pytest.mark.parametrize(("batch", "workers"), [(1, 1), (2, 3), (7, 2), (35, 4), (64, 1)])
def test_no_batch_and_no_number_of_threads_changes_a_bit(
    infer: Infer, model: list[object], data: Path, tmp_path: Path, batch: int, workers: int
) -> None:
    first = infer(*model, "--data", data, "--logits", tmp_path / "a.npy")
    again = infer(
        *model, "--data", data, "--logits", tmp_path / "b.npy", "--batch", batch, "--workers", workers
    )
    assert (first.code, first.out) == (again.code, again.out)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_csv(infer: Infer, tmp_path: Path) -> None:
    folder = tmp_path / 'odd, "names"'
    folder.mkdir()
    picture(30, 30).save(folder / "a,b.png")
    (folder / "broken.png").write_bytes(b"")
    words = null_model(tmp_path, SPEC, ('a "class"', "b,c"))
    infer(*words, "--data", folder, "--format", "csv", "--top", 9, "--output", tmp_path / "o.csv")
    with (tmp_path / "o.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows] == [str(folder / "a,b.png"), str(folder / "broken.png")]
    assert {rows[0]["name1"], rows[0]["name2"]} == {'a "class"', "b,c"}
    assert rows[1]["error"] == "the file is empty"


def test_names_that_are_no_text_are_written_as_python_does(infer: Infer, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    picture(30, 30).save(folder / "x.png")
    os.rename(folder / "x.png", os.fsencode(folder) + b"/\xff\xc3\xa9\n\x01.png")
    done = infer(*null_model(tmp_path, SPEC), "--data", folder)
    (row,) = lines(done.out)
    assert os.fsencode(row["path"]) == os.fsencode(folder) + b"/\xff\xc3\xa9\n\x01.png"


# -- labels --------------------------------------------------------------------------------------


def test_labels_from_lists_and_json(infer: Infer, model: list[object], data: Path, tmp_path: Path) -> None:
    paths = sorted(data.rglob("*.jpg"))
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in paths:
        (flat / f"{path.parent.name}_{path.name}").symlink_to(path)
    by_name = {p.name: p.name.split("_")[0] for p in flat.iterdir()}
    (tmp_path / "names.json").write_text(json.dumps(by_name))
    (tmp_path / "numbers.json").write_text(json.dumps({k: CLASSES.index(v) for k, v in by_name.items()}))
    (tmp_path / "list.txt").write_text(
        "# a list\n\n" + "".join(f"flat/{k}\t{v}\n" for k, v in by_name.items())
    )

    def labels(*words: object) -> list[int]:
        return [row["label"] for row in lines(infer(*model, *words).out)]

    expected = [CLASSES.index(name.split("_")[0]) for name in sorted(by_name)]
    assert labels("--data", flat, "--labels", tmp_path / "names.json") == expected
    assert labels("--data", flat, "--labels", tmp_path / "numbers.json") == expected
    assert labels("--data", tmp_path / "list.txt") == expected
    assert "label" not in lines(infer(*model, "--data", flat).out)[0]


# -- the ModelZoo's files ------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--modelzoo-layout", "--seed-layout"])
def test_the_modelzoos_layout(
    infer: Infer, model: list[object], data: Path, tmp_path: Path, flag: str
) -> None:
    """Also with the flag's spelling up to 0.1."""
    infer(*model, "--data", data / "elk", flag, tmp_path / "old", "--logits", tmp_path / "l.npy")
    files = sorted((tmp_path / "old" / "result_Files").iterdir())
    assert [f.name for f in files] == [f"{i:03}_0.bin" for i in range(5)]
    logits = np.load(tmp_path / "l.npy")
    assert [np.fromfile(f, np.float32).tolist() for f in files] == logits.tolist()
    text = (tmp_path / "old" / "time_Result" / "test_perform_static.txt").read_text()
    assert text.startswith("NN inference cost average time: ")
    assert text.rstrip().endswith("ms of infer_count 5")


# -- wrong words, broken things ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--modle", "m"], 2, "did you mean --model?"),
        (["--data", "{data}"], 2, "--model is missing"),
        (["--model", "m.onnx"], 2, "--data is missing"),
        (["--model"], 2, "--model needs a value"),
        (["--model", "m.onnx", "--data", "{data}"], 3, "no such model: m.onnx"),
        (["--model", "m.bin", "--data", "{data}"], 2, "no engine for 'm.bin'"),
        (["{null}", "--data", "nowhere"], 3, "there is no data at nowhere"),
        (["{null}", "--data", "{data}", "--batch", "0"], 2, "--batch must be an integer from 1"),
        (["{null}", "--data", "{data}", "--batch", "1x"], 2, "not '1x'"),
        (["{null}", "--data", "{data}", "--format", "xml"], 2, "--format must be jsonl or csv"),
        (["{null}", "--data", "{data}", "--stream"], 2, "--stream takes its images from standard input"),
        (["{null}", "--data", "{empty}"], 3, "has no images"),
        (["{null}", "--data", "{mixed}"], 3, "holds both images (x.png) and folders"),
        (["{null}", "--data", "{strange}"], 3, "the model has no class 'zebra'"),
        (["{null}", "--data", "{list}"], 3, "list.txt:2: expected 'path label'"),
        (["{null}", "--data", "{data}/elk", "--labels", "{json}"], 3, "has no label for"),
        (["{null}", "--data", "{data}", "--output", "/proc/nowhere/x"], 3, "cannot write /proc/nowhere/x"),
        (["{null}", "--data", "{data}", "--summary", "/proc/nowhere/x"], 3, "cannot write /proc/nowhere/x"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_one_line_and_the_right_code(
    infer: Infer, model: list[object], data: Path, tmp_path: Path, words: list[str], code: int, says: str
) -> None:
    for name in ("empty", "mixed/ant", "strange/zebra"):
        (tmp_path / name).mkdir(parents=True)
    picture(9, 9).save(tmp_path / "mixed" / "x.png")
    (tmp_path / "list.txt").write_text("x.png ant\nnothing\n")
    (tmp_path / "labels.json").write_text('{"other.jpg": 1}')
    places = {k: tmp_path / k for k in ("empty", "mixed", "strange")}
    places |= {"data": data, "list": tmp_path / "list.txt", "json": tmp_path / "labels.json"}
    given = [x for word in words for x in (model if word == "{null}" else [word.format(**places)])]
    done = infer(*given, cwd=tmp_path)
    assert done.code == code, done
    errors = [line for line in done.err.splitlines() if line.startswith("resnext-infer: ")]
    assert len(errors) == 1
    assert says in errors[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m["preprocess"].pop("resize"), "'resize' is missing"),
        (lambda m: m["preprocess"].update(mode="stretch"), "preprocess mode must be shorter-side or squash"),
        (lambda m: m["preprocess"].update(size=25), "image_size is not the size of preprocess"),
        (lambda m: m["preprocess"].update(resize=3), "resize is below its size"),
        (lambda m: m["preprocess"].update(std=[1, 2, 0]), "std must be above 0"),
        (lambda m: m["preprocess"].update(gamma=2), "'gamma' is unknown; the file is from a newer release"),
        (lambda m: m["preprocess"].update(size=1.5), "must be an integer"),
        (lambda m: m["classes"].pop(), "6 class names for 7 classes"),
        (lambda m: m.pop("model"), "'model' is missing"),
        (lambda m: m.update(format=2), "its format is 2, this program reads 1"),
    ],
)
def test_broken_manifests_are_named(
    infer: Infer, model: list[object], data: Path, tmp_path: Path, change: Callable[[Any], Any], says: str
) -> None:
    path = tmp_path / "model.bin.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    done = infer(*model, "--data", data)
    assert done.code == 3
    assert f"{path} has a broken manifest: " in done.err
    assert says in done.err


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"a": 1} x', '{"a": 01}', '"\\ud800"', "[" * 100, '{"a": 1, "a": 2}']
)
def test_what_is_no_json_is_one_line(
    infer: Infer, model: list[object], data: Path, tmp_path: Path, text: str
) -> None:
    (tmp_path / "model.bin.json").write_text(text)
    done = infer(*model, "--data", data)
    assert (done.code, done.err.count("\n")) == (3, 1), done


def test_a_full_disk_keeps_what_is_there_and_marks_it(infer: Infer, model: list[object], data: Path) -> None:
    for flag in ("--output", "--logits", "--summary"):
        Path("/dev/shm/full.partial").unlink(missing_ok=True)
        os.symlink("/dev/full", "/dev/shm/full.partial")
        try:
            done = infer(*model, "--data", data, flag, "/dev/shm/full")
        finally:
            Path("/dev/shm/full.partial").unlink()
        assert done.code == 3
        assert "No space left on device; the output so far is in /dev/shm/full.partial" in done.err
        assert not Path("/dev/shm/full").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_after_the_batch(
    program: Path, model: list[object], tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    picture(900, 900).save(folder / "0.png", compress_level=1)
    for i in range(1, 600):
        (folder / f"{i}.png").symlink_to("0.png")
    words = [program, *map(str, model), "--data", folder, "--batch", "2", "--output", tmp_path / "o.jsonl"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "o.jsonl.partial").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 75
    assert err.startswith("resnext-infer: stopped after ")
    assert not (tmp_path / "o.jsonl").exists()


# -- frames --------------------------------------------------------------------------------------


def converse(program: Path, model: list[object], data: bytes) -> tuple[int, bytes, str]:
    done = subprocess.run(
        [program, *map(str, model), "--stream"], input=data, capture_output=True, timeout=300, check=False
    )
    return done.returncode, done.stdout, done.stderr.decode()


def means(row: bytes) -> list[float]:
    values = np.frombuffer(row, np.uint8).astype(np.float64)
    return [float(np.float32(values[c::7].mean())) for c in range(7)]


def frame(kind: bytes, payload: bytes) -> bytes:
    return kind + struct.pack("<I", len(payload)) + payload


def test_frames_that_do_not_fit_are_answered_and_those_that_are_none_end_it(
    program: Path, model: list[object]
) -> None:
    image = bytes(range(256)) * 7
    row = image[: 24 * 24 * 3]
    good = frame(b"I", struct.pack("<I", 1) + row)
    code, out, _ = converse(program, model, frame(b"I", struct.pack("<I", 2) + row) + good + b"Q\0\0\0\0")
    assert code == 0
    length = struct.unpack("<I", out[1:5])[0]
    answers = out[5 + length :]
    assert out[:1] == b"M"
    assert answers[:1] == b"E"
    assert b"does not hold whole images" in answers
    assert answers.endswith(struct.pack("<7f", *means(row)))
    assert converse(program, model, b"X\0\0\0\0")[0] == 3
    assert converse(program, model, good[:-5])[0] == 3
    code, _, err = converse(program, model, frame(b"T", struct.pack("<I", 1) + row * 4))
    assert code == 0, err
