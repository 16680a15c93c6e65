#!/usr/bin/env bash
# How fast is one training step here, beside others' on the same machine -> out/bench/table.md.
# train.py itself at the reference setting, over real arrays.
#   bash runs/bench.sh                       GPU: compiled, eager, peers; CPU: small, 10 minutes
#   bash runs/bench.sh --batch_size=256      flags go to train.py and to the peers
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
# the peers; without it only our rows
[ "${INSTALL:-yes}" = no ] || python -m pip install --quiet transformers
[ -f data/bench/meta.json ] || {
    python data/scenes/prepare.py --size=272 --n_videos=60 --out=data/scenes/videos272
    python prepare.py data/scenes/videos272 --dataset=bench --image_size=272 --patch_size=16
}
if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    python train.py config/bench.py --out_dir=out/bench/compiled "$@"
    python train.py config/bench.py --out_dir=out/bench/eager --compile=false "$@"
else
    # so few pairs do not pay for Muon: AdamW, like the peers
    set -- --batch_size=32 --max_iters=4 --log_interval=1 --muon=false "$@"
    python train.py config/bench.py --out_dir=out/bench/float32 "$@"
    python train.py config/bench.py --out_dir=out/bench/bfloat16 --dtype=bfloat16 "$@"
fi
python runs/peers.py config/bench.py "$@"
python runs/kinds.py config/bench.py "$@"
