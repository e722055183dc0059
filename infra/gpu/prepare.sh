#!/usr/bin/env bash
# Packs what a machine with a GPU, PyTorch and no network needs to run infra/gpu/run.sh: code, wheels, data. 60 MiB at most.
#
#   infra/gpu/prepare.sh KIT PHOTOGRAPHS RUN [RUN ...]
#
# KIT          the folder that is made
# PHOTOGRAPHS  a folder of images; the first 96 go along at their own size, for mining
# RUN          committed or released shards to train on; they go along reduced to 256 pixels, as many samples as fit
#
# MAX_MIB      what KIT may take, 60 by default
# REDUCED      flags of benchmarks.reduced_shards: "--drawn-only" for more images, where students start from scratch
# BACKBONE     a file of weights to take along (for --trunk timm:NAME@KIT/weights/FILE)
# PYTHON       with grainmill installed; .venv/bin/python by default
#
# Wheels are those of Python 3.11 and 3.12 on x86-64 Linux, of the packages that an image with PyTorch, timm, numba,
# OpenCV, scikit-image and pyarrow lacks. sam2 is built here, without its extension.
set -euo pipefail

if [ $# -lt 3 ]; then
    sed -n '2,18s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
kit=$1 photographs=$2
shift 2
code=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-$code/.venv/bin/python}
max_mib=${MAX_MIB:-60}
rm -rf "$kit"
mkdir -p "$kit/code" "$kit/wheels" "$kit/photographs" "$kit/weights"
kit=$(cd "$kit" && pwd)

echo "grainmill: code" >&2
git -C "$code" ls-files -z --cached --others --exclude-standard -- pipeline model benchmarks tests infra pyproject.toml README.md \
    ':!benchmarks/results' |
    tar -C "$code" --null --files-from=- --ignore-failed-read -cf - | tar -C "$kit/code" -xf -

echo "grainmill: wheels" >&2
pip=("$python" -m pip --disable-pip-version-check)
export PIP_CONSTRAINT="$code/constraints.txt" PIP_BUILD_CONSTRAINT="$code/constraints.txt" SAM2_BUILD_CUDA=0
built=(sam2 hydra-core omegaconf antlr4-python3-runtime iopath)
"${pip[@]}" wheel --quiet --no-deps --wheel-dir "$kit/wheels" "${built[@]}"
compiled=(msgspec simplejpeg pycocotools)
platforms=()
for platform in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux_2_5 manylinux1; do
    platforms+=(--platform "${platform}_x86_64")
done
for version in 3.11 3.12; do
    "${pip[@]}" download --quiet --no-deps --only-binary=:all: --implementation cp --python-version "$version" \
        "${platforms[@]}" --dest "$kit/wheels" "${compiled[@]}"
done
printf '%s\n' "${built[@]}" "${compiled[@]}" >"$kit/wheels/names.txt"

echo "grainmill: photographs and shards" >&2
find "$photographs" -type f \( -name '*.jpg' -o -name '*.png' \) | sort | head -n 96 |
    while IFS= read -r each; do cp "$each" "$kit/photographs/"; done
[ -z "${BACKBONE:-}" ] || cp "$BACKBONE" "$kit/weights/"
used_mib=$(du -sm "$kit" | cut -f1)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
read -r -a reduced <<<"${REDUCED:-}"
(cd "$code" && PYTHONPATH="$code" "$python" -m benchmarks.reduced_shards --data "$@" --output "$work/data" \
    --max-mib "$((max_mib - used_mib - 2))" "${reduced[@]}" >&2)
tar -C "$work" -cf - data | xz -T2 -6 >"$kit/data.tar.xz"

size_mib=$(du -sm "$kit" | cut -f1)
echo "$kit: $size_mib MiB" >&2
if [ "$size_mib" -gt "$max_mib" ]; then
    echo "grainmill: $kit is larger than $max_mib MiB" >&2
    exit 1
fi
