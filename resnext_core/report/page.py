"""A page from its template: one HTML file that loads nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from typing import Any

from resnext_core.report import text
from resnext_core.terminal import printable

#: What templates call to write a value: the functions of :mod:`resnext_core.report.text`.
_FILTERS = ("percent", "count", "short", "sig", "size", "duration", "fact", "latency", "loss", "points")


def render_page(template: str, *, styles: tuple[str, ...] = ("style.css",), **values: Any) -> str:
    """Return the page that a template of this package makes of `values`; all text in them is escaped.

    The template gets the `styles` as ``style``, and what is common to the pages with a script: ``script``, and its
    ``script_digest`` for the content security policy, which allows no other. Names that are not UTF-8 are shown by
    their bytes.
    """
    import jinja2  # for those who write one
    from markupsafe import Markup

    folder = importlib.resources.files("resnext_core.report")

    def content(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(content), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals["dash"] = text.DASH
    for name in _FILTERS:
        environment.filters[name] = getattr(text, name)
    script = content("script.js").strip()
    page = environment.get_template(template).render(
        style=Markup("".join(map(content, styles))),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **values,
    )
    return printable(page.strip()) + "\n"
