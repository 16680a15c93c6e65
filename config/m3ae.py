# M3AE, 2205.14204: words and patches masked together.
# Differs: masked words stay as [MASK], 15..75 % of them (there 75 % leave the sequence); one mask
# per sample, not per batch
n_unimodal = 0
parts = 'joint:1'
keep_lo = .25
whole_word = False
mlm, mim, itc, itm, psl, tag = .5, 1.0, 0.0, 0.0, 0.0, 0.0
best_by = 'val/mlm'
