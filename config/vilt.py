# ViLT, arXiv:2102.03334: one stream, masked words with the whole picture, matching.   python train.py config/vilt.py --dataset=scenes --out_dir=out/vilt
# Differs from the paper: one negative per pair (there a pair is true or false with probability 1/2); no word-patch alignment by optimal transport
# 8 TFLOP on the demo's scenes (runs/ablations.sh, 3 seeds): by the matching head, of 200, 2.0 ± 0.5 / 1.7 ± 0.6 %;
# 8 TFLOP, further: words right, with the picture / another's 65.2 ± 0.5 / 64.6 ± 0.4 %
n_unimodal = 0
parts = 'xmm_text:1'
keep_hi = 1.0
mask_rate = .15
mlm, mim, itc, itm, psl = 1.0, 0.0, 0.0, 1.0, 0.0
best_by = 'val/mlm'
