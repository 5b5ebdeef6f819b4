"""The contract kit tested on itself: every planted mistake is caught by the test that is there for it."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import planted_bugs as bugs
import planted_ingredients
import pytest

from resnext_core.errors import BackendUnavailable, ResnextError
from resnext_core.interfaces import Backend, Readiness, Variant
from resnext_core.testing import BackendContract
from resnext_core.testing.base import REQUIRE

HERE = Path(__file__).resolve().parent


class TestSaneBackend(BackendContract):
    """The frame of the planted mistakes, without a mistake, passes everything."""

    backend = bugs.SANE
    worker = "planted_bugs:SANE"

    @pytest.fixture(autouse=True)
    def _ranks_find_the_module(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _reachable(monkeypatch, HERE)


def _reachable(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


def _parameters(test: Any) -> Iterator[dict[str, Any]]:
    """Yield the arguments of every case of a parametrized test."""
    axes = []
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize":
            name, values = mark.args
            axes.append([{name: value} for value in values])
    for combination in itertools.product(*axes):
        yield {name: value for part in combination for name, value in part.items()}


def failures(contract: type[BackendContract], name: str, tmp_path: Path) -> list[str]:
    """Run a test of the kit as pytest would, and return what its failing cases say."""
    test, said, ran = getattr(contract, name), [], 0
    for number, arguments in enumerate(_parameters(test)):
        if "tmp_path" in inspect.signature(test).parameters:
            arguments["tmp_path"] = tmp_path / str(number)
            arguments["tmp_path"].mkdir()
        try:
            getattr(contract(), name)(**arguments)
        except pytest.skip.Exception:
            continue
        except (AssertionError, ResnextError, pytest.fail.Exception) as failure:
            said.append(str(failure))
        ran += 1
    assert ran, f"{name} was skipped"
    return said


def contract_of(record: Backend, worker: str | None = None) -> type[BackendContract]:
    """Return the contract of a record."""
    return type("Planted", (BackendContract,), {"backend": record, "worker": worker})


def _of_trainer(trainer: Any) -> Backend:
    return bugs.backend(mistake=trainer)


def _of_predictor(predictor: Any) -> Backend:
    return bugs.backend(predictor=predictor)


def _of_exporter(exporter: Any) -> Backend:
    return bugs.backend(exporter=exporter)


#: What is wrong, the backend, the test that must notice, and words of what it says.
#: Counts the answers of a probe.
CALLS = itertools.count()

PLANTED: dict[str, tuple[Backend, str, str]] = {
    "colours reversed": (bugs.BGR, "test_logits_equal_the_reference", "logits of"),
    "colours reversed, golden": (bugs.BGR, "test_golden_logits", "golden"),
    "constants of ImageNet": (bugs.CONSTANTS, "test_logits_equal_the_reference", "logits of"),
    "constants of ImageNet in training": (bugs.CONSTANTS, "test_losses_equal_the_reference", "losses"),
    "bn eps 1e-3": (bugs.EPS, "test_logits_equal_the_reference", "logits of"),
    "bn eps 1e-3 in training": (bugs.EPS, "test_losses_equal_the_reference", "losses"),
    "stride on the 1x1": (bugs.STRIDE, "test_logits_equal_the_reference", "logits of"),
    "groups interleaved": (bugs.GROUPS, "test_logits_equal_the_reference", "logits of"),
    "pool paddings swapped": (bugs.POOL, "test_golden_logits", "golden"),
    "pool paddings swapped in training": (bugs.POOL, "test_weights_equal_the_reference", "weights of"),
    "batch statistics in evaluation": (
        bugs.BATCH_STATISTICS,
        "test_a_sample_does_not_depend_on_its_batch",
        "alone",
    ),
    "running variance biased": (bugs.BIASED, "test_running_statistics_equal_the_reference", "running_var"),
    "bn momentum the other way round": (
        bugs.BN_MOMENTUM,
        "test_running_statistics_equal_the_reference",
        "running_mean",
    ),
    "smoothing over all classes": (bugs.SMOOTHING_UNIFORM, "test_losses_equal_the_reference", "plain"),
    "smoothing over the others": (bugs.SMOOTHING_OTHERS, "test_losses_equal_the_reference", "everything"),
    "decay on bn and bias": (
        _of_trainer(bugs.DecayOnAll),
        "test_weights_equal_the_reference",
        "bn",
    ),
    "scale not divided out": (
        _of_trainer(bugs.NeverDivided),
        "test_weights_equal_the_reference",
        "everything after step 1",
    ),
    "scale not multiplied in": (
        _of_trainer(bugs.NeverMultiplied),
        "test_weights_equal_the_reference",
        "everything after step 1",
    ),
    "dampened momentum": (_of_trainer(bugs.Dampened), "test_weights_equal_the_reference", "weights of"),
    "nesterov": (_of_trainer(bugs.Nesterov), "test_weights_equal_the_reference", "weights of"),
    "gradient not clipped": (
        _of_trainer(bugs.NoClip),
        "test_momentum_equals_the_reference",
        "everything after step 3",
    ),
    "scaled gradient clipped": (
        _of_trainer(bugs.ClipsScaled),
        "test_momentum_equals_the_reference",
        "step 1",
    ),
    "micro-batches summed": (
        _of_trainer(bugs.SumsMicroBatches),
        "test_momentum_equals_the_reference",
        "step 1",
    ),
    "statistics over all micro-batches": (
        _of_trainer(bugs.OneBatchOfStatistics),
        "test_losses_equal_the_reference",
        "everything",
    ),
    "rate of the step before": (_of_trainer(bugs.PreviousRate), "test_weights_equal_the_reference", "step 2"),
    "loss of after the step": (
        _of_trainer(bugs.LossAfterTheStep),
        "test_losses_equal_the_reference",
        "losses",
    ),
    "overflow applied": (
        _of_trainer(bugs.AppliesOverflow),
        "test_overflow_leaves_parameters_and_momentum",
        "moved",
    ),
    "scale grows at once": (
        _of_trainer(bugs.ResetsOnGood),
        "test_dynamic_scale_follows_its_rule",
        "after step",
    ),
    "statistics stop on overflow": (
        _of_trainer(bugs.StatisticsStopOnOverflow),
        "test_overflow_keeps_the_loss_and_the_statistics",
        "statistics of a skipped step",
    ),
    "ema of the weights before": (
        _of_trainer(bugs.EmaOfOldWeights),
        "test_ema_equals_the_reference",
        "ema of",
    ),
    "ema without statistics": (
        _of_trainer(bugs.EmaWithoutStatistics),
        "test_ema_equals_the_reference",
        "running",
    ),
    "noise without a seed": (
        _of_trainer(bugs.Unrepeatable),
        "test_chunks_do_not_matter_and_runs_repeat",
        "",
    ),
    "momentum lost on overflow": (
        _of_trainer(bugs.ForgetsMomentumOnOverflow),
        "test_good_steps_between_overflows_are_ordinary_steps",
        "skipped steps",
    ),
    "what is no number is applied": (
        _of_trainer(bugs.AppliesNonfinite),
        "test_a_step_that_is_no_number_changes_nothing_when_skipped",
        "moved on a skipped step",
    ),
    "statistics of what is no number": (
        _of_trainer(bugs.PoisonsStatistics),
        "test_a_step_that_is_no_number_changes_nothing_when_skipped",
        "running_",
    ),
    "no average where steps may be skipped": (
        _of_trainer(bugs.WithoutAverageWhenSkipping),
        "test_skipping_what_is_no_number_leaves_other_steps_alone",
        "ema/",
    ),
    "fixed scale moves": (_of_trainer(bugs.HalvesFixedScale), "test_fixed_scale_stays", ""),
    "weights kept in float16": (
        _of_trainer(bugs.KeepsHalves),
        "test_low_precision_is_close_or_refused",
        "must be float32",
    ),
    "gradient ascent": (_of_trainer(bugs.Ascends), "test_loss_falls", "the loss went from"),
    "weights of the request ignored": (
        _of_trainer(bugs.StartsAnew),
        "test_training_starts_from_the_weights_given",
        "conv1.weight",
    ),
    "micro-batches counted": (
        _of_trainer(bugs.CountsMicroBatches),
        "test_counters_equal_the_reference",
        "step",
    ),
    "state in float64": (_of_trainer(bugs.DoubleState), "test_state_is_complete_and_neutral", "float64"),
    "resume without momentum": (
        _of_trainer(bugs.StateWithoutMomentum),
        "test_resumed_run_is_the_uninterrupted_run",
        "momentum",
    ),
    "resume without loss scale": (
        _of_trainer(bugs.StateWithoutScale),
        "test_resumed_run_is_the_uninterrupted_run",
        "state just loaded",
    ),
    "state not copied": (_of_trainer(bugs.LiveState), "test_state_is_a_copy", ""),
    "batch used after the call": (
        _of_trainer(bugs.LateStep),
        "test_a_batch_may_be_overwritten_after_the_call",
        "overwritten",
    ),
    "unfit state loaded": (_of_trainer(bugs.LenientState), "test_unfit_state_is_refused", "DID NOT RAISE"),
    "request written into": (
        _of_trainer(bugs.WritesIntoTheRequest),
        "test_the_request_is_not_modified",
        "wrote into",
    ),
    "predictor of old weights": (
        _of_trainer(bugs.StalePredictor),
        "test_predictor_follows_the_weights",
        "logits of the trainer",
    ),
    "images cut to the training's size": (
        _of_trainer(bugs.OfOneSize),
        "test_predictor_takes_images_of_another_size",
        "trained on 24",
    ),
    "evaluation moves statistics": (
        _of_trainer(bugs.EvaluatesInTrainingMode),
        "test_evaluation_between_steps_changes_nothing",
        "evaluated between",
    ),
    "result buffer reused": (_of_predictor(bugs.ReusedBuffer), "test_prediction_has_no_memory", "wrote over"),
    "input overwritten": (_of_predictor(bugs.NormalizesInPlace), "test_input_is_not_modified", "images"),
    "remainder dropped": (
        _of_predictor(bugs.DropsTheRemainder),
        "test_a_sample_does_not_depend_on_its_batch",
        "sample",
    ),
    "tensor transposed": (
        _of_predictor(bugs.SwappedTensor),
        "test_logits_from_a_normalized_tensor",
        "from a tensor",
    ),
    "stale graph exported": (
        _of_exporter(bugs.FirstExportOnly()),
        "test_artefact_computes_what_its_source_does",
        "logits of .copy",
    ),
    "strides ignored": (_of_predictor(bugs.MemoryOrder), "test_strided_input", "images"),
    "strides of tensors ignored": (_of_predictor(bugs.MemoryOrderOfTensors), "test_strided_input", "tensor"),
    "half precision exported": (
        _of_exporter(bugs._half_precision),
        "test_artefact_computes_what_its_source_does",
        "logits of .copy",
    ),
    "origin lost": (_of_exporter(bugs._forgets_origin), "test_artefact_carries_its_manifest", "made by"),
    "private file": (
        _of_exporter(bugs._private_file),
        "test_artefact_is_an_ordinary_file_and_may_be_replaced",
        "mode of the file",
    ),
    "export changes the source": (
        _of_exporter(bugs._folds_in_place),
        "test_export_does_not_modify_the_weights",
        "wrote into",
    ),
    # -- rows that are not valid
    "every row counts": (_of_trainer(bugs.EveryRowCounts), "test_losses_equal_the_reference", "losses of"),
    "divided by all rows": (
        _of_trainer(bugs.DividesByAllRows),
        "test_losses_equal_the_reference",
        "losses of",
    ),
    "means of micro-batches": (
        _of_trainer(bugs.MeansOfMicroBatches),
        "test_momentum_equals_the_reference",
        "everything after step 1",
    ),
    "no valid row is no number": (
        _of_trainer(bugs.NothingOverNothing),
        "test_losses_equal_the_reference",
        "losses of",
    ),
    "steps without a valid row left out": (
        _of_trainer(bugs.LeavesOutEmptySteps),
        "test_momentum_equals_the_reference",
        "plain after step 3",
    ),
    "statistics of valid rows": (
        _of_trainer(bugs.StatisticsOfValidRows),
        "test_running_statistics_equal_the_reference",
        "after step",
    ),
    "labels of all rows": (_of_trainer(bugs.LabelsOfAllRows), "test_losses_equal_the_reference", "labels"),
    # -- mixing
    "nothing mixed": (_of_trainer(bugs.MixesNothing), "test_losses_equal_the_reference", "mixed"),
    "pixels mixed, labels not": (
        _of_trainer(bugs.MixesPixelsAlone),
        "test_losses_equal_the_reference",
        "mixed",
    ),
    "labels mixed, pixels not": (
        _of_trainer(bugs.MixesLabelsAlone),
        "test_losses_equal_the_reference",
        "mixed",
    ),
    "rolled the other way": (_of_trainer(bugs.RollsTheOtherWay), "test_losses_equal_the_reference", "mixed"),
    "one draw for all micro-batches": (
        _of_trainer(bugs.MixesByTheFirstDraw),
        "test_losses_equal_the_reference",
        "mixed",
    ),
    "box transposed": (_of_trainer(bugs.TransposedBox), "test_losses_equal_the_reference", "mixed"),
    "box with its end": (_of_trainer(bugs.BoxWithItsEnd), "test_weights_equal_the_reference", "mixed"),
    "box blended": (_of_trainer(bugs.BlendsTheBox), "test_losses_equal_the_reference", "mixed"),
    "shares in float16": (_of_trainer(bugs.SharesInHalf), "test_weights_equal_the_reference", "mixed"),
    "mixed as bytes": (_of_trainer(bugs.MixesBytes), "test_weights_equal_the_reference", "mixed"),
    "black images mixed in": (
        _of_trainer(bugs.MixesBlackImages),
        "test_losses_equal_the_reference",
        "mixed",
    ),
    "one draw for all steps of a call": (
        _of_trainer(bugs.MixesByTheFirstStep),
        "test_steps_of_one_call_are_their_own",
        "",
    ),
    "mixed in float32 alone": (
        _of_trainer(bugs.MixesInFloat32Alone),
        "test_ingredients_in_low_precision_are_close_or_refused",
        "float16",
    ),
    # -- sizes, rates and counters
    "micro-batches by two": (
        _of_trainer(bugs.TwoMicroBatches),
        "test_momentum_equals_the_reference",
        "everything after step 1",
    ),
    "rates clamped": (
        _of_trainer(bugs.ClampedRate),
        "test_update_follows_from_the_optimizer_state",
        "another rate",
    ),
    "rates in float16": (
        _of_trainer(bugs.RateInHalf),
        "test_update_follows_from_the_optimizer_state",
        "another rate",
    ),
    "one rate a call": (
        _of_trainer(bugs.RateOfTheChunk),
        "test_chunks_do_not_matter_and_runs_repeat",
        "",
    ),
    "decay of 0 not taken": (_of_trainer(bugs.DefaultDecay), "test_momentum_equals_the_reference", "bare"),
    "momentum of 0 not taken": (
        _of_trainer(bugs.DefaultMomentum),
        "test_momentum_equals_the_reference",
        "bare",
    ),
    "clipped unasked": (_of_trainer(bugs.DefaultClip), "test_momentum_equals_the_reference", "plain"),
    "smoothing of 0 not taken": (
        _of_trainer(bugs.DefaultSmoothing),
        "test_losses_equal_the_reference",
        "bare",
    ),
    "overflow of a micro-batch dropped": (
        _of_trainer(bugs.LastMicroBatchDecides),
        "test_an_overflow_in_one_micro_batch_skips_the_step",
        "was not noticed",
    ),
    "overflow clipped": (
        _of_trainer(bugs.ClipsWhatOverflowed),
        "test_overflow_leaves_parameters_and_momentum",
        "moved",
    ),
    "ema stops on overflow": (_of_trainer(bugs.EmaStopsOnOverflow), "test_overflow_moves_the_ema", "skipped"),
    "noise in the trainer's predictor": (
        _of_trainer(bugs.NoisyPredictor),
        "test_predictor_follows_the_weights",
        "the second time",
    ),
    "predictor of before the restart": (
        _of_trainer(bugs.StaleAfterLoading),
        "test_predictor_follows_a_loaded_state",
        "logits of the loaded",
    ),
    "overflows forgotten": (
        _of_trainer(bugs.StateWithoutOverflows),
        "test_counters_go_on_from_a_state",
        "just loaded",
    ),
    "counters in float32": (
        _of_trainer(bugs.ShortCounters),
        "test_counters_go_on_from_a_state",
        "just loaded",
    ),
    "good steps forgotten": (
        _of_trainer(bugs.StateWithoutGoodSteps),
        "test_counters_go_on_from_a_state",
        "one step more",
    ),
    "wrong beyond 64 rows": (
        _of_predictor(bugs.WrongBeyond64),
        "test_a_sample_does_not_depend_on_its_batch",
        "sample 64",
    ),
    "even sizes": (_of_predictor(bugs.EvenSizes), "test_logits_equal_the_reference", "logits of same-odd"),
    "two classes are one": (_of_predictor(bugs.TwoClassesAreOne), "test_logits_equal_the_reference", "same"),
    "classes in fours": (_of_predictor(bugs.PaddedClasses), "test_logits_equal_the_reference", "one-stage"),
    # -- a backend that only serves
    "tensors of an artefact for images": (
        bugs.serving(tensors=1.5),
        "test_images_and_tensors_are_the_same_question",
        "normalised images",
    ),
    "images of an artefact for tensors": (
        bugs.serving(images=1.5),
        "test_images_and_tensors_are_the_same_question",
        "for float: logits of 5 images",
    ),
    "fixed batch not split": (
        bugs.serving(splits=False),
        "test_artefact_of_a_fixed_batch_serves_any_number",
        "takes 2 rows",
    ),
    "preprocessing inside for several images": (
        bugs.backend(exporter=bugs.several_images_exporter),
        "test_formats_that_contain_the_preprocessing",
        "DID NOT RAISE",
    ),
    "two variants of one name": (
        bugs.backend(variants=lambda: (Variant(label="fast"), Variant(label="fast"))),
        "test_what_benchmarks_ask_has_answers",
        "two variants have one name",
    ),
    "a variant of unknown settings": (
        bugs.backend(variants=lambda: (Variant(label="fast", overrides=("planted.nothere=1",)),)),
        "test_what_benchmarks_ask_has_answers",
        "nothere",
    ),
    "mutable options": (
        bugs.backend(options=bugs.MutableOptions),
        "test_options_are_a_frozen_dataclass_with_defaults",
        "frozen",
    ),
    "an option no file can say": (
        bugs.backend(options=bugs.OptionsWithAPath),
        "test_options_are_read_from_the_section_of_the_backend",
        "cache",
    ),
    "probe of an older core": (
        bugs.backend(probe=lambda: None),
        "test_probe_answers_in_one_sentence",
        "returns a Readiness, not None",
    ),
    "probe with another answer each time": (
        bugs.backend(probe=lambda: Readiness(state="missing", reason=f"call {next(CALLS)}")),
        "test_probe_answers_in_one_sentence",
        "",
    ),
    "section's name as id": (bugs.backend(id="train"), "test_record_is_complete", "config section"),
    "another api": (bugs.backend(api_version=0), "test_record_is_complete", "api_version"),
} | planted_ingredients.PLANTED

#: The same for what only several processes show; the worker finds the backend by its name.
PLANTED_RANKS = {
    "ranks on their own": ("UNAVERAGED", "test_ranks_end_with_the_same_parameters", "differ between ranks"),
    "gradients summed over ranks": ("SUMMED", "test_ranks_equal_one_that_accumulates", "of rank 0"),
    "gradients of ranks by two": ("BY_TWO", "test_ranks_equal_one_that_accumulates", "of rank 0"),
    "means of ranks": ("MEANS_OF_RANKS", "test_ranks_equal_one_that_accumulates", "of rank 0"),
    "each its own overflow": (
        "OWN_OVERFLOW",
        "test_an_overflow_on_one_rank_is_skipped_by_all",
        "took the step",
    ),
    "each its own finite loss": (
        "OWN_FINITE_LOSS",
        "test_a_loss_on_one_rank_that_is_no_number_is_skipped_by_all",
        "rank 0",
    ),
    "mixed on one rank": ("MIXED_ON_RANK_0", "test_other_steps_of_ranks_equal_one_that_accumulates", "mixed"),
    "dropped on one rank": (
        "DROPS_BY_RANK_0",
        "test_other_steps_of_ranks_equal_one_that_accumulates",
        "lamb",
    ),
    "statistics shared": ("SHARED", "test_running_statistics_are_a_ranks_own", "statistics of rank 0"),
    "sums in float32": ("FLOAT32_SUMS", "test_sums_over_ranks_are_exact", "rank 0"),
    "loss of one rank": ("OWN_LOSS", "test_losses_are_averaged_over_ranks", "losses of rank 0"),
    "launcher keeps no logs": ("NO_LOGS", "test_every_rank_has_a_log", "no log holds"),
    "launcher ignores failures": ("FORGETFUL", "test_a_failing_rank_fails_the_launch", ""),
}


#: Skipped by a backend that serves weights in memory.
OF_ARTEFACTS_ALONE = "test_artefact_of_a_fixed_batch_serves_any_number"


@pytest.mark.parametrize("mistake", PLANTED)
def test_planted_mistake_is_caught(mistake: str, tmp_path: Path) -> None:
    record, test, words = PLANTED[mistake]
    contract = contract_of(record)
    said = failures(contract, test, tmp_path)
    contract.teardown_class()
    assert said, f"{test} did not notice: {mistake}"
    assert any(words in text for text in said), said


@pytest.mark.parametrize("mistake", PLANTED_RANKS)
def test_planted_mistake_between_ranks_is_caught(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _reachable(monkeypatch, HERE)
    name, test, words = PLANTED_RANKS[mistake]
    module = bugs if hasattr(bugs, name) else planted_ingredients
    contract = contract_of(getattr(module, name), worker=f"{module.__name__}:{name}")
    said = failures(contract, test, tmp_path)
    contract.teardown_class()
    assert said, f"{test} did not notice: {mistake}"
    assert any(words in text for text in said), said


def test_the_tests_that_catch_pass_without_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What catches is the mistake: run the same way, the same tests accept the sane backend."""
    _reachable(monkeypatch, HERE)
    whole = contract_of(bugs.SANE, worker="planted_bugs:SANE")
    served = contract_of(bugs.serving())
    names = {test for _, test, _ in (*PLANTED.values(), *PLANTED_RANKS.values())}
    for name in sorted(names):
        folder = tmp_path / name
        folder.mkdir()
        assert failures(served if name == OF_ARTEFACTS_ALONE else whole, name, folder) == [], name
    for contract in (whole, served):
        contract.teardown_class()


