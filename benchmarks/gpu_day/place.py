"""What the parts run in: our sources and entry points without pip, wheels that were brought, folders of their own."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
#: Modules without which nothing runs, and what pip calls them.
CORE = {
    "numpy": "numpy", "PIL": "pillow", "yaml": "pyyaml", "pluggy": "pluggy", "safetensors": "safetensors",
    "torch": "torch",
}  # fmt: skip
#: Those that single parts need.
OTHER = {"pytest": "pytest", "xdist": "pytest-xdist", "triton": "triton", "timm": "timm"}
#: What --pack brings unless told otherwise: small, without compiled code, and without which most parts cannot run.
PACKED = ("pluggy", "pytest", "iniconfig", "packaging", "pygments", "pytest-xdist", "execnet")
#: Of manylinux, newest first; pip takes each by its exact name.
_PLATFORMS = (
    "manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64",
    "manylinux1_x86_64",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Place:
    """A scratch folder `work`, the environment of all parts, the modules that are missing, and notes on the wheels."""

    work: Path
    env: dict[str, str]
    missing: frozenset[str]
    notes: tuple[str, ...] = ()

    def lacks(self, modules: Iterable[str]) -> list[str]:
        """Return what pip calls those of the modules that are missing here."""
        return [(CORE | OTHER)[name] for name in modules if name in self.missing]


def prepare(work: Path, wheels: Path | None, mark: str) -> Place:
    """Lay out entry points and wheels in `work`; processes that get the environment carry `mark` in it."""
    site, brought = work / "site", work / "brought"
    sources = lay_out(site)
    brought.mkdir()
    notes = () if wheels is None else tuple(unpack(wheels, brought))
    path = [str(one) for one in (site, *sources, BENCHMARKS, brought)]
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path += [one for one in known if one and one not in path]
    missing = frozenset(name for name in CORE | OTHER if not _is_there(name, [*path, *sys.path]))
    env = {
        **os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1", "PYTHONDONTWRITEBYTECODE": "1", "GPU_DAY": mark, "TMPDIR": str(work / "tmp"),
        # Kernels that one part compiled are there for the next; nothing of another day, nothing left in the home.
        "TRITON_CACHE_DIR": str(work / "triton-cache"), "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor-cache"),
        "XDG_CACHE_HOME": str(work / "cache"),
    }  # fmt: skip
    (work / "tmp").mkdir()
    if not os.path.isdir(env.get("HOME", "")):
        env["HOME"] = str(work)
    env.setdefault("USER", "nobody")  # getpass asks for it where a user number has no name
    return Place(work=work, env=env, missing=missing, notes=notes)


def _is_there(name: str, path: list[str]) -> bool:
    return PathFinder.find_spec(name, path) is not None


# -- entry points ---------------------------------------------------------------------------------


def projects() -> list[Path]:
    """Return the folders of our distributions."""
    found = [ROOT, *ROOT.glob("resnext_*"), *ROOT.glob("plugins/*")]
    return sorted(folder for folder in found if (folder / "pyproject.toml").is_file())


def lay_out(site: Path) -> list[Path]:
    """Write a ``dist-info`` folder for each of our distributions to `site`; returns the folders with their sources.

    With both on the path they are found as if pip had installed them.
    """
    sources = []
    for folder in projects():
        project = _toml(folder / "pyproject.toml")["project"]
        info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir(parents=True)
        lines = ["Metadata-Version: 2.1", f"Name: {project['name']}", f"Version: {project['version']}"]
        lines += [f"Requires-Dist: {one}" for one in project.get("dependencies", ())]
        for extra, needs in project.get("optional-dependencies", {}).items():
            lines += [f"Provides-Extra: {extra}"]
            lines += [f"Requires-Dist: {one}{_only(one, extra)}" for one in needs]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        groups = project.get("entry-points", {})
        text = "".join(
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
            for group, entries in groups.items()
        )
        (info / "entry_points.txt").write_text(text)
        sources.append(folder / "src" if (folder / "src").is_dir() else folder)
    return sources


def _only(requirement: str, extra: str) -> str:
    return f' and extra == "{extra}"' if ";" in requirement else f' ; extra == "{extra}"'


def _toml(path: Path) -> Any:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10: pytest brings this one
        try:
            import tomli as tomllib  # type: ignore[no-redef]
        except ModuleNotFoundError:
            raise SystemExit("gpu_day: this needs Python 3.11 or newer, or the package tomli") from None
    return tomllib.loads(path.read_text(encoding="utf-8"))


# -- wheels ---------------------------------------------------------------------------------------


def unpack(wheels: Path, target: Path) -> list[str]:
    """Unpack the wheels of what is not installed here to `target`; returns a line for each: was it used?"""
    said = []
    for wheel in sorted(wheels.glob("*.whl")):
        parts = wheel.stem.split("-")
        name, tag = re.sub(r"[-_.]+", "-", parts[0]).lower(), parts[-3]
        here = f"cp{sys.version_info[0]}{sys.version_info[1]}"
        if _installed(name):
            said.append(f"{wheel.name}: not needed, {name} is installed")
        elif not any(one in ("py3", here) for one in tag.split(".")) and "abi3" not in parts[-2]:
            said.append(f"{wheel.name}: not used, it is not for Python {here}")
        else:
            try:
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(target)
            except (OSError, zipfile.BadZipFile) as error:
                said.append(f"{wheel.name}: not used, {error}")
            else:
                said.append(f"{wheel.name}: used")
    return said or [f"{wheels}: no wheels there"]


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def pack(folder: Path, names: Sequence[str], python: str) -> int:
    """Download wheels for a Linux machine with this version of Python; returns pip's exit code."""
    if importlib.util.find_spec("pip") is None:
        print("gpu_day: --pack needs pip: python3 -m ensurepip", file=sys.stderr)
        return 2
    words = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--implementation",
        "cp",
    ]
    words += ["--python-version", python, "-d", str(folder)]
    words += [word for platform in _PLATFORMS for word in ("--platform", platform)]
    return subprocess.run([*words, *(names or PACKED)], check=False).returncode


def how_to_bring(names: Sequence[str]) -> str:
    """Return the line that says what is missing and what to do."""
    return (
        f"missing here: {', '.join(names)}; where there is a network: benchmarks/gpu_day.sh --pack wheels "
        f"{' '.join(names)}; then here: benchmarks/gpu_day.sh --wheels wheels"
    )
