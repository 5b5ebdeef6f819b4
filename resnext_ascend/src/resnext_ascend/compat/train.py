"""The ModelZoo's train.py."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnext_ascend import modelarts
from resnext_ascend.compat import child, flags, log, old_config
from resnext_ascend.compat.modelzoo_layout import ModelZooLayout
from resnext_core.errors import EXIT_OK, UsageError
from resnext_core.files.scratch import Scratch
from resnext_core.ranks.info import rank_info

RECIPE = "modelzoo-ascend-150e"
#: Spellings of --modelzoo-layout up to 0.1, accepted and not listed in --help; remove with 0.3.
OLD_FLAGS = ("--seed-layout", "--seed_layout")
#: Flags without effect, and why.
NO_EFFECT = {key: old_config.NO_EFFECT[key] for key in (
    "save_best_ckpt", "eval_log_path", "eval_is_distributed", "use_python_multiprocessing",
)}  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    flags.add_platform(parser)
    parser.add_argument("--data_dir", metavar="DIR", help="training images: class folders, or train/ in it")
    parser.add_argument("--per_batch_size", type=int, metavar="N", help="images per step and device (128)")
    parser.add_argument("--pretrained", metavar="FILE", help="checkpoint to start from")
    flags.add_ranks(parser, default=1)
    parser.add_argument("--data_sink_mode", type=flags.boolean, metavar="BOOL", help="ascend.sink (True)")
    parser.add_argument(
        "--lr", type=float, help="learning rate, not scaled (default: 0.4 at 8 x 128, scaled to the batch)"
    )
    parser.add_argument("--train_url", metavar="DIR", help="where runs go (outputs), or an object-store URL")
    parser.add_argument("--eval_interval", type=int, metavar="N", help="epochs between evaluations (1)")
    parser.add_argument("--eval_start_epoch", type=int, metavar="N", help="first epoch to evaluate (120)")
    parser.add_argument("--eval_data_dir", metavar="DIR", help="evaluation images; needed for --run_eval")
    parser.add_argument("--eval_per_batch_size", type=int, metavar="N", help="evaluation batch (32)")
    parser.add_argument("--run_eval", type=flags.boolean, metavar="BOOL", help="evaluate in training (False)")
    for name, reason in NO_EFFECT.items():
        parser.add_argument(f"--{name}", metavar="X", help=f"no effect: {reason}")
    parser.add_argument("--config_path", metavar="FILE", help="an old default_config.yaml")
    parser.add_argument(
        "--modelzoo-layout", "--modelzoo_layout", action="store_true",
        help="new: also write checkpoints under the ModelZoo's names, ckpt_0/0-EPOCH_STEP.ckpt",
    )  # fmt: skip
    parser.add_argument(*OLD_FLAGS, dest="modelzoo_layout", action="store_true", help=argparse.SUPPRESS)
    modelarts.add_flags(parser)


def handle(args: argparse.Namespace) -> int:
    old = old_config.read(Path(args.config_path)) if args.config_path else old_config.OldConfig()
    for line in old.report:
        log.say(line, "WARNING")
    for name, reason in NO_EFFECT.items():
        if getattr(args, name) is not None:
            log.say(f"--{name} no longer has an effect: {reason}", "WARNING")
    given = {**old.flags, **{k: v for k, v in vars(args).items() if v is not None}}
    with (
        modelarts.synchronised(given) as local,
        Scratch("compat") as folder,
    ):
        return _train(args, old, local, folder)


def _train(
    args: argparse.Namespace, old: old_config.OldConfig, given: Mapping[str, Any], folder: Path
) -> int:
    ranks = flags.ranks_of(args)
    output = Path(given.get("train_url", "outputs"))
    values = settings(given, old, ranks)
    words = ["train", "--recipe", RECIPE, "--output", str(output), *flags.config_files(values, folder)]
    pretrained = given.get("pretrained")
    epochs = log.Epochs()
    main = not ranks.member or rank_info().is_main
    layout = ModelZooLayout(output / "ckpt_0") if args.modelzoo_layout and main else None

    def on_record(run: Path, record: dict[str, Any]) -> None:
        if record["kind"] == "note" and record["text"].startswith("starting from"):
            log.say(log.loaded(pretrained))
        for line in epochs(record):
            log.say(line)
        if layout is not None:
            layout(run, record)

    follower = child.Follower(on_record)
    code = child.run(flags.command(flags.PLATFORMS[args.platform], ranks, words, output / "ranks"), follower)
    follower.read_records()
    if code == EXIT_OK and layout is not None and follower.run is not None:
        code = layout.finish(follower.run)
    return code


def settings(
    given: Mapping[str, Any], old: old_config.OldConfig, ranks: flags.Ranks
) -> dict[str, dict[str, Any]]:
    """Return the settings of old flags and configuration, which override the recipe."""
    if not given.get("data_dir"):
        raise UsageError("--data_dir is missing: the folder of the training images")
    found = flags.Settings()
    for section, values in old.values.items():
        for key, value in values.items():
            found.set(f"{section}.{key}", value)
    data = Path(given["data_dir"])
    run_eval = _boolean(given.get("run_eval", False))
    found.set("data.dir", str(data))
    nested = (data / "train").is_dir()
    found.set("data.train", "train" if nested else ".")
    if given.get("eval_data_dir"):
        found.set("data.val", str(Path(given["eval_data_dir"]).absolute()))
    elif run_eval and not nested:
        raise UsageError("--run_eval True needs --eval_data_dir, the folder of the evaluation images")
    found.set("train.batch_size", int(given.get("per_batch_size", 128)) * ranks.world)
    if given.get("lr") is not None:
        found.set("optimizer.lr", float(given["lr"]))
        found.values["optimizer"]["lr_batch"] = None
    # Without --run_eval the last epoch alone is evaluated, where there are images for it.
    found.set("train.eval_start", int(given.get("eval_start_epoch", 120)) if run_eval else 10**6)
    found.set("train.eval_every", int(given.get("eval_interval", 1)))
    found.set("eval.batch_size", int(given.get("eval_per_batch_size", 32)))
    found.set("model.pretrained", given.get("pretrained"))
    if given.get("platform", "Ascend") == "Ascend":
        found.set("ascend.sink", given.get("data_sink_mode"))
        found.set("ascend.rank_table", ranks.table)
    return found.values


def _boolean(value: Any) -> bool:
    return value if isinstance(value, bool) else flags.boolean(str(value))
