# ALBEF, arXiv:2107.07651: align, then fuse.   python train.py config/albef.py --dataset=scenes --out_dir=out/albef
# Differs from the paper: fusion by attention over [text ; image] in a shared stack (there cross-attention in half of a text encoder); one negative per pair
# 8 TFLOP on the demo's scenes (runs/ablations.sh, 1 seed): R@1 by contrast 0.2 / 0.2 %; by the matching head 0.4 / 0.2 %;
# 8 TFLOP, further: words right, with the picture / another's 41.1 / 41.1 %
n_unimodal = n_layer // 2
parts = 'xmm_text:1'
keep_hi = 1.0
mask_rate = .15
whole_word = False
mlm, mim, itc, itm, psl = 1.0, 0.0, 1.0, 1.0, 0.0
distill = .4
queue_size = 8 * batch_size          # the paper: 65536 = 128 batches
