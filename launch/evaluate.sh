#!/usr/bin/env bash
# An evaluation on all GPUs of this machine (on one rank without any):
#
#     launch/evaluate.sh --models base=DIR sft=DIR --data TEST.json --format sharegpt --run runs/evaluation
#
# The arguments are those of `python -m logtrain.evaluate` (--help lists them). torchrun takes its own from the
# environment: PET_NPROC_PER_NODE=4 uses four GPUs. By hand it is `torchrun ... -m -- logtrain.evaluate`: without the two
# dashes torchrun of Python 3.11 takes --run for the beginning of its own --run-path.
#
# Exit status: 0 done, 2 wrong input, 128 + n killed by signal n (130: Ctrl-C); --resume auto goes on.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=launch/ranks.sh
. "$here/ranks.sh"
exec python "$here/torchrun.py" -m -- logtrain.evaluate "$@"
