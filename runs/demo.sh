#!/usr/bin/env bash
# The whole path on the embedded set: make narrated videos, prepare, pretrain, look at what was
# learned. 6 minutes on 2 CPU cores, without the installation.
#   bash runs/demo.sh            Ctrl-C and again: it goes on
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
python data/scenes/prepare.py
python prepare.py data/scenes/videos --dataset=scenes --image_size=64 --patch_size=8
python train.py config/demo.py
python eval.py --run=out/demo --truth=data/scenes/videos/truth --write_length=32
echo "Look at pictures.png and retrieval.png in out/demo; the numbers are in eval.json"
