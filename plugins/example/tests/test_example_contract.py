"""The backend `example` keeps the contract, folded and not."""

from typing import Any, ClassVar

import pytest

pytest.importorskip("resnext_example.plugin", reason="install it first: pip install ./plugins/example")

from resnext_core.testing import BackendContract


class TestExample(BackendContract):
    backend_id = "example"


class TestExampleWithoutFolding(BackendContract):
    backend_id = "example"
    options: ClassVar[dict[str, Any]] = {"fold_bn": False, "chunk": 3}
