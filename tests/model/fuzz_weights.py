"""Mutated weights files through every reader: no crash, no hang, no memory, one line and exit code 3.

    python tests/model/fuzz_weights.py --count 100000

Every kind of file also goes through ``resnext-run convert``, with the manifest beside it and without.
A mutated neutral file may only load where it still says the same. A MindSpore checkpoint has no digest: one whose
numbers were changed loads as those numbers, so there only the strict check against the network is asked for.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib.util
import io
import json
import resource
import sys
import tempfile
import time
import tracemalloc
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from resnext_core.cli.main import main as command_line
from resnext_core.convert.ckpt import read_stored, write_ckpt
from resnext_core.convert.containers import BUILTIN
from resnext_core.convert.names import NAMINGS
from resnext_core.convert.pth import read_pth
from resnext_core.convert.reading import from_tensors
from resnext_core.convert.writing import to_tensors
from resnext_core.errors import EXIT_DATA, DataError, ResnextError
from resnext_core.model.init import random_weights
from resnext_core.model.preprocess import PreprocessSpec
from resnext_core.model.sidecar import sidecar_path
from resnext_core.model.spec import ModelSpec
from resnext_core.model.weights import (
    Golden,
    Weights,
    load_weights,
    parse_manifest,
    read_manifest_text,
    save_weights,
)

#: Beside the file's own size: what Python needs to parse a manifest and to say what is wrong.
OVERHEAD = 768 << 10
#: Seconds that no file may take.
LONGEST = 5.0
#: Every so manieth file is read under tracemalloc, which is slow.
MEASURED = 50


_WORDS = (b"9999999999", b"-1", b"1e999", b"null", b"[[[[[[", b'"', b"{}")


def small_weights() -> Weights:
    """Return a network of some 100 KB with everything that a manifest can hold."""
    spec = ModelSpec(
        variant="small",
        depths=(1, 1),
        groups=2,
        base_width=32,
        stem="cifar",
        stem_width=8,
        num_classes=3,
        image_size=8,
    )
    return Weights(
        spec=spec, preprocess=PreprocessSpec(size=8, resize=8), classes=("ant", "bee", "ç\n"),
        tensors=random_weights(spec, 1), origin={"made_by": "a fuzzer", "n": 1}, metrics={"top1": 0.5},
        golden=Golden(compute="float32", logits=((1.0, 2.0, 3.0),)),
    )  # fmt: skip


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Return `data` with bits flipped, bytes set, cut, doubled, inserted or a number made huge."""
    out = bytearray(data)
    head = min(len(out), 6000) if rng.random() < 0.7 else len(out)  # most of the structure is in front
    for _ in range(int(rng.integers(1, 4))):
        if not out:
            break
        at = int(rng.integers(0, max(min(head, len(out)), 1)))
        span = int(rng.integers(1, 40))
        choice = int(rng.integers(0, 8))
        if choice == 0:
            out[at] ^= 1 << int(rng.integers(0, 8))
        elif choice == 1:
            out[at] = int(rng.integers(0, 256))
        elif choice == 2:
            del out[at:]
        elif choice == 3:
            del out[at : at + span]
        elif choice == 4:
            out[at:at] = out[at : at + span]
        elif choice == 5:
            out[at:at] = rng.integers(0, 256, span, dtype=np.uint8).tobytes()
        elif choice == 6:
            out[at : at + 8] = b"\xff" * 8
        else:
            out[at : at + 1] = [b"9999999999", b"-1", b"1e999", b"null", b"[[[[[[", b'"', b"{}"][
                int(rng.integers(0, 7))
            ]
    return bytes(out)


