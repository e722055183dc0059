#!/usr/bin/env bash
# Runs everything that a GPU is wanted for, part by part, each with its own time limit, from a kit of infra/gpu/prepare.sh.
#
#   KIT/code/infra/gpu/run.sh OUTPUT [TRAIN FLAGS ...]
#
# OUTPUT       results.json (written anew after each part), parts.txt, run.log, student.safetensors, student_metrics.jsonl
# TRAIN FLAGS  of `grainmill train`, for the student that is trained with the time that is left
#
# BUDGET_S     for all of it, 470 by default
# PARTS        which, in this order: "machine tests step mill automatic nccl compiled student"
# TOY          1: at a size for a processor, to try it without a GPU
# PYTHON       with PyTorch; python3 by default
set -uo pipefail

if [ $# -lt 1 ]; then
    sed -n '2,14s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
begun=$(date +%s)
output=$1
shift
mkdir -p "$output"
output=$(cd "$output" && pwd)
code=$(cd "$(dirname "$0")/../.." && pwd)
kit=${KIT:-$(dirname "$code")}
python=${PYTHON:-python3}
budget_s=${BUDGET_S:-470}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
left_s() { echo $((budget_s - $(date +%s) + begun)); }

"$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --find-links "$kit/wheels" \
    --target "$work/site" --requirement "$kit/wheels/names.txt" || exit 1
tar -C "$work" -xf "$kit/data.tar.xz" || exit 1
export PYTHONPATH="$code:$work/site" PYTHONUNBUFFERED=1 NUMBA_CACHE_DIR="$work/numba" PYTHONDONTWRITEBYTECODE=1
export HF_HUB_OFFLINE=1
cd "$code" || exit 1
echo "prepared 0 $(($(date +%s) - begun)) s" >>"$output/parts.txt"

# The longest that a part may take, in seconds; the student takes what is left.
declare -A limit_s=([machine]=40 [tests]=90 [step]=110 [mill]=110 [automatic]=50 [nccl]=60 [compiled]=100 [student]=100000)
for part in ${PARTS:-machine tests step mill automatic nccl compiled student}; do
    left=$(left_s)
    most=$((limit_s[$part] < left - 5 ? limit_s[$part] : left - 5))
    if [ "$most" -lt 10 ]; then
        echo "$part - no time left" >>"$output/parts.txt"
        continue
    fi
    echo "== $part, at most $most s" >>"$output/run.log"
    part_begun=$(date +%s)
    timeout --kill-after=5 "$most" "$python" -m benchmarks.gpu "$part" --output "$output" --photographs "$kit/photographs" \
        --data "$work/data" --seconds "$most" ${TOY:+--toy} --train "$*" >>"$output/run.log" 2>&1
    echo "$part $? $(($(date +%s) - part_begun)) s" >>"$output/parts.txt"
    find "$output" -maxdepth 1 -name 'work-*' -exec rm -rf {} +
done
cat "$output/parts.txt"
