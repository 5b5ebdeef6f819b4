"""Tables and names on pages agree with the code: exit codes, records, tolerances, layers, decisions, settings."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
from documents import CONTRACT, DOCS, PAGES, ROOT, blocks, page_id, rows, without_blocks

from resnext_core import errors
from resnext_core.config import Layer, load_config
from resnext_core.metrics import METRICS
from resnext_core.runs.records import KINDS, Record
from resnext_core.testing import cases, prediction


def test_exit_codes_match() -> None:
    table = {int(code): error.strip("` |") for code, _, error in rows(CONTRACT, "Exit codes") if error}
    classes = {
        cls.exit_code: name
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, errors.ResnextError) and cls is not errors.ResnextError
        and "exit_code" in vars(cls)  # RanksFailed has that of the ranks
    }  # fmt: skip
    assert {k: v for k, v in table.items() if v} == classes
    assert set(table) | {errors.EXIT_OK, errors.EXIT_BUG} == {
        value for name, value in vars(errors).items() if name.startswith("EXIT_")
    }


def documented_records() -> dict[str, set[str]]:
    """Return the fields of every kind of record in contract.md, without those that all have."""
    table = {row[0].strip("`"): "".join(row[2:]) for row in rows(CONTRACT, "Records")}
    return {kind: set(re.findall(r"`(\w+)`", fields)) for kind, fields in table.items()}


def test_records_match() -> None:
    """The table has the fields of the dataclasses; the metrics of an evaluation are fields of its record."""
    documented = documented_records()
    assert set(documented) == set(KINDS)
    for kind, cls in KINDS.items():
        fields = {f.name for f in dataclasses.fields(cls)} - {f.name for f in dataclasses.fields(Record)}
        if "metrics" in fields:
            fields = fields - {"metrics"} | set(METRICS)
        assert documented[kind] == fields, kind


def test_metrics_match() -> None:
    assert [row[0].strip("`") for row in rows(CONTRACT, "Metrics")] == list(METRICS)


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
        "fit",
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
    export = importlib.import_module("resnext_core.jobs.export")
    for label, value in (
        ("float32 logits", cases.TOLERANCE),
        ("optimizer state", cases.GRADIENT_TOLERANCE),
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
    assert re.findall(r'\["(.+?)<br/>', next(blocks(section)).text) == layers
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
def test_five_files_to_read_first_are_short(page: Path, heading: str) -> None:
    table = rows(page, heading)
    assert len(table) == 5
    for link, _ in table:
        path = page.parent / re.search(r"\((.+)\)", link)[1]
        assert len(path.read_text().splitlines()) < 400, path.name


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
