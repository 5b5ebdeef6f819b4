"""Recipes: YAML files that ship with core and plugins, by name, or a file of the user."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnext_core.config import Layer, read_layer
from resnext_core.errors import UsageError
from resnext_core.interfaces import Recipe
from resnext_core.plugins import PluginSet, load_plugins

#: Recipe of a training on the user's own folder when none is named: small enough for a laptop.
DEFAULT_RECIPE = "photos"


@dataclass(frozen=True, kw_only=True)
class RecipeList:
    """The recipes by name: what each is for, and the distribution that it comes from."""

    summaries: dict[str, str]
    origins: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {"recipes": self.summaries, "origins": self.origins}


@dataclass(frozen=True, kw_only=True)
class RecipeText:
    """One recipe as it is written."""

    name: str
    yaml: str

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {"name": self.name, "yaml": self.yaml}


def list_recipes() -> RecipeList:
    """Return all recipes, sorted by name."""
    plugins = load_plugins()
    summaries = {name: recipe_summary(recipe) for name, recipe in sorted(plugins.recipes.items())}
    return RecipeList(
        summaries=summaries, origins={name: plugins.origins["recipe", name] for name in summaries}
    )


def show_recipe(name: str) -> RecipeText:
    """Return the recipe `name`, or a YAML file; UsageError when it is unknown or cannot be used."""
    path = recipe_path(name, load_plugins())
    read_layer(path)  # only what can be used is shown
    return RecipeText(name=name, yaml=path.read_text(encoding="utf-8"))


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
