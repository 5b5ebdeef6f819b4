"""The scheduler of a MindSpore cluster, which ranks meet at: ``python -m resnext_mindspore.scheduler``."""

from __future__ import annotations

import os

from resnext_core.ranks.signals import follow_launcher
from resnext_mindspore.device import Device, open_device

if __name__ == "__main__":
    follow_launcher(os.environ)
    open_device(Device()).communication.init()  # serves until every rank has left
