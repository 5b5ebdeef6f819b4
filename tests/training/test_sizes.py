"""Images that grow in the course of a training: the ramp of ffcv-imagenet by hand, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from resnext_core.config import AugmentConfig, load_config, parse_set
from resnext_core.errors import UsageError
from resnext_core.training.sizes import check_sizes, size_at


def sizes(final: int, epochs: int, **changes: Any) -> list[int | None]:
    augment = AugmentConfig(**changes)
    check_sizes(augment, final)
    return [size_at(augment, final, epoch) for epoch in range(epochs)]


def test_the_ramp_of_ffcv_is_reproduced() -> None:
    """rn50_88_epochs.yaml: 160 pixels up to epoch 65, 192 from 76 on; 176 = 5.5 x 32 rounds to 6 x 32."""
    found = sizes(192, 88, start_size=160, size_epochs=(65.0, 76.0), size_step=32)
    assert found == [160] * 71 + [192] * 17  # at 70 it is 174.5, at 71 177.5
    found = sizes(192, 16, start_size=160, size_epochs=(11.0, 13.0), size_step=32)
    assert found == [160] * 12 + [192] * 4  # at 12 it is 176 = 5.5 x 32, and a half goes to the even 6: 192


def test_between_the_epochs_images_grow_by_steps_and_never_beyond_the_ends() -> None:
    changes = {"start_size": 100, "size_epochs": (2.0, 10.0)}
    found = sizes(
        180, 13, **changes, size_step=32
    )  # 110, 120, ... 170: to 96 (100), 128, 128, 128, 160, ..., 160
    assert found == [100, 100, 100, 100, 128, 128, 128, 160, 160, 160, 180, 180, 180]
    assert sizes(180, 12, **changes, size_step=10) == [
        100, 100, 100, 110, 120, 130, 140, 150, 160, 170, 180, 180,
    ]  # fmt: skip
    assert sizes(180, 12, **changes, size_step=8192)[:11] == [100] * 10 + [180]  # nothing between the ends
    assert sizes(64, 6, start_size=32, size_epochs=(2.5, 4.5), size_step=1) == [32, 32, 32, 40, 56, 64]
    assert sizes(64, 4, start_size=32, size_epochs=(1.0, 1.0)) == [32, 32, 64, 64]


def test_without_a_start_size_nothing_changes() -> None:
    assert sizes(64, 3, size_epochs=(1.0, 2.0)) == [None] * 3
    assert sizes(64, 3, start_size=64, size_epochs=(1.0, 2.0)) == [64] * 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"start_size": 65, "size_epochs": (1.0, 2.0)}, "start_size 65 is larger than the 64 pixels"),
        ({"start_size": 32}, r"start_size needs augment\.size_epochs"),
        (
            {"start_size": 32, "size_epochs": (3.0, 2.0)},
            "must not descend: .* after 3 epochs and end after 2",
        ),
    ],
)
def test_what_cannot_grow_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        sizes(64, 3, **changes)


def test_a_step_of_zero_pixels_is_refused() -> None:
    with pytest.raises(UsageError, match=r"augment\.size_step must be between 1 and"):
        load_config(parse_set(["augment.size_step=0"]))
