#!/usr/bin/env bash
# Inference on an Ascend 310, as the ancestor's script: classifies a folder of images and ends with its accuracy in acc.log.
# What stands behind -- goes to resnext-infer as it is, e.g. -- --device ascend310p
set -euo pipefail

usage() {
  echo "usage: $(basename "$0") MINDIR_PATH DATA_PATH [DEVICE_ID] [-- FLAGS OF resnext-infer]" >&2
  echo "DATA_PATH has a folder for each class. DEVICE_ID is 0 unless given." >&2
  exit 2
}

arguments=()
while [ $# -gt 0 ] && [ "$1" != "--" ]; do arguments+=("$1"); shift; done
if [ "${1:-}" = "--" ]; then shift; fi
if [ ${#arguments[@]} -lt 2 ] || [ ${#arguments[@]} -gt 3 ]; then usage; fi
model=${arguments[0]} data=${arguments[1]} device=${arguments[2]:-0}
if [ ! -f "$model" ]; then echo "error: MINDIR_PATH=$model is not a file" >&2; exit 2; fi
if [ ! -d "$data" ]; then echo "error: DATA_PATH=$data is not a folder" >&2; exit 2; fi
case $device in *[!0-9]* | "") echo "error: DEVICE_ID=$device is not a number" >&2; exit 2 ;; esac

resnext-run cpp path > /dev/null 2>&1 || resnext-run cpp build
# 3: some images could not be read; they count as wrong below
code=0
resnext-run cpp run -- --model "$model" --data "$data" --device ascend310 --device-id "$device" \
  --output infer.jsonl --summary infer.json --seed-layout . --quiet "$@" || code=$?
if [ "$code" -ne 0 ] && { [ "$code" -ne 3 ] || [ ! -f infer.json ]; }; then exit "$code"; fi
python -m resnext_cpp_infer.create_imagenet2012_label --img_path "$data"
python -m resnext_cpp_infer.postprocess --result_path result_Files --label_path imagenet_label.json | tee acc.log
cat time_Result/test_perform_static.txt
exit "$code"
