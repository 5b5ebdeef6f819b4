"""Plugins found through fake distributions on disk: good ones work, every broken one is one line and no more."""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine, Outcome, environment, in_process, write_plugin

from resnext_core.errors import BackendUnavailable, UsageError
from resnext_core.interfaces import READY, Backend, Readiness
from resnext_core.jobs.settings import stored_config
from resnext_core.plugins import PluginSet, load_plugins
from resnext_core.runs.folder import RunFolder
from resnext_core.serving.load import server_of

GOOD = """
from dataclasses import dataclass
from resnext_core.hookspecs import hookimpl
from resnext_core.interfaces import READY, Backend, Command, Readiness

@dataclass(frozen=True, kw_only=True)
class Options:
    threads: int = 2

@hookimpl
def resnext_backends():
    yield Backend(id="{id}", summary="a good one", probe=lambda: {probe}, priority={priority}, options=Options)

@hookimpl
def resnext_commands():
    yield Command(name="{id}-tool", summary="its tool", module="{module}")
"""

HEAD = "from resnext_core.hookspecs import hookimpl\nfrom resnext_core.interfaces import READY, Backend, Command\n"
LACKING = "Readiness(state='missing', reason='its driver is missing')"
CPU = "Readiness(state='test mode', reason='no device, it computes on the CPU')"
half = """
@hookimpl
def resnext_backends():
    yield Backend(id="half", summary="a good one", probe=lambda: READY)

@hookimpl
def resnext_weight_files():
    yield 7
"""
BROKEN = {
    "raises": "raise OSError('libfoo.so.7 not found')\n",
    "syntax": "def (:\n",
    "missing": "import a_module_that_nobody_has\n",
    "garbage": HEAD + "@hookimpl\ndef resnext_backends():\n    yield 'a string'\n",
    "nothing": HEAD + "@hookimpl\ndef resnext_backends():\n    return 5\n",
    "throws": HEAD + "@hookimpl\ndef resnext_backends():\n    raise RuntimeError('two\\nlines')\n    yield\n",
    "old": HEAD
    + "@hookimpl\ndef resnext_backends():\n"
    + "    yield Backend(id='old', summary='s', probe=lambda: READY, api_version=99)\n",
    "upper": HEAD
    + "@hookimpl\ndef resnext_backends():\n    yield Backend(id='Upper', summary='s', probe=lambda: READY)\n",
    "section": HEAD
    + "@hookimpl\ndef resnext_backends():\n    yield Backend(id='train', summary='s', probe=lambda: READY)\n",
    "options": HEAD
    + "from dataclasses import dataclass\n@dataclass\nclass O:\n    needed: int\n"
    + "@hookimpl\ndef resnext_backends():\n"
    + "    yield Backend(id='options', summary='s', probe=lambda: READY, options=O)\n",
    "undefined": HEAD
    + "@hookimpl\ndef resnext_backends():\n"
    + "    yield Backend(id='undefined', summary='s', probe=lambda: READY, options=int)\n",
    "misspelt": HEAD + "@hookimpl\ndef resnext_backend():\n    yield\n",
    "recipe": HEAD
    + "from resnext_core.interfaces import Recipe\n"
    + "@hookimpl\ndef resnext_recipes():\n    yield Recipe(name='a/b.yaml', path=None)\n",
    "recipes": HEAD + "@hookimpl\ndef resnext_recipes():\n    yield 'mine'\n",
    "half": HEAD + half,
    "command": HEAD + "@hookimpl\ndef resnext_commands():\n    yield 3\n",
    "decoding": HEAD + "@hookimpl\ndef resnext_decoders():\n    yield 'mine'\n",
    "anything": HEAD
    + "from resnext_core.interfaces import Decoder\n"
    + "@hookimpl\ndef resnext_decoders():\n"
    + "    yield Decoder(name='auto', summary='s', probe=lambda: READY, open=print)\n",
    "kindless": HEAD + "@hookimpl\ndef resnext_sources():\n    yield 'mine'\n",
    "partless": HEAD
    + "from resnext_core.interfaces import SourceKind\n"
    + "@hookimpl\ndef resnext_sources():\n"
    + "    yield SourceKind(name='mine', summary='s', claims=print, open=print, parts=('train.csv',))\n",
    "nameless": HEAD
    + "from resnext_core.interfaces import Decoder\n"
    + "@hookimpl\ndef resnext_decoders():\n"
    + "    yield Decoder(name='mine', summary='s', probe=lambda: READY, open=lambda: None)\n",
}

