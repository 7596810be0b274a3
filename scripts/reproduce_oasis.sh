#!/usr/bin/env bash
# From the raw OASIS-1 slices to a table and figures like those of docs/results.md:
#   bash scripts/reproduce_oasis.sh [--quick] DATA OUT
# DATA holds keras_png_slices_train, _validate and _test. OUT gets archive/, a folder for each model,
# results.json and report.html. Run again, it continues where it was stopped.
# --quick trains the small presets instead of the default ones: the scores are lower.
set -euo pipefail
model=default seed=() count=256
if [ "${1:-}" = --quick ]; then
    shift
    model=small seed=(--epochs 6) count=64
fi
[ $# = 2 ] || { echo "usage: bash scripts/reproduce_oasis.sh [--quick] DATA OUT" >&2; exit 2; }
data="$(realpath "$1")" out="$(realpath -m "$2")"
before="$(cat "$out/source.txt" 2>/dev/null || echo "$data")"
[ "$before" = "$data" ] || { echo "error: $out was made of $before. Give a new OUT." >&2; exit 2; }
EXTRAS=""
. "$(dirname "$0")/environment.sh"
run() { printf '\n$ python %s\n' "$*"; "$PYTHON" "$@"; }

train() { # NAME FLAG...
    run scripts/train_vqvae.py --data "$out/archive" --run "$out/$1/vqvae" "${@:2}"
}
reconstruct() { # NAME FLAG...
    [ -e "$out/$1/reconstruction/metrics.json" ] || run scripts/reconstruct.py "${@:2}" \
        --run "$out/$1/vqvae" --data "$out/archive" --split test --out "$out/$1/reconstruction"
}

[ -e "$out/archive/archive.json" ] || run scripts/prepare_data.py --source "$data" --out "$out/archive"
echo "$data" >"$out/source.txt"
train $model --preset $model
reconstruct $model --codecs
run scripts/train_pixelcnn.py --vqvae "$out/$model/vqvae" --run "$out/$model/prior" --preset $model
[ -e "$out/$model/samples/metrics.json" ] || run scripts/sample.py --run "$out/$model/prior" \
    --count $count --evaluate --nearest --out "$out/$model/samples"
train seed --preset seed "${seed[@]}"
reconstruct seed
run scripts/report.py --runs "$out/$model/vqvae" "$out/$model/prior" --samples "$out/$model/samples" \
    --reconstruction "$out/$model/reconstruction" --out "$out/report.html"
run scripts/results.py --folders "$out/$model" "$out/seed" --out "$out/results.json"
