#!/usr/bin/env bash
# What a trained model can do: every row of that section of the README, on the embedded set -> out/scenes, out/scenes-itm, their *.json and *.png.
#   DTYPE=bfloat16 bash runs/results.sh      2 to 3 hours, the sum of its steps on one core with AVX512_BF16; Ctrl-C and again: it goes on
#   SEED=1 bash runs/results.sh              another seed
# shellcheck disable=SC2086
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
: "${SEED:=0}" "${DTYPE:=auto}" "${TRAIN:=}" # TRAIN: further flags of train.py
base=out/scenes matched=out/scenes-itm truth=data/scenes/videos2400/truth tasks=data/scenes/tasks2400
[ "$SEED" = 0 ] || { base=out/scenes-$SEED matched=out/scenes-itm-$SEED; }

[ -f data/scenes2400/meta.json ] || {
    python data/scenes/prepare.py --n_videos=2400 --out=data/scenes/videos2400
    python prepare.py data/scenes/videos2400 --dataset=scenes2400 --image_size=64 --patch_size=8
}
[ -f data/captions/meta.json ] || {
    rm -rf $tasks
    python data/scenes/tasks.py --videos=data/scenes/videos2400 --dataset=data/scenes2400 --out=$tasks # the truth in the benchmarks' own formats
    for task in vqa nlvr2 snli_ve; do python data/$task/prepare.py --source=$tasks/$task --out=data/$task/scenes2400; done
    python data/karpathy/prepare.py --source=$tasks/vqa --out=data/karpathy/scenes2400.jsonl
    python prepare.py --pairs=data/karpathy/scenes2400.jsonl --dataset=captions --image_size=64 --patch_size=8
}
python train.py config/scenes.py --dtype=$DTYPE --seed=$SEED --out_dir=$base $TRAIN
# the matching head needs contrast to find hard negatives, so it comes after
python train.py config/scenes.py --init_from=$base/best.pt --itm=1 --parts=xmm_text:6,xmm_image:2,amm_text:2,amm_image:2,clean:4 --learning_rate=2e-3 \
    --warmup_iters=30 --max_iters=400 --dtype=$DTYPE --seed=$SEED --out_dir=$matched $TRAIN

python eval.py --run=$base --truth=$truth --ground_layer=1
python eval.py --run=$matched --truth=$truth
python eval.py --run=$base --dataset=captions --task=retrieval --candidates=5000
python train.py config/scenes.py --dataset=captions --init_from=$base/best.pt --learning_rate=1e-3 --warmup_iters=10 --max_iters=100 --eval_interval=50 --dtype=$DTYPE \
    --seed=$SEED --out_dir=$base-captions
python eval.py --run=$base-captions --task=retrieval --candidates=5000
python eval.py --run=$base --task=probe --examples=$tasks/classes
finetune() { # task, epochs, flags...
    python eval.py --run=$matched --task=classify --examples=data/$1/scenes2400 --epochs=$2 --learning_rate=4e-3 --dtype=$DTYPE --seed=$SEED "${@:3}"
}
finetune vqa 6
finetune nlvr2 3
finetune snli_ve 2
for task in vqa nlvr2 snli_ve; do finetune $task 1 --only=text; done # what can be had without looking
python eval.py --table='out/scenes*'
