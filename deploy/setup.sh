#!/bin/sh
# Make the virtual environment .venv with exactly what requirements.lock says, and find or unpack nats-server.
# Run again, it does nothing until the lock changes. PYTHON names another interpreter; pip's own variables
# (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, ...) choose where packages come from.
set -eu
cd "$(dirname "$0")/.."
venv=.venv
stamp="$venv/.genfleet-$(cksum <requirements.lock | tr -d ' ')"

say() { printf '%s\n' "$*" >&2; }

pick_python() {
    for candidate in ${PYTHON:-} python3.11 python3 python3.12 python3.13; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    say "genfleet needs Python 3.11 or later, and none was found. Install it, or name it: make setup PYTHON=/path/to/python3.11"
    exit 1
}

# Debian and Ubuntu leave ensurepip out unless python3-venv is installed. pip's wheel alone is enough, and its package
# can be unpacked without root.
make_venv() {
    if "$1" -c 'import ensurepip' 2>/dev/null && "$1" -m venv --clear "$venv"; then
        return
    fi
    say "This Python has no ensurepip (package python3-venv): taking pip from its own package instead."
    "$1" -m venv --clear --without-pip "$venv"
    wheels=$(find /usr/share/python-wheels -name 'pip-*.whl' 2>/dev/null | head -n 1)
    if [ -z "$wheels" ] && command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then
        (cd "$venv" && apt-get -q download python3-pip-whl >/dev/null && dpkg-deb -x python3-pip-whl_*.deb pip-package) || true
        wheels=$(find "$venv/pip-package" -name 'pip-*.whl' 2>/dev/null | head -n 1)
    fi
    if [ -z "$wheels" ]; then
        say "There is no pip either. On Debian or Ubuntu: sudo apt-get install python3-venv"
        rm -rf "$venv"
        exit 1
    fi
    "$venv/bin/python" "$wheels/pip" install -q "$wheels"
}

if [ ! -e "$stamp" ]; then
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        python=$(pick_python)
        say "Making $venv with $python ..."
        make_venv "$python"
    fi
    pip="$venv/bin/python -m pip --disable-pip-version-check --quiet"
    # torch first and pinned: pip then takes a CPU build where one is on offer.
    say "Installing torch (the largest part) ..."
    $pip install "$(grep '^torch==' requirements.lock)"
    say "Installing the rest ..."
    $pip install -r requirements.lock
    $pip install --no-deps --no-build-isolation --editable .
    rm -f "$venv"/.genfleet-*
    touch "$stamp"
fi
"$venv/bin/python" -c 'import pathlib; from deploy import nats; nats.ensure(pathlib.Path(".tools"))' ||
    { say "nats-server is needed, and could neither be found nor unpacked (see above)."; exit 1; }
