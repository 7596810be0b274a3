#!/usr/bin/env bash
# Fresh machine to tests: own .venv, install, lint, types, docs, tests. Extra words go to pytest, and
# then the docs are not built:
#   bash scripts/test.sh -m "not slow and not long"    # the inner loop
#   bash scripts/test.sh -m ""                         # the long ones too: half an hour
set -euo pipefail
EXTRAS=test,docs,jax,export,studio
. "$(dirname "$0")/environment.sh"
"$PYTHON" -m ruff format --check .
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy
if [ $# = 0 ]; then
    "$PYTHON" -m sphinx -W -q -b html docs docs/_build/html
fi
# Debian's package; Playwright's own would be downloaded.
if ! command -v chromium >/dev/null; then
    { [ "$(id -u)" = 0 ] && apt-get -qq update && apt-get -qq install --no-install-recommends chromium \
        >/dev/null; } || echo "no Chromium and no right to install it: the tests in a browser are skipped"
fi
# One more than most machines' two cores: many tests wait for processes of their own.
exec "$PYTHON" -m pytest --numprocesses 3 --dist worksteal "$@"
