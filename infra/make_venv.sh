#!/bin/sh
# Makes the environment of `make demo` and `make test`. Called by the Makefile with PYTHON, VENV and TORCH_INDEX_URL.
#
# Two traps are dealt with here and one in pipeline/environment/torch_compat.py:
# - sam2 is a source package that needs torch to build. Without a constraint, pip's isolated build fetches the newest CUDA
#   torch. PIP_CONSTRAINT (pip before 25.3) and PIP_BUILD_CONSTRAINT (after) hold it to the pinned one;
#   SAM2_BUILD_CUDA=0 builds without a compiler.
# - A constraints file pins versions only: a CPU build (+cpu) of the same version satisfies it.
set -eu

version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || {
    echo "grainmill: no $PYTHON here; install Python 3.11 or 3.12, or say PYTHON=python3.12" >&2
    exit 2
}
case "$version" in
3.11 | 3.12) ;;
*)
    for other in python3.11 python3.12; do
        if "$other" -c '' 2>/dev/null; then
            exec env PYTHON="$other" sh "$0"
        fi
    done
    echo "grainmill: $PYTHON is $version; Python 3.11 or 3.12 is needed (say PYTHON=python3.12)" >&2
    exit 2
    ;;
esac
"$PYTHON" -c 'import venv, ensurepip' 2>/dev/null || {
    echo "grainmill: $PYTHON has no venv; install it (Debian: apt install python3-venv)" >&2
    exit 2
}

"$PYTHON" -m venv "$VENV"
pip="$VENV/bin/python -m pip"
export PIP_CONSTRAINT="$PWD/constraints.txt" PIP_BUILD_CONSTRAINT="$PWD/constraints.txt" SAM2_BUILD_CUDA=0
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PROGRESS_BAR=off

echo "grainmill: installing torch, then the rest (some minutes the first time)" >&2
if [ -n "${TORCH_INDEX_URL:-}" ]; then
    $pip install --quiet torch torchvision --index-url "$TORCH_INDEX_URL"
else
    $pip install --quiet torch torchvision
fi
$pip install --quiet --editable '.[dev]'

# numba compiles what a first `mine` and a first `train` call, 20 and 6 seconds of one core; it keeps that beside the code.
echo "grainmill: compiling, so that no first run waits for it" >&2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/images"
"$VENV/bin/python" -c "import sys; from skimage import data, io; io.imsave(sys.argv[1], data.chelsea()[::2, ::2])" \
    "$work/images/chelsea.png"
if ! {
    "$VENV/bin/grainmill" mine --input "$work/images" --output "$work/mined" --executor local --workers 1 &&
        "$VENV/bin/grainmill" train --data "$work/mined" --output "$work/run" --steps 1
} >"$work/log" 2>&1; then
    cat "$work/log" >&2
    exit 1
fi
