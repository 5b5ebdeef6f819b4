"""Quantise a trained network to 8 bits, and keep the file only if its top-1 holds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from resnext_core.config import Config
from resnext_core.data.index import Index, remarks
from resnext_core.data.splits import open_split, part_paths
from resnext_core.errors import DataError, UsageError, quoted
from resnext_core.extensions import Decoder
from resnext_core.files import check_target, local_path, place, write_atomic
from resnext_core.interfaces import ExportRequest, Predictor
from resnext_core.jobs.export import artefact_folder
from resnext_core.jobs.recorder import ignore
from resnext_core.jobs.settings import Settings, resolve_serving
from resnext_core.model.weights import Weights
from resnext_core.plugins import PluginSet, load_plugins
from resnext_core.processor import Processor, processor
from resnext_core.runs.records import Listener, Note, Progress
from resnext_core.serving.golden import check_golden
from resnext_core.serving.load import find_model, is_weights, read_weights
from resnext_onnx.artefact import read_artefact
from resnext_onnx.options import OnnxOptions
from resnext_onnx.quantize.calibrate import all_ranges, histograms
from resnext_onnx.quantize.choose import Chooser, Tried, choose
from resnext_onnx.quantize.correct import corrected
from resnext_onnx.quantize.gate import Gate, Verdict
from resnext_onnx.quantize.qdq import Layers, Plan, quantised
from resnext_onnx.quantize.result import Layer, QuantizeResult
from resnext_onnx.quantize.run import Array, logits_of
from resnext_onnx.quantize.sample import Sample, check_count, pick, read
from resnext_onnx.quantize.sealing import float_model, sealed_plan
from resnext_onnx.quantize.sensitivity import layer_errors, refined
from resnext_onnx.quantize.speed import Speed, compare_speed
from resnext_onnx.quantize.targets import AUTO, Target, target_of
from resnext_onnx.regroup import regroup

#: Held-out images that single layers and values are tried with: as many as give so many logits, between these ends.
_LOGITS, _FEWEST, _MOST = 6400, 16, 64
#: The largest share of layers in float32 of a file that is kept: with more, there is little left to gain.
_MOST_FLOAT = 0.5
_BATCHES = (1, 8)


@dataclass(frozen=True, kw_only=True)
class QuantizeJob:
    """What to quantise: `weights` is a run folder or a weights file; its data is that of `settings`, or of the run.

    `target` is the file, None a file beside the weights. `processor` is what it is for: ``avx2``, ``vnni``, ``arm`` or
    ``auto``, this one. The file is kept if top-1 on `split` (None: val, or else test) is at most `max_drop` points
    below the source's, and at least a share `min_agreement` of first guesses agree. `calibration` images of train are
    looked at for the ranges, and as many others for choices. `report` is a page to write.
    """

    weights: Path
    target: Path | None = None
    settings: Settings = field(default_factory=Settings)
    split: str | None = None
    processor: str = AUTO
    max_drop: float = 0.3
    min_agreement: float = 0.99
    calibration: int = 300
    report: Path | None = None


def quantize(job: QuantizeJob, listen: Listener = ignore) -> QuantizeResult:
    """Write `job.weights` in 8 bits; `listen` gets lines and progress.

    Raises UsageError or DataError before the work where it cannot succeed, and DataError where the gate cannot be met:
    nothing is kept then.
    """
    started = time.perf_counter()
    work = _Work(job, listen)
    plan, tried = work.chosen()
    errors = work.sensitivity(plan)
    first, verdict, plan = work.gated(plan, errors)
    target = work.write(plan, verdict, tried)
    result = QuantizeResult(
        path=target, bytes=target.stat().st_size, source=str(job.weights), source_bytes=work.float32.ByteSize(),
        digest=work.weights.digest, target=work.target.name, proven=work.proven, machine=str(work.here),
        ranges=next(one.what for one in tried if one.taken), verdict=verdict, first_verdict=first, tried=tried,
        layers=work.layers(plan, errors), speeds=work.speeds(plan), calibration=len(work.calibration),
        seconds=time.perf_counter() - started, report=job.report,
    )  # fmt: skip
    if job.report is not None:
        from resnext_onnx.quantize.report import write_report

        write_report(job.report, result)
    return result


class _Work:
    """A job with everything that its steps share; making it checks all that can be checked before the work."""

    def __init__(self, job: QuantizeJob, listen: Listener) -> None:
        self.job, self.listen = job, listen
        self.here: Processor = processor()
        self.target: Target = target_of(job.processor, self.here)
        _check(job)
        self.plugins: PluginSet = load_plugins()
        resolved = resolve_serving(job.settings, self.plugins, job.weights)
        self.config: Config = resolved.config
        self.decoder: Decoder = self.plugins.decoder(self.config.data.decoder)
        self.weights = _read(job.weights, resolved.config, resolved.sources, self.plugins)
        self.request = _request(self.config)
        self.path = job.target or artefact_folder(job.weights) / f"{self.weights.spec.variant}.int8.onnx"
        for path in (self.path, job.report):
            if path is not None:
                check_target(path)
        if resolved.note is not None:
            listen(Note(text=resolved.note))
        train = self._part("train")
        self.gate_index = self._part(job.split or self._deciding())
        for line in remarks([train, self.gate_index]):
            listen(Note(text=line))
        if not train.labelled:
            raise DataError(f"{train.root} has no labels: calibration takes as many images of each class")
        chosen = pick(
            train.labels, self.weights.classes, job.calibration, self.config.train.seed, str(train.root)
        )
        given = tuple(map(len, chosen))
        if min(given) < job.calibration:
            listen(
                Note(
                    text=f"{train.root} gives {given[0]} images to calibrate with and {given[1]} to choose by, "
                    f"fewer than --calibration {job.calibration}"
                )
            )
        if not self.measurable:
            listen(
                Note(
                    text=f"quantised for {self.target.name} on {self.here.instructions}: it is not proven there"
                )
            )
        options = self.config.backends.get("onnx") or OnnxOptions()
        assert isinstance(options, OnnxOptions)
        self.threads = options.threads
        if options.provider != "cpu":
            listen(
                Note(text=f"quantize computes with onnx.provider=cpu, not {options.provider}: validate there")
            )
        self.float32 = float_model(self.weights)
        self._check_source()
        self.model = regroup(self.float32, self.target.channels)
        self.gate = Gate(
            self.gate_index, self.weights.preprocess, self.config, self.decoder, self.threads, listen
        )
        self.calibration, self.held_out = (self._sample(train, places, what) for places, what in zip(
            chosen, ("calibration images", "held-out images"), strict=True
        ))  # fmt: skip
        self.gate.source(self.float32)  # what cannot be read there is found before the long work
        self.want = self._logits(self.held_out.images, "float32")

    @property
    def measurable(self) -> bool:
        """True where this machine computes with the kind of numbers of the target, so that the file is proven here."""
        arm = self.here.instructions.startswith("arm")
        return self.target.scheme.signed == arm

    @property
    def proven(self) -> str | None:
        """The instruction set that the file is proven on."""
        return self.here.instructions if self.measurable else None

    @property
    def few(self) -> Array:
        """The first of the held-out images: uint8 (N, S, S, 3)."""
        count = _LOGITS // self.weights.spec.num_classes
        return self.held_out.images[: min(max(count, _FEWEST), _MOST)]

    def chosen(self) -> tuple[Plan, list[Tried]]:
        """Return the plan that is best on the held-out images, and what was tried."""
        found = histograms(
            self.model, self.calibration.images, self.threads, self._step("calibrate", len(self.calibration))
        )
        chooser = Chooser(self.model, self.held_out.images, self.want, self.threads, self.listen)
        step = self._step("correct biases", len(self.calibration))
        ranges = all_ranges(found)
        few = self.few
        plan = choose(
            chooser, ranges, self.target.scheme,
            lambda plan, near: refined(
                self.model, plan, near, few, self.want[: len(few)], self.threads, self.listen
            ),
            lambda plan: corrected(self.model, plan, self.calibration.images, self.threads, step),
        )  # fmt: skip
        last = [one for one in chooser.tried if one.taken][-1]
        self.listen(
            Note(
                text=f"logits of {len(self.held_out)} held-out images are off by {last.error:.2%}, first guesses agree "
                f"on {last.agreement:.2%}"
            )
        )
        return plan, chooser.tried

    def sensitivity(self, plan: Plan) -> dict[str, float]:
        """Return the error that each layer causes alone."""
        images = self.few
        names = Layers(self.model.graph).names
        return layer_errors(
            self.model, plan, names, images, self.want[: len(images)], self.threads, self.listen
        )

    def gated(self, plan: Plan, errors: Mapping[str, float]) -> tuple[Verdict, Verdict, Plan]:
        """Return the verdict on `plan`, and the first plan that holds with its verdict: the worst layers go back.

        Raises DataError where none holds before half of the layers are in float32.
        """
        job, total = self.job, len(errors)
        first = verdict = best = self.gate.judge(quantised(self.model, plan))
        self.listen(Note(text=f"{len(plan.layers)} of {total} layers in 8 bits: {first}"))
        while not verdict.holds(job.max_drop, job.min_agreement):
            layer = max(plan.layers, key=lambda name: (errors[name], name))
            plan = replace(plan, layers=plan.layers - {layer})
            if total - len(plan.layers) > _MOST_FLOAT * total:
                raise DataError(_cannot(best, job, total))
            verdict = self.gate.judge(quantised(self.model, plan))
            self.listen(Note(text=f"{layer} back to float32: {verdict}"))
            best = min(best, verdict, key=lambda v: (max(v.drop, job.max_drop), -v.agreement))
        return first, verdict, plan

    def write(self, plan: Plan, verdict: Verdict, tried: Sequence[Tried]) -> Path:
        """Write the artefact atomically, and return its path."""
        proof = {
            "images": verdict.images, "top1_agreement": verdict.agreement, "top1": verdict.top1,
            "top1_source": verdict.top1_source,
        }  # fmt: skip
        said = {
            "for": self.target.name,
            "ranges": next(one.what for one in tried if one.taken),
            "calibration": len(self.calibration),
            "channels": self.target.channels,
        }
        data = sealed_plan(
            self.weights, self.model, plan, batch_size=self.request.batch_size, threads=self.threads, said=said,
            proof=proof, place=self.proven,
        )  # fmt: skip
        write_atomic(self.path, data)
        read_artefact(self.path)
        return self.path

    def layers(self, plan: Plan, errors: Mapping[str, float]) -> list[Layer]:
        """Return every layer of the source with what became of it."""
        macs = _macs(self.float32)
        total = sum(macs.values())
        return [
            Layer(name=name, int8=name in plan.layers, macs=macs[name] / total, error=error)
            for name, error in errors.items()
        ]

    def speeds(self, plan: Plan) -> list[Speed]:
        """Return how fast the network is before and after; nothing where this machine is of another kind."""
        if not self.measurable:
            return []
        models = {"float32": self.float32, "int8": quantised(self.model, plan)}
        found = []
        for batch in _BATCHES:
            found.append(compare_speed(models, self.weights.spec.image_size, self.threads, batch))
            self.listen(Progress(what="measure speed", done=len(found), total=len(_BATCHES)))
        return found

    def _part(self, split: str) -> Index:
        return open_split(self.config.data, split, self.weights.classes, named=self.weights.has_names)

    def _deciding(self) -> str:
        """Return the part of the data that the gate looks at where none is named."""
        if self.config.data.dir is None:
            raise UsageError("no data given: use --data DIR, or give a run as --weights to take its own")
        parts = part_paths(place(self.config.data.dir), self.config.data)
        return "test" if "val" not in parts and "test" in parts else "val"

    def _sample(self, index: Index, places: Array, what: str) -> Sample:
        return read(index, places, self.weights.preprocess, self.config, self.decoder, what, self.listen)

    def _logits(self, images: Array, what: str) -> Array:
        return logits_of(self.float32, images, self.threads, self._step(what, len(images)))

    def _step(self, what: str, total: int) -> Any:
        return lambda done: self.listen(Progress(what=what, done=done, total=total))

    def _check_source(self) -> None:
        """Raise DataError where the float network is not the one that was trained."""
        if self.config.eval.self_check:
            check_golden(
                _Logits(self.float32, self.threads),
                self.weights.golden,
                self.weights.spec,
                str(self.job.weights),
            )


class _Logits(Predictor):
    """A network in memory, as far as a check of golden logits asks for a predictor."""

    def __init__(self, model: onnx.ModelProto, threads: int | None) -> None:
        self.model, self.threads = model, threads

    def logits(self, images: Array) -> Array:
        """Map uint8 (N, S, S, 3) to float32 (N, classes)."""
        return logits_of(self.model, images, self.threads)

    def logits_from_tensor(self, tensor: Array) -> Array:
        """Nobody asks for it."""
        raise UsageError("this network takes images")

    def close(self) -> None:
        """There is nothing to close."""


def _check(job: QuantizeJob) -> None:
    check_count(job.calibration)
    if not 0 <= job.max_drop <= 100:  # also NaN
        raise UsageError(f"--max-drop must be a number of points from 0 to 100, not {job.max_drop!r}")
    if job.split not in (None, "val", "test"):
        raise UsageError(
            f"--split must be val or test, not {quoted(job.split)}: the ranges are fitted to images of train"
        )
    if not 0 <= job.min_agreement <= 1:
        raise UsageError(f"--min-agreement must be a share from 0 to 1, not {job.min_agreement!r}")
    for path in (job.target, job.report):
        if path is not None:
            local_path(path)
    if job.target is not None and job.target.suffix != ".onnx":
        raise UsageError(
            f"quantize writes .onnx files, not {quoted(str(job.target))}; give --to a name that ends so"
        )
    if job.report is not None and job.report.suffix != ".html":  # anything else may be a network or its data
        raise UsageError(
            f"the report is an HTML page, not {quoted(str(job.report))}; give --report a name that ends in .html"
        )


def _read(path: Path, config: Config, sources: Mapping[str, str], plugins: PluginSet) -> Weights:
    """Return the weights; UsageError for an artefact, DataError for what cannot be read."""
    found = find_model(path)
    if is_weights(found, plugins):
        return read_weights(path, config, sources, plugins)
    what = "an artefact"
    if found.suffix == ".onnx" and read_artefact(found).manifest.precision == "int8":
        what = "quantised already"
    raise UsageError(
        f"{path} is {what}: quantize takes what it was made from, a run folder or a weights file"
    )


def _request(config: Config) -> ExportRequest:
    if config.export.input != "uint8":
        raise UsageError(
            f"quantize writes files of uint8 input, not {quoted(config.export.input)}: set export.input=uint8"
        )
    if config.export.precision != "float32":
        raise UsageError(
            f"quantize writes int8 from float32, not {config.export.precision}: set export.precision=float32"
        )
    return ExportRequest(batch_size=config.export.batch_size, input="uint8", fold_bn=True)


def _macs(model: onnx.ModelProto) -> dict[str, float]:
    """Return the multiplications of each layer for an image."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred.graph.value_info}
    layers = Layers(model.graph)
    return {
        name: float(layers.weight(name).size * np.prod(shapes.get(node.output[0], [0, 0])[2:]))
        for name, node in layers.all.items()
    }


def _cannot(best: Verdict, job: QuantizeJob, total: int) -> str:
    """Return by how much the gate was missed."""
    missed = []
    if best.drop > job.max_drop:
        missed.append(
            f"top-1 drops by {best.drop:.2f} points, {best.drop - job.max_drop:.2f} more than --max-drop"
        )
    if best.agreement < job.min_agreement:
        missed.append(
            f"first guesses agree on {best.agreement:.2%}, --min-agreement asks for {job.min_agreement:.2%}"
        )
    return (
        f"the gate cannot be met with half of the {total} layers or more in 8 bits: at best "
        f"{' and '.join(missed) or str(best)}; nothing was kept"
    )
