"""The ModelZoo's command lines as they stand, on a tiny data set in test mode: log lines, exit codes, checkpoints."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from resnext_ascend.compat import child, flags, log, modelzoo_layout, old_config, train
from resnext_ascend.compat.__main__ import main
from resnext_ascend.compat.evaluate import checkpoints
from resnext_ascend.compat.train import RECIPE, settings

from resnext_ascend import rank_table
from resnext_core.config import Layer, load_config
from resnext_core.errors import DataError, UsageError
from resnext_core.jobs.recipes import read_recipe
from resnext_core.plugins import load_plugins
from resnext_core.ranks.children import forwarding
from resnext_core.testing.processes import job_environment
from resnext_core.training.schedule import lrs, scaled_lr

pytest.importorskip("mindspore.nn")
SCRIPTS = Path(__file__).parents[1] / "scripts"
CLASSES = ("ant", "bee", "cat")

#: The expressions that people use on the ModelZoo's logs.
EPOCH = r"^\S+ \S+:INFO:epoch\[(\d+)\], iter\[(\d+)\], loss:([\d.]+), mean_fps:(\d+\.\d\d)imgs/sec$"
LOADED = r"^\S+ \S+:INFO:load model (\S+) success$"
FPS = r"Inference Performance: (\d+\.\d\d) img/sec$"
TOP1 = r"after allreduce eval: top1_correct=(\d+), tot=(\d+),acc=(\d+\.\d\d)%\(TOP1\)$"
TOP5 = r"after allreduce eval: top5_correct=(\d+), tot=(\d+),acc=(\d+\.\d\d)%\(TOP5\)$"

OVERLAY = {
    "model": {"variant": "resnext_tiny", "image_size": 16},
    "preprocess": {"resize": 16},
    "precision": {"compute": "float32", "loss_scale": "none"},
    "schedule": {"t_max": 2},
    "train": {"epochs": 2},
    "data": {"workers": 0},
    "ascend": {"device": "cpu"},
}


def write_images(root: Path, each: int) -> Path:
    rng = np.random.default_rng(each)
    for i in range(3 * each):
        path = root / CLASSES[i % 3] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 18, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images to train on (24) and to evaluate (11, one of them broken), a rank table, the overlay."""
    root = tmp_path_factory.mktemp("compat")
    write_images(root / "imagenet/train", 8)
    val = write_images(root / "imagenet/val", 4)
    (val / "ant/00.png").unlink()
    (val / "bee/01.png").write_text("not an image")
    (root / "overlay.yaml").write_text(yaml.safe_dump(OVERLAY))
    (root / "table.json").write_text(rank_table.make({"10.0.0.1": {0: "192.168.1.1", 1: "192.168.1.2"}}))
    return root


def environment(place: Path, **changes: str) -> dict[str, str]:
    own = {"PYTHON": sys.executable, flags.OVERLAY: str(place / "overlay.yaml")}
    return job_environment("MS_", "DEVICE_ID", "SERVER_ID", **own | changes)


def run(place: Path, cwd: Path, *words: object, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment(place, **changes), capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip


def compat(place: Path, cwd: Path, *words: object, **changes: str) -> subprocess.CompletedProcess[str]:
    return run(place, cwd, sys.executable, "-m", "resnext_ascend.compat", *words, **changes)


def lines(pattern: str, text: str) -> list[tuple[str, ...]]:
    """Return the groups of every line that matches, as grep would find them."""
    return [m.groups() for line in text.splitlines() if (m := re.search(pattern, line))]


def check_epochs(output: str, steps: int) -> None:
    """Both epochs of a training have their line, counted from 0, with a rate and a loss that can be."""
    found = lines(EPOCH, output)
    assert [(int(epoch), int(step)) for epoch, step, _, _ in found] == [(0, steps - 1), (1, 2 * steps - 1)]
    for _, _, loss, rate in found:
        assert 0.5 < float(loss) < 3
        assert float(rate) > 0


@pytest.fixture(scope="module")
def trained(place: Path) -> tuple[Path, str]:
    """The folder and output of run_standalone_train.sh, as documented, with old checkpoints written too."""
    cwd = place / "standalone"
    cwd.mkdir()
    script = SCRIPTS / "run_standalone_train.sh"
    done = run(
        place, cwd, "sh", script, 0, place / "imagenet/train", "--per_batch_size", 6, "--modelzoo-layout"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return cwd, done.stdout


def test_run_standalone_train(trained: tuple[Path, str]) -> None:
    cwd, output = trained
    check_epochs(output, 4)
    assert all(
        re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}:(INFO|WARNING):", line)
        for line in output.splitlines()
    )
    (folder,) = (cwd / "outputs").glob("*resnext_tiny")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["optimizer"]["lr"], config["optimizer"]["lr_batch"]) == (0.4, 1024), "scaled to one card"
    assert config["train"]["batch_size"] == 6


