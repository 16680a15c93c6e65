# SIMLA, 2203.14395: global, patch-token and concept alignment.
# Differs: pixels instead of visual codes, of removed patches; every sample hides words or patches
# (there both, in two passes); fusion and matching as in albef.py
n_unimodal = n_layer // 2
parts = 'xmm_text:1,xmm_image:1'
keep_hi, keep_lo = 1.0, .7           # the paper masks 75 of 256 patches
mask_rate = .15
whole_word = False
mlm, mim, itc, itm, psl, tag = 1.0, 1.0, 1.0, 1.0, 1.0, 0.0
distill = .4
queue_size = 8 * batch_size          # the paper: 65536 = 128 batches
