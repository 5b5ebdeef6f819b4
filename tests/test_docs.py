"""The documentation is true: the tutorial works as printed, commands and links exist, tables are right."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.util
import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import environment

from resnext_core import errors, hookspecs
from resnext_core.cli import commands as builtin
from resnext_core.cli.common import recipe_names, recipe_path
from resnext_core.config import Layer, load_config, parse_set
from resnext_core.plugins import collect, load_plugins
from resnext_core.testing import cases, prediction

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
EXAMPLE = ROOT / "plugins" / "example"
TUTORIAL = DOCS / "writing-a-backend.md"
CONTRACT = DOCS / "contract.md"
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *DOCS.rglob("*.md"),
        *ROOT.glob("plugins/*/README.md"),
        *ROOT.glob("resnext_*/README.md"),
        *ROOT.glob("benchmarks/*.md"),
    ]
)
#: The module; the package has a function of this name.
cli_main = importlib.import_module("resnext_core.cli.main")
#: The id that the tutorial gives to a reader's own backend.
READERS_ID = "mine"


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: its language, its text, and the bold path on the line above it, if there is one."""

    language: str
    text: str
    path: str | None


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    pattern = (
        r"(?:^\*\*`(?P<path>[^`\n]+)`\*\*\n\n)?^(?P<fence>`{3,})(?P<language>\w*)\n(?P<text>.*?)^(?P=fence)$"
    )
    for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        yield Block(language=match["language"], text=match["text"], path=match["path"])


