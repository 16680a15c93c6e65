# How fast is train.py? ViT-B/16, 256 px, 32 tokens, every objective, teacher.    bash runs/bench.sh
#   torchrun --standalone --nproc_per_node=8 train.py config/bench.py       MFU is per GPU
dataset = 'bench'            # runs/bench.sh makes it
out_dir = 'out/bench'
resume = False
n_layer, n_unimodal, n_head, n_embd, proj_dim = 12, 8, 12, 768, 256
image_size, patch_size, text_len = 256, 16, 32
compact_vocab = False        # all 50,257 tokens of GPT-2 are predicted
parts = 'xmm_text:7,xmm_image:7,amm_text:1,amm_image:1'
keep_hi, keep_lo, mask_rate = .5, .25, .4
mlm, mim, itc, itm, psl, distill = 1.0, 1.0, 1.0, 1.0, 1.0, .4
batch_size = 512             # fits into 80 GB; on a CPU: --batch_size=16
max_iters = 60
warmup_iters = 20
learning_rate = 1e-3
eval_interval = 0            # nothing but steps
log_interval = 10
count_flops = True
