"""The Python API: the jobs of the command line as functions, under the names that it has for them.

``import resnext_core as rx`` offers what is here; it is imported when it is first used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

from resnext_core.console.output import Output, ProgressBar
from resnext_core.errors import UsageError, quoted
from resnext_core.jobs.average import AverageJob, AverageResult
from resnext_core.jobs.average import average as average_job
from resnext_core.jobs.evaluate import EvaluateJob, EvaluateResult, Split
from resnext_core.jobs.evaluate import evaluate_sizes as evaluate_sizes_job
from resnext_core.jobs.export import ExportJob, ExportResult
from resnext_core.jobs.export import export as export_job
from resnext_core.jobs.model import Model, load_model
from resnext_core.jobs.settings import Settings
from resnext_core.jobs.train import TrainJob, TrainResult
from resnext_core.jobs.train import train as train_job
from resnext_core.jobs.validate import ValidateJob, ValidateResult
from resnext_core.jobs.validate import validate as validate_job
from resnext_core.jobs.whole import WholeJob, WholeResult
from resnext_core.jobs.whole import whole as whole_job
from resnext_core.runs.records import Listener
from resnext_core.serving.evaluate import Tta

#: A path, or a result that stands for one.
Location: TypeAlias = "str | os.PathLike[str]"
#: Configuration values by ``section.key``.
Overrides: TypeAlias = Mapping[str, Any]


def train(
    data: Location | None = None,
    *,
    recipe: Location | None = None,
    config: Location | Sequence[Location] = (),
    epochs: int | None = None,
    minutes: float | None = None,
    batch_size: int | Literal["auto"] | None = None,
    seed: int | None = None,
    pretrained: Location | None = None,
    num_classes: int | None = None,
    output: Location | None = None,
    name: str | None = None,
    overrides: Overrides | None = None,
    backend: str | None = None,
    resume: Location | bool = False,
    devices: int = 1,
    progress: Listener | None = None,
) -> TrainResult:
    """Train on the folder `data`, or continue the run `resume` (True: the newest); as ``resnext-run train``.

    Later arguments of the configuration win: `recipe`, the YAML files `config`, the single values, `overrides` such as
    ``{"optimizer.lr": 0.1}``. A `batch_size` of ``"auto"`` is the largest that fits memory. `progress` gets every
    record (:mod:`resnext_core.runs.records`); without it lines are printed. Ctrl-C saves and raises Interrupted; the
    run can be resumed.

    The result stands for its run folder wherever a path is taken. Raises UsageError, DataError, BackendUnavailable,
    Interrupted or RanksFailed.
    """
    settings = _settings(
        data=data, recipe=recipe, config=config, epochs=epochs, minutes=minutes, batch_size=batch_size, seed=seed,
        pretrained=pretrained, num_classes=num_classes, output=output, name=name, overrides=overrides,
    )  # fmt: skip
    job = TrainJob(
        settings=settings, backend=backend, resume=_resume(resume), devices=_devices(devices),
        command=_command("train", settings, overrides=overrides, backend=backend, resume=resume, devices=devices),
    )  # fmt: skip
    with _listening(progress) as listen:
        return train_job(job, listen)


def run(
    data: Location | None = None,
    *,
    recipe: Location | None = None,
    config: Location | Sequence[Location] = (),
    epochs: int | None = None,
    minutes: float | None = None,
    batch_size: int | Literal["auto"] | None = None,
    seed: int | None = None,
    pretrained: Location | None = None,
    num_classes: int | None = None,
    output: Location | None = None,
    name: str | None = None,
    overrides: Overrides | None = None,
    backend: str | None = None,
    resume: Location | bool = False,
    devices: int = 1,
    progress: Listener | None = None,
) -> WholeResult:
    """Do the whole job: train, evaluate, export, validate, report; as ``resnext-run``.

    The arguments are those of :func:`train`; without data the built-in digits are taken. `passed` of the result says
    whether every artefact agrees with its source.
    """
    settings = _settings(
        data=data, recipe=recipe, config=config, epochs=epochs, minutes=minutes, batch_size=batch_size, seed=seed,
        pretrained=pretrained, num_classes=num_classes, output=output, name=name, overrides=overrides,
    )  # fmt: skip
    job = WholeJob(
        settings=settings, backend=backend, resume=_resume(resume), devices=_devices(devices),
        command=_command("run", settings, overrides=overrides, backend=backend, resume=resume, devices=devices),
    )  # fmt: skip
    with _listening(progress) as listen:
        return whole_job(job, listen)


def evaluate(
    weights: Location,
    data: Location | None = None,
    *,
    split: Split | None = None,
    tta: Tta | None = None,
    calibrate: bool = False,
    predictions: Location | None = None,
    topk: int = 5,
    config: Location | Sequence[Location] = (),
    overrides: Overrides | None = None,
    backend: str | None = None,
    devices: int = 1,
    progress: Listener | None = None,
) -> EvaluateResult:
    """Score every image once with a run, a weights file or an artefact; as ``resnext-run eval``.

    `data` None takes the data of the run. `split` None takes test where it is there and labelled, else val. With `tta`
    ``flip`` the mean of the probabilities of each image and its mirror image is scored (None: ``eval.tta``). With
    `calibrate` a temperature is fitted on val, see :class:`~resnext_core.jobs.calibrate.Calibrated`. `predictions` is a
    new .csv, .jsonl or .parquet file with a row for each image and its `topk` most probable classes. Raises UsageError,
    DataError, BackendUnavailable or RanksFailed.
    """
    job = EvaluateJob(
        weights=_path(weights), settings=_evaluation(data, tta, config, overrides), split=split, calibrate=calibrate,
        predictions=None if predictions is None else _path(predictions), top=topk, backend=backend,
        devices=_devices(devices),
    )  # fmt: skip
    with _listening(progress) as listen:
        return evaluate_sizes_job(job, listen)[0]


def evaluate_sizes(
    weights: Location,
    sizes: Sequence[int],
    data: Location | None = None,
    *,
    split: Split | None = None,
    tta: Tta | None = None,
    calibrate: bool = False,
    config: Location | Sequence[Location] = (),
    overrides: Overrides | None = None,
    backend: str | None = None,
    devices: int = 1,
    progress: Listener | None = None,
) -> list[EvaluateResult]:
    """Do what :func:`evaluate` does at each of some image sizes, in pixels; as ``resnext-run eval`` with ``--sizes``.

    An artefact has one size: another one is a UsageError.
    """
    if not sizes:
        raise UsageError("no image size is given")
    job = EvaluateJob(
        weights=_path(weights), settings=_evaluation(data, tta, config, overrides), split=split, sizes=tuple(sizes),
        calibrate=calibrate, backend=backend, devices=_devices(devices),
    )  # fmt: skip
    with _listening(progress) as listen:
        return evaluate_sizes_job(job, listen)


def average(
    weights: Sequence[Location],
    to: Location,
    *,
    shares: Sequence[float] | None = None,
    bn_images: int | None = None,
    greedy: bool = False,
    data: Location | None = None,
    config: Location | Sequence[Location] = (),
    overrides: Overrides | None = None,
    backend: str | None = None,
    force: bool = False,
    progress: Listener | None = None,
) -> AverageResult:
    """Average the weights of runs, checkpoint folders or weights files into the file `to`; as ``resnext-run average``.

    `shares` weigh them (None: all alike). With `bn_images` the statistics of batch normalisation are computed anew from
    so many training images of `data`, or of the first run; None averages them too. With `greedy` only those are taken
    that make the mean no worse on val. `force` overwrites `to`. Raises UsageError, DataError or BackendUnavailable.
    """
    job = AverageJob(
        sources=tuple(_path(one) for one in weights), target=_path(to),
        shares=None if shares is None else tuple(shares), bn_images=bn_images, greedy=greedy,
        settings=_settings(data=data, config=config, overrides=overrides), backend=backend, force=force,
    )  # fmt: skip
    with _listening(progress) as listen:
        return average_job(job, listen)


def export(
    weights: Location,
    *formats: str,
    to: Location | None = None,
    config: Location | Sequence[Location] = (),
    overrides: Overrides | None = None,
    backend: str | None = None,
    progress: Listener | None = None,
) -> ExportResult:
    """Write artefacts of a run or a weights file; as ``resnext-run export``.

    `formats` are names of exporters; none takes that of the suffix of `to`, or all that can be written here. `to` is
    a file, or a folder for several; None is the run folder. An artefact is kept only where its logits agree with those
    of its source. Raises UsageError, DataError or BackendUnavailable.
    """
    settings = _settings(config=config, overrides=overrides)
    job = ExportJob(
        weights=_path(weights), formats=formats, target=None if to is None else _path(to), settings=settings,
        backend=backend,
    )  # fmt: skip
    with _listening(progress) as listen:
        return export_job(job, listen)


def validate(
    artefact: Location,
    weights: Location,
    data: Location | None = None,
    *,
    split: Split | None = None,
    tolerance: float | None = None,
    min_agreement: float | None = None,
    max_drop: float | None = None,
    config: Location | Sequence[Location] = (),
    overrides: Overrides | None = None,
    backend: str | None = None,
    source_backend: str | None = None,
    progress: Listener | None = None,
) -> ValidateResult:
    """Compare an artefact with its source on real images; as ``resnext-run validate``.

    `passed` of the result says whether they agree; limits that are None are those of the artefact's precision, see
    :class:`ValidateJob`. An artefact in few bits that passes is given a proof of this processor. `data` and `split` are
    those of :func:`evaluate`. Raises UsageError, BackendUnavailable, or DataError where the two are not the same
    network.
    """
    settings = _settings(data=data, config=config, overrides=overrides)
    job = ValidateJob(
        artefact=_path(artefact), weights=_path(weights), settings=settings, split=split, tolerance=tolerance,
        min_agreement=min_agreement, max_drop=max_drop, backend=backend, source_backend=source_backend,
    )  # fmt: skip
    with _listening(progress) as listen:
        return validate_job(job, listen)


def load(
    weights: Location,
    *,
    backend: str | None = None,
    batch_size: int | None = None,
    config: Location | Sequence[Location] = (),
    overrides: Overrides | None = None,
) -> Model:
    """Load a run, a weights file or an artefact for :meth:`Model.predict`; close it, or use a ``with`` block.

    `batch_size` is the number of images in one call of the backend (None: ``eval.batch_size``). Raises UsageError,
    DataError or BackendUnavailable.
    """
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size must be 1 or more, not {batch_size}")
    settings = _settings(config=config, overrides=overrides)
    return load_model(_path(weights), settings, backend=backend, batch_size=batch_size)


# -- arguments -----------------------------------------------------------------------------------


def _path(given: Location) -> Path:
    try:
        return Path(os.fspath(given))
    except TypeError:
        raise UsageError(f"a path or a result is needed, not {type(given).__name__}") from None


def _text(given: Location | None) -> str | None:
    return None if given is None else str(_path(given))


def _resume(given: Location | bool) -> Path | bool:
    return given if isinstance(given, bool) else _path(given)


def _devices(given: int) -> int:
    if type(given) is not int or given < 1:
        raise UsageError(f"devices must be an integer from 1, not {quoted(given)}")
    return given


def _settings(
    *,
    data: Location | None = None,
    recipe: Location | None = None,
    config: Location | Sequence[Location] = (),
    pretrained: Location | None = None,
    output: Location | None = None,
    overrides: Overrides | None = None,
    **values: Any,
) -> Settings:
    files = [config] if isinstance(config, (str, os.PathLike)) else config
    return Settings(
        data=_text(data), recipe=None if recipe is None else os.fspath(recipe),
        configs=tuple(str(_path(file)) for file in files), pretrained=_text(pretrained), output=_text(output),
        overrides=tuple(_assignment(key, value) for key, value in (overrides or {}).items()),
        spelling="arguments", **values,
    )  # fmt: skip


def _evaluation(
    data: Location | None, tta: Tta | None, config: Location | Sequence[Location], overrides: Overrides | None
) -> Settings:
    mirrored = {} if tta is None else {"eval.tta": tta}
    return _settings(data=data, config=config, overrides={**(overrides or {}), **mirrored})


def _assignment(key: Any, value: Any) -> str:
    """Return ``section.key=value`` with the value in JSON, which is YAML."""
    if not isinstance(key, str) or not all(key.partition(".")):
        raise UsageError(f"overrides are {{'section.key': value}}, not {quoted(key)}")
    try:
        return f"{key}={json.dumps(value, default=os.fspath)}"
    except (TypeError, ValueError):
        raise UsageError(f"overrides: {key} cannot be {type(value).__name__}") from None


def _command(verb: str, settings: Settings, **others: Any) -> str:
    """Return the call, for the record of what a run was made by."""
    given = {name: value for name, value in vars(settings).items() if name not in ("spelling", "overrides")}
    if "resume" in others and not isinstance(others["resume"], bool):
        others["resume"] = os.fspath(others["resume"])
    defaults = vars(Settings()) | {"overrides": None, "backend": None, "resume": False, "devices": 1}
    words = [f"{name}={value!r}" for name, value in (given | others).items() if value != defaults[name]]
    return f"resnext_core.{verb}({', '.join(words)})"


@contextmanager
def _listening(progress: Listener | None) -> Iterator[Listener]:
    """Yield what takes the records: `progress`, or what prints them."""
    if progress is not None:
        yield progress
        return
    with ProgressBar(Output()) as bar:
        yield bar
