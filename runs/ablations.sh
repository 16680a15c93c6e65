#!/usr/bin/env bash
# Every preset on the embedded set at equal counted compute -> a table. Run it again after Ctrl-C: finished arms are kept, the others go on.
#   bash runs/ablations.sh                       one seed, 10 TFLOP per arm
#   TFLOP=26 SEEDS="0 1 2" bash runs/ablations.sh
#   bash runs/ablations.sh "full clip" "--itm=0 --psl=0"      only these presets, and these changes of the full recipe
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
[ -f data/scenes/meta.json ] || { python data/scenes/prepare.py; python prepare.py data/scenes/videos --dataset=scenes --image_size=64 --patch_size=8; }
presets=${1:-"clip flip vilt m3ae albef simla amm full"}
shift || true
arm() { # name, flags...
    local out="out/ablations/$1"
    [ -f "$out/eval.json" ] && return
    python train.py config/demo.py "${@:2}" --out_dir="$out" --tflop_budget="${TFLOP:-10}" --eval_interval=100000 --warmup_iters=50
    python eval.py --run="$out" --checkpoint=latest --truth=data/scenes/videos/truth --tasks=retrieval,words,patches
}
for seed in ${SEEDS:-0}; do
    for preset in $presets; do arm "$preset-$seed" "config/$preset.py" --seed="$seed"; done
    for flags in "$@"; do arm "full$(tr -c 'a-z0-9\n' _ <<<"$flags")-$seed" config/full.py $flags --seed="$seed"; done
done
python eval.py --table='out/ablations/*' | tee out/ablations/table.md
