#!/bin/sh
# Prints the path of the Python to use: the one named by PYTHON; else the one that .venv was made
# of; else the first that is found of 3.12, 3.11, 3.13. One that lacks the modules venv and ensurepip
# (Debian and Ubuntu package them apart) is taken only if there is no other.
set -eu
cd "$(dirname "$0")/.."

wanted="3.12 3.11 3.13"

# The version and path of the interpreter behind a command; of a virtual environment, its base.
# Fails for a command that does not run, such as a shim of pyenv for a version that is not chosen.
describe() {
    "$1" -c 'import os, sys
base = getattr(sys, "_base_executable", None) or sys.executable
print("%d.%d" % sys.version_info[:2], os.path.realpath(base))' 2>/dev/null
}

# Can it make environments, and install over TLS?
complete() {
    "$1" -c 'import ctypes, ensurepip, ssl, venv' >/dev/null 2>&1
}

candidates() {
    for name in "python$1" python3 python; do
        command -v "$name" 2>/dev/null || true
    done
    pyenv_root=${PYENV_ROOT:-$(pyenv root 2>/dev/null || echo "${HOME:-/root}/.pyenv")}
    for path in "$pyenv_root/versions/$1".*/bin/python \
        "/usr/bin/python$1" "/usr/local/bin/python$1" "/opt/homebrew/bin/python$1" \
        "/opt/python/$1"*/bin/python "${HOME:-/root}/.local/bin/python$1" \
        "${HOME:-/root}/.local/share/uv/python/cpython-$1".*/bin/python3; do
        [ -x "$path" ] && echo "$path"
    done
    return 0
}

# The first candidate of a version that passes the test named by $2.
find_version() {
    candidates "$1" | while IFS= read -r candidate; do
        found=$(describe "$candidate" </dev/null) || continue
        [ "${found%% *}" = "$1" ] || continue
        if [ "$2" = any ] || complete "${found#* }" </dev/null; then
            echo "${found#* }"
            break
        fi
    done
}

python=
if [ -n "${PYTHON:-}" ]; then
    case "$PYTHON" in
    # A name, which a shim may hide although the version is installed.
    python3.11 | python3.12 | python3.13) python=$(find_version "${PYTHON#python}" any) ;;
    esac
    found=$(describe "${python:-$PYTHON}") || {
        echo "set-up needs a Python that runs, got PYTHON=$PYTHON, which does not." \
            "Give the name or path of a Python 3.12, 3.11 or 3.13, or leave PYTHON out." >&2
        exit 1
    }
    case " $wanted " in
    *" ${found%% *} "*) python=${found#* } ;;
    *)
        echo "set-up needs Python 3.12, 3.11 or 3.13, got PYTHON=$PYTHON, which is" \
            "Python ${found%% *}. Name another, or leave PYTHON out." >&2
        exit 1
        ;;
    esac
fi


# The interpreter of a finished environment stays, until `make clean`.
if [ -z "$python" ] && [ -f .venv/setup-complete.json ] && found=$(describe .venv/bin/python); then
    python=${found#* }
fi

for kind in complete any; do
    for version in $wanted; do
        [ -n "$python" ] || python=$(find_version "$version" "$kind")
    done
done
if [ -z "$python" ]; then
    echo "set-up needs Python 3.12, 3.11 or 3.13, got none of them on this machine." \
        "On Debian 12 or Ubuntu 24.04: sudo apt-get install python3 python3-venv;" \
        "elsewhere, for example: pyenv install 3.12. A Python in an unusual place is named" \
        "by PYTHON=/path/to/python3.12." >&2
    exit 1
fi

echo "$python"
