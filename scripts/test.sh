#!/usr/bin/env bash
# Fresh machine to tests: own .venv, install, lint, types, docs, tests. Extra words go to pytest, and
# then the docs are not built:
#   bash scripts/test.sh -m "not slow and not long"    # the inner loop
#   bash scripts/test.sh -m ""                         # the long ones too
set -euo pipefail

install_chromium() { # Debian's package; Playwright's own would be downloaded.
    { [ "$(id -u)" = 0 ] && apt-get -qq update && apt-get -qq install --no-install-recommends chromium \
        >/dev/null; } || echo "no Chromium and no right to install it: the tests in a browser are skipped"
}

command -v chromium >/dev/null || install_chromium & # while pip works
chromium=$!
EXTRAS=test,docs,jax,export,studio
. "$(dirname "$0")/environment.sh"
"$PYTHON" -m ruff format --check .
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy &
types=$!
wait $chromium
if [ $# = 0 ]; then
    # Notebooks are executed by a long test.
    off=(-D nb_execution_mode=off -D suppress_warnings=myst-nb.lexer)
    "$PYTHON" -m sphinx -W -q "${off[@]}" -b html docs docs/_build/html &
    docs=$!
    trap 'kill $docs 2>/dev/null || true' EXIT
fi
wait $types
# Many tests wait for processes of their own.
"$PYTHON" -m pytest --numprocesses 3 --dist worksteal "$@"
if [ $# = 0 ]; then
    wait $docs
fi
