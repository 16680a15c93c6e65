# FLIP, arXiv:2212.00794: CLIP on half of the patches.   python train.py config/flip.py --dataset=scenes --out_dir=out/flip
# Differs from the paper: as clip.py; no last epochs on whole pictures
# 8 TFLOP on the demo's scenes (runs/ablations.sh, 1 seed): R@1 by contrast 48.6 / 48.2 %
n_unimodal = n_layer
parts = 'clean:1'
keep_hi = .5
mlm, mim, itc, itm, psl = 0.0, 0.0, 1.0, 0.0, 0.0
best_by = 'val/itc'
