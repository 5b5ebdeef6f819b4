"""What is known of a job before it is started: the refusals of train and run, and what doctor --run says."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import TRAIN, CommandLine, in_process, write_plugin
from run_records import stored

from resnext_core import plugins
from resnext_core.config import Layer, load_config, read_layer
from resnext_core.errors import (
    EXIT_DATA,
    EXIT_OK,
    EXIT_UNAVAILABLE,
    EXIT_USAGE,
    BackendUnavailable,
    DataError,
    UsageError,
)
from resnext_core.interfaces import Ingredient
from resnext_core.jobs.plan import Plan, plan_job, require
from resnext_core.jobs.preflight import checkpoint_bytes, training_memory
from resnext_core.jobs.recipes import read_recipe
from resnext_core.model.spec import model_spec
from resnext_core.model.weights import load_weights
from resnext_core.runs.checkpoint_folder import read_summary
from resnext_core.runs.folder import RunFolder
from resnext_core.training.initial import build_spec

NO_VAL = "no val split: nothing is evaluated during training, and no checkpoint is the best"


def asked(cli: CommandLine, *words: object, code: int = EXIT_OK) -> dict[str, list[dict[str, str]]]:
    """Return the notes of ``doctor --run``, by topic."""
    outcome = cli("--backend", "reference", "doctor", "--json", "--run", *words)
    assert outcome.code == code, outcome
    notes: dict[str, list[dict[str, str]]] = {}
    for note in outcome.json()["notes"]:
        notes.setdefault(note["topic"], []).append(note)
    return notes


def warnings(notes: dict[str, list[dict[str, str]]]) -> list[str]:
    return [note["text"] for found in notes.values() for note in found if note["level"] == "warning"]


def test_a_sound_training(cli: CommandLine, photos: Path, recipe: Path) -> None:
    notes = asked(cli, recipe, "--data", photos, "--batch-size", 16, "--epochs", 9)
    assert [n["level"] for found in notes.values() for n in found] == ["ok"] * len(notes)
    assert notes["data"][0]["text"] == "train 48, val 23 images, 6 classes"
    assert notes["steps"][0]["text"] == "9 epochs of 3 steps, 16 images a step"
    assert set(notes) == {"backend", "data", "decoder", "steps", "network", "lr", "memory", "disk"}


def test_a_run_folder_is_its_own_configuration(cli: CommandLine, finished_run: Path) -> None:
    notes = asked(cli, finished_run)
    assert notes["data"][0]["text"].startswith(f"train {sum(TRAIN)}, ")


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["optimizer.lr=0.1", "optimizer.lr_batch=8"], "2 times optimizer.lr from the first step on"),
        (["schedule.warmup_epochs=9"], "warm-up takes all 9 epochs"),
        (["schedule.kind=step", "schedule.milestones=[100]"], "at the end"),
        (["train.batch_size=4"], "batch normalisation sees 4 images at a time"),
        (["train.accumulate=4"], "batch normalisation sees 4 images at a time"),
        (["augment.auto=augmix", "augment.color_jitter=[0,0.3,0]"], "set augment.color_jitter=[0,0,0]"),
    ],
)
def test_what_would_cost_accuracy_is_a_warning(
    cli: CommandLine, photos: Path, recipe: Path, sets: list[str], says: str
) -> None:
    fixed = ["schedule.warmup_epochs=0", "train.batch_size=16", "train.epochs=9"]
    flags = [f"--set={value}" for value in [*fixed, *sets]]
    found = warnings(asked(cli, recipe, "--data", photos, *flags))
    assert len(found) == 1, found
    assert says in found[0]


def test_data_without_val_and_classes_without_images(
    cli: CommandLine, photos: Path, recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "train.txt").write_text(
        "".join(f"{p} {p.parent.name}\n" for p in (photos / "train").rglob("*.jpg"))
    )
    flags = ["--data", tmp_path, "--batch-size", 16]
    assert warnings(asked(cli, recipe, *flags)) == [NO_VAL]
    (tmp_path / "val.txt").write_text("".join(f"{p} ant\n" for p in (photos / "val" / "ant").iterdir()))
    assert warnings(asked(cli, recipe, *flags)) == ["val has no image of 5 classes, e.g. bee, cat, dog"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--batch-size", 49], "larger than the 48 training images"),
        (["--batch-size", 16, "--devices", 3], "not divisible by 3 ranks"),
        (
            ["--batch-size", 16, "--set", "augment.repeats=17"],
            "augment.repeats 17 is more than train.batch_size 16",
        ),
        (["--num-classes", 7], "7"),
        (["--pretrained", "nowhere.safetensors"], "nowhere.safetensors"),
        (
            ["--batch-size", 16, "--set", "train.keep=1000000000", "--epochs", 2_000_000_000],
            "1000000000 newest",
        ),
    ],
)
def test_what_would_end_it_is_an_error(
    cli: CommandLine, photos: Path, recipe: Path, flags: list[object], says: str
) -> None:
    words = ["--backend", "reference", "doctor", "--run", recipe, "--data", photos]
    cli.refuses(EXIT_DATA, *words, *flags, says=("this training cannot work", says))


def test_a_backend_that_is_elsewhere_is_a_warning(
    cli: CommandLine, photos: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(self: Any, *_: object) -> None:
        raise BackendUnavailable("no card in this machine")

    monkeypatch.setattr(plugins.PluginSet, "choose", absent)
    outcome = cli.ok("doctor", "--json", "--run", recipe, "--data", photos, "--batch-size", 16)
    assert outcome.json()["notes"][0] == {
        "topic": "backend", "level": "warning", "text": "not on this machine: no card in this machine",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["doctor", "--data", "x"], "add --run CONFIG"),
        (["doctor", "--devices", 2], "add --run CONFIG"),
        (["doctor", "--run", "digit"], "did you mean 'digits'"),
        (["doctor", "--run", "digits"], "--data"),
    ],
)
def test_wrong_words(cli: CommandLine, words: list[object], says: str) -> None:
    cli.refuses(EXIT_USAGE, *words, says=says)


# -- what cannot work is known before the first step ---------------------------------------------


def flatten(part: Path) -> None:
    """Take the class folders of a part away, as ImageNet's validation images come."""
    for i, image in enumerate(sorted(part.glob("*/*"))):
        image.rename(part / f"ILSVRC2012_val_{i:08}{image.suffix}")
    for folder in [p for p in part.iterdir() if p.is_dir()]:
        folder.rmdir()


