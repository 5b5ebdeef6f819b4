#!/bin/sh
# The ModelZoo's command for evaluation: run_eval_gpu.sh DATA CKPT [more flags of resnext-run eval]
# CKPT is a run folder, a weights file, or an old checkpoint (.ckpt). PYTHON names another interpreter.
set -eu
if [ $# -lt 2 ]; then
  echo "usage: $0 DATA CKPT [--set KEY=VALUE ...]   (CKPT: run folder, .safetensors, .pth or .ckpt)" >&2
  exit 2
fi
data=$1 weights=$2
shift 2
exec "${PYTHON:-python3}" -m resnext_core.cli --backend gpu eval --weights "$weights" --data "$data" "$@"
