"""Flags that several commands share, and what they resolve to."""

from __future__ import annotations

import argparse
from importlib import resources
from pathlib import Path
from typing import Any

from resnext_core.config import Config, Layer, load_config, parse_set, read_layer
from resnext_core.errors import EXIT_OK, UsageError, shown, suggest
from resnext_core.files import local_path
from resnext_core.interfaces import Backend
from resnext_core.plugins import PluginSet

#: Recipe of a whole job on the user's own folder when no recipe is named: small enough for a laptop.
DEFAULT_RECIPE = "photos-small"

#: Flags that stand for one value of the configuration.
_SHORT = {
    "data": ("data", "dir"),
    "epochs": ("train", "epochs"),
    "batch_size": ("train", "batch_size"),
    "seed": ("train", "seed"),
    "pretrained": ("model", "pretrained"),
    "num_classes": ("model", "num_classes"),
    "output": ("output", "dir"),
    "name": ("output", "name"),
}


def add_config_flags(parser: argparse.ArgumentParser, *, recipe: bool = True) -> None:
    """Add the flags that make up the configuration; `recipe` False where another flag gives it."""
    group = parser.add_argument_group("configuration (later ones win)")
    if recipe:
        group.add_argument(
            "--recipe", metavar="NAME", help="a recipe of 'resnext-run recipes', or a YAML file"
        )
    group.add_argument("--config", metavar="FILE", action="append", default=[], help="YAML over the recipe")
    group.add_argument("--data", metavar="DIR", help="folder with train/ and val/ (data.dir)")
    group.add_argument("--epochs", type=int, metavar="N", help="train.epochs")
    group.add_argument(
        "--batch-size", type=int, metavar="N", help="global batch of a step (train.batch_size)"
    )
    group.add_argument("--seed", type=int, metavar="N", help="train.seed")
    group.add_argument(
        "--pretrained", metavar="FILE", help="weights to start a training from (model.pretrained)"
    )
    group.add_argument(
        "--num-classes",
        type=int,
        metavar="K",
        help="classes; replaces the head of --pretrained (model.num_classes)",
    )
    group.add_argument("--output", metavar="DIR", help="parent of run folders (output.dir)")
    group.add_argument("--name", metavar="NAME", help="name of the run folder (output.name)")
    group.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="any value, e.g. --set optimizer.lr=0.1",
    )
    group.add_argument(
        "--print-config", action="store_true", help="show every value and where it came from, then stop"
    )


def add_devices_flag(parser: argparse.ArgumentParser) -> None:
    """Add --devices."""
    parser.add_argument(
        "--devices", type=positive, default=1, metavar="N", help="processes to start, one a device"
    )


def positive(text: str) -> int:
    """Parse an integer from 1 on, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer from 1, not '{text}'")
    return int(text)


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print one JSON result on standard output")


def config_words(args: argparse.Namespace) -> list[str]:
    """Return the configuration flags again, for other processes of the same command."""
    words = [f"--recipe={args.recipe}"] if args.recipe else []
    words += [f"--config={path}" for path in args.config]
    for flag in _SHORT:
        value = getattr(args, flag)
        if value is not None:
            words.append(f"--{flag.replace('_', '-')}={value}")
    return words + [f"--set={assignment}" for assignment in args.set]


def resolve_config(
    args: argparse.Namespace,
    plugins: PluginSet,
    *,
    default_recipe: str | None = None,
    base: Layer | None = None,
) -> tuple[Config, dict[str, str]]:
    """Merge recipe, config files and flags; `base` (a run's own config) stands in for the recipe.

    With --print-config the result is printed and the command ends, as after --help.
    """
    layers: list[Layer] = []
    if base is not None:
        layers.append(base)
    recipe = args.recipe or (None if base is not None else default_recipe)
    if recipe is not None:
        layers.append(read_recipe(recipe))
    layers += [read_layer(Path(path)) for path in args.config]
    for flag, (section, key) in _SHORT.items():
        value = getattr(args, flag)
        if value is not None:
            source = f"--{flag.replace('_', '-')} {value}"
            layers.append(Layer(source=source, values={section: {key: value}}))
    layers += parse_set(args.set)
    config, sources = load_config(layers, plugins.option_types())
    data = config.data
    for given in (
        data.dir, data.train, data.val, data.test, data.quarantine, config.model.pretrained, config.output.dir
    ):  # fmt: skip
        local_path(given or "")
    if args.print_config:
        _print_config(config, sources)
        raise SystemExit(EXIT_OK)
    return config, sources


def recipe_names() -> list[str]:
    """Return the names of core's recipes."""
    folder = resources.files("resnext_core") / "recipes"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


#: Parts of recipe names that changed after 0.1, old to new. Old names are accepted; remove this with 0.3.
OLD_RECIPE_NAMES = {"seed-": "modelzoo-", "-ancestor-": "-modelzoo-"}


def recipe_path(name: str) -> Path:
    """Return the file of a recipe by name, or of a YAML path; UsageError with a suggestion when unknown."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(name)
    for old, new in OLD_RECIPE_NAMES.items():
        name = name.replace(old, new)
    if name not in recipe_names():
        raise UsageError(f"unknown recipe '{shown(name)}'{suggest(name, recipe_names())}")
    return Path(str(resources.files("resnext_core") / "recipes" / f"{name}.yaml"))


def read_recipe(name: str) -> Layer:
    """Read a recipe as a configuration layer."""
    layer = read_layer(recipe_path(name))
    return Layer(source=f"recipe {name}", values=layer.values)


def _print_config(config: Config, sources: dict[str, str]) -> None:
    """Print the resolved configuration as YAML with the source of each value as a comment."""
    import yaml

    for section, values in config.to_dict().items():
        print(f"{section}:")
        for key, value in values.items():
            text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
            print(f"  {f'{key}: {text}':<50} # {sources[f'{section}.{key}']}")


def backend_options(config: Config, backend: Backend) -> Any:
    """Return the validated options of `backend`, None when it has none."""
    return config.backends.get(backend.id)
