"""Ascend 910 over HCCL for resnext: devices, launcher and tools around the engine of resnext_mindspore."""
