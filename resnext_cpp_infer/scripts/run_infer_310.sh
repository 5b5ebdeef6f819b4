#!/bin/sh
# The ModelZoo's command for an Ascend 310: run_infer_310.sh MINDIR DATA [DEVICE] [-- FLAGS OF resnext-infer]
# Classifies a folder of images, with a folder for each class, and ends with the accuracy, which goes to acc.log too.
# What stands behind -- goes to resnext-infer as it is, e.g. -- --device ascend310p. PYTHON names another interpreter.
set -eu
usage() {
  echo "usage: $0 MINDIR DATA [DEVICE] [-- FLAGS OF resnext-infer]   (DATA: a folder for each class; DEVICE: 0)" >&2
  exit 2
}
if [ $# -lt 2 ]; then usage; fi
model=$1 data=$2 device=0
shift 2
if [ $# -gt 0 ] && [ "$1" != -- ]; then device=$1 && shift; fi
if [ $# -gt 0 ]; then [ "$1" = -- ] || usage; shift; fi
if [ ! -f "$model" ]; then echo "$0: MINDIR=$model is not a file" >&2 && exit 2; fi
if [ ! -d "$data" ]; then echo "$0: DATA=$data is not a folder" >&2 && exit 2; fi
case $device in "" | *[!0-9]*) echo "$0: DEVICE=$device is not a number" >&2 && exit 2 ;; esac

python=${PYTHON:-python3}
"$python" -m resnext_core.cli cpp path > /dev/null 2>&1 || "$python" -m resnext_core.cli cpp build
# 3: some images could not be read; they count as wrong below
code=0
"$python" -m resnext_core.cli cpp run -- --model "$model" --data "$data" --device ascend310 --device-id "$device" \
  --output infer.jsonl --summary infer.json --modelzoo-layout . --quiet "$@" || code=$?
if [ "$code" -ne 0 ] && { [ "$code" -ne 3 ] || [ ! -f infer.json ]; }; then exit "$code"; fi
"$python" -m resnext_cpp_infer.create_imagenet2012_label --img_path "$data"
"$python" -m resnext_cpp_infer.postprocess --result_path result_Files --label_path imagenet_label.json > acc.log
cat acc.log time_Result/test_perform_static.txt
exit "$code"
