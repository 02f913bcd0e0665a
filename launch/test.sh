#!/usr/bin/env bash
# Installs logtrain with what its tests need and runs them, on the CPU (GPUs have launch/gpu_check.sh). Arguments go to
# pytest: bash launch/test.sh -k pack
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/install.sh
. launch/install.sh test
CUDA_VISIBLE_DEVICES="" exec python -m pytest -q "$@"
