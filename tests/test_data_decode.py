"""Decoding: what each odd file becomes, and that each bad one is one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from images import bad_images, good_odd_images, picture, pixels
from PIL import Image

from resnext_core.config import AugmentConfig
from resnext_core.data import decode
from resnext_core.data.augment import load_eval, load_train
from resnext_core.data.decode import BadImage, read_image
from resnext_core.data.sampler import sample_rng
from resnext_core.errors import DataError
from resnext_core.preprocess import PreprocessSpec


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return good_odd_images(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return bad_images(tmp_path_factory.mktemp("bad"))


def read(path: Path) -> np.ndarray:
    return np.asarray(read_image(path))


@pytest.mark.filterwarnings("error")
def test_every_odd_image_becomes_rgb(good: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    spec = PreprocessSpec(size=32, resize=36)
    for name, path in good.items():
        image = read_image(path)
        assert image.mode == "RGB", name
        for mode in ("squash", "shorter-side"):
            for kind in ("antialias", "plain"):
                view = PreprocessSpec(size=32, resize=36, mode=mode, filter=kind)
                assert load_eval(path, view).shape == (32, 32, 3), (name, mode, kind)
                assert load_train(path, view, AugmentConfig(), sample_rng(1, 0, 3)).shape == (32, 32, 3), name
        assert load_eval(path, spec).dtype == np.uint8
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("error")
def test_every_bad_image_is_one_line(bad: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    for name, path in bad.items():
        with pytest.raises(BadImage) as caught:
            read_image(path)
        message = str(caught.value)
        assert isinstance(caught.value, DataError)
        assert str(path) in message, name
        assert caught.value.reason, name
        assert "\n" not in message, name
        with pytest.raises(BadImage):
            load_train(path, PreprocessSpec(), AugmentConfig(), sample_rng(0, 0, 0))
    assert capfd.readouterr() == ("", "")


def test_reasons(bad: dict[str, Path]) -> None:
    def reason(name: str) -> str:
        with pytest.raises(BadImage) as caught:
            read_image(bad[name])
        return caught.value.reason

    assert reason("empty.jpg") == "the file is empty"
    assert "not an image of a known format (JPEG, PNG" in reason("text.jpg")
    assert reason("pointer.jpg") == "a Git LFS pointer, not an image; run git lfs pull"
    assert "not an image" in reason("script.jpg")  # PostScript is never tried
    assert "truncated" in reason("truncated.jpg")
    assert reason("missing.jpg") == "No such file or directory"
    assert "directory" in reason("folder.jpg").lower()
    assert "pixels" in reason("bomb.png")
    assert "16 bits" in reason("int32.tif")


def test_size_bound_does_not_depend_on_pillow_settings(
    tmp_path: Path, bad: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(BadImage, match="20000 x 20000 is more than 178956970 pixels"):
        read_image(bad["bomb.png"])
    monkeypatch.setattr(decode, "MAX_PIXELS", 99)
    picture(10, 10).save(tmp_path / "x.png")
    with pytest.raises(BadImage, match="10 x 10 is more than 99"):
        read_image(tmp_path / "x.png")


def test_16_bits_are_scaled_not_clipped(good: dict[str, Path]) -> None:
    ramp = np.linspace(0, 65535, 40 * 56).reshape(40, 56).astype(np.uint16)
    for name in ("gray16.png", "gray16.tif"):
        got = read(good[name])
        assert np.array_equal(got, np.repeat((ramp >> 8).astype(np.uint8)[..., None], 3, axis=2)), name
    assert read(good["gray16.png"]).min() == 0
    assert read(good["gray16.png"]).max() == 255


def test_alpha_is_dropped_and_gray_repeated(good: dict[str, Path]) -> None:
    assert np.array_equal(read(good["alpha.png"]), pixels(40, 56))
    for name in ("gray.jpg", "bilevel.png", "gray_alpha.png"):
        got = read(good[name])
        assert (got == got[..., :1]).all(), name
        assert got.std() > 10, name


def test_palette_transparency_changes_no_colour(good: dict[str, Path]) -> None:
    assert np.array_equal(read(good["palette.png"]), np.asarray(picture(40, 56).quantize(16).convert("RGB")))


def test_first_frame_orientation_and_content_not_suffix(good: dict[str, Path]) -> None:
    assert (read(good["animated.gif"]) == (255, 0, 0)).all()
    assert read(good["turned.jpg"]).shape == (40, 56, 3)
    assert np.array_equal(read(good["really_png.jpg"]), pixels(40, 56))
    for name in ("webp.webp", "bmp.bmp", "ppm.ppm", "tiff.tif"):
        assert np.array_equal(read(good[name]), pixels(40, 56)), name


def test_cmyk_looks_like_the_original(good: dict[str, Path], tmp_path: Path) -> None:
    got = read(good["cmyk.jpg"]).astype(float)
    assert abs(got - pixels(40, 56)).mean() < 12  # an inverted one would be off by about 100


@pytest.mark.parametrize(
    ("minimum", "expected"),
    [
        (None, (300, 201)),
        (201, (300, 201)),
        (101, (300, 201)),
        (100, (150, 101)),
        (50, (75, 51)),
        (3, (38, 26)),
    ],
)
def test_scaled_decoding_keeps_the_minimum(
    tmp_path: Path, minimum: int | None, expected: tuple[int, int]
) -> None:
    picture(201, 300).save(tmp_path / "x.jpg")
    image = read_image(tmp_path / "x.jpg", minimum=minimum)
    assert image.size == expected
    assert minimum is None or min(image.size) >= minimum
    whole = read_image(tmp_path / "x.jpg").reduce(round(300 / image.width))
    assert abs(np.asarray(image).astype(float) - np.asarray(whole)).mean() < 6


def test_a_programming_error_in_the_caller_is_not_a_bad_image(tmp_path: Path) -> None:
    picture(20, 20).save(tmp_path / "x.png")
    with pytest.raises(AttributeError):
        load_eval(tmp_path / "x.png", None)  # type: ignore[arg-type]
