#!/usr/bin/env bash
# Supervised fine-tuning on all GPUs of this machine (on one rank without any):
#
#     PET_NPROC_PER_NODE=4 launch/sft.sh launch/recipes/sft_lora_4xh100.toml --model runs/nlplog-8b/export --data data/chat
#
# The arguments are those of `python -m logtrain.sft` (--help lists them). torchrun takes its own from the environment:
# PET_NPROC_PER_NODE=4 uses four GPUs; for two machines, run the same command on both with
#
#     PET_NNODES=2 PET_RDZV_BACKEND=c10d PET_RDZV_ENDPOINT=FIRST_MACHINE:29500 PET_RDZV_ID=ANY_NAME
#
# Exit status: 0 trained and exported, 2 wrong input, 75 stopped by SIGTERM or Ctrl-C after saving: --resume auto goes on.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=launch/ranks.sh
. "$here/ranks.sh"
exec python "$here/torchrun.py" -m logtrain.sft "$@"
