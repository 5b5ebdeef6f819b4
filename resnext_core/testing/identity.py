"""What a backend says of itself, and that saying it costs nothing: record, probe, options, import weight."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from importlib import metadata

import pytest

from resnext_core import API_VERSION
from resnext_core.config import Config, Layer, load_config, parse_set
from resnext_core.errors import UsageError
from resnext_core.hookspecs import PROJECT
from resnext_core.interfaces import Compute, Readiness, Variant
from resnext_core.testing.base import ContractBase

#: What only a factory may import.
FRAMEWORKS = frozenset(
    {"torch", "torchvision", "timm", "mindspore", "mindspore_lite", "onnx", "onnxruntime", "tensorflow"}
    | {"jax", "paddle", "openvino", "cupy"}
)

_LOAD_AND_PROBE = """
import importlib, json, sys
module, attribute, backend_id = sys.argv[1:4]
plugin = importlib.import_module(module)
for name in filter(None, attribute.split(".")):
    plugin = getattr(plugin, name)
found = {b.id: b for b in plugin.resnext_backends()}
answer = str(found[backend_id].probe())
record = found[backend_id]
if record.compute is not None:
    record.compute(None)
list(record.variants() if record.variants is not None else ())
print(json.dumps({"answer": answer, "modules": sorted(sys.modules)}))
"""


class IdentityContract(ContractBase):
    """The record and the plugin that yields it."""

    def test_record_is_complete(self) -> None:
        backend = self.record
        if self.backend_id:
            assert backend.id == self.backend_id
        assert re.fullmatch(r"[a-z][a-z0-9-]*", backend.id), f"the id {backend.id!r} is not one plain word"
        assert backend.id not in {f.name for f in dataclasses.fields(Config)}, "the id is a config section"
        assert backend.api_version == API_VERSION
        assert type(backend.priority) is int
        assert backend.summary.strip(), "a backend has a summary"
        assert "\n" not in backend.summary
        assert backend.steps_per_call >= 1
        assert all(re.fullmatch(r"\.[a-z0-9]+", suffix) for suffix in backend.formats)
        assert all(re.fullmatch(r"[a-z0-9]+", name) for name in backend.exporters)
        assert all(re.fullmatch(r"\.[a-z0-9]+", backend.ending(name)) for name in backend.exporters)
        assert not {*backend.endings, *backend.dry_runs} - set(backend.exporters), (
            "of a format without exporter"
        )
        assert backend.engine or backend.predictor or backend.exporters, "the backend can do nothing"

    def test_probe_answers_in_one_sentence(self) -> None:
        answer = self.record.probe()
        assert isinstance(answer, Readiness), f"a probe returns a Readiness, not {answer!r}"
        assert self.record.probe() == answer

    def test_plugin_is_light(self) -> None:
        """Importing the plugin, probing it and what benchmarks ask of it import no framework, in a fresh process."""
        module, attribute = self._plugin()
        done = subprocess.run(
            [sys.executable, "-c", _LOAD_AND_PROBE, module, attribute, self.record.id],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout.splitlines()[-1])
        imported = sorted({name.partition(".")[0] for name in answer["modules"]} & FRAMEWORKS)
        assert not imported, f"{module} imports {', '.join(imported)} before a factory is called"
        assert answer["answer"] == str(self.record.probe())

    def test_options_are_a_frozen_dataclass_with_defaults(self) -> None:
        options = self.record.options
        if options is None:
            pytest.skip(f"{self.record.id} has no options")
        assert dataclasses.is_dataclass(options)
        assert options.__dataclass_params__.frozen, "options must be frozen"  # type: ignore[attr-defined]
        assert options() == options(), "options need defaults, and equality"

    def test_options_are_read_from_the_section_of_the_backend(self) -> None:
        options, name = self.record.options, self.record.id
        if options is None:
            pytest.skip(f"{name} has no options")
        config, _ = load_config([], {name: options})
        assert config.backends[name] == options()
        layer = Layer(source="round trip", values={name: config.to_dict()[name]})
        again, sources = load_config([layer], {name: options})
        assert again.backends[name] == options()
        for field in dataclasses.fields(options):
            assert sources[f"{name}.{field.name}"] == "round trip"

    def test_unknown_option_is_refused(self) -> None:
        options, name = self.record.options, self.record.id
        layer = Layer(source="a test", values={name: {"no_such_key": 1}})
        with pytest.raises(UsageError, match=r"a test.*no_such_key" if options else name):
            load_config([layer], {name: options} if options else {})

    def test_what_benchmarks_ask_has_answers(self) -> None:
        """Of the default options and of none; every variant is another one, and its overrides are settings."""
        backend = self.record
        if backend.compute is None and backend.variants is None:
            pytest.skip(f"{backend.id} says nothing for benchmarks")
        for options in (None, backend.options() if backend.options is not None else None):
            if backend.compute is not None:
                assert isinstance(backend.compute(options), Compute)
        found = tuple(backend.variants() if backend.variants is not None else ())
        assert all(isinstance(way, Variant) and way.label.strip() for way in found)
        assert len({(way.exports, way.label) for way in found}) == len(found), "two variants have one name"
        for way in found:
            assert way.exports is None or way.exports in backend.exporters
            assert way.write is None or way.exports is not None, "only a way of writing writes"
            load_config(parse_set(way.overrides), {backend.id: backend.options} if backend.options else {})

    def _plugin(self) -> tuple[str, str]:
        """Return module and attribute of the plugin: its entry point's, or where its probe is written."""
        for entry in metadata.entry_points(group=PROJECT, name=self.record.id):
            return entry.module, entry.attr or ""
        return self.record.probe.__module__, ""
