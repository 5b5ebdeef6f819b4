"""The extras of this distribution, read from its own metadata: what could be installed, and how to say so."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from importlib import metadata

CORE = "resnext-core"
#: A requirement on a plugin of an extra, as the metadata has it: ``resnext-NAME[...]>=...; extra == "EXTRA"``.
_PLUGIN = re.compile(r"""resnext-([a-z0-9-]+)\b.*;.*\bextra\s*==\s*["']([a-z0-9-]+)["']""", re.IGNORECASE)


def extras() -> set[str]:
    """Return the names of all extras."""
    return set(_metadata("Provides-Extra"))


def plugin_extras() -> set[str]:
    """Return the extras that bring the plugin of the same name; others bring tools, or are a file kind's name."""
    found = (_PLUGIN.match(line) for line in _metadata("Requires-Dist"))
    return {match[2] for match in found if match is not None and match[1] == match[2]}


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


def others_hint(installed: Iterable[str]) -> str:
    """Return the end of a message about an unknown kind of file: which plugins may know it, '' where all are here."""
    absent = plugin_extras() - set(installed)
    names = ", ".join(f"{CORE}[{extra}]" for extra in sorted(absent))
    return f"; plugins that are not installed: {names}" if names else ""


def command(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install '{CORE}[{extra}]'"


def _metadata(field: str) -> Collection[str]:
    try:
        return metadata.metadata(CORE).get_all(field) or ()
    except metadata.PackageNotFoundError:
        return ()
