"""Other worlds' weights: every format there and back to the bit, for any network; and what is refused."""

from __future__ import annotations

import dataclasses
import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from command_line import CommandLine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from resnext_core.convert.ckpt import read_stored, write_ckpt
from resnext_core.convert.containers import BUILTIN
from resnext_core.convert.names import NAMINGS, detect
from resnext_core.convert.reading import ModelDescription, from_tensors
from resnext_core.convert.writing import to_tensors
from resnext_core.errors import EXIT_DATA, EXIT_USAGE, DataError, UsageError
from resnext_core.interfaces import TrainState
from resnext_core.model.init import random_weights
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.spec import VARIANTS, ModelSpec, model_spec
from resnext_core.model.weights import MANIFEST_KEY, Weights, load_weights, save_weights
from resnext_core.runs.checkpoint import load_checkpoint, save_checkpoint
from resnext_core.runs.checkpoint_folder import RunProgress

ENDINGS = [(n.id, c) for n in NAMINGS.values() for c in n.containers if c in (".safetensors", ".ckpt")]


def specs() -> st.SearchStrategy[ModelSpec]:
    """Small networks of every kind."""
    return st.builds(
        lambda depths, groups, width, stem, stem_width, classes: ModelSpec(
            variant="any", depths=tuple(depths), groups=groups, base_width=width, stem=stem,
            stem_width=stem_width, num_classes=classes, image_size=32,
        ),
        st.lists(st.integers(1, 2), min_size=1, max_size=3), st.sampled_from([1, 2, 4]), st.integers(16, 40),
        st.sampled_from(["imagenet", "cifar"]), st.sampled_from([4, 8, 12]), st.integers(1, 5),
    )  # fmt: skip


def weights_of(spec: ModelSpec, seed: int = 0) -> Weights:
    return Weights(
        spec=spec,
        preprocess=PreprocessSpec(size=spec.image_size, resize=spec.image_size),
        classes=tuple(f"class {i}" for i in range(spec.num_classes)),
        tensors=random_weights(spec, seed),
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spec=specs(), pick=st.sampled_from(ENDINGS), seed=st.integers(0, 99))
def test_neutral_to_any_format_and_back_is_the_identity(
    tmp_path: Path, spec: ModelSpec, pick: tuple[str, str], seed: int
) -> None:
    naming, ending = NAMINGS[pick[0]], pick[1]
    weights = weights_of(spec.replace(pool_padding=naming.pool_padding), seed)
    tensors, written = to_tensors(weights, naming)
    path = tmp_path / f"w{ending}"
    container = next(c for c in BUILTIN if ending in c.suffixes)
    container.write(path, tensors, naming.tag)
    found = from_tensors(container.read(path), path, ModelDescription(naming=naming.id, image_size=32))
    assert found.weights.digest == weights.digest
    for name, array in weights.tensors.items():
        assert found.weights.tensors[name].tobytes() == array.tobytes()
    # what could be told from names and shapes is the network; how it is called is not among it
    assert found.weights.spec == weights.spec.replace(
        variant=found.weights.spec.variant, base_width=found.weights.spec.base_width
    )
    assert {s for c in written for s in c.source} == {t.name for t in spec.tensors}
    assert sorted(t for c in written for t in c.target) == sorted(tensors)
    assert {s for c in found.changes for s in c.source} == set(tensors)
    if naming.id != "modelzoo-split" or spec.groups > 1:
        assert detect(tensors) in (naming, NAMINGS["modelzoo"] if spec.groups == 1 else naming)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("naming", NAMINGS)
def test_the_variant_is_told_by_names_and_shapes(variant: str, naming: str) -> None:
    spec = model_spec(variant)
    empty = {t.name: np.broadcast_to(np.float32(1), t.shape) for t in spec.tensors}
    tensors: dict[str, NDArray[Any]] = {}
    for name, pieces in NAMINGS[naming].pieces(spec).items():
        shape = (spec_shape := empty[name].shape)[0] // len(pieces), *spec_shape[1:]
        tensors |= {piece: np.broadcast_to(np.float32(1), shape) for piece in pieces}
    from resnext_core.convert import reading

    found = reading._inferred(tensors, NAMINGS[naming], Path("x"))
    assert found.replace(pool_padding="same") == spec.replace(pool_padding="same")