def test_a_plugin_that_imports_a_framework_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _reachable(monkeypatch, tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "torch.py").write_text("")  # stands for the framework: only its name matters here
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))  # and in this process, till the end
    source = """
        {first}
        from resnext_core.interfaces import READY, Backend

        def probe():
            {second}
            return READY

        def resnext_backends():
            yield Backend(id="heavy", summary="imports too early", probe=probe, predictor=print)
        """
    for module, first, second, caught in (
        ("light_plugin", "import json", "pass", False),
        ("heavy_plugin", "import torch", "pass", True),
        ("heavy_probe", "import json", "import torch", True),
    ):
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source).format(first=first, second=second))
        record = next(iter(__import__(module).resnext_backends()))
        said = failures(contract_of(record), "test_plugin_is_light", tmp_path)
        assert bool(said) == caught, (module, said)
        assert all("torch" in text for text in said)


def test_options_without_default_are_caught(tmp_path: Path) -> None:
    contract = contract_of(bugs.backend(options=bugs.OptionsWithoutDefault))
    with pytest.raises(TypeError, match="threads"):
        contract().test_options_are_a_frozen_dataclass_with_defaults()


# -- the rules of the kit ------------------------------------------------------------------------


def test_every_test_of_the_kit_has_a_planted_mistake() -> None:
    """A test that nothing planted can fail may not be able to fail at all."""
    caught = {test for _, test, _ in (*PLANTED.values(), *PLANTED_RANKS.values())}
    elsewhere = {"test_plugin_is_light"}  # planted as files, above
    # Whether unknown keys are refused is core's doing, which every backend shares.
    without = {"test_unknown_option_is_refused"}
    assert {name for name in dir(BackendContract) if name.startswith("test_")} == caught | elsewhere | without


