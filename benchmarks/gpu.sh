#!/usr/bin/env bash
# usage: benchmarks/gpu.sh build|test|bench|tune|sanitize|profile [options]
#
#   build      pip install of this checkout, offline, and the backends that came of it
#   test       the tests of the operators and of the network, on whatever backends there are; those of training,
#              data and commands need more packages. --files and options of pytest choose others
#   bench      the network's layers beside every other form; --quick takes one kind of mask
#   tune       every backend checked and timed on those layers; writes the table that "auto" follows on this
#              machine, and a copy that tools/write_measured.py puts into the package
#   sanitize   compute-sanitizer over all operators
#   profile    time and counters of every kernel; --layer NAME --dtype float32 choose others
#
# Each stage ends within ten minutes and needs no network, only torch, triton, numpy, pytest, pytest-benchmark,
# setuptools and ninja. Variables: OUT, where results go (benchmarks/results); PYTHON (python3); COMMIT, to be
# recorded where the checkout has no history.
set -euo pipefail
here=$(realpath "$(dirname "${BASH_SOURCE[0]}")")
PYTHON=${PYTHON:-python3}
OUT=$(realpath -m "${OUT:-$here/results}")
cd "$here/.."

stage=${1:-}
shift || true

# The stages keep to a deadline of their own, a little earlier; this one is for a kernel that hangs.
limited() { timeout --kill-after=10 585 "$@"; }

measure() { # the command, the name of its results, and its options
    mkdir -p "$OUT"
    limited "$PYTHON" benchmarks "$1" --results "$OUT/latest-gpu-$2.json" "${@:3}"
}

case $stage in
    build)
        limited "$PYTHON" -m pip install --no-build-isolation --no-deps . "$@"
        # Elsewhere, where the checkout does not hide the installed package.
        cd / && "$PYTHON" -c 'import pconv_ext; print(*pconv_ext.backends().items(), sep="\n")'
        ;;
    bench) measure run bench "$@" ;;
    test | tune | sanitize | profile) measure "$stage" "$stage" "$@" ;;
    *)
        sed -n '2,/^set -e/{/^#/s/^# \{0,1\}//p}' benchmarks/gpu.sh >&2
        exit 2
        ;;
esac
