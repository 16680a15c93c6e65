# CLIP, arXiv:2103.00020: contrast alone.   python train.py config/clip.py --dataset=scenes --out_dir=out/clip
# Differs from the paper: one stack of weights for both modalities (there two towers); text reads both ways
# 8 TFLOP on the demo's scenes (runs/ablations.sh, 3 seeds): R@1 by contrast 72.6 ± 1.9 / 73.9 ± 1.6 %
n_unimodal = n_layer
parts = 'clean:1'
keep_hi = 1.0
mlm, mim, itc, itm, psl = 0.0, 0.0, 1.0, 0.0, 0.0
best_by = 'val/itc'
