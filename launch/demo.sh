#!/usr/bin/env bash
# From nothing to a model that answers. Needs Linux and Python >= 3.11, and downloads only Python packages.
#
#     launch/demo.sh                            a tiny Llama on generated logs: pretrained, fine-tuned on chats, asked, and
#                                               compared with one that was not pretrained; 3 minutes on 2 cores
#     launch/demo.sh --input FILE --model DIR   your own text on your own Llama (a Hugging Face folder): pretrained
#
# --output DIR   where to (must not exist; by default a new folder runs/demo, runs/demo-2, ... of this checkout)
# --rows N       how many rows to generate (6000), a tenth as many chats, a hundredth as many questions
# --seq_len N    tokens in a packed row: 512, or 1024 with --model
# All other flags go to the pretraining, e.g. --optim.lr 1e-5 (python -m logtrain.cpt --help lists them).
#
# Takes GPUs if there are any, one rank each, up to 8; without, 2 ranks on the CPU, 1 if it has a single core.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

fail() {
    echo "demo.sh: $*" >&2
    exit 2
}

input="" model="" output="" rows=6000 seq_len="" flags=()
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit ;;
        --input | --model | --output | --rows | --seq_len)
            [ $# -ge 2 ] || fail "$1 needs a value"
            printf -v "${1#--}" %s "$2"; shift 2 ;;
        *) flags+=("$1"); shift ;;
    esac
done
if [ -n "$input$model" ]; then
    [ -n "$input" ] && [ -n "$model" ] || fail "--input FILE and --model DIR go together"
    [ -f "$input" ] || fail "--input $input: no such file"
    [ -d "$model" ] || fail "--model $model: no such folder"
fi

new_folder() {  # mkdir decides, so that two demos at once do not share one
    local number=1
    mkdir -p "$here/../runs"
    output="$(cd "$here/../runs" && pwd)/demo"
    until mkdir "$output" 2>/dev/null; do
        number=$((number + 1))
        output="${output%/demo*}/demo-$number"
        [ "$number" -lt 1000 ] || fail "cannot make a folder in ${output%/*}"
    done
}

steps=9 step=0
[ -z "$input" ] || steps=5
say() {
    step=$((step + 1))
    printf '\n== %d/%d %s\n' "$step" "$steps" "$*"
}

say "Install"
# shellcheck source=launch/install.sh
. "$here/install.sh" ""
if [ -n "$output" ]; then
    mkdir "$output" 2>/dev/null || fail "--output $output must be a new folder, in one that exists"
else
    new_folder
fi
echo "python: $VIRTUAL_ENV"
echo "everything goes into $output"

gpus="$(python -c 'import torch; print(torch.cuda.device_count())')"
ranks=1
if [ "$gpus" -gt 0 ]; then
    while [ $((ranks * 2)) -le "$gpus" ] && [ "$ranks" -lt 8 ]; do ranks=$((ranks * 2)); done
elif [ "$(nproc)" -ge 2 ]; then
    ranks=2
fi

if [ -n "$input" ]; then
    say "Your data and model"
    recipe=("$here/recipes/demo_own.toml") seq_len="${seq_len:-1024}" result=(--tokens 40)
    echo "data: $input"
    echo "model: $model"
else
    say "Generate $rows log questions and answers, chats, a tokenizer, a tiny model"
    per_rank=$((ranks < 4 ? 4 / ranks : 1))
    spread=(--loader.rows_per_step $((ranks * per_rank)) --loader.rows_per_batch "$per_rank")
    recipe=("$here/recipes/demo.toml" "${spread[@]}")
    seq_len="${seq_len:-512}" result=(--must_halve) generated=yes
    input="$output/nlplog.json" model="$output/model"
    python "$here/demo/data.py" "$output" --rows "$rows" --chats $((rows / 10 + 1)) \
        --questions $((rows / 100 + 1))
    echo "data: $input, $(du -h "$input" | cut -f1)"
    echo "model: $model, from random weights"
fi

export PET_NPROC_PER_NODE="$ranks"
say "Prepare: text to token shards"
python -m logtrain.prepare --input "$input" --tokenizer "$model" --output "$output/prepared" \
    --seq_len "$seq_len" --valid_fraction 0.03

say "Continue the pretraining on $ranks rank(s), $gpus GPU(s), and export"
"$here/run.sh" cpt "${recipe[@]}" --model "$model" --data "$output/prepared" \
    --runs "$output" --loader.seq_len "$seq_len" ${flags[@]+"${flags[@]}"}

say "What it has learned"
python "$here/demo/result.py" "$output/cpt" "${result[@]}"
best=cpt

if [ -n "${generated:-}" ]; then
    best=cpt_sft
    say "Prepare: chats to token shards, of which only the answers are targets"
    python -m logtrain.prepare --format sharegpt --input "$output/chats.json" --tokenizer "$model" \
        --output "$output/prepared_chats" --seq_len "$seq_len" --valid_fraction 0.05
    say "Fine-tune on chats: the pretrained model, and beside it the one from random weights"
    for start in cpt none; do
        [ "$start" = cpt ] && from="$output/cpt/export" name=cpt_sft || from="$model" name=sft
        "$here/run.sh" sft "$here/recipes/demo_sft.toml" --model "$from" --data "$output/prepared_chats" --runs "$output" \
            --name "$name" --loader.seq_len "$seq_len" "${spread[@]}"
    done
    say "Ask it"
    question="What does the log 'Failed password for root from 10.0.77.5 port 51022 ssh2' mean?"
    echo "$question"
    echo "$question" | python -m logtrain.chat --model "$output/cpt_sft/export" --temperature 0 --max_new_tokens 192
    say "Compare: random weights, fine-tuned alone, pretrained and fine-tuned"
    "$here/run.sh" evaluate --models "base=$model" "sft=$output/sft/export" "cpt_sft=$output/cpt_sft/export" \
        --data "$output/questions.json" --format sharegpt --max_new_tokens 192 --run "$output/evaluation"
fi

cat <<END

The model:    $output/$best/export (Hugging Face layout)
Its run:      $output/$best (config.toml, metrics.jsonl, log.txt, checkpoints/)
Its data:     $output/prepared (report.json accounts for every row and token)
END
[ -z "${generated:-}" ] || echo "The picture:  $output/evaluation/compare.html, compare.png"
