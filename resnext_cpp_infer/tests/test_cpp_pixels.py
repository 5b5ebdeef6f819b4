"""Pixels and logits are those of Python: for every kind of file, every mode, every shape."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cpp_cases import Done, null_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from images import bad_images, good_odd_images, picture
from PIL import Image

from resnext_core.data.augment import load_eval
from resnext_core.data.decode import BadImage
from resnext_core.preprocess import PreprocessSpec

Infer = Callable[..., Done]
#: Formats that the program reads; the others are counted as failed.
READ = (".jpg", ".png")
SHAPES = ((56, 56), (48, 48), (55, 57), (300, 40), (40, 300), (400, 401), (7, 5), (641, 479))


def pixels(infer: Infer, folder: Path, data: Path, spec: PreprocessSpec) -> np.ndarray:
    """Return what the network would see, in the order of the paths."""
    target = folder / "pixels.npy"
    done = infer(
        *null_model(folder, spec), "--data", data, "--pixels", target, "--output", folder / "out.jsonl"
    )
    assert done.code in (0, 3), done
    assert target.exists(), done
    return np.load(target)


def specs(size: int = 48, resize: int = 56) -> list[PreprocessSpec]:
    return [
        PreprocessSpec(size=size, resize=resize, mode=mode, filter=kind, scaled_decode=scaled)
        for mode in ("squash", "shorter-side")
        for kind in ("antialias", "plain")
        for scaled in (False, True)
    ]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JPEG or PNG of every kind, and of many shapes."""
    folder = tmp_path_factory.mktemp("kinds")
    for name, path in good_odd_images(folder / "odd").items():
        if not name.endswith(READ):
            path.unlink()
    more = folder / "more"
    more.mkdir()
    for i, (height, width) in enumerate(
        [(56, 56), (48, 48), (55, 57), (300, 40), (40, 300), (400, 401), (7, 5), (641, 479)]
    ):
        image = picture(height, width, seed=i)
        for sampling in (0, 1, 2):
            image.save(more / f"{i}-{sampling}.jpg", quality=60 + 15 * sampling, subsampling=sampling)
        image.save(more / f"{i}.jpg", progressive=True, optimize=True)
        image.convert("L").save(more / f"{i}-gray.jpg")
        image.convert("CMYK").save(more / f"{i}-cmyk.jpg")
        image.save(more / f"{i}-restart.jpg", restart_marker_blocks=3)
        image.save(more / f"{i}.png")
        image.quantize(7).save(more / f"{i}-palette.png", bits=4)
        image.convert("LA").save(more / f"{i}-la.png")
    (folder / "odd").rename(folder / "more" / "odd")
    return more


@pytest.mark.parametrize("spec", specs(), ids=lambda s: f"{s.mode}-{s.filter}-{s.scaled_decode}")
def test_every_pixel_of_every_kind_is_pythons(
    infer: Infer, kinds: Path, tmp_path: Path, spec: PreprocessSpec
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in kinds.rglob("*.*g"):
        (flat / f"{path.parent.name}-{path.name}").symlink_to(path)
    got = pixels(infer, tmp_path, flat, spec)
    paths = sorted(flat.iterdir())
    assert len(got) == len(paths) > 80
    for path, image in zip(paths, got, strict=True):
        expected = load_eval(path, spec)
        with Image.open(path) as opened:
            long = max(opened.size) > 16 * min(opened.size)
        difference = np.abs(image.astype(int) - expected).max()
        assert difference <= (1 if long else 0), f"{path.name}: {difference} levels"


@given(
    sides=st.tuples(st.integers(1, 300), st.integers(1, 300)), size=st.integers(1, 80), more=st.integers(0, 30),
    mode=st.sampled_from(["squash", "shorter-side"]), kind=st.sampled_from(["antialias", "plain"]),
)  # fmt: skip
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_shape(
    infer: Infer, tmp_path: Path, sides: tuple[int, int], size: int, more: int, mode: str, kind: str
) -> None:
    spec = PreprocessSpec(size=size, resize=size + more, mode=mode, filter=kind)  # type: ignore[arg-type]
    path = tmp_path / "image.png"
    picture(*sides, seed=sum(sides)).save(path)
    got = pixels(infer, tmp_path, path, spec)
    limit = 1 if max(sides) > 16 * min(sides) else 0
    assert np.abs(got[0].astype(int) - load_eval(path, spec)).max() <= limit


def test_what_python_cannot_read_the_program_cannot_either(infer: Infer, tmp_path: Path) -> None:
    spec = PreprocessSpec(size=32, resize=36)
    bad_images(tmp_path / "bad")
    folder = tmp_path / "data"
    folder.mkdir()
    for path in (tmp_path / "bad").iterdir():
        if path.is_file():
            path.rename(folder / path.name)
    picture(50, 60).save(folder / "good.png")
    done = infer(*null_model(tmp_path, spec), "--data", folder, "--logits", tmp_path / "l.npy")
    assert done.code == 3
    failed = {line for line in done.out.splitlines() if '"error"' in line}
    assert len(failed) == len(list(folder.iterdir())) - 1
    for path in folder.iterdir():
        if path.name != "good.png":
            with pytest.raises(BadImage):
                load_eval(path, spec)
    finite = np.isfinite(np.load(tmp_path / "l.npy")).all(axis=1)
    assert finite.tolist() == [p.name == "good.png" for p in sorted(folder.iterdir())]


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_a_file_cut_anywhere_fails_where_pythons_does(infer: Infer, tmp_path: Path, kind: str) -> None:
    spec = PreprocessSpec(size=16, resize=16)
    picture(60, 50).save(tmp_path / f"whole.{kind}", **({"progressive": True} if kind == "jpg" else {}))
    whole = (tmp_path / f"whole.{kind}").read_bytes()
    folder = tmp_path / "cut"
    folder.mkdir()
    for end in range(0, len(whole), max(len(whole) // 60, 1)):
        (folder / f"{end:05}.{kind}").write_bytes(whole[:end])
    infer(*null_model(tmp_path, spec), "--data", folder, "--logits", tmp_path / "l.npy")
    read = np.isfinite(np.load(tmp_path / "l.npy")).all(axis=1)
    for path, ours in zip(sorted(folder.iterdir()), read, strict=True):
        try:
            load_eval(path, spec)
            theirs = True
        except BadImage:
            theirs = False
        assert ours == theirs, f"{path.name} of {len(whole)}: read by {'us' if ours else 'Python'} alone"
