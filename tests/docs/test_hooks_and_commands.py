"""Every hook and command is documented, and every command line on a page parses."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import inspect
import re
import shlex
import sys
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from documents import CONTRACT, EXAMPLE, PAGES, READERS_ID, ROOT, blocks, page_id, without_blocks

from resnext_core import errors, hookspecs
from resnext_core.cli import commands as builtin
from resnext_core.config import load_config, parse_set
from resnext_core.jobs.recipes import recipe_path
from resnext_core.plugins import collect, load_plugins

HOOKS = {name: f for name, f in inspect.getmembers(hookspecs) if hasattr(f, f"{hookspecs.PROJECT}_spec")}


def test_there_are_hooks() -> None:
    assert set(HOOKS) >= {"resnext_backends", "resnext_commands"}


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_documented(name: str) -> None:
    table = CONTRACT.read_text().split("\n## Hooks\n")[1].split("\n## ")[0]
    assert f"| `{name}` |" in table


@pytest.mark.parametrize("name", HOOKS)
def test_example_of_every_hook_runs(name: str) -> None:
    example = textwrap.dedent(HOOKS[name].__doc__.split("Example::\n")[1])
    plugin = types.ModuleType("example_of_a_hook")
    plugin.__file__ = "plugin.py"
    exec(compile(example, name, "exec"), plugin.__dict__)
    found = collect([("resnext-mine", "mine", plugin)])
    assert not found.problems
    assert set(found.origins.values()) == {"resnext-mine"}


# -- commands ------------------------------------------------------------------------------------


#: The module; the package has a function of this name.
cli_main = importlib.import_module("resnext_core.cli.main")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A text in which people look up commands: whole command lines, and mentions in a sentence."""

    lines: str
    mentions: str = ""


def sources() -> dict[str, Source]:
    """Return pages, help texts and headers of recipes by name."""
    found = {}
    for page in PAGES:
        text = page.read_text()
        mentions = re.findall(r"`([^`\n]+)`", without_blocks(text))
        code = "\n".join(block.text for block in blocks(text))
        found[page_id(page)] = Source(lines=code, mentions="\n".join(mentions))
    for command in load_plugins().commands.values():
        epilog = getattr(importlib.import_module(command.module), "EPILOG", "")
        found[f"help of {command.name}"] = Source(lines=epilog)
    found["help"] = Source(lines=cli_main._EPILOG)
    for name, shipped in load_plugins().recipes.items():
        found[f"recipe {name}"] = Source(lines=shipped.path.read_text())
    return found


def command_lines(text: str) -> Iterator[list[str]]:
    """Yield the words after each ``resnext-run`` in `text`; usage with brackets or dots is left out."""
    for line in text.replace("\\\n", " ").splitlines():
        for match in re.finditer(r"(?<![\w/-])resnext-run(?= |$)([^|;&>#()`]*)", line):
            words = match[1].split("   ")[0]  # help puts the explanation behind three blanks
            if "[" not in words and "..." not in words:
                yield shlex.split(words)


def parse(
    words: list[str], patch: pytest.MonkeyPatch, *, mention: bool = False
) -> tuple[str, argparse.Namespace] | None:
    """Parse `words` by the real parsers without doing anything; None for --help and --version.

    A `mention` may leave out what the command requires.
    """
    seen: list[tuple[str, argparse.Namespace]] = []
    commands = load_plugins().commands
    for command in commands.values():
        module = importlib.import_module(command.module)

        def configure(parser: argparse.ArgumentParser, original: Any = module.configure) -> None:
            original(parser)
            for action in parser._actions:
                action.required = action.required and not mention

        def handle(args: argparse.Namespace, name: str = command.name, of: str = command.module) -> int:
            typed = [word for word in words if word in commands and commands[word].module == of]
            seen.append((typed[0] if typed else name, args))  # several names may stand for one module
            return 0

        patch.setattr(module, "configure", configure)
        patch.setattr(module, "handle", handle)
    with contextlib.suppress(SystemExit):  # --help and --version
        cli_main._run(list(words))
    patch.undo()
    return seen[0] if seen else None


def check_values(args: argparse.Namespace) -> None:
    """Refuse settings and recipes that do not exist."""
    options = {**load_plugins().option_types(), "example": _example_options()}
    absent = {path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml")} - set(options)
    given = [text for text in getattr(args, "set", []) if text.partition(".")[0] not in absent]
    load_config([layer for layer in parse_set(given) if "KEY" not in layer.values], options)
    recipe = getattr(args, "recipe", None)
    if recipe is not None and recipe not in ("NAME",) and not recipe.endswith(".yaml"):
        recipe_path(recipe, load_plugins())


def _example_options() -> type:
    path = EXAMPLE / "src" / "resnext_example" / "plugin.py"
    spec = importlib.util.spec_from_file_location("example_plugin_of_the_docs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.ExampleOptions


def backend_ids() -> set[str]:
    """Return the ids of this repository's distributions, installed or not."""
    entries = [p.read_text() for p in ROOT.glob("*/*/pyproject.toml")]
    entries += [p.read_text() for p in ROOT.glob("*/pyproject.toml")]
    names = [
        re.findall(r"^(\S+) = ", e.split("[project.entry-points.resnext]")[-1].split("\n[")[0], re.M)
        for e in entries
    ]
    return {"reference", READERS_ID}.union(*names)


@pytest.mark.parametrize("where", sources())
def test_commands_exist(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command line parses: the command, its flags, the settings and the recipe are there."""
    source = sources()[where]
    found = [(words, False) for words in command_lines(source.lines)]
    found += [(words, True) for words in command_lines(source.mentions)]
    for words, mention in found:
        try:
            parsed = parse(words, monkeypatch, mention=mention)
            if parsed is not None:
                check_values(parsed[1])
        except errors.ResnextError as error:
            pytest.fail(f"{where}: resnext-run {shlex.join(words)}: {error}")
        if "--backend" in words:
            assert words[words.index("--backend") + 1] in backend_ids() | {"ID"}, (where, words)


@pytest.mark.parametrize("mention", [False, True])
@pytest.mark.parametrize(
    "line",
    [
        "resnext-run trian --data DIR",
        "x | resnext-run eval --wieghts RUN --weights RUN",
        "RESNEXT_RANK=0 resnext-run run --set optimizer.lrr=0.1",
        "$ resnext-run train --recipe digit",
        "resnext-run train --set example.chunks=1",
    ],
)
def test_wrong_commands_would_be_found(line: str, mention: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    (words,) = command_lines(line)
    with pytest.raises(errors.UsageError, match="unknown"):  # noqa: PT012 - either of the two may refuse
        parsed = parse(words, monkeypatch, mention=mention)
        assert parsed is not None
        check_values(parsed[1])


def test_incomplete_commands_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.UsageError, match="required: --weights"):
        parse(["eval", "--data", "DIR"], monkeypatch)


def test_every_command_is_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a command line that is whole, on a page of docs/."""
    shown = {
        parsed[0]
        for where, source in sources().items()
        if where.startswith("docs/")
        for words in command_lines(source.lines)
        if (parsed := parse(words, monkeypatch)) is not None
    }
    assert shown >= set(builtin._COMMANDS), f"undocumented: {set(builtin._COMMANDS) - shown}"
