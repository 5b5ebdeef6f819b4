"""Core's own commands, recipes, decoder and sources, offered through the same hooks as a plugin's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from resnext_core.data.pillow import PILLOW
from resnext_core.data.sources.registry import CORE_KINDS
from resnext_core.hookspecs import hookimpl
from resnext_core.interfaces import Command, Decoder, Recipe, SourceKind

_COMMANDS = {
    "run": "the whole job: train, evaluate, export, validate, report",
    "train": "train, or continue a run",
    "find-lr": "find a learning rate: train a few steps with rising rates",
    "eval": "accuracy of weights or of an artefact, every image exactly once",
    "export": "write an artefact that another runtime serves, and check it against its source",
    "validate": "compare an artefact with its source on a folder of images",
    "average": "average the weights of several runs or checkpoints",
    "convert": "convert weights from and to torchvision, timm, mindcv and the ModelZoo, losslessly",
    "infer": "predict images: JSON lines, a table, pictures",
    "predict": "another name of infer",
    "bench": "measure throughput: training, evaluation, loading, every backend; compare results",
    "data": "write the demo data, or inspect a data set",
    "backends": "list backends and what each can do here",
    "doctor": "check this machine and every backend on it",
    "runs": "list, show, verify and prune run folders",
    "recipes": "list and show recipes",
    "report": "write report.html of a run again, or compare two runs",
}

#: Recipes, with other names that are accepted.
_RECIPES: dict[str, tuple[str, ...]] = {
    "digits": (),
    "photos": ("photos-small",),
    "photos-imbalanced": (),
    "finetune": (),
    "fast-16e": ("fast-18e",),
    "rsb-a1": (),
    "rsb-a2": (),
    "rsb-a3": (),
    "tv2-600e": (),
    "imagenet-150e": (),
}


#: Commands by the other names that people try first.
_ALIASES = {"predict": "infer"}


@hookimpl
def resnext_commands() -> Iterator[Command]:
    for name, summary in _COMMANDS.items():
        module = _ALIASES.get(name, name).replace("-", "_")
        yield Command(name=name, summary=summary, module=f"resnext_core.cli.{module}")


@hookimpl
def resnext_recipes() -> Iterator[Recipe]:
    folder = Path(__file__).parents[1] / "recipes"
    for name, others in _RECIPES.items():
        yield Recipe(name=name, path=folder / f"{name}.yaml", former_names=others)


@hookimpl
def resnext_decoders() -> Iterator[Decoder]:
    yield PILLOW


@hookimpl
def resnext_sources() -> Iterator[SourceKind]:
    yield from CORE_KINDS
