"""What the tests of core share: a tiny data set, the command line in this process and in a fresh one."""

from __future__ import annotations

import os

# As in the processes that tests start: NumPy's BLAS may round differently with another number of threads, and
# tests compare runs in this process with runs in those to the bit. It is read once, when NumPy is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from command_line import CLASSES, TRAIN, VAL, CommandLine, Outcome, environment, in_process
from PIL import Image

from resnext_core import plugins
from resnext_core.cli.main import main
from resnext_core.config import PreprocessConfig
from resnext_core.model.init import random_weights
from resnext_core.model.preprocess import preprocess_spec
from resnext_core.model.spec import ModelSpec, model_spec
from resnext_core.model.weights import Weights, save_weights

TINY_RECIPE = """\
model: {variant: resnext_tiny, image_size: 8}
data: {workers: 0}
optimizer: {lr: 0.05, lr_batch: null}
schedule: {warmup_epochs: 0}
train: {epochs: 2, batch_size: 8, log_every: 1}
eval: {batch_size: 8}
"""


@pytest.fixture
def core_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide every installed plugin, so that tests do not depend on what else is in the environment."""
    own = [e for e in metadata.entry_points(group="resnext") if e.dist and e.dist.name == plugins.CORE]
    monkeypatch.setattr(metadata, "entry_points", lambda **_: own)
    plugins.load_plugins.cache_clear()
    yield
    plugins.load_plugins.cache_clear()


@pytest.fixture
def cli(core_only: None, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line in this process, with core's own backend alone."""
    return in_process(capfd)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of fake distributions, the only plugins that this process finds beside core's own."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    find = metadata.entry_points
    installed = {e.value for e in find(group="resnext") if e.dist and e.dist.name != plugins.CORE}
    monkeypatch.setattr(
        metadata,
        "entry_points",
        lambda group: [e for e in find(group=group) if e.value not in installed],
    )
    plugins.load_plugins.cache_clear()
    yield folder
    plugins.load_plugins.cache_clear()
    for name in [n for n in sys.modules if n.startswith("plugin_")]:
        del sys.modules[name]


@pytest.fixture
def spawn(tmp_path: Path) -> CommandLine:
    """The command line in a fresh process, as a user runs it, in `tmp_path`, with the plugins of ``site``."""

    def call(words: list[str]) -> Outcome:
        done = subprocess.run(
            [sys.executable, "-m", "resnext_core.cli", *words],
            cwd=tmp_path, env=environment(PYTHONPATH=str(tmp_path / "site")), capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        return Outcome(code=done.returncode, out=done.stdout, err=done.stderr)

    return CommandLine(call=call)


def write_photos(root: Path, counts: tuple[int, ...], seed: int) -> None:
    """Write `counts` noisy 12 x 10 images into a folder for each class; the class tints them a little."""
    rng = np.random.default_rng(seed)
    for label, (name, count) in enumerate(zip(CLASSES, counts, strict=True)):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 200, (12, 10, 3))
            pixels[..., label % 3] += 25 * (1 + label // 3)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i:02}.{'png' if i % 2 else 'jpg'}")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with train (48 images) and val (23 images) of six classes; not to be changed."""
    root = tmp_path_factory.mktemp("photos")
    write_photos(root / "train", TRAIN, seed=1)
    write_photos(root / "val", VAL, seed=2)
    return root


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe for the tiny network at 8 pixels: two epochs of six steps."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(TINY_RECIPE)
    return path


@pytest.fixture(scope="session")
def tiny_spec() -> ModelSpec:
    """The network of `recipe` on the classes of `photos`."""
    return model_spec("resnext_tiny", num_classes=len(CLASSES), image_size=8)


@pytest.fixture(scope="session")
def tiny_weights(tiny_spec: ModelSpec) -> Weights:
    """Weights of `tiny_spec` in which every element matters."""
    return Weights(
        spec=tiny_spec,
        preprocess=preprocess_spec(PreprocessConfig(), tiny_spec.image_size),
        classes=CLASSES,
        tensors=random_weights(tiny_spec, 3),
        origin={"made_by": "a test"},
        metrics={"top1": 0.5},
    )


@pytest.fixture(scope="session")
def weights_file(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Weights) -> Path:
    """`tiny_weights` as a neutral file; not to be changed."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(tiny_weights, path)
    return path


@pytest.fixture(scope="session")
def finished_run(photos: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a whole training on `photos`; not to be changed."""
    parent = tmp_path_factory.mktemp("finished")
    words = ["--backend", "reference", "train", "--recipe", str(recipe), "--data", str(photos)]
    assert main([*words, "--output", str(parent), "--name", "run"]) == 0
    return parent / "run"
