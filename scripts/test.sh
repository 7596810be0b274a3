#!/usr/bin/env bash
# Fresh machine to tests: own .venv, install, lint, tests. Extra words go to pytest:
#   bash scripts/test.sh -m "not slow and not long"    # a few minutes
#   bash scripts/test.sh -m ""                         # the long ones too: half an hour
set -euo pipefail
EXTRAS=test,jax
. "$(dirname "$0")/environment.sh"
"$PYTHON" -m ruff format --check .
"$PYTHON" -m ruff check .
# One more than most machines' two cores: many tests wait for processes of their own.
exec "$PYTHON" -m pytest --numprocesses 3 --dist worksteal "$@"