def test_old_names_are_written_when_asked(trained: tuple[Path, str]) -> None:
    """And MindSpore's own loader finds the ModelZoo's names and layout in them."""
    import mindspore

    path = trained[0] / "outputs/ckpt_0/0-2_4.ckpt"
    names = mindspore.load_checkpoint(str(path))
    assert {"backbone.conv.weight", "backbone.bn.gamma", "head.fc.weight"} <= set(names)
    assert "backbone.layer1.0.conv2.convs.3.weight" in names


@pytest.mark.parametrize("platform", [[], ["Ascend"]])
def test_run_eval(platform: list[str], trained: tuple[Path, str], place: Path) -> None:
    checkpoint = trained[0] / "outputs/ckpt_0/0-2_4.ckpt"
    done = run(place, place, "sh", SCRIPTS / "run_eval.sh", 0, place / "imagenet/val", checkpoint, *platform)
    assert done.returncode == 0, done.stdout + done.stderr
    assert lines(LOADED, done.stdout) == [(str(checkpoint),)]
    assert len(lines(FPS, done.stdout)) == 1
    ((correct, total, share),) = lines(TOP1, done.stdout)
    assert total == "11", "the image that cannot be read counts as wrong, and is not left out"
    assert share == f"{100 * int(correct) / 11:.2f}"
    ((correct5, total5, _),) = lines(TOP5, done.stdout)
    assert (int(correct5), total5) == (10, "11"), "of three classes every readable image is among five"


