# M3AE, arXiv:2205.14204: words and patches masked together, one stream.   python train.py config/m3ae.py --dataset=scenes --out_dir=out/m3ae
# Differs from the paper: masked words stay as [MASK] at a rate drawn from 15..75 % (there 75 % leave the sequence); one mask per sample, not per batch
# 8 TFLOP on the demo's scenes (runs/ablations.sh, 1 seed): words right, with the picture / another's 65.9 / 63.5 %; PSNR 17.9 dB
n_unimodal = 0
parts = 'joint:1'
keep_lo = .25
whole_word = False
mlm, mim, itc, itm, psl = .5, 1.0, 0.0, 0.0, 0.0
best_by = 'val/mlm'
