#!/usr/bin/env bash
# Serves a model as OpenAI's API on this machine, one worker a GPU (on the CPU where there is none):
#
#     launch/serve.sh --model runs/chat-8b-lora/export
#     LOGTRAIN_API_KEY=... launch/serve.sh --model DIR --adapters NAME=DIR --host 0.0.0.0
#
# All flags are those of logtrain serve (`launch/serve.sh --model DIR --help` lists them). Installs into .venv, or into the
# virtual environment that is active, what is missing.
#
# Exit status: 0 stopped by SIGTERM or Ctrl-C with all answers complete, 2 wrong input.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
case "${1:-}" in
    "" | -h) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit ;;
esac
# shellcheck source=launch/install.sh
. "$here/install.sh" serve
exec python -m logtrain.serve "$@"
