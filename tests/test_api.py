"""The Python API: imported when it is used, the same results as the command line, and its own ways to go wrong."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import CLASSES, CommandLine, environment
from PIL import Image

import resnext_core as rx
from resnext_core.jobs.infer import Prediction
from resnext_core.jobs.train import TrainResult
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.records import End, Eval, Opened, Record, Train

BARE = """
import sys
before = set(sys.modules)
import resnext_core
print(*sorted(set(sys.modules) - before))
"""


def test_the_import_is_light() -> None:
    """In a fresh process nothing but the package itself is imported, not even a module of the standard library."""
    done = subprocess.run(
        [sys.executable, "-c", BARE], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["resnext_core"]


def test_every_public_name_is_there() -> None:
    assert set(rx.__all__) <= set(dir(rx))
    for name in rx.__all__:
        assert getattr(rx, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        rx.trian  # noqa: B018


@pytest.fixture
def start(core_only: None, photos: Path, recipe: Path, tmp_path: Path) -> Callable[..., TrainResult]:
    """Train on `photos` by `recipe`, without printing."""

    def train(**more: Any) -> TrainResult:
        arguments = {"recipe": recipe, "output": tmp_path, "name": "run", "progress": lambda record: None}
        return rx.train(photos, **(arguments | more))

    return train


def test_training_is_that_of_the_command_line(
    start: Callable[..., TrainResult],
    cli: CommandLine,
    photos: Path,
    recipe: Path,
    finished_run: Path,
    tmp_path: Path,
) -> None:
    records: list[Record] = []
    result = start(progress=records.append)
    assert Path(result) == result.run == tmp_path / "run"
    kinds = [type(record) for record in records]
    assert kinds[0] is Opened
    assert kinds[-1] is End
    assert {Train, Eval} < set(kinds)
    theirs = RunFolder(finished_run)

    def losses(run: RunFolder) -> list[float | None]:
        return [record.loss for record in run.read_records() if isinstance(record, Train)]

    ours = RunFolder(result.run)
    assert losses(ours) == losses(theirs)
    assert "epoch   2  val top-1" in ours.log.read_text()
    made = ours.read_result("run")
    assert made["environment"]["command"].startswith(f"resnext_core.train(recipe='{recipe}'")

    shown = cli.ok("eval", "--weights", result.run, "--set", "data.workers=0", "--json").json()
    evaluation = rx.evaluate(result, overrides={"data.workers": 0}, progress=lambda record: None)
    varies = {"seconds", "images_per_s"}
    assert {k: v for k, v in evaluation.to_dict().items() if k not in varies} == {
        k: v for k, v in shown.items() if k not in varies
    }
    assert evaluation.top1 == result.metrics["top1"]
    assert json.loads(json.dumps(evaluation.to_dict()))["weights"] == str(result.weights)


def test_without_progress_lines_are_printed(
    start: Callable[..., TrainResult], capsys: pytest.CaptureFixture[str]
) -> None:
    result = start(progress=None, epochs=1)
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("training resnext_tiny on backend reference: 48 images")
    assert out[-1].startswith("epoch   1  val top-1")
    log = [line.split(" ", 2)[2] for line in RunFolder(result.run).log.read_text().splitlines()]
    assert log == out


def test_a_thread_trains_and_an_error_of_progress_ends_it_saved(start: Callable[..., TrainResult]) -> None:
    """A notebook's callback may fail, and may run elsewhere than in the main thread, where no signal is handled."""

    def stop(record: Record) -> None:
        if isinstance(record, Train) and record.step == 3:
            raise RuntimeError("enough")

    caught: list[BaseException] = []

    def work() -> None:
        try:
            start(progress=stop)
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=300)
    assert [str(error) for error in caught] == ["enough"]


