"""What must not be trusted: damaged models, manifests, frames, and paths that are no regular files."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import stat
import struct
import subprocess
import termios
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpp_cases import Done, manifest, null_model
from images import class_tree
from resnext_cpp_infer.program import onnxruntime_library

from resnext_core.errors import DataError
from resnext_core.interfaces import ExportRequest, PredictRequest
from resnext_core.model.init import random_weights
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.spec import model_spec
from resnext_core.model.weights import MANIFEST_KEY, Golden, Weights, parse_manifest, sealed
from resnext_core.plugins import load_plugins
from resnext_core.ranks.info import RankInfo
from resnext_core.serving.golden import make_golden

Infer = Callable[..., Done]
SPEC = PreprocessSpec(size=16, resize=18)
CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_tree(tmp_path_factory.mktemp("data"), per_class=1, side=20)


@pytest.fixture
def model(tmp_path: Path) -> list[object]:
    return null_model(tmp_path, SPEC, CLASSES)


# -- damaged models ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> Weights:
    """A small network with golden logits, as training writes them."""
    spec = model_spec("resnext_tiny", num_classes=3, image_size=16, stem_width=4, groups=2)
    weights = Weights(spec=spec, preprocess=SPEC, classes=CLASSES, tensors=random_weights(spec, 3))
    reference = load_plugins().backends["reference"].predictor
    assert reference is not None
    predictor = reference(PredictRequest(weights=weights, rank=RankInfo()))
    return weights.replace(golden=make_golden(predictor, spec, "float32"))


@pytest.fixture(scope="module")
def onnx_file(network: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnx")
    export = pytest.importorskip("resnext_onnx.export")
    if onnxruntime_library() is None:
        pytest.skip("onnxruntime is not installed")
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    export.export_onnx(network, path, ExportRequest())
    return Path(path)


def edited(source: Path, target: Path, change: Callable[[dict[str, Any]], Any], *, seal: bool = True) -> Path:
    """Write an ONNX file with another manifest."""
    import onnx

    proto = onnx.load(source)
    (entry,) = (p for p in proto.metadata_props if p.key == MANIFEST_KEY)
    value = json.loads(entry.value)
    del value["manifest_sha256"]
    change(value)
    entry.value = sealed(value) if seal else json.dumps(value)
    onnx.save(proto, target)
    return target


def test_a_file_that_preprocesses_is_refused(
    infer: Infer, network: Weights, onnx_file: Path, data: Path, tmp_path: Path
) -> None:
    export = pytest.importorskip("resnext_onnx.export")
    path = tmp_path / "image.onnx"
    export.export_onnx(network, path, ExportRequest(input="image"))
    done = infer(*onnx_words(path, data))
    assert (done.code, done.out, done.err.count("\n")) == (4, "", 1)
    assert "it contains its preprocessing (export.input=image)" in done.err
    assert "export it with export.input=uint8" in done.err


def onnx_words(path: Path, data: Path) -> list[object]:
    return ["--model", path, "--runtime", onnxruntime_library(), "--data", data, "--quiet"]


def test_no_flipped_bit_gives_other_logits(infer: Infer, onnx_file: Path, data: Path, tmp_path: Path) -> None:
    """64 bits over the whole file: its head, graph, constants and manifest."""
    whole = onnx_file.read_bytes()
    assert infer(*onnx_words(onnx_file, data), "--logits", tmp_path / "right.npy").code == 0
    right = np.load(tmp_path / "right.npy")
    manifest_at = whole.index(b'{"format"')
    places = [*np.linspace(0, len(whole) - 1, 40, dtype=int), *range(12)]
    places += np.linspace(manifest_at, len(whole) - 1, 12, dtype=int).tolist()

    def refused(number: int) -> bool:
        spoilt = bytearray(whole)
        spoilt[places[number]] ^= 1 << number % 8
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(spoilt)
        done = infer(*onnx_words(path, data), "--logits", tmp_path / f"{number}.npy")
        if done.code == 0:
            assert np.array_equal(np.load(tmp_path / f"{number}.npy"), right), places[number]
            return False
        assert (done.code, done.err.count("\n")) == (3, 1), (places[number], done)
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(refused, range(len(places)))) >= 60
    path = tmp_path / "cut.onnx"
    for length in (len(whole) - 1, len(whole) // 2, 20):
        path.write_bytes(whole[:length])
        done = infer(*onnx_words(path, data))
        assert (done.code, done.err.count("\n"), done.out) == (3, 1, ""), length


def test_a_network_that_is_computed_wrongly_is_not_served(
    infer: Infer, onnx_file: Path, data: Path, tmp_path: Path
) -> None:
    """Golden logits that are off by a thousandth of the largest, in a file whose digests are right."""

    def spoil(value: dict[str, Any]) -> None:
        rows = np.array(value["golden"]["logits"])
        rows[0, 0] += 1e-3 * np.abs(rows).max()
        value["golden"]["logits"] = rows.tolist()

    path = edited(onnx_file, tmp_path / "m.onnx", spoil)
    done = infer(*onnx_words(path, data))
    assert (done.code, done.out, done.err.count("\n")) == (3, "", 1)
    assert (
        "gives wrong results on this machine: its golden logits are off by 0.001 of the largest" in done.err
    )
    assert infer(*onnx_words(path, data), "--self-check", "digest").code == 0
    done = infer("--model", path, "--runtime", onnxruntime_library(), "--stream")
    assert done.code == 3, "also before it serves frames"

    def half(value: dict[str, Any]) -> None:
        spoil(value)
        value["golden"]["compute"] = "bfloat16"

    assert infer(*onnx_words(edited(onnx_file, path, half), data)).code == 0, (
        "rounding of 16 bits explains it"
    )


def test_what_was_checked_is_in_the_summary_and_what_was_not_is_said(
    infer: Infer, onnx_file: Path, data: Path, tmp_path: Path
) -> None:
    def check(path: Path, *more: object) -> tuple[dict[str, Any], str]:
        done = infer(*onnx_words(path, data), "--summary", tmp_path / "s.json", *more)
        assert done.code == 0, done
        return json.loads((tmp_path / "s.json").read_text())["self_check"], done.err

    found, err = check(onnx_file)
    assert found["content"] is True
    assert 0 <= found["golden"] <= 1e-5
    assert err == ""
    assert check(onnx_file, "--self-check", "off") == ({"content": False, "golden": None}, "")
    path = tmp_path / "m.onnx"
    found, err = check(edited(onnx_file, path, lambda m: m.pop("golden")))
    assert found == {"content": True, "golden": None}
    assert err.endswith("has no golden logits: its results on this machine were not checked\n")
    old = edited(onnx_file, path, lambda m: m["artefact"].pop("content"), seal=False)
    found, err = check(old)
    assert found["content"] is False
    assert found["golden"] <= 1e-5
    assert "has no digest of its graph" in err
    assert err.count("\n") == 1


def test_a_graph_that_another_tool_changed_is_refused_unless_asked_for(
    infer: Infer, onnx_file: Path, data: Path, tmp_path: Path
) -> None:
    import onnx

    proto = onnx.load(onnx_file)
    proto.graph.doc_string = "touched"
    onnx.save(proto, tmp_path / "m.onnx")
    done = infer(*onnx_words(tmp_path / "m.onnx", data))
    assert (done.code, done.err.count("\n")) == (3, 1)
    assert "is damaged, or another tool changed it" in done.err
    assert infer(*onnx_words(tmp_path / "m.onnx", data), "--self-check", "off").code == 0


def test_python_and_the_program_compute_one_digest(onnx_file: Path, network: Weights) -> None:
    artefact = pytest.importorskip("resnext_onnx.artefact")
    value = artefact.read_artefact(onnx_file)
    assert value.entry["content"] == artefact.content_digest(value.data)


# -- manifests -----------------------------------------------------------------------------------


def base_manifest() -> dict[str, Any]:
    value = manifest(SPEC, CLASSES)
    value["golden"] = Golden(compute="float32", logits=((0.5, 1, -2e-3), (1, 2, 3))).to_dict()
    value["named_classes"] = True
    value["origin"], value["metrics"] = {"made": "here", "list": [1, None, True]}, {"top1": 0.5}
    return value


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value inside, those of origin and metrics aside."""
    found = [path] if path else []
    if isinstance(value, (dict, list)) and path[:1] not in (("origin",), ("metrics",)):
        for key in value if isinstance(value, dict) else range(len(value)):
            found += places(value[key], (*path, key))
    return found


