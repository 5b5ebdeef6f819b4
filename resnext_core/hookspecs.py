"""The hooks of a resnext plugin. A plugin is a module named by an entry point in group ``resnext``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from resnext_core.interfaces import Backend, Command, Decoder, Recipe, SourceKind, WeightFile

PROJECT = "resnext"
hookspec = pluggy.HookspecMarker(PROJECT)
#: Plugins mark their hook implementations with this.
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def resnext_backends() -> Iterable[Backend]:  # type: ignore[empty-body]
    """Yield the backends of this plugin.

    Example::

        from resnext_core.hookspecs import hookimpl
        from resnext_core.interfaces import READY, Backend

        @hookimpl
        def resnext_backends():
            yield Backend(id="mine", summary="my accelerator", probe=lambda: READY)
    """


@hookspec
def resnext_commands() -> Iterable[Command]:  # type: ignore[empty-body]
    """Yield subcommands; core's own come through this hook too.

    Example::

        from resnext_core.hookspecs import hookimpl
        from resnext_core.interfaces import Command

        @hookimpl
        def resnext_commands():
            yield Command(name="mine", summary="tools of my accelerator", module="resnext_mine.cli")
    """


@hookspec
def resnext_recipes() -> Iterable[Recipe]:  # type: ignore[empty-body]
    """Yield recipes for ``--recipe``; core's own come through this hook too. The files are package data.

    Example::

        from pathlib import Path

        from resnext_core.hookspecs import hookimpl
        from resnext_core.interfaces import Recipe

        FOLDER = Path(__file__).with_name("recipes")

        @hookimpl
        def resnext_recipes():
            yield Recipe(name="imagenet-mine", path=FOLDER / "imagenet-mine.yaml")
    """


@hookspec
def resnext_weight_files() -> Iterable[WeightFile]:  # type: ignore[empty-body]
    """Yield kinds of weight files that ``resnext-run convert`` and ``--pretrained`` read.

    Example::

        import numpy as np

        from resnext_core.files import atomic_path
        from resnext_core.hookspecs import hookimpl
        from resnext_core.interfaces import READY, StoredTensors, WeightFile

        def read(path):
            with np.load(path, allow_pickle=False) as arrays:
                return StoredTensors(tensors=dict(arrays))

        def write(path, tensors, tag):
            with atomic_path(path) as temporary, temporary.open("wb") as stream:
                np.savez(stream, **tensors)

        @hookimpl
        def resnext_weight_files():
            yield WeightFile(
                suffixes=(".npz",), summary="NumPy archive", probe=lambda: READY, read=read, write=write
            )
    """


@hookspec
def resnext_decoders() -> Iterable[Decoder]:  # type: ignore[empty-body]
    """Yield decoders of images for ``data.decoder``; core's own, ``pillow``, comes through this hook too.

    Example::

        from resnext_core.data.render import load_eval_bytes, load_train_bytes
        from resnext_core.hookspecs import hookimpl
        from resnext_core.interfaces import READY, Decoder, NotSupported

        class Photos:
            def evaluation(self, content, name, spec, out, remarks):
                if content[:3] != b"\\xff\\xd8\\xff":
                    raise NotSupported  # Pillow reads it
                out[...] = load_eval_bytes(content, spec, name=name, remarks=remarks)

            def training(self, content, name, draw, out, remarks):
                out[...] = load_train_bytes(content, draw, name=name, remarks=remarks)

        @hookimpl
        def resnext_decoders():
            yield Decoder(name="mine", summary="JPEG on my accelerator", probe=lambda: READY, open=Photos)
    """


@hookspec
def resnext_sources() -> Iterable[SourceKind]:  # type: ignore[empty-body]
    """Yield kinds of sources of images for ``--data`` and ``data.train``; core's own come through this hook too.

    Example::

        import csv
        from pathlib import Path

        import numpy as np

        from resnext_core.data.sources.base import Listing
        from resnext_core.data.sources.files import FileSource
        from resnext_core.hookspecs import hookimpl
        from resnext_core.interfaces import SourceKind

        def open_csv(path, data):
            with open(path, newline="") as stream:
                rows = sorted(csv.reader(stream))
            paths, names = zip(*rows)
            classes = tuple(sorted(set(names)))
            labels = np.array([classes.index(name) for name in names], np.int32)
            folder = Path(path).parent
            return Listing(
                root=folder, paths=paths, source=FileSource(folder, paths), labels=labels, classes=classes
            )

        @hookimpl
        def resnext_sources():
            yield SourceKind(
                name="mine", summary="rows of path and class", claims=lambda path: path.endswith(".csv"),
                open=open_csv, parts=("{}.csv",),
            )
    """
