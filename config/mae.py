# MAE, 2111.06377: pictures alone, 75 % removed.
# Differs: predictor of 2 blocks of half the width (there: 8 of 512); no random resized crops
parts = 'image_only:1'
keep_lo = .25
mim_target = 'norm_pix'
mlm, mim, itc, itm, psl, tag = 0.0, 1.0, 0.0, 0.0, 0.0, 0.0
best_by = 'val/mim'
