# FLIP, 2212.00794: CLIP on half of the patches.
# Differs: as clip.py; no last epochs on whole pictures
n_unimodal = n_layer
parts = 'clean:1'
keep_hi = .5
mlm, mim, itc, itm, psl, tag = 0.0, 0.0, 1.0, 0.0, 0.0, 0.0
best_by = 'val/itc'
