#!/bin/sh
# Resolves the dependencies of pyproject.toml and writes requirements/pyXXX.txt, one exact set for
# each Python that we support. Needs uv, which `make setup-dev` installs. The files name no index.
#
#   scripts/lock.sh            keep the pins that still fit, add what is missing
#   scripts/lock.sh --upgrade  take the newest of everything
#
# The sets are resolved for the oldest Linux that we support; on another system pip takes the same
# versions, and resolves by itself only what Linux does not need.
set -eu
cd "$(dirname "$0")/.."

uv=.venv/bin/uv
[ -x "$uv" ] || uv=$(command -v uv) || {
    echo "scripts/lock.sh needs uv, got none. Run make setup-dev first." >&2
    exit 1
}

mkdir -p requirements
for version in 3.11 3.12 3.13; do
    file="requirements/py$(echo "$version" | tr -d .).txt"
    "$uv" pip compile pyproject.toml --quiet --extra dev --extra notebook \
        --python-version "$version" --python-platform x86_64-manylinux_2_28 \
        --no-annotate --no-header --output-file "$file" "$@"
    echo "$file: $(grep -c == "$file") packages"
done
