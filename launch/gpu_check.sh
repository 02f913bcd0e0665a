#!/usr/bin/env bash
# All that waits for a GPU, on a machine that has one:
#
#     launch/gpu_check.sh [--as-is] step [--output DIR]        what the machine reaches, and one rank of eight, beside peers
#     launch/gpu_check.sh [--as-is] kernels [--output DIR]     kernels right and fast, decode, a small training, LoRA
#     launch/gpu_check.sh [--as-is] node [--output DIR]        the recipe itself on all of the machine's 1 to 8 GPUs
#
# The first two take at most nine minutes each, leave what they have when they are cut off, and end with a table of what
# was predicted and what was measured (docs/gpu_day.md). --as-is installs nothing, for a machine without a network.
# Without a GPU the same runs on the CPU at a tiny shape, which shows that the check works.
# Exit status: 0 all as predicted, 1 a part failed or a figure lies outside its band, 2 wrong arguments.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cd "$here/.."
extras=bench,test
if [ "${1:-}" = --as-is ]; then
    extras=--as-is
    shift
fi
# shellcheck source=launch/install.sh
. launch/install.sh "$extras"
export PYTHONUNBUFFERED=1
nvidia-smi -L >/dev/null 2>&1 || export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # several processes share the cores
exec python -m benchmarks.gpu_check "$@"
