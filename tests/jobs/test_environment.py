"""What a run records of the software that it was made with."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from command_line import write_plugin

from resnext_core.jobs.environment import environment

PLUGIN = """
from resnext_core.hookspecs import hookimpl
from resnext_core.interfaces import READY, Backend

@hookimpl
def resnext_backends():
    yield Backend(id="mine", summary="mine", probe=lambda: READY, packages=("pluggy", "pillow", "nobody-has-this"))
"""


def test_versions_are_those_of_core_and_of_what_backends_compute_with(site: Path) -> None:
    write_plugin(site, "mine", PLUGIN)
    found = environment()
    for name in ("numpy", "pillow", "pluggy"):
        assert found[name] == metadata.version(name)
    assert {"python", "platform", "cpu_cores", "command", "resnext-core"} <= set(found)
    assert "nobody-has-this" not in found
