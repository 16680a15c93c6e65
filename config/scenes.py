# Pictures from words alone: the embedded set again, four times as many videos, and longer.
#   python data/scenes/prepare.py --n_videos=2400 --out=data/scenes/videos2400
#   python prepare.py data/scenes/videos2400 --dataset=scenes2400 --image_size=64 --patch_size=8
#   python train.py config/scenes.py
#   python eval.py --run=out/scenes --truth=data/scenes/videos2400/truth
out_dir = 'out/scenes'
dataset = 'scenes2400'
context_s = 0.0
text_len = 48                # three objects take up to 45 tokens
image_size, patch_size = 64, 8
n_embd, n_head = 128, 4
parts = 'xmm_text:3,xmm_image:3,amm_text:2,amm_image:8'    # painting takes longest to learn
keep_hi = 1.0
max_iters = 1200             # x 128 pairs = 5 epochs of 30,000 frames
warmup_iters = 100
learning_rate = 4e-3
eval_interval = 300
log_interval = 50
