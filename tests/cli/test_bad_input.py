"""Whatever a user gives wrongly ends with one line that says what to do, the right exit code, and nothing lost."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from command_line import CLASSES, CommandLine, environment
from images import bad_images, good_odd_images
from PIL import Image

from resnext_core import extras, plugins
from resnext_core.cli import commands as builtin
from resnext_core.errors import EXIT_DATA, EXIT_USAGE
from resnext_core.interfaces import Command
from resnext_core.model.spec import VARIANTS
from resnext_core.model.weights import MANIFEST_KEY, Weights, load_weights, read_manifest_text, save_weights

EXTRAS = ("ascend", "gpu", "mindspore", "onnx")


@pytest.fixture
def train(photos: Path, recipe: Path, tmp_path: Path) -> list[object]:
    """The words of a training that works."""
    return ["train", "--recipe", recipe, "--data", photos, "--output", tmp_path / "runs"]


# -- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["frobnicate"], "unknown command 'frobnicate'; known: average, backends, bench, convert, data,"),
        (["train", "--epoch", "3"], "unknown flag '--epoch'; did you mean '--epochs'?"),
        (["eval", "--weigths", "x"], "unknown flag '--weigths'; did you mean '--weights'?"),
        (
            ["eval", "--weights", "x", "--sizes", "16,x"],
            "argument --sizes: must be an integer from 1, not 'x'",
        ),
        (
            ["average", "a", "b", "-o", "c", "--shares", "1,x"],
            "--shares: must be numbers with commas between them, not",
        ),
        (["--bakend", "reference"], "unknown flag '--bakend'; did you mean '--backend'?"),
        (["data", "info", "x", "--jsn"], "unknown flag '--jsn'; did you mean '--json'?"),
        (["train", "--no-resu"], "unknown flag '--no-resu'; did you mean '--resume'?"),
        (["train", "--lr", "0.1"], "unknown flag '--lr'; use --set optimizer.lr=... (see"),
        (["--lr=0.1"], "unknown flag '--lr'; use --set optimizer.lr=... (see resnext-run run --help)"),
        (["train", "--weight-decay", "0"], "'--weight-decay'; use --set optimizer.weight_decay=... (see"),
        (["train", "--learning-rate", "1"], "'--learning-rate'; use --set optimizer.lr=... (see"),
        (["train", "--wd", "0"], "unknown flag '--wd'; use --set optimizer.weight_decay=... (see"),
        (["train", "--optimizer.momentum=0"], "use --set optimizer.momentum=... (see"),
        (["train", "-j", "8"], "unknown flag '-j'; use --set data.workers=... (see"),
        (["train", "-b", "8"], "unknown flag '-b'; use --batch-size (see"),
        (
            ["train", "--scaled-decode"],
            "use --set preprocess.scaled_decode=... or --set augment.scaled_decode=... (see",
        ),
        (["train", "--weight-decya", "0"], "did you mean '--set optimizer.weight_decay=...'? (see"),
        (["train", "--hlep"], "unknown flag '--hlep'; did you mean '--help'?"),
        (["runs", "list", "--lr"], "unknown flag '--lr'; known: --json (see"),
        (
            ["convert", "a", "b", "--lr", "1"],
            "unknown flag '--lr'; known: --any-padding, --classes, --dry-run,",
        ),
        (["convert", "a", "b", "--filter", "plain"], "use --set preprocess.filter=... (see"),
        (["train", "-x"], "unrecognized arguments: -x"),
        (["train", "stray"], "unrecognized arguments: stray"),
        (["train", "--epochs"], "argument --epochs: expected one argument"),
        (["train", "--epochs", "two"], "argument --epochs: invalid int value: 'two'"),
        (["train", "--devices", "0"], "argument --devices: must be an integer from 1, not '0'"),
        (["train", "--devices", "two"], "argument --devices: must be an integer from 1, not 'two'"),
        (["eval"], "the following arguments are required: --weights"),
        (["eval", "--weights", "x", "--split", "dev"], "invalid choice: 'dev'"),
        (["data"], "the following arguments are required: ACTION"),
        (["data", "frobnicate"], "invalid choice: 'frobnicate'"),
        (["bench"], "say what to time: bench train, bench eval, bench data, bench all, bench compare"),
        (["recipes", "digit"], "unknown recipe 'digit'; did you mean 'digits'?"),
        (["recipes", "no/such.yaml"], "cannot read config no/such.yaml: No such file"),
        (["train", "--recipe", "digist"], "unknown recipe 'digist'; did you mean 'digits'?"),
        (["train", "--recipe", "no/such.yaml"], "cannot read config no/such.yaml: No such file"),
        (["train", "--config", "no-such.yaml"], "cannot read config no-such.yaml: No such file"),
        (["train", "--set", "lr=1"], "--set takes section.key=value, got 'lr=1'"),
        (["train", "--set", "trian.lr=1"], "unknown config section 'trian'; did you mean 'train'?"),
        (["train", "--set", "train.epoch=1"], "unknown config key 'train.epoch'; did you mean 'epochs'?"),
        (["train", "--set", "train.epochs=x"], "train.epochs: must be an integer, not 'x'"),
        (["train", "--epochs", "0"], "--epochs 0: train.epochs must be above 0"),
        (["train", "--seed", "-1"], "--seed -1: train.seed must be 0 or more"),
        (["train", "--seed", str(2**64)], "train.seed must be below 2^63"),
        (["train"], "no data given: use --data DIR"),
        (["bench", "data"], "bench data needs --data DIR"),
    ],
)
def test_wrong_words(cli: CommandLine, words: list[str], says: str) -> None:
    cli.refuses(EXIT_USAGE, *words, says=says)


def test_options_of_backends_are_suggested_too(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, photos: Path
) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Options:
        turbo: bool = False

    monkeypatch.setattr(plugins.PluginSet, "option_types", lambda self: {"fast": Options})
    cli.refuses(EXIT_USAGE, "train", "--turbo", says="unknown flag '--turbo'; use --set fast.turbo=... (see")


@pytest.mark.parametrize("command", list(builtin.resnext_commands()), ids=lambda c: c.name)
def test_help_is_never_suggested_for_what_is_not_close_to_it(cli: CommandLine, command: Command) -> None:
    for flag in ("--lr", "--help-me-please-with-it", "--zz", "--x" * 100, "--" + "x" * 10_000):
        outcome = cli(command.name, flag)
        assert outcome.code == EXIT_USAGE
        assert "'--help'" not in outcome.err
        assert "known: --help" not in outcome.err


def test_a_fresh_process_says_it_in_one_line_too(spawn: CommandLine) -> None:
    spawn.refuses(EXIT_USAGE, "trian", says="did you mean 'train'?")
    spawn.refuses(EXIT_USAGE, "train", "--data", "nowhere", says="there is no data folder nowhere")


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_backend_that_is_not_installed_names_the_command_that_installs_it(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, extra: str
) -> None:
    monkeypatch.setattr(extras, "extras", lambda: set(EXTRAS))
    says = f"backend '{extra}' is not installed: pip install 'resnext-core[{extra}]'"
    cli.refuses(EXIT_USAGE, "--backend", extra, "train", says=says)


def test_an_unknown_backend(cli: CommandLine) -> None:
    says = "unknown backend 'referense'; did you mean 'reference'?"
    cli.refuses(EXIT_USAGE, "--backend", "referense", "train", says=says)
    cli.refuses(EXIT_USAGE, "train", "--backend=cpu", says="unknown backend 'cpu'; known: reference")


def test_a_backend_that_lacks_the_capability(cli: CommandLine, weights_file: Path, tmp_path: Path) -> None:
    says = "backend 'reference' has no exporter"
    cli.refuses(
        EXIT_USAGE, "--backend", "reference", "export", "--weights", weights_file, "--to", tmp_path, says=says
    )
    says = "no installed backend exports 'onnx'"
    cli.refuses(EXIT_USAGE, "export", "--weights", weights_file, "--to", tmp_path / "m.onnx", says=says)


def test_an_unknown_variant_lists_the_known(cli: CommandLine, train: list[object], tmp_path: Path) -> None:
    known = ", ".join(sorted(VARIANTS))
    for name, closest in (
        ("resnext5_32x4d", "resnext50_32x4d"),
        ("resnext20_4x16d", "resnext20_4x16d_quarter"),
    ):
        says = f"unknown model variant '{name}'; did you mean '{closest}'? (known: {known})"
        cli.refuses(EXIT_USAGE, *train, "--set", f"model.variant={name}", says=says)
        cli.refuses(EXIT_USAGE, "convert", "w.pth", tmp_path / "w.safetensors", "--variant", name, says=says)
    says = f"unknown model variant 'vgg16'; known: {known}"
    cli.refuses(EXIT_USAGE, *train, "--set", "model.variant=vgg16", says=says)
    assert not (tmp_path / "runs").exists()


def test_an_unknown_variant(cli: CommandLine, train: list[object]) -> None:
    says = "unknown model variant 'resnext5_32x4d'; did you mean 'resnext50_32x4d'?"
    cli.refuses(EXIT_USAGE, *train, "--set", "model.variant=resnext5_32x4d", says=says)


def test_a_run_that_cannot_be_resumed(cli: CommandLine, tmp_path: Path) -> None:
    cli.refuses(EXIT_DATA, "train", "--resume", tmp_path, says="is not a run folder (it has no config.yaml)")
    cli.refuses(EXIT_DATA, "train", "--resume", "--output", tmp_path, says=f"no run folder in {tmp_path}")
    cli.refuses(EXIT_DATA, "report", tmp_path, says="is not a run folder")


# -- data ----------------------------------------------------------------------------------------


def drop_train(root: Path) -> None:
    shutil.rmtree(root / "train")


def empty_class(root: Path) -> None:
    (root / "train" / "gnu").mkdir()


def stray_class_in_val(root: Path) -> None:
    (root / "val" / "gnu").mkdir()
    shutil.copy(root / "val" / "ant" / "00.jpg", root / "val" / "gnu")


def images_beside_classes(root: Path) -> None:
    shutil.copy(root / "val" / "ant" / "00.jpg", root / "train")


def two_vals(root: Path) -> None:
    (root / "valid").mkdir()


def no_images(root: Path) -> None:
    for image in (root / "train").rglob("*.*"):
        image.rename(image.with_suffix(".txt"))


@pytest.mark.parametrize(
    ("damage", "code", "says"),
    [
        (drop_train, EXIT_USAGE, "has no train (a folder of class folders, or <name>.txt); add it"),
        (empty_class, EXIT_DATA, "train/gnu has no images"),
        (stray_class_in_val, EXIT_DATA, "val has the class 'gnu', which is not in the training data"),
        (images_beside_classes, EXIT_DATA, "holds both images (00.jpg) and folders (ant)"),
        (two_vals, EXIT_USAGE, "has val and valid; choose one with --set data.val=val"),
        (no_images, EXIT_DATA, "train/ant has no images"),
        (shutil.rmtree, EXIT_USAGE, "there is no data folder"),
    ],
)
def test_wrong_data_folders(
    cli: CommandLine, train: list[object], photos: Path, tmp_path: Path,
    damage: Callable[[Path], None], code: int, says: str,
) -> None:  # fmt: skip
    root = shutil.copytree(photos, tmp_path / "data")
    damage(root)
    cli.refuses(code, *train, "--data", root, says=says)
    assert not (tmp_path / "runs").exists(), "a refused training leaves no run folder"


def test_batches_that_do_not_fit(cli: CommandLine, train: list[object], tmp_path: Path) -> None:
    says = "batch_size 49 is larger than the 48 training images; lower it with --set train.batch_size=48"
    cli.refuses(EXIT_USAGE, *train, "--batch-size", 49, says=says)
    says = "train.batch_size 8 is not divisible by 1 ranks × 3 accumulated micro-batches"
    cli.refuses(EXIT_USAGE, *train, "--set", "train.accumulate=3", says=says)
    says = "train.batch_size 8 is not divisible by 3 ranks × 1 accumulated micro-batches"
    cli.refuses(EXIT_USAGE, *train, "--devices", 3, says=says)
    says = "mix.mixup and mix.cutmix mix the images of a micro-batch, and this one has 1"
    cli.refuses(EXIT_USAGE, *train, "--set", "train.accumulate=8", "--set", "mix.cutmix=1", says=says)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("mixup=-0.1", "mix.mixup must be 0 or more"),
        ("cutmix=.nan", "mix.cutmix must be"),
        ("prob=1.1", "mix.prob must be between 0 and 1"),
        ("switch_prob=-1", "mix.switch_prob must be between 0 and 1"),
        ("off_epoch=0", "mix.off_epoch must be above 0, or null"),
        ("partner=random", "must be one of reversed, rolled, not 'random'"),
        ("box=round", "must be one of halves, sides, not 'round'"),
        ("mixupp=1", "unknown config key 'mix.mixupp'"),
    ],
)
def test_mixes_that_cannot_be(cli: CommandLine, train: list[object], value: str, says: str) -> None:
    cli.refuses(EXIT_USAGE, *train, "--set", f"mix.{value}", says=says)


def test_a_class_count_that_is_not_the_datas(cli: CommandLine, train: list[object]) -> None:
    says = "model.num_classes is 5, but the training data has 6 classes"
    cli.refuses(EXIT_USAGE, *train, "--set", "model.num_classes=5", says=says)


def test_eval_without_the_asked_part(cli: CommandLine, weights_file: Path, photos: Path) -> None:
    evaluate = ["eval", "--weights", weights_file]
    cli.refuses(EXIT_USAGE, *evaluate, says="no data given: use --data DIR")
    says = "has no test part; it has: train, val"
    cli.refuses(EXIT_USAGE, *evaluate, "--data", photos, "--split", "test", says=says)
    cli.refuses(EXIT_DATA, *evaluate, "--data", photos / "nowhere", says="there is no data at")
    says = "has no labels to evaluate against"
    cli.refuses(EXIT_USAGE, *evaluate, "--data", photos / "val" / "ant", says=says)


# -- images --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd_data(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, int]:
    """A data folder with every odd image in class bee, and how many of them are good and bad."""
    root = shutil.copytree(photos, tmp_path_factory.mktemp("odd") / "data")
    made = tmp_path_factory.mktemp("made")
    good, bad = good_odd_images(made / "good"), bad_images(made / "bad")
    files = {n: p for n, p in bad.items() if p.is_file()}
    for name, path in {
        **{f"good-{n}": p for n, p in good.items()},
        **{f"bad-{n}": p for n, p in files.items()},
    }.items():
        shutil.copy(path, root / "val" / "bee" / name)
    for name in ("truncated.jpg", "empty.jpg", "text.jpg"):
        shutil.copy(bad[name], root / "train" / "bee" / f"bad-{name}")
    return root, len(good), len(files)


def test_eval_counts_and_names_bad_images(
    cli: CommandLine, weights_file: Path, odd_data: tuple[Path, int, int]
) -> None:
    root, good, bad = odd_data
    words = ["eval", "--weights", weights_file, "--data", root, "--set", "data.workers=0"]
    result = cli.ok(*words, "--json").json()
    assert result["expected"] == 23 + good + bad
    assert (result["scored"], result["failed"]) == (23 + good, bad)
    assert {Path(p).name.startswith("bad-") for p in result["failures"]} == {True}
    assert len(result["failures"]) == bad
    assert sum(map(sum, result["confusion"])) == result["scored"]
    assert result["top1"] == result["correct1"] / result["expected"]
    assert f"{23 + good} of {23 + good + bad} images, {bad} could not be read" in cli.ok(*words).out

    says = ("cannot read image", "val/bee/bad-", "repair or remove it, or set data.bad_images=count")
    cli.refuses(EXIT_DATA, *words, "--set", "data.bad_images=fail", says=says)


@pytest.mark.parametrize("workers", [0, 1])
def test_train_counts_and_names_bad_images(
    cli: CommandLine, train: list[object], odd_data: tuple[Path, int, int], workers: int
) -> None:
    words = [*train, "--data", odd_data[0], "--epochs", 1, "--batch-size", 17]
    words += ["--set", f"data.workers={workers}"]
    out = cli.ok(*words).out
    assert "51 images, 6 classes" in out
    assert "3 of 51 training images could not be read: " in out
    assert out.count("cannot read training image ") == 3
    assert out.count("/train/bee/bad-") == 6, "each when it is met, and in the end"
    says = ("cannot read image", "train/bee/bad-")
    cli.refuses(EXIT_DATA, *words, "--set", "data.bad_images=fail", "--name", "b", says=says)


def test_infer_names_bad_images_and_goes_on(
    cli: CommandLine, weights_file: Path, odd_data: tuple[Path, int, int], tmp_path: Path
) -> None:
    root, good, bad = odd_data
    words = ["infer", "--weights", weights_file, root / "val" / "bee", "--set", "data.workers=0"]
    outcome = cli(*words, "--logits", tmp_path / "logits.npy")
    assert outcome.code == EXIT_DATA
    assert outcome.err == f"resnext-run: {bad} of {4 + good + bad} images have no prediction\n"
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    logits = np.load(tmp_path / "logits.npy")
    assert len(rows) == len(logits) == 4 + good + bad
    for row, values in zip(rows, logits, strict=True):
        is_bad = Path(row["path"]).name.startswith("bad-")
        assert ("error" in row) == is_bad
        assert np.isnan(values).all() if is_bad else np.isfinite(values).all()
        if not is_bad:
            assert sum(p["probability"] for p in row["top"]) <= 1.00001
            assert row["top"][0]["name"] == CLASSES[int(values.argmax())]


def test_infer_with_nothing_to_infer(cli: CommandLine, weights_file: Path, tmp_path: Path) -> None:
    infer = ["infer", "--weights", weights_file]
    cli.refuses(EXIT_USAGE, *infer, says="give images, or --tensor FILE.npy, and not both")
    cli.refuses(EXIT_USAGE, *infer, "x.jpg", "--tensor", "t.npy", says="and not both")
    cli.refuses(EXIT_USAGE, *infer, "x.jpg", "--top", 0, says="--top must be 1 or more")
    cli.refuses(EXIT_USAGE, *infer, "--tensor", "t.npy", says="--tensor needs --logits FILE.npy")
    cli.refuses(EXIT_DATA, *infer, tmp_path, says="has no images")
    outcome = cli(*infer, tmp_path / "none.jpg")
    assert outcome.code == EXIT_DATA
    assert outcome.json()["error"] == "No such file or directory"
    assert outcome.err == "resnext-run: 1 of 1 image has no prediction\n"


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((2, 3, 9, 8), np.float32), "--tensor is (2, 3, 9, 8), the model takes (N, 3, 8, 8)"),
        (np.zeros((2, 8, 8, 3), np.float32), "--tensor is (2, 8, 8, 3), the model takes (N, 3, 8, 8)"),
        (np.zeros((2, 3, 8, 8), np.float64), "must hold one float32 array (N, 3, H, W)"),
        (np.zeros((2, 3, 8, 8), np.uint8), "must hold one float32 array (N, 3, H, W)"),
        (np.zeros((3, 8, 8), np.float32), "must hold one float32 array (N, 3, H, W)"),
        (np.zeros((0, 3, 8, 8), np.float32), "must hold one float32 array (N, 3, H, W)"),
        (np.array([{}], object), "cannot read tensor"),
        (b"", "cannot read tensor"),
        (b"PK\x03\x04 no zip", "cannot read tensor"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4'(", "cannot read tensor"),
        (None, "cannot read tensor"),
    ],
)
def test_wrong_tensors(
    cli: CommandLine, weights_file: Path, tmp_path: Path, array: np.ndarray | bytes | None, says: str
) -> None:
    path = tmp_path / "t.npy"
    if isinstance(array, bytes):
        path.write_bytes(array)
    elif array is not None:
        np.save(path, array)
    words = ["infer", "--weights", weights_file, "--tensor", path, "--logits", tmp_path / "l.npy"]
    cli.refuses(EXIT_DATA, *words, says=says)
    assert not (tmp_path / "l.npy").exists()


def test_file_names_that_are_not_text(
    cli: CommandLine, weights_file: Path, photos: Path, tmp_path: Path
) -> None:
    root = tmp_path / "val" / "bee"
    root.mkdir(parents=True)
    name = os.fsencode(str(root)) + b"/\xff\n.jpg"
    with open(name, "wb") as stream:
        stream.write(b"nothing")
    shutil.copy(photos / "val" / "bee" / "00.jpg", root)
    words = ["--weights", weights_file, "--set", "data.workers=0"]
    out = cli.ok("eval", "--data", tmp_path, *words).out
    assert "1 of 2 images, 1 could not be read" in out
    assert cli("infer", root, *words).code == EXIT_DATA


# -- weights -------------------------------------------------------------------------------------


def test_wrong_weights_files(
    cli: CommandLine, weights_file: Path, tiny_weights: Weights, photos: Path, tmp_path: Path
) -> None:
    whole = weights_file.read_bytes()
    tensors = safetensors.numpy.load_file(weights_file)
    text = read_manifest_text(weights_file) or ""
    path = tmp_path / "w.safetensors"
    evaluate = ["eval", "--data", photos, "--set", "data.workers=0", "--weights", path]

    def written(manifest: str | None = text, **changes: np.ndarray | None) -> None:
        arrays = {k: v for k, v in {**tensors, **changes}.items() if v is not None}
        safetensors.numpy.save_file(arrays, path, metadata=manifest and {MANIFEST_KEY: manifest})

    cli.refuses(EXIT_DATA, *evaluate, says=f"no model at {path}")
    path.mkdir()
    cli.refuses(EXIT_DATA, *evaluate, says="neither a run nor a checkpoint folder")
    path.rmdir()
    for damaged in (whole[: len(whole) // 2], whole[:100], b"", b"not a safetensors file" * 9):
        path.write_bytes(damaged)
        cli.refuses(EXIT_DATA, *evaluate, says=f"{path} is not a readable safetensors file")
    path.write_bytes(whole[:-4] + b"\0\0\0\0")
    cli.refuses(EXIT_DATA, *evaluate, says="is damaged: checksum mismatch of its tensors")
    written(
        **{"fc.bias": None, "extra": np.zeros(1, np.float32), "conv1.weight": np.zeros((1, 2), np.float32)}
    )
    says = ("missing fc.bias", "unexpected extra", "conv1.weight is (1, 2), not (16, 3, 3, 3)")
    cli.refuses(EXIT_DATA, *evaluate, says=says)
    written(**{"fc.bias": np.full(6, np.nan, np.float32)})
    cli.refuses(EXIT_DATA, *evaluate, says="fc.bias holds NaN or infinity")
    for manifest in ("", "{", "[]", "{}", json.dumps({**json.loads(text), "format": 99})):
        written(manifest=manifest or "null")
        cli.refuses(EXIT_DATA, *evaluate, says="manifest")
    written(manifest=text.replace('"cat"', '"cow"'))
    cli.refuses(EXIT_DATA, *evaluate, says="is damaged: checksum mismatch of its manifest")
    fewer = tiny_weights.spec.replace(num_classes=2)
    few = {**tensors, "fc.weight": tensors["fc.weight"][:2], "fc.bias": tensors["fc.bias"][:2]}
    save_weights(tiny_weights.replace(spec=fewer, classes=("ant", "bee"), tensors=few), path)
    cli.refuses(EXIT_DATA, *evaluate, says="has the class 'cat', which is not in the training data")
    cli.refuses(EXIT_DATA, *evaluate, "--weights", "w.bin", says="no model at w.bin")


def test_foreign_weights_serve_by_what_they_and_the_configuration_say(
    cli: CommandLine, weights_file: Path, photos: Path, tmp_path: Path
) -> None:
    path = tmp_path / "torch.safetensors"
    tensors = safetensors.numpy.load_file(weights_file)
    counter = {"bn1.num_batches_tracked": np.array(1, np.int64)}
    safetensors.numpy.save_file({**tensors, **counter}, path)
    infer = ["infer", photos / "val" / "bee", "--set", "data.workers=0", "--weights", path]
    infer += ["--set", "model.image_size=8", "--set", "preprocess.mode=squash"]
    says = ("do not fit resnext_tiny with 7 classes: fc.weight is (6, 256), not (7, 256)",)
    cli.refuses(EXIT_DATA, *infer, "--set", "model.num_classes=7", says=says)
    says = ("torch.safetensors does not fit: missing",)
    cli.refuses(EXIT_DATA, *infer, "--set", "model.variant=resnext50_32x4d", says=says)

    foreign = cli.ok(*infer).out
    named = cli.ok(*infer[:4], "--weights", weights_file).out
    for ours, theirs in zip(named.splitlines(), foreign.splitlines(), strict=True):
        expected = [(t["id"], t["probability"]) for t in json.loads(ours)["top"]]
        assert [(t["id"], t["probability"]) for t in json.loads(theirs)["top"]] == expected

    evaluate = ["eval", "--data", photos, "--set", "data.workers=0", "--json", "--weights"]
    outcome = cli.ok(*evaluate, path, *infer[6:])
    assert outcome.err == "the weights have no class names; using the 6 folder names in sorted order\n"
    ours, theirs = cli.ok(*evaluate, weights_file).json(), outcome.json()
    assert (ours["confusion"], ours["classes"]) == (theirs["confusion"], theirs["classes"])


def test_an_artefact_that_nothing_here_reads(cli: CommandLine, photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    says = "no installed backend serves '.onnx' files"
    cli.refuses(EXIT_USAGE, "infer", "--weights", path, photos / "val", says=says)


def test_an_onnx_file_that_is_none(spawn: CommandLine, photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime.capi")
    pytest.importorskip("resnext_onnx.plugin")
    for content in (b"", b"no model\n" * 50, os.urandom(2000)):
        (tmp_path / "m.onnx").write_bytes(content)
        words = ["--backend", "onnx", "infer", "--weights", "m.onnx", photos / "val" / "ant"]
        spawn.refuses(EXIT_DATA, *words, says="m.onnx")


# -- places that cannot be written ---------------------------------------------------------------


def test_outputs_that_cannot_be_written(
    cli: CommandLine, train: list[object], weights_file: Path, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    for parent in (tmp_path / "file", tmp_path / "file" / "deeper", Path("/proc/nowhere")):
        cli.refuses(EXIT_DATA, *train, "--output", parent, "--name", "x", says="cannot make the run folder")
    image = photos / "val" / "ant" / "00.jpg"
    infer = ["infer", "--weights", weights_file, image, "--set", "data.workers=0", "--logits"]
    outcome = cli(*infer, tmp_path / "file" / "l.npy")
    assert outcome.code == EXIT_DATA
    assert outcome.err.startswith("resnext-run: cannot write")
    assert (tmp_path / "file").read_text() == "a file, not a folder"


def test_a_run_is_never_overwritten(cli: CommandLine, train: list[object], tmp_path: Path) -> None:
    cli.ok(*train, "--name", "once", "--epochs", 1)
    before = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "runs").rglob("*"))
    says = ("once already exists; continue it with --resume", "or choose another --name")
    cli.refuses(EXIT_DATA, *train, "--name", "once", "--epochs", 1, says=says)
    assert sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "runs").rglob("*")) == before


def test_a_full_disk_keeps_the_older_checkpoint(finished_run: Path, tmp_path: Path) -> None:
    """The kernel refuses to grow any file beyond some size, in the middle of a checkpoint."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    size = (run / "checkpoints" / "step-00000012" / "weights.safetensors").stat().st_size

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    words = ["--backend", "reference", "train", "--resume", str(run), "--epochs", "3"]
    done = subprocess.run(
        [sys.executable, "-m", "resnext_core.cli", *words],
        env=environment(), capture_output=True, text=True, timeout=120, check=False, preexec_fn=limited,
    )  # fmt: skip
    assert done.returncode == EXIT_DATA, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "step-00000018" in done.stderr
    names = sorted(p.name for p in (run / "checkpoints").iterdir())
    assert names == ["best", "latest", "step-00000006", "step-00000012"]
    assert (run / "checkpoints" / "latest").read_text() == "step-00000012"
    assert load_weights(run / "checkpoints" / "step-00000012" / "weights.safetensors")


def test_a_full_disk_while_making_the_run_folder(
    cli: CommandLine, train: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    says = ("cannot write", "config.yaml: No space left on device")
    cli.refuses(EXIT_DATA, *train, "--name", "full", says=says)


def test_images_of_twenty_thousand_pixels_are_read(
    cli: CommandLine, weights_file: Path, tmp_path: Path
) -> None:
    Image.new("L", (20_000, 20)).save(tmp_path / "wide.png")
    Image.new("L", (20, 20_000)).save(tmp_path / "tall.png")
    out = cli.ok("infer", "--weights", weights_file, tmp_path, "--set", "data.workers=0").out
    assert [len(json.loads(line)["top"]) for line in out.splitlines()] == [5, 5]