def test_the_names_are_those_of_the_modelzoo_and_of_mindcv() -> None:
    """Names written down from the sources themselves, not from our rule."""
    spec = model_spec("resnext50_32x4d")
    modelzoo = NAMINGS["modelzoo"].pieces(spec)
    for ours, theirs in {
        "conv1.weight": "backbone.conv.weight",
        "bn1.running_mean": "backbone.bn.moving_mean",
        "layer1.0.conv1.weight": "backbone.layer1.0.conv1.weight",
        "layer3.5.bn2.running_var": "backbone.layer3.5.bn2.moving_variance",
        "layer2.0.downsample.0.weight": "backbone.layer2.0.down_sample.conv.weight",
        "layer2.0.downsample.1.weight": "backbone.layer2.0.down_sample.bn.gamma",
        "layer4.2.bn3.bias": "backbone.layer4.2.bn3.beta",
        "fc.weight": "head.fc.weight",
    }.items():
        assert modelzoo[ours] == (theirs,)
    split = NAMINGS["modelzoo-split"].pieces(spec)["layer1.0.conv2.weight"]
    assert (split[0], split[31], len(split)) == (
        "backbone.layer1.0.conv2.convs.0.weight", "backbone.layer1.0.conv2.convs.31.weight", 32,
    )  # fmt: skip
    mindcv = NAMINGS["mindcv"].pieces(spec)
    for ours, theirs in {
        "conv1.weight": "conv1.weight",
        "bn1.weight": "bn1.gamma",
        "layer2.0.downsample.0.weight": "layer2.0.down_sample.0.weight",
        "layer2.0.downsample.1.running_var": "layer2.0.down_sample.1.moving_variance",
        "fc.bias": "classifier.bias",
    }.items():
        assert mindcv[ours] == (theirs,)


# -- what stands around the weights ----------------------------------------------------------------


@pytest.fixture
def small() -> Weights:
    """A network that pads as the ModelZoo does."""
    return weights_of(model_spec("resnext_tiny").replace(stem="imagenet", num_classes=3))


def modelzoo_tensors(weights: Weights, naming: str = "modelzoo", prefix: str = "") -> dict[str, NDArray[Any]]:
    """What a checkpoint of the ModelZoo holds: weights, moments and counters."""
    tensors, _ = to_tensors(weights, NAMINGS[naming])
    learned = {
        n for t in weights.spec.tensors if t.trainable for n in NAMINGS[naming].pieces(weights.spec)[t.name]
    }
    moments = {f"moments.{prefix}{n}": tensors[n] * np.float32(0.5) for n in learned}
    counters = {"global_step": np.int32(77).reshape(()), "learning_rate": np.float32(0.1).reshape(())}
    return (
        {f"{prefix}{n}": a for n, a in tensors.items()}
        | moments
        | {"momentum": np.ones((), np.float32)}
        | counters
    )


@pytest.mark.parametrize("naming", ["modelzoo", "modelzoo-split"])
@pytest.mark.parametrize("prefix", ["", "network."])
def test_a_checkpoint_of_the_modelzoo_is_told_apart(
    small: Weights, naming: str, prefix: str, tmp_path: Path
) -> None:
    path = tmp_path / "old.ckpt"
    write_ckpt(path, modelzoo_tensors(small, naming, prefix))
    found = from_tensors(read_stored(path), path)
    assert found.naming.id == naming
    assert found.weights.digest == small.digest
    assert found.weights.spec.pool_padding == "same"
    assert (found.weights.preprocess.mode, found.weights.preprocess.filter) == ("squash", "plain")
    dropped = {n: c.reason for c in found.changes if c.kind == "dropped" for n in c.source}
    assert "optimizer" in dropped["global_step"]
    assert all("--moments keep" in reason for n, reason in dropped.items() if n.startswith("moments."))
    assert set(dropped) == {
        n for n in read_stored(path).tensors if "backbone" not in n and "head" not in n
    } | {n for n in read_stored(path).tensors if n.startswith("moments.")}


def test_moments_are_kept_on_request(small: Weights, tmp_path: Path) -> None:
    path = tmp_path / "old.ckpt"
    write_ckpt(path, modelzoo_tensors(small, "modelzoo-split"))
    found = from_tensors(read_stored(path), path, moments=True)
    assert found.step == 77
    assert set(found.momentum) == {t.name for t in small.spec.tensors if t.trainable}
    for name, array in found.momentum.items():
        assert np.array_equal(array, small.tensors[name] * np.float32(0.5)), name


