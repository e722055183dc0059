#!/usr/bin/env bash
# Runs everything that a GPU is wanted for, part by part, each with its own time limit, from a kit of infra/gpu/prepare.sh.
#
#   KIT/code/infra/gpu/run.sh OUTPUT [TRAIN FLAGS ...]
#
# OUTPUT       results.json (written anew after each part), parts.txt, run.log, student-N.safetensors and its metrics
# TRAIN FLAGS  of `grainmill train`, for the student that is trained with the time that is left; after a `+` those of
#              another, which trains beside it (a small student leaves most of a card idle)
#
# BUDGET_S     for all of it, 470 by default
# PARTS        which, in this order, each alone: "machine step loop compiled mill automatic"
# BESIDE       which run while students train, since they measure no speed: "tests nccl"
# TOY          1: at a size for a processor, to try it without a GPU
# PYTHON       with PyTorch; python3 by default
set -uo pipefail

if [ $# -lt 1 ]; then
    sed -n '2,17s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
begun=$(date +%s)
output=$1
shift
mkdir -p "$output"
output=$(cd "$output" && pwd)
code=$(cd "$(dirname "$0")/../.." && pwd)
kit=${KIT:-$(dirname "$code")}
python=$(realpath -s "$(command -v "${PYTHON:-python3}")")
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

# run PART SECONDS [FLAGS]: one part, and how it ended.
run() {
    local part=$1 most=$2 part_begun rc
    part_begun=$(date +%s)
    shift 2
    if [ "$most" -lt 10 ]; then
        echo "$part: no time left" >>"$output/parts.txt"
        return
    fi
    echo "== $part, at most $most s" >>"$output/run.log"
    timeout --kill-after=20 "$most" "$python" -m benchmarks.gpu "$part" --output "$output" \
        --photographs "$kit/photographs" --data "$work/data" --seconds "$most" ${TOY:+--toy} "$@" >>"$output/run.log" 2>&1
    rc=$?
    echo "$part $* exit $rc, $(($(date +%s) - part_begun)) s" >>"$output/parts.txt"
}

# The longest that a part may take, in seconds; students take what is left.
declare -A limit_s=([machine]=30 [tests]=100 [step]=${STEP_S:-60} [loop]=${LOOP_S:-70}
    [compiled]=${COMPILED_S:-120} [mill]=${MILL_S:-110} [automatic]=${AUTOMATIC_S:-75} [nccl]=70)
for part in ${PARTS-machine step loop compiled mill automatic}; do
    left=$(left_s)
    run "$part" $((limit_s[$part] < left - 5 ? limit_s[$part] : left - 5))
done

students=()
flags=""
for word in "$@" +; do
    if [ "$word" = + ]; then
        [ -z "$flags" ] || students+=("$flags")
        flags=""
    else
        flags="$flags $word"
    fi
done
left=$(left_s)
number=0
for flags in "${students[@]}"; do
    number=$((number + 1))
    run student $((left - 25)) --name "student-$number" --share "${#students[@]}" --train "$flags" &
done
for part in ${BESIDE-tests nccl}; do
    left=$(left_s)
    run "$part" $((limit_s[$part] < left - 5 ? limit_s[$part] : left - 5))
done
wait
# What a student that was cut off has saved stays.
find "$output" -maxdepth 1 -name 'work-*' ! -name 'work-run-*' -exec rm -rf {} +
cat "$output/parts.txt"
