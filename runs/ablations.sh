#!/usr/bin/env bash
# What each part is worth: presets, and changes of the full recipe, at equal counted compute on the
# embedded set -> out/ablations8/table.md, table.json. Ctrl-C and again: it goes on.
#   DTYPE=bfloat16 bash runs/ablations.sh              3 hours on 2 CPU cores with AVX512_BF16
#   bash runs/ablations.sh "mask6: --mask_rate=.6" flip         only full, this change, this preset
#   TFLOP=64 SEEDS=0 LRS=2e-3 TASKS=1 bash runs/ablations.sh amm        also probed and fine-tuned
#   DATA=config/drawings.py MODEL= TRUTH= OUT=out/ablations_drawings bash runs/ablations.sh clip
# Presets choose their learning rate among LRS by validation, with the first seed; changes of the
# full recipe take the one of full.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
: "${TFLOP:=8}" "${SEEDS:=0 1 2}" "${LRS:=2e-3 8e-3}" "${MODEL=--n_embd=96 --n_head=3}"
: "${DTYPE:=auto}" "${DATA:=config/demo.py}" "${OUT:=out/ablations$TFLOP}" "${TASKS:=}"
first=${SEEDS%% *}
[ -f data/scenes/meta.json ] || {
    python data/scenes/prepare.py
    python prepare.py data/scenes/videos --dataset=scenes --image_size=64 --patch_size=8
}

learn() { # folder, flags...: trained and evaluated, unless it already is
    [ -f "$1/eval.json" ] && return
    # shellcheck disable=SC2086
    python train.py "$DATA" $MODEL --batch_size=64 --warmup_iters=50 --dtype="$DTYPE" \
        --tflop_budget="$TFLOP" --eval_interval=1000000 "${@:2}" --out_dir="$1"
    python eval.py --run="$1" --checkpoint=latest --truth="${TRUTH-data/scenes/videos/truth}" \
        --candidates=500 --task=retrieval,words,patches,keywords,ground
}
best() { # folders -> the one with the best last validation: R@1, or the loss if nothing is ranked
    python -c 'import json, sys
def score(folder):
    last = json.loads(open(folder + "/log.jsonl").read().splitlines()[-1])
    return last.get("val/i2t_r1", 0) + last.get("val/t2i_r1", 0) or -last["val/loss"]
print(max(sys.argv[1:], key=score))' "$@"
}
arm() { # name, flags...: the learning rate, then the other seeds
    local won folders=()
    for lr in $LRS; do
        learn "$OUT/sweep/$1-$lr" "${@:2}" --seed="$first" --learning_rate="$lr"
        folders+=("$OUT/sweep/$1-$lr")
    done
    won=$(basename "$(best "${folders[@]}")")
    [ -n "$won" ] || exit 1
    ln -sfn "sweep/$won" "$OUT/$1-$first"
    for seed in ${SEEDS#"$first"}; do
        learn "$OUT/$1-$seed" "${@:2}" --seed="$seed" --learning_rate="${won#"$1"-}"
    done
}
change() { # name, seeds, flags...: of the full recipe
    local lr
    lr=$(basename "$(readlink "$OUT/full-$first")" | cut -d- -f2-)
    for seed in $2; do
        learn "$OUT/$1-$seed" config/full.py "${@:3}" --seed="$seed" --learning_rate="$lr"
    done
}
tasks() { # folder: frozen, and fine-tuned; what was done before stays
    [ -f "$1/probe-tasks-classes.json" ] || python eval.py --run="$1" --checkpoint=latest \
        --task=probe --examples=data/scenes/tasks/classes
    for it in vqa:6 nlvr2:3; do
        [ -f "$1/finetune-${it%:*}-scenes-0/result.json" ] || python eval.py --run="$1" \
            --checkpoint=latest --task=finetune --examples="data/${it%:*}/scenes" \
            --epochs="${it#*:}" --learning_rate=4e-3 --dtype="$DTYPE"
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
        for it in itm psl mim; do change no_$it "$seeds" --$it=0; done
    done
    for name in simla amm vilt; do arm $name config/$name.py; done
    for it in flip-2e-3 albef-2e-3 m3ae-8e-3 mae-8e-3 bert-8e-3; do # not swept, one seed
        name=${it%%-*}
        learn "$OUT/sweep/$it" config/$name.py --seed="$first" --learning_rate="${it#*-}"
        ln -sfn "sweep/$it" "$OUT/$name-$first"
    done
    # of 8 samples with masked words so many fully (1 in full); of 8 with removed patches likewise
    for n in 0 4 6; do
        change text_$n "$first" --parts=xmm_text:$((8 - n)),amm_text:$n,xmm_image:7,amm_image:1
        change image_$n "$first" --parts=xmm_text:7,amm_text:1,xmm_image:$((8 - n)),amm_image:$n
    done
    change joint_all "$first" --n_unimodal=0 --psl=0 # which needs a picture alone
    change joint_half "$first" --n_unimodal=3
    change itc3 "$first" --itc=3
    half=--parts=clean:8,xmm_text:3,xmm_image:3,amm_text:1,amm_image:1
    change clean "$first" $half
    change basic "$first" --itm=0 --psl=0 --distill=0
    change basic_clean "$first" --itm=0 --psl=0 --distill=0 $half
fi
if [ -n "$TASKS" ]; then
    [ -f data/nlvr2/scenes/test.jsonl ] || {
        rm -rf data/scenes/tasks
        python data/scenes/tasks.py
        for it in vqa nlvr2; do
            python data/$it/prepare.py --source=data/scenes/tasks/$it --out=data/$it/scenes
        done
    }
    # what fine-tuning does alone
    learn "$OUT/nothing-$first" --tflop_budget=0 --max_iters=1 --learning_rate=0 --seed="$first"
    for run in "$OUT"/*-"$first"; do tasks "$run"; done
fi
python eval.py --table="$OUT/*-[0-9]*" | tee "$OUT/table.md"
