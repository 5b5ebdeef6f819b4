"""``resnext-run recipes``: list the recipes, or show one."""

from __future__ import annotations

import argparse

from resnext_core.cli.common import add_json_flag
from resnext_core.cli.output import Output, table
from resnext_core.config import read_layer
from resnext_core.jobs.recipes import recipe_path, recipe_summary
from resnext_core.plugins import load_plugins


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="recipe to print")
    add_json_flag(parser)


def handle(args: argparse.Namespace) -> int:
    plugins, output = load_plugins(), Output(json_result=args.json)
    if args.name is not None:
        path = recipe_path(args.name, plugins)
        read_layer(path)  # only what can be used is shown
        text = path.read_text(encoding="utf-8")
        output.result({"name": args.name, "yaml": text}, text.rstrip())
        return 0
    recipes = {name: recipe_summary(recipe) for name, recipe in sorted(plugins.recipes.items())}
    origins = {name: plugins.origins["recipe", name] for name in recipes}
    rows = [[name, origins[name], text] for name, text in recipes.items()]
    output.result({"recipes": recipes, "origins": origins}, table(rows, ["recipe", "from", "what it is"]))
    return 0
