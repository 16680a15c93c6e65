# BERT-style masked words, 1810.04805.
# Differs: no next-sentence task; every chosen word becomes [MASK] (no 10 % random, 10 % kept)
parts = 'text_only:1'
mask_rate = .15
whole_word = False
mlm, mim, itc, itm, psl, tag = 1.0, 0.0, 0.0, 0.0, 0.0, 0.0
best_by = 'val/mlm'
