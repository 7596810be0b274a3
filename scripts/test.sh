#!/usr/bin/env bash
# Fresh machine to tests: own .venv, install, lint, types, docs, tests. Extra words go to pytest, and
# then the docs are not built:
#   bash scripts/test.sh -m "not slow and not long"    # the inner loop
#   bash scripts/test.sh -m ""                         # the long ones too: half an hour
set -euo pipefail
EXTRAS=test,docs,jax,export
. "$(dirname "$0")/environment.sh"
"$PYTHON" -m ruff format --check .
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy
if [ $# = 0 ]; then
    "$PYTHON" -m sphinx -W -q -b html docs docs/_build/html
fi
# One more than most machines' two cores: many tests wait for processes of their own.
exec "$PYTHON" -m pytest --numprocesses 3 --dist worksteal "$@"
