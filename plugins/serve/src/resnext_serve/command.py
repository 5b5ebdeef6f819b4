"""``resnext-run serve``: flags of the service, and the lines that say what is served and where."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path

from resnext_core.console.flags import positive
from resnext_core.errors import EXIT_OK, DataError, UsageError, reason, shown
from resnext_core.files import local_path
from resnext_core.jobs.settings import Settings
from resnext_serve.app import Service
from resnext_serve.server import listen, run
from resnext_serve.settings import Limits, ServeSettings
from resnext_serve.workers import run_workers

#: The name of a model that was given none.
DEFAULT_NAME = "resnext"
TOKEN = "RESNEXT_SERVE_TOKEN"
_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})=(.+)", re.DOTALL)

EPILOG = """\
examples:
  resnext-run serve --weights runs/RUN                        on this machine only: http://127.0.0.1:8000
  resnext-run serve --weights model.onnx --port 9000
  resnext-run serve --weights shoes=runs/SHOES --weights coats=coats.onnx
  resnext-run serve --weights runs/RUN --host 0.0.0.0 --token-file token.txt

  curl -F image=@photo.jpg http://127.0.0.1:8000/predict
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights", metavar="[NAME=]PATH", action="append", required=True,
        help="run folder, weights file or artefact; several with names of their own",
    )  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default %(default)s)")
    parser.add_argument(
        "--port", type=int, default=8000, help="port to listen at, 0 for a free one (default %(default)s)"
    )
    parser.add_argument(
        "--workers", type=positive, default=1, metavar="N", help="processes, each with all models"
    )
    parser.add_argument(
        "--token-file", metavar="FILE", help=f"bearer token that requests must bring (or set {TOKEN})"
    )
    parser.add_argument("--config", metavar="FILE", action="append", default=[], help="YAML for the models")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="any value, e.g. --set onnx.threads=4"
    )
    limits = parser.add_argument_group("limits")
    for name, metavar, text in (
        ("batch", "N", "images computed at once"),
        ("window", "MS", "milliseconds to wait for requests that are on their way"),
        ("queue", "N", "images that may wait; more are answered 503"),
        ("body_mb", "MB", "megabytes of a request's body; more is answered 413"),
        ("pixels", "N", "pixels of an image; more is answered 422"),
        ("images", "N", "images of a request"),
        ("timeout", "S", "seconds until a request must be answered"),
        ("idle", "S", "seconds that a connection may say nothing"),
        ("connections", "N", "open connections"),
        ("decoders", "N", "threads that decode images"),
        ("check", "S", "seconds between two checks of the golden logits"),
        ("reload", "S", "seconds between two looks for better weights of a run"),
        ("drain", "S", "seconds to answer on, not ready, after SIGTERM"),
    ):
        default = getattr(Limits(), name)
        limits.add_argument(
            f"--{name.replace('_', '-')}", metavar=metavar, type=type(default), default=default,
            help=f"{text} (default %(default)s)",
        )  # fmt: skip


def handle(args: argparse.Namespace) -> int:
    settings = ServeSettings(
        models=_models(args.weights),
        backend=args.backend,
        config=Settings(configs=tuple(args.config), overrides=tuple(args.set)),
        host=args.host,
        port=args.port,
        workers=args.workers,
        token=_token(args.token_file),
        limits=_limits(args),
    )
    sock = listen(settings.host, settings.port)
    with sock:
        host, port = sock.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        if not settings.is_local and settings.token is None:
            print(
                f"warning: whoever reaches {url} can use this service; --token-file asks for a token",
                flush=True,
            )
        print(f"loading {', '.join(settings.models)}; live at {url}", flush=True)
        if settings.workers > 1:
            return run_workers(settings, sock, lambda: _print_ready(url, settings))
        run(settings, sock, lambda service: _print_ready(url, settings, service))
    return EXIT_OK


def _print_ready(url: str, settings: ServeSettings, service: Service | None = None) -> None:
    for model in service.models.values() if service is not None else ():
        assert model.generation is not None
        proven = model.generation.proven
        how = (
            f"golden logits agree to {proven.difference:.1g}"
            if proven.by == "file"
            else "no golden logits in the file; compared with itself from now on"
        )
        loaded = proven.model
        print(
            f"{model.name}: {loaded.spec.variant}, {len(loaded.classes)} classes, on {loaded.backend.id}, "
            f"from {loaded.source}; {how}",
            flush=True,
        )
    workers = f" with {settings.workers} workers" if settings.workers > 1 else ""
    print(f"ready{workers}: {url} (page), {url}/docs, {url}/metrics; Ctrl-C ends it", flush=True)


def _models(given: list[str]) -> Mapping[str, Path]:
    """Return the models by name, in their order."""
    found: dict[str, Path] = {}
    for word in given:
        match = _NAME.fullmatch(word)
        name, path = match.groups() if match and not os.path.exists(word) else (DEFAULT_NAME, word)
        if name in found:
            raise UsageError(
                f"two models are called '{name}'; give each a name of its own: --weights NAME=PATH"
            )
        found[name] = local_path(path)
    return found


def _token(file: str | None) -> str | None:
    """Return the token of a file, or of the environment; None where there is neither."""
    if file is None:
        token, where = os.environ.get(TOKEN), f"the variable {TOKEN}"
        if token is None:
            return None
    else:
        where = file
        try:
            token = Path(file).read_text(encoding="ascii")
        except (OSError, ValueError) as error:
            why = reason(error) if isinstance(error, OSError) else "it is not ASCII text"
            raise DataError(f"cannot read the token in {file}: {why}") from error
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(f"the token in {shown(where)} must be one word of printable ASCII characters")
    return token


def _limits(args: argparse.Namespace) -> Limits:
    try:
        return Limits(**{name: getattr(args, name) for name in vars(Limits())})
    except UsageError as error:
        raise UsageError(
            re.sub(r"^serve\.(\w+)", lambda m: f"--{m[1].replace('_', '-')}", str(error))
        ) from error
