# The embedded set on a laptop, in the time of a coffee.     bash runs/demo.sh
out_dir = 'out/demo'
dataset = 'scenes'
context_s = 0.0              # the voice speaks of a scene while it is shown, and of nothing else
image_size, patch_size = 64, 16   # 16 patches: 0.4 GFLOP per pair
n_embd, n_head = 128, 4
# contrast learns most from what nobody masked; painting from words takes long to learn
parts = 'clean:6,xmm_text:3,xmm_image:1,amm_text:2,amm_image:4'
keep_hi = 1.0                # half of 16 patches would hide half of the objects
max_iters = 600              # x 128 pairs = 10 epochs of 7,600 frames
warmup_iters = 100
learning_rate = 4e-3
eval_interval = 200
log_interval = 25
