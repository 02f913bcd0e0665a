#!/usr/bin/env bash
# Continual pretraining on all GPUs of this machine (on one rank without any):
#
#     launch/cpt.sh launch/cpt_8xh100.toml --model ~/Llama-3.1-8B-Instruct --data data/nlplog --name nlplog-8b
#
# The arguments are those of `python -m logtrain.cpt` (--help lists them). torchrun takes its own from the environment:
# PET_NPROC_PER_NODE=4 uses four GPUs; for two machines, run the same command on both with
#
#     PET_NNODES=2 PET_RDZV_BACKEND=c10d PET_RDZV_ENDPOINT=FIRST_MACHINE:29500 PET_RDZV_ID=ANY_NAME
#
# Exit status: 0 trained and exported, 2 wrong input, 75 stopped by SIGTERM or Ctrl-C after saving: --resume auto goes on.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

[ -n "${VIRTUAL_ENV:-}" ] || PATH="$here/../.venv/bin:$PATH"  # what launch/demo.sh or launch/test.sh has made
if [ -z "${PET_NPROC_PER_NODE:-}" ]; then
    PET_NPROC_PER_NODE="$(python -c 'import logtrain, torch; print(max(1, torch.cuda.device_count()))')" || {
        echo "cpt.sh: no Python with logtrain; install it into .venv: bash -c '. $here/install.sh \"\"'" >&2
        exit 2
    }
fi
export PET_NPROC_PER_NODE
[[ $PET_NPROC_PER_NODE =~ ^[1-9][0-9]*$ ]] || {
    echo "cpt.sh: PET_NPROC_PER_NODE = $PET_NPROC_PER_NODE: expected a number of ranks" >&2
    exit 2
}
if [ -z "${PET_NNODES:-}" ]; then
    export PET_STANDALONE=1  # a free port of its own, so that two runs can share a machine
fi

# Host threads of a rank: an equal share of the cores. torchrun would give each of several ranks a single one.
cores="$(nproc)"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > PET_NPROC_PER_NODE ? cores / PET_NPROC_PER_NODE : 1))}"
# GPU memory in segments that grow, so that tensors of many sizes (gathered weights, logits in chunks) leave no gaps.
export PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-expandable_segments:True}"

exec python "$here/torchrun.py" -m logtrain.cpt "$@"
