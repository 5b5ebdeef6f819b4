"""Noticing that the parent process has ended, however it ended: also by ``kill -9``."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

#: Seconds between two looks at the parent process.
_LOOK_S = 1.0


def when_parent_ends(parent: int, then: Callable[[], object]) -> None:
    """Call `then` in a daemon thread once process `parent` is not the parent of this process any more."""

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        then()

    threading.Thread(target=follow, name="resnext-parent", daemon=True).start()
