# BERT-style masked language modelling, arXiv:1810.04805: words alone.   python train.py config/bert.py --dataset=scenes --out_dir=out/bert
# Differs from the paper: no next-sentence task; every chosen word becomes [MASK] (no 10 % random, 10 % kept); GPT-2's tokens
# 8 TFLOP on the demo's scenes (runs/ablations.sh, 1 seed): words right, with the picture / another's 67.4 / 67.2 %
parts = 'text_only:1'
mask_rate = .15
whole_word = False
mlm, mim, itc, itm, psl = 1.0, 0.0, 0.0, 0.0, 0.0
best_by = 'val/mlm'
