"""MINDIR export, in a process of its own, reported as done only after the artefact's logits agree."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

from resnext_core.errors import EXIT_OK, DataError, ResnextError, UsageError
from resnext_core.files.scratch import Scratch
from resnext_core.interfaces import ExportRequest
from resnext_core.model.sidecar import keep_artefact
from resnext_core.model.weights import Weights, load_weights, save_weights

#: Largest |difference| between the artefact and its source, over the largest |logit|.
TOLERANCE = 1e-5
#: Images compared where the artefact takes any batch size.
_IMAGES = 2
_NAME = "network"


def export_mindir(weights: Weights, path: Path, request: ExportRequest) -> None:
    """Write `weights` as a MINDIR at `path` with the sidecar ``<name>.mindir.json``.

    The graph is exported from a fresh float32 evaluation network in a new process, because MindSpore may
    reuse the graph of an earlier export and refuses a second one of the same Cell. `fold_bn` does not
    apply: MindSpore builds the graph and its runtimes fold on loading.

    Raises UsageError on another suffix or an unknown input, DataError when the artefact cannot be
    written or its logits differ from those of `weights`.
    """
    if path.suffix != ".mindir":
        raise UsageError(f"a MINDIR file ends in .mindir: rename {path.name}")
    if request.input not in ("uint8", "float"):
        raise UsageError(f"export input must be uint8 or float, not {request.input!r}")
    if request.batch_size is not None and request.batch_size < 1:
        raise UsageError(f"export batch_size must be 1 or more, or null, not {request.batch_size}")
    with Scratch("mindir") as folder:
        save_weights(weights, folder / "weights.safetensors")
        command = [sys.executable, "-m", __name__, "--input", request.input]
        command += ["--batch-size", str(request.batch_size)] if request.batch_size else []
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        artefact = folder / f"{_NAME}.mindir"
        if done.returncode or not artefact.is_file():
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise DataError(f"MindSpore could not export {path.name}: {lines[-1]}")
        keep_artefact(artefact, path, weights, {"input": request.input, "batch_size": request.batch_size})


def _export_here(weights: Weights, *, tensor_input: bool, batch_size: int | None) -> None:
    """Write ``network.mindir`` into the working folder and compare it with its source."""
    from resnext_mindspore.device import Device, open_device

    ms = open_device(Device())
    from resnext_mindspore.network import Network, make_parameters

    spec = weights.spec
    network = Network(
        spec,
        weights.preprocess,
        make_parameters(spec, weights.tensors),
        training=False,
        tensor_input=tensor_input,
    )
    images = _images(spec.image_size, batch_size or _IMAGES, tensor_input=tensor_input)
    example = ms.Tensor(images)
    if batch_size is None:
        example = ms.Tensor(shape=[None, *images.shape[1:]], dtype=example.dtype)
    # The name has neither folder nor blank, which MindSpore would refuse.
    ms.export(network, example, file_name=_NAME, file_format="MINDIR")
    source = Network(
        spec,
        weights.preprocess,
        make_parameters(spec, weights.tensors),
        training=False,
        tensor_input=tensor_input,
    )(ms.Tensor(images)).asnumpy()
    served = ms.nn.GraphCell(ms.load(f"{_NAME}.mindir"))(ms.Tensor(images)).asnumpy()
    difference = float(np.abs(served - source).max() / np.abs(source).max())
    if not difference <= TOLERANCE:
        raise DataError(f"the MINDIR's logits differ from the network's by {difference:.1e} of the largest")


def _images(size: int, count: int, *, tensor_input: bool) -> np.ndarray:
    """Return images that look like noise, the same everywhere."""
    rng = np.random.Generator(np.random.Philox(key=1))
    if tensor_input:
        return rng.uniform(-2, 2, (count, 3, size, size)).astype(np.float32)
    return rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def _main() -> int:
    parser = argparse.ArgumentParser(description="export weights.safetensors of the working folder as MINDIR")
    parser.add_argument("--input", choices=("uint8", "float"), required=True)
    parser.add_argument("--batch-size", type=int)
    args = parser.parse_args()
    try:
        _export_here(
            load_weights(Path("weights.safetensors")),
            tensor_input=args.input == "float",
            batch_size=args.batch_size,
        )
    except ResnextError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(_main())