def test_overriding_needs_an_expected_failure() -> None:
    def replaced(self: Any) -> None:
        pass

    with pytest.raises(TypeError, match="xfail"):
        type("Sly", (BackendContract,), {"backend": bugs.SANE, "test_loss_falls": replaced})
    with pytest.raises(TypeError, match="xfail"):
        type("Sly", (BackendContract,), {"backend": bugs.SANE, "test_loss_falls": None})
    with pytest.raises(TypeError, match="xfail"):
        type(
            "Sly",
            (BackendContract,),
            {"backend": bugs.SANE, "test_loss_falls": pytest.mark.xfail(replaced)},
        )
    marked = pytest.mark.xfail(reason="the device adds in no fixed order")(replaced)
    honest = type("Honest", (BackendContract,), {"backend": bugs.SANE, "test_loss_falls": marked})
    added = type("More", (honest,), {"test_of_its_own": replaced})
    assert added.__test__


def test_what_is_not_here_is_skipped_or_required(monkeypatch: pytest.MonkeyPatch) -> None:
    unplugged = Readiness(state="missing", reason="the device is not plugged in")
    absent = contract_of(dataclasses.replace(bugs.SANE, probe=lambda: unplugged))
    monkeypatch.delenv(REQUIRE, raising=False)
    with pytest.raises(pytest.skip.Exception, match="not plugged in"):
        absent().test_loss_falls()
    monkeypatch.setenv(REQUIRE, "other, planted")
    with pytest.raises(pytest.fail.Exception, match="required here"):
        absent().test_loss_falls()
    incapable = contract_of(dataclasses.replace(bugs.SANE, engine=None))
    with pytest.raises(pytest.skip.Exception, match="offers no engine"):
        incapable().test_loss_falls()


