"""The one version of all distributions: ``python tools/version.py`` checks it, with ``0.2.0`` after it sets it.

It is written in ``resnext_core/__init__.py``. Every other place that has to repeat it is listed here. Distributions
ask for each other from this minor version up to the next (``>=0.1,<0.2``), since hooks may change between those.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = "resnext_core/__init__.py"
_PYTHON = r'^(__version__ = ")([^"]+)(")$'
#: A version in a pyproject.toml, and in the one that the tutorial prints.
_PROJECT = r'^(version = ")([^"]+)(")$'
_RANGE = r'("resnext-[a-z-]+(?:\[[\w,-]+\])?)>=([0-9.]+),<([0-9.]+)(")'
#: Files that repeat the version, and the lines that do; the second group is the version.
COPIES = {
    "plugins/onnx/src/resnext_onnx/__init__.py": _PYTHON,
    "resnext_cpp_infer/cpp/CMakeLists.txt": r"^(project\(resnext_infer VERSION )([0-9.]+)( .*)$",
    "docs/writing-a-backend.md": _PROJECT,
    "CITATION.cff": r"^(version: )([0-9.]+)()$",
}


def projects() -> list[Path]:
    """Return the pyproject.toml of every distribution, core's first."""
    return [
        ROOT / "pyproject.toml",
        *sorted(ROOT.glob("*/pyproject.toml")),
        *sorted(ROOT.glob("plugins/*/pyproject.toml")),
    ]


def version() -> str:
    """Return the version, as core's package says."""
    match = re.search(_PYTHON, (ROOT / SOURCE).read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        sys.exit(f'{SOURCE} has no line __version__ = "..."')
    return match[2]


def bounds(of: str) -> tuple[str, str]:
    """Return the lowest version and the one above all that fit, for what asks for a distribution of version `of`."""
    major, minor, *_ = of.split(".")
    return f"{major}.{minor}", f"{major}.{int(minor) + 1}"


def changed(of: str) -> Iterator[tuple[Path, str]]:
    """Yield the files that do not say version `of`, each with its text as it should be."""
    low, high = bounds(of)
    places = {ROOT / SOURCE: _PYTHON} | {ROOT / name: pattern for name, pattern in COPIES.items()}
    places |= dict.fromkeys(projects(), _PROJECT)
    for path, pattern in places.items():
        text = path.read_text(encoding="utf-8")
        made, found = re.subn(pattern, rf"\g<1>{of}\g<3>", text, flags=re.MULTILINE)
        if found != 1:
            sys.exit(
                f"{path.relative_to(ROOT)}: {found} lines with the version, not one: mend tools/version.py"
            )
        made = re.sub(_RANGE, rf"\g<1>>={low},<{high}\g<4>", made)
        if made != text:
            yield path, made


def main() -> int:
    """Check the version, or set the one that is given."""
    if len(sys.argv) > 2 or not all(re.fullmatch(r"\d+\.\d+\.\d+", word) for word in sys.argv[1:]):
        print("usage: python tools/version.py [MAJOR.MINOR.PATCH]", file=sys.stderr)
        return 2
    if len(sys.argv) == 2:
        for path, text in list(changed(sys.argv[1])):
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(ROOT))
        return 0
    stale = [str(path.relative_to(ROOT)) for path, _ in changed(version())]
    if stale:
        print(
            f"not {version()}: {', '.join(stale)}; run: python tools/version.py {version()}", file=sys.stderr
        )
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
