#!/usr/bin/env bash
# Installs logtrain with what its tests need and runs them, on the CPU (GPUs have launch/gpu_check.sh).
#
#     launch/test.sh             what answers within 5 minutes on 2 cores: all but the tests that are marked slow
#     launch/test.sh --all       the slow ones too, but not the trials, which take minutes each; CI runs this
#     launch/test.sh --trials    every test
#     launch/test.sh -k pack     arguments go to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/install.sh
. launch/install.sh test
which=(-m "not slow and not trial")
if [ "${1:-}" = --all ]; then
    which=(-m "not trial")
    shift
elif [ "${1:-}" = --trials ]; then
    which=()
    shift
fi
unset PYTHONDONTWRITEBYTECODE  # or each of hundreds of processes compiles the package anew, in 0.4 s
CUDA_VISIBLE_DEVICES="" exec python -m pytest -q --numprocesses auto --dist loadfile --no-loadscope-reorder ${which[@]+"${which[@]}"} "$@"
