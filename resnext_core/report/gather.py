"""From a run folder to what its report shows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from resnext_core.config import load_config, read_layer
from resnext_core.data.decode import decode, opened_bytes
from resnext_core.data.sources.stored import content_of
from resnext_core.errors import DataError, ResnextError
from resnext_core.files import write_atomic
from resnext_core.files.plain import read_text
from resnext_core.model.weights import parse_manifest, read_manifest_text
from resnext_core.plugins import load_plugins
from resnext_core.report.build import write_report
from resnext_core.report.compare import Compared, render_comparison
from resnext_core.report.model import ReportData, RunFile, Sample
from resnext_core.report.next_steps import next_steps
from resnext_core.report.pictures import THUMBNAIL
from resnext_core.report.text import moment
from resnext_core.runs.folder import RunFolder
from resnext_core.runs.pointers import best_weights
from resnext_core.runs.records import End, Eval, Record


def make_report(run: RunFolder, output: Path | None = None) -> Path:
    """Write the report of `run` and return its path, ``report.html`` in its folder; DataError when it cannot be made.

    Its links are relative: to the folder of `output` where that is given.
    """
    path = output or run.report
    write_report(path, gather(run, beside=path.parent))
    return path


def make_comparison(run: RunFolder, other: RunFolder, output: Path | None = None) -> Path:
    """Write the comparison of two runs and return its path, by default in the folder of `run`; DataError as above."""
    path = output or run.path / f"compare-{other.path.resolve().name}.html"
    names = _names(run, other)
    write_atomic(
        path, render_comparison(*(_compared(r, name) for r, name in zip((run, other), names, strict=True)))
    )
    return path


def _names(run: RunFolder, other: RunFolder) -> tuple[str, str]:
    """Return what to call two runs: their names, with as many parents as it takes to tell them apart."""
    one, two = run.path.resolve().parts, other.path.resolve().parts
    length = next((n for n in range(1, max(len(one), len(two)) + 1) if one[-n:] != two[-n:]), 1)
    return "/".join(one[-length:]), "/".join(two[-length:])


def _compared(run: RunFolder, name: str) -> Compared:
    return Compared(name=name, data=gather(run, pictures=False), settings=_settings(run))


def _settings(run: RunFolder) -> dict[str, Any]:
    """Return the settings of a run, nested; those that its version did not have are the defaults, as if resumed."""
    settings = dict(load_config([], load_plugins().option_types())[0].to_dict())
    for section, values in read_layer(run.config).values.items():
        below = settings.get(section)
        both = isinstance(values, Mapping) and isinstance(below, Mapping)
        settings[section] = {**below, **values} if both else values  # type: ignore[dict-item]
    return settings


def gather(run: RunFolder, *, pictures: bool = True, beside: Path | None = None) -> ReportData:
    """Return what the records and results in the folder of `run` say, without samples where no `pictures` are wanted.

    Links are relative to the folder `beside`, by default that of the run. DataError when its config cannot be read.
    """
    beside = beside or run.path
    try:
        text = read_text(run.config)
    except DataError as error:
        raise DataError(f"cannot read {run.config}: {error}") from error
    variant, data = run.setting("model", "variant"), run.setting("data", "dir")
    about = _object(run, "run")
    records = run.read_records()
    evaluation = _object(run, "evaluation") or _best_evaluation(records)
    artefacts = [{**a, "path": _found(a["path"], run)} for a in _objects(run.read_result("artefacts"))]
    chosen = _objects(evaluation.pop("samples", []))
    steps = tuple(next_steps(run, records, chosen, artefacts))
    samples = [_sample(s, beside) for s in chosen] if pictures else []
    shown = [s for s in samples if s is not None]
    summary: dict[str, Any] = {"backend": about.get("backend"), "wall_s": _wall(records)}
    summary |= _times(records) | _sizes(run)
    return ReportData(
        title=f"{variant or 'unknown model'} on {Path(str(data or 'data')).name}",
        subtitle=f"run {run.path.name}",
        summary={k: v for k, v in summary.items() if v is not None},
        records=records,
        evaluation=evaluation,
        samples=shown,
        samples_missing=len(samples) - len(shown),
        config_yaml=text,
        environment=about.get("environment", {}),
        artefacts=[
            {**a, "path": os.path.basename(a["path"]), "size": a["bytes"], "link": _link(a["path"], beside)}
            for a in artefacts
        ],
        best=run.setting("train", "best"),
        images=_images(run),
        files=tuple(_files(run, beside)),
        steps=steps,
        validations=[_validation(v) for v in _objects(run.read_result("validations"))],
    )


def _object(run: RunFolder, name: str) -> dict[str, Any]:
    """Return a result that is an object; a damaged one is as if it were not there."""
    found = run.read_result(name)
    return found if isinstance(found, dict) else {}


def _objects(found: Any) -> list[dict[str, Any]]:
    """Return the objects of a list; what is damaged is left out."""
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _best_evaluation(records: Sequence[Record]) -> dict[str, Any]:
    """Return what the records say of the best evaluation, for a run of an earlier version; nothing without any."""
    best = [r for r in records if isinstance(r, Eval) and r.best]
    if not best:
        return {}
    found = best[-1]
    counts = {"expected": found.expected, "scored": found.scored, "failed": found.failed}
    return {"split": found.split, **found.metrics, **counts}


def _images(run: RunFolder) -> dict[str, dict[str, int]]:
    """Return the images of each class by part of the data; nothing where an earlier version trained."""
    found = run.read_result("data")
    try:
        return {
            str(part): {str(name): int(n) for name, n in zip(found["classes"], counts, strict=True)}
            for part, counts in found["parts"].items()
        }
    except (TypeError, KeyError, AttributeError, ValueError):
        return {}


def _files(run: RunFolder, beside: Path) -> Iterator[RunFile]:
    """Yield the files of the run that are there."""
    try:
        weights: Path | None = best_weights(run.checkpoints)
    except ResnextError:
        weights = None
    for path, holds in (
        (weights, "the best weights"),
        (run.config, "the resolved configuration"),
        (run.records, "what happened, one JSON object a line"),
        (run.log, "what was printed"),
    ):
        if path is not None and path.is_file():
            name = os.path.relpath(path, run.path)
            size = path.stat().st_size if path == weights else None
            yield RunFile(name=name, holds=holds, link=_link(str(path), beside), size=size)


def _times(records: Sequence[Record]) -> dict[str, Any]:
    """Return when the run began and when it last did something, where its records say so."""
    times = [r.time for r in records if r.time is not None]
    return {"started": moment(min(times)), "last record": moment(max(times))} if times else {}


def _sizes(run: RunFolder) -> dict[str, Any]:
    """Return parameters and MACs from the weights' manifest."""
    try:
        path = best_weights(run.checkpoints)
        spec = parse_manifest(read_manifest_text(path) or "", where=str(path)).spec
    except ResnextError:
        return {}
    return {"parameters": spec.parameters, "macs": spec.macs}