def one_class(root: Path) -> None:
    for folder in [p for p in root.glob("*/*") if p.name != "ant"]:
        shutil.rmtree(folder)


UNUSABLE: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "flat val": (
        lambda root: flatten(root / "val"),
        (
            "val has 23 images without labels, e.g. ILSVRC2012_val_00000000",
            "data.val=val.txt",
            "data.val=none",
        ),
    ),
    "flat train": (
        lambda root: flatten(root / "train"),
        ("train has 48 images without labels", "put them into class folders", "data.train=train.txt"),
    ),
    "one class": (one_class, ("train has images of one class only, 'ant': a classifier needs two",)),
    "another class in val": (
        lambda root: (root / "val" / "bee").rename(root / "val" / "bees"),
        ("val has the class 'bees', which is not in the training data; did you mean 'bee'?",),
    ),
}


@pytest.mark.parametrize("fault", UNUSABLE)
def test_data_that_cannot_be_used_ends_every_command_before_the_first_step(
    cli: CommandLine, photos: Path, recipe: Path, tmp_path: Path, fault: str
) -> None:
    data = shutil.copytree(photos, tmp_path / "data")
    spoil, says = UNUSABLE[fault]
    spoil(data)
    flags = ["--data", data, "--batch-size", 8, "--output", tmp_path / "runs"]
    for command in (["train"], ["run"], ["train", "--devices", 2], ["run", "--devices", 2]):
        cli.refuses(EXIT_DATA, *command, "--recipe", recipe, *flags, says=says)
    outcome = cli.refuses(EXIT_DATA, "doctor", "--run", recipe, *flags, says=says)
    assert re.search(rf"^data +error +{data}", outcome.out, re.MULTILINE)
    assert not (tmp_path / "runs").exists()


