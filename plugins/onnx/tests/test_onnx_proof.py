"""Artefacts in few bits: proven by validate, compared tightly where proven, and said not to be elsewhere."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_cases import make_weights, open_onnx, write
from PIL import Image
from proof_cases import manifest_of, proof_of, prove, write_int8
from resnext_onnx.artefact import add_proof, content_digest, read_artefact
from resnext_onnx.export import export_onnx
from resnext_onnx.ort_sessions import OrtRuntime

import resnext_core as rx
from resnext_core.cli.main import main
from resnext_core.errors import DataError
from resnext_core.interfaces import ExportRequest
from resnext_core.model.spec import model_spec
from resnext_core.model.weights import Weights, save_weights
from resnext_core.processor import processor
from resnext_core.serving.golden import synthetic_images
from resnext_core.serving.proof import TOLERANCE

SPEC = model_spec("resnext_tiny", stem="imagenet", image_size=36, num_classes=4)
HERE = processor().instructions


@pytest.fixture(scope="module")
def weights() -> Weights:
    return make_weights(SPEC)


@pytest.fixture(scope="module")
def made(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_int8(weights, tmp_path_factory.mktemp("int8") / "m.onnx")


@pytest.fixture
def artefact(made: Path, tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(made.read_bytes())
    return path


@pytest.fixture
def source(weights: Weights, tmp_path: Path) -> Path:
    save_weights(weights, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


@pytest.fixture
def data(weights: Weights, tmp_path: Path) -> Path:
    """Images with labels that the float network gives them, so that its top-1 is 1."""
    rng = np.random.default_rng(5)
    for name in weights.classes:
        (tmp_path / "data" / name).mkdir(parents=True)
    for number in range(24):
        pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        name = weights.classes[number % len(weights.classes)]
        Image.fromarray(pixels).save(tmp_path / "data" / name / f"{number}.png")
    return tmp_path / "data"


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_threads_and_batches_keep_the_bits_of_integers(artefact: Path) -> None:
    images = synthetic_images(8, SPEC.image_size)
    want = open_onnx(artefact, threads=1).logits(images)
    for threads, batch in ((1, 1), (2, 1), (2, 8), (3, 3)):
        served = open_onnx(artefact, threads=threads)
        got = np.concatenate([served.logits(images[i : i + batch]) for i in range(0, 8, batch)])
        assert np.abs(got - want).max() <= TOLERANCE * np.abs(want).max()


def test_a_proof_changes_nothing_but_the_metadata(artefact: Path) -> None:
    artefact.chmod(0o640)
    before, whole = read_artefact(artefact), onnx.load(artefact)
    prove(artefact, "avx2", proof_of(artefact))
    prove(artefact, "avx512-vnni", proof_of(artefact, 0.5))
    prove(artefact, "avx2", proof_of(artefact, 0.25))
    after = read_artefact(artefact)
    assert dict(after.manifest.proofs) == {
        "avx2": proof_of(artefact, 0.25), "avx512-vnni": proof_of(artefact, 0.5),
    }  # fmt: skip
    assert content_digest(after.data) == content_digest(before.data) == after.entry["content"]
    assert onnx.load(artefact).graph == whole.graph
    wanted = manifest_of(artefact)
    del wanted["artefact"]["proofs"], wanted["manifest_sha256"]
    former = json.loads({p.key: p.value for p in whole.metadata_props}["resnext"])
    del former["artefact"]["proofs"], former["manifest_sha256"]
    assert wanted == former
    assert stat.S_IMODE(artefact.stat().st_mode) == 0o640


def test_a_proof_is_not_written_into_another_file_than_was_compared(
    weights: Weights, artefact: Path, tmp_path: Path
) -> None:
    proof, compared = proof_of(artefact), read_artefact(artefact).manifest
    artefact.write_bytes(write_int8(make_weights(SPEC, seed=4), tmp_path / "other.onnx").read_bytes())
    before = artefact.read_bytes()
    with pytest.raises(DataError, match="has changed since it was opened; validate it again"):
        add_proof(artefact, "avx2", proof, compared)
    assert artefact.read_bytes() == before


def test_the_same_network_in_another_file_is_another_file(weights: Weights, tmp_path: Path) -> None:
    request = ExportRequest(precision="float16")
    path = tmp_path / "m.onnx"
    export_onnx(weights, path, request)
    proof, compared = proof_of(path), read_artefact(path).manifest
    export_onnx(weights, path, replace(request, batch_size=2))
    with pytest.raises(DataError, match="has changed since it was opened"):
        add_proof(path, "avx2", proof, compared)


def test_a_proof_that_came_meanwhile_is_no_change(artefact: Path) -> None:
    proof, compared = proof_of(artefact), read_artefact(artefact).manifest
    served = open_onnx(artefact)
    add_proof(artefact, "avx2", proof, compared)
    add_proof(artefact, "avx512", proof, compared)
    assert set(read_artefact(artefact).manifest.proofs) == {"avx2", "avx512"}
    assert served.logits_from_tensor(np.zeros((1, 3, 36, 36), np.float32)).shape == (1, 4)


def test_a_file_in_float32_takes_no_proof(weights: Weights, tmp_path: Path, artefact: Path) -> None:
    proof = proof_of(artefact)
    plain = write(weights, tmp_path / "plain.onnx")
    with pytest.raises(DataError, match="artefact has proofs and no compute"):
        prove(plain, "avx2", proof)


def _saved(weights: Weights, folder: Path) -> Path:
    save_weights(weights, folder / "w.safetensors")
    return folder / "w.safetensors"


@pytest.mark.parametrize("command", ["infer", "eval", "bench"])
def test_every_command_says_where_it_is_not_proven(
    artefact: Path, data: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {
        "infer": ["infer", "--weights", artefact, *sorted(data.rglob("*.png"))[:1]],
        "eval": ["eval", "--weights", artefact, "--data", data, "--set", "data.workers=0", "--json"],
        "bench": ["bench", "eval", "--weights", artefact, "--steps", "1", "--warmup", "0", "--json"],
    }[command]  # fmt: skip
    note = f"{artefact}: int8, not proven on {HERE}; to prove it here, run with these settings: resnext-run validate"
    assert run(*words) == 0
    outcome = capsys.readouterr()
    assert note in outcome.err
    if command == "eval":
        found = json.loads(outcome.out)
        assert found["precision"] == "int8"
        assert [line[: len(note)] for line in found["notes"]] == [note]
    prove(artefact, HERE, proof_of(artefact))
    assert run(*words) == 0
    outcome = capsys.readouterr()
    assert "proven" not in outcome.err
    if command == "eval":
        assert "notes" not in json.loads(outcome.out)


def test_python_warns_where_it_is_not_proven(artefact: Path) -> None:
    with pytest.warns(UserWarning, match=f"int8, not proven on {HERE}"):
        model = rx.load(artefact)
    assert model.precision == "int8"
    assert len(model.notes) == 1
    model.close()
    prove(artefact, HERE, proof_of(artefact))
    with rx.load(artefact) as model:
        assert model.notes == ()


def test_an_artefact_of_another_instruction_set_names_both(artefact: Path) -> None:
    prove(artefact, "other-set", proof_of(artefact, 1.0))  # not compared here
    with pytest.warns(UserWarning, match=f"int8, proven on other-set, not on {HERE}"):
        rx.load(artefact).close()


def test_what_does_not_hold_its_proof_is_not_served(
    artefact: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prove(artefact, HERE, proof_of(artefact, 2 * TOLERANCE))
    words = ["eval", "--weights", artefact, "--data", data, "--set", "data.workers=0"]
    assert run(*words) == 3
    said = capsys.readouterr().err
    assert f"gives wrong results on this machine: the logits of its proof on {HERE} are off by 0.0" in said
    assert "eval.self_check=false" in said
    assert said.count("\n") == 1
    assert run(*words, "--set", "eval.self_check=false") == 0


def validate_words(artefact: Path, source: Path, data: Path) -> list[str | Path]:
    return [
        "validate", "--artefact", artefact, "--weights", source, "--data", data, "--set", "data.workers=0",
    ]  # fmt: skip


def test_validate_proves_what_agrees(
    artefact: Path, source: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = validate_words(artefact, source, data)
    limits = ["--min-agreement", "0.5", "--max-drop", "100"]
    assert run(*words, *limits) == 0
    assert f"m.onnx: is now proven on {HERE}" in capsys.readouterr().out
    found = read_artefact(artefact).manifest.proofs[HERE]
    assert found.images == 24
    assert found.top1 is not None
    assert proof_of(artefact).logits == found.logits
    assert run(*words, *limits, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["precision"], result["proven"], result["unwritten"]) == ("int8", HERE, None)
    assert result["top1_agreement"] == found.top1_agreement
    assert result["tolerance"] is None
    assert result["agreement_interval"][0] < result["top1_agreement"]


def test_validate_refuses_what_does_not_agree(
    artefact: Path, source: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = validate_words(artefact, source, data)
    assert run(*words, "--tolerance", "1e-9") == 3
    outcome = capsys.readouterr()
    assert "m.onnx: FAILED" in outcome.out
    assert "logits differ by" in outcome.err
    assert outcome.err.count("\n") == 1
    assert not read_artefact(artefact).manifest.proofs
    for flag, value, said in (
        ("--min-agreement", "1.5", "--min-agreement must be a number from 0 to 1, not 1.5"),
        ("--max-drop", "-1", "--max-drop must be a number from 0 to 100, not -1.0"),
        ("--tolerance", "nan", "--tolerance must be a number from 0, not nan"),
    ):
        assert run(*words, flag, value) == 2
        assert said in capsys.readouterr().err


def test_a_proof_that_cannot_be_written_is_an_error_after_the_result(
    artefact: Path,
    source: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = validate_words(artefact, source, data)
    before = artefact.read_bytes()
    monkeypatch.setattr("resnext_onnx.artefact.os.access", lambda path, mode: False)
    assert run(*words, "--min-agreement", "0.5", "--max-drop", "100") == 3
    outcome = capsys.readouterr()
    assert "m.onnx: passed: 24 images" in outcome.out
    assert outcome.err == f"resnext-run: no proof was written: cannot write {artefact}: it is read-only\n"
    assert artefact.read_bytes() == before


def test_other_weights_prove_nothing(artefact: Path, data: Path, tmp_path: Path) -> None:
    other = _saved(make_weights(SPEC, seed=4), tmp_path)
    result = rx.validate(
        artefact, other, data, min_agreement=0.0, max_drop=100.0, overrides={"data.workers": 0}
    )
    assert result.passed
    assert result.proven is None
    assert "was made from other weights than" in (result.unwritten or "")


def test_sums_do_not_saturate_where_they_could(artefact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries: dict[str, str] = {}
    real = OrtRuntime.session.__globals__["onnxruntime"].SessionOptions

    class Noted(real):  # type: ignore[misc, valid-type]
        def add_session_config_entry(self, key: str, value: str) -> None:
            entries[key] = value
            super().add_session_config_entry(key, value)

    monkeypatch.setattr("resnext_onnx.ort_sessions.onnxruntime.SessionOptions", Noted)
    for instructions, want in (("avx2", {"session.x64quantprecision": "1"}), ("avx512-vnni", {})):
        entries.clear()
        monkeypatch.setattr(
            "resnext_onnx.ort_sessions.processor",
            lambda word=instructions: type(processor())(name="x", cores=1, instructions=word, bfloat16=False),
        )
        open_onnx(artefact)
        assert entries == want