OTHERS: list[Any] = [
    None, True, False, 0, 1, -1, 1.0, 1.5, 2, 8192, 8193, 10**6, 10**30, 1e300, -1e7, 1e-9, "", "x", "1", "RGB", "same",
    "sha256:" + "0" * 64, "sha256:" + "G" * 64, "SHA256:" + "0" * 64, [], [1], [1, 2, 3], [0.5, 0.5, True],
    ["a", "b", "c"], ["ant", "ant", "ant"], [[1, 2, 3]], [[1, 2, 3]] * 9, [[1, 2]], {}, {"a": 1}, "abc",
    "\u00fc\U0001f600",
]  # fmt: skip


def of_few_bits(base: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the manifest of an artefact in 8 bits with two proofs, and ones that are changed in one place each."""
    proof = {"logits": [[1, 2.5, 3]], "images": 100, "top1_agreement": 1, "top1": 0.9, "top1_source": 0.91}
    bare = {key: proof[key] for key in ("logits", "images", "top1_agreement")}
    good = base | {
        "golden": base["golden"] | {"compute": "int8"},
        "artefact": {"compute": "int8", "proofs": {"avx2": proof, "avx512-vnni": bare}},
    }
    found = [good, base | {"artefact": {"proofs": {}}}, base | {"artefact": {"compute": "int8"}}]
    no_golden = {key: value for key, value in good.items() if key != "golden"}
    found += [no_golden, good | {"golden": base["golden"]}]
    for compute in ("float16", "bfloat16", "float32", "int4", "", None, 8):
        changed = {"golden": good["golden"] | {"compute": compute}, "artefact": {"compute": compute}}
        found.append(good | changed)
    for name in ("", "AVX2", "avx2 ", "avx2\n", "-x", "x" * 40, "x" * 41, "a_b.c-d", "\u00fc"):
        found.append(good | {"artefact": {"compute": "int8", "proofs": {name: bare}}})
    for number in (32, 33):
        proofs = {f"x{i}": bare for i in range(number)}
        found.append(good | {"artefact": {"compute": "int8", "proofs": proofs}})
    for proofs in (None, [], 1, {"avx2": None}, {"avx2": []}, {"avx2": {}}, {"avx2": proof | {"more": 1}}):
        found.append(good | {"artefact": {"compute": "int8", "proofs": proofs}})
    for name in proof:
        wrong: list[Any] = [proof | {name: other} for other in OTHERS]
        wrong.append({key: value for key, value in proof.items() if key != name})
        for value in (*wrong, proof | {name: 10**9}, proof | {name: 10**9 + 1}, proof | {name: -0.0}):
            found.append(good | {"artefact": {"compute": "int8", "proofs": {"avx2": value}}})
    return found


def mutated() -> list[str]:
    """Return manifests that are changed in one place each; the same ones every time."""
    rng = np.random.default_rng(26)
    base = base_manifest()
    texts = [json.dumps(base), json.dumps(base, indent=2), sealed(base), f" {sealed(base)}\n"]
    for where in places(base):
        for other in rng.choice(len(OTHERS), 4, replace=False):
            value = json.loads(json.dumps(base))
            *above, last = where
            holder: Any = value
            for key in above:
                holder = holder[key]
            holder[last] = OTHERS[other]
            texts.append(json.dumps(value))
        value = json.loads(json.dumps(base))
        holder = value
        for key in where[:-1]:
            holder = holder[key]
        del holder[where[-1]]
        texts.append(json.dumps(value))
    for where in ((), ("model",), ("preprocess",), ("golden",), ("origin",), ("artefact",)):
        value = json.loads(json.dumps(base))
        holder = value
        for key in where:
            holder = holder.setdefault(key, {})
        holder["unknown"] = 1
        texts.append(json.dumps(value))
    text = json.dumps(base)
    for old, new in (
        ('"size": 16', '"size": 16, "size": 16'), ('"format": 1', '"format": 1, "format": 1'),
        ('"format": 1', '"format": 1.0'), ('"format": 1', '"format": 1e0'), ('"format": 1', '"format": 01'),
        ('"resize": 18', '"resize": 18.0'), ('"resize": 18', '"resize": NaN'), ('"resize": 18', '"resize": -18'),
        ('"made": "here"', '"made": NaN'), ('"made": "here"', '"made": Infinity'), ('"made": "here"', '"made": 1e999'),
        ('"made": "here"', '"made": 1e-999'), ('"made": "here"', '"made": ' + "9" * 400),
        ('"made": "here"', '"made": ' + "[" * 62 + "]" * 62), ('"made": "here"', '"made": ' + "[" * 63 + "]" * 63),
        ('"made": "here"', '"made": ' + "[" * 64 + "]" * 64), ('"made": "here"', '"made": "\\ud800"'),
        ('"made": "here"', '"made": "\\udc80"'), ('"made": "here"', '"made": "\\ude00"'),
        ('"made": "here"', '"made": "\\ud83d\\ude00"'), ('"made": "here"', '"made": "\\ud83dx"'),
        ('"made": "here"', '"made": "\\x"'), ('"made": "here"', '"made": "\t"'), ('"made": "here"', '"made": \'x\''),
        ('"made": "here"', '"made": 0x10'), ('"made": "here"', '"made": 1.'), ('"made": "here"', '"made": .5'),
        ('"made": "here"', '"made": +1'), ('"made": "here"', '"made": -0'), ('"made": "here"', '"made": true,'),
        ('"ant"', '"\\ud800"'), ('"ant"', '"a\\u0000"'), ('"ant"', '"\\udcff"'), ('"mode"', '"m\\u006fde"'),
        ('[123.675, 116.28, 103.53]', '"123"'), ('[123.675, 116.28, 103.53]', '["1", "2", "3"]'),
        ('[123.675, 116.28, 103.53]', "[1, 2, 3]"), ('[123.675, 116.28, 103.53]', "[1000001, 2, 3]"),
        ('[58.395, 57.12, 57.375]', "[1e-7, 1, 1]"), ('[58.395, 57.12, 57.375]', "[1e-6, 1, 1000000]"),
    ):  # fmt: skip
        assert old in text, old
        texts.append(text.replace(old, new, 1))
    texts += [
        "",
        " ",
        "{}",
        "[]",
        "null",
        "1",
        '"x"',
        text[:-1],
        text + "x",
        text + " \n",
        "\ufeff" + text,
        text + "\f",
    ]
    seal = sealed(base)
    texts += [seal.replace('"ant"', '"amt"'), seal.replace("manifest_sha256", "manifest_sha257")]
    texts += [
        seal[:-3] + ('0"}' if seal[-3] != "0" else '1"}'),
        seal.replace(": ", ":"),
        json.dumps(json.loads(seal), indent=1),
    ]
    for value in ("ignore", "apply", "turn", None, True, 6):
        texts.append(json.dumps(base | {"preprocess": base["preprocess"] | {"orientation": value}}))
    for value in ("bicubic", "lanczos"):
        texts.append(json.dumps(base | {"preprocess": base["preprocess"] | {"filter": value}}))
    texts += [json.dumps(value) for value in of_few_bits(base)]
    content = base | {"artefact": {"content": "sha256:" + "0" * 64}}
    texts += [json.dumps(content), sealed(content), sealed(base | {"artefact": {"content": "x"}})]
    return texts


def test_python_and_the_program_take_the_same_manifests(infer: Infer, tmp_path: Path) -> None:
    texts = mutated()
    assert len(texts) > 230
    (tmp_path / "m").mkdir()

    def taken(number: int) -> tuple[bool, bool, str]:
        (tmp_path / "m" / f"{number}.json").write_text(texts[number], encoding="utf-8")
        done = infer("--model", tmp_path / "m" / str(number), "--engine", "null", "--print-manifest")
        assert done.code in (0, 3, 4), done
        assert done.err.count("\n") == (done.code != 0), done
        try:
            parse_manifest(texts[number], where="x")
        except DataError as error:
            return False, done.code == 0, f"{error} / {done.err}"
        return True, done.code == 0, f"taken / {done.err}"

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(taken, range(len(texts))))
    differ = [(texts[i][:600], said) for i, (ours, theirs, said) in enumerate(found) if ours != theirs]
    assert not differ, f"{len(differ)} of {len(texts)}, e.g. {differ[:3]}"
    assert 20 < sum(ours for ours, _, _ in found) < len(texts) // 2


# -- paths ---------------------------------------------------------------------------------------


def test_devices_and_pipes_are_written_into_and_stay(
    infer: Infer, model: list[object], data: Path, tmp_path: Path
) -> None:
    for flag in ("--output", "--summary", "--logits", "--pixels"):
        pipe = tmp_path / f"pipe{flag}"
        os.mkfifo(pipe)
        got: list[bytes] = []
        reader = threading.Thread(target=lambda p=pipe, g=got: g.append(p.read_bytes()))
        reader.start()
        done = infer(*model, "--data", data, flag, pipe)
        reader.join()
        assert done.code == 0, (flag, done)
        assert stat.S_ISFIFO(pipe.stat().st_mode), flag
        assert len(got[0]) > 100, flag
        infer(*model, "--data", data, flag, tmp_path / "plain")
        if flag != "--summary":  # which has times
            assert got[0] == (tmp_path / "plain").read_bytes(), flag
    ours, theirs = pty.openpty()
    device = os.ttyname(theirs)
    done = infer(*model, "--data", data, "--summary", device)
    assert done.code == 0, done
    assert stat.S_ISCHR(os.stat(device).st_mode)
    assert b'"expected": 3' in os.read(ours, 10_000)
    os.close(ours)
    os.close(theirs)
    done = infer(*model, "--data", data, "--output", "/dev/stdout")
    assert (done.code, done.out.count("\n")) == (0, 3)
    assert not list(tmp_path.glob("*.partial"))


def test_an_open_file_is_added_to_by_its_name(
    program: Path, model: list[object], data: Path, tmp_path: Path
) -> None:
    (tmp_path / "log").write_text("before\n")
    words = [program, *map(str, model), "--data", data, "--output", "/dev/stdout"]
    with (tmp_path / "log").open("a") as stream:
        subprocess.run(words, stdout=stream, check=True)
    assert (tmp_path / "log").read_text().startswith("before\n{")


def test_links_stay_and_a_replaced_file_keeps_its_mode(
    infer: Infer, model: list[object], data: Path, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    target = tmp_path / "there" / "file"
    target.write_text("old")
    target.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(target, 1234, 1234)
    (tmp_path / "link").symlink_to("there/file")
    (tmp_path / "second").symlink_to("link")
    (tmp_path / "dangling").symlink_to(tmp_path / "there" / "new")
    (tmp_path / "loop").symlink_to("loop")
    assert infer(*model, "--data", data, "--output", tmp_path / "second").code == 0
    assert (tmp_path / "second").is_symlink()
    assert (tmp_path / "link").is_symlink()
    assert target.read_text().count("\n") == 3
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    if os.geteuid() == 0:
        assert (target.stat().st_uid, target.stat().st_gid) == (1234, 1234)
    assert infer(*model, "--data", data, "--summary", tmp_path / "dangling").code == 0
    assert (tmp_path / "dangling").is_symlink()
    assert json.loads((tmp_path / "there" / "new").read_text())["expected"] == 3
    for path in (tmp_path / "loop", tmp_path / "there", tmp_path / "no" / "x", tmp_path / ("n" * 300)):
        done = infer(*model, "--data", data, "--output", path)
        assert (done.code, done.err.count("\n")) == (3, 1), path
        assert f"cannot write {path}" in done.err
    long = tmp_path / ("n" * 250)
    assert infer(*model, "--data", data, "--output", long).code == 0
    assert long.exists()
    assert {p.name for p in (tmp_path / "there").iterdir()} == {"file", "new"}


def test_two_flags_for_one_file_and_a_flag_for_what_is_read(
    infer: Infer, model: list[object], data: Path, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text("x.png ant\n")
    (tmp_path / "link").symlink_to("out")
    same = [
        (["--output", tmp_path / "out", "--logits", tmp_path / "out"], "is the file of --output"),
        (["--output", tmp_path / "out", "--summary", tmp_path / "link"], "is the file of --output"),
        (["--output", tmp_path / "out", "--summary", tmp_path / "." / "out"], "is the file of --output"),
        (["--output", tmp_path / "model.bin.json"], "which is read"),
        (["--labels", tmp_path / "list.txt", "--pixels", tmp_path / "list.txt"], "which is read"),
    ]
    before = (tmp_path / "model.bin.json").read_bytes()
    for words, says in same:
        done = infer(*model, "--data", data, *words)
        assert (done.code, done.err.count("\n")) == (2, 1), done
        assert says in done.err
    assert (tmp_path / "model.bin.json").read_bytes() == before
    assert not (tmp_path / "out").exists()


def test_an_address_is_no_path(infer: Infer, model: list[object], data: Path) -> None:
    url = "https://example.org/m.onnx"
    for words in (
        ["--model", url, "--data", data],
        [*model, "--data", url],
        [*model, "--data", data, f"--output={url}"],
    ):
        done = infer(*words)
        assert done.code == 2
        assert (
            done.err == f"resnext-infer: '{url}' is a URL, not a file; download it first and give its path\n"
        )


def test_a_loop_of_links_is_no_model(infer: Infer, data: Path, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").symlink_to("m.onnx")
    done = infer("--model", tmp_path / "m.onnx", "--data", data)
    assert (done.code, done.err) == (3, f"resnext-infer: no such model: {tmp_path / 'm.onnx'}\n")


def test_names_in_messages_are_one_line(infer: Infer, model: list[object]) -> None:
    done = infer(*model, "--data", b"a\x1b[31m\n\xff\xc2\x9bb".decode("utf-8", "surrogateescape"))
    assert done.err == "resnext-infer: there is no data at a\\x1b[31m\\x0a\\xff\\x9bb\n"


# -- standard output -----------------------------------------------------------------------------


def test_standard_output_that_takes_nothing_is_one_line(
    program: Path, model: list[object], data: Path, tmp_path: Path
) -> None:
    closed, end = os.pipe()
    os.close(closed)
    commands = [
        ["--help"],
        ["--version"],
        ["--list-engines"],
        [*model, "--print-manifest"],
        [*model, "--data", data],
    ]
    with open("/dev/full", "wb") as full:
        for words in commands:
            for where, says in ((full, "No space left on device"), (end, "Broken pipe")):
                done = subprocess.run(
                    [program, *map(str, words)], stdout=where, stderr=subprocess.PIPE, text=True, check=False
                )
                assert done.returncode == 3, (words, done)
                assert done.stderr == f"resnext-infer: cannot write standard output: {says}\n"
    os.close(end)
    shell = ["sh", "-c", '"$@" >&-', "sh", str(program), *map(str, model), "--data", str(data), "--logits"]
    done = subprocess.run([*shell, str(tmp_path / "l.npy")], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 3
    assert "cannot write standard output: Bad file descriptor" in done.stderr
    words = [str(program), *map(str, model), "--data", str(data), "--output", str(tmp_path / "o")]
    subprocess.run(["sh", "-c", '"$@" >&-', "sh", *words], check=True)
    assert len((tmp_path / "o").read_text().splitlines()) == 3


# -- frames and signals --------------------------------------------------------------------------


@pytest.fixture
def stream(program: Path, model: list[object]) -> Any:
    """The program, which has sent its manifest and waits for a frame."""
    process = subprocess.Popen(
        [program, *map(str, model), "--stream"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    head = process.stdout.read(5)
    process.stdout.read(struct.unpack("<I", head[1:])[0])
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("sent", [b"", b"I", b"I\x04\x03\x00\x00\x01\x00"], ids=["none", "head", "payload"])
def test_the_first_signal_ends_a_wait_for_a_frame(stream: Any, number: signal.Signals, sent: bytes) -> None:
    stream.stdin.write(sent)
    stream.stdin.flush()
    stream.send_signal(number)
    assert stream.wait(timeout=300) == 75
    assert stream.stderr.read() == b"resnext-infer: stopped while waiting for a frame\n"


def test_a_frame_is_taken_as_it_arrives_and_no_larger_than_images_are(stream: Any) -> None:
    def peak() -> int:
        status = Path(f"/proc/{stream.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))

    before = peak()
    stream.stdin.write(b"I" + struct.pack("<I", (64 << 20) + 4))  # announced, and one byte of it comes
    stream.stdin.write(b"\x01")
    stream.stdin.flush()
    while struct.unpack("i", fcntl.ioctl(stream.stdin, termios.FIONREAD, bytes(4)))[0]:
        assert stream.poll() is None
    assert peak() - before < 32 << 10
    stream.terminate()
    assert stream.wait(timeout=300) == 75


def test_a_frame_beyond_the_limit_ends_it(program: Path, model: list[object]) -> None:
    words = [program, *map(str, model), "--stream"]
    for length in ((64 << 20) + 5, (1 << 31) - 1, (1 << 32) - 1):
        done = subprocess.run(
            words, input=b"I" + struct.pack("<I", length), capture_output=True, timeout=300, check=False
        )
        assert done.returncode == 3
        assert done.stderr.startswith(
            f"resnext-infer: a frame announces {length} bytes; the limit is ".encode()
        )


def catches(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    (mask,) = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(mask >> (number - 1) & 1)


def test_a_signal_ends_a_wait_for_the_reader_of_a_pipe(
    program: Path, model: list[object], data: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    words = [program, *map(str, model), "--data", data, "--output", tmp_path / "pipe"]
    process = subprocess.Popen(list(map(str, words)), stderr=subprocess.PIPE)
    while not catches(process.pid, signal.SIGTERM):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 75
    assert process.stderr is not None
    process.stderr.close()