def test_doctor_reports_every_fault(cli: CommandLine, photos: Path, recipe: Path, tmp_path: Path) -> None:
    data = shutil.copytree(photos, tmp_path / "data")
    flatten(data / "val")
    (data / "test").mkdir()
    shutil.copytree(photos / "val" / "ant", data / "test" / "tiger")
    (tmp_path / "file").touch()
    flags = [
        "--data",
        data,
        "--batch-size",
        7,
        "--set",
        "train.accumulate=2",
        "--output",
        tmp_path / "file" / "x",
    ]
    flags += ["--set", "export.formats=[toy]", "--set", f"data.quarantine={tmp_path / 'none.txt'}"]
    notes = asked(cli, recipe, *flags, code=EXIT_DATA)
    errors = {(topic, n["text"]) for topic, found in notes.items() for n in found if n["level"] == "error"}
    expected = [
        ("data", "val has 23 images without labels"),
        ("data", "test has the class 'tiger'"),
        ("data", "cannot read the quarantine list"),
        ("fit", "train.batch_size 7 is not divisible"),
        ("output", "cannot make the run folder"),
        ("export", "no installed backend exports 'toy'"),
    ]
    for topic, text in expected:
        assert [t for name, t in errors if name == topic and text in t], (topic, text, errors)
    assert len(errors) == len(expected)


def test_a_part_can_be_left_out(cli: CommandLine, photos: Path, recipe: Path, tmp_path: Path) -> None:
    data = shutil.copytree(photos, tmp_path / "data")
    flatten(data / "val")
    words = [
        "--recipe",
        recipe,
        "--data",
        data,
        "--epochs",
        1,
        "--output",
        tmp_path,
        "--set",
        "data.val=none",
    ]
    cli.ok("train", *words, "--name", "run")
    assert {r["kind"] for r in stored(RunFolder(tmp_path / "run"))} & {"train", "eval"} == {"train"}
    says = "has no val or test part to evaluate on"
    cli.refuses(EXIT_USAGE, "run", *words, "--name", "job", says=says)
    assert not (tmp_path / "job").exists()


def test_a_test_part_without_labels_is_left_out_and_said_once(
    cli: CommandLine, photos: Path, recipe: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(photos, tmp_path / "data")
    shutil.copytree(photos / "val" / "ant", data / "test")
    flags = ["--data", data, "--epochs", 1, "--output", tmp_path]
    outcome = cli.ok("run", "--recipe", recipe, *flags, "--name", "job")
    said = f"{data / 'test'} has 4 images without labels: it is left out, val is evaluated in its place"
    assert (outcome.out + outcome.err).count(said) == 1
    assert RunFolder(tmp_path / "job").read_result("evaluation")["split"] == "val"
    assert said in warnings(asked(cli, recipe, *flags))


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--num-classes", 7], EXIT_USAGE, "model.num_classes is 7, but the training data has 6 classes"),
        (["--set", "model.pretrained_momentum=true"], EXIT_USAGE, "needs model.pretrained"),
        (["--set", "data.quarantine=none.txt"], EXIT_USAGE, "cannot read the quarantine list"),
        (["--set", "output.tensorboard=true"], EXIT_USAGE, "pip install 'resnext-core[tensorboard]'"),
        (["--set", "model.variant=resnet"], EXIT_USAGE, "unknown model variant 'resnet'"),
    ],
)
def test_settings_that_cannot_work_leave_no_run_folder(
    cli: CommandLine,
    photos: Path,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[object],
    code: int,
    says: str,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)  # as if it were not installed
    job = ["--recipe", recipe, "--data", photos, "--output", tmp_path / "runs", *flags]
    for command in (["train"], ["run"], ["train", "--devices", 2]):
        cli.refuses(code, *command, *job, says=says)
    cli.refuses(EXIT_DATA, "doctor", "--run", recipe, *job[2:], says=("this training cannot work", says))
    assert not (tmp_path / "runs").exists()