class Fuzz:
    """Feeds mutated files to the readers and counts what came of it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.weights = small_weights()
        self.folder, self.rng = folder, np.random.default_rng(seed)
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.slowest, self.beyond = 0.0, 0
        neutral, ckpt = folder / "n.safetensors", folder / "c.ckpt"
        save_weights(self.weights, neutral)
        write_ckpt(ckpt, to_tensors(self.weights, NAMINGS["modelzoo"])[0])
        manifest = (read_manifest_text(neutral) or "").encode()
        self.kinds: list[tuple[str, bytes, Callable[[bytes], None]]] = [
            ("neutral", neutral.read_bytes(), self.neutral),
            ("manifest", manifest, self.manifest),
            ("ckpt", ckpt.read_bytes(), self.ckpt),
            ("convert neutral", neutral.read_bytes(), partial(self.convert, ".safetensors")),
        ]
        self.convert(".safetensors", neutral.read_bytes())  # imports what no later file shall be charged with
        beside = json.dumps(self.weights.manifest()).encode()
        for naming in NAMINGS.values():
            tensors = to_tensors(self.weights, naming, any_padding=True)[0]
            for container in BUILTIN:
                ending = container.suffixes[0]
                if ending not in naming.containers:
                    continue
                path = folder / f"seed{ending}"
                if naming.moments is not None:
                    trained = {n: a for n, a in tensors.items() if "moving" not in n}
                    momentum = {naming.moments + n: a * np.float32(0.5) for n, a in trained.items()}
                    tensors = {**tensors, **momentum, "global_step": np.array([7], np.int32)}
                container.write(path, tensors, naming.tag)
                data, name = path.read_bytes(), f"convert {naming.id}{ending}"
                self.kinds += [
                    (name, data, partial(self.convert, ending)),
                    (f"{name}, manifest", data, partial(self.convert, ending, beside=beside)),
                    (f"{name}, mutated manifest", beside, partial(self.convert, ending, file=data)),
                ]
                if ending == ".ckpt":
                    summed = data + b"crc_num" + zlib.crc32(data).to_bytes(10, "big")
                    self.kinds.append((f"{name}, checksum", summed, partial(self.convert, ending)))

        if importlib.util.find_spec("torch") is not None:
            self._add_torch()

    def _add_torch(self) -> None:
        """Add both of PyTorch's formats, with what training programs keep beside the weights."""
        import torch

        state = {name: torch.from_numpy(array.copy()) for name, array in self.weights.tensors.items()}
        beside = {
            "args": argparse.Namespace(lr=0.1, path=Path("x")), "metric": np.float64(0.5), "epoch": 3,
            "optimizer": {"state": {0: {"exp_avg": torch.ones(4, 4, dtype=torch.bfloat16)}}, "param_groups": []},
        }  # fmt: skip
        for zipped in (True, False):
            path = self.folder / "seed.pth"
            torch.save({"state_dict": state, **beside}, path, _use_new_zipfile_serialization=zipped)
            self.kinds.append((f"torch, {'zip' if zipped else 'legacy'}", path.read_bytes(), self.pth))

    def pth(self, data: bytes) -> None:
        path = self.folder / "m.pth"
        path.write_bytes(data)
        found = from_tensors(read_pth(path), path)
        assert found.weights.spec.tensors

    def neutral(self, data: bytes) -> None:
        path = self.folder / "m.safetensors"
        path.write_bytes(data)
        loaded = load_weights(path)
        assert loaded.manifest() == self.weights.manifest(), "a changed file passed for the original"

    def manifest(self, data: bytes) -> None:
        found = parse_manifest(data.decode(errors="replace"), where="m")
        assert json.dumps(found.classes)
        assert len(found.classes) == found.spec.num_classes

    def ckpt(self, data: bytes) -> None:
        path = self.folder / "m.ckpt"
        path.write_bytes(data)
        found = from_tensors(read_stored(path), path)
        assert found.weights.spec.tensors

    def convert(
        self, ending: str, data: bytes, *, beside: bytes | None = None, file: bytes | None = None
    ) -> None:
        """Convert `data`; with `file` that is the mutated manifest beside the file."""
        path = self.folder / f"m{ending}"
        path.write_bytes(data if file is None else file)
        if beside is not None or file is not None:
            sidecar_path(path).write_bytes(data if file is not None else beside or b"")
        out, err = io.StringIO(), io.StringIO()
        words = ["convert", str(path), str(self.folder / "target.safetensors"), "--dry-run", "--json"]
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = command_line(words)
        finally:
            sidecar_path(path).unlink(missing_ok=True)
        if code == EXIT_DATA:
            raise DataError(err.getvalue().removesuffix("\n").removeprefix("resnext-run: "))
        assert code == 0, (code, err.getvalue())
        if beside is not None or file is not None:
            digest = json.loads(out.getvalue())["digest"]
            assert digest == self.weights.digest, "other tensors passed for those of the manifest"

    def refused(self, name: str, error: ResnextError) -> None:
        line = str(error)
        assert error.exit_code == EXIT_DATA, line
        assert "\n" not in line, repr(line)
        assert len(line) < 2000, len(line)
        self.outcomes[f"{name}: {type(error).__name__}"] += 1

    def run(self, count: int) -> None:
        """Read `count` files, in turn of every kind; AssertionError on anything that must not be."""
        for number in range(count):
            name, data, read = self.kinds[number % len(self.kinds)]
            mutated = mutate(data, self.rng)
            measured = number // len(self.kinds) % MEASURED == 0
            if measured:
                tracemalloc.start()
            started = time.perf_counter()
            try:
                read(mutated)
                self.outcomes[f"{name}: loads"] += 1
            except ResnextError as error:
                self.refused(name, error)
            except Exception as error:
                kept = self.folder / f"crash-{number}-{name}"
                kept.write_bytes(mutated)
                raise AssertionError(f"{type(error).__name__}: {error}") from error
            self.slowest = max(self.slowest, time.perf_counter() - started)
            if measured:
                peak = tracemalloc.get_traced_memory()[1] - len(mutated)  # the copy that this function holds
                tracemalloc.stop()
                self.beyond = max(self.beyond, peak - 2 * len(mutated))
                assert peak <= 2 * len(mutated) + OVERHEAD, (
                    f"{name}: {peak} bytes for a file of {len(mutated)}"
                )
            assert self.slowest < LONGEST, f"{name} took {self.slowest} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(Path(folder), args.seed)
        fuzz.run(args.count)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{args.count} files in {time.perf_counter() - started:.0f} s, slowest {1000 * fuzz.slowest:.0f} ms, "
        f"allocations at most 2 × file + {fuzz.beyond / 1024:.0f} KiB, resident at most {peak:.0f} MiB"
    )
    for outcome, count in sorted(fuzz.outcomes.items()):
        print(f"{count:8} {outcome}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
