"""The table of published weights against torchvision and timm, and their transforms, where those are installed."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from images import picture

from resnext_core.convert.published import TABLE, Published, find_published
from resnext_core.model.preprocess import PreprocessSpec, eval_pixels, normalize

SHAPES = ((375, 500), (500, 375), (301, 222), (100, 333), (288, 288))
#: timm's entry of these torchvision weights differs from torchvision's own, which is taken.
OTHERWISE_IN_TIMM = "resnext101_64x4d.tv_in1k"


def of_url(url: str) -> Published:
    checksum = url.rsplit("-", 1)[1].split(".")[0]
    name, _ = TABLE[checksum]
    found = find_published(Path("x"), f"sha256:{checksum}", name.split(".")[0], "torch")
    assert found is not None
    return found


def same_pixels(found: Published, transform: Any) -> None:
    """The network's input is theirs to 0.001 of a level."""
    spec = PreprocessSpec(size=found.size, **found.settings(found.size))
    for sides in SHAPES:
        image = picture(*sides)
        ours = normalize(eval_pixels(image, spec)[None], spec)[0]
        theirs = transform(image).numpy()
        assert np.abs(ours - theirs).max() * max(spec.std) < 1e-3, (found, sides)


def test_the_table_is_torchvisions() -> None:
    models = pytest.importorskip("torchvision.models")
    kinds = ("ResNeXt50_32X4D_Weights", "ResNeXt101_32X8D_Weights", "ResNeXt101_64X4D_Weights")
    weights = [one for kind in kinds for one in getattr(models, kind)]
    assert len(weights) >= 5
    for one in weights:
        found, transform = of_url(one.url), one.transforms()
        settings = found.settings(found.size)
        assert [found.size] == transform.crop_size, one
        assert [settings["resize"]] == transform.resize_size, one
        assert (settings["filter"], transform.interpolation.value) == ("antialias", "bilinear"), one
        assert np.allclose(settings["mean"], np.array(transform.mean) * 255)
        assert np.allclose(settings["std"], np.array(transform.std) * 255)
        same_pixels(found, transform)


def test_the_table_is_timms() -> None:
    pytest.importorskip("timm.models.resnet")
    from timm.data import create_transform, resolve_data_config
    from timm.models.resnet import default_cfgs

    known = 0
    for architecture, of_tag in default_cfgs.items():
        for tag, given in of_tag.cfgs.items():
            checksum = (given.url or "").rsplit("-", 1)[-1].split(".")[0]
            if not architecture.startswith("resnext") or checksum not in TABLE:
                continue
            known += 1
            name = f"{architecture}.{tag}"
            assert TABLE[checksum][0] == name
            found = of_url(given.url)
            theirs = resolve_data_config(pretrained_cfg=asdict(given), use_test_size=True)
            size, crop = theirs["input_size"][1], theirs["crop_pct"]
            filters = {"bilinear": "antialias", "bicubic": "bicubic"}
            wanted = (size, math.floor(size / crop), filters[theirs["interpolation"]], "center")
            ours = (found.size, found.settings(found.size)["resize"], found.filter, theirs["crop_mode"])
            if name == OTHERWISE_IN_TIMM:
                assert (wanted[1], ours[1]) == (256, 232)
                continue
            assert ours == wanted, name
            same_pixels(found, create_transform(**theirs, is_training=False))
    assert known >= 26
