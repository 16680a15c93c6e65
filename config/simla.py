# SIMLA, arXiv:2203.14395: global, patch-token and concept alignment.   python train.py config/simla.py --dataset=scenes --out_dir=out/simla
# Differs from the paper: pixels instead of visual codes, of removed patches; every sample hides words or patches (there both, in two passes);
# fusion by attention over [text ; image] (there cross-attention); one negative per pair
# 8 TFLOP on the demo's scenes (runs/ablations.sh, 3 seeds): R@1 by contrast 4.1 ± 0.9 / 4.2 ± 0.5 %; by the matching head 2.7 ± 0.7 / 2.9 ± 0.5 %;
# 8 TFLOP, further: words right, with the picture / another's 61.4 ± 0.5 / 61.1 ± 0.5 %; PSNR 16.9 dB
n_unimodal = n_layer // 2
parts = 'xmm_text:1,xmm_image:1'
keep_hi, keep_lo = 1.0, .7           # the paper masks 75 of 256 patches
mask_rate = .15
whole_word = False
mlm, mim, itc, itm, psl = 1.0, 1.0, 1.0, 1.0, 1.0
psl_variant = 'simla'
distill = .4
queue_size = 8 * batch_size          # the paper: 65536 = 128 batches
