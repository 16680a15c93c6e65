#!/usr/bin/env bash
# Pretraining on a cluster: one launcher per node, the nodes meet at the first one's address.
#   sbatch --nodes=8 runs/train_slurm.sh config/full.py --dataset=talks --out_dir=/shared/out/full
# Two minutes before the time limit the run saves and the job queues again; after a lost node
# --requeue starts it again. bash runs/test.sh makes the .venv.
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
. .venv/bin/activate
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=4 # the loader is one thread
again() {
    scancel --signal=TERM "$SLURM_JOB_ID.0" && wait "$step" || scontrol requeue "$SLURM_JOB_ID"
}
trap again USR1
srun torchrun --nnodes="$SLURM_NNODES" --nproc_per_node="${SLURM_GPUS_ON_NODE:-8}" \
    --max-restarts=3 --rdzv_backend=c10d --rdzv_id="$SLURM_JOB_ID" \
    --rdzv_endpoint="$first:29400" train.py "$@" &
step=$!
wait "$step"