def without_blocks(text: str) -> str:
    return re.sub(r"^(`{3,}).*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)


# -- the tutorial --------------------------------------------------------------------------------


def tutorial_files() -> dict[str, str]:
    """Return the plugin as the tutorial prints it: text by path."""
    files = {block.path: block.text for block in blocks(TUTORIAL.read_text()) if block.path is not None}
    assert len(files) >= 9, sorted(files)
    return files


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tutorial's plugin, typed in from the page and installed into a folder of its own."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name, text in tutorial_files().items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    install(source, target)
    return target


def install(source: Path, target: Path) -> None:
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", *offline, "--target", str(target), str(source)],
        env=environment(PIP_DISABLE_PIP_VERSION_CHECK="1"), capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def resnext_run(site: Path, cwd: Path, *words: object) -> str:
    """Run the command line in a fresh process that also sees the plugins in `site`; return its output."""
    done = subprocess.run(
        [sys.executable, "-m", "resnext_core.cli", *map(str, words)],
        cwd=cwd, env=environment(PYTHONPATH=str(site)), capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_tutorial_prints_the_example_plugin() -> None:
    """Every file, byte for byte, and no other."""
    built = {"__pycache__", "build"}
    files = {
        path.relative_to(EXAMPLE).as_posix(): path.read_text()
        for path in EXAMPLE.rglob("*")
        if path.is_file()
        and not any(part in built or part.endswith(".egg-info") for part in path.relative_to(EXAMPLE).parts)
    }
    printed = tutorial_files()
    assert sorted(printed) == sorted(files)
    for name, text in files.items():
        assert printed[name] == text, f"{name} is not what the tutorial prints"


def test_tutorial_backend_is_found(site: Path, tmp_path: Path) -> None:
    found = {b["id"]: b for b in json.loads(resnext_run(site, tmp_path, "backends", "--json"))["backends"]}
    assert found["example"]["distribution"] == "resnext-example"
    assert found["example"]["available"]
    assert found["example"]["formats"] == [".safetensors", ".npz"]


def test_tutorial_backend_passes_doctor(site: Path, tmp_path: Path) -> None:
    out = resnext_run(site, tmp_path, "--backend", "example", "doctor", "--json")
    (checked,) = json.loads(out)["backends"]
    assert (checked["id"], checked["state"]) == ("example", "ready")
    assert 0 < checked["difference"] <= 1e-5


def test_tutorial_backend_infers_evaluates_and_exports(
    site: Path, tmp_path: Path, photos: Path, weights_file: Path
) -> None:
    """Its weights and its artefact give the logits and the counts of the reference backend."""
    small = ["--set", "data.workers=0", "--set", "eval.batch_size=4"]

    def logits(backend: str, model: Path) -> np.ndarray:
        path = tmp_path / f"{backend}-{model.suffix[1:]}.npy"
        words = ["--backend", backend, "infer", "--weights", model, "--logits", path]
        resnext_run(site, tmp_path, *words, *small, photos / "val" / "ant")
        return np.load(path)

    artefact = tmp_path / "model.npz"
    resnext_run(site, tmp_path, "export", "--weights", weights_file, "--format", "npz", "--to", artefact)
    expected = logits("reference", weights_file)
    assert expected.shape == (4, 6)
    for model in (weights_file, artefact):
        assert np.abs(logits("example", model) - expected).max() <= 1e-5 * np.abs(expected).max()

    results = []
    for backend, model in (("reference", weights_file), ("example", weights_file), ("example", artefact)):
        words = ["--backend", backend, "eval", "--weights", model, "--data", photos, "--json", *small]
        results.append(json.loads(resnext_run(site, tmp_path, *words)))
    assert [r["backend"] for r in results] == ["reference", "example", "example"]
    for key in ("expected", "scored", "correct1", "correct5", "confusion", "digest"):
        assert len({json.dumps(r[key]) for r in results}) == 1, key


def test_tutorial_tests_pass(site: Path, tmp_path: Path) -> None:
    """The contract kit and the plugin's own tests, as the tutorial prints them, against what it installs."""
    for name, text in tutorial_files().items():
        if name.startswith("tests/"):
            (tmp_path / Path(name).name).write_text(text)
    quietly = ["-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *quietly, str(tmp_path)],
        cwd=tmp_path, env=environment(PYTHONPATH=str(site), RESNEXT_REQUIRE="example"), capture_output=True,
        text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    summary = done.stdout.splitlines()[-1]
    assert int(re.search(r"(\d+) passed", summary)[1]) >= 50, summary


def test_tutorial_renames_into_a_backend_of_ones_own(tmp_path: Path) -> None:
    """The commands of "Make it yours" give a plugin that works under its new name."""
    section = TUTORIAL.read_text().split("\n## Make it yours\n")[1]
    script = next(blocks(section)).text
    copied = tmp_path / "plugins" / "example"
    shutil.copytree(EXAMPLE, copied, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, check=True, timeout=60)
    site = tmp_path / "site"
    install(tmp_path / "my-backend", site)
    out = resnext_run(site, tmp_path, "--backend", READERS_ID, "doctor", "--json")
    assert [b["state"] for b in json.loads(out)["backends"]] == ["ready"]


# -- hooks ---------------------------------------------------------------------------------------

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
    exec(compile(example, name, "exec"), plugin.__dict__)
    found = collect([("resnext-mine", "mine", plugin)])
    assert not found.problems
    assert list(found.origins.values()) == ["resnext-mine"]


# -- commands ------------------------------------------------------------------------------------


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
    for name in recipe_names():
        found[f"recipe {name}"] = Source(lines=recipe_path(name).read_text())
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
    for command in load_plugins().commands.values():
        module = importlib.import_module(command.module)

        def configure(parser: argparse.ArgumentParser, original: Any = module.configure) -> None:
            original(parser)
            for action in parser._actions:
                action.required = action.required and not mention

        def handle(args: argparse.Namespace, name: str = command.name) -> int:
            seen.append((name, args))
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
        recipe_path(recipe)


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


# -- pages ---------------------------------------------------------------------------------------


def slugs(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def broken_links(page: Path) -> list[str]:
    """Return the relative links of `page` whose file or heading is not there."""
    text = without_blocks(page.read_text())
    links = re.findall(r"\]\(\s*<?([^)\s>]+)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    broken = []
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        missing = not target.exists() or not target.is_relative_to(ROOT)
        if missing or (anchor and target.suffix == ".md" and anchor not in slugs(target.read_text())):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_broken_links_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '# A head\n[a](page.md#a-head) [b](page.md#b) [c](no.md) <img src="no.png"> [d](https://a.b)\n'
    )
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert broken_links(page) == ["page.md#b", "no.md", "no.png"]


@pytest.mark.parametrize("page", [p for p in PAGES if p != TUTORIAL], ids=page_id)
def test_python_on_pages_runs(page: Path) -> None:
    for block in blocks(page.read_text()):
        if block.language == "python":
            exec(compile(block.text, page_id(page), "exec"), {"__name__": "page"})


def test_pages_are_plain() -> None:
    """No path of a machine, and no page without a title."""
    for page in PAGES:
        text = page.read_text()
        assert not re.search(r"(?<![\w.])/(?:work|home|root|tmp|Users)/", text), page_id(page)
        assert not text or text.startswith(("# ", "<")), page_id(page)


# -- tables against the code ---------------------------------------------------------------------


def rows(page: Path, heading: str) -> list[list[str]]:
    """Return the cells of the first table under a heading, without its head."""
    section = page.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line.strip().strip("|").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def test_exit_codes_match() -> None:
    table = {int(code): error.strip("` |") for code, _, error in rows(CONTRACT, "Exit codes") if error}
    classes = {
        cls.exit_code: name
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, errors.ResnextError) and cls is not errors.ResnextError
    }
    assert {k: v for k, v in table.items() if v} == classes
    assert set(table) | {errors.EXIT_OK, errors.EXIT_BUG} == {
        value for name, value in vars(errors).items() if name.startswith("EXIT_")
    }


def emitted_records() -> dict[str, set[str]]:
    """Return the fields of every record written in core's code, by kind; read from its syntax trees."""
    found: dict[str, set[str]] = {}
    core = ROOT / "resnext_core"
    for path in (
        *(core / "training").glob("*.py"),
        core / "data" / "unreadable.py",
        core / "cli" / "train.py",
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Dict):
                continue
            pairs = [
                (k.value, v)
                for k, v in zip(node.keys, node.values, strict=True)
                if isinstance(k, ast.Constant)
            ]
            for key, value in pairs:
                if key != "kind":
                    continue
                kinds = [c.value for c in ast.walk(value) if isinstance(c, ast.Constant) and c.value]
                for kind in kinds:
                    found.setdefault(kind, set()).update(k for k, _ in pairs)
    return found


def documented_records() -> dict[str, set[str]]:
    """Return the fields of every kind of record in contract.md, without those that all have."""
    table = {row[0].strip("`"): "".join(row[2:]) for row in rows(CONTRACT, "Records")}
    return {kind: set(re.findall(r"`(\w+)`", fields)) for kind, fields in table.items()}


def test_records_match() -> None:
    documented = documented_records()
    written = emitted_records()
    assert written.pop("progress")
    assert set(documented) == set(written)
    for kind, fields in written.items():
        assert fields - {"kind", "step"} <= documented[kind], f"{kind} has fields that are not documented"


def test_documented_records_are_written(finished_run: Path) -> None:
    documented = documented_records()
    records: dict[str, dict[str, Any]] = {}
    for line in (finished_run / "records.jsonl").read_text().splitlines():
        record = json.loads(line)
        records[record["kind"]] = record
    assert set(records) == set(documented) - {
        "resume",
        "note",
        "nonfinite",
        "bad_image",
    }  # what this run did not meet
    for kind, record in records.items():
        assert set(record) - {"kind", "step", "time"} == documented[kind], kind


def test_environment_variables_match() -> None:
    used: set[str] = set()
    for folder in (ROOT / "resnext_core", ROOT / "plugins", *ROOT.glob("resnext_*/")):
        for path in folder.rglob("*.py"):
            used |= set(re.findall(r"(?<!-D)(?<!define )RESNEXT_[A-Z_]+[A-Z]", path.read_text()))
    documented = set(
        re.findall(r"RESNEXT_[A-Z_]+[A-Z]", CONTRACT.read_text().split("## Environment variables")[1])
    )
    assert documented == used


def test_tolerances_match() -> None:
    table = {row[0]: row[1] for row in rows(CONTRACT, "Tolerances")}
    doctor = importlib.import_module("resnext_core.jobs.backend_check")
    export = importlib.import_module("resnext_core.cli.export")
    for label, value in (
        ("float32 logits", cases.TOLERANCE),
        ("momentum", cases.GRADIENT_TOLERANCE),
        ("the same sample", prediction.INVARIANCE_TOLERANCE),
        ("loss and weights after a step in float16", cases.LOW_TOLERANCE),
        ("golden logits", doctor.TOLERANCE),
        ("artefact against source", export.TOLERANCE),
    ):
        (text,) = (v for k, v in table.items() if k.startswith(label))
        assert float(re.match(r"[\d.e-]+", text)[0]) == value, label


def test_layers_are_those_of_the_linter() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    layers = re.findall(r'"(.+?)"', re.search(r"^layers = \[\n(.*?)^\]", project, re.M | re.S)[1])
    assert 1 < len(layers) <= 9
    section = (DOCS / "architecture.md").read_text().split("\n## Layers of core\n")[1]
    assert next(blocks(section)).text.splitlines() == layers
    contracts = re.findall(r'^name = "(.+)"$', project.split("[tool.importlinter]")[1], re.M)
    assert len(contracts) >= 4
    text = (DOCS / "architecture.md").read_text()
    for name in contracts:
        assert f"**{name}**" in text, name


@pytest.mark.parametrize(
    ("page", "heading"),
    [
        (DOCS / "architecture.md", "Read these five first"),
        (ROOT / "README.md", "Read these five files first"),
    ],
    ids=["architecture", "README"],
)
def test_files_to_read_first_are_as_long_as_stated(page: Path, heading: str) -> None:
    table = rows(page, heading)
    assert len(table) == 5
    for link, lines, _ in table:
        path = page.parent / re.search(r"\((.+)\)", link)[1]
        actual = len(path.read_text().splitlines())
        assert abs(actual - int(lines)) <= 0.15 * actual, f"{path.name} has {actual} lines"


def test_decisions_are_numbered_and_listed() -> None:
    pages = sorted((DOCS / "decisions").glob("*.md"))
    assert [int(p.name[:4]) for p in pages] == list(range(1, len(pages) + 1))
    overview = (DOCS / "architecture.md").read_text()
    for page in pages:
        assert f"decisions/{page.name}" in overview
        assert page.read_text().startswith(f"# {page.name[:4]}. ")
        for part in ("Context", "Decision", "Consequences"):
            assert f"**{part}.**" in page.read_text(), page.name


def test_tests_on_pages_exist() -> None:
    """Every fault of reliability.md has a test or says that it has none, and the tests are there."""
    page = DOCS / "reliability.md"
    for name, test in (named := re.findall(r"`([\w/]+\.py)::(\w+)`", page.read_text())):
        assert f"\ndef {test}(" in (ROOT / name).read_text(), f"{name}::{test}"
    assert len(named) > 40
    headings = re.findall(r"^## (.+)\n\n\| fault ", page.read_text(), re.M)
    assert {"Ends", "Processes", "Disks", "Outputs", "Numbers", "Images"} < set(headings)
    for heading in headings:
        for fault, _, _, shown in rows(page, heading):
            assert re.search(r"::test_|the contract kit|by hand|not tested", shown), fault


def test_config_keys_on_pages_exist() -> None:
    """Dotted names of settings in the text are settings."""
    sections = load_config([Layer(source="defaults", values={})])[0].to_dict()
    for page in PAGES:
        for section, key in re.findall(r"`(\w+)\.(\w+)[`:=]", without_blocks(page.read_text())):
            if section in sections and key not in ("py", "md", "yaml", "txt"):
                assert key in sections[section], f"{page_id(page)}: {section}.{key}"