def _wall(records: Sequence[Record]) -> float | None:
    ends = [r.seconds for r in records if isinstance(r, End)]
    return sum(ends) if ends else None


def _sample(sample: Mapping[str, Any], folder: Path) -> Sample | None:
    """Return a sample with its thumbnail; None where its file cannot be read any more."""
    try:
        path = sample["path"]
        with opened_bytes(content_of(path), path) as source:
            image = decode(source, path, (THUMBNAIL, THUMBNAIL))[0]
    except ResnextError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return Sample(
        thumbnail=image, true=sample["true"], predicted=sample["predicted"],
        probability=sample["probability"], path=os.path.basename(path), link=_link(path, folder),
    )  # fmt: skip


def _found(path: str, run: RunFolder) -> str:
    """Return where an artefact of the run lies now: it was written into its folder, by a path of that time."""
    here = run.path / os.path.basename(path)
    return str(here) if here.exists() else path


def _link(path: str, folder: Path) -> str:
    """Return the URL of a file, relative to `folder`; empty where `path` is not on this machine."""
    if not os.path.exists(path):
        return ""
    relative = os.path.relpath(os.path.realpath(path), os.path.realpath(folder))
    return quote(os.fsencode(relative if relative.startswith(".") else f"./{relative}"))


def _validation(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": os.path.basename(record["artefact"]), "backend": record["artefact_backend"], **record}
