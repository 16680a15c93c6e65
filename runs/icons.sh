#!/usr/bin/env bash
# Real pictures by the hundred thousand: draws the icons, trains, judges by names that were never
# seen and by hands that were never seen, finds icons for queries. Ctrl-C and again: it goes on.
#   bash runs/icons.sh --dtype=bfloat16 --compile=True      settings of the training run: on a CPU
#                                                           with AMX three times as fast
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
python -c 'import resvg_py' 2> /dev/null || python -m pip install --quiet resvg-py
python data/icons/prepare.py
python prepare.py --pairs=data/icons/pairs --dataset=icons --image_size=80 --patch_size=8
python prepare.py --pairs=data/icons/hands --dataset=icons_hands --image_size=80 --patch_size=8
python train.py config/icons.py "$@"
python eval.py --run=out/icons --distinct
python eval.py --run=out/icons --distinct --dataset=icons_hands

# written down before the first training run
while read -r query; do
    python eval.py --run=out/icons --task=search --by=seen --top=5 --query="$query" < /dev/null
done << 'END'
a sailing boat
a warning triangle
a bicycle
a cup of coffee
a birthday cake
a snowflake
an umbrella
a cat
a dog
a tree
a house with a heart
a rocket
a guitar
a pair of scissors
a key
a shopping cart
a broken heart
a light bulb
a calendar with a check mark
an arrow turning left
END
