"""What learns and how fast, in words and in numbers."""

from __future__ import annotations

import pytest

from resnext_core.config import OptimizerConfig
from resnext_core.errors import UsageError
from resnext_core.model.spec import model_spec
from resnext_core.training.rules import check_frozen, learning_words, rules_of

SPEC = model_spec("resnext_tiny", num_classes=5)


@pytest.mark.parametrize(
    ("frozen", "says"),
    [
        (1, "the stem is frozen,"),
        (2, "the stem and stage 1 are frozen,"),
        (3, "the stem and stages 1 to 2 are frozen,"),
        (4, "the stem and stages 1 to 3 are frozen,"),
    ],
)
def test_what_is_frozen_is_said_with_its_count(frozen: int, says: str) -> None:
    kept = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.")[: frozen + 1]
    learned = sum(t.size for t in SPEC.tensors if t.trainable and not t.name.startswith(kept))
    text = learning_words(SPEC, OptimizerConfig(), frozen)
    assert text.startswith(f"{learned:,} of {SPEC.parameters:,} parameters learn; {says}")
    check_frozen(SPEC, frozen)


def test_without_anything_frozen_all_parameters_learn() -> None:
    assert learning_words(SPEC, OptimizerConfig(), 0) == f"{SPEC.parameters:,} parameters learn"
    with pytest.raises(UsageError, match="more than the 4 parts"):
        check_frozen(SPEC, 5)


def test_rates_fall_from_the_classifier_to_the_stem() -> None:
    rules = rules_of(SPEC, OptimizerConfig(stage_lr=0.5), 1)
    assert not any(name.startswith(("conv1.", "bn1.")) for name in rules)
    scales = {name: rule.lr_scale for name, rule in rules.items()}
    assert scales["layer1.0.conv1.weight"] == 0.125
    assert scales["layer3.0.bn3.bias"] == 0.5
    assert scales["fc.weight"] == scales["fc.bias"] == 1.0
    assert learning_words(SPEC, OptimizerConfig(stage_lr=0.5), 1).endswith(
        "the learning rate is multiplied by: stage 1 0.125, stage 2 0.25, stage 3 0.5, classifier 1"
    )