def test_a_backend_that_cannot_mix_is_known_before_the_first_step(
    photos: Path, recipe: Path, tmp_path: Path
) -> None:
    def plan(mixup: float, *ingredients: Ingredient) -> Plan:
        values = {"data": {"dir": str(photos)}, "output": {"dir": str(tmp_path)}, "mix": {"mixup": mixup}}
        config, _ = load_config([read_layer(recipe), Layer(source="", values=values)])
        backend = replace(plugins.get_backend("reference"), ingredients=frozenset(ingredients))
        return plan_job(config, plugins.load_plugins(), backend)

    require(plan(0.0))
    require(plan(0.2, "mix"))
    with pytest.raises(UsageError, match=r"the backend reference cannot mix images; set mix\.mixup=0"):
        require(plan(0.2))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"augment": {"start_size": 9, "size_epochs": [0, 1]}}, UsageError, "start_size 9 is larger than the 8"),
        (
            {"augment": {"start_size": 4, "size_epochs": [0, 1]}, "train": {"minutes": 1.0}},
            UsageError, r"set augment\.start_size=null, or train\.minutes=null",
        ),
        ({"loss": {"logit_adjustment": 1.0, "kind": "bce"}}, UsageError, "defined for cross-entropy"),
        (
            {
                "loss": {"class_weights": "inverse", "kind": "bce", "bce_threshold": 0.2},
                "mix": {"mixup": 0.2},
            },
            UsageError, r"loss\.class_weights and loss\.bce_threshold cannot",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_done_about_classes_and_sizes_is_refused(
    photos: Path, recipe: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    values = {"data": {"dir": str(photos)}, "output": {"dir": str(tmp_path)}, **changes}
    config, _ = load_config([read_layer(recipe), Layer(source="", values=values)])
    with pytest.raises(error, match=words):
        require(plan_job(config, plugins.load_plugins(), plugins.get_backend("reference")))


def test_doctor_says_what_is_done_about_classes_and_sizes(
    cli: CommandLine, photos: Path, recipe: Path, tmp_path: Path
) -> None:
    lines = [
        f"train/{p.relative_to(photos / 'train')} {p.parent.name}"
        for p in sorted((photos / "train").rglob("*.*"))
    ]
    few = lines[-1].split()[-1]  # the last class keeps one image
    kept = [line for line in lines if not line.endswith(f" {few}")] + [lines[-1]]
    shutil.copytree(photos, tmp_path / "data")
    (tmp_path / "data" / "train.txt").write_text("\n".join(kept) + "\n")
    words = [recipe, "--data", tmp_path / "data", "--batch-size", 8, "--set", "data.train=train.txt"]
    notes = asked(cli, *words)
    assert "classes are imbalanced: " in notes["classes"][0]["text"]
    assert (
        f"'{few}' 1; see loss.class_weights, loss.logit_adjustment and data.balance"
        in notes["classes"][0]["text"]
    )
    both = ["--set", "loss.class_weights=inverse", "--set", "data.balance=0.5"]
    grow = ["--set", "augment.start_size=4", "--set", "augment.size_epochs=[0,9]"]
    notes = asked(cli, *words, *both, *grow)
    assert notes["classes"][0]["text"].endswith("; used: loss.class_weights=inverse, data.balance=0.5")
    assert [w for w in warnings(notes) if "correct for the same thing" in w]
    assert [
        w for w in warnings(notes) if "images of 4 pixels at first, 8 after 9 epochs, and there are 2" in w
    ]


def test_a_disk_too_small_for_the_checkpoints_is_known_before_the_first_step(
    photos: Path, recipe: Path, tmp_path: Path
) -> None:
    def plan(epochs: int, keep: int) -> Plan:
        flags = {"data": {"dir": str(photos)}, "output": {"dir": str(tmp_path)}}
        train = {"train": {"epochs": epochs, "keep": keep}}
        config, _ = load_config([read_layer(recipe), Layer(source="", values={**flags, **train})])
        return plan_job(config, plugins.load_plugins(), plugins.get_backend("reference"))

    require(plan(epochs=2, keep=10**9))  # two checkpoints have room, however many may be kept
    with pytest.raises(DataError, match=r"1000000000 newest.* free in .*make room for .* more"):
        require(plan(epochs=2 * 10**9, keep=10**9))


def test_momentum_that_is_not_there_is_known_before_the_run_folder(
    cli: CommandLine, photos: Path, recipe: Path, finished_run: Path, tmp_path: Path
) -> None:
    weights = shutil.copy(finished_run / "checkpoints" / "step-00000012" / "weights.safetensors", tmp_path)
    words = ["--recipe", recipe, "--data", photos, "--output", tmp_path / "runs", "--pretrained", weights]
    for command in (["train"], ["train", "--devices", 2]):
        cli.refuses(EXIT_DATA, *command, *words, "--set", "model.pretrained_momentum=true", says="state.json")
    assert not (tmp_path / "runs").exists()


#: A backend that writes two formats, and reads the one called `read`; ANSWER is what its probe says.
WRITER = """
from resnext_core.hookspecs import hookimpl
from resnext_core.interfaces import READY, Backend, Readiness

@hookimpl
def resnext_backends():
    yield Backend(id="writer", summary="a writer", probe=lambda: ANSWER, priority=-9, predictor=print,
                  formats=(".read",), exporters={"read": print, "unread": print})
"""


def test_an_artefact_that_could_not_be_written_or_validated_is_known_before_the_training(
    site: Path, capfd: pytest.CaptureFixture[str], photos: Path, recipe: Path, tmp_path: Path
) -> None:
    missing = "writing needs paper: pip install paper"
    write_plugin(site, "writer", WRITER.replace("ANSWER", f"Readiness(state='missing', reason={missing!r})"))
    importlib.invalidate_caches()
    cli = in_process(capfd)
    job = ["--data", photos, "--output", tmp_path / "runs", "--set", "export.formats=[read]"]
    for words in (["run", "--recipe"], ["run", "--devices", 2, "--recipe"], ["doctor", "--run"]):
        cli.refuses(EXIT_UNAVAILABLE, *words, recipe, *job, says=("no backend here can export read", missing))

    plugins.load_plugins.cache_clear()
    (module,) = site.glob("plugin_writer_*.py")
    module.write_text(WRITER.replace("ANSWER", "READY"))
    del sys.modules[module.stem]
    importlib.invalidate_caches()
    job[-1] = "export.formats=[read, unread]"
    says = ("unread could be written, but not validated", "no installed backend serves '.unread' files")
    for words in (["run", "--recipe"], ["doctor", "--run"]):
        cli.refuses(EXIT_UNAVAILABLE, *words, recipe, *job, says=says)
    assert not (tmp_path / "runs").exists()
    (note,) = asked(cli, recipe, "--data", photos)["export"]
    assert note["text"] == "read by writer"


# -- estimates -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_checkpoint_is_as_large_as_stated(
    cli: CommandLine, photos: Path, recipe: Path, tmp_path: Path, ema: float | None
) -> None:
    words = ["--backend", "reference", "train", "--recipe", recipe, "--data", photos, "--epochs", 1]
    cli.ok(*words, "--output", tmp_path, "--name", "run", *([f"--set=train.ema_decay={ema}"] if ema else []))
    run = RunFolder(tmp_path / "run")
    (path,) = run.checkpoints.glob("step-*")
    spec = load_weights(path / "weights.safetensors").spec
    config = load_config([Layer(source="", values={"train": {"ema_decay": ema}})])[0]
    headers = 40_000  # names and manifest, which are not tensors
    assert 0 < read_summary(path).saving.bytes - checkpoint_bytes(spec, config) < headers


def test_memory_grows_with_what_it_is_made_of() -> None:
    config = load_config([read_recipe("imagenet-150e", plugins.load_plugins())])[0]
    spec = build_spec(config, 1000)
    half = training_memory(spec, config, 16)
    whole = training_memory(spec, replace(config, precision=replace(config.precision, compute="float32")), 16)
    assert whole.activations == 2 * half.activations == 2 * training_memory(spec, config, 8).activations * 2
    ema = training_memory(spec, replace(config, train=replace(config.train, ema_decay=0.9)), 16)
    assert ema.state - half.state == 4 * 115_266_984  # with BN statistics
    assert half.state == 4 * (115_266_984 + 2 * 114_971_944)


def test_activations_are_those_that_others_count() -> None:
    """timm's table of results states them, in millions: outputs of all convolutions."""
    for variant, millions in (
        ("resnext50_32x4d", 14.40),
        ("resnext101_32x8d", 31.21),
        ("resnext101_64x4d", 31.21),
    ):
        assert abs(model_spec(variant).activations / 1e6 - millions) < 0.005, variant
