"""The contract kit on the `mindspore` backend."""

from resnext_core.testing import BackendContract


class TestMindspore(BackendContract):
    backend_id = "mindspore"
