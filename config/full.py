# Every objective of the two papers: alternate masking, contrast, matching, keywords, soft targets.
n_unimodal = 2 * n_layer // 3
parts = 'xmm_text:7,xmm_image:7,amm_text:1,amm_image:1'
mlm, mim, itc, itm, psl, tag = 1.0, 1.0, 1.0, 1.0, 1.0, 0.0
distill = .4
