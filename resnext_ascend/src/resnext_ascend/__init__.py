"""Ascend 910 over HCCL for resnext: what is Ascend's own, around the engine of resnext_mindspore."""
