# Every objective: alternate masking, contrast, matching, keywords, soft targets.   python train.py config/full.py --dataset=scenes --out_dir=out/full
# 8 TFLOP on the demo's scenes (runs/ablations.sh, 3 seeds): R@1 by contrast 19.3 ± 3.8 / 18.7 ± 4.0 %; by the matching head 5.6 ± 0.5 / 3.9 ± 0.2 %;
# 8 TFLOP, further: by likelihood 1.1 ± 0.1 / 0.7 ± 0.2 %; words right, with the picture / another's 45.3 ± 0.4 / 44.9 ± 0.6 %; PSNR 16.4 dB
n_unimodal = 2 * n_layer // 3
parts = 'xmm_text:7,xmm_image:7,amm_text:1,amm_image:1'
mlm, mim, itc, itm, psl = 1.0, 1.0, 1.0, 1.0, .1
distill = .4
