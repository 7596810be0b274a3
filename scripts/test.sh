#!/usr/bin/env bash
# Fresh machine to tests: own .venv, install, lint, all tests. Extra words go to pytest:
#   bash scripts/test.sh -m "not slow"
set -euo pipefail
EXTRAS=test,jax
. "$(dirname "$0")/environment.sh"
"$PYTHON" -m ruff format --check .
"$PYTHON" -m ruff check .
exec "$PYTHON" -m pytest --numprocesses 2 "$@"
