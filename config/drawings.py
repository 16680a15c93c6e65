# 7.5 hours of narrated drawings on a laptop, words by Whisper tiny.en.
#   python prepare.py <drawings> --dataset=drawings --whisper_model=tiny.en --image_size=80 \
#       --patch_size=8
#   python train.py config/drawings.py
#   python eval.py --run=out/drawings --truth=<drawings>/truth
out_dir = 'out/drawings'
dataset = 'drawings'
context_s = 0.0              # a drawing is shown as long as it is spoken of (runs/RESULTS.md)
text_len = 24                # one sentence
image_size, patch_size = 64, 8
n_embd, n_head = 192, 6
parts = 'xmm_text:7,xmm_image:5,amm_text:2,amm_image:2'
keep_hi = .5                 # dropping patches augments: 4,000 frames overfit without it
max_iters = 500              # x 128 pairs = 15.7 epochs of 4,083 frames
warmup_iters = 60
learning_rate = 2e-3
weight_decay = .1
eval_interval = 100
log_interval = 25
best_by = 'val/t2i_r1'       # the contrastive loss overfits long before the ranks do
