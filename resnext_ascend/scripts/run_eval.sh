#!/bin/sh
# The ModelZoo's command for evaluation: run_eval.sh DEVICE DATA CKPT [PLATFORM]
# CKPT is a checkpoint or a folder of them, PLATFORM Ascend (default) or GPU. PYTHON names another interpreter.
set -eu
case ${1:-} in "" | *[!0-9]*) device= ;; *) device=$1 ;; esac
if [ $# -lt 3 ] || [ -z "$device" ]; then
  echo "usage: $0 DEVICE DATA CKPT [Ascend|GPU] [flags of eval.py]   (DEVICE: a number from 0)" >&2
  exit 2
fi
data=$2 checkpoint=$3
shift 3
case ${1:---} in --*) ;; *) set -- --platform "$@" ;; esac
unset RANK_ID RANK_SIZE RANK_TABLE_FILE
export DEVICE_ID="$device"
exec "${PYTHON:-python3}" -m resnext_ascend.compat eval --data_dir "$data" --pretrained "$checkpoint" "$@"