def test_an_interrupted_training_is_resumed(start: Callable[..., TrainResult], tmp_path: Path) -> None:
    def interrupt(record: Record) -> None:
        if isinstance(record, Train) and record.step == 3:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(rx.Interrupted, match="stopped after step"):
        start(progress=interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    result = rx.train(resume=tmp_path / "run", progress=lambda record: None)
    steps = [record.step for record in RunFolder(result.run).read_records() if isinstance(record, Train)]
    assert steps == list(range(1, 13))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            {"overrides": {"optimizer.rl": 0.1}},
            "overrides: optimizer.rl=0.1: unknown config key 'optimizer.rl'",
        ),
        ({"overrides": {"lr": 0.1}}, "overrides are {'section.key': value}, not 'lr'"),
        ({"overrides": {"optimizer.lr": object()}}, "overrides: optimizer.lr cannot be object"),
        ({"epochs": "two"}, "epochs='two': train.epochs: must be an integer, not 'two'"),
        ({"epochs": 0}, "train.epochs"),
        ({"devices": 0}, "devices must be an integer from 1, not 0"),
        ({"backend": "nosuch"}, "unknown backend 'nosuch'"),
        ({"pretrained": 7}, "a path or a result is needed, not int"),
        ({"recipe": "nosuch"}, "unknown recipe 'nosuch'"),
    ],
)
def test_wrong_arguments(
    start: Callable[..., TrainResult], tmp_path: Path, arguments: Any, says: str
) -> None:
    with pytest.raises(rx.UsageError) as caught:
        start(**arguments)
    assert says in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_predict_takes_images_in_every_form(core_only: None, weights_file: Path, photos: Path) -> None:
    path = photos / "val" / "ant" / "01.png"
    pixels = np.asarray(Image.open(path).convert("RGB"))
    with rx.load(weights_file, batch_size=2) as model:
        assert model.classes == CLASSES
        one = model.predict(path)
        assert isinstance(one, Prediction)
        assert one.path == str(path)
        assert len(one.top) == 5
        assert one.logits is not None
        assert one.top[0].id == int(one.logits.argmax())
        forms: list[Any] = [str(path), Image.open(path), pixels, pixels[:, ::-1][:, ::-1]]
        stacked = model.predict(np.stack([pixels] * 3))
        assert len(stacked) == 3
        for found in [*model.predict(forms, top=2), *stacked, model.predict(pixels)]:
            assert [guess.id for guess in found.top[:2]] == [guess.id for guess in one.top[:2]]
            np.testing.assert_allclose(found.logits, one.logits, rtol=1e-5)  # of another batch
        assert [p.path for p in model.predict(photos / "val" / "ant")] == sorted(
            map(str, (photos / "val" / "ant").iterdir())
        )
        assert model.predict([]) == []
        assert model.logits(forms).shape == (4, 6)
        assert model.logits([]).shape == (0, 6)
        transparent = Image.open(path).convert("RGBA")
        transparent.putalpha(3)
        assert model.predict(transparent).top == one.top, "alpha is dropped, as in a file"
    with pytest.raises(rx.UsageError, match="the model is closed"):
        model.predict(path)
    model.close()


def test_files_of_a_folder_that_are_not_images_are_counted(
    core_only: None, weights_file: Path, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(photos / "val" / "ant", folder)
    (folder / "notes.txt").write_text("not an image")
    with rx.load(weights_file) as model, pytest.warns(UserWarning, match=r"1 file .*\.txt"):
        found = model.predict(folder)
    assert len(found) == len(list((photos / "val" / "ant").iterdir()))


def test_predictions_are_those_of_the_command_line(
    cli: CommandLine, weights_file: Path, photos: Path, tmp_path: Path
) -> None:
    folder = photos / "val" / "bee"
    words = ["infer", "--weights", weights_file, folder, "--logits", tmp_path / "logits.npy"]
    lines = cli.ok(*words, "--set", "data.workers=0").out.splitlines()
    with rx.load(weights_file) as model:
        assert [p.to_dict() for p in model.predict(folder)] == [json.loads(line) for line in lines]
        np.testing.assert_array_equal(model.logits(folder), np.load(tmp_path / "logits.npy"))


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (
            np.zeros((4, 4, 3), np.float32),
            r"an array must be uint8 \(H, W, 3\) or \(N, H, W, 3\), not float32",
        ),
        (np.zeros((4, 4), np.uint8), "an array must be uint8"),
        (np.zeros((2, 4, 4, 1), np.uint8), "an array must be uint8"),
        (Image.new("F", (4, 4)), "a Pillow image of mode F has more than 8 bits"),
        (7, "images are files, Pillow images or uint8 arrays, not int"),
        ([7], "an image is a file, a Pillow image or a uint8 array, not int"),
    ],
)
def test_what_is_no_image(core_only: None, weights_file: Path, image: Any, says: str) -> None:
    with rx.load(weights_file) as model, pytest.raises(rx.UsageError, match=says):
        model.predict(image)


def test_a_file_that_cannot_be_read_is_an_error_or_reported(
    core_only: None, weights_file: Path, photos: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"junk")
    good = photos / "val" / "ant" / "00.jpg"
    with rx.load(weights_file) as model:
        with pytest.raises(rx.DataError, match=r"cannot read image .*bad.jpg"):
            model.predict([good, bad])
        first, second, third = model.predict([good, bad, tmp_path / "none.jpg"], errors="report")
        assert first.error is None
        assert "not an image of a known format" in second.error
        assert (second.top, second.logits) == ((), None)
        assert third.error == "No such file or directory"
        with pytest.raises(rx.UsageError, match="errors must be"):
            model.predict(good, errors="ignore")


def test_results_stand_for_paths_and_print_as_text(
    start: Callable[..., TrainResult], weights_file: Path
) -> None:
    class Printer:
        said = ""

        def text(self, words: str) -> None:
            self.said += words

    result = start(epochs=1)
    printer = Printer()
    result._repr_pretty_(printer, False)
    assert printer.said == str(result)
    assert str(result).startswith(f"run {result.run}, top-1 ")
    with rx.load(result) as model:
        assert Path(model.source) == result.weights
    again = start(resume=result, epochs=2, name=None)
    assert again.run == result.run
