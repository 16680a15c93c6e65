#!/usr/bin/env bash
# The whole path on the embedded set: make narrated videos, prepare them, pretrain, look at what was learned. 6.5 minutes on 2 CPU cores, without the installation.
#   bash runs/demo.sh            run it again after Ctrl-C: it goes on where it was
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
python data/scenes/prepare.py
python prepare.py data/scenes/videos --dataset=scenes --image_size=64 --patch_size=8
python train.py config/demo.py
python eval.py --run=out/demo --truth=data/scenes/videos/truth
echo "Look at out/demo/pictures.png and out/demo/retrieval.png; the numbers are in out/demo/eval.json"
