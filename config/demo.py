# The embedded set on a laptop, in the time of a coffee.     bash runs/demo.sh
out_dir = 'out/demo'
dataset = 'scenes'
context_s = 0.0              # the voice speaks of a scene while it is shown, and of nothing else
image_size, patch_size = 64, 16   # 16 patches: 0.2 GFLOP per pair
n_layer, n_unimodal = 4, 2   # few layers, small batches: more steps in as many minutes
n_embd, n_head = 128, 4
batch_size = 64
parts = 'clean:3,xmm_text:6,xmm_image:1,amm_text:4,amm_image:2'
keep_hi = 1.0                # half of 16 patches would hide half of the objects
mask_rate = .6               # more words to find in the picture
tag = 1.0                    # else shapes are not seen: runs/RESULTS.md
max_iters = 1700             # x 64 pairs = 7 epochs of 15,200 frames
warmup_iters = 100
learning_rate = 4e-3
eval_interval = 425
log_interval = 50
