#!/usr/bin/env bash
# Makes a Python environment that holds logtrain and activates it. The scripts beside it source it:
#
#     . launch/install.sh EXTRAS        as in setup.py: test or bench,test or "" for none
#     . launch/install.sh --as-is       install nothing: the python3 that is there, with the packages that it has
#
# --as-is is for a machine without a network that comes with its own PyTorch: the checkout is put on PYTHONPATH, and
# with it what python3 lacks of the wheels in .wheels/ (launch/wheels.py makes that folder); `python` is python3.
# An active virtual environment is used as it is; without one, .venv beside setup.py is made. A second call is instant
# as long as nothing that decides the installation has changed. On failure it exits, with one line that says why.
# LOGTRAIN_TORCH_INDEX names the package index from which a machine without a GPU takes PyTorch; empty: pip's own.

install_main() {
    local root stamp extras="${1-none given}"
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    if [ "$extras" = --as-is ]; then
        install_as_is "$root"
        return
    fi
    [[ $extras =~ ^[a-z,]*$ ]] || install_fail "the argument must name extras of setup.py, not '$extras'"

    if [ -z "${VIRTUAL_ENV:-}" ]; then
        export VIRTUAL_ENV="$root/.venv"
        [ -e "$VIRTUAL_ENV/bin/activate" ] || install_make_venv  # the file that venv writes last
    fi
    export PATH="$VIRTUAL_ENV/bin:$PATH"
    install_is_new_enough "$VIRTUAL_ENV/bin/python" || install_fail "no Python >= 3.11 in $VIRTUAL_ENV"

    # The stamp: a key over everything that decides the installation, then a line for each set of extras installed.
    stamp="$VIRTUAL_ENV/.logtrain-installed"
    [ "$(head -n 1 "$stamp" 2>/dev/null)" = "$(install_key "$root")" ] || rm -f "$stamp"
    if ! grep -qs "^extras: ${extras:+$extras\$}" "$stamp"; then  # any line will do for none
        install_package "$root" "$extras"
        [ -e "$stamp" ] || install_key "$root" >"$stamp"  # computed anew: the extension is there now
        echo "extras: $extras" >>"$stamp"
    fi
}

install_as_is() {
    local added
    install_is_new_enough python3 || install_fail "--as-is: python3 is missing or older than 3.11"
    added="$(mktemp -d "${TMPDIR:-/tmp}/logtrain-as-is.XXXXXX")" || install_fail "--as-is: no room for a folder in /tmp"
    mkdir "$added/bin" "$added/packages"
    printf '#!/bin/sh\nexec "%s" "$@"\n' "$(command -v python3)" >"$added/bin/python"  # a link would leave its venv
    chmod +x "$added/bin/python"
    python3 - "$1/.wheels" "$added/packages" <<'PYTHON' || install_fail "--as-is: the wheels could not be unpacked"
import pathlib, sys, zipfile
from importlib import metadata
for wheel in pathlib.Path(sys.argv[1]).glob("*.whl"):
    try:
        metadata.distribution(wheel.name.split("-")[0])  # what is there stays in use: it fits this Python
    except metadata.PackageNotFoundError:
        zipfile.ZipFile(wheel).extractall(sys.argv[2])
PYTHON
    export PATH="$added/bin:$PATH"
    export PYTHONPATH="$1:$1/kernels:$added/packages${PYTHONPATH:+:$PYTHONPATH}"
    python -c 'import logtrain, logtrain_kernels' || install_fail "--as-is: logtrain does not import"
}

install_make_venv() {
    local python
    for python in python3 python3.11 python3.12 python3.13 python3.14 ""; do
        if install_is_new_enough "$python"; then break; fi
    done
    [ -n "$python" ] || install_fail "no Python >= 3.11 found (looked for python3 and python3.11 to python3.14)"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        install_fail "$python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"
    "$python" -m venv "$VIRTUAL_ENV" || install_fail "$python -m venv $VIRTUAL_ENV failed"
    "$VIRTUAL_ENV/bin/python" -m pip install --quiet --quiet --upgrade pip || install_fail "could not upgrade pip"
}

install_package() {
    python -m pip --version >/dev/null 2>&1 || install_fail "no pip in $VIRTUAL_ENV; add it: python -m ensurepip"
    echo "Installing logtrain${2:+[$2]} and what it needs into $VIRTUAL_ENV (minutes the first time)"

    # Without a GPU: the oldest torch that setup.py allows, so that every CPU machine tests the floor, and a build for
    # CPUs (0.2 GB instead of 5) if the index that LOGTRAIN_TORCH_INDEX names has one; else what pip finds by itself.
    if ! nvidia-smi -L >/dev/null 2>&1 && ! python -m pip show torch >/dev/null 2>&1; then
        local index="${LOGTRAIN_TORCH_INDEX-https://download.pytorch.org/whl/cpu}"
        [ -n "$index" ] && install_pip --timeout 5 --retries 0 --index-url "$index" --no-deps torch==2.13.0 2>/dev/null ||
            install_pip torch==2.13.0 || install_fail "could not install torch 2.13.0"
    fi
    install_pip --editable "$1${2:+[$2]}" || install_fail "could not install logtrain"
    python -c 'import logtrain.data.pack' || install_fail "logtrain does not import"  # tells if C++ was not built
}

install_pip() {  # pip says what it downloads and builds; its warnings are told only where it fails
    local problems status=0
    problems="$(mktemp)"
    python -m pip --disable-pip-version-check install --progress-bar off "$@" 2>"$problems" |
        { grep --line-buffered -oE '^ *(Downloading|Building wheel|Installing collected packages).*' || true; }
    status="${PIPESTATUS[0]}"
    [ "$status" -eq 0 ] || grep -v '^WARNING' "$problems" >&2 || true
    rm -f "$problems"
    return "$status"
}

install_key() {
    # The extensions count by their names alone: where one should be and is not, installing builds it.
    (cd "$1" && pwd && cat setup.py pyproject.toml csrc/* && { ls logtrain/_*.so 2>/dev/null || true; }) | cksum
}

install_is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

install_fail() {
    echo "install.sh: $*" >&2
    exit 1
}

install_main "$@"
