#!/usr/bin/env bash
# The ancestor's command for one card: run_standalone_train.sh DEVICE DATA [CKPT]
# The learning rate is scaled to the batch of one card; the ancestor's script kept that of eight.
# PYTHON names another interpreter. More flags of train.py may follow the three.
set -euo pipefail
if [ $# -lt 2 ] || ! [[ $1 =~ ^[0-9]+$ ]]; then
  echo "usage: $0 DEVICE DATA [CKPT] [flags of train.py]   (DEVICE: a number from 0)" >&2
  exit 2
fi
export DEVICE_ID=$1
data=$2
shift 2
words=(--data_dir "$data" --is_distributed 0)
if [ $# -gt 0 ] && [[ $1 != --* ]]; then
  words+=(--pretrained "$1")
  shift
fi
unset RANK_ID RANK_SIZE RANK_TABLE_FILE
exec "${PYTHON:-python3}" -m resnext_ascend.compat train "${words[@]}" "$@"