def test_missing_unexpected_and_misshapen_are_listed(small: Weights, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"")
    tensors, _ = to_tensors(small, NAMINGS["torch"], any_padding=True)
    gone = {n: a for n, a in tensors.items() if n != "layer1.0.bn2.bias"}
    with pytest.raises(DataError, match=r"missing layer1\.0\.bn2\.bias; unexpected layer9\.0\.x"):
        from_tensors({**gone, "layer9.0.x": np.zeros(1, np.float32)}, path)
    with pytest.raises(DataError, match=r"layer1\.0\.bn2\.bias is \(3,\)"):
        from_tensors({**tensors, "layer1.0.bn2.bias": np.zeros(3, np.float32)}, path)
    with pytest.raises(DataError, match="float64, which float32 cannot hold"):
        from_tensors({**tensors, "layer1.0.bn2.bias": tensors["layer1.0.bn2.bias"].astype(np.float64)}, path)
    with pytest.raises(DataError, match="NaN or infinity"):
        from_tensors(
            {**tensors, "layer1.0.bn2.bias": tensors["layer1.0.bn2.bias"] * np.float32(np.nan)}, path
        )
    split, _ = to_tensors(small, NAMINGS["modelzoo-split"])
    with pytest.raises(DataError, match=r"missing backbone\.layer2\.0\.conv2\.convs\.3\.weight"):
        from_tensors({n: a for n, a in split.items() if "layer2.0.conv2.convs.3" not in n}, path)
    with pytest.raises(DataError, match="are not a ResNeXt of torch, modelzoo"):
        from_tensors({"what": np.zeros(1, np.float32)}, path)
    with pytest.raises(DataError, match="twice"):
        from_tensors({**tensors, "module.fc.bias": tensors["fc.bias"]}, path)


def test_half_precision_is_widened_and_said(small: Weights, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"")
    tensors, _ = to_tensors(small, NAMINGS["torch"], any_padding=True)
    half = {n: a.astype(np.float16) for n, a in tensors.items()}
    found = from_tensors(half, path)
    assert all(c.dtype == "float16" and "widened" in c.line() for c in found.changes)
    for name, array in half.items():
        assert np.array_equal(found.weights.tensors[name], array.astype(np.float32))


def test_a_world_that_pads_differently_is_refused(small: Weights) -> None:
    with pytest.raises(UsageError, match=r"torch networks pad their max-pool .symmetric., this one .same."):
        to_tensors(small, NAMINGS["torch"])
    with pytest.raises(UsageError, match="cannot store moments"):
        to_tensors(small, NAMINGS["torch"], momentum={"fc.bias": small.tensors["fc.bias"]}, any_padding=True)


# -- MindSpore's files ---------------------------------------------------------------------------------


def test_ckpt_keeps_shapes_types_and_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kinds = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]
    tensors = {f"t.{k}": rng.integers(0, 2, (2, 3)).astype(k) for k in kinds}
    tensors |= {"scalar": np.array(3, np.int32), "empty dims": np.zeros((4, 1, 1), np.float32)}
    write_ckpt(tmp_path / "t.ckpt", tensors)
    found = read_stored(tmp_path / "t.ckpt").tensors
    assert list(found) == list(tensors)
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert np.array_equal(found[name], array)


def test_large_tensors_lie_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resnext_core.convert.ckpt._SLICE", 100)
    tensors = {"a": np.arange(77, dtype=np.float32).reshape(7, 11), "b": np.arange(3, dtype=np.float32)}
    write_ckpt(tmp_path / "t.ckpt", tensors)
    assert (tmp_path / "t.ckpt").read_bytes().count(b"Float32") == 5
    found = read_stored(tmp_path / "t.ckpt").tensors
    assert np.array_equal(found["a"], tensors["a"])


def test_a_ckpt_cut_anywhere_is_noticed(tmp_path: Path) -> None:
    """By the reader, or, where the cut falls between two records, as tensors that are missing."""
    path = tmp_path / "t.ckpt"
    write_ckpt(path, {n: np.arange(5, dtype=np.float32) for n in ("a", "b", "c")})
    whole = path.read_bytes()
    complete = 0
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            found = read_stored(path).tensors
        except DataError:
            continue
        complete += 1
        assert set(found) < {"a", "b", "c"}
    assert complete == 2


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "it is empty"),
        (b"\x0a\x05abc", "it ends in the middle"),
        (b"\x0d\x00\x00\x00\x00", "unknown field at byte"),
        (b"\x12\x00", "unknown field 2"),
        (b"\xff" * 20, "unknown field at byte"),
        (b"\x0a\x00", "a value without a name"),
        (b"\x0a\x0c\x0a\x01a\x12\x07\x12\x05Float", "an unknown type"),
        (b"\x0a\x12\x0a\x01a\x12\x0d\x08\x02\x12\x07Float32\x1a\x00", "0 bytes, not the 8 of its shape"),
    ],
)
def test_what_is_no_ckpt_is_one_line(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "t.ckpt").write_bytes(data)
    with pytest.raises(DataError, match=says) as caught:
        read_stored(tmp_path / "t.ckpt")
    assert "\n" not in str(caught.value)