def test_run_distribute_train(place: Path, tmp_path: Path) -> None:
    """By a rank table; starting from an old checkpoint, evaluating, with a log for each rank."""
    done = run(
        place, tmp_path, "sh", SCRIPTS / "run_distribute_train.sh", place / "table.json", place / "imagenet/train",
        "--per_batch_size", 6, "--run_eval", "True", "--eval_data_dir", place / "imagenet/val",
        "--eval_start_epoch", 1, "--eval_is_distributed", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    check_epochs(done.stdout, 2)
    assert "--eval_is_distributed no longer has an effect: every rank takes part" in done.stdout
    assert {p.name for p in (tmp_path / "outputs/ranks").glob("rank-*.log")} == {"rank-0.log", "rank-1.log"}
    (folder,) = (tmp_path / "outputs").glob("*resnext_tiny")
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    found = [(r["epoch"], r["expected"], r["failed"]) for r in records if r["kind"] == "eval"]
    assert found == [(1, 11, 1), (2, 11, 1)]


def test_a_checkpoint_is_the_third_word(trained: tuple[Path, str], place: Path, tmp_path: Path) -> None:
    checkpoint = trained[0] / "outputs/ckpt_0/0-2_4.ckpt"
    script = SCRIPTS / "run_standalone_train.sh"
    done = run(
        place, tmp_path, "sh", script, 0, place / "imagenet", checkpoint, "--per_batch_size", 8, "--lr", 0.01
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert lines(LOADED, done.stdout) == [(str(checkpoint),)]
    check_epochs(done.stdout, 3)


def test_a_process_for_each_device_as_the_old_scripts_started_them(place: Path, tmp_path: Path) -> None:
    """Each with RANK_ID, RANK_SIZE and DEVICE_ID; MindSpore's scheduler stands in for HCCL here."""
    from resnext_mindspore.launch import local_cluster

    shared = {**local_cluster(2, 60), "RANK_SIZE": "2"}
    scheduler = subprocess.Popen(
        [sys.executable, "-m", "resnext_mindspore.scheduler"],
        env=environment(place, **shared, MS_ROLE="MS_SCHED", RANK_ID="0", DEVICE_ID="0"),
    )
    words = [
        sys.executable,
        "-m",
        "resnext_ascend.compat",
        "train",
        "--data_dir",
        str(place / "imagenet/train"),
    ]
    words += ["--per_batch_size", "6", "--is_distributed", "1"]
    ranks = []
    try:
        for rank in ("0", "1"):
            own = {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": rank, "RANK_ID": rank, "DEVICE_ID": rank}
            ranks.append(
                subprocess.Popen(
                    words,
                    cwd=tmp_path,
                    env=environment(place, **shared, **own),
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        outputs = [process.communicate(timeout=200)[0] for process in ranks]
    finally:
        for process in (*ranks, scheduler):
            process.kill()
            process.wait()
    assert [process.returncode for process in ranks] == [0, 0]
    check_epochs(outputs[0], 2)
    assert not lines(EPOCH, outputs[1]), "one rank speaks"


@pytest.mark.parametrize(("noted", "code"), [("0", 0), ("75", 75), ("", 128 + signal.SIGSEGV)])
def test_a_framework_that_crashes_at_its_end_changes_no_exit_code(
    noted: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is saved by then; what was noted is noted again for a launcher of this process."""
    ours = tmp_path / "end"
    monkeypatch.setenv("RESNEXT_END", str(ours))
    script = (
        "import os, signal, sys\nfrom resnext_core.ranks.children import note_end\nprint('trained', flush=True)\n"
        "if sys.argv[1]:\n    note_end(int(sys.argv[1]))\nos.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    printed: list[str] = []
    assert child.run([sys.executable, "-c", script, noted], printed.append) == code
    assert printed == ["trained"]
    assert ours.read_text() == str(code)


def test_a_stop_is_passed_on(place: Path, tmp_path: Path) -> None:
    words = [
        "train",
        "--data_dir",
        str(place / "imagenet/train"),
        "--per_batch_size",
        "6",
        "--is_distributed",
        "0",
    ]
    long = {**OVERLAY, "train": {"epochs": 10000}}
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(long))
    process = subprocess.Popen(
        [sys.executable, "-m", "resnext_ascend.compat", *words], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        env=environment(place, **{flags.OVERLAY: str(tmp_path / "long.yaml")}),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "imgs/sec" in line:
                break
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=100)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 75
    (folder,) = (tmp_path / "outputs").glob("*resnext_tiny")
    assert (folder / "checkpoints/latest").is_file()


@pytest.mark.parametrize("kind", ["MINDIR", "ONNX"])
def test_export(kind: str, trained: tuple[Path, str], place: Path, tmp_path: Path) -> None:
    checkpoint = trained[0] / "outputs/ckpt_0/0-2_4.ckpt"
    words = ["--device_target", "CPU", "--ckpt_file", checkpoint, "--batch_size", 2, "--file_name", "old"]
    done = compat(place, tmp_path, "export", *words, "--width", 16, "--height", 16, "--file_format", kind)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "logits agree within" in done.stdout
    assert (tmp_path / f"old.{kind.lower()}").is_file()


def test_export_of_air_needs_an_ascend(trained: tuple[Path, str], place: Path, tmp_path: Path) -> None:
    checkpoint = trained[0] / "outputs/ckpt_0/0-2_4.ckpt"
    words = ["export", "--ckpt_file", checkpoint, "--width", 16, "--height", 16]
    done = compat(place, tmp_path, *words)
    assert done.returncode == 4
    assert "AIR can be written on an Ascend only" in done.stderr
    assert "ATC" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["trian"], 2, "unknown program 'trian'; did you mean 'train'?"),
        (["train", "--data_dirr", "x"], 2, "unknown flag '--data_dirr'; did you mean '--data_dir'?"),
        (["train", "--is_distributed", "0"], 2, "--data_dir is missing"),
        (["train", "--data_dir", "x"], 2, "--is_distributed 1 needs the number of devices"),
        (["train", "--data_dir", "x", "--is_distributed", "2"], 2, "invalid choice: 2"),
        (["train", "--data_dir", "x", "--run_eval", "yes"], 2, "must be True or False, not 'yes'"),
        (["train", "--data_dir", "no", "--is_distributed", "0"], 2, "there is no data folder no"),
        (
            ["train", "--data_dir", ".", "--is_distributed", "0", "--run_eval", "True"],
            2,
            "needs --eval_data_dir",
        ),
        (["train", "--platform", "TPU"], 2, "invalid choice: 'TPU'"),
        (["eval", "--data_dir", "."], 2, "--data_dir and --pretrained are needed"),
        (["eval", "--data_dir", ".", "--pretrained", "no.ckpt"], 3, "no checkpoint at no.ckpt"),
        (["eval", "--data_dir", ".", "--pretrained", "."], 3, "no .ckpt in ."),
        (["eval", "--graph_chpt", "x"], 2, "did you mean '--graph_ckpt'?"),
        (["export"], 2, "--ckpt_file is missing"),
        (["export", "--ckpt_file", "x", "--width", "200"], 2, "images must be square, not 200 x 224"),
        (["export", "--ckpt_file", "no.ckpt", "--file_format", "ONNX"], 3, "no model at no.ckpt"),
    ],
)
def test_wrong_use_is_one_line(words: list[str], code: int, says: str, place: Path, tmp_path: Path) -> None:
    done = compat(place, tmp_path, *words)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["run_standalone_train.sh"], 2),
        (["run_standalone_train.sh", "zero", "DATA"], 2),
        (["run_distribute_train.sh", "no.json"], 2),
        (["run_distribute_train.sh", "no.json", "DATA"], 3),
        (["run_eval.sh", "0", "DATA"], 2),
        (["run_eval.sh", "0", ".", "no.ckpt"], 3),
    ],
)
def test_scripts_refuse_wrong_use(words: list[str], code: int, place: Path, tmp_path: Path) -> None:
    done = run(place, tmp_path, "sh", SCRIPTS / words[0], *words[1:])
    assert done.returncode == code, done.stderr
    assert done.stderr


def test_help_names_the_old_flags(capsys: pytest.CaptureFixture[str]) -> None:
    flags_of = {
        "train": "platform data_dir per_batch_size pretrained is_distributed data_sink_mode lr train_url eval_interval "
        "eval_start_epoch save_best_ckpt eval_data_dir eval_per_batch_size run_eval eval_log_path "
        "eval_is_distributed use_python_multiprocessing",
        "eval": "platform data_dir per_batch_size graph_ckpt pretrained log_path is_distributed",
        "export": "device_target device_id batch_size ckpt_file width height file_name file_format",
    }
    for program, names in flags_of.items():
        with pytest.raises(SystemExit):
            main([program, "--help"])
        text = capsys.readouterr().out
        assert all(f"--{name}" in text for name in names.split()), program


# -- what flags and old configurations mean --------------------------------------------------------


def _resolved(values: dict[str, dict[str, object]]) -> object:
    layers = [read_recipe(RECIPE, load_plugins()), Layer(source="old", values=values)]
    return load_config(layers, load_plugins().option_types())[0]


@pytest.mark.parametrize(
    ("given", "world", "expected"),
    [
        ({}, 8, 0.4), ({}, 1, 0.05), ({"per_batch_size": 32}, 8, 0.1), ({"lr": 0.3}, 8, 0.3), ({"lr": 0.3}, 1, 0.3),
    ],
)  # fmt: skip
def test_the_learning_rate(given: dict[str, object], world: int, expected: float, tmp_path: Path) -> None:
    """0.4 for eight devices of 128, in proportion elsewhere; --lr as it is."""
    values = settings({"data_dir": str(tmp_path), **given}, old_config.OldConfig(), flags.Ranks(world=world))
    config = _resolved(values)
    assert scaled_lr(config.optimizer, config.train.batch_size) == pytest.approx(expected)  # type: ignore[attr-defined]


def test_the_recipes_have_the_modelzoos_learning_rates() -> None:
    """By its formula in float32: warm-up by steps over one epoch, then a cosine by epochs."""
    per_epoch = 1251
    for name in ("modelzoo-ascend-150e", "modelzoo-ascend-literal"):
        config, _ = load_config([read_recipe(name, load_plugins())])
        steps = np.array([0, 1, 1250, 1251, 75 * per_epoch, 150 * per_epoch - 1])
        cosine = 0.5 * 0.4 * (1 + np.cos(np.pi * (steps // per_epoch) / 150))
        wanted = np.where(steps < per_epoch, 0.4 * (steps + 1) / per_epoch, cosine)
        base = scaled_lr(config.optimizer, 1024)
        found = [
            lrs(int(s), 1, config=config.schedule, base_lr=base, steps_per_epoch=per_epoch, epochs=150)[0]
            for s in steps
        ]
        np.testing.assert_allclose(found, wanted, rtol=2e-6)
        assert found[-1] == pytest.approx(4.39e-5, rel=1e-2)
    literal, _ = load_config([read_recipe("modelzoo-ascend-literal", load_plugins())])
    assert scaled_lr(literal.optimizer, 128) == 0.4, "on one card it stays, as it did"


OLD = """\
enable_modelarts: False
device_target: "Ascend"
image_size: [224,224]
num_classes: 1000
lr: 0.4
lr_scheduler: "cosine_annealing"
lr_epochs: [30,60,90,120]
lr_gamma: 0.1
eta_min: 0
T_max: 150
max_epoch: 150
warmup_epochs: 1
weight_decay: 0.0001
momentum: 0.9
is_dynamic_loss_scale: 0
loss_scale: 1024
label_smooth: 1
label_smooth_factor: 0.1
per_batch_size: 128
ckpt_interval: 5
ckpt_save_max: 5
is_save_on_master: 1
rank_save_ckpt_flag: 0
---
max_epoch: "help text, which is no setting"
"""


def test_an_old_configuration_comes_to_the_recipe(tmp_path: Path) -> None:
    """What the ModelZoo shipped means today what the recipe of its name says."""
    path = tmp_path / "default_config.yaml"
    path.write_text(OLD)
    old = old_config.read(path)
    values = {**old.values, "model": {**old.values["model"], "variant": "resnext152_64x4d"}}
    found, recipe = _resolved(values), load_config([read_recipe(RECIPE, load_plugins())])[0]
    for section in ("optimizer", "schedule", "loss", "precision", "train"):
        assert getattr(found, section) == getattr(recipe, section), section
    assert old.flags == {"per_batch_size": 128, "enable_modelarts": False}
    text = "\n".join(old.report)
    for key in ("is_save_on_master", "rank_save_ckpt_flag", "device_target"):
        assert f"{key} no longer has an effect: " in text
    assert "lr 0.4 is for a global batch of 1024" in text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max_epochs: 90", "unknown key 'max_epochs'; did you mean 'max_epoch'?"),
        ("lr_scheduler: poly", "lr_scheduler: must be one of cosine_annealing, exponential, not poly"),
        ("image_size: [224, 200]", "image_size: images must be square"),
        ("max_epoch: many", "max_epoch: invalid literal"),
        ("lr: fast", "could not convert"),
        ("- a list", "is a mapping of keys, not list"),
        ("a: [", "not valid YAML"),
    ],
)
def test_wrong_old_configurations(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=re.escape(says)):
        old_config.read(path)


def test_other_old_settings(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(
        "network: resnext101\nimage_size: '224,224'\nlr_scheduler: exponential\nlr_epochs: '30,60'\n"
        "is_dynamic_loss_scale: 1\nlabel_smooth: 0\nlr: 0.2\nper_batch_size: 64\ndata_url: ''\n"
    )
    old = old_config.read(path)
    config = _resolved({k: dict(v) for k, v in old.values.items()})
    assert config.model.variant == "resnext101_64x4d"  # type: ignore[attr-defined]
    assert (config.schedule.kind, config.schedule.milestones) == ("step", (30.0, 60.0))  # type: ignore[attr-defined]
    assert (config.precision.loss_scale, config.precision.scale) == ("dynamic", 65536.0)  # type: ignore[attr-defined]
    assert config.loss.smoothing == 0.0  # type: ignore[attr-defined]
    assert (config.optimizer.lr, config.optimizer.lr_batch) == (0.2, 512)  # type: ignore[attr-defined]
    assert old.flags == {"per_batch_size": 64}


def test_folders_of_checkpoints_in_their_order(tmp_path: Path) -> None:
    for name in ("0-9_5.ckpt", "0-10_5.ckpt", "0-1_5.ckpt", "graph.meta"):
        (tmp_path / name).touch()
    assert [p.name for p in checkpoints(tmp_path)] == ["0-1_5.ckpt", "0-9_5.ckpt", "0-10_5.ckpt"]
    with pytest.raises(DataError):
        checkpoints(tmp_path / "no")


def test_epoch_lines() -> None:
    """By hand: two records of 10 and 20 images in 1 s and 2 s are 10 images a second."""
    epochs = log.Epochs()
    first = {"kind": "train", "epoch": 1, "step": 5, "images": 10, "seconds": 1.0, "loss": 2.0}
    second = {"kind": "train", "epoch": 1, "step": 15, "images": 20, "seconds": 2.0, "loss": 1.5}
    assert epochs({"kind": "start"}) == epochs(first) == epochs(second) == []
    line = "epoch[0], iter[14], loss:1.5, mean_fps:10.00imgs/sec"
    assert epochs({**second, "epoch": 2, "step": 16, "loss": None}) == [line]
    assert epochs({"kind": "eval"}) == ["epoch[1], iter[15], loss:nan, mean_fps:10.00imgs/sec"]
    assert epochs({"kind": "checkpoint"}) == epochs({"kind": "end"}) == []


def test_names_of_old_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs from 1, steps within the epoch; the last two are kept, and one that fails is no reason to stop."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("train: {keep: 2}")
    written: list[str] = []

    def convert(checkpoint: Path, target: Path) -> int:
        if checkpoint.name == "bad":
            return 3
        written.append(target.name)
        target.parent.mkdir(exist_ok=True)
        target.touch()
        target.with_name(f"{target.name}.json").touch()
        return 0

    monkeypatch.setattr(modelzoo_layout, "_convert", convert)
    follow = modelzoo_layout.ModelZooLayout(tmp_path / "ckpt_0")
    saved = {3: 0, 10: 1, 20: 2, 25: 2, 30: 3}  # steps to whole epochs of ten
    for step in range(1, 31):
        follow(tmp_path / "run", {"kind": "train", "epoch": (step + 9) // 10, "step": step})
        if step in saved:
            name = "bad" if step == 20 else str(step)
            follow(tmp_path / "run", {"kind": "checkpoint", "step": step, "epoch": saved[step], "path": name})
    assert written == ["0-1_3.ckpt", "0-1_10.ckpt", "0-3_5.ckpt", "0-3_10.ckpt"]
    kept = ["0-3_10.ckpt", "0-3_10.ckpt.json", "0-3_5.ckpt", "0-3_5.ckpt.json"]
    assert sorted(path.name for path in (tmp_path / "ckpt_0").iterdir()) == kept


@pytest.mark.parametrize("flag", ["--modelzoo-layout", "--seed-layout", "--seed_layout"])
def test_the_flag_of_old_checkpoints_has_old_spellings(flag: str) -> None:
    parser = argparse.ArgumentParser()
    train.configure(parser)
    assert parser.parse_args([flag]).modelzoo_layout
    assert "--seed" not in parser.format_help()


def test_a_stop_while_a_checkpoint_is_written_reaches_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not what writes the checkpoint, which is finished."""
    slow = tmp_path / "python"
    slow.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nsleep 1\ntouch {tmp_path}/finished\n")
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))

    def stop() -> None:
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    got: list[int] = []
    with forwarding(got.append):
        threading.Thread(target=stop).start()
        assert modelzoo_layout._convert(tmp_path / "step", tmp_path / "ckpt_0/0-1_1.ckpt") == 0
    assert got == [signal.SIGTERM]
    assert (tmp_path / "finished").exists()
