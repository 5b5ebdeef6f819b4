#!/usr/bin/env bash
# The ancestor's command for evaluation: run_eval.sh DEVICE DATA CKPT [PLATFORM]
# CKPT is a checkpoint or a folder of them, PLATFORM Ascend (default) or GPU. PYTHON names another interpreter.
set -euo pipefail
if [ $# -lt 3 ] || ! [[ $1 =~ ^[0-9]+$ ]]; then
  echo "usage: $0 DEVICE DATA CKPT [Ascend|GPU] [flags of eval.py]   (DEVICE: a number from 0)" >&2
  exit 2
fi
export DEVICE_ID=$1
words=(--data_dir "$2" --pretrained "$3")
shift 3
if [ $# -gt 0 ] && [[ $1 != --* ]]; then
  words+=(--platform "$1")
  shift
fi
unset RANK_ID RANK_SIZE RANK_TABLE_FILE
exec "${PYTHON:-python3}" -m resnext_ascend.compat eval "${words[@]}" "$@"
