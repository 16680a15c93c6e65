#!/usr/bin/env bash
# A large folder or a frozen list of videos on a cluster: each task takes its share, one last call
# joins the shards. Freeze a list first, on one machine:
#   python prepare.py "ytsearch500:how to draw" --dataset=draw --resolve
#   sbatch --wait runs/prepare_slurm.sh data/draw/items.jsonl --dataset=draw
#   python prepare.py --dataset=draw
# A site is asked by task 0 alone; files on a shared disk are shared out evenly. --requeue is safe:
# shards are whole or absent. bash runs/test.sh makes the .venv.
#SBATCH --array=0-15
#SBATCH --cpus-per-task=4
#SBATCH --requeue
set -euo pipefail
. .venv/bin/activate
python prepare.py "$@" --workers="${SLURM_CPUS_PER_TASK:-4}"