DECODERS = """
from resnext_core.hookspecs import hookimpl
from resnext_core.interfaces import READY, Decoder, Readiness

@hookimpl
def resnext_decoders():
    yield Decoder(name="fast", summary="s", probe=lambda: READY, open=print, priority=5, threads=True)
    yield Decoder(name="faster", summary="s", probe=lambda: {probe}, open=print, priority=6)
"""


def good(id: str = "good", probe: str = "READY", priority: int = -5, module: str = "nowhere") -> str:
    return GOOD.format(id=id, probe=probe, priority=priority, module=module)


def loaded() -> PluginSet:
    importlib.invalidate_caches()
    load_plugins.cache_clear()
    return load_plugins()


def test_a_good_plugin_is_found_with_its_options_and_commands(site: Path) -> None:
    write_plugin(site, "good", good())
    found = loaded()
    assert found.problems == ()
    assert set(found.backends) == {"good", "reference"}
    assert found.origins["backend", "good"] == "dist-good"
    assert found.option_types()["good"]().threads == 2
    assert "good-tool" in found.commands


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_one_line_and_the_others_work(site: Path, kind: str) -> None:
    write_plugin(site, kind, BROKEN[kind])
    write_plugin(site, "good", good())
    found = loaded()
    assert set(found.backends) == {"good", "reference"}
    assert len(found.problems) == 1
    assert f"plugin '{kind}' of dist-{kind} " in found.problems[0]
    assert "\n" not in found.problems[0]
    assert set(found.commands) >= {"train", "eval", "good-tool"}


def test_what_is_wrong_is_said(site: Path) -> None:
    for kind, source in BROKEN.items():
        write_plugin(site, kind, source)
    lines = {line.split("'")[1]: line for line in loaded().problems}
    assert set(lines) == set(BROKEN)
    assert lines["raises"].endswith("failed to load: OSError: libfoo.so.7 not found")
    assert lines["garbage"].endswith("resnext_backends must yield Backend records, not str")
    assert "'old' is written for API 99, this resnext-core has" in lines["old"]
    assert lines["throws"].endswith("RuntimeError: two lines")
    assert "'train' is the name of a config section" in lines["section"]
    assert "must be lower-case" in lines["upper"]
    assert "cannot be made without arguments" in lines["options"]
    assert "options must be a dataclass" in lines["undefined"]
    assert "resnext_backend" in lines["misspelt"]
    assert lines["command"].endswith("resnext_commands must yield Command records, not int")
    assert lines["decoding"].endswith("resnext_decoders must yield Decoder records, not str")
    assert "must be a name of letters, digits and dashes other than auto" in lines["anything"]
    assert lines["nameless"].endswith("open must be a function or class of a module")
    assert lines["recipe"].endswith("recipe 'a/b.yaml' must be a plain name: a path is a user's own file")
    assert lines["recipes"].endswith("resnext_recipes must yield Recipe records, not str")
    assert lines["half"].endswith("resnext_weight_files must yield WeightFile records, not int")


def test_a_clash_names_both_distributions(site: Path, cli_here: CommandLine) -> None:
    write_plugin(site, "one", good("twin"), distribution="dist-one")
    write_plugin(site, "two", good("twin"), distribution="dist-two")
    found = loaded()
    assert set(found.backends) == {"reference"}
    line = "backend 'twin' is claimed by dist-one and dist-two; none of them is used"
    assert line in found.problems
    says = "backend 'twin' is claimed by dist-one and dist-two; uninstall one"
    cli_here.refuses(2, "--backend", "twin", "train", says=says)


