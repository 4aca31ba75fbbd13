#!/bin/sh
# Makes .venv ready: finds a Python, then hands over to setup_env.py.
#
#   scripts/setup.sh [EXTRA ...]                      extras of pyproject.toml: dev, notebook
#   PYTHON=python3.11 scripts/setup.sh [EXTRA ...]    with this Python and no other
set -eu
cd "$(dirname "$0")/.."

# The usual case: everything is there already. The environment's own Python says so.
if [ -z "${PYTHON:-}" ] && [ -f .venv/setup-complete.json ] &&
    .venv/bin/python scripts/setup_env.py --check "$@" 2>/dev/null; then
    exit 0
fi

python=$(scripts/find_python.sh)
exec "$python" scripts/setup_env.py --python "$python" "$@"
