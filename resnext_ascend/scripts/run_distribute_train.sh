#!/bin/sh
# The ModelZoo's command for the cards of a rank table: run_distribute_train.sh RANK_TABLE DATA [CKPT]
# As many ranks as the table has devices of this server are started, watched, and waited for; the exit code is that of
# the first that failed. With several servers run it on each, with the same table. PYTHON names another interpreter.
set -eu
if [ $# -lt 2 ]; then
  echo "usage: $0 RANK_TABLE DATA [CKPT] [flags of train.py]" >&2
  exit 2
fi
if [ ! -f "$1" ]; then
  echo "$0: no rank table at $1; make one with: resnext-run ascend rank-table make --to $1" >&2
  exit 3
fi
RANK_TABLE_FILE=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
data=$2
shift 2
case ${1:---} in --*) ;; *) set -- --pretrained "$@" ;; esac
unset RANK_ID RANK_SIZE DEVICE_ID
export RANK_TABLE_FILE
exec "${PYTHON:-python3}" -m resnext_ascend.compat train --data_dir "$data" --is_distributed 1 "$@"
