"""Install each extra from the wheels in dist/ into a fresh environment, use it, uninstall it: ``make test-wheels``.

In every environment `doctor` must check the backends of the extra by their golden logits, a small job of the extra must
end well, and after the uninstallation no file of ours may be left. The environment has a home and a cache of its own;
only pip's cache is shared. What the packages depend on comes from the index that pip is configured for.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import version

SAMPLES = version.ROOT / "tests" / "compatibility" / "0.1.0"
TRAIN = ["run", "--recipe", "tiny.yaml", "--output", "made"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """An environment with one extra: its folder, and the words that name where to install from."""

    folder: Path
    variables: dict[str, str]

    @property
    def venv(self) -> Path:
        return self.folder / "venv"

    def run(self, *words: str) -> str:
        """Run a program of the environment in `folder`; return its output; exit where it fails."""
        program = self.venv / "bin" / words[0]
        done = subprocess.run(
            [str(program), *words[1:]], cwd=self.folder, env=self.variables, text=True, capture_output=True, check=False
        )  # fmt: skip
        if done.returncode != 0:
            sys.exit(
                f"'{' '.join(words)}' ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
            )
        return done.stdout

    def resnext(self, *words: str) -> str:
        """Run resnext-run."""
        return self.run("resnext-run", *words)

    def ours(self) -> list[str]:
        """Return the files and folders of the environment that are ours, by their names."""
        return sorted(
            str(p.relative_to(self.venv))
            for p in self.venv.rglob("*")
            if re.search("resnext", p.name, re.IGNORECASE)
        )


@dataclass(frozen=True, kw_only=True)
class Case:
    """What an extra must bring: programs beside resnext-run, backends in a state, and a job that uses it."""

    job: Callable[[Place], str]
    ready: tuple[str, ...] = ()
    test_mode: tuple[str, ...] = ()
    programs: tuple[str, ...] = field(default=())


def top1(place: Place, *words: str) -> str:
    found = json.loads(place.resnext(*words, "--json"))
    return f"top-1 {found['top1']:.3f}"


def train_here(place: Place) -> str:
    place.resnext("--backend", "reference", *TRAIN, "--name", "reference")
    return top1(place, "--backend", "reference", "eval", "--weights", "made/reference")


def onnx(place: Place) -> str:
    place.resnext("--backend", "reference", *TRAIN, "--name", "onnx")
    place.resnext("export", "--weights", "made/onnx", "--format", "onnx", "--to", "new.onnx")
    return top1(place, "--backend", "onnx", "eval", "--weights", "new.onnx", "--data", "photos")


def cpp(place: Place) -> str:
    """Build the program, if the wheel does not bring it; its decoder must be ready then."""
    if not list(place.venv.glob("lib/*/site-packages/resnext_cpp_infer/built/resnext-infer")):
        place.resnext("cpp", "build")
    decoders = json.loads(place.resnext("doctor", "--json"))["decoders"]
    if [decoder["state"] for decoder in decoders if decoder["name"] == "turbo"] != ["ready"]:
        sys.exit(f"the decoder of resnext-cpp-infer is not ready: {decoders}")
    return top1(place, "--backend", "cpp-infer", "eval", "--weights", "model.onnx", "--data", "photos")


def serve(place: Place) -> str:
    """Ask the service about a photograph, and stop it."""
    words = ["serve", "--backend", "reference", "--weights", "start.safetensors", "--port", "0"]
    with subprocess.Popen(
        [str(place.venv / "bin" / "resnext-run"), *words],
        cwd=place.folder, env=place.variables, text=True, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if found := re.match(r"ready[^:]*: (http\S+) ", line):
                break
        else:
            sys.exit(f"the service ended: {seen}")
        photo = (place.folder / "photos/val/ant/000.jpg").read_bytes()
        request = urllib.request.Request(
            f"{found[1]}/predict", data=photo, headers={"Content-Type": "image/jpeg"}, method="POST"
        )
        with urllib.request.urlopen(request) as answer:
            text = answer.read().decode()
        process.terminate()
        process.communicate()
    if process.returncode != 0:
        sys.exit(f"the service ended with {process.returncode}")
    return f"answered {text[:60]}"


def trains(backend: str, *settings: str, export: str | None = None) -> Callable[[Place], str]:
    """Return a job that trains on a backend, and evaluates the run and its artefact."""

    def job(place: Place) -> str:
        place.resnext("--backend", backend, *TRAIN, "--name", backend, *settings)
        said = top1(place, "--backend", backend, "eval", "--weights", f"made/{backend}", *settings)
        if export:
            words = ["export", "--weights", f"made/{backend}", "--format", export, "--to", f"new.{export}"]
            place.resnext("--backend", backend, *words, *settings)
            said += f", {export} " + top1(
                place,
                "--backend",
                backend,
                "eval",
                "--weights",
                f"new.{export}",
                "--data",
                "photos",
                *settings,
            )
        return said

    return job


def everything(place: Place) -> str:
    """One installation does the jobs of all extras."""
    jobs = (name for name in CASES if name not in ("all", "core"))
    return "; ".join(f"{name}: {CASES[name].job(place)}" for name in jobs)


ASCEND = tuple(f"resnext-ascend-run-{name}" for name in ("standalone-train", "distribute-train", "eval"))
GPU = tuple(f"resnext-gpu-run-{name}" for name in ("standalone-train", "distribute-train", "eval"))
CPP = ("resnext-cpp-run-infer-310",)
CASES = {
    "core": Case(ready=("reference",), job=train_here),
    "onnx": Case(ready=("onnx",), job=onnx),
    "cpp-infer": Case(programs=CPP, job=cpp),
    "serve": Case(job=serve),
    "mindspore": Case(ready=("mindspore",), job=trains("mindspore", export="mindir")),
    "gpu": Case(test_mode=("gpu",), programs=GPU, job=trains("gpu", "--set", "gpu.device=cpu")),
    "ascend": Case(
        test_mode=("ascend",), ready=("mindspore",), programs=ASCEND, job=trains("ascend", "--set", "ascend.device=cpu")
    ),
    "all": Case(
        ready=("reference", "onnx", "mindspore"), test_mode=("gpu", "ascend"), programs=(*ASCEND, *GPU, *CPP),
        job=everything,
    ),
}  # fmt: skip


def prepare(folder: Path) -> Place:
    """Make an environment, with samples to work on."""
    for name in ("home", "cache"):
        (folder / name).mkdir(parents=True)
    for name in ("photos", "start.safetensors", "tiny.yaml"):
        source = SAMPLES / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        else:
            shutil.copyfile(source, folder / name)
    shutil.copyfile(SAMPLES / "runs/photos-tiny/resnext_tiny.onnx", folder / "model.onnx")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "RESNEXT_"))}
    cache = os.environ.get("PIP_CACHE_DIR") or str(Path.home() / ".cache" / "pip")
    places = {"HOME": folder / "home", "XDG_CACHE_HOME": folder / "cache", "PIP_CACHE_DIR": cache}
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    path = f"{folder / 'venv' / 'bin'}:{os.environ['PATH']}"
    return Place(folder=folder, variables=kept | {k: str(v) for k, v in places.items()} | {"PATH": path})


def attempt(extra: str, place: Place, dist: Path, more: list[str]) -> None:
    """Install, check, use and uninstall one extra."""
    case = CASES[extra]
    start = time.monotonic()
    asked = "resnext-core" if extra == "core" else f"resnext-core[{extra}]"
    before = place.ours()
    words = ["install", "--quiet", "--disable-pip-version-check", "--find-links", str(dist.resolve())]
    place.run("pip", *words, *more, asked)
    place.run("pip", "check")
    ours = [
        d["name"]
        for d in json.loads(place.run("pip", "list", "--format", "json"))
        if d["name"].startswith("resnext")
    ]
    for wheel in dist.glob("resnext_*.whl"):  # and no package of the same name that an index may have
        with zipfile.ZipFile(wheel) as archive:
            record = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            if any(
                p.read_bytes() != archive.read(record)
                for p in place.venv.glob(f"lib/*/site-packages/{record}")
            ):
                sys.exit(f"{extra}: what is installed is not {wheel.name}")
    size = sum(p.lstat().st_size for p in place.venv.rglob("*") if not p.is_dir()) / 2**20
    print(
        f"{extra}: {', '.join(ours)}; {size:.0f} MiB; installed in {time.monotonic() - start:.0f} s",
        flush=True,
    )

    programs = {p.name for p in (place.venv / "bin").iterdir() if "resnext" in p.name}
    if programs != {"resnext-run", *case.programs}:
        sys.exit(f"{extra}: installed are the programs {sorted(programs)}")
    checked = json.loads(place.resnext("doctor", "--json"))
    states = {backend["id"]: backend for backend in checked["backends"]}
    for name, wanted in [*((n, "ready") for n in case.ready), *((n, "test mode") for n in case.test_mode)]:
        if states[name]["state"] != wanted:
            sys.exit(f"{extra}: {name} is {states[name]['state']}, not {wanted}: {states[name]['detail']}")
    if checked["problems"]:
        sys.exit(f"{extra}: doctor found {checked['problems']}")
    print(f"{extra}: doctor: {', '.join(f'{name} ' + backend['state'] for name, backend in states.items())}")
    print(f"{extra}: job: {case.job(place)}", flush=True)

    place.run("pip", "uninstall", "--yes", "--quiet", *ours)
    if left := [name for name in place.ours() if name not in before]:
        sys.exit(f"{extra}: left behind: {', '.join(left)}")
    cached = sorted(p.name for p in (place.folder / "cache").glob("*/*"))
    print(
        f"{extra}: uninstalled, nothing left; in the user's cache: {', '.join(cached) or 'nothing'}",
        flush=True,
    )


def main() -> int:
    """Try the extras that are named, or all; stop at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help=f"default: {' '.join(CASES)}")
    parser.add_argument(
        "--dist", type=Path, default=version.ROOT / "dist", metavar="DIR", help="folder of wheels (dist)"
    )
    parser.add_argument("--with", dest="more", action="append", default=[], metavar="REQUIREMENT",
                        help="installed together with each extra, e.g. a build of PyTorch")  # fmt: skip
    given = parser.parse_args()
    if unknown := set(given.extras) - set(CASES):
        parser.error(f"unknown extra: {', '.join(sorted(unknown))}")
    if not list(given.dist.glob("resnext_core-*.whl")):
        parser.error(f"no wheels in {given.dist}: run make wheels")
    print(f"Python {sys.version.split()[0]}, wheels of {version.version()}", flush=True)
    for extra in given.extras or CASES:
        with tempfile.TemporaryDirectory(prefix=f"resnext-{extra}-") as temporary:
            attempt(extra, prepare(Path(temporary)), given.dist, given.more)
    print(f"{len(given.extras or CASES)} environments: passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
