#!/usr/bin/env bash
# From the raw OASIS-1 slices to a table and figures like those of docs/results.md:
#   bash scripts/reproduce_oasis.sh [--quick] DATA OUT
# DATA holds keras_png_slices_train, _validate and _test. OUT gets archive/, a folder for each model,
# results.json and report.html. Run again, it continues where it was stopped.
# --quick trains shorter and a smaller prior: the scores are lower.
set -euo pipefail
default=() prior=() seed=() count=256
if [ "${1:-}" = --quick ]; then
    shift
    default=(--epochs 6) seed=(--epochs 6) count=64
    prior=(--epochs 4 --channels 64 --layers 8 --variants 1)
fi
[ $# = 2 ] || { echo "usage: bash scripts/reproduce_oasis.sh [--quick] DATA OUT" >&2; exit 2; }
data="$(realpath "$1")" out="$(realpath -m "$2")"
EXTRAS=""
. "$(dirname "$0")/environment.sh"
run() { printf '\n$ python %s\n' "$*"; "$PYTHON" "$@"; }

train() { # NAME FLAG...
    run scripts/train_vqvae.py --data "$out/archive" --run "$out/$1/vqvae" "${@:2}"
    [ -e "$out/$1/reconstruction/metrics.json" ] || run scripts/reconstruct.py --codecs \
        --run "$out/$1/vqvae" --data "$out/archive" --split test --out "$out/$1/reconstruction"
}

[ -e "$out/archive/archive.json" ] || run scripts/prepare_data.py --source "$data" --out "$out/archive"
train seed --preset seed "${seed[@]}"
train default "${default[@]}"
run scripts/train_pixelcnn.py --vqvae "$out/default/vqvae" --run "$out/default/prior" "${prior[@]}"
[ -e "$out/default/samples/metrics.json" ] || run scripts/sample.py --run "$out/default/prior" \
    --count $count --evaluate --nearest --out "$out/default/samples"
run scripts/report.py --runs "$out/default/vqvae" "$out/default/prior" --samples "$out/default/samples" \
    --reconstruction "$out/default/reconstruction" --out "$out/report.html"
run scripts/results.py --folders "$out/default" "$out/seed" --out "$out/results.json"
