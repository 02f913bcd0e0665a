#!/usr/bin/env bash
# A command of logtrain on all GPUs of this machine, one rank each (on a single rank where there are none):
#
#     launch/run.sh cpt launch/recipes/cpt_8xh100.toml --model ~/Llama-3.1-8B-Instruct --data data/nlplog --name nlplog-8b
#     launch/run.sh sft launch/recipes/sft_lora_4xh100.toml --model runs/nlplog-8b/export --data data/chat
#     launch/run.sh evaluate --models base=DIR sft=DIR --data TEST.json --format sharegpt --run runs/evaluation
#
# The first word names the command, one whose docstring shows it with `launch/run.sh COMMAND`; the rest are its own
# arguments (`launch/run.sh cpt --help` lists them). torchrun takes its flags from the environment:
# PET_NPROC_PER_NODE=4 uses four GPUs. For two machines, run the same command on both with
#
#     PET_NNODES=2 PET_RDZV_BACKEND=c10d PET_RDZV_ENDPOINT=FIRST_MACHINE:29500 PET_RDZV_ID=ANY_NAME
#
# Exit status: 0 done, 2 wrong input, 75 stopped by SIGTERM or Ctrl-C after saving (--resume auto goes on), 128 + n killed
# by signal n.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
case "${1:-}" in -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit ;; esac
shopt -s nullglob
commands=$(grep -ohE 'launch/run\.sh \w+' "$here"/../logtrain/{*,*/__main__}.py | cut -d' ' -f2 | sort -u)
if ! grep -qxF -- "${1:-}" <<<"$commands"; then
    echo "run.sh: expected one of ${commands//$'\n'/, } first, not '${1:-}'; --help shows examples" >&2
    exit 2
fi
# shellcheck source=launch/ranks.sh
. "$here/ranks.sh"
# The two dashes: without them torchrun of Python 3.11 takes the --run of evaluate for its own --run-path.
exec python "$here/torchrun.py" -m -- "logtrain.$1" "${@:2}"
