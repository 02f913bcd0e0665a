#!/usr/bin/env bash
# All that waits for a GPU, in one command, on a machine with 1 to 8 of them:
#
#     launch/gpu_check.sh
#
# The kernels' tests on the GPU, their times beside PyTorch and Liger-Kernel, a few steps of the recipe with a profile, and
# the plan beside what was measured. With 8 GPUs the model has the shape of Llama-3.1-8B, with fewer that of Llama-3.2-1B;
# its weights are random. Everything lands in benchmarks/results/DATE_GPU_COMMIT/ (or --output DIR, which must not exist).
# Without a GPU the same steps run on the CPU with the demo's tiny model, up to the kernels: that shows that the check works.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cd "$here/.."
fail() {
    echo "gpu_check.sh: $*" >&2
    exit 2
}

output=""
if [ $# -gt 0 ]; then
    [ $# -eq 2 ] && [ "$1" = --output ] || fail "expected nothing, or --output DIR"
    output="$2"
fi

# shellcheck source=launch/install.sh
. launch/install.sh bench,test
gpus="$(python -c 'import torch; print(torch.cuda.device_count())')"
[ "$gpus" -le 8 ] || gpus=8
if [ "$gpus" -gt 0 ]; then
    name="$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr -c 'A-Za-z0-9\n' '-')"
else
    name=cpu
fi
commit="$(git rev-parse --short HEAD 2>/dev/null || echo unversioned)"
output="${output:-benchmarks/results/$(date -u +%Y-%m-%d)_${gpus}x${name}_$commit}"
mkdir -p "$(dirname "$output")"
mkdir "$output" 2>/dev/null || fail "$output exists already, or cannot be made"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
say() { printf '\n== %s\n' "$*"; }

say "Machine"
python -m torch.utils.collect_env >"$output/machine.txt" 2>&1 || true
nvidia-smi topo -m >>"$output/machine.txt" 2>/dev/null || true
echo "$gpus GPUs ($name), results in $output"

say "Tests of the kernels"
tests=(tests/kernels/test_kernels.py tests/kernels/test_dropout.py tests/kernels/test_linear_cross_entropy.py
    tests/kernels/test_liger.py tests/kernels/test_attention_backend.py tests/generation/test_generator.py)
[ "$gpus" -gt 0 ] || tests=(tests/kernels/test_attention_backend.py)  # the others have run, interpreted, in launch/test.sh
python -m pytest -q "${tests[@]}" | tee "$output/tests.txt"

say "Times of the kernels"
python -m benchmarks.kernels --time --json | tee "$output/kernels.jsonl"

say "Steps of the recipe"
if [ "$gpus" -gt 0 ]; then
    recipe=launch/recipes/cpt_8xh100.toml rows=60000 seq_len=8192 flags=()
    [ "$gpus" -eq 8 ] || flags=(--loader.rows_per_step $((gpus * 8)))
else
    recipe=launch/recipes/demo.toml rows=150 seq_len=512 flags=(--loader.rows_per_step 2 --loader.rows_per_batch 1)
fi
python launch/demo/data.py "$work/data" --rows "$rows" >/dev/null
if [ "$gpus" -gt 0 ]; then
    python - "$work/data/model/config.json" "$gpus" <<'PYTHON'
import json, sys
path, gpus = sys.argv[1], int(sys.argv[2])
config = json.load(open(path))
keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
sizes = (4096, 14336, 32, 32, 8, 128) if gpus == 8 else (2048, 8192, 16, 32, 8, 64)
config.update(zip(keys, sizes), vocab_size=128_256, max_position_embeddings=131_072, tie_word_embeddings=gpus < 8)
json.dump(config, open(path, "w"))
PYTHON
fi
python -m logtrain.prepare --input "$work/data/nlplog.json" --tokenizer "$work/data/model" --output "$work/prepared" \
    --seq_len "$seq_len" >"$output/prepare.txt"
flags+=(--model "$work/data/model" --data "$work/prepared" --init random --loader.seq_len "$seq_len")
PET_NPROC_PER_NODE=$((gpus > 0 ? gpus : 1))
export PET_NPROC_PER_NODE
# shellcheck source=launch/ranks.sh
. launch/ranks.sh
python launch/torchrun.py -m benchmarks.speed "$recipe" "${flags[@]}" --trace "$output/trace.json" |
    tee /dev/stderr | grep '^{' >"$output/speed.json"

say "Plan beside measurement"
python -m logtrain.plan "$recipe" "${flags[@]}" --gpus "$PET_NPROC_PER_NODE" --json >"$output/plan.json"
python -m benchmarks.measured "$output" "$recipe" | tee "$output/measured.txt"
