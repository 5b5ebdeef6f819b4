"""Recipes: YAML files that ship with core, by name, or a file of the user."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from resnext_core.config import Layer, read_layer
from resnext_core.errors import UsageError, shown, suggest

#: Recipe of a training on the user's own folder when none is named: small enough for a laptop.
DEFAULT_RECIPE = "photos-small"


#: Parts of recipe names that changed after 0.1, old to new. Old names are accepted; remove this with 0.3.
OLD_RECIPE_NAMES = {"seed-": "modelzoo-", "-ancestor-": "-modelzoo-"}


def recipe_names() -> list[str]:
    """Return the names of core's recipes."""
    folder = resources.files("resnext_core") / "recipes"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


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


def recipe_summary(name: str) -> str:
    """Return the first comment line of a recipe."""
    first = recipe_path(name).read_text(encoding="utf-8").splitlines()[0]
    return first.lstrip("# ").strip()
