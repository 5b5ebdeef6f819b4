#!/usr/bin/env bash
# The first minutes on a GPU machine on which nothing of ours is installed: tests, kernels, speed. See docs/gpu.md.
#
#     benchmarks/gpu_day.sh [--second] [--out DIR] [--help]
#
# PYTHON names the interpreter that has PyTorch (default: python3).
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1
exec "${PYTHON:-python3}" -m gpu_day "$@"
