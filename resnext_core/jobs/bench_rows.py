"""The rows of ``bench all``: each backend that serves here, each artefact that can be written here, each variant."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from resnext_core.config import Config
from resnext_core.errors import one_line
from resnext_core.interfaces import Backend, Variant
from resnext_core.jobs.bench_record import Skipped
from resnext_core.plugins import PluginSet, probe, probe_format
from resnext_core.serving.load import WEIGHTS_SUFFIX

_PLAIN = Variant(label="")


@dataclass(frozen=True, kw_only=True)
class Made:
    """An artefact to write: by backend `maker` in `format`, plainly or as `variant`; its file ends in `ending`."""

    maker: str
    format: str
    ending: str
    variant: str | None = None
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """A name that no other artefact of a benchmark has, as part of a file name."""
        return "-".join([self.maker, self.format, *([self.variant] if self.variant else [])]).replace(
            "/", "-"
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row to time: `backend` serves weights in memory, an artefact that is `made`, or the user's `file`."""

    label: str
    backend: str
    made: Made | None = None
    file: Path | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What can be tried here, and what cannot and why."""

    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]


def rows_here(
    plugins: PluginSet,
    config: Config,
    *,
    only: Collection[str] = (),
    stated: Collection[str] = (),
    files: Sequence[Path] = (),
) -> Rows:
    """Return the rows of the backends in `only` (empty: all), the best backend first; nothing is imported or opened.

    A backend in test mode is left out, unless one of its options is among the `stated` keys of the configuration. Its
    variants are tried all the same: they may be for another device. Formats in ``on_request`` are written where
    ``export.formats`` names them. `files` are artefacts of the user, each for every backend that serves its ending.
    """
    skipped: dict[str, str] = {}
    files = list(dict.fromkeys(files))
    servers = [b for b in plugins.ranked() if b.predictor is not None and (not only or b.id in only)]
    made, rows = list(_artefacts(plugins, config, servers, skipped)), list[Row]()
    for backend in servers:
        answer = probe(backend)
        if answer.state == "missing":
            skipped[backend.id] = answer.reason
            continue
        for way in (_PLAIN, *(v for v in _variants(backend, skipped) if v.exports is None)):
            named = any(key.startswith(f"{backend.id}.") for key in stated)
            if way is _PLAIN and answer.state == "test mode" and not named:
                skipped[backend.id] = str(answer)
            elif not way.readiness.usable:
                skipped[_label(backend.id, way.label)] = way.readiness.reason
            else:
                rows += _served(backend, way, made, files, skipped)
    return Rows(
        rows=tuple(rows), skipped=tuple(Skipped(label=label, reason=why) for label, why in skipped.items())
    )


def _served(
    backend: Backend, way: Variant, made: Sequence[Made], files: Sequence[Path], skipped: dict[str, str]
) -> Iterator[Row]:
    for suffix in backend.formats:
        answer = probe_format(backend, suffix)
        if not answer.usable:
            skipped[f"{backend.id} {suffix}"] = answer.reason
            continue
        if suffix == WEIGHTS_SUFFIX:
            yield Row(
                label=_label(backend.id, suffix, way.label), backend=backend.id, overrides=way.overrides
            )
        fitting = [artefact for artefact in made if artefact.ending == suffix]
        for artefact in fitting:
            kind = "" if f".{artefact.format}" == suffix else f"({artefact.format})"
            label = _label(backend.id, suffix, kind, artefact.variant or "", way.label)
            yield Row(label=label, backend=backend.id, made=artefact, overrides=way.overrides)
        mine = [file for file in files if file.suffix == suffix]
        for file in mine:
            alike = sum(other.name == file.name for other in files)
            label = _label(backend.id, file.name if alike == 1 else str(file), way.label)
            yield Row(label=label, backend=backend.id, file=file, overrides=way.overrides)
        if not fitting and not mine and suffix != WEIGHTS_SUFFIX:
            skipped[f"{backend.id} {suffix}"] = "nothing here writes such files"


def _artefacts(
    plugins: PluginSet, config: Config, servers: Sequence[Backend], skipped: dict[str, str]
) -> Iterator[Made]:
    """Yield what can be written here and is served by one of `servers`: each format by the best ready backend."""
    served = {suffix for backend in servers for suffix in backend.formats}
    written: set[str] = set()
    for maker in plugins.ranked():
        names = [
            name for name in maker.exporters
            if maker.ending(name) in served and (name not in maker.on_request or name in config.export.formats)
        ]  # fmt: skip
        answer = probe(maker)
        if names and answer.state != "ready":
            skipped[maker.id] = str(answer)
            continue
        for name in names:
            if name in written:
                continue
            written.add(name)
            for way in (_PLAIN, *(v for v in _variants(maker, skipped) if v.exports == name)):
                if not way.readiness.usable:
                    skipped[_label(maker.id, maker.ending(name), way.label)] = way.readiness.reason
                    continue
                yield Made(
                    maker=maker.id, format=name, ending=maker.ending(name), variant=way.label or None,
                    overrides=way.overrides,
                )  # fmt: skip


def _variants(backend: Backend, skipped: dict[str, str]) -> tuple[Variant, ...]:
    """Return the variants of a backend; none, and a reason, where its plugin fails to say."""
    if backend.variants is None:
        return ()
    try:
        found = tuple(backend.variants())
        if wrong := [one for one in found if not isinstance(one, Variant)]:
            raise TypeError(f"{type(wrong[0]).__name__} is no Variant")
        return found
    except Exception as error:  # of a plugin
        skipped[f"{backend.id} variants"] = f"{type(error).__name__}: {one_line(error)}"
        return ()


def _label(*words: str) -> str:
    return " ".join(word for word in words if word)


def thread_overrides(plugins: PluginSet, threads: int) -> tuple[str, ...]:
    """Return the overrides that give every backend so many threads that has an option of that name."""
    options: Mapping[str, type] = plugins.option_types()
    return tuple(
        f"{name}.threads={threads}" for name, kind in options.items()
        if name in plugins.backends and "threads" in getattr(kind, "__dataclass_fields__", {})
    )  # fmt: skip
