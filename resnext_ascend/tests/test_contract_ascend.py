"""The contract kit on the `ascend` backend, in its test mode: the same code on MindSpore's CPU device."""

from resnext_core.testing import BackendContract


class TestAscendOnCpu(BackendContract):
    backend_id = "ascend"
    options = {"device": "cpu"}  # noqa: RUF012
