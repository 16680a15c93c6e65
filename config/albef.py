# ALBEF, 2107.07651: align, then fuse.
# Differs: fusion by attention over [text ; image] in a shared stack (there cross-attention in half
# of a text encoder); one negative per pair; matching sees half of the patches
n_unimodal = n_layer // 2
parts = 'xmm_text:1'
keep_hi = 1.0
mask_rate = .15
whole_word = False
mlm, mim, itc, itm, psl, tag = 1.0, 0.0, 1.0, 1.0, 0.0, 0.0
distill = .4
queue_size = 8 * batch_size          # the paper: 65536 = 128 batches
