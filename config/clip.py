# CLIP, 2103.00020: contrast alone.
# Differs: one stack of weights for both modalities (there two towers); text reads both ways
n_unimodal = n_layer
parts = 'clean:1'
keep_hi = 1.0
mlm, mim, itc, itm, psl, tag = 0.0, 0.0, 1.0, 0.0, 0.0, 0.0
best_by = 'val/itc'
