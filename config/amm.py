# Alternate modality masking: words or patches, partly or all, so that the other modality has to
# carry them across.
# Differs: the share of fully masked samples is a guess (1/4)
n_unimodal = 0
parts = 'xmm_text:3,xmm_image:3,amm_text:1,amm_image:1'
mlm, mim, itc, itm, psl, tag = 1.0, 1.0, 0.0, 0.0, 0.0, 0.0
best_by = 'val/mlm'
