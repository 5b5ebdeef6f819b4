#!/bin/sh
# The ModelZoo's command for one card: run_standalone_train.sh DEVICE DATA [CKPT]
# The learning rate is scaled to the batch of one card; the ModelZoo's script kept that of eight.
# PYTHON names another interpreter. More flags of train.py may follow the three.
set -eu
case ${1:-} in "" | *[!0-9]*) device= ;; *) device=$1 ;; esac
if [ $# -lt 2 ] || [ -z "$device" ]; then
  echo "usage: $0 DEVICE DATA [CKPT] [flags of train.py]   (DEVICE: a number from 0)" >&2
  exit 2
fi
data=$2
shift 2
case ${1:---} in --*) ;; *) set -- --pretrained "$@" ;; esac
unset RANK_ID RANK_SIZE RANK_TABLE_FILE
export DEVICE_ID="$device"
exec "${PYTHON:-python3}" -m resnext_ascend.compat train --data_dir "$data" --is_distributed 0 "$@"
