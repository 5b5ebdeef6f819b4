"""Loaders as a configuration asks for them."""

from __future__ import annotations

from pathlib import Path

from resnext_core.config import Config
from resnext_core.data.index import Index
from resnext_core.data.loader import Loader, default_workers
from resnext_core.data.quarantine import Quarantine
from resnext_core.extensions import Decoder
from resnext_core.files import place
from resnext_core.model.preprocess import PreprocessSpec


def loader_workers(config: Config, world: int = 1) -> int:
    """Return the number of readers of a rank: as configured, or what suits the machine."""
    return default_workers(world) if config.data.workers is None else config.data.workers


def quarantine(config: Config, run: Path | None = None) -> Quarantine | None:
    """Return the list of unreadable files: ``data.quarantine``, and the list of `run` if the policy keeps one."""
    data = config.data
    if data.dir is None or (data.quarantine is None and data.bad_images != "quarantine"):
        return None
    own = run / "quarantine.txt" if run is not None and data.bad_images == "quarantine" else None
    known = Path(data.quarantine) if data.quarantine is not None else None
    return Quarantine(place(data.dir), known=known, own=own)


def eval_loader(
    index: Index,
    preprocess: PreprocessSpec,
    config: Config,
    world: int = 1,
    run: Path | None = None,
    *,
    decoder: Decoder,
    watch_folders: bool = True,
) -> Loader:
    """Return a loader of evaluation pixels; `watch_folders` False where nobody has seen the files before."""
    return Loader(
        index, preprocess, None, seed=config.train.seed, workers=loader_workers(config, world),
        prefetch=config.data.prefetch, bad_images=config.data.bad_images, quarantine=quarantine(config, run),
        watch_folders=watch_folders, decoder=decoder,
    )  # fmt: skip
