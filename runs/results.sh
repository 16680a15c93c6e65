#!/usr/bin/env bash
# What a trained model can do: every row of that section of runs/RESULTS.md, on the embedded set ->
# out/scenes8, out/scenes8-itm, their *.json and *.png. Ctrl-C and again: it goes on.
#   DTYPE=bfloat16 bash runs/results.sh             2 to 3 hours on one core with AVX512_BF16
# shellcheck disable=SC2086
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
common="--dtype=${DTYPE:=auto}"
# config/scenes.py until 30 November 2026
small="--patch_size=8 --n_layer=6 --n_unimodal=4 --batch_size=128 --mask_rate=.4 --itc=1 --tag=0"
base=out/scenes8 matched=out/scenes8-itm
videos=data/scenes/videos2400 tasks=data/scenes/tasks2400

[ -f data/scenes2400/meta.json ] || {
    python data/scenes/prepare.py --n_videos=2400 --out=$videos
    python prepare.py $videos --dataset=scenes2400 --image_size=64 --patch_size=8
}
[ -f data/captions/meta.json ] || {
    rm -rf $tasks # the truth in the benchmarks' own formats
    python data/scenes/tasks.py --videos=$videos --dataset=data/scenes2400 --out=$tasks
    for it in vqa nlvr2 snli_ve; do
        python data/$it/prepare.py --source=$tasks/$it --out=data/$it/scenes2400
    done
    list=data/karpathy/scenes2400.jsonl
    python data/karpathy/prepare.py --source=$tasks/vqa --out=$list
    python prepare.py --pairs=$list --dataset=captions --image_size=64 --patch_size=8
}
python train.py config/scenes.py $small --parts=xmm_text:3,xmm_image:3,amm_text:2,amm_image:8 \
    --max_iters=1200 --eval_interval=300 $common --out_dir=$base
# the matching head needs contrast to find hard negatives, so it comes after
python train.py config/scenes.py $small --init_from=$base/best.pt --itm=1 \
    --parts=xmm_text:6,xmm_image:2,amm_text:2,amm_image:2,clean:4 --learning_rate=2e-3 \
    --warmup_iters=30 --max_iters=400 --eval_interval=300 $common --out_dir=$matched

python eval.py --run=$base --truth=$videos/truth
python eval.py --run=$matched --truth=$videos/truth
python eval.py --run=$base --dataset=captions --task=retrieval --candidates=5000
python train.py config/scenes.py $small --dataset=captions --init_from=$base/best.pt \
    --parts=xmm_text:3,xmm_image:3,amm_text:2,amm_image:8 \
    --learning_rate=1e-3 --warmup_iters=10 --max_iters=100 --eval_interval=50 \
    $common --out_dir=$base-captions
python eval.py --run=$base-captions --task=retrieval --candidates=5000
python eval.py --run=$base --task=probe --examples=$tasks/classes
finetune() { # task, epochs, flags...
    python eval.py --run=$matched --task=finetune --examples=data/$1/scenes2400 --epochs=$2 \
        --learning_rate=4e-3 $common "${@:3}"
}
finetune vqa 6
finetune nlvr2 3
finetune snli_ve 2
for it in vqa nlvr2 snli_ve; do finetune $it 1 --only=text; done # without looking
python eval.py --table='out/scenes8*'
