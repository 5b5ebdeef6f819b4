"""Files that contain the whole preprocessing: pixels of Pillow's, logits of core's pixels, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx_cases import (
    IMAGENET,
    TOLERANCE,
    make_images,
    make_weights,
    normalised,
    open_onnx,
    oracle,
    relative,
    write,
)
from PIL import Image
from resnext_onnx.artefact import read_artefact, sealed_model
from resnext_onnx.front import add_front
from resnext_onnx.graph import IMAGES, IR_VERSION, OPSET, PIXELS, GraphBuilder
from resnext_onnx.predictor import IMAGE_TOLERANCE

from resnext_core.cli.main import main
from resnext_core.errors import DataError, UsageError
from resnext_core.model.preprocess import PreprocessSpec, eval_pixels, geometry, pillow_filter
from resnext_core.model.weights import save_weights

MODES, FILTERS = ("squash", "shorter-side"), ("antialias", "bicubic", "plain")
#: (size, resize): usual, smaller than a block, more blocks than 14, no crop, a single pixel, wide margins.
SIZES = ((224, 256), (13, 16), (230, 230), (64, 73), (1, 1), (5, 40))
#: (height, width): single pixels, odd, small, already right, larger, smaller, long, and a large photograph.
SHAPES = (
    (1, 1), (1, 2), (2, 1), (3, 5), (17, 16), (64, 64), (73, 73), (100, 37), (37, 100), (230, 224), (256, 256),
    (257, 255), (375, 500), (511, 767), (900, 60), (60, 900), (1, 16), (1080, 1921),
)  # fmt: skip


def pixels_of(spec: PreprocessSpec) -> onnxruntime.InferenceSession:
    """The preprocessing alone, in ONNX Runtime."""
    builder = GraphBuilder({}, fold_bn=True)
    add_front(builder, IMAGES, spec, PIXELS)
    source = helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, [1, "H", "W", 3])
    sink = helper.make_tensor_value_info(PIXELS, TensorProto.FLOAT, [1, 3, spec.size, spec.size])
    graph = helper.make_graph(builder.nodes, "front", [source], [sink], builder.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def run(session: onnxruntime.InferenceSession, image: np.ndarray) -> np.ndarray:
    """Pixels as float32 (size, size, 3)."""
    pixels: np.ndarray = session.run([PIXELS], {IMAGES: image[None]})[0][0]
    return pixels.transpose(1, 2, 0)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise of 0..255 above, of 0 and 255 alone below: filters overshoot there most, and ties are common."""
    image = np.random.default_rng([height, width, seed]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[height // 2 :] = np.where(image[height // 2 :] > 127, 255, 0)
    return image


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("size", "resize"), SIZES)
def test_pixels_are_those_of_pillow(size: int, resize: int, mode, filter):
    spec = PreprocessSpec(size=size, resize=resize, mode=mode, filter=filter)
    session = pixels_of(spec)
    different = places = 0
    for height, width in SHAPES:
        image = noise(height, width)
        got, want = run(session, image), eval_pixels(Image.fromarray(image), spec)
        off = np.abs(got - want)
        assert off.max() <= 1, f"{height} x {width}: {off.max():g} levels"
        different, places = different + int((off > 0).sum()), places + off.size
    assert different <= 1e-3 * places


@pytest.mark.parametrize("filter", ["antialias", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(3, 900), (900, 3), (1, 400), (2, 3001), (4000, 7)])
def test_strips_are_those_of_a_whole_resize(height: int, width: int, filter):
    """Of sides above 16 to 1, core resizes only the crop, within 1 level of this."""
    spec = PreprocessSpec(size=20, resize=24, mode="shorter-side", filter=filter)
    place = geometry(height, width, spec)
    image = noise(height, width)
    kernel = pillow_filter(filter)
    whole = Image.fromarray(image).resize((place.width, height), kernel)
    whole = whole.resize((place.width, place.height), kernel)
    want = np.asarray(whole)[place.top :, place.left :][:20, :20]
    assert np.abs(run(pixels_of(spec), image) - want).max() <= 1


def test_a_strip_of_100000_pixels_takes_little_memory():
    """A whole resize would make 25,600,000 x 256 pixels of it."""
    spec = PreprocessSpec(size=224, resize=256, mode="shorter-side")
    for image in (noise(100_000, 1), noise(1, 100_000)):
        off = np.abs(run(pixels_of(spec), image) - eval_pixels(Image.fromarray(image), spec))
        assert (
            off.max() <= 2
        )  # Pillow's boxes are float32: core's own pixels are within 1 level of a whole resize


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("mode", MODES)
def test_logits_are_those_of_core_s_pixels(tmp_path: Path, mode, filter):
    weights = make_weights(IMAGENET)
    weights = weights.replace(preprocess=replace(weights.preprocess, mode=mode, filter=filter))
    served = open_onnx(write(weights, tmp_path / "m.onnx", input="image"))
    for height, width in ((97, 130), (36, 40), (3, 2), (301, 60)):
        image = noise(height, width)
        pixels = eval_pixels(Image.fromarray(image), weights.preprocess)[None]
        got = served.logits_from_image(image)
        assert (got.shape, got.dtype) == ((7,), np.float32)
        assert relative(got[None], oracle(weights).logits(pixels)) <= IMAGE_TOLERANCE


@pytest.mark.parametrize("tensor_input", [False, True])
@pytest.mark.parametrize("fold_bn", [True, False])
def test_other_doors_lie_behind_the_preprocessing(tmp_path: Path, tensor_input, fold_bn):
    weights = make_weights(IMAGENET)
    path = write(weights, tmp_path / "m.onnx", input="image", fold_bn=fold_bn)
    served = open_onnx(path, tensor_input=tensor_input)
    images = make_images(IMAGENET, 3)
    want = oracle(weights).logits(images)
    served.logits_from_image(images[0])
    for count in (3, 1):
        assert relative(served.logits(images[:count]), want[:count]) <= TOLERANCE
        assert (
            relative(served.logits_from_tensor(normalised(images[:count], weights)), want[:count])
            <= TOLERANCE
        )
    served.close()
    with pytest.raises(UsageError, match="closed"):
        served.logits_from_image(images[0])


def test_file_says_what_it_takes_and_what_the_caller_does(tmp_path: Path):
    weights = make_weights(IMAGENET)
    path = write(weights, tmp_path / "m.onnx", input="image")
    entry = read_artefact(path).entry
    assert (entry["input"], entry["batch_size"], entry["opset"]) == ("image", 1, 17)
    assert entry["caller"] == [
        "Decode the file to 8-bit RGB; drop alpha.",
        "Do not turn it by its EXIF orientation.",
    ]
    graph = onnx.load(path).graph
    (source,) = graph.input
    assert source.name == "images"
    assert [d.dim_param or d.dim_value for d in source.type.tensor_type.shape.dim] == [1, "H", "W", 3]
    first = path.read_bytes()
    assert write(weights, tmp_path / "again.onnx", input="image", batch_size=1).read_bytes() == first

    turned = replace(weights.preprocess, orientation="apply", scaled_decode=True)
    path = write(weights.replace(preprocess=turned), tmp_path / "turned.onnx", input="image")
    caller = read_artefact(path).entry["caller"]
    assert caller[1] == "Turn it as its EXIF orientation says."
    assert "at least 40" in caller[2]


def test_preprocessing_of_another_spec_is_found(tmp_path: Path):
    """The graph resizes otherwise than the manifest says: the file is whole, and still it is not served."""
    weights = make_weights(IMAGENET)
    other = weights.replace(preprocess=replace(weights.preprocess, resize=60))
    path = write(other, tmp_path / "m.onnx", input="image")
    entry = json.loads(json.dumps(dict(read_artefact(path).entry)))
    path.write_bytes(sealed_model(onnx.load(path), weights.manifest(), entry))
    served = open_onnx(path)
    with pytest.raises(DataError, match="its preprocessing gives logits that differ"):
        served.logits_from_image(noise(50, 50))


def test_bad_images_are_refused(tmp_path: Path):
    weights = make_weights(IMAGENET)
    served = open_onnx(write(weights, tmp_path / "m.onnx", input="image"))
    for image in (
        np.zeros((5, 5, 3), np.float32), np.zeros((5, 5), np.uint8), np.zeros((1, 5, 5, 3), np.uint8),
        np.zeros((5, 5, 4), np.uint8), np.zeros((0, 5, 3), np.uint8),
    ):  # fmt: skip
        with pytest.raises(DataError, match=r"takes an image uint8 \(H, W, 3\)"):
            served.logits_from_image(image)
    with pytest.raises(DataError, match="takes images uint8"):
        served.logits(np.zeros((1, 50, 50, 3), np.uint8))
    plain = open_onnx(write(weights, tmp_path / "plain.onnx"))
    with pytest.raises(UsageError, match=r"export\.input=image"):
        plain.logits_from_image(noise(50, 50))


@pytest.mark.parametrize("batch_size", [2, 8])
def test_more_than_one_image_is_refused(tmp_path: Path, batch_size):
    with pytest.raises(UsageError, match="one image at a time"):
        write(make_weights(IMAGENET), tmp_path / "m.onnx", input="image", batch_size=batch_size)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    save_weights(make_weights(IMAGENET), tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def export(weights: Path, to: Path, *words: object) -> int:
    """``resnext-run export --set export.input=image``; the exit code."""
    command = ["export", "--weights", weights, "--to", to, "--set", "export.input=image", *words]
    return main([str(word) for word in command])


def test_command_writes_what_can_contain_the_preprocessing(weights_file: Path, tmp_path: Path):
    """Every format that is installed was asked for: only those that can are written."""
    assert export(weights_file, tmp_path / "out") == 0
    (path,) = (tmp_path / "out").iterdir()
    assert path.suffix == ".onnx"
    image = noise(50, 70)
    weights = make_weights(IMAGENET)
    pixels = eval_pixels(Image.fromarray(image), weights.preprocess)[None]
    got = open_onnx(path).logits_from_image(image)[None]
    assert relative(got, oracle(weights).logits(pixels)) <= IMAGE_TOLERANCE


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--format", "triton"), "format triton cannot contain the preprocessing"),
        (("--format", "onnx", "--set", "export.batch_size=8"), "export.batch_size must be 1 or null, not 8"),
    ],
)
def test_command_refuses_in_one_line(weights_file: Path, tmp_path: Path, capsys, words, says):
    assert export(weights_file, tmp_path / "out", *words) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scaled", [True, False])
def test_command_says_where_the_decoder_reduces_images(tmp_path: Path, capsys, scaled):
    weights = make_weights(IMAGENET)
    weights = weights.replace(preprocess=replace(weights.preprocess, scaled_decode=scaled))
    save_weights(weights, tmp_path / "w.safetensors")
    assert export(tmp_path / "w.safetensors", tmp_path / "m.onnx") == 0
    assert ("preprocess.scaled_decode" in capsys.readouterr().out) == scaled
