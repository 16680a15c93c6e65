# 340,000 drawn icons and their names on a laptop: bash runs/icons.sh
out_dir = 'out/icons'
dataset = 'icons'
context_s = 0.0
text_len = 16                # a name in a phrase
image_size, patch_size = 64, 8
n_embd, n_head = 192, 6
batch_size = 256             # many names: more of them to tell apart
parts = 'clean:8,xmm_text:3,xmm_image:3,amm_text:1,amm_image:1'
keep_hi = .5                 # half of the patches do, and cost half
max_iters = 2000             # x 256 pairs = 1.6 epochs
warmup_iters = 100
learning_rate = 2e-3
eval_interval = 200
log_interval = 25
best_by = 'val/t2i_r1'
