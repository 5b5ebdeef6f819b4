"""The extras of this distribution, read from its own metadata: what could be installed, and how to say so."""

from __future__ import annotations

import re
from collections.abc import Collection
from importlib import metadata

CORE = "resnext-core"
#: A requirement on a plugin of an extra, as the metadata has it: ``resnext-NAME[...]>=...; extra == "EXTRA"``.
_PLUGIN = re.compile(r"""resnext-([a-z0-9-]+)\b.*;.*\bextra\s*==\s*["']([a-z0-9-]+)["']""", re.IGNORECASE)


def extras() -> set[str]:
    """Return the names of all extras."""
    return set(_metadata("Provides-Extra"))


def missing_plugins() -> list[str]:
    """Return the extras that bring the plugin of the same name, where it is not installed.

    Other extras bring tools, or are called like a kind of file.
    """
    found = (_PLUGIN.match(line) for line in _metadata("Requires-Dist"))
    names = {match[2] for match in found if match is not None and match[1] == match[2]}
    return sorted(name for name in names if not _is_installed(f"resnext-{name}"))


def install_hint(*names: str) -> str:
    """Return the command that installs the extra of the first of `names` that is one, '' where none is.

    A name may be that of a backend, a format or a file suffix: ``.tar.x`` is looked up as ``tar-x``, ``tar`` and ``x``.
    """
    known = extras()
    for name in names:
        plain = name.lower().strip(".")
        for word in (plain.replace(".", "-"), *plain.split(".")):
            if word in known:
                return command(word)
    return ""


def others_hint() -> str:
    """Return the end of a message about an unknown kind of file: which plugins could know it, '' where all are here."""
    names = ", ".join(f"{CORE}[{extra}]" for extra in missing_plugins())
    return f"; plugins that are not installed: {names}" if names else ""


def command(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install '{CORE}[{extra}]'"


def _metadata(field: str) -> Collection[str]:
    try:
        return metadata.metadata(CORE).get_all(field) or ()
    except metadata.PackageNotFoundError:
        return ()


def _is_installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
