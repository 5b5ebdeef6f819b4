"""The settings that a user gives to a job, and the configuration that they come to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from resnext_core.config import Config, Layer, load_config, parse_set, read_layer
from resnext_core.errors import UsageError, shown
from resnext_core.files import local_path
from resnext_core.interfaces import Backend
from resnext_core.jobs.recipes import read_recipe
from resnext_core.plugins import PluginSet
from resnext_core.runs.folder import RunFolder, run_of

#: Settings that stand for one value of the configuration, and which.
SHORT: Mapping[str, tuple[str, str]] = {
    "data": ("data", "dir"),
    "epochs": ("train", "epochs"),
    "minutes": ("train", "minutes"),
    "batch_size": ("train", "batch_size"),
    "seed": ("train", "seed"),
    "pretrained": ("model", "pretrained"),
    "num_classes": ("model", "num_classes"),
    "output": ("output", "dir"),
    "name": ("output", "name"),
}


#: The batch size that asks for the largest that fits.
AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a user says about the configuration of a job; later fields win over earlier ones.

    `recipe` is a recipe's name or a YAML file, `configs` are YAML files over it. The fields of :data:`SHORT` stand
    for one value each. `overrides` are ``section.key=value``, the value in YAML. `spelling` is how messages name a
    setting: as a flag of the command line, or as an argument in Python. `batch_size` ``auto`` is for a training: it
    gets the largest that fits (:mod:`resnext_core.jobs.fitting`).
    """

    recipe: str | None = None
    configs: tuple[str, ...] = ()
    data: str | None = None
    epochs: int | None = None
    minutes: float | None = None
    batch_size: int | Literal["auto"] | None = None
    seed: int | None = None
    pretrained: str | None = None
    num_classes: int | None = None
    output: str | None = None
    name: str | None = None
    overrides: tuple[str, ...] = ()
    spelling: Literal["flags", "arguments"] = "flags"

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any]) -> Settings:
        """Return the settings in the parsed flags of a command (``vars(args)``)."""
        return cls(
            recipe=flags.get("recipe"), configs=tuple(flags["config"]), overrides=tuple(flags["set"]),
            **{name: flags[name] for name in SHORT},
        )  # fmt: skip

    def to_flags(self) -> list[str]:
        """Return the flags that give these settings to another process."""
        words = [f"--recipe={self.recipe}"] if self.recipe else []
        words += [f"--config={path}" for path in self.configs]
        words += [f"--{name.replace('_', '-')}={value}" for name, value in self._short()]
        return words + [f"--set={assignment}" for assignment in self.overrides]

    def layers(self) -> list[Layer]:
        """Return what lies over the recipe, in order; UsageError for a file that cannot be read."""
        flags = self.spelling == "flags"
        layers = [read_layer(Path(path)) for path in self.configs]
        for name, value in self._short():
            if name == "batch_size" and value == AUTO:
                continue
            section, key = SHORT[name]
            source = f"--{name.replace('_', '-')} {value}" if flags else f"{name}={value!r}"
            layers.append(Layer(source=source, values={section: {key: value}}))
        for layer in parse_set(self.overrides):
            source = layer.source if flags else layer.source.replace("--set", "overrides:", 1)
            layers.append(Layer(source=source, values=layer.values))
        return layers

    def _short(self) -> Iterator[tuple[str, Any]]:
        return ((name, value) for name in SHORT if (value := getattr(self, name)) is not None)


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A configuration, where each value came from (by dotted key), and perhaps a line about it for people."""

    config: Config
    sources: Mapping[str, str]
    note: str | None = None

    def to_text(self) -> str:
        """Return the configuration as YAML, with the source of each value as a comment."""
        lines = []
        for section, values in self.config.to_dict().items():
            lines.append(f"{section}:")
            for key, value in values.items():
                text = yaml.safe_dump(value, default_flow_style=True, width=10_000)
                text = text.removesuffix("...\n").strip()
                lines.append(f"  {f'{key}: {text}':<50} # {self.sources[f'{section}.{key}']}")
        return "\n".join(lines)


def resolve(
    settings: Settings,
    plugins: PluginSet,
    *,
    default_recipe: str | None = None,
    base: Layer | None = None,
    finds_batch: bool = False,
) -> Resolved:
    """Merge recipe, files and values; `base` (a run's own configuration) stands in for the recipe.

    `default_recipe` is taken where neither is given. Raises UsageError, also for a batch size of auto in a job that
    does not find one (`finds_batch`).
    """
    if settings.batch_size == AUTO and not finds_batch:
        raise UsageError("a batch size of auto is for train and run; give a number here")
    layers: list[Layer] = [base] if base is not None else []
    recipe = settings.recipe or (None if base is not None else default_recipe)
    if recipe is not None:
        layers.append(read_recipe(recipe, plugins))
    config, sources = load_config([*layers, *settings.layers()], plugins.option_types())
    data = config.data  # its folder and parts may be URLs
    for given in (
        data.quarantine,
        data.cache,
        config.model.pretrained,
        config.train.teacher,
        config.output.dir,
    ):
        local_path(given or "")
    if settings.batch_size == AUTO:
        sources = {**sources, "train.batch_size": "batch size auto: found when the training starts"}
    return Resolved(config=config, sources=sources)


def resolve_training(
    settings: Settings, plugins: PluginSet, *, resume: Path | bool = False, default_recipe: str | None = None,
    finds_batch: bool = True,
) -> tuple[Resolved, RunFolder | None]:  # fmt: skip
    """Return the configuration of a training, and the run that it continues (None without `resume`).

    A run brings its own configuration, which stands in for the recipe. `resume` True takes the newest run of
    ``settings.output``. A job that does not find the batch size itself says so. Raises UsageError or DataError.
    """
    if resume is False:
        return resolve(settings, plugins, default_recipe=default_recipe, finds_batch=finds_batch), None
    run = (
        RunFolder.newest(Path(settings.output or "runs")) if resume is True else RunFolder.open(Path(resume))
    )
    return resolve(settings, plugins, base=stored_layer(run, plugins), finds_batch=finds_batch), run


def resolve_serving(settings: Settings, plugins: PluginSet, *models: Path) -> Resolved:
    """Return the configuration of a job that uses trained `models`; its `note` says when its data is that of a run.

    Where nothing names data and one of `models` is a run, or lies in one, the run's own configuration stands in for
    the recipe.
    """
    resolved = resolve(settings, plugins)
    if resolved.config.data.dir is not None:
        return resolved
    for run in map(run_of, models):
        if run is not None:
            found = resolve(settings, plugins, base=stored_layer(run, plugins))
            other = (
                "use --data for other data" if settings.spelling == "flags" else "use data= for other data"
            )
            note = f"data: {shown(found.config.data.dir, None)}, from {run.path.name}; {other}"
            return Resolved(config=found.config, sources=found.sources, note=note)
    return resolved


def stored_config(run: RunFolder, plugins: PluginSet) -> Config:
    """Return the configuration that a run was made with; UsageError when its file is damaged."""
    return load_config([stored_layer(run, plugins)], plugins.option_types())[0]


def stored_layer(run: RunFolder, plugins: PluginSet) -> Layer:
    """Read a run's configuration without the sections of backends that are not here: a run may move on.

    And without the options that a backend no longer has, where they did nothing (``Backend.former_options``).
    """
    core = set(Config().to_dict())
    values = read_layer(run.config).values
    known = {k: v for k, v in values.items() if k in core or k in plugins.backends}
    for name, backend in plugins.backends.items():
        if isinstance(known.get(name), Mapping):
            known[name] = {k: v for k, v in known[name].items() if not _did_nothing(backend, k, v)}
    return Layer(source=f"run {run.path.name}", values=known)


def _did_nothing(backend: Backend, key: str, value: Any) -> bool:
    """True for an option that is gone, at the value at which it did nothing; false is not 0."""
    gone = backend.former_options
    return key in gone and type(value) is type(gone[key]) and value == gone[key]
