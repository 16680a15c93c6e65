# Alternate modality masking: words or patches, partly or all, so that the other modality has to carry them across.
#   python train.py config/amm.py --dataset=scenes --out_dir=out/amm
# Differs from the paper: the share of fully masked samples is a guess (1/4)
# 8 TFLOP on the demo's scenes (runs/ablations.sh, 3 seeds): by likelihood 1.3 ± 0.3 / 1.2 ± 0.3 %;
# 8 TFLOP, further: words right, with the picture / another's 66.7 ± 0.2 / 63.3 ± 0.1 %; PSNR 16.7 dB
n_unimodal = 0
parts = 'xmm_text:3,xmm_image:3,amm_text:1,amm_image:1'
mlm, mim, itc, itm, psl = 1.0, 1.0, 0.0, 0.0, 0.0
best_by = 'val/mlm'
