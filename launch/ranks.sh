# A rank for every GPU of this machine, or one without any: the environment that torchrun takes its flags from. The
# launchers beside it source it, with `here` set to this folder.

[ -n "${VIRTUAL_ENV:-}" ] || PATH="$here/../.venv/bin:$PATH"  # what launch/demo.sh or launch/test.sh has made
if [ -z "${PET_NPROC_PER_NODE:-}" ]; then
    PET_NPROC_PER_NODE="$(python -c 'import logtrain, torch; print(max(1, torch.cuda.device_count()))')" || {
        echo "$(basename "$0"): no Python with logtrain; install it into .venv: bash -c '. $here/install.sh \"\"'" >&2
        exit 2
    }
fi
export PET_NPROC_PER_NODE
[[ $PET_NPROC_PER_NODE =~ ^[1-9][0-9]*$ ]] || {
    echo "$(basename "$0"): PET_NPROC_PER_NODE = $PET_NPROC_PER_NODE: expected a number of ranks" >&2
    exit 2
}
if [ -z "${PET_NNODES:-}" ]; then
    export PET_STANDALONE=1  # a free port of its own, so that two runs can share a machine
    # Without an address torchrun asks for that of the host's name, and waits for ever where no one knows it (containers).
    export PET_LOCAL_ADDR="${PET_LOCAL_ADDR:-127.0.0.1}"
fi

# Host threads of a rank: an equal share of the cores. torchrun would give each of several ranks a single one.
cores="$(nproc)"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > PET_NPROC_PER_NODE ? cores / PET_NPROC_PER_NODE : 1))}"
# GPU memory in segments that grow, so that tensors of many sizes (gathered weights, logits in chunks) leave no gaps.
export PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-expandable_segments:True}"
