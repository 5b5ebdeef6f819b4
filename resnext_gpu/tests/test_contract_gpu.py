"""The contract kit on the `gpu` backend: in its test mode everywhere, and on a GPU where there is one."""

import json
import os

import pytest

from resnext_core.testing import BackendContract


class TestGpuOnCpu(BackendContract):
    backend_id = "gpu"
    options = {"device": "cpu"}  # noqa: RUF012


class TestGpuOnCpuOtherwise(BackendContract):
    """The settings that compute the same in another way."""

    backend_id = "gpu"
    options = {"device": "cpu", "checkpointing": True, "bucket_mib": 1}  # noqa: RUF012


@pytest.mark.gpu
class TestGpu(BackendContract):
    backend_id = "gpu"
    ranks = 2  # of which each needs a GPU
    #: RESNEXT_GPU_OPTIONS='{"channels_last": false}' runs the kit with other settings, to tell causes apart.
    options = {"deterministic": True} | json.loads(os.environ.get("RESNEXT_GPU_OPTIONS", "{}"))
