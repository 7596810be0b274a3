# Sourced by demo.sh and test.sh: makes .venv with the pinned versions, once.
# Usage: . scripts/environment.sh [EXTRA,...]    sets PYTHON

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
extras="${1:+[$1]}"
PYTHON=.venv/bin/python
stamp=".venv/installed${1:+-$1}"
wanted="$(cat setup.py scripts/constraints.txt | sha256sum)"

if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    system_python="$(command -v python3.11 || command -v python3)" || {
        echo "error: Python 3.11 or newer is needed, and there is no python3." >&2
        exit 2
    }
    if [ ! -x "$PYTHON" ]; then
        echo "making .venv with $("$system_python" --version)"
        "$system_python" -m venv .venv || {
            echo "error: python3 cannot make a virtual environment. On Debian: apt-get install python3-venv" >&2
            exit 2
        }
    fi
    echo "installing brainslices${extras} (TensorFlow among it: some 600 MB, a few minutes)"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check \
        --constraint scripts/constraints.txt --editable ".${extras}" || exit 1
    echo "$wanted" >"$stamp"
fi
