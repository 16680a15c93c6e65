# Writes and paints what is to be seen: the embedded set again, twice as many videos, and longer.
# Words before contrast: it comes by itself.
#   python data/scenes/prepare.py --n_videos=2400 --out=data/scenes/videos2400
#   python prepare.py data/scenes/videos2400 --dataset=scenes2400 --image_size=64 --patch_size=8
#   python train.py config/scenes.py
#   python eval.py --run=out/scenes --truth=data/scenes/videos2400/truth --write_length=32
out_dir = 'out/scenes'
dataset = 'scenes2400'
context_s = 0.0
text_len = 48                # three objects take up to 45 tokens
image_size, patch_size = 64, 16
n_layer, n_unimodal = 4, 2
n_embd, n_head = 128, 4
batch_size = 64
parts = 'xmm_text:8,amm_text:6,xmm_image:1,amm_image:1'
keep_hi = 1.0
mask_rate = .6
tag = 1.0                    # else shapes are not seen: runs/RESULTS.md
itc = .3
max_iters = 4000             # x 64 pairs = 7 epochs of 38,000 frames
warmup_iters = 100
learning_rate = 4e-3
eval_interval = 700
log_interval = 50
