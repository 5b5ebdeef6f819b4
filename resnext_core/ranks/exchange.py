"""What ranks exchange between two steps: a request to stop, a failure, images that could not be read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

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
