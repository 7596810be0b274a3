# Sourced by demo.sh, test.sh and reproduce_oasis.sh, with EXTRAS set to the extras to install ("" or
# "test,jax"): goes to the repository's root, makes .venv with the pinned versions, once, and sets PYTHON.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
PYTHON=.venv/bin/python
# Docker images set this; without bytecode each start of TensorFlow compiles thousands of modules.
unset PYTHONDONTWRITEBYTECODE
stamp=".venv/installed-${EXTRAS:-plain}"
requirements="$(cat setup.py scripts/constraints.txt | sha256sum)"

if [ "$(cat "$stamp" 2>/dev/null)" != "$requirements" ]; then
    system_python="$(command -v python3.11 || command -v python3)" || {
        echo "error: Python 3.11 or newer is needed, and there is no python3." >&2
        exit 2
    }
    if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
        echo "making .venv with $("$system_python" --version)"
        rm -rf .venv
        "$system_python" -m venv .venv || {
            rm -rf .venv
            echo "error: python3 cannot make a virtual environment." \
                "On Debian: apt-get install python3-venv" >&2
            exit 2
        }
    fi
    echo "installing brainslices${EXTRAS:+[$EXTRAS]} (with TensorFlow: 2.6 GB on disk, a few minutes)"
    arguments=(--quiet --constraint scripts/constraints.txt --editable ".${EXTRAS:+[$EXTRAS]}")
    pip=("$PYTHON" -m pip --disable-pip-version-check install --no-compile)
    # uv takes a fifth of pip's time, but does not read pip's settings, such as a mirror's address.
    { "${pip[@]}" --quiet --constraint scripts/constraints.txt uv &&
        "$PYTHON" -m uv pip install --python "$PYTHON" "${arguments[@]}"; } ||
        "${pip[@]}" "${arguments[@]}" || exit 1
    echo "$requirements" >"$stamp"
fi
