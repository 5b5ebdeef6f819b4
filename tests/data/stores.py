"""Stores for tests: an S3 server on this machine, and the digest of the batches that come from somewhere."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnext_core.config import AugmentConfig
from resnext_core.data.index import Index
from resnext_core.data.loader import Loader
from resnext_core.data.remote import access
from resnext_core.data.sampler import Task, epoch_permutation, eval_tasks, rank_slice
from resnext_core.model.preprocess import PreprocessSpec

SPEC = PreprocessSpec(size=24, resize=28)


@contextmanager
def s3_server() -> Iterator[Any]:
    """A client of an S3 server of this process, which is what ``s3://`` means meanwhile, also in child processes."""
    moto = pytest.importorskip("moto.server", reason="needs moto (the extra [test])")
    s3fs = pytest.importorskip("s3fs.core", reason="needs s3fs (the extra [test])")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    reset = urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()  # what it holds is the process's, and another server's before
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
            patch.delenv(name)
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }.items():  # fmt: skip
            patch.setenv(name, value)
        access._filesystem.cache_clear()
        yield s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
        access._filesystem.cache_clear()
    server.stop()


def upload(client: Any, folder: Path, to: str) -> None:
    """Copy every file of `folder` below `to`."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.pipe_file(f"{to}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def stream_digest(index: Index, workers: int) -> str:
    """The digest of two epochs of training and one evaluation: pixels, labels, numbers, what is valid."""
    tasks: list[Task] = []
    for epoch in range(2):
        order = epoch_permutation(len(index), 5, epoch)
        tasks += [Task.of(epoch, rank_slice(order, step, 8, 0, 1)) for step in range(len(index) // 8)]
    digest = hashlib.sha256()
    for augment, wanted in ((AugmentConfig(), tasks), (None, list(eval_tasks(len(index), 8)))):
        with Loader(index, SPEC, augment, seed=3, workers=workers) as loader:
            for batch in loader.batches(wanted):
                for values in (batch.images, batch.labels, batch.index, batch.valid):
                    digest.update(np.ascontiguousarray(values))
    return digest.hexdigest()
