"""The neutral weights file: round trips, digests, initialisation, strictness, and damage of every kind."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resnext_core.config import PreprocessConfig
from resnext_core.errors import DataError, UsageError
from resnext_core.model.init import init_weights, random_weights
from resnext_core.model.preprocess import PreprocessSpec, preprocess_spec
from resnext_core.model.spec import ModelSpec, model_spec
from resnext_core.model.weights import (
    MANIFEST_KEY,
    Golden,
    Weights,
    check_tensors,
    load_weights,
    parse_manifest,
    read_manifest_text,
    save_weights,
    tensor_digest,
)

#: Tensor digest of init_weights(resnext_tiny, seed 1): initial weights must never change with a release.
INIT_DIGEST = "sha256:a3e6ecdbb04f0456851b08e2771c66ceb8bd0a0a5cf88a426e8f4f0f2f1ec022"
TINY = model_spec("resnext_tiny")


def same(a: Weights, b: Weights) -> bool:
    """True when two weights are the same in everything, to the bit."""
    return a.manifest() == b.manifest() and all(
        np.array_equal(a.tensors[t.name], b.tensors[t.name]) for t in a.spec.tensors
    )


def rewritten(
    source: Path, target: Path, *, manifest: Any = None, drop: bool = False, **tensors: Any
) -> Path:
    """Write `source` again with another manifest (text), without one (`drop`), or with some tensors replaced."""
    arrays = safetensors.numpy.load_file(source)
    arrays = {k: v for k, v in {**arrays, **tensors}.items() if v is not None}
    text = manifest if manifest is not None else read_manifest_text(source)
    safetensors.numpy.save_file(arrays, target, metadata=None if drop else {MANIFEST_KEY: text})
    return target


# -- initialisation ------------------------------------------------------------------------------


def test_initial_weights_are_the_same_for_ever() -> None:
    assert tensor_digest(TINY, init_weights(TINY, 1)) == INIT_DIGEST
    assert tensor_digest(TINY, init_weights(TINY, 2)) != INIT_DIGEST


def test_initial_weights_have_the_stated_statistics() -> None:
    spec = model_spec("resnext29_32x4d", depths=(1, 1, 1))
    tensors = init_weights(spec, 5)
    check_tensors(spec, tensors)
    for tensor in spec.tensors:
        array = tensors[tensor.name]
        assert array.dtype == np.float32
        if tensor.role == "conv":
            out, _, kernel, _ = tensor.shape
            std = (2 / (out * kernel * kernel)) ** 0.5
            tolerance = 5 / array.size**0.5  # five standard errors
            assert array.std() == pytest.approx(std, rel=tolerance), tensor.name
            assert abs(array.mean()) < tolerance * std, tensor.name
        elif tensor.role.startswith("fc"):
            bound = spec.features**-0.5
            assert np.abs(array).max() <= bound
            assert array.std() == pytest.approx(bound / 3**0.5, rel=0.1)
        else:
            last = tensor.name.endswith("bn3.weight")
            assert (array == (1 if tensor.role in ("bn_weight", "bn_var") and not last else 0)).all()


def test_random_weights_leave_nothing_trivial() -> None:
    tensors = random_weights(TINY, 1)
    for tensor in TINY.tensors:
        array = tensors[tensor.name]
        assert len(np.unique(array)) > 0.99 * array.size, tensor.name
        assert (array != 0).all(), tensor.name
        if tensor.role == "bn_var":
            assert (array > 0).all()


# -- round trips ---------------------------------------------------------------------------------


def test_round_trip_keeps_everything(tmp_path: Path, tiny_weights: Weights) -> None:
    save_weights(tiny_weights, tmp_path / "w.safetensors")
    assert same(load_weights(tmp_path / "w.safetensors"), tiny_weights)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_file_is_the_same_bytes_each_time(tmp_path: Path, tiny_weights: Weights) -> None:
    for name in "ab":
        save_weights(tiny_weights, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_digest_depends_on_every_tensor(tiny_weights: Weights) -> None:
    digests = {tiny_weights.digest}
    for tensor in tiny_weights.spec.tensors:
        changed = tiny_weights.tensors[tensor.name].copy()
        changed.flat[-1] = np.nextafter(changed.flat[-1], np.float32(np.inf))
        digests.add(tiny_weights.replace(tensors={**tiny_weights.tensors, tensor.name: changed}).digest)
    assert len(digests) == 1 + len(tiny_weights.spec.tensors)


def test_digest_does_not_depend_on_memory_layout(tiny_weights: Weights) -> None:
    turned = {n: np.asfortranarray(a) for n, a in tiny_weights.tensors.items()}
    assert tiny_weights.replace(tensors=turned).digest == tiny_weights.digest


specs = st.builds(
    ModelSpec,
    variant=st.text(max_size=8),
    depths=st.lists(st.integers(1, 2), min_size=1, max_size=2).map(tuple),
    groups=st.integers(1, 3),
    base_width=st.integers(16, 32),
    stem=st.sampled_from(["imagenet", "cifar"]),
    stem_width=st.integers(4, 8),
    pool_padding=st.sampled_from(["same", "symmetric"]),
    num_classes=st.integers(1, 4),
    image_size=st.integers(1, 64),
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
@given(spec=specs, seed=st.integers(0, 2**32), names=st.data())
def test_any_network_survives_dict_and_file(
    tmp_path: Path, spec: ModelSpec, seed: int, names: st.DataObject
) -> None:
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    count = spec.num_classes
    labels = names.draw(st.lists(st.text(min_size=1), min_size=count, max_size=count, unique=True))
    preprocess = preprocess_spec(PreprocessConfig(), spec.image_size)
    assert PreprocessSpec.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess
    weights = Weights(
        spec=spec, preprocess=preprocess, classes=tuple(labels), tensors=random_weights(spec, seed)
    )
    save_weights(weights, tmp_path / "any.safetensors")
    assert same(load_weights(tmp_path / "any.safetensors"), weights)


# -- what must be refused ------------------------------------------------------------------------


def test_tensors_that_do_not_fit_are_listed(tiny_weights: Weights) -> None:
    tensors: dict[str, Any] = dict(tiny_weights.tensors)
    del tensors["fc.bias"]
    tensors["stray.weight"] = np.zeros(3, np.float32)
    tensors["conv1.weight"] = np.zeros((2, 2), np.float32)
    tensors["bn1.weight"] = tensors["bn1.weight"].astype(np.float64)
    tensors["bn1.bias"] = np.full_like(tensors["bn1.bias"], np.inf)
    with pytest.raises(DataError) as caught:
        check_tensors(tiny_weights.spec, tensors, "w.safetensors")
    message = str(caught.value)
    for part in (
        "w.safetensors do not fit resnext_tiny with 6 classes",
        "missing fc.bias",
        "unexpected stray.weight",
        "conv1.weight is (2, 2), not (16, 3, 3, 3)",
        "bn1.weight is float64, not float32",
        "bn1.bias holds NaN or infinity",
    ):
        assert part in message


def test_a_long_list_of_problems_is_cut(tiny_weights: Weights) -> None:
    with pytest.raises(DataError, match=f"and {len(tiny_weights.spec.tensors) - 6} more$"):
        check_tensors(tiny_weights.spec, {})


def test_class_names_must_be_as_many_as_classes(tiny_weights: Weights) -> None:
    with pytest.raises(DataError, match="2 class names for a network of 6 classes"):
        tiny_weights.replace(classes=("a", "b"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "manifest format 2, this resnext reads 1"),
        ({"model": None}, "broken manifest: a model spec has the fields"),
        ({"model": {"variant": "x"}}, "broken manifest: a model spec has the fields"),
        ({"classes": ["a"]}, "broken manifest: 1 class names for 6 classes"),
        ({"classes": [1, 2, 3, 4, 5, 6]}, "broken manifest"),
        ({"classes": None}, "broken manifest"),
        ({"digest": 5}, "broken manifest: digest must be sha256: and 64 hexadecimal digits, not 5"),
        ({"digest": "sha256:" + 64 * "0"}, "checksum mismatch of its tensors"),
        ({"preprocess": {}}, "broken manifest: a preprocess spec has the fields"),
        ({"origin": 3}, "broken manifest"),
        ({"metrics": "none"}, "broken manifest"),
    ],
)
def test_a_broken_manifest_is_one_line(
    tmp_path: Path, weights_file: Path, tiny_weights: Weights, change: dict[str, Any], says: str
) -> None:
    text = json.dumps({**tiny_weights.manifest(), **change})
    path = rewritten(weights_file, tmp_path / "w.safetensors", manifest=text)
    with pytest.raises(DataError) as caught:
        load_weights(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_huge_value_of_a_manifest_is_one_short_line(tiny_weights: Weights) -> None:
    """A million depths gave a message of 3 MB."""
    model, preprocess = tiny_weights.spec.to_dict(), tiny_weights.preprocess.to_dict()
    digits = 10**4000
    changes: list[dict[str, Any]] = [
        {"model": {**model, "depths": [1] * 1_000_000}},
        {"model": {**model, "depths": ["x" * 1_000_000]}},
        {"model": {**model, "groups": digits}},
        {"model": {**model, "stem": "x" * 1_000_000}},
        {"model": {f"field {i}": 1 for i in range(100_000)}},
        {"preprocess": {**preprocess, "size": digits}},
        {"preprocess": {**preprocess, "mode": ["x"] * 1_000_000}},
        {"preprocess": {**preprocess, "mean": [1] * 1_000_000}},
        {"preprocess": {**preprocess, "mean": [digits, 1, 1]}},
        {"format": "x" * 1_000_000},
        {"format": digits},
        {"golden": {"compute": "float32", "logits": [["x" * 1_000_000] * 6]}},
        {"golden": {"compute": "float32", "logits": [[digits] * 6]}},
        {"model": {**model, "variant": "\x1b[31m\n"}, "classes": []},
    ]
    for change in changes:
        with pytest.raises(DataError) as caught:
            parse_manifest(json.dumps({**tiny_weights.manifest(), **change}), where="x")
        assert len(str(caught.value)) < 700, str(caught.value)[:1000]
        assert str(caught.value).isprintable()
    text = json.dumps(tiny_weights.manifest()).replace('"groups": 4', '"groups": ' + "4" * 100_000)
    with pytest.raises(DataError, match="broken manifest"):
        parse_manifest(text, where="x")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": True}, "manifest format True"),
        ({"format": 1.0}, "manifest format 1.0"),
        ({"classes": "abcdef"}, "classes must be a list"),
        ({"origin": [["a", 1]]}, "origin must be an object"),
        ({"metrics": []}, "metrics must be an object"),
        ({"metrics": {"top1": float("nan")}}, "NaN is not a JSON number"),
        ({"golden": {"compute": "float32", "logits": [[True, 1, 1, 1, 1, 1]]}}, "True is not a number"),
        ({"golden": {"compute": "float32", "logits": [["1", 1, 1, 1, 1, 1]]}}, "'1' is not a number"),
    ],
)
def test_a_manifest_of_other_types_is_refused(
    tiny_weights: Weights, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        parse_manifest(json.dumps({**tiny_weights.manifest(), **change}), where="x")


@pytest.mark.parametrize(
    "mean", [[True, 1, 1], ["1", 1, 1], [1, 1], 3, [1, 1, float("inf")], [10**400, 1, 1]]
)
def test_mean_and_std_are_three_finite_numbers(mean: Any) -> None:
    for field in ("mean", "std"):
        with pytest.raises(UsageError, match=f"preprocess {field} must be three finite numbers"):
            PreprocessSpec(**{field: mean})


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"x"', "[" * 50_000, '{"format": 1}', "{}"])
def test_text_that_is_no_manifest(text: str) -> None:
    with pytest.raises(DataError, match=r"^here has a broken manifest: "):
        parse_manifest(text, where="here")


def test_a_manifest_lacking_any_field_is_refused(tiny_weights: Weights) -> None:
    whole = tiny_weights.manifest()
    assert parse_manifest(json.dumps(whole), where="x").spec == tiny_weights.spec
    for key in whole:
        with pytest.raises(DataError, match=f"missing '{key}'"):
            parse_manifest(json.dumps({k: v for k, v in whole.items() if k != key}), where="x")


def test_files_that_are_not_weights(tmp_path: Path) -> None:
    contents = {
        "empty": b"",
        "short": b"\x01\x00",
        "text": b"these are no weights at all\n" * 20,
        "huge_header": struct.pack("<Q", 1 << 62) + b"{}",
        "bad_json": struct.pack("<Q", 4) + b"{{{{",
        "pickle": b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94",
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(DataError, match="is not a readable safetensors file"):
            load_weights(path)
    for path in (tmp_path, tmp_path / "missing.safetensors"):
        with pytest.raises(DataError, match="no weights file"):
            load_weights(path)


def test_other_dtypes_are_refused(tmp_path: Path, weights_file: Path) -> None:
    for dtype in (np.float64, np.float16, np.int8, np.bool_):
        bias = np.zeros(6, dtype)
        path = rewritten(weights_file, tmp_path / "w.safetensors", **{"fc.bias": bias})
        with pytest.raises(DataError, match=r"fc\.bias is \w+, not float32"):
            load_weights(path)


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F8_E5M2", "F4", "NONSENSE"])
def test_dtypes_that_numpy_lacks_are_a_data_error(tmp_path: Path, dtype: str) -> None:
    header = json.dumps({"x": {"dtype": dtype, "shape": [4], "data_offsets": [0, 8]}}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(DataError):
        load_weights(path)


def test_a_damaged_file_never_loads_as_something_else(tmp_path: Path, weights_file: Path) -> None:
    """A few hundred random flips, cuts and insertions: a DataError, or what was saved."""
    whole, original = bytearray(weights_file.read_bytes()), load_weights(weights_file)
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    rng = np.random.default_rng(20)
    path = tmp_path / "damaged.safetensors"
    refused = 0
    for trial in range(400):
        data = bytearray(whole)
        # the header is small but where the surprises are, above all its start, the manifest
        position = int(rng.integers((1400, header, 1400, len(data))[trial % 4]))
        kind = trial % 7
        if kind == 5:
            del data[position:]
        elif kind == 6:
            data[position:position] = rng.bytes(int(rng.integers(1, 9)))
        else:
            data[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            loaded = load_weights(path)
        except DataError:
            refused += 1
        else:
            assert same(loaded, original), (trial, position)
    assert refused > 350


def test_a_file_without_manifest_says_what_to_do(tmp_path: Path, weights_file: Path) -> None:
    path = rewritten(weights_file, tmp_path / "foreign.safetensors", drop=True)
    with pytest.raises(DataError, match="has no resnext manifest; to use weights of another program"):
        load_weights(path)


def test_golden_logits_travel_with_their_tensors_alone(tmp_path: Path, tiny_weights: Weights) -> None:
    golden = Golden(compute="float32", logits=(tuple(range(6)), tuple(range(6))))  # type: ignore[arg-type]
    made = tiny_weights.replace(golden=golden)
    save_weights(made, tmp_path / "w.safetensors")
    assert load_weights(tmp_path / "w.safetensors").golden == golden
    other = {**tiny_weights.tensors, "fc.bias": tiny_weights.tensors["fc.bias"] + 1}
    assert made.replace(tensors=other).golden is None
    assert made.replace(metrics={}).golden == golden


@pytest.mark.parametrize(
    "golden",
    [
        {}, [], 3, {"compute": "float32", "logits": []}, {"compute": "float32", "logits": [[1, 2]]},
        {"compute": "float32", "logits": [[1, 2, 3, 4, 5, None]]}, {"compute": 3, "logits": [[1, 2, 3, 4, 5, 6]]},
        {"compute": "float32", "logits": [[1, 2, 3, 4, 5, float("inf")]]},
        {"compute": "float32", "logits": [[1, 2, 3, 4, 5, 6]], "more": 1},
    ],
)  # fmt: skip
def test_broken_golden_logits_are_a_broken_manifest(tiny_weights: Weights, golden: object) -> None:
    text = json.dumps({**tiny_weights.manifest(), "golden": golden})
    with pytest.raises(DataError, match="has a broken manifest"):
        parse_manifest(text, where="w")


def test_saving_where_one_cannot(tmp_path: Path, tiny_weights: Weights) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="cannot write"):
        save_weights(tiny_weights, tmp_path / "file" / "w.safetensors")


def test_a_spec_of_another_make_is_refused() -> None:
    data = TINY.to_dict()
    for wrong in ({**data, "extra": 1}, {k: v for k, v in data.items() if k != "stem"}, [], "x", None):
        with pytest.raises(UsageError, match="a model spec has the fields"):
            ModelSpec.from_dict(wrong)  # type: ignore[arg-type]