def test_a_required_backend_that_nothing_can_be_made_for_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Green must not mean that every test of its predictor was skipped."""
    nothing = contract_of(dataclasses.replace(bugs.serving(), formats=(".nowhere",), exporters={}))
    monkeypatch.delenv(REQUIRE, raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"no installed exporter writes .*\.nowhere"):
        nothing().test_input_is_not_modified()
    monkeypatch.setenv(REQUIRE, "planted")
    for test in ("test_input_is_not_modified", "test_prediction_has_no_memory", "test_strided_input"):
        with pytest.raises(pytest.fail.Exception, match=r"required here.*no installed exporter"):
            getattr(nothing(), test)()
    nothing.teardown_class()


def test_a_required_exporter_that_cannot_write_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuses(weights: Any, path: Path, request: Any) -> None:
        raise BackendUnavailable("the converter is not installed")

    refusing = contract_of(bugs.backend(exporter=refuses))
    monkeypatch.delenv(REQUIRE, raising=False)
    with pytest.raises(pytest.skip.Exception, match="converter"):
        refusing().test_artefact_carries_its_manifest(tmp_path)
    monkeypatch.setenv(REQUIRE, "planted")
    with pytest.raises(pytest.fail.Exception, match=r"required here.*converter"):
        refusing().test_artefact_carries_its_manifest(tmp_path)
    refusing.teardown_class()


def test_the_kit_alone_collects_nothing() -> None:
    assert not BackendContract.__test__
    assert contract_of(bugs.SANE).__test__
