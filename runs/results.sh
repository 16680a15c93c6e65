#!/usr/bin/env bash
# What a trained model can do: every row of that section of the README, on the embedded set -> out/scenes, out/scenes-itm, their *.json and *.png.
#   bash runs/results.sh                     about 2 hours on 2 CPU cores; Ctrl-C and again: it goes on
#   SEED=1 EPOCHS=5 bash runs/results.sh     another seed, shorter fine-tuning
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
: "${SEED:=0}" "${EPOCHS:=9}" "${DTYPE:=auto}" "${TRAIN:=}" # TRAIN: further flags of train.py
run=out/scenes matched=out/scenes-itm truth=data/scenes/videos2400/truth
[ "$SEED" = 0 ] || { run=out/scenes-seed$SEED matched=out/scenes-itm-seed$SEED; }

[ -f data/scenes2400/meta.json ] || {
    python data/scenes/prepare.py --n_videos="${VIDEOS:-2400}" --out=data/scenes/videos2400
    python prepare.py data/scenes/videos2400 --dataset=scenes2400 --image_size=64 --patch_size=8
}
[ -f data/captions/meta.json ] || {
    python data/scenes/tasks.py --videos=data/scenes/videos2400 --dataset=data/scenes2400 # the truth in the benchmarks' own formats
    for task in vqa nlvr2 snli_ve; do python data/$task/prepare.py --source=data/scenes/tasks/$task --out=data/$task/scenes; done
    python data/karpathy/prepare.py --source=data/scenes/tasks/vqa --out=data/karpathy/scenes.jsonl
    python prepare.py --pairs=data/karpathy/scenes.jsonl --dataset=captions --image_size=64 --patch_size=8
}
# shellcheck disable=SC2086
python train.py config/scenes.py --dtype="$DTYPE" --seed="$SEED" --out_dir=$run $TRAIN
# the matching head needs contrast to find hard negatives, so it comes after
# shellcheck disable=SC2086
python train.py config/scenes.py --init_from=$run/best.pt --itm=1 --parts=xmm_text:6,xmm_image:2,amm_text:2,amm_image:2,clean:4 --learning_rate=2e-3 \
    --warmup_iters=30 --max_iters=400 --dtype="$DTYPE" --seed="$SEED" --out_dir=$matched $TRAIN

for r in $run $matched; do python eval.py --run=$r --truth=$truth; done
python eval.py --run=$run --dataset=captions --task=retrieval --candidates=5000
python eval.py --run=$run --task=probe --examples=data/scenes/tasks/classes
for task in vqa nlvr2 snli_ve; do
    for only in "" text image; do
        python eval.py --run=$matched --task=classify --examples=data/$task/scenes --only=$only --learning_rate=4e-3 --dtype="$DTYPE" --seed="$SEED" \
            --epochs="$([ "$only" ] && echo 2 || echo "$EPOCHS")"
    done
done
