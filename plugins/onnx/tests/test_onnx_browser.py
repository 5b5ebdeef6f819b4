"""The example of deploy/browser: the same file gives in Chromium and in Node.js the classes that it gives in Python."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Browser
from onnx_cases import IMAGENET, make_weights, open_onnx, oracle, write
from PIL import Image
from resnext_onnx.predictor import IMAGE_TOLERANCE

from resnext_core.model.preprocess import eval_pixels
from resnext_core.model.weights import Weights

EXAMPLE = Path(__file__).parents[3] / "deploy" / "browser"
#: (height, width) of the images.
SHAPES = ((60, 90), (41, 40), (33, 300), (20, 11), (480, 641))

pytestmark = pytest.mark.slow


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with its dependency, an exported network and images."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("needs Node.js and npm")
    folder = tmp_path_factory.mktemp("site")
    for path in EXAMPLE.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    done = subprocess.run(
        [npm, "install", "--no-audit", "--no-fund"], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"npm cannot install onnxruntime-web here: {(done.stderr or done.stdout).strip()[-300:]}")
    write(spread_weights(), folder / "model.onnx", input="image")
    for number, image in enumerate(images()):
        image.save(folder / f"{number}.png")
        image.save(folder / f"{number}.ppm")
    return folder


@functools.cache
def spread_weights() -> Weights:
    """Random weights whose classifier tells the images apart: its logits are centred over them, and scaled to 5."""
    weights = make_weights(IMAGENET)
    pixels = np.stack([eval_pixels(image, weights.preprocess) for image in images()])
    logits = oracle(weights).logits(pixels)
    mean = logits.mean(axis=0)
    factor = 5 / np.abs(logits - mean).max()
    weight, bias = (weights.tensors[f"fc.{part}"] for part in ("weight", "bias"))
    tensors = {
        **weights.tensors,
        "fc.weight": (weight * factor).astype(np.float32),
        "fc.bias": ((bias - mean) * factor).astype(np.float32),
    }
    return weights.replace(tensors=tensors)


def images() -> Iterator[Image.Image]:
    """Colour gradients with noise: of unlike classes."""
    for seed, (height, width) in enumerate(SHAPES):
        rng = np.random.default_rng(seed)
        ramps = np.linspace(0, 1, height)[:, None, None] * rng.uniform(-200, 200, 3) + rng.uniform(0, 255, 3)
        noise = rng.normal(0, 40, (height, width, 3))
        yield Image.fromarray(np.clip(ramps + noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def expected(site: Path) -> list[np.ndarray]:
    """Probabilities by core's own pixels, in Python."""
    served, weights = open_onnx(site / "model.onnx"), spread_weights()
    rows = [served.logits(eval_pixels(image, weights.preprocess)[None])[0] for image in images()]
    assert len({int(row.argmax()) for row in rows}) > 1
    return [softmax(row.astype(np.float64)) for row in rows]


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def check(found: list[tuple[str, float]], probabilities: np.ndarray) -> None:
    """The first class is the same, and each has its probability."""
    classes = spread_weights().classes
    assert found[0][0] == classes[int(probabilities.argmax())]
    for name, probability in found:
        assert abs(probability - probabilities[classes.index(name)]) <= IMAGE_TOLERANCE


def test_page_gives_the_classes_of_python(site: Path, expected, address: str, tmp_path: Path):
    with Browser(tmp_path) as browser:
        browser.open(f"{address}/index.html?image=0.png")
        for number, probabilities in enumerate(expected):
            if number:  # the first is named in the address
                browser.choose("#file", site / f"{number}.png")
            data = browser.data("result", "failed")
            assert "failed" not in data, data
            check([(row["name"], row["probability"]) for row in json.loads(data["result"])], probabilities)


def test_page_says_what_is_wrong(site: Path, address: str, tmp_path: Path):
    write(make_weights(IMAGENET), site / "other" / "model.onnx")
    for path in EXAMPLE.iterdir():
        if path.is_file():
            shutil.copy(path, site / "other")
    (site / "other" / "node_modules").symlink_to(site / "node_modules")
    with Browser(tmp_path) as browser:
        browser.open(f"{address}/other/index.html")
        assert "export.input=image" in browser.data("result", "failed")["failed"]
        browser.open(f"{address}/index.html?image=none.png")
        assert "none.png: 404" in browser.data("result", "failed")["failed"]


def test_node_gives_the_classes_of_python(site: Path, expected):
    for number, probabilities in enumerate(expected):
        command = ["node", "classify-file.js", "model.onnx", f"{number}.ppm"]
        done = subprocess.run(command, cwd=site, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        rows = [line.split(" %  ") for line in done.stdout.splitlines()]
        check([(name, float(percent) / 100) for percent, name in rows], probabilities)
    done = subprocess.run(
        ["node", "classify-file.js", "model.onnx", "0.png"], cwd=site, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (1, "0.png is not a binary PPM with 8 bits a colour\n")