def test_millions_of_tensors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name costs 30 times more memory than bytes in the file; and bfloat16 read the header again for each."""
    monkeypatch.setattr("resnext_core.convert.ckpt.MOST_TENSORS", 1000)
    monkeypatch.setattr("resnext_core.model.weights.MOST_TENSORS", 1000)
    count = 1001
    record = b"\x0a\x10\x0a\x01a\x12\x0b\x08\x00\x12\x07Float32"
    (tmp_path / "t.ckpt").write_bytes(record * count)
    with pytest.raises(DataError, match="it has more than 1000 tensors"):
        read_stored(tmp_path / "t.ckpt")
    entry = '{"dtype":"BF16","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(f'"{i}":{entry}' for i in range(count)) + "}").encode()
    (tmp_path / "t.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    kind = next(c for c in BUILTIN if ".safetensors" in c.suffixes)
    with pytest.raises(DataError, match="it has 1001 tensors, more than 1000"):
        kind.read(tmp_path / "t.safetensors")


# -- the command -----------------------------------------------------------------------------------------


@pytest.fixture
def neutral(tmp_path: Path, small: Weights) -> Path:
    path = tmp_path / "ours.safetensors"
    save_weights(small, path)
    return path


def test_there_and_back_prints_one_digest(
    cli: CommandLine, neutral: Path, small: Weights, tmp_path: Path
) -> None:
    out = cli.ok("convert", neutral, tmp_path / "a.ckpt", "--to", "modelzoo-split").out
    assert small.digest in out
    assert "split    3 tensors" in out
    cli.ok("convert", tmp_path / "a.ckpt", tmp_path / "same.safetensors")
    assert (tmp_path / "same.safetensors").read_bytes() == neutral.read_bytes()  # by the manifest beside it
    (tmp_path / "a.ckpt.json").unlink()
    report = tmp_path / "report.jsonl"
    result = cli.ok(
        "convert", tmp_path / "a.ckpt", tmp_path / "b.safetensors", "--report", report, "--json"
    ).json()
    assert result["digest"] == small.digest
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    assert lines == result["changes"]
    assert sum(c["kind"] == "merged" for c in lines) == 3
    back = load_weights(tmp_path / "b.safetensors")
    assert back.classes == ("0", "1", "2")
    assert back.origin["names"] == "modelzoo-split"


def test_old_spellings_of_the_modelzoo_are_accepted(
    cli: CommandLine, neutral: Path, small: Weights, tmp_path: Path
) -> None:
    """On the command line, and in the manifest of a file that was converted by 0.1."""
    cli.ok("convert", neutral, tmp_path / "a.ckpt", "--to", "ancestor-split")
    (tmp_path / "a.ckpt.json").unlink()
    back = tmp_path / "back.safetensors"
    cli.ok("convert", tmp_path / "a.ckpt", back, "--from", "ancestor-split")
    assert load_weights(back).digest == small.digest
    assert load_weights(back).origin["names"] == "modelzoo-split"
    old = small.replace(origin={"made_by": "resnext-core 0.1.0", "names": "ancestor-split"})
    save_weights(old, tmp_path / "old.safetensors")
    assert cli.ok("convert", tmp_path / "old.safetensors", tmp_path / "b.ckpt", "--to", "ancestor").code == 0


def test_class_names_and_size_can_be_given(cli: CommandLine, neutral: Path, tmp_path: Path) -> None:
    cli.ok("convert", neutral, tmp_path / "a.ckpt", "--to", "mindcv")
    (tmp_path / "a.ckpt.json").unlink()
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    words = ["--classes", tmp_path / "names.txt", "--image-size", 48]
    cli.ok("convert", tmp_path / "a.ckpt", tmp_path / "b.safetensors", *words)
    made = load_weights(tmp_path / "b.safetensors")
    assert (made.classes, made.spec.image_size, made.preprocess.size) == (("ant", "bee", "cat"), 48, 48)


def test_a_manifest_beside_a_file_must_be_its_own(
    cli: CommandLine, neutral: Path, small: Weights, tmp_path: Path
) -> None:
    path, target = tmp_path / "a.ckpt", tmp_path / "b.safetensors"
    cli.ok("convert", neutral, path, "--to", "modelzoo")
    cli.refuses(
        EXIT_USAGE,
        "convert",
        path,
        target,
        "--image-size",
        48,
        says="has a manifest in a.ckpt.json; drop --image-size",
    )
    beside = (tmp_path / "a.ckpt.json").read_text()
    other = weights_of(small.spec, seed=9)
    write_ckpt(path, to_tensors(other, NAMINGS["modelzoo"])[0])
    says = "a.ckpt does not hold the tensors of a.ckpt.json beside it"
    cli.refuses(EXIT_DATA, "convert", path, target, says=says)
    (tmp_path / "a.ckpt.json").write_text(beside[:-40])
    cli.refuses(EXIT_DATA, "convert", path, target, says="a.ckpt.json has a broken manifest")
    assert not target.exists()


@pytest.mark.parametrize("naming", NAMINGS)
def test_a_manifest_of_a_monstrous_network_costs_nothing(
    cli: CommandLine, small: Weights, tmp_path: Path, naming: str
) -> None:
    """4096 blocks of 4096 groups would be 17 million names."""
    manifest = small.manifest()
    manifest["model"] |= {"depths": [512] * 8, "groups": 4096}
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file(to_tensors(small, NAMINGS[naming], any_padding=True)[0], path)
    (tmp_path / "w.safetensors.json").write_text(json.dumps(manifest))
    tracemalloc.start()
    cli.refuses(EXIT_DATA, "convert", path, tmp_path / "x.safetensors", says="for 4096 blocks of 4096 groups")
    own = tmp_path / "own.safetensors"
    safetensors.numpy.save_file(dict(small.tensors), own, metadata={MANIFEST_KEY: json.dumps(manifest)})
    cli.refuses(EXIT_DATA, "convert", own, tmp_path / "x.safetensors", says="tensors for 4096 blocks")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * path.stat().st_size + (1 << 20)


def test_padding_and_preprocessing_can_be_stated_and_nothing_else_changes(
    cli: CommandLine, small: Weights, tmp_path: Path
) -> None:
    safetensors.numpy.save_file(dict(small.tensors), tmp_path / "t.safetensors")
    usual, stated = tmp_path / "usual.safetensors", tmp_path / "stated.safetensors"
    cli.ok("convert", tmp_path / "t.safetensors", usual)
    words = [
        "--set",
        "model.pool_padding=same",
        "--set",
        "preprocess.resize=300",
        "--set",
        "preprocess.mean=[1, 2, 3]",
    ]
    cli.ok("convert", tmp_path / "t.safetensors", stated, *words)
    out = cli.ok("convert", tmp_path / "t.safetensors", stated, *words, "--force").out
    assert (
        "naming scheme torch, inferred from names, shapes and flags, with torch's defaults for the rest"
        in out
    )
    one, two = load_weights(usual), load_weights(stated)
    assert two.spec == one.spec.replace(pool_padding="same")
    assert one.spec.pool_padding == "symmetric"
    assert two.preprocess == dataclasses.replace(one.preprocess, resize=300, mean=(1, 2, 3))


def test_a_dry_run_writes_nothing(cli: CommandLine, neutral: Path, small: Weights, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    for target in ("a.ckpt", "b.safetensors"):
        words = ["convert", neutral, tmp_path / target, "--to", "mindcv", "--dry-run"]
        assert f"was not written (dry run): {len(small.spec.tensors)} tensors" in cli.ok(*words).out
    assert sorted(tmp_path.iterdir()) == before


def test_the_report_of_a_way_between_two_worlds_names_both(
    cli: CommandLine, small: Weights, tmp_path: Path
) -> None:
    split = to_tensors(small, NAMINGS["modelzoo-split"])[0]
    write_ckpt(tmp_path / "split.ckpt", {**split, "global_step": np.array([3], np.int32)})
    result = cli.ok(
        "convert", tmp_path / "split.ckpt", tmp_path / "m.ckpt", "--to", "mindcv", "--json"
    ).json()
    changes = {c["source"][0]: c for c in result["changes"]}
    assert set(changes) >= {"global_step", "head.fc.bias"}
    assert sorted(n for c in result["changes"] for n in c["source"]) == sorted([*split, "global_step"])
    assert changes["head.fc.bias"]["target"] == ["classifier.bias"]
    assert changes["global_step"]["kind"] == "dropped"
    merged = [c for c in result["changes"] if c["kind"] == "merged"]
    assert {len(c["source"]) for c in merged} == {small.spec.groups}
    assert {c["target"][0] for c in merged} == {f"{b.name}.conv2.weight" for b in small.spec.blocks}
    result = cli.ok(
        "convert", tmp_path / "split.ckpt", tmp_path / "s.ckpt", "--to", "modelzoo-split", "--json"
    ).json()
    assert {c["kind"] for c in result["changes"]} == {"same", "dropped"}


def test_bfloat16_in_safetensors_is_widened_and_said(
    cli: CommandLine, small: Weights, tmp_path: Path
) -> None:
    """Written by hand, as NumPy has no such type."""
    header, data = {}, b""
    for name, array in small.tensors.items():
        half = (array.view(np.uint32) >> 16).astype("<u2").tobytes()
        offsets = [len(data), len(data) + len(half)]
        header[name] = {"dtype": "BF16", "shape": list(array.shape), "data_offsets": offsets}
        data += half
    text = json.dumps(header).encode()
    (tmp_path / "t.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    result = cli.ok("convert", tmp_path / "t.safetensors", tmp_path / "n.safetensors", "--json").json()
    assert {c["dtype"] for c in result["changes"]} == {"bfloat16"}
    made = load_weights(tmp_path / "n.safetensors")
    for name, array in small.tensors.items():
        assert np.array_equal(made.tensors[name].view(np.uint32), array.view(np.uint32) & 0xFFFF0000), name


def test_momentum_belongs_to_the_weights_and_not_to_their_average(
    cli: CommandLine, small: Weights, tmp_path: Path
) -> None:
    trained, average = small, weights_of(small.spec, seed=8)
    learned = {t.name: trained.tensors[t.name] * 2 for t in small.spec.tensors if t.trainable}
    tensors = {f"weights/{n}": a for n, a in trained.tensors.items()}
    tensors |= {f"ema/{n}": a for n, a in average.tensors.items()}
    tensors |= {f"momentum/{n}": a for n, a in learned.items()}
    save_checkpoint(
        tmp_path / "c", average, TrainState(tensors=tensors, scalars={}), RunProgress(step=5, epoch_closed=True),
        run={}, keep=1,
    )  # fmt: skip
    folder = tmp_path / "c" / "step-00000005"
    kept = cli.ok(
        "convert", folder, tmp_path / "k.ckpt", "--to", "modelzoo", "--moments", "keep", "--json"
    ).json()
    served = cli.ok("convert", folder, tmp_path / "d.ckpt", "--to", "modelzoo", "--json").json()
    assert (kept["digest"], served["digest"]) == (trained.digest, average.digest)


def test_moments_go_into_a_checkpoint_and_out_of_it(cli: CommandLine, small: Weights, tmp_path: Path) -> None:
    old = modelzoo_tensors(small)
    write_ckpt(tmp_path / "old.ckpt", old)
    cli.ok("convert", tmp_path / "old.ckpt", tmp_path / "state", "--moments", "keep")
    folder = tmp_path / "state" / "step-00000077"
    state = load_checkpoint(folder).state
    assert state.scalars["step"] == 77
    assert np.array_equal(state.tensors["momentum/fc.bias"], old["moments.head.fc.bias"])
    cli.ok("convert", folder, tmp_path / "new.ckpt", "--to", "modelzoo", "--moments", "keep")
    new = read_stored(tmp_path / "new.ckpt").tensors
    assert set(new) == {n for n in old if "backbone" in n or "head" in n}
    for name, array in new.items():
        assert array.tobytes() == old[name].tobytes(), name


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["{neutral}", "{dir}/x.bin"], EXIT_USAGE, "neutral weights are .safetensors files, not 'x.bin'"),
        (["{neutral}", "{dir}/x.ckpt"], EXIT_USAGE, "choose a naming scheme for .ckpt with --to"),
        (["{neutral}", "{dir}/x.safetensors", "--to", "torch"], EXIT_USAGE, "--any-padding"),
        (["{neutral}", "{dir}/x.safetensors", "--moments", "keep"], EXIT_USAGE, "has no momentum"),
        (["{neutral}", "{neutral}"], EXIT_USAGE, "already exists; choose another name or use --force"),
        (["{neutral}", "{neutral}", "--force"], EXIT_USAGE, "is both SOURCE and TARGET; choose another name"),
        (
            ["{neutral}", "{dir}/x.safetensors", "--variant", "resnext_tiny"],
            EXIT_USAGE,
            "has a manifest; drop --variant",
        ),
        (
            ["{dir}/old.ckpt", "{dir}/x.safetensors", "--set", "train.epochs=3"],
            EXIT_USAGE,
            "--set train.epochs=3: ",
        ),
        (
            ["{dir}/old.ckpt", "{dir}/x.safetensors", "--set", "preprocess.resize=3"],
            EXIT_USAGE,
            "is below the crop",
        ),
        (["{dir}/gone.ckpt", "{dir}/x.safetensors"], EXIT_DATA, "no model at"),
        (["{dir}/junk.ckpt", "{dir}/x.safetensors"], EXIT_DATA, "not a readable MindSpore checkpoint"),
        (["{dir}/junk.h5", "{dir}/x.safetensors"], EXIT_USAGE, "'junk.h5' has no known weights suffix"),
        (["{dir}/junk.pth", "{dir}/x.safetensors"], EXIT_USAGE, "pip install 'resnext-core[pth]'"),
        (["{neutral}", "{dir}/x.ckpt", "--to", "modelzoos"], EXIT_USAGE, "invalid choice"),
        (
            ["{dir}/old.ckpt", "{dir}/x.safetensors", "--variant", "resnxt50"],
            EXIT_USAGE,
            "unknown model variant",
        ),
        (
            ["{dir}/old.ckpt", "{dir}/x.safetensors", "--variant", "resnext50_32x4d"],
            EXIT_DATA,
            "does not fit: missing",
        ),
        (
            ["{dir}/old.ckpt", "{dir}/x.y", "--moments", "keep"],
            EXIT_USAGE,
            "TARGET must have no file extension",
        ),
        (["{dir}/old.ckpt", "/dev/null/x.safetensors"], EXIT_DATA, "cannot write"),
    ],
)
def test_bad_input_is_one_line(
    cli: CommandLine, neutral: Path, small: Weights, tmp_path: Path, words: list[str], code: int, says: str
) -> None:
    for name in ("junk.ckpt", "junk.h5", "junk.pth"):
        (tmp_path / name).write_bytes(b"junk")
    write_ckpt(tmp_path / "old.ckpt", modelzoo_tensors(small))
    before = neutral.read_bytes()
    outcome = cli("convert", *(w.format(neutral=neutral, dir=tmp_path) for w in words))
    assert outcome.code == code, outcome
    assert len(outcome.err.splitlines()) == 1
    assert says in outcome.err
    assert neutral.read_bytes() == before
    assert not (tmp_path / "x.safetensors").exists()


# -- starting from them ----------------------------------------------------------------------------------


@pytest.fixture
def tiny_train(photos: Path, recipe: Path, tmp_path: Path) -> list[object]:
    return [
        "train",
        "--recipe",
        recipe,
        "--data",
        photos,
        "--output",
        tmp_path,
        "--epochs",
        1,
        "--name",
        "run",
    ]


def first_weights(tmp_path: Path) -> Weights:
    return load_weights(tmp_path / "run" / "checkpoints" / "step-00000006" / "weights.safetensors")


def test_a_training_starts_from_pretrained_weights(
    cli: CommandLine, weights_file: Path, tiny_train: list[object], tmp_path: Path, tiny_weights: Weights
) -> None:
    out = cli.ok(*tiny_train, "--pretrained", weights_file, "--set", "optimizer.lr=0").out
    assert "its head is kept" in out
    trained = first_weights(tmp_path)
    for tensor in tiny_weights.spec.tensors:
        if tensor.trainable:
            assert np.array_equal(trained.tensors[tensor.name], tiny_weights.tensors[tensor.name])
    assert trained.origin["pretrained_digest"] == tiny_weights.digest


def test_other_classes_need_a_word_and_get_a_new_head(
    cli: CommandLine, tiny_train: list[object], tmp_path: Path, tiny_weights: Weights
) -> None:
    other = weights_of(tiny_weights.spec.replace(num_classes=9), seed=5)
    save_weights(other, tmp_path / "other.safetensors")
    words = [*tiny_train, "--pretrained", tmp_path / "other.safetensors", "--set", "optimizer.lr=0"]
    cli.refuses(EXIT_USAGE, *words[:-1], "train.epochs=1", says="--num-classes 6 replaces its head")
    words[words.index("run")] = "run2"
    out = cli.ok(*words, "--num-classes", 6).out
    assert "its head of 9 classes is replaced by a new one of 6" in out
    trained = load_weights(tmp_path / "run2" / "checkpoints" / "step-00000006" / "weights.safetensors")
    assert trained.tensors["fc.weight"].shape[0] == 6
    for tensor in trained.spec.tensors:
        if tensor.trainable and not tensor.role.startswith("fc_"):
            assert np.array_equal(trained.tensors[tensor.name], other.tensors[tensor.name]), tensor.name


def test_a_checkpoint_of_the_modelzoo_is_trained_on_with_its_momentum(
    cli: CommandLine, tiny_train: list[object], tmp_path: Path, tiny_weights: Weights
) -> None:
    """With lr 0 the weights stay and one step turns the momentum into m · v + g: v must have been there."""
    tensors = {f"weights/{n}": a for n, a in tiny_weights.tensors.items()}
    tensors |= {
        f"momentum/{t.name}": np.full(t.shape, 1e6, np.float32)
        for t in tiny_weights.spec.tensors
        if t.trainable
    }
    scalars = {"step": 3, "overflow_steps": 0, "loss_scale": 1.0, "good_steps": 0}
    folder = tmp_path / "old"
    save_checkpoint(
        folder, tiny_weights, TrainState(tensors=tensors, scalars=scalars), RunProgress(step=3, epoch_closed=True),
        run={}, keep=1,
    )  # fmt: skip
    words = [*tiny_train, "--pretrained", folder / "step-00000003", "--set", "optimizer.lr=0"]
    cli.ok(*words, "--set", "model.pretrained_momentum=true")
    state = load_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000006").state
    assert state.scalars["step"] == 6
    np.testing.assert_allclose(state.tensors["momentum/fc.bias"], 1e6 * 0.9**6, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--set", "model.variant=resnext50_32x4d"], "use --set model.variant=resnext_tiny"),
        (["--set", "model.pool_padding=symmetric"], "the networks differ; remove model.pool_padding"),
        (["--set", "preprocess.mean=[0, 0, 0]"], "a different preprocess.mean"),
        (["--num-classes", "7"], "model.num_classes is 7, but the training data has 6"),
    ],
)
def test_a_configuration_that_contradicts_the_file_is_refused(
    cli: CommandLine,
    weights_file: Path,
    tiny_train: list[object],
    change: list[str],
    says: str,
    tmp_path: Path,
) -> None:
    cli.refuses(EXIT_USAGE, *tiny_train, "--pretrained", weights_file, *change, says=says)
    assert not (tmp_path / "run").exists()


def test_preprocessing_that_differs_from_the_files_is_said(
    cli: CommandLine, weights_file: Path, tiny_train: list[object], tmp_path: Path
) -> None:
    same = cli.ok(*tiny_train, "--pretrained", weights_file).out
    assert "preprocessing by the configuration" not in same
    words = [*tiny_train[:-1], "other", "--set", "preprocess.mode=shorter-side"]
    out = cli.ok(*words, "--pretrained", weights_file).out
    assert "preprocessing by the configuration: mode shorter-side instead of squash" in out


def test_a_resumed_run_needs_its_pretrained_file_no_more(
    cli: CommandLine, weights_file: Path, tiny_train: list[object], tmp_path: Path
) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(weights_file.read_bytes())
    cli.ok(*tiny_train, "--pretrained", copy)
    copy.unlink()
    cli.ok("train", "--resume", tmp_path / "run", "--epochs", 2)


def test_foreign_weights_are_evaluated_as_they_are(
    cli: CommandLine, tiny_weights: Weights, photos: Path, tmp_path: Path
) -> None:
    """torch's names without manifest: the network is told by shapes, classes are the sorted folders."""
    path = tmp_path / "timm.safetensors"
    counters = {"bn1.num_batches_tracked": np.array(5)}
    safetensors.numpy.save_file({**tiny_weights.tensors, **counters}, path)
    save_weights(tiny_weights, tmp_path / "ours.safetensors")
    words = ["--data", photos, "--json", "--set", "data.workers=0"]
    same = ["--set", "model.image_size=8", "--set", "preprocess.mode=squash"]
    theirs = cli.ok("eval", "--weights", path, *words, *same).json()
    ours = cli.ok("eval", "--weights", tmp_path / "ours.safetensors", *words).json()
    assert theirs["confusion"] == ours["confusion"]
