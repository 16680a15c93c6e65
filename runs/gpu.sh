#!/usr/bin/env bash
# Ten minutes on one CUDA GPU: does all of it run there, and how fast -> out/gpu/table.md.
# Needs torch, numpy, tqdm, tiktoken and openai-whisper (for its rank file); no network, no data.
#   bash runs/gpu.sh         each step has its own time limit; one that fails is told
set -uo pipefail
INSTALL=no
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
rm -rf out/gpu
mkdir -p out/gpu
export TORCHINDUCTOR_CACHE_DIR="$PWD/out/gpu/cache" TORCHINDUCTOR_FX_GRAPH_CACHE=1

step() { # name, seconds, command
    local name=$1 limit=$2
    shift 2
    if timeout "$limit" "$@" >"out/gpu/$name.log" 2>&1; then
        echo "== $name: done after $SECONDS s"
    else
        echo "== $name: failed ($?) after $SECONDS s"
    fi
    tail -n 4 "out/gpu/$name.log"
}
config=config/bench.py
bench() { # name, seconds, flags
    local name=$1 limit=$2
    shift 2
    step "$name" "$limit" python train.py "$config" --dataset=gpu --log_interval=4 \
        --out_dir="out/gpu/$name" "$@"
}

step arrays 60 python runs/gpu.py arrays

# compiling takes minutes of one core and none of the GPU: beside the small measurements
bench warm 400 --compile=true --max_iters=1 --out_dir=out/gpu/cache/warm &
for name in machine products attention parts; do
    step $name 60 python runs/gpu.py $name
done
bench eager 60 --compile=false --max_iters=12
wait
bench compiled 120 --compile=true --max_iters=40
step kinds 120 python runs/kinds.py config/bench.py --dataset=gpu --compile=true

# a model so small that launching its kernels takes longest
config=config/demo.py
for mode in default reduce-overhead; do
    bench demo-$mode 150 --compile=true --compile_mode=$mode --max_iters=60 --eval_interval=0
done
config=config/bench.py

bench float16 60 --compile=false --max_iters=20 --dtype=float16
bench pairs1024 60 --compile=false --max_iters=8 --batch_size=1024
for name in same1 same2; do
    bench $name 60 --compile=false --max_iters=4 --deterministic=true
done
small="--n_layer=2 --n_unimodal=1 --batch_size=64 --eval_interval=4 --resume=true"
bench resumed 60 $small --max_iters=4 --device=cpu
bench resumed 60 $small --max_iters=8 --compile=false
python runs/gpu.py table
