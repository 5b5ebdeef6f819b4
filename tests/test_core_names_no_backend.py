"""Core names no backend: the words of backends stand in the plugins, core learns them from records and metadata."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from resnext_core.plugins import load_plugins

ROOT = Path(__file__).parents[1]
CORE = ROOT / "resnext_core"

#: Frameworks, runtimes, vendors and what they call their devices, libraries and files.
FRAMEWORKS = {
    "mindspore", "torch", "pytorch", "torchscript", "onnx", "onnxruntime", "tensorflow", "tensorrt", "jax", "openvino",
    "ascend", "npu", "hccl", "cann", "acl", "nvidia", "gpu", "gpus", "cuda", "cudnn", "nccl", "mindir",
}  # fmt: skip
SUFFIXES = {".onnx", ".mindir", ".om", ".air", ".pth", ".pt"}
#: Ordinary words, suffixes of files that core reads or writes itself, and one that a shorter one finds.
ORDINARY = {
    "core",
    "reference",
    "example",
    "serve",
    ".safetensors",
    "safetensors",
    ".npz",
    "npz",
    ".bin",
    ".ckpt",
    ".pth.tar",
}

#: Where such words may stand, which ones, and why.
ALLOWED: dict[str, tuple[set[str], str]] = {
    "convert/": (
        {"mindspore", "torch", "pytorch", "torchscript", "ascend", "gpu", ".pth", ".pt"},
        "reads and writes the weights of other programs: their file formats and naming schemes",
    ),
    "cli/convert.py": ({".pth"}, "its examples are files of other programs"),
    "files/types.py": (
        {"torch", "pytorch", "mindspore", "mindir", "onnx", ".pth", ".pt", ".onnx", ".mindir"},
        "recognises files of other programs by their first bytes, to say what a wrongly named file is",
    ),
    "console/advice.py": ({"gpus"}, "what other programs call --devices, for a suggestion"),
    "testing/identity.py": (
        {"mindspore", "lite", "torch", "onnx", "onnxruntime", "tensorflow", "jax", "openvino"},
        "checks that no plugin imports a framework before a factory is called",
    ),
}


def words_of_backends() -> set[str]:
    """Return the fixed lists, the ids in this repository, and what the records of installed plugins say."""
    found = FRAMEWORKS | SUFFIXES
    for project in [*ROOT.glob("*/pyproject.toml"), *ROOT.glob("plugins/*/pyproject.toml")]:
        entries = project.read_text(encoding="utf-8").partition("[project.entry-points.resnext]\n")[2]
        found |= set(re.findall(r"^([\w-]+) = ", entries.partition("\n[")[0], re.MULTILINE))
    plugins = load_plugins()
    for backend in plugins.backends.values():
        found |= {backend.id, *backend.formats, *backend.exporters, *backend.packages}
    return {word.lower() for word in found | set(plugins.weight_files)} - ORDINARY


def pattern(words: set[str]) -> re.Pattern[str]:
    """Return what finds whole words, also between underscores and digits; a dash in a word may be an underscore."""
    plain = [re.escape(word).replace(r"\-", "[-_]") for word in sorted(words, key=len, reverse=True)]
    starts = ["" if word.startswith("\\.") else "(?<![a-z])" for word in plain]
    return re.compile(
        "|".join(f"{start}{word}(?![a-z])" for start, word in zip(starts, plain, strict=True)), re.I
    )


def allowed_in(name: str) -> tuple[str, set[str]]:
    """Return the entry of the list of exceptions that a file falls under, and its words; '' and none otherwise."""
    return next(
        ((place, words) for place, (words, _) in ALLOWED.items() if name.startswith(place)), ("", set())
    )


@pytest.fixture(scope="module")
def hits() -> list[tuple[str, int, str, str]]:
    """File, line number, word and line of every word in what core ships: code, comments, strings, recipes, pages."""
    search = pattern(words_of_backends())
    return [
        (path.relative_to(CORE).as_posix(), number, match[0].lower(), line.strip())
        for path in sorted(CORE.rglob("*"))
        if path.suffix in {".py", ".yaml", ".j2", ".css", ".js"}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for match in search.finditer(line)
    ]


def test_core_names_no_backend(hits: list[tuple[str, int, str, str]]) -> None:
    wrong = [
        f"{name}:{number}: '{word}' in: {line}"
        for name, number, word, line in hits
        if word not in allowed_in(name)[1]
    ]
    assert not wrong, "core names a backend:\n" + "\n".join(wrong)


def test_every_exception_is_needed(hits: list[tuple[str, int, str, str]]) -> None:
    for place, (words, reason) in ALLOWED.items():
        assert reason
        unused = words - {word for name, _, word, _ in hits if allowed_in(name)[0] == place}
        assert not unused, f"{place} needs no exception for {', '.join(sorted(unused))}"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import torch", True), ("on two GPUs", True), ("_ONNX = 3", True), ("torch2ms", True), ("model.onnx", True),
        ("cpp_infer", True), ("cpp-infer", True), ("'x.om'", True), ("ascend910", True),
        ("torchrun starts ranks", False), ("descend, then ascending", False), ("some.omission", False),
        ("a reference", False), ("optimizer", False),
    ],
)  # fmt: skip
def test_the_search_finds_words_and_no_parts_of_them(text: str, found: bool) -> None:
    assert bool(pattern(FRAMEWORKS | SUFFIXES | {"cpp-infer"}).search(text)) is found
