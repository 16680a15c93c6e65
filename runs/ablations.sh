#!/usr/bin/env bash
# What each part is worth: presets, and changes of the full recipe, at equal counted compute on the
# embedded set -> out/ablations8/table.md, table.json. Ctrl-C and again: it goes on.
#   DTYPE=bfloat16 bash runs/ablations.sh              2 hours on 2 CPU cores with AVX512_BF16
#   bash runs/ablations.sh "mask6: --mask_rate=.6" flip           full, this change and this preset
#   DATA=config/drawings.py MODEL= TRUTH= OUT=out/ablations_drawings bash runs/ablations.sh clip
# Presets choose their learning rate among LRS by validation, with the first seed; changes of the
# full recipe take the one of full.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
: "${TFLOP:=8}" "${SEEDS:=0 1 2}" "${LRS:=2e-3 8e-3}"
# the demo until 30 November 2026, of 600 videos, with which the tables of runs/RESULTS.md were made
former="--dataset=scenes600 --n_layer=6 --n_unimodal=4 --mask_rate=.4 --tag=0"
: "${MODEL=$former --n_embd=96 --n_head=3}"
: "${DTYPE:=auto}" "${DATA:=config/demo.py}" "${OUT:=out/ablations$TFLOP}"
first=${SEEDS%% *}
[ "$DATA" != config/demo.py ] || [ -f data/scenes600/meta.json ] || {
    python data/scenes/prepare.py --n_videos=600 --out=data/scenes/videos600
    python prepare.py data/scenes/videos600 --dataset=scenes600 --image_size=64 --patch_size=8
}

learn() { # folder, flags...: trained and evaluated, unless it already is
    [ -f "$1/eval.json" ] && return
    # shellcheck disable=SC2086
    python train.py "$DATA" $MODEL --batch_size=64 --warmup_iters=50 --dtype="$DTYPE" \
        --tflop_budget="$TFLOP" --eval_interval=1000000 "${@:2}" --out_dir="$1"
    python eval.py --run="$1" --checkpoint=latest --truth="${TRUTH-data/scenes/videos600/truth}" \
        --candidates=500 --task=retrieval,words,patches,tags,ground
}
best() { # folders -> the one with the best last validation: R@1, or the loss if nothing is ranked
    python -c 'import json, sys
def score(folder):
    last = json.loads(open(folder + "/log.jsonl").read().splitlines()[-1])
    return last.get("val/i2t_r1", 0) + last.get("val/t2i_r1", 0) or -last["val/loss"]
print(max(sys.argv[1:], key=score))' "$@"
}
rate() { # name -> the learning rate that it was found to like
    local won
    won=$(basename "$(readlink "$OUT/$1-$first")")
    echo "${won#"$1-"}"
}
arm() { # name, flags...: the learning rate by the first seed, then the other seeds
    local folders=()
    if [ ! -L "$OUT/$1-$first" ]; then
        for lr in $LRS; do
            learn "$OUT/sweep/$1-$lr" "${@:2}" --seed="$first" --learning_rate="$lr"
            folders+=("$OUT/sweep/$1-$lr")
        done
        won=$(best "${folders[@]}")
        ln -sfn "sweep/$(basename "$won")" "$OUT/$1-$first"
    fi
    for seed in ${SEEDS#"$first"}; do
        learn "$OUT/$1-$seed" "${@:2}" --seed="$seed" --learning_rate="$(rate "$1")"
    done
}
mkdir -p "$OUT/sweep"
settings="$TFLOP TFLOP, $MODEL, $DATA, $DTYPE"
if [ -f "$OUT/settings" ] && [ "$(cat "$OUT/settings")" != "$settings" ]; then
    echo "error: $OUT was begun with $(cat "$OUT/settings"); take another OUT" >&2
    exit 1
fi
echo "$settings" > "$OUT/settings"
arm full config/full.py
[ $# -gt 0 ] || set -- clip simla amm vilt "no_amm: --parts=xmm_text:1,xmm_image:1" \
    "no_xmm: --parts=amm_text:1,amm_image:1" "no_itm: --itm=0" "no_psl: --psl=0" "no_mim: --mim=0"
for row in "$@"; do
    # shellcheck disable=SC2086
    case $row in
    *:*) LRS=$(rate full) arm "${row%%:*}" config/full.py ${row#*:} ;;
    *) arm "$row" "config/$row.py" ;;
    esac
done
python eval.py --table="$OUT/*-[0-9]*" | tee "$OUT/table.md"
