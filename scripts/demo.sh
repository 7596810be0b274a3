#!/usr/bin/env bash
# Fresh machine to result: own .venv, install, phantom brains, training of both stages, reconstruction
# of brains that the model has not seen, novel ones, and a report. Nine minutes on two cores after the
# install. Needs no data.
#   bash scripts/demo.sh [--open] [OUT]        (default: outputs/demo)
# --open opens the report in the web browser.
set -euo pipefail
open=()
if [ "${1:-}" = --open ]; then open=(--open); shift; fi
case "${1:-}" in -*) echo "usage: bash scripts/demo.sh [--open] [OUT]" >&2; exit 2 ;; esac
out="${1:+$(realpath -m "$1")}"
EXTRAS="studio"
. "$(dirname "$0")/environment.sh"
out="${out:-outputs/demo}"
run() { printf '\n$ python %s\n' "$*"; "$PYTHON" "$@"; }

[ -e "$out/phantoms/archive.json" ] || run scripts/prepare_data.py --source phantom --out "$out/phantoms"
run scripts/train_vqvae.py --data "$out/phantoms" --run "$out/vqvae" --preset small --epochs 8 \
  --magnification 1.7
run scripts/reconstruct.py --run "$out/vqvae" --data "$out/phantoms" --split test --out "$out/reconstruction"
run scripts/train_pixelcnn.py --vqvae "$out/vqvae" --run "$out/prior" --epochs 7 --channels 64 --layers 6 --variants 1 \
  --conditions age sex
run scripts/sample.py --run "$out/prior" --count 64 --evaluate --nearest --out "$out/samples"
run scripts/sample.py --run "$out/prior" --count 6 --condition age=30,50,70,85 --out "$out/aged"
run scripts/report.py --runs "$out/vqvae" "$out/prior" --reconstruction "$out/reconstruction" --samples "$out/samples" \
  --out "$out/report.html" "${open[@]}"
cat <<END

The report: open $(realpath "$out/report.html") in a web browser.
The studio, to sample and edit in the browser:
    $PYTHON scripts/studio.py --run $out/prior --open
END
