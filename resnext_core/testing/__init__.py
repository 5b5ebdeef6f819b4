"""The contract kit: a backend's whole conformance test is a class that names the backend.

    from resnext_core.testing import BackendContract

    class TestMine(BackendContract):
        backend_id = "mine"

What a backend does not offer is skipped with the reason; a standard test may be overridden only as an
expected failure, ``@pytest.mark.xfail(reason=...)``. The environment variable ``RESNEXT_REQUIRE=mine,other``
turns "not available here" from a skip into a failure. For tests only; needs pytest.
"""

from __future__ import annotations

import pytest

# Before the modules are imported, so that their asserts tell what they compared.
pytest.register_assert_rewrite(
    *(
        f"resnext_core.testing.{name}"
        for name in (
            "cases",
            "compare",
            "networks",
            "kinks",
            "train_case",
            "updates",
            "identity",
            "prediction",
            "optimizer",
            "ingredients",
            "overflow",
            "resume",
            "export",
            "distributed",
            "processes",
        )
    )
)

from resnext_core.testing.contract import BackendContract  # noqa: E402

__all__ = ["BackendContract"]
