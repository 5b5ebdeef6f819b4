"""What ranks exchange: a value of rank 0 or of each, and between two steps a request to stop, a failure, bad images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.ranks.collectives import Collectives
from resnext_core.ranks.info import RankInfo

#: What a rank has to say: JSON types by name; empty most of the time.
News = Mapping[str, Any]


def exchange(
    rank: RankInfo, collectives: Collectives, stop: bool, news: News
) -> tuple[bool, list[dict[str, Any]]]:
    """Return, on every rank the same: whether any rank is to stop, and the news of each rank in order.

    Every rank must call. It takes one sum over ranks, and a second one only where somebody has news.
    """
    if rank.world == 1:
        return stop, [dict(news)]
    text = json.dumps(news).encode() if news else b""
    head = np.zeros(1 + rank.world, np.int64)
    head[0], head[1 + rank.rank] = stop, len(text)
    head = collectives.all_reduce_sum(head)
    lengths = head[1:]
    if not lengths.any():
        return bool(head[0]), [{} for _ in range(rank.world)]
    ends = np.cumsum(lengths).tolist()
    body = np.zeros(ends[-1], np.int64)
    body[ends[rank.rank] - len(text) : ends[rank.rank]] = np.frombuffer(text, np.uint8)
    everything = collectives.all_reduce_sum(body).astype(np.uint8).tobytes()
    parts = [everything[end - n : end] for end, n in zip(ends, lengths.tolist(), strict=True)]
    return bool(head[0]), [json.loads(part) if part else {} for part in parts]


def from_main(rank: RankInfo, collectives: Collectives, values: NDArray[Any]) -> NDArray[Any]:
    """Return rank 0's `values` on every rank, which must all call with arrays of one shape and type."""
    return collectives.all_reduce_sum(values if rank.is_main else np.zeros_like(values))


def from_each(rank: RankInfo, collectives: Collectives, value: int) -> NDArray[np.int64]:
    """Return int64 (world,): the `value` of each rank, on every rank; all must call."""
    values = np.zeros(rank.world, np.int64)
    values[rank.rank] = value
    return collectives.all_reduce_sum(values)
