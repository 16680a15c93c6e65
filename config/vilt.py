# ViLT, 2102.03334: one stream, masked words with the whole picture, matching.
# Differs: one negative per pair (there a pair is true or false with probability 1/2), judged by
# half of the patches; no word-patch alignment by optimal transport
n_unimodal = 0
parts = 'xmm_text:1'
keep_hi = 1.0
mask_rate = .15
mlm, mim, itc, itm, psl, tag = 1.0, 0.0, 0.0, 1.0, 0.0, 0.0
best_by = 'val/mlm'