def test_no_plugin_can_take_away_what_core_has(site: Path) -> None:
    rude = good("reference").replace("reference-tool", "train")
    write_plugin(site, "rude", rude)
    found = loaded()
    assert found.origins["backend", "reference"] == found.origins["command", "train"] == "resnext-core"
    assert found.backends["reference"].summary.startswith("NumPy")
    assert found.problems == (
        "backend 'reference' of dist-rude is not used: resnext-core has one of that name",
        "command 'train' of dist-rude is not used: resnext-core has one of that name",
    )


def test_the_best_decoder_that_is_ready_is_taken(site: Path) -> None:
    assert loaded().decoder("auto").name == "pillow"
    write_plugin(site, "native", DECODERS.format(probe=LACKING))
    found = loaded()
    assert found.problems == ()
    assert found.decoder("auto").name == found.decoder("fast").name == "fast"
    assert found.decoder("pillow").name == "pillow"
    says = r"^data\.decoder 'faster' is not available: its driver is missing$"
    with pytest.raises(BackendUnavailable, match=says):
        found.decoder("faster")
    with pytest.raises(UsageError, match=r"^unknown data\.decoder 'fst'; did you mean 'fast'\?"):
        found.decoder("fst")


def test_a_decoder_in_test_mode_is_only_taken_by_name(site: Path) -> None:
    write_plugin(site, "native", DECODERS.format(probe=CPU))
    assert loaded().decoder("auto").name == "fast"
    assert loaded().decoder("faster").name == "faster"


