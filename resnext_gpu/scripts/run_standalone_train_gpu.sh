#!/bin/sh
# The ModelZoo's command for one GPU: run_standalone_train_gpu.sh DATA [more flags of resnext-run train]
# RECIPE and PYTHON name another recipe and interpreter; BATCH images a step, to which the learning rate is scaled.
set -eu
if [ $# -lt 1 ]; then
  echo "usage: $0 DATA [--set KEY=VALUE ...]   (DATA: a folder with train/ and val/)" >&2
  exit 2
fi
exec "${PYTHON:-python3}" -m resnext_core.cli --backend gpu train --recipe "${RECIPE:-imagenet-150e-gpu}" \
  --batch-size "${BATCH:-128}" --data "$@"
