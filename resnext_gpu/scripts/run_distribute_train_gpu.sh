#!/bin/sh
# The ModelZoo's command for all GPUs of a machine: run_distribute_train_gpu.sh DATA [more flags of resnext-run train]
# DEVICES is how many (default: all that nvidia-smi lists, CUDA_VISIBLE_DEVICES respected), BATCH the images of each.
# It waits for its ranks and returns the exit code of the first that failed. RECIPE and PYTHON as in the other script.
set -eu
if [ $# -lt 1 ]; then
  echo "usage: $0 DATA [--set KEY=VALUE ...]   (DATA: a folder with train/ and val/)" >&2
  exit 2
fi
if [ -z "${DEVICES:-}" ]; then
  if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    DEVICES=$(echo "$CUDA_VISIBLE_DEVICES" | tr ',' '\n' | grep -c .)
  elif ! DEVICES=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU'); then
    echo "$0: nvidia-smi lists no GPU; name the number of processes, DEVICES=8 $0 ..." >&2
    exit 4
  fi
fi
exec "${PYTHON:-python3}" -m resnext_core.cli --backend gpu train --recipe "${RECIPE:-imagenet-150e-gpu}" \
  --devices "$DEVICES" --batch-size "$((${BATCH:-128} * DEVICES))" --data "$@"
