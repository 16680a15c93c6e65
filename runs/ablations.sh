#!/usr/bin/env bash
# What each part is worth: presets, and changes of the full recipe, at equal counted compute on the embedded set -> out/ablations8/table.md, table.json.
#   DTYPE=bfloat16 bash runs/ablations.sh                       some 3 hours on 2 CPU cores with AVX512_BF16; Ctrl-C and again: it goes on
#   TFLOP=80 SEEDS="0 1 2 3 4" MODEL="--n_embd=128 --n_head=4" OUT=out/ablations80 bash runs/ablations.sh
#   bash runs/ablations.sh "mask6: --mask_rate=.6" flip         only full, these changes of it, and these presets
#   TFLOP=64 SEEDS=0 LRS=2e-3 TASKS=1 bash runs/ablations.sh clip simla amm    then also probed, and fine-tuned on questions and pairs of pictures
#   DATA=config/drawings.py MODEL= TRUTH= OUT=out/ablations_drawings bash runs/ablations.sh clip "no_amm: --parts=xmm_text:1,xmm_image:1"
# Presets choose their learning rate among LRS by validation, with the first seed; changes of the full recipe take the one of full.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
: "${TFLOP:=8}" "${SEEDS:=0 1 2}" "${LRS:=2e-3 8e-3}" "${MODEL=--n_embd=96 --n_head=3}" "${DTYPE:=auto}" "${DATA:=config/demo.py}" "${OUT:=out/ablations$TFLOP}" "${TASKS:=}"
first=${SEEDS%% *}
truth=data/scenes/videos/truth
[ -f data/scenes/meta.json ] || { python data/scenes/prepare.py; python prepare.py data/scenes/videos --dataset=scenes --image_size=64 --patch_size=8; }

