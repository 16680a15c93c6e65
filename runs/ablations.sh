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
arm() { # name, flags...: the learning rate by the first seed, then the other seeds
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
row() { # a preset, or "name: flags", a change of the full recipe, which takes its learning rate
    local full
    full=$(basename "$(readlink "$OUT/full-$first")")
    # shellcheck disable=SC2086
    case $1 in
    *:*) LRS=${full#full-} arm "${1%%:*}" config/full.py ${1#*:} ;;
    *) arm "$1" "config/$1.py" ;;
    esac
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
asked=$#
[ "$asked" -gt 0 ] || set -- clip "no_amm: --parts=xmm_text:1,xmm_image:1" \
    "no_xmm: --parts=amm_text:1,amm_image:1" "no_itm: --itm=0" "no_psl: --psl=0" \
    "no_mim: --mim=0" simla amm vilt
for it in "$@"; do row "$it"; done
if [ "$asked" = 0 ]; then # of one seed, the presets not swept
    SEEDS=$first
    for it in flip albef; do LRS=2e-3 row $it; done
    for it in m3ae mae bert; do LRS=8e-3 row $it; done
    # of 8 samples with masked words so many fully (1 in full); of 8 with removed patches likewise
    for n in 0 4 6; do
        row "text_$n: --parts=xmm_text:$((8 - n)),amm_text:$n,xmm_image:7,amm_image:1"
        row "image_$n: --parts=xmm_text:7,amm_text:1,xmm_image:$((8 - n)),amm_image:$n"
    done
    half=--parts=clean:8,xmm_text:3,xmm_image:3,amm_text:1,amm_image:1
    for it in "joint_all: --n_unimodal=0 --psl=0" "joint_half: --n_unimodal=3" "itc3: --itc=3" \
        "clean: $half" "basic: --itm=0 --psl=0 --distill=0" \
        "basic_clean: --itm=0 --psl=0 --distill=0 $half"; do row "$it"; done
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
