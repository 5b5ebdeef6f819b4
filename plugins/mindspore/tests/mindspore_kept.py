"""Counts what a compiled step keeps between forward and backward pass: ``python -m mindspore_kept FOLDER``.

From the graph that MindSpore writes just before it runs it (MS_DEV_SAVE_GRAPHS): the outputs of forward operators that
backward operators take.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

_BYTES = {"Float16": 2, "Float32": 4}
#: Images of a batch, by which activations differ from weights.
_IMAGES = 4


class Node(NamedTuple):
    """An operator of a graph: the type and shape of its first output, and whether it belongs to the backward pass."""

    name: str
    inputs: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    backward: bool


def nodes(graph: str) -> dict[str, Node]:
    """Return the operators in the order of their execution by ``%<number>``."""
    found, lines = {}, graph.splitlines()
    for number, line in enumerate(lines):
        head = re.match(r"\s+(%\d+)\(\S+\) = (?:PrimFunc_)?(\w+)\((.*?)\)(?: |$)", line)
        if head is None:
            continue
        given = lines[number + 1].rsplit("->", 1)[-1]
        tensor = re.search(r"Tensor\[(\w+)\](?:\*\d+)?\]?>?, (?:TupleShape\()?\(([\d, ]*)\)", given)
        dtype, sizes = tensor.groups() if tensor else ("", "")
        scope = next(text for text in lines[number:] if "Fullname with scope: (" in text)
        found[head[1]] = Node(
            name=head[2], inputs=tuple(re.findall(r"%\d+", head[3])), dtype=dtype,
            shape=tuple(int(size) for size in sizes.split(",") if size.strip()),
            backward="Fullname with scope: (Gradients/" in scope,
        )  # fmt: skip
    return found


def kept(graph: dict[str, Node]) -> dict[str, Node]:
    """Return the activations (N, C, H, W) that the backward pass takes from the forward pass.

    Of a batch normalisation it takes the statistics, which are other outputs than the first.
    """
    names = list(graph)
    begin = next(i for i, name in enumerate(names) if graph[name].backward)
    taken = {given for name in names[begin:] for given in graph[name].inputs}
    forward = {name: graph[name] for name in names[:begin] if name in taken}
    return {
        k: n
        for k, n in forward.items()
        if len(n.shape) == 4 and n.shape[0] == _IMAGES and n.name != "BatchNorm"
    }


def main(folder: Path) -> None:
    """Train a step in float32 and in float16, print what each keeps: bytes, and the types of tensors by operator."""
    import numpy as np
    from mindspore_cases import batches, train_request, trainer_on
    from resnext_mindspore.device import Device

    from resnext_core.config import PrecisionConfig

    said = {}
    for compute in ("float32", "float16"):
        for old in folder.glob("trace_code_graph_*"):
            old.unlink()
        trainer = trainer_on(Device(), train_request(precision=PrecisionConfig(compute=compute)))
        trainer.run_steps(batches(1, images=_IMAGES), np.array([0.1], np.float32))
        graphs = [nodes(path.read_text()) for path in folder.glob("trace_code_graph_*")]
        (graph,) = [g for g in graphs if any(node.name == "BatchNormGrad" for node in g.values())]
        found = kept(graph).values()
        said[compute] = {
            "bytes": sum(_BYTES[node.dtype] * math.prod(node.shape) for node in found),
            "types": sorted({f"{node.name} {node.dtype}" for node in found}),
        }
    print(json.dumps(said))


if __name__ == "__main__":
    target = Path(sys.argv[1])
    os.environ |= {"MS_DEV_SAVE_GRAPHS": "2", "MS_DEV_SAVE_GRAPHS_PATH": str(target)}
    main(target)