learn() { # folder, flags...: trained and evaluated, unless it already is
    [ -f "$1/eval.json" ] && return
    # shellcheck disable=SC2086
    python train.py "$DATA" $MODEL --batch_size=64 --warmup_iters=50 --dtype="$DTYPE" --tflop_budget="$TFLOP" --eval_interval=1000000 "${@:2}" --out_dir="$1"
    python eval.py --run="$1" --checkpoint=latest --truth="${TRUTH-$truth}" --candidates=500 --task=retrieval,words,patches,keywords,ground
}
best() { # folders -> the one with the best last validation: R@1, or the loss where nothing is ranked
    python -c 'import json, sys
def last(folder): return json.loads(open(folder + "/log.jsonl").read().splitlines()[-1])
def score(e): return e.get("val/i2t_r1", 0) + e.get("val/t2i_r1", 0) or -e["val/loss"]
print(max(sys.argv[1:], key=lambda f: score(last(f))))' "$@"
}
once() { # name, learning rate, flags...: not swept, the first seed alone
    learn "$OUT/sweep/$1-$2" "${@:3}" --seed="$first" --learning_rate="$2"
    ln -sfn "sweep/$1-$2" "$OUT/$1-$first"
}
arm() { # name, flags...: the learning rate, then the other seeds
    for lr in $LRS; do learn "$OUT/sweep/$1-$lr" "${@:2}" --seed="$first" --learning_rate="$lr"; done
    local won
    won=$(basename "$(for lr in $LRS; do echo "$OUT/sweep/$1-$lr"; done | xargs bash -c 'best "$@"' _)")
    [ -n "$won" ] || exit 1
    ln -sfn "sweep/$won" "$OUT/$1-$first"
    for seed in ${SEEDS#"$first"}; do learn "$OUT/$1-$seed" "${@:2}" --seed="$seed" --learning_rate="${won#"$1"-}"; done
}
change() { # name, seeds, flags...: of the full recipe
    for seed in $2; do learn "$OUT/$1-$seed" config/full.py "${@:3}" --seed="$seed" --learning_rate="$(basename "$(readlink "$OUT/full-$first")" | cut -d- -f2-)"; done
}
tasks() { # folder: frozen, and fine-tuned; what was done before stays
    [ -f "$1/probe-tasks-classes.json" ] || python eval.py --run="$1" --checkpoint=latest --task=probe --examples=data/scenes/tasks/classes
    for it in vqa:6 nlvr2:3; do
        [ -f "$1/classify-${it%:*}-scenes-0/result.json" ] || python eval.py --run="$1" --checkpoint=latest --task=classify --examples="data/${it%:*}/scenes" \
            --epochs="${it#*:}" --learning_rate=4e-3 --dtype="$DTYPE"
    done
}
export -f best

mkdir -p "$OUT/sweep"
settings="$TFLOP TFLOP, $MODEL, $DATA, $DTYPE"
[ ! -f "$OUT/settings" ] || [ "$(cat "$OUT/settings")" = "$settings" ] || { echo "error: $OUT was begun with $(cat "$OUT/settings"); take another OUT" >&2; exit 1; }
echo "$settings" > "$OUT/settings"
arm full config/full.py
if [ $# -gt 0 ]; then
    for it in "$@"; do
        case $it in
        *:*) change "${it%%:*}" "$SEEDS" ${it#*:} ;;
        *) arm "$it" "config/$it.py" ;;
        esac
    done
else
    arm clip config/clip.py
    for seeds in "$first" "${SEEDS#"$first"}"; do # one seed of everything first
        change no_amm "$seeds" --parts=xmm_text:1,xmm_image:1
        change no_xmm "$seeds" --parts=amm_text:1,amm_image:1
        change no_itm "$seeds" --itm=0
        change no_psl "$seeds" --psl=0
        change no_mim "$seeds" --mim=0
    done
    for name in simla amm vilt; do arm $name config/$name.py; done
    for name in flip albef; do once $name 2e-3 config/$name.py; done
    for name in m3ae mae bert; do once $name 8e-3 config/$name.py; done
    # of 16 samples, 8 with masked words: so many of them fully (1 in full); and of the 8 with removed patches likewise
    change text_0 "$first" --parts=xmm_text:8,xmm_image:7,amm_image:1
    change text_4 "$first" --parts=xmm_text:4,amm_text:4,xmm_image:7,amm_image:1
    change text_6 "$first" --parts=xmm_text:2,amm_text:6,xmm_image:7,amm_image:1
    change image_0 "$first" --parts=xmm_text:7,amm_text:1,xmm_image:8
    change image_4 "$first" --parts=xmm_text:7,amm_text:1,xmm_image:4,amm_image:4
    change image_6 "$first" --parts=xmm_text:7,amm_text:1,xmm_image:2,amm_image:6
    change joint_all "$first" --n_unimodal=0 --psl=0 # which needs a picture alone
    change joint_half "$first" --n_unimodal=3
    change itc3 "$first" --itc=3
    change clean "$first" --parts=clean:8,xmm_text:3,xmm_image:3,amm_text:1,amm_image:1
    change basic "$first" --itm=0 --psl=0 --distill=0
    change basic_clean "$first" --itm=0 --psl=0 --distill=0 --parts=clean:8,xmm_text:3,xmm_image:3,amm_text:1,amm_image:1
fi
if [ -n "$TASKS" ]; then
    [ -f data/nlvr2/scenes/test.jsonl ] || {
        rm -rf data/scenes/tasks
        python data/scenes/tasks.py
        for task in vqa nlvr2; do python data/$task/prepare.py --source=data/scenes/tasks/$task --out=data/$task/scenes; done
    }
    learn "$OUT/nothing-$first" --tflop_budget=0 --max_iters=1 --learning_rate=0 --seed="$first" # what fine-tuning learns by itself
    for run in "$OUT"/*-"$first"; do tasks "$run"; done
fi
python eval.py --table="$OUT/*-[0-9]*" | tee "$OUT/table.md"
