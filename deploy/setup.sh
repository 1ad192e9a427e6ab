#!/bin/sh
# Installs the locked Python packages into .venv. Gets uv first when the machine has none. Compiles the cutter where a C compiler is.
set -eu
cd "$(dirname "$0")/.."
unset VIRTUAL_ENV UV_PROJECT_ENVIRONMENT

works() { "$1" --version >/dev/null 2>&1; }

for uv in uv "$HOME/.local/bin/uv" .cache/uv/bin/uv .cache/venv/bin/uv; do
    works "$uv" && break
    uv=
done

if [ -z "$uv" ]; then
    echo "Getting uv ..."
    # pip installs into a target directory without a virtual environment, also where Debian forbids changes of the system's packages.
    if python3 -m pip --version >/dev/null 2>&1; then
        python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --upgrade --target .cache/uv uv
        uv=.cache/uv/bin/uv
    elif python3 -c 'import ensurepip, venv' 2>/dev/null; then
        python3 -m venv .cache/venv
        .cache/venv/bin/python -m pip install --quiet --disable-pip-version-check uv
        uv=.cache/venv/bin/uv
    else
        echo "uv is missing, and this Python has neither pip nor venv to install it." >&2
        echo "Install uv (https://docs.astral.sh/uv/getting-started/installation), or on Debian: apt-get install python3-pip. Then start again." >&2
        exit 1
    fi
fi

quiet=
[ -x .venv/bin/python ] && quiet=--quiet
"$uv" sync --locked $quiet
exec .venv/bin/python -m activities.render.compile
