#!/bin/sh
# What `make setup` needs before Python can help: Python 3.11 with venv, and a C compiler. Installs them on
# Debian and Ubuntu; without root or sudo it prints the one command to run.
set -eu
python="${1:-python3}"
missing=""
command -v cc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
if ! command -v "$python" >/dev/null 2>&1; then
    if [ "$python" != python3 ]; then
        echo "error: PYTHON=$python is no program here; name one of Python 3.11 or later" >&2
        exit 1
    fi
    missing="$missing python3-venv"
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: $python is $("$python" -c 'import platform; print(platform.python_version())') and 3.11 or later is needed; install one and name it: make setup PYTHON=python3.12" >&2
    exit 1
elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    missing="$missing python3-venv"
fi
[ -n "$missing" ] || exit 0
if ! command -v apt-get >/dev/null 2>&1; then
    echo "error: these packages are missing, under the names that Debian gives them:$missing; install them and try again" >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then
    root=""
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    root="sudo"
else
    echo "error: packages are missing; run: sudo apt-get install -y --no-install-recommends$missing" >&2
    exit 1
fi
$root apt-get update -qq
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive $root apt-get install -y -qq --no-install-recommends $missing
