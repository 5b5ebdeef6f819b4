"""Recipes: YAML files that ship with core and plugins, by name, or a file of the user."""

from __future__ import annotations

from pathlib import Path

from resnext_core.config import Layer, read_layer
from resnext_core.errors import UsageError
from resnext_core.interfaces import Recipe
from resnext_core.plugins import PluginSet

#: Recipe of a training on the user's own folder when none is named: small enough for a laptop.
DEFAULT_RECIPE = "photos-small"


def recipe_path(name: str, plugins: PluginSet) -> Path:
    """Return the file of a recipe by name, or of a YAML path; UsageError with a suggestion when unknown."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(name)
    return plugins.recipe(name).path


def read_recipe(name: str, plugins: PluginSet) -> Layer:
    """Read a recipe as a configuration layer."""
    layer = read_layer(recipe_path(name, plugins))
    return Layer(source=f"recipe {name}", values=layer.values)


def recipe_summary(recipe: Recipe) -> str:
    """Return the first comment line of a recipe, or why its file cannot be read."""
    try:
        read_layer(recipe.path)
    except UsageError as error:
        return str(error)
    return recipe.path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ").strip()
