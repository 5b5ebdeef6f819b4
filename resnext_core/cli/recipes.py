"""``resnext-run recipes``: list the recipes, or show one."""

from __future__ import annotations

import argparse

from resnext_core.console.flags import add_json_flag
from resnext_core.console.output import Output, table
from resnext_core.jobs.recipes import list_recipes, show_recipe

#: Nothing here computes: ``--backend`` is refused.
TAKES_BACKEND = False


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="recipe to print")
    add_json_flag(parser)


def handle(args: argparse.Namespace) -> int:
    output = Output(json_result=args.json)
    if args.name is not None:
        recipe = show_recipe(args.name)
        output.result(recipe.to_dict(), recipe.yaml.rstrip())
        return 0
    result = list_recipes()
    rows = [[name, result.origins[name], summary] for name, summary in result.summaries.items()]
    output.result(result.to_dict(), table(rows, ["recipe", "from", "summary"]))
    return 0
