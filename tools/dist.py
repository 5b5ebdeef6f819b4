"""Build a wheel and an sdist of every distribution into dist/ and check them: ``python tools/dist.py``.

A copy of the files that git knows of is built, so that nothing else gets into an archive, with the date of the last
commit, so that the same commit gives the same wheels. A package index shows the READMEs without the repository: in the
copy, links into it are made absolute if its address is given (``--repository``), and become names of files otherwise.
The address also becomes the project's URLs. ``make dist`` runs this in an environment that has the tools.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

import version

ROOT = version.ROOT
_FENCED = re.compile(r"^(`{3,})[^\n]*\n.*?^\1$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(\s*<?([^)\s>]+)>?\)")
_NOTE = "\nNames of files, such as `docs/install.md`, are those of resnext's repository.\n"


def readme(text: str, folder: PurePosixPath, repository: str | None, tag: str) -> str:
    """Return a README for readers who have no checkout.

    `folder` is the README's, relative to the repository, whose address is `repository`, e.g. ``https://HOST/OWNER/NAME``;
    files of the commit `tag` are expected at ``/blob/TAG/`` and ``/raw/TAG/`` below it.
    """
    named = False

    def link(match: re.Match[str]) -> str:
        nonlocal named
        picture, label, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        name, _, anchor = target.partition("#")
        path = os.path.normpath(folder / name)
        if repository:
            anchor = f"#{anchor}" if anchor else ""
            return f"{picture}[{label}]({repository}/{'raw' if picture else 'blob'}/{tag}/{path}{anchor})"
        if path == "README.md":
            return label
        named = True
        return f"`{path}`" if label == path else f"{label} (`{path}`)"

    parts, end = [], 0
    for block in _FENCED.finditer(text):
        parts += [_LINK.sub(link, text[end : block.start()]), block[0]]
        end = block.end()
    parts.append(_LINK.sub(link, text[end:]))
    return "".join(parts) + (_NOTE if named else "")


def relative_links(text: str) -> list[str]:
    """Return the links of a page that lead nowhere outside the repository."""
    links = [match[3] for match in _LINK.finditer(_FENCED.sub("", text))]
    links += re.findall(r"(?:src|href)=\"([^\"]+)\"", _FENCED.sub("", text))
    return [link for link in links if not re.match(r"https?:|mailto:|#", link)]


def urls(repository: str, tag: str) -> str:
    """Return the section of a pyproject.toml with the project's URLs."""
    return (
        f'\n[project.urls]\nRepository = "{repository}"\nDocumentation = "{repository}/blob/{tag}/docs/README.md"\n'
        f'Changelog = "{repository}/blob/{tag}/CHANGELOG.md"\n'
    )


def stage(to: Path, repository: str | None) -> list[Path]:
    """Copy the files that git knows of into `to`, prepared for building; return the folders of the distributions."""
    listed = _output("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, listed):
        source, target = ROOT / name, to / name
        if source.is_symlink() or source.is_file():  # not one that was removed since the last commit
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    tag = f"v{version.version()}"
    folders = [to / project.parent.relative_to(ROOT) for project in version.projects()]
    for folder in folders:
        page = folder / "README.md"
        text = page.read_text(encoding="utf-8")
        page.write_text(
            readme(text, PurePosixPath(folder.relative_to(to)), repository, tag), encoding="utf-8"
        )
        if repository:
            with (folder / "pyproject.toml").open("a", encoding="utf-8") as project:
                project.write(urls(repository, tag))
    return folders


def faults(archive: Path) -> list[str]:
    """Return what is wrong with a wheel or an sdist: no licence, no README or one with dead links, strange files."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            files = {name: wheel.read(name) for name in wheel.namelist()}
        metadata, licence = r"[^/]+\.dist-info/METADATA", "/licenses/LICENSE"
    else:
        with tarfile.open(archive) as sdist:
            files = {file.name: sdist.extractfile(file).read() for file in sdist if file.isfile()}  # type: ignore[union-attr]
        metadata, licence = "[^/]+/PKG-INFO", "/LICENSE"
    wrong = []
    if (ROOT / "LICENSE").read_bytes() not in [
        text for name, text in files.items() if name.endswith(licence)
    ]:
        wrong.append("its LICENSE is not that of the repository")
    said = next(text for name, text in files.items() if re.fullmatch(metadata, name))
    _, _, page = said.decode().partition("\n\n")
    if not page.strip():
        wrong.append("it has no README")
    wrong += [f"its README links to {link}" for link in relative_links(page)]
    strange = [name for name in files if re.search(r"__pycache__|\.pyc$|(^|/)\.|\.so$", name)]
    return wrong + [f"it has the file {name}" for name in strange]


def _output(*words: str) -> str:
    return subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    """Build, check, and say what was built."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--to", type=Path, default=ROOT / "dist", metavar="DIR", help="where the files go (dist)"
    )
    parser.add_argument(
        "--repository", metavar="URL", help="the repository's public address, https://HOST/OWNER/NAME"
    )
    parser.add_argument("--wheels", action="store_true", help="build wheels alone, and do not check them")
    given = parser.parse_args()
    if given.repository and not re.fullmatch(r"https://[^/\s]+(/[^/\s]+)+", given.repository):
        parser.error(f"--repository {given.repository}: not of the form https://HOST/OWNER/NAME")
    given.to.mkdir(parents=True, exist_ok=True)
    for old in [*given.to.glob("resnext_*.whl"), *given.to.glob("resnext_*.tar.gz")]:
        old.unlink()
    dated = os.environ | {"SOURCE_DATE_EPOCH": _output("git", "log", "-1", "--format=%ct")}
    with tempfile.TemporaryDirectory() as temporary:
        for folder in stage(Path(temporary), given.repository):
            words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(given.to.resolve())]
            built = subprocess.run(
                [*words, *(["--wheel"] if given.wheels else []), str(folder)],
                env=dated, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            )  # fmt: skip
            if built.returncode:
                sys.exit(f"{built.stdout}\n{folder.name} was not built")
    made = sorted([*given.to.glob("resnext_*.whl"), *given.to.glob("resnext_*.tar.gz")])
    print("\n".join(f"{path.stat().st_size / 1024:8.0f} KiB  {path.name}" for path in made))
    if given.wheels:
        return 0
    wrong = [f"{path.name}: {fault}" for path in made for fault in faults(path)]
    print(
        "\n".join(wrong) or f"{len(made)} files: licence, README and its links, names of files: clean",
        flush=True,
    )
    wheels = [str(path) for path in made if path.suffix == ".whl"]
    checks = [
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, made)],
        [str(Path(sys.executable).with_name("check-wheel-contents")), *wheels],
    ]
    codes = [subprocess.run(words, check=False).returncode for words in checks]
    return int(bool(wrong) or any(codes))


if __name__ == "__main__":
    sys.exit(main())
