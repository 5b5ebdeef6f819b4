"""One pass of a model over labelled images, as a configuration asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from numpy.typing import NDArray

from resnext_core.config import Config
from resnext_core.data.index import Index
from resnext_core.data.opening import eval_loader
from resnext_core.interfaces import Batch
from resnext_core.plugins import load_plugins
from resnext_core.ranks.collectives import Collectives, SingleProcess
from resnext_core.ranks.info import RankInfo
from resnext_core.runs.records import Listener, Progress
from resnext_core.serving.evaluate import Evaluation, evaluate
from resnext_core.serving.load import LoadedModel

#: Gets each batch, its logits (N, classes), and what says why the image at a position of the index could not be read.
Taker: TypeAlias = Callable[[Batch, NDArray[Any], Callable[[int], str]], None]


def score(
    model: LoadedModel,
    index: Index,
    config: Config,
    listen: Listener,
    rank: RankInfo | None = None,
    collectives: Collectives | None = None,
    takers: Sequence[Taker] = (),
) -> Evaluation:
    """Evaluate on `index`; each of `takers` sees every batch of this rank, and `listen` gets the progress."""
    rank = rank or RankInfo()
    decoder = load_plugins().decoder(config.data.decoder)
    with eval_loader(index, model.preprocess, config, rank.world, decoder=decoder) as loader:

        def on_batch(batch: Batch, logits: NDArray[Any]) -> None:
            for take in takers:
                take(batch, logits, loader.failures.__getitem__)

        return evaluate(
            model.predictor, loader, index, batch_size=config.eval.batch_size, rank=rank,
            collectives=collectives or SingleProcess(), tta=config.eval.tta, on_batch=on_batch,
            on_progress=lambda done, total: listen(Progress(what="eval", done=done, total=total)),
        )  # fmt: skip
