"""Pixels and logits are those of Python: for every kind of file, every mode, every shape."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cpp_cases import Done, null_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from images import bad_images, good_odd_images, picture
from mutants import damaged_files, exif_files, lossless_jpeg, sound_files
from PIL import Image

from resnext_core.data.decode import BadImage
from resnext_core.data.render import load_eval
from resnext_core.model.preprocess import PreprocessSpec

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
        for kind in ("antialias", "bicubic", "plain")
        for scaled in (False, True)
    ] + [PreprocessSpec(size=size, resize=resize, mode="shorter-side", filter="bicubic", orientation="apply")]


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


@pytest.mark.parametrize(
    "spec", specs(), ids=lambda s: f"{s.mode}-{s.filter}-{s.scaled_decode}-{s.orientation}"
)
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
        difference = np.abs(image.astype(int) - load_eval(path, spec)).max()
        assert difference == 0, f"{path.name}: {difference} levels"


@given(
    sides=st.tuples(st.integers(1, 300), st.integers(1, 300)), size=st.integers(1, 80), more=st.integers(0, 30),
    mode=st.sampled_from(["squash", "shorter-side"]), kind=st.sampled_from(["antialias", "bicubic", "plain"]),
)  # fmt: skip
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_shape(
    infer: Infer, tmp_path: Path, sides: tuple[int, int], size: int, more: int, mode: str, kind: str
) -> None:
    spec = PreprocessSpec(size=size, resize=size + more, mode=mode, filter=kind)  # type: ignore[arg-type]
    path = tmp_path / "image.png"
    picture(*sides, seed=sum(sides)).save(path)
    got = pixels(infer, tmp_path, path, spec)
    assert np.array_equal(got[0], load_eval(path, spec))


@pytest.mark.parametrize("kind", ["antialias", "bicubic"])
def test_every_pixel_of_a_panorama(infer: Infer, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(3)
    for i in range(40):
        short = int(rng.integers(1, 40))
        sides = (short, 17 * short + int(rng.integers(0, 2500)))
        picture(*sides[:: 1 if i % 2 else -1], seed=i).save(folder / f"{i:02}.png")
    for size, resize in ((24, 24), (48, 56), (17, 40)):
        spec = PreprocessSpec(size=size, resize=resize, mode="shorter-side", filter=kind)  # type: ignore[arg-type]
        got = pixels(infer, tmp_path, folder, spec)
        for path, image in zip(sorted(folder.iterdir()), got, strict=True):
            assert np.array_equal(image, load_eval(path, spec)), (path.name, size, resize)


def test_every_orientation_is_pythons(infer: Infer, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name, content in exif_files().items():
        (data / name).write_bytes(content)
    for i, value in enumerate(range(10)):
        turned = Image.Exif()
        turned[0x112] = value
        for sides in ((41, 60), (300, 17), (1, 40), (640, 481)):
            for ending in ("jpg", "png"):
                picture(*sides, seed=i).save(data / f"{sides[0]}-{value}.{ending}", exif=turned)
    differ = 0
    for kind, scaled in (("bicubic", True), ("plain", False)):
        spec = PreprocessSpec(
            size=24,
            resize=28,
            mode="shorter-side",
            filter=kind,
            scaled_decode=scaled,
            orientation="apply",  # type: ignore[arg-type]
        )
        for path, image in zip(sorted(data.iterdir()), pixels(infer, tmp_path, data, spec), strict=True):
            assert np.array_equal(image, load_eval(path, spec)), path.name
            differ += not np.array_equal(image, load_eval(path, replace(spec, orientation="ignore")))
    assert differ > 200


@pytest.mark.parametrize("name", ["resnext_tiny.mindir", "resnext_tiny.npz"])
def test_artefacts_of_the_first_version_are_read(infer: Infer, tmp_path: Path, name: str) -> None:
    """Their preprocessing has none of the newer fields."""
    old = Path(__file__).parents[2] / "tests" / "compatibility" / "0.1.0"
    artefact = old / "runs" / "photos-tiny" / name
    done = infer("--model", artefact, "--engine", "null", "--print-manifest")
    assert done.code == 0, done
    given = json.loads(Path(f"{artefact}.json").read_text())["preprocess"]
    assert "orientation" not in given
    spec, data, target = PreprocessSpec.from_dict(given), old / "photos" / "val", tmp_path / "pixels.npy"
    words = ("--model", artefact, "--engine", "null", "--quiet", "--data", data, "--pixels", target)
    done = infer(*words, "--output", tmp_path / "out.jsonl")
    assert done.code == 0, done
    files = sorted(data.rglob("*.jpg"))
    assert len(files) == 6
    for path, image in zip(files, np.load(target), strict=True):
        assert np.array_equal(image, load_eval(path, spec)), path.name


# -- which files are read ------------------------------------------------------------------------

#: What may differ, by the end of a name, and why: it is the libjpeg of each that decides. docs/data.md names them.
OF_LIBJPEG = {
    "lossless.jpg": "lossless JPEG (SOF3): libjpeg-turbo 3 and later",
    "frame-c3.jpg": "the same",
    "frame-c9.jpg": "arithmetic coding: left out of some builds of libjpeg",
    "frame-ca.jpg": "the same",
}


def decisions(
    infer: Infer, folder: Path, files: Mapping[str, bytes], orientation: str
) -> dict[str, tuple[str | None, str | None, int]]:
    """Return by name why Python and the program refuse a file (None: read), and how many levels apart they are."""
    spec = PreprocessSpec(size=24, resize=24, filter="plain", orientation=orientation)  # type: ignore[arg-type]
    data = folder / "data"
    data.mkdir()
    for name, content in files.items():
        (data / name).write_bytes(content)
    got = pixels(infer, folder, data, spec)
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    found: dict[str, tuple[str | None, str | None, int]] = {}
    for line, image in zip(lines, got, strict=True):
        path = Path(line["path"])
        try:
            expected, reason = load_eval(path, spec).astype(int), None
        except BadImage as error:
            expected, reason = np.zeros(image.shape, int), error.reason
        found[path.name] = reason, line.get("error"), int(np.abs(image - expected).max())
    assert found.keys() == files.keys()
    return found


@pytest.mark.parametrize("orientation", ["ignore", "apply"])
def test_both_read_every_sound_file(infer: Infer, tmp_path: Path, orientation: str) -> None:
    for name, decision in decisions(infer, tmp_path, sound_files() | exif_files(), orientation).items():
        assert decision == (None, None, 0), name


@pytest.mark.parametrize("orientation", ["ignore", "apply"])
def test_both_decide_alike_on_every_damaged_file(infer: Infer, tmp_path: Path, orientation: str) -> None:
    files = damaged_files() | {"lossless.jpg": lossless_jpeg()}
    found = decisions(infer, tmp_path, files, orientation)
    read = 0
    for name, (ours, theirs, levels) in found.items():
        if name.endswith(tuple(OF_LIBJPEG)):
            continue
        assert (ours is None) == (theirs is None), (
            f"{name}: Python {ours or 'reads it'}, C++ {theirs or 'reads it'}"
        )
        assert levels <= 1, f"{name}: {levels} levels"
        read += ours is None
    assert len(found) / 4 < read < len(found) * 3 / 4
    for kind in ("IHDR", "PLTE", "IDAT"):
        reason = f"checksum mismatch in chunk {kind}"
        assert found[f"form3-{kind}-crc.png"][:2] == (reason, reason)


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device"])
def test_what_is_no_regular_file_is_refused_at_once(infer: Infer, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"{kind}.png"
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            listener.bind(str(path))
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to(os.devnull)
        picture(20, 30).save(tmp_path / "good.png")
        (tmp_path / "list.txt").write_text(f"good.png 0\n{path.name} 1\n")
        done = infer(
            *null_model(tmp_path, PreprocessSpec(size=16, resize=16)), "--data", tmp_path / "list.txt"
        )
    assert done.code == 3, done
    assert path.name in done.err, done
    assert len(done.err.splitlines()) == 1


def test_a_file_that_no_image_needs_to_be_is_not_read(infer: Infer, tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    picture(20, 30).save(path)
    os.truncate(path, 1 << 40)  # a hole: reading it would take the memory of the machine
    spec = PreprocessSpec(size=16, resize=16)
    reason = f"the file has {1 << 40} bytes; the limit for JPEG and PNG is {1 << 31}"
    done = infer(*null_model(tmp_path, spec), "--data", path)
    assert done.code == 3
    assert json.loads(done.out)["error"] == reason
    with pytest.raises(BadImage) as caught:
        load_eval(path, spec)
    assert caught.value.reason == reason


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