@pytest.fixture
def cli_here(capfd: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line in this process, with the plugins that are in `site` at the time of a call."""
    inner = in_process(capfd)

    def call(words: list[str]) -> Outcome:
        importlib.invalidate_caches()
        load_plugins.cache_clear()
        return inner.call(words)

    return CommandLine(call=call)


def test_backends_command_shows_all_of_it(site: Path, cli_here: CommandLine) -> None:
    write_plugin(site, "fine", good("fine"))
    write_plugin(site, "lacking", good("lacking", probe=LACKING))
    write_plugin(site, "probing", good("probing", probe="1 / 0"))
    write_plugin(site, "pretending", good("pretending", probe=CPU))
    write_plugin(site, "raises", BROKEN["raises"])
    result = cli_here.ok("backends", "--json").json()
    reasons = {b["id"]: b["reason"] for b in result["backends"]}
    assert reasons == {
        "reference": None,
        "fine": None,
        "lacking": "its driver is missing",
        "probing": "its probe failed: ZeroDivisionError: division by zero",
        "pretending": "no device, it computes on the CPU",
    }
    states = {b["id"]: b["state"] for b in result["backends"]}
    assert states == dict.fromkeys(reasons, "missing") | {
        "reference": "ready",
        "fine": "ready",
        "pretending": "test mode",
    }
    assert {b["id"]: b["available"] for b in result["backends"]} == {
        k: v != "missing" for k, v in states.items()
    }
    assert len(result["problems"]) == 1
    text = cli_here.ok("backends").out
    for words in (
        "fine", "dist-fine", "its driver is missing", "test mode: no device, it computes on the CPU",
        "problem: plugin 'raises' of dist-raises",
    ):  # fmt: skip
        assert words in text
    assert "problem: plugin 'raises' of dist-raises" in cli_here.ok("--help").out


def test_naming_a_backend_that_cannot_be_used_says_why(site: Path, cli_here: CommandLine) -> None:
    write_plugin(site, "lacking", good("lacking", probe=LACKING))
    write_plugin(site, "probing", good("probing", probe="1 / 0"))
    write_plugin(site, "raises", BROKEN["raises"])
    write_plugin(site, "fine", good("fine"))
    for backend, says in (
        ("lacking", "backend 'lacking' is not available: its driver is missing"),
        ("probing", "backend 'probing' is not available: its probe failed: ZeroDivisionError"),
        ("raises", "plugin 'raises' of dist-raises failed to load: OSError: libfoo.so.7 not found"),
    ):
        cli_here.refuses(4, "--backend", backend, "train", says=says)
    says = "backend 'fine' cannot train; these can: reference"
    cli_here.refuses(2, "--backend", "fine", "train", says=says)


def test_a_plugin_command_that_cannot_be_loaded(site: Path, cli_here: CommandLine) -> None:
    write_plugin(site, "fine", good("fine"))
    says = "command 'fine-tool' of dist-fine cannot be loaded: No module named 'nowhere'"
    cli_here.refuses(4, "fine-tool", says=says)


def test_a_plugin_command_runs(site: Path, cli_here: CommandLine) -> None:
    (site / "my_tool.py").write_text(
        "def configure(parser):\n    parser.add_argument('word')\n"
        "def handle(args):\n    print(args.word.upper())\n    return 7\n"
    )
    write_plugin(site, "fine", good("fine", module="my_tool"))
    outcome = cli_here("fine-tool", "hello")
    assert (outcome.code, outcome.out) == (7, "HELLO\n")


def test_options_of_a_plugin_are_a_config_section(site: Path, cli_here: CommandLine) -> None:
    write_plugin(site, "fine", good("fine"))
    out = cli_here.ok("train", "--set", "fine.threads=5", "--print-config").out
    assert "threads: 5" in out
    says = "unknown config key 'fine.thread'; did you mean 'threads'?"
    cli_here.refuses(2, "train", "--set", "fine.thread=5", says=says)


def test_choice_goes_by_priority_ability_and_probe() -> None:
    def backend(id: str, priority: int, answer: Readiness, able: bool) -> Backend:
        return Backend(id=id, summary=str(able), priority=priority, probe=lambda: answer)

    cpu = Readiness(state="test mode", reason="no device; it computes on the CPU")

    found = PluginSet(
        backends={
            b.id: b
            for b in (
                backend("lacks", 30, Readiness(state="missing", reason="no device"), True),
                backend("pretends", 25, cpu, True),
                backend("cannot", 20, READY, False),
                backend("second", 10, READY, True),
                backend("third", 10, READY, True),
            )
        },
        commands={}, origins={}, problems=(), clashes={},
    )  # fmt: skip

    def able(b: Backend) -> bool:
        return b.summary == "True"

    assert found.choose(None, "work", able).id == "second"
    assert found.choose("third", "work", able).id == "third"
    assert found.choose("pretends", "work", able).id == "pretends"
    assert found.choose(None, "work", able, prefer="pretends").id == "pretends"
    with pytest.raises(
        BackendUnavailable, match="no backend here can work: pretends: test mode: no device; it"
    ):
        found.choose(None, "work", lambda b: b.id == "pretends")
    with pytest.raises(
        UsageError, match="backend 'cannot' cannot work; these can: lacks, pretends, second, third"
    ):
        found.choose("cannot", "work", able)
    with pytest.raises(BackendUnavailable, match="no backend here can work: lacks: no device"):
        found.choose(None, "work", lambda b: b.id == "lacks")
    with pytest.raises(BackendUnavailable, match="no installed backend has that capability"):
        found.choose(None, "fly", lambda b: False)


# -- recipes -------------------------------------------------------------------------------------

RECIPES = """
from pathlib import Path
from resnext_core.hookspecs import hookimpl
from resnext_core.interfaces import Recipe

@hookimpl
def resnext_recipes():
    yield Recipe(name="{name}", path=Path(__file__).with_name("{file}"), former_names=("older",))
"""


def test_recipes_of_a_plugin_are_listed_with_their_origin_and_used_by_name(
    site: Path, cli_here: CommandLine
) -> None:
    (site / "mine.yaml").write_text("# My recipe\ntrain: {epochs: 7}\n")
    write_plugin(site, "one", RECIPES.format(name="mine", file="mine.yaml"))
    listed = cli_here.ok("recipes", "--json").json()
    assert listed["recipes"]["mine"] == "My recipe"
    assert (listed["origins"]["mine"], listed["origins"]["digits"]) == ("dist-one", "resnext-core")
    (line,) = (line for line in cli_here.ok("recipes").out.splitlines() if line.startswith("mine "))
    assert "dist-one" in line
    for name in ("mine", "older"):
        out = cli_here.ok("train", "--recipe", name, "--print-config").out
        (line,) = (line for line in out.splitlines() if line.startswith("  epochs: "))
        assert line.split() == ["epochs:", "7", "#", "recipe", name]
    says = "unknown recipe 'minne'; did you mean 'mine'?"
    cli_here.refuses(2, "train", "--recipe", "minne", says=says)


def test_a_recipe_that_two_plugins_claim_is_none_of_theirs(site: Path, cli_here: CommandLine) -> None:
    (site / "mine.yaml").write_text("# My recipe\n")
    for name in ("one", "two"):
        write_plugin(site, name, RECIPES.format(name="mine", file="mine.yaml"))
    assert "recipe 'mine' is claimed by dist-one and dist-two; none of them is used" in loaded().problems
    says = "recipe 'mine' is claimed by dist-one and dist-two; uninstall one"
    cli_here.refuses(2, "train", "--recipe", "mine", says=says)
    write_plugin(site, "three", RECIPES.format(name="digits", file="mine.yaml"))
    assert "recipe 'digits' of dist-three is not used: resnext-core has one of that name" in loaded().problems


def test_a_recipe_whose_file_is_missing_or_wrong_is_said_and_the_others_are_listed(
    site: Path, cli_here: CommandLine
) -> None:
    write_plugin(site, "one", RECIPES.format(name="mine", file="gone.yaml"))
    recipes = cli_here.ok("recipes", "--json").json()["recipes"]
    assert recipes["mine"].startswith("cannot read config ")
    assert "Handwritten digits" in recipes["digits"]
    cli_here.refuses(2, "recipes", "mine", says="cannot read config ")


def test_a_name_may_be_that_of_a_recipe_and_of_a_backend(site: Path) -> None:
    write_plugin(site, "one", good("mine"))
    write_plugin(site, "two", RECIPES.format(name="mine", file="mine.yaml"))
    found = loaded()
    assert found.problems == ()
    assert (found.origins["backend", "mine"], found.origins["recipe", "mine"]) == ("dist-one", "dist-two")


def test_two_entry_points_with_one_module(site: Path) -> None:
    write_plugin(site, "one", good("one"))
    (site / "dist_copy-1.0.dist-info").mkdir()
    for name, text in (
        ("METADATA", "Metadata-Version: 2.1\nName: dist-copy\nVersion: 1.0\n"),
        ("entry_points.txt", "[resnext]\none = plugin_one_dist_one\n"),
    ):
        (site / "dist_copy-1.0.dist-info" / name).write_text(text)
    found = loaded()
    assert len(found.problems) == 1
    assert found.problems[0].endswith("its module is already registered by one of dist-copy")
    assert found.origins["backend", "one"] == "dist-copy"


# -- start-up ------------------------------------------------------------------------------------

FRAMEWORKS = ("mindspore", "torch", "onnx", "onnxruntime", "openvino", "tensorflow", "jax")
LIGHT = """
import sys
from resnext_core.cli.main import main
try:
    code = main({words!r})
except SystemExit as stop:
    code = stop.code
heavy = sorted(set(sys.modules) & set({heavy!r}))
print("LOADED", code, *heavy, file=sys.stderr)
"""


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["backends"], ["train", "--help"], ["recipes"]])
def test_starting_imports_no_framework(words: list[str]) -> None:
    """With every plugin of this environment installed."""
    unused = ["yaml"] if words in (["--help"], ["--version"]) else []
    source = LIGHT.format(words=words, heavy=[*FRAMEWORKS, "numpy", "PIL", "rich", *unused])
    done = subprocess.run(
        [sys.executable, "-c", source],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    loaded, code, *heavy = done.stderr.splitlines()[-1].split()
    assert (loaded, code) == ("LOADED", "0")
    if words == ["train", "--help"]:
        assert set(heavy) <= {"numpy", "PIL"}
    else:
        assert heavy == []


def test_json_of_backends_in_a_fresh_process(spawn: CommandLine, tmp_path: Path) -> None:
    write_plugin(tmp_path / "site", "fine", good("fine"))
    write_plugin(tmp_path / "site", "raises", BROKEN["raises"])
    result = json.loads(spawn.ok("backends", "--json").out)
    assert {"fine", "reference"} <= {b["id"] for b in result["backends"]}
    assert any("plugin 'raises'" in p for p in result["problems"])


def test_the_server_of_a_format_is_the_preferred_one_that_can_serve_it_here() -> None:
    def backend(name: str, priority: int, why: str | None = None) -> Backend:
        return Backend(
            id=name, summary=name, probe=lambda: READY, priority=priority, predictor=print, formats=(".x",),
            format_probe=lambda suffix: Readiness(state="missing", reason=why) if why else READY,
        )  # fmt: skip

    found = {
        b.id: b for b in (backend("first", 9, "no engine for .x"), backend("second", 5), backend("third", 1))
    }
    known = PluginSet(backends=found, commands={}, origins={}, problems=(), clashes={})
    assert server_of(known, ".x").id == "second"
    assert server_of(known, ".x", prefer="third").id == "third"
    assert server_of(known, ".x", prefer="first").id == "second"
    with pytest.raises(BackendUnavailable, match=r"'first' cannot serve .x files here: no engine for .x"):
        server_of(known, ".x", "first")
    with pytest.raises(UsageError, match=r"no installed backend serves '.y' files; known: .x"):
        server_of(known, ".y")


def test_an_option_that_is_gone_does_not_hinder_a_stored_run(tmp_path: Path) -> None:
    """Where it has the value at which it did nothing; another, and another backend's, is an unknown key."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Options:
        threads: int = 1

    def backend(name: str, **more: Any) -> Backend:
        return Backend(id=name, summary=name, probe=lambda: READY, options=Options, **more)

    found = {b.id: b for b in (backend("old", former_options={"turbo": 0}), backend("new"))}
    known = PluginSet(backends=found, commands={}, origins={}, problems=(), clashes={})
    run = RunFolder(tmp_path)
    run.config.write_text("old: {threads: 2, turbo: 0}\nnew: null\n")
    assert stored_config(run, known).backends["old"] == Options(threads=2)
    for text in ("old: {turbo: 1}", "old: {turbo: false}", "old: {turbine: 0}", "new: {turbo: 0}"):
        run.config.write_text(text)
        with pytest.raises(UsageError, match=rf"unknown config key '{text[:3]}\.turb"):
            stored_config(run, known)
    run.config.write_text("old: [turbo]")
    with pytest.raises(UsageError, match="section 'old' must be a mapping"):
        stored_config(run, known)


@pytest.mark.parametrize(("answer", "said"), [("None", "None"), ("'two\\nlines'", r"'two\nlines'")])
def test_a_probe_of_an_older_core_is_missing_and_says_so(
    site: Path, cli_here: CommandLine, answer: str, said: str
) -> None:
    """It returned None or a sentence; nothing says that such a backend works with this core."""
    write_plugin(site, "older", good("older", probe=answer, priority=99))
    reason = f"its probe must return a Readiness, not {said}: it was written for an older resnext-core"
    result = cli_here.ok("backends", "--json").json()["backends"]
    assert {b["id"]: b["reason"] for b in result} == {"reference": None, "older": reason}
    assert reason in cli_here.ok("backends").out
    cli_here.refuses(4, "--backend", "older", "train", says=f"backend 'older' is not available: {reason}")


@pytest.mark.parametrize(
    ("state", "reason"),
    [("absent", "no"), ("missing", ""), ("missing", " "), ("missing", "two\nlines"), ("ready", "but")],
)
def test_a_readiness_has_a_state_and_the_reason_that_belongs_to_it(state: str, reason: str) -> None:
    with pytest.raises(ValueError, match=state):
        Readiness(state=state, reason=reason)  # type: ignore[arg-type]
