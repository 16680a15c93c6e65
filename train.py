"""Pretrain one transformer on the arrays of prepare.py with the masking objectives of model.py.

    python train.py                                             data/scenes on whatever this machine has
    python train.py config/scenes.py --itc=0 --out_dir=out/no_itc    a preset and an ablation
    torchrun --standalone --nproc_per_node=4 train.py config/scenes.py  several GPUs; also works on a CPU

Ctrl-C or a crash, then the same command: the run goes on from out_dir/latest.pt exactly where it was. Nothing random is stored, because
nothing random has a state: the order of the samples, their windows and their masks are a pure function of (seed, iteration, position).
B samples, G x G stored patches per frame of which the model sees a window, T text tokens, N patches.
"""
import functools, json, math, mmap, os, resource, shutil, signal, subprocess, sys, time, types, uuid, warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Literal
import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from configurator import at_least, configure
from model import VLConfig, VLModel, compact, compact_lookup, cost, distributed, load_vit

# I/O
out_dir = 'out/run'              # latest.pt, best.pt, config.json, log.jsonl
resume = True                    # go on from out_dir/latest.pt if it is there
init_from = ''                   # start from the ViT of timm, MAE or DeiT in this .safetensors or .pth, or from the best.pt of another run
log_interval = 10                # iterations
eval_interval = 200              # a checkpoint, then validation; 0: only a checkpoint at the end
eval_iters = 8                   # batches of the validation losses
keep_interval = 0                # also keep a checkpoint of its own every so many iterations
best_by = 'val/loss'             # best.pt is kept by this entry of the log; more is better where it ends in r1
count_flops: bool | None = None  # log TFLOP/s, and MFU where the peak is known; None: on CUDA only, since counting takes seconds
wandb_project: str | None = None     # log there too
# data
dataset = 'scenes'               # data/<dataset>; several: a,b
dataset_weights: tuple[float, ...] = ()  # their shares of each batch; default: equal
data_dir = 'data'
image_size = 64                  # the model sees a window of the stored picture: at random places in training, the middle in evaluation
patch_size = 8                   # any multiple of the stored one
text_len = 32                    # T: tokens of text, around the middle of the time that the frame stands
context_s = 1.0                  # also take the words spoken this long before and after; up to twice as long or not at all in training
compact_vocab = True             # only tokens that the training set has, and the 256 bytes to spell the others
overfit = 0                      # train and validate on only so many pairs: the loss must go to zero, or something is broken
# model
n_layer = 6
n_unimodal = 4                   # layers within a modality, before the joint ones: 0 ViLT, M3AE ... n_layer CLIP
n_head = 6
n_embd = 192
predictor_n_layer = 2            # paints the removed patches; half as wide
proj_dim = 128                   # of the embedding that retrieval compares
# objectives: model.PARTS says what each part of a batch hides, these say what is learned; 0 is off
parts = 'clean:8,xmm_text:3,xmm_image:3,amm_text:1,amm_image:1'   # of every 16 samples; half of them for contrast alone, by the README's table
keep_hi = .5                     # share of the patches kept where words are filled in
keep_lo = .25                    # ... and where patches are painted
mask_rate = .4                   # share of the words masked
whole_word = True
mim_target = 'pixels'            # what is painted; norm_pix: better features (MAE), but pictures without colour; latent: the teacher's states
mlm = 1.0                        # masked language modelling
mim = 1.0                        # masked image modelling
itc = 1.0                        # image-text contrast; its candidates are batch_size x ranks
itc_variant = 'infonce'          # or sigmoid
queue_size = 0                   # teacher embeddings of earlier batches as further candidates
itm = 0.0                        # image-text matching against hard negatives
psl = 0.0                        # pseudo-labelled keywords
psl_variant = 'content_words'    # or simla, as published
distill = 0.0                    # share of the teacher's soft targets, reached after distill_iters
distill_iters = 1000
teacher_momentum = .995
# optimisation
batch_size = 128                 # per rank and micro-step; a multiple of the sum of `parts`
gradient_accumulation_steps = 1
max_iters = 2000
tflop_budget = 0.0               # train for so many counted TFLOP instead: equal compute, whatever a preset costs per pair
learning_rate = 1e-3
muon = True                      # Muon for the matrices of the blocks; False: AdamW for all
min_lr = 1e-5
warmup_iters = 100
weight_decay = .05
beta1, beta2 = .9, .98           # .98: the loss of a masked batch is noisy (ViLT, BERT)
grad_clip = 1.0
# system
seed = 0
device = 'auto'                  # cuda, mps, cpu
dtype: Literal['auto', 'float32', 'bfloat16', 'float16'] = 'auto'        # auto: bfloat16 on CUDA, float32 elsewhere
compile: bool | None = None      # None: on CUDA only
recompute = False                # activations of the blocks again in the backward pass: less memory, a third more time
prefetch = 3                     # batches read ahead
deterministic = False            # the same bits on CUDA as well, slower

# ----------------------------------------------------------------------------------------------------------------------
# data: whole rows straight from the memmaps

def open_split(path, split):
    """data/<dataset> -> patches (F, G * G, p * p * 3) uint8, tokens, times (memmaps), frames, videos, meta. Exits with the remedy."""
    path = Path(path)
    if not (path / 'meta.json').exists():
        fix = 'bash runs/demo.sh' if path.name == 'scenes' else f'python prepare.py <videos> --dataset={path.name}'
        sys.exit(f'error: {path}/meta.json not found: the set is absent or unfinished; make it: {fix}')
    again = f'python prepare.py --dataset={path.name} --data_dir={path.parent}'
    try:
        meta = json.loads((path / 'meta.json').read_text())
    except ValueError as e:
        sys.exit(f'error: {path}/meta.json is damaged ({e}); make it again from the shards: {again}')
    if meta['format'] != 1:
        sys.exit(f"error: {path} has format {meta['format']}, this code reads 1; prepare it again")
    for name, about in meta['arrays'].items():
        have = (path / name).stat().st_size if (path / name).exists() else 0
        if have != about['bytes']:
            sys.exit(f"error: {path / name} has {have} bytes, meta.json says {about['bytes']}; join the shards again: {again}")
    n, grid = meta['counts'][split], (meta['image_size'] // meta['patch_size']) ** 2
    def array(name, dtype, *shape):
        return np.memmap(path / f'{split}_{name}.bin', dtype, 'r', shape=shape) if math.prod(shape) else np.zeros(shape, dtype)
    patches = array('patches', np.uint8, n['frames'], grid, meta['patch_size'] ** 2 * 3)
    return types.SimpleNamespace(
        path=path, split=split, meta=meta, patches=patches, beyond_memory=patches.nbytes > .8 * os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'),
        tokens=array('tokens', np.uint16, n['tokens']), times=array('times', np.uint32, n['tokens']),
        **{a: np.load(path / f'{split}_{a}.npy', allow_pickle=False) for a in ('frames', 'videos')})

def text_spans(data, ids, T, context_s, noise=None, caption=0):
    """The words of frames `ids`: those spoken while a frame stands, and context_s before and after, at most T around the middle.

    noise (B, 3) uniform: jitter of the context's two ends and of the middle, None: none. Image-caption lists: one caption, drawn by the
    noise, else number `caption`. -> start (B,), length (B,) into data.tokens; length 0 where nothing is said."""
    frames = data.frames[ids]
    videos = data.videos[frames['video']]
    at = frames['token'].astype(np.int64)[:, None] + np.arange(-2 * T, 2 * T)                  # (B, 4T) around the middle
    inside = (at >= videos['token_start'].astype(np.int64)[:, None]) & (at < videos['token_end'].astype(np.int64)[:, None] - 1)
    times = data.times[np.clip(at, 0, len(data.times) - 1)].astype(np.int64)
    def said(before, after):
        return inside & (times >= frames['t_ms'].astype(np.int64)[:, None] - 1000 * before) & (
            times < frames['t_end_ms'].astype(np.int64)[:, None] + 1000 * after)
    heard = said(context_s, context_s)
    if noise is not None:
        jittered = said(2 * context_s * noise[:, :1], 2 * context_s * noise[:, 1:2])
        heard = np.where(jittered.any(1, keepdims=True), jittered, heard)
    first, n = heard.argmax(1), heard.sum(1)                           # contiguous, because times rise
    middle = 2 * T + (0 if noise is None else np.round((noise[:, 2] - .5) * T / 2).astype(np.int64))
    start = np.clip(middle - T // 2, first, np.maximum(first, first + n - T))
    start, length = at[np.arange(len(at)), start], np.minimum(n, T)
    for i in np.flatnonzero(videos['flags'] & 1):                      # captions: a span of its own each
        a, b = int(videos['token_start'][i]), int(videos['token_end'][i])
        ends = a + np.flatnonzero(data.tokens[a:b] == 50256)
        which = int(noise[i, 0] * len(ends)) if noise is not None else min(caption, len(ends) - 1)
        start[i] = ends[which - 1] + 1 if which else a
        length[i] = min(T, ends[which] - start[i])
    return start, length

def read_words(data, start, length, T):
    """Spans of data.tokens -> tokens (B, T) int64 in the model's vocabulary, pad (B, T) bool."""
    ids = data.tokens[np.clip(start[:, None] + np.arange(T), 0, len(data.tokens) - 1)]
    pad = np.arange(T) >= length[:, None]
    known = np.where(pad, 0, data.lookup[ids])
    for i in np.flatnonzero((known < 0).any(1)):                       # a token that the vocabulary lacks is spelled in bytes
        spelled = compact(ids[i, :length[i]], data.lookup, data.encoding)[:T]
        known[i], pad[i] = 0, np.arange(T) >= len(spelled)
        known[i, :len(spelled)] = spelled
    return known, pad

def window_patches(raw, offset, meta, c):
    """Stored patches raw (B, G * G, p * p * 3) on the device -> the window at offset (B, 2) in stored patches, regrouped: (B, N, P)."""
    p, G, g, m = meta['patch_size'], meta['image_size'] // meta['patch_size'], c.image_size // meta['patch_size'], c.patch_size // meta['patch_size']
    at = torch.arange(g, device=raw.device)
    ids = ((offset[:, :1] + at)[:, :, None] * G + (offset[:, 1:] + at)[:, None]).view(len(raw), g * g)           # (B, g * g)
    x = raw.gather(1, ids[..., None].expand(-1, -1, raw.shape[2]))
    if m > 1:
        x = x.view(-1, g // m, m, g // m, m, p, p, 3).permute(0, 1, 3, 2, 5, 4, 6, 7).reshape(len(raw), (g // m) ** 2, (m * p) ** 2 * 3)
    return x

def epoch_order(data, epoch):
    """The frames of one epoch: none twice, and those of a video spread evenly: sorted by (j + u) / n, j shuffled in each video, u per video."""
    rng = np.random.default_rng([data.seed, epoch])
    frames = rng.permutation(data.usable)
    video = data.frames['video'][frames]
    by_video = np.argsort(video, kind='stable')
    frames, video = frames[by_video], video[by_video]
    _, first, n = np.unique(video, return_index=True, return_counts=True)
    j = np.arange(len(frames)) - np.repeat(first, n)
    return frames[np.argsort((j + np.repeat(rng.random(len(n)), n)) / np.repeat(n, n), kind='stable')]

def sample_ids(data, first, count):
    """Positions [first, first + count) of the endless stream of epochs -> frame ids."""
    if not count:                                                      # a rank's share may have no place for a small set
        return np.zeros(0, np.int64)
    epochs = range(first // len(data.usable), (first + count - 1) // len(data.usable) + 1)
    for epoch in set(epochs) - set(data.orders):
        data.orders = {e: o for e, o in data.orders.items() if e >= epochs[0] - 1} | {epoch: epoch_order(data, epoch)}
    stream = np.concatenate([data.orders[e] for e in epochs])
    return stream[first - epochs[0] * len(data.usable):][:count]

def draw_noise(key, it, first, count, n):
    """Uniform float32 in [0, 1) for positions [first, first + count) of iteration `it`, (count, n): a counter-based generator jumps to them."""
    steps = -(-n // 8)                                                 # a Philox step is four 64-bit words
    generator = np.random.Philox(key=np.array([key, it], np.uint64)).advance(first * steps)
    words = generator.random_raw(count * steps * 4).view(np.uint32).reshape(count, steps * 8)[:, :n]
    return (words >> 8).astype(np.float32) * np.float32(2 ** -24)

def get_batch(sets, c, it, first, count, total, training=True):
    """Positions [first, first + count) of the `total` of iteration `it`, as host arrays. Evaluation: no jitter, windows in the middle.

    -> raw (B, G * G, p * p * 3) uint8, offset (B, 2), tokens, pad (B, T), video, ids (B,), noise_image (B, N), noise_text (B, T), noise_rate (B,),
    noise_itm (B, B) if c has itm, else (B, 0)"""
    T, N, meta = c.text_len, c.n_patches, sets[0].meta
    noise_image, noise_text, u = np.split(draw_noise(sets[0].seed, it, first, count, N + T + 6), [N, N + T], 1)
    noise_itm = draw_noise(sets[0].seed + 2 ** 32, it, first, count, count * c.has('itm'))     # apart: its width is the rank's batch
    free = (meta['image_size'] - c.image_size) // meta['patch_size'] + 1                       # places for the window, per side
    batch = dict(raw=torch.empty((count, *sets[0].patches.shape[1:]), dtype=torch.uint8, pin_memory=torch.cuda.is_available()),
                 tokens=np.empty((count, T), np.int64), pad=np.empty((count, T), bool), video=np.empty(count, np.int64), ids=np.empty(count, np.int64),
                 noise_image=noise_image, noise_text=noise_text, noise_rate=u[:, 5], noise_itm=noise_itm,
                 offset=(u[:, 3:5] * free).astype(np.int64) if training else np.full((count, 2), (free - 1) // 2))
    which = mixture([data.weight for data in sets], total)
    for d, data in enumerate(sets):
        mine = which == d
        at = np.flatnonzero(mine[first:first + count])
        ids = sample_ids(data, it * int(mine.sum()) + int(mine[:first].sum()), len(at))
        start, length = text_spans(data, ids, T, context_s, u[at, :3] if training else None)
        batch['tokens'][at], batch['pad'][at] = read_words(data, start, length, T)
        raw = batch['raw'].numpy() if len(sets) == 1 else np.empty((len(at), *batch['raw'].shape[1:]), np.uint8)
        read_rows(data, ids, raw)
        if len(sets) > 1:
            batch['raw'].numpy()[at] = raw
        batch['video'][at], batch['ids'][at] = data.frames['video'][ids].astype(np.int64) + (d << 32), ids
    return {k: v if k == 'raw' else torch.from_numpy(np.ascontiguousarray(v)) for k, v in batch.items()}

def read_rows(data, ids, out):
    """Frames `ids` into out (n, G * G, p * p * 3): whole rows, copied once."""
    if data.beyond_memory and hasattr(mmap, 'MADV_WILLNEED'):          # announce them all first: the disk then reads many at a time, in its own order
        row, page = data.patches[0].nbytes, mmap.PAGESIZE
        for i in ids.tolist():
            data.patches._mmap.madvise(mmap.MADV_WILLNEED, i * row // page * page, row + page)
    np.take(data.patches.view(np.ndarray), ids, axis=0, out=out, mode='clip')                  # clip: or numpy copies twice

def mixture(weights, total):
    """Which data set each position of a global batch belongs to (total,): by their weights, evenly interleaved."""
    counts = np.diff(np.round(np.cumsum([0, *weights]) / np.sum(weights) * total).astype(int))
    place = np.concatenate([(np.arange(n) + .5) / max(n, 1) for n in counts])
    return np.repeat(np.arange(len(weights)), counts)[np.argsort(place, kind='stable')]

def to_device(batch, meta, c, device):
    """Host batch -> model.forward's batch: bytes over the bus, window and regrouping on the device."""
    batch = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
    return batch | dict(patches=window_patches(batch.pop('raw'), batch.pop('offset'), meta, c))

EVAL_SEED = 2 ** 32 - 1                                                # the same validation batches and masks, whatever the seed

def open_sets(split, c, vocab, encoding):
    """The data sets of one split, each with its usable frames: those with words to go with them."""
    sets = [open_split(Path(data_dir) / name, split) for name in dataset.split(',')]
    if dataset_weights and (len(dataset_weights) != len(sets) or min(dataset_weights) < 0 or not sum(dataset_weights)):
        sys.exit(f'error: --dataset_weights={dataset_weights}: expected a share of 0 or more for each of {dataset}')
    for data in sets:
        G, p = data.meta['image_size'], data.meta['patch_size']
        if c.patch_size % p or c.image_size % p or c.image_size > G or (G, p) != (c.full_size, sets[0].meta['patch_size']):
            sys.exit(f'error: {data.path} stores pictures of {G} px in patches of {p}: patch_size={c.patch_size} must be a multiple of that, '
                     f'image_size={c.image_size} no larger, and sets that are mixed must agree')
        every = np.arange(len(data.frames))
        n = np.concatenate([text_spans(data, ids, c.text_len, context_s)[1] for ids in np.array_split(every, len(every) // 8192 + 1)])
        data.usable = every if set(c.plan) == {'image_only'} else every[n > 0]
        if overfit and len(data.usable):
            data.usable = data.usable[np.linspace(0, len(data.usable) - 1, overfit).astype(int)]
        data.lookup, data.encoding, data.orders = compact_lookup(vocab), encoding, {}
        data.seed = seed if split == 'train' else EVAL_SEED
    for data, weight in zip(sets, dataset_weights or [1.] * len(sets)):
        data.weight = weight
    return [data for data in sets if len(data.usable) and data.weight]

def build_vocab():
    """-> vocab (V,) GPT-2 ids: the tokens of the training sets and the 256 bytes, or all; word_start (V + 2,) bool; the encoding."""
    from prepare import gpt2_encoding
    encoding = gpt2_encoding()
    spelling = [encoding.decode_single_token_bytes(i) for i in range(50256)]
    used = np.array([not compact_vocab or len(s) == 1 for s in spelling] + [not compact_vocab])
    for name in dataset.split(',') if compact_vocab else ():
        used[np.unique(open_split(Path(data_dir) / name, 'train').tokens)] = True
        used[50256] = False                                            # <|endoftext|> is never inside a text
    vocab = np.flatnonzero(used)
    return vocab, np.array([i < 50256 and spelling[i][:1] == b' ' for i in vocab] + [True, True]), encoding

STOP_WORDS = set("""a about above after again all also am an and any are as at back be because been before being below but by can come could did do does down each
every few first for from get go good got had has have he her here him his how i if in into is it its just know let like little look lot make many may me more most
much must my need never new next no not now of off okay on one only or other our out over own put really right said same say see she should so some such take than
that the their them then there these they thing things think this those through time to too two under until up upon us use very want was way we well were what when
where which while who why will with would yes you your""".split())

def build_keywords(sets, vocab, encoding, limit=4096):
    """The content words that psl chooses from: whole-word tokens, no stop words, said in at most half and at least 3 of the stretches of text_len tokens
    -> class of each vocabulary entry (V,), -1: none."""
    said = np.zeros(len(vocab), int)
    for data in sets:
        known = data.lookup[data.tokens]
        place = np.arange(len(known)) // text_len
        pairs = np.unique(np.stack([place, known], 1)[known >= 0], axis=0)                     # each once per stretch
        said += np.bincount(pairs[:, 1], minlength=len(vocab))
    n = sum(-(-len(d.tokens) // text_len) for d in sets)
    def is_word(i):
        text = encoding.decode_single_token_bytes(int(vocab[i]))
        return vocab[i] != 50256 and text[:1] == b' ' and len(text) > 3 and text[1:].isalpha() and text[1:].lower().decode('latin-1') not in STOP_WORDS
    chosen = [i for i in np.argsort(-said, kind='stable') if 3 <= said[i] <= n / 2 and is_word(i)][:limit]
    keyword = np.full(len(vocab), -1)
    keyword[chosen] = np.arange(len(chosen))
    return keyword

def distinct_pairs(data, c, limit):
    """Frames for retrieval: of each video those whose words do not overlap, evenly thinned to `limit` -> ids, start, length."""
    ids = np.sort(data.usable)
    spans = [text_spans(data, some, c.text_len, context_s) for some in np.array_split(ids, len(ids) // 8192 + 1)]
    start, length = (np.concatenate(a) for a in zip(*spans))
    keep, end = [], 0                                                  # spans rise from video to video
    for i in range(len(ids)):
        if start[i] >= end:
            keep.append(i)
            end = start[i] + length[i]
    keep = np.array(keep, int)[np.linspace(0, len(keep) - 1, min(limit, len(keep))).round().astype(int)]
    return ids[keep], start[keep], length[keep]

# ----------------------------------------------------------------------------------------------------------------------
# validation: fixed samples and masks; touches no training state

@torch.no_grad()
def encode_pairs(model, data, ids, start, length, batch=64):
    """Frames and spans of words -> ITC embeddings of pictures and of words, (n, proj_dim) each; windows in the middle."""
    c, device, images, texts = model.config, model.pixel_mean.device, [], []
    for i in range(0, len(ids), batch):
        patches, tokens, pad = read_pairs(data, ids[i:i + batch], start[i:i + batch], length[i:i + batch], c, device)
        images.append(model.embedding(model.unimodal(model.embed_image(model.normalise(patches))), model.image_proj))
        texts.append(model.embedding(model.unimodal(model.embed_text(tokens), pad), model.text_proj, pad))
    return torch.cat(images), torch.cat(texts)

def read_pairs(data, ids, start, length, c, device):
    """-> patches (B, N, P) uint8 in the middle of the pictures, tokens (B, T), pad (B, 1 + T) with [CLS], on the device."""
    middle = (data.meta['image_size'] - c.image_size) // data.meta['patch_size'] // 2
    tokens, pad = (torch.from_numpy(x).to(device) for x in read_words(data, start, length, c.text_len))
    raw = torch.from_numpy(data.patches[ids]).to(device)
    return window_patches(raw, torch.full((len(ids), 2), middle, device=device), data.meta, c), tokens, F.pad(pad, (1, 0))

def ranks(score):
    """score (n, n), the true pair on the diagonal -> rank of the truth in each row (n,), 0 is best; ties count against it."""
    return (score >= score.diagonal()[:, None]).sum(1) - 1

@torch.no_grad()
def validate(model, sets, c, device, autocast):
    """-> {val/loss, val/<objective>, val/i2t_r1, val/t2i_r1, val/chance}; ranks share the batches."""
    model.eval()
    rank, world = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
    rows = []
    for it in range(rank, -(-eval_iters // world) * world, world):     # as many on each rank: they meet in the contrast
        batch = to_device(get_batch(sets, c, it, 0, batch_size, batch_size, training=False), sets[0].meta, c, device)
        with autocast():
            loss, losses = model(batch)
        rows.append(torch.stack([loss, *losses.values()]).float())
    mean = torch.stack(rows).mean(0)
    if distributed():
        torch.distributed.all_reduce(mean)
        mean /= world
    entry = dict(zip(['val/loss', *(f'val/{k}' for k in losses)], mean.tolist()))
    pairs = distinct_pairs(sets[0], c, 512)
    if c.has('itc') and len(pairs[0]) > 1:
        with autocast():
            image, text = encode_pairs(model, sets[0], *pairs)
        score = image @ text.T
        entry |= {'val/i2t_r1': (ranks(score) == 0).float().mean().item(), 'val/t2i_r1': (ranks(score.T) == 0).float().mean().item(), 'val/chance': 1 / len(score)}
    model.train()
    return entry

# ----------------------------------------------------------------------------------------------------------------------
# the parts of the loop

def get_lr(it):
    """Linear warm-up to learning_rate, then half a cosine to min_lr at max_iters."""
    if it < warmup_iters:
        return learning_rate * (it + 1) / warmup_iters
    share = min(1, (it - warmup_iters) / max(1, max_iters - warmup_iters))
    return min_lr + .5 * (1 + math.cos(math.pi * share)) * (learning_rate - min_lr)

class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal (each singular value about 1), with the step size of AdamW. Muon: Jordan 2024; scale .2 sqrt(max side): arXiv:2502.16982.

    Matrices of one shape are orthogonalised together, and in float32 on a CPU (torch.optim.Muon: one by one, in bfloat16, which a CPU
    without such instructions emulates: it took two thirds of a small model's step)."""
    def __init__(self, params, lr, weight_decay, momentum=.95):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, shapes = group['lr'], {}
            for p in (p for p in group['params'] if p.grad is not None):
                shapes.setdefault(p.shape, []).append(p)
            for shape, params in shapes.items():
                momenta = [self.state[p].setdefault('momentum_buffer', torch.zeros_like(p)) for p in params]
                torch._foreach_lerp_(momenta, [p.grad for p in params], 1 - group['momentum'])
                update = orthogonal(torch.stack([p.grad.lerp(m, group['momentum']) for p, m in zip(params, momenta)]))       # Nesterov
                torch._foreach_mul_(params, 1 - lr * group['weight_decay'])
                torch._foreach_add_(params, list(update.to(params[0].dtype)), alpha=-lr * .2 * math.sqrt(max(shape)))

def orthogonal(G):
    """Matrices (n, R, C) -> with the same singular vectors and singular values near 1, by five Newton-Schulz steps."""
    X = G.bfloat16() if G.is_cuda else G.float()
    X = X.mT if G.shape[1] > G.shape[2] else X
    X = X / (X.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        A = X @ X.mT
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X.mT if G.shape[1] > G.shape[2] else X

def configure_optimizers(model, fused):
    """Muon for the matrices of the blocks; AdamW for the rest, with weight decay on matrices but not on biases, norms, word embeddings and
    special vectors -> list of optimizers."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    blocks = [p for n, p in named if muon and p.dim() == 2 and 'blocks.' in n]
    others = [(n, p) for n, p in named if not (muon and p.dim() == 2 and 'blocks.' in n)]
    groups = [dict(params=[p for n, p in others if (p.dim() == 2 and 'tok_embed' not in n) == decay], weight_decay=weight_decay * decay) for decay in (True, False)]
    adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=(beta1, beta2), fused=fused)
    return [adamw, Muon(blocks, learning_rate, weight_decay)] if blocks else [adamw]

def snapshot(x):
    """A copy of a state in memory, which a later step cannot change."""
    if isinstance(x, dict):
        return {k: snapshot(v) for k, v in x.items()}
    return [snapshot(v) for v in x] if isinstance(x, list) else x.detach().to('cpu', copy=True) if torch.is_tensor(x) else x

def save_checkpoint(path, **state):
    """Whole or not at all: written beside, flushed, renamed -> whether it was. A full disk costs this checkpoint, not the former one and not the run."""
    part = Path(f'{path}.part{os.getpid()}')
    try:
        with open(part, 'wb') as f:
            torch.save(state, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
        return True
    except (OSError, RuntimeError) as e:                               # torch reports a short write as RuntimeError
        part.unlink(missing_ok=True)
        print(f'warning: checkpoint {path} not written ({e}); the former one stays')
        return False

def load_checkpoint(path):
    """-> the checkpoint to go on from. Its architecture is taken over; a setting of a file or flag that contradicts it is an error."""
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
        was = checkpoint['model_config']
    except Exception as e:
        sys.exit(f'error: {path} is not a checkpoint of train.py ({type(e).__name__}); remove it, or take another --out_dir')
    for k in was.keys() & config.keys():
        if config[k] != was[k] and k in config.get('_source', ()):
            sys.exit(f'error: {path} is of another model: {k} is {was[k]!r} there and {config[k]!r} now. Take another --out_dir, or --resume=false to start anew')
        config[k] = globals()[k] = was[k]
    changed = [f'{k} {v!r} -> {config[k]!r}' for k, v in checkpoint['config'].items() if config.get(k) != (tuple(v) if isinstance(v, list) else v)]
    if os.environ.get('RANK', '0') == '0':
        print(f"going on from {path} at iteration {checkpoint['iter_num']}" + (f"; changed since: {', '.join(changed)}" if changed else ''), flush=True)
    return checkpoint

PEAK = dict(B200=2250, H200=989, H100=989, A100=312, L40S=362, L4=121, V100=125, MI300X=1307) | {'RTX 4090': 165, 'RTX 3090': 71}  # dense TFLOP/s, 16 bit

def open_device(name, local=0):
    """'auto', cuda, mps, cpu -> torch.device; exits with one line if it does not work here."""
    name = name if name != 'auto' else 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'
    try:
        dev = torch.device(name, local) if name == 'cuda' else torch.device(name)
        torch.zeros(1, device=dev)
        return dev
    except (RuntimeError, AssertionError) as e:
        sys.exit(f'error: --device={name}: {str(e).splitlines()[0]}')

def peak_of(dev):
    """The data sheet's TFLOP/s of this device, None if it is not known."""
    name = torch.cuda.get_device_name(dev) if dev.type == 'cuda' else ''
    return next((tflops for key, tflops in PEAK.items() if key in name), None)

def memory_gb(dev):
    """The most that was in use so far: of the GPU, or of this process."""
    if dev.type == 'cuda':
        return torch.cuda.max_memory_allocated(dev) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024) / 1e9

def not_finite(values, names, first, sets, c, total):
    """A loss is NaN or infinite: say which, when and on which samples, and end."""
    row = int((~values.isfinite()).any(1).nonzero()[0])
    wrong = [n for n, v in zip(names, values[row]) if not v.isfinite() and n != 'loss']
    ids = get_batch(sets, c, first + row, 0, total, total)['ids'].tolist()
    sys.exit(f"error: {', '.join(wrong)} not finite at iteration {first + row}, on frames {str(ids)[:300]}. The checkpoints are from before it. "
             'Lower --learning_rate, or take --dtype=float32; the same samples come again at this iteration')

def meet(backend):
    """init_process_group under a name that only the ranks of this start know. The store of torchrun outlives restarts, with the addresses of
    the ranks that died in it (pytorch issue 135712, again in 2.13): some then connect to those, and wait or fail."""
    store, rank, world = next(torch.distributed.rendezvous('env://'))
    me = uuid.uuid4().hex
    if rank:
        store.set(f'here/{rank}', me)
        name = store.get(f'name/{me}').decode()                        # waits for rank 0
        store.set(f'seen/{name}/{rank}', '')
    else:
        name, waiting = me, set(range(1, world))
        while waiting:                                                 # what stands in here/ may be of the dead: answer until the living have seen it
            for r in [r for r in waiting if store.check([f'here/{r}'])]:
                store.set('name/' + store.get(f'here/{r}').decode(), name)
            waiting -= {r for r in waiting if store.check([f'seen/{name}/{r}'])}
            time.sleep(.02)
    torch.distributed.init_process_group(backend, store=torch.distributed.PrefixStore(name, store), rank=rank, world_size=world)

# ----------------------------------------------------------------------------------------------------------------------

def main():
    at_least(globals(), log_interval=1, eval_iters=1, prefetch=1, gradient_accumulation_steps=1, batch_size=1, seed=0, overfit=0)
    # device, precision, ranks
    rank, world, local = (int(os.environ.get(k, d)) for k, d in (('RANK', 0), ('WORLD_SIZE', 1), ('LOCAL_RANK', 0)))
    dev = open_device(device, local)
    if dev.type == 'cuda':
        torch.cuda.set_device(dev)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if world > 1:
        meet('nccl' if dev.type == 'cuda' else 'gloo')
    precision = dtype if dtype != 'auto' else 'bfloat16' if dev.type == 'cuda' and torch.cuda.is_bf16_supported() else 'float32'
    autocast = nullcontext if precision == 'float32' else lambda: torch.autocast(dev.type, getattr(torch, precision))
    scaler = torch.amp.GradScaler(dev.type, enabled=precision == 'float16')
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')        # what deterministic needs of cuBLAS
    torch.use_deterministic_algorithms(deterministic)
    torch.manual_seed(seed)
    def say(text):
        if rank == 0:
            print(text, flush=True)

    # data, model, optimizer; a former run in this folder goes on
    former = Path(out_dir) / 'latest.pt'
    checkpoint = load_checkpoint(former) if resume and former.exists() else None
    vocab, word_start, encoding = build_vocab()
    meta = open_split(Path(data_dir) / dataset.split(',')[0], 'train').meta
    try:
        c = VLConfig(**{f.name: config[f.name] for f in fields(VLConfig) if f.name in config}, vocab_size=len(vocab), full_size=meta['image_size'])
        if batch_size % sum(c.plan.values()):
            raise ValueError(f'batch_size={batch_size} must be a multiple of {sum(c.plan.values())}, the sum of parts={parts}')
    except ValueError as e:
        sys.exit(f'error: {e}')
    sets, val_sets = open_sets('train', c, vocab, encoding), open_sets('train' if overfit else 'val', c, vocab, encoding)
    if not sets:
        sys.exit(f'error: {dataset} has no training frame with words around it; raise --context_s, or prepare more videos')
    keyword = build_keywords(sets, vocab, encoding) if c.has('psl') and psl_variant == 'content_words' else None
    if keyword is not None:
        c.n_keywords = int(keyword.max()) + 1
        if not c.n_keywords:
            sys.exit(f'error: psl finds no content words in {dataset}; take --psl=0')
    model = VLModel(c, vocab, word_start, meta['pixel_mean'], meta['pixel_std'], keyword).to(dev)
    optimizers = configure_optimizers(model, fused=dev.type == 'cuda')

    # the run's folder
    out, start, best = Path(out_dir), 0, math.inf
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / 'log.jsonl').touch()
    except OSError as e:
        sys.exit(f'error: cannot write to out_dir={out_dir}: {e}')
    if checkpoint:
        if differs := [f'{k} is {checkpoint["model_config"].get(k)!r} there and {v!r} now' for k, v in asdict(c).items() if checkpoint['model_config'].get(k) != v]:
            sys.exit(f"error: {former} is of another data set: {', '.join(differs)}. Take another --out_dir, or --resume=false to start anew")
        if checkpoint['model']['vocab'].tolist() != list(vocab):
            sys.exit(f'error: {former} has learned other words than {dataset} has. Take another --out_dir, or --resume=false to start anew')
        now = [{k: v for k, v in group.items() if k != 'params'} for o in optimizers for group in o.param_groups]
        try:
            model.load_state_dict(checkpoint['model'])
            for optimizer, state in zip(optimizers, checkpoint['optimizers'], strict=True):
                optimizer.load_state_dict(state)
            scaler.load_state_dict(checkpoint.get('scaler', {}))
        except (KeyError, ValueError, RuntimeError) as e:
            sys.exit(f'error: {former} cannot go on with --muon={muon} --dtype={dtype} ({type(e).__name__}: {str(e)[:100]}). Take another --out_dir, or --resume=false')
        for group, knobs in zip((g for o in optimizers for g in o.param_groups), now):         # betas and weight decay are today's
            group.update(knobs)
        start, best = checkpoint['iter_num'], checkpoint['best']
    if world > 1:
        first = torch.tensor([start, -start], device=dev)
        torch.distributed.all_reduce(first, torch.distributed.ReduceOp.MAX)
        if first.sum():
            sys.exit(f'error: some ranks go on from iteration {-first[1]}, others from {first[0]}: --out_dir={out_dir} must be one folder that all nodes see')
    if init_from and not checkpoint:
        try:
            loaded, left = load_vit(model, init_from)
        except ValueError as e:
            sys.exit(f'error: --init_from: {e}')
        lacking = sorted({n.split('.')[1] for n, _ in model.named_parameters() if n.startswith('blocks.') and n not in loaded}, key=int)
        say(f"{init_from}: {len(loaded)} arrays loaded; left out: {', '.join(left) or 'none'}; blocks that it lacks: {', '.join(lacking) or 'none'}")
    if rank == 0:
        if not checkpoint:
            (out / 'best.pt').unlink(missing_ok=True)                  # of an earlier run in this folder
        # the log of a run that died may go beyond its checkpoint
        lines = [line for line in (out / 'log.jsonl').read_text(errors='replace').splitlines(keepends=True) if line.endswith('}\n')]
        (out / 'log.jsonl').write_text(''.join(line for line in lines if json.loads(line)['iter'] < start))
        git = subprocess.run(['git', 'rev-parse', 'HEAD'], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip() if shutil.which('git') else ''
        (out / 'config.json').write_text(json.dumps(config | {'_git': git, '_torch': torch.__version__}, indent=1))
    if wandb_project and rank == 0:
        try:
            import wandb
        except ImportError:
            sys.exit('error: --wandb_project needs wandb: pip install wandb')
        wandb.init(project=wandb_project, name=out_dir, config=config, resume='allow')
    def log(entry):
        if rank == 0:
            with open(out / 'log.jsonl', 'a') as f:
                f.write(json.dumps(entry) + '\n')
            if wandb_project:
                wandb.log(entry, step=entry['iter'])
    writer, writing = ThreadPoolExecutor(1), []
    def checkpoint_to(name):                                           # copied now, written behind the next steps, one at a time
        if rank == 0:
            state = snapshot(dict(model=model.state_dict(), optimizers=[o.state_dict() for o in optimizers], scaler=scaler.state_dict()))
            [writing.pop().result() for _ in writing[:]]
            writing.append(writer.submit(save_checkpoint, out / name, **state, model_config=asdict(c), iter_num=it, best=best,
                                         config={k: v for k, v in config.items() if k[0] != '_'}))

    # what is about to happen
    total, n_frames = batch_size * gradient_accumulation_steps * world, sum(len(d.usable) for d in sets)
    gflop, peak = cost(c)[0] if tflop_budget or count_flops or count_flops is None and dev.type == 'cuda' else None, peak_of(dev)
    if tflop_budget:
        globals()['max_iters'] = round(tflop_budget * 1e3 / gflop / total)
        say(f'{tflop_budget:g} TFLOP at {gflop:.2f} GFLOP per pair: {max_iters} steps')
    say(f'{dataset}: {n_frames} training frames with words, vocabulary {len(vocab)}, ' + (f'{sum(len(d.usable) for d in val_sets)} frames for validation'
        if val_sets else 'no validation set (too few videos?), so best.pt is not kept'))
    size = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
    say(f'{size:.2f} M parameters{" and a teacher" * c.teacher} on {dev}, {precision}; {total} pairs per step = {world} ranks x {batch_size} x '
        f'{gradient_accumulation_steps}; {max_iters} steps are {max_iters * total / n_frames:.1f} epochs')
    chance = dict(mlm=math.log(len(vocab)), mim=1., itc=math.log(batch_size * world + c.queue_size), itm=math.log(2))
    say('chance: ' + ', '.join(f'{k} {v:.3f}' for k, v in chance.items() if c.has(k)))

    # the next batches are read while this one is computed
    reader, n_micro = ThreadPoolExecutor(1), gradient_accumulation_steps
    def read(j):                                                       # of the j-th micro-step since iteration 0
        host = get_batch(sets, c, j // n_micro, (j % n_micro * world + rank) * batch_size, batch_size, total)
        return {k: v.pin_memory() for k, v in host.items()} if dev.type == 'cuda' else host
    def wrap(module):
        return torch.nn.parallel.DistributedDataParallel(module, device_ids=[local] if dev.type == 'cuda' else None) if world > 1 else module
    if recompute:
        for block in model.blocks:
            block.forward = functools.partial(torch.utils.checkpoint.checkpoint, block.forward, use_reentrant=False)
    step_model = wrap(model)
    if compile or compile is None and dev.type == 'cuda':
        warnings.filterwarnings('ignore', message='Dynamo detected a call to a `functools.lru_cache`')
        before = {n: b.clone() for n, b in model.named_buffers()}      # the queue must not take this batch in
        try:
            compiled = wrap(torch.compile(model))
            with autocast():
                compiled(to_device(read(start * n_micro), meta, c, dev))[0].backward()
            step_model = compiled
        except Exception as e:                                         # no compiler on this machine, or one that fails
            say(f'torch.compile failed ({type(e).__name__}: {str(e)[:100]}); going on without')
        model.zero_grad(set_to_none=True)
        for n, b in model.named_buffers():
            b.copy_(before[n])
    stop, leave = [], False                                            # Ctrl-C and SIGTERM: finish the step, save, leave; Ctrl-C twice: leave
    for s in signal.SIGINT, signal.SIGTERM:                            # under torchrun both may come twice, of itself and of the queue's manager
        signal.signal(s, lambda s, _: stop.append(s) if not stop or world > 1 or s == signal.SIGTERM else os._exit(130))

    it, history = start, []                                            # losses of the steps since the last line of the log
    upcoming = deque(reader.submit(read, start * n_micro + i) for i in range(prefetch))
    waited, mark, began = 0.0, time.perf_counter(), time.perf_counter()
    while True:
        if it >= max_iters or eval_interval and it % eval_interval == 0:
            if it > start:
                checkpoint_to('latest.pt')                             # first: a validation that fails loses nothing
            if val_sets and eval_interval:
                entry = dict(iter=it) | validate(model, val_sets, c, dev, autocast)
                log(entry)
                say(f'iter {it}: ' + ', '.join(f'{k} {v:.4f}' for k, v in entry.items() if k.count('/') == 1))
                if best_by not in entry:
                    sys.exit(f"error: --best_by={best_by} is not among {', '.join(k for k in entry if k != 'iter')}")
                value = entry[best_by] * (-1 if best_by.endswith('r1') else 1)
                if it and value < best:
                    best = value
                    checkpoint_to('best.pt')
            mark = time.perf_counter()
        if it >= max_iters:
            break

        # one step
        for group in sum((o.param_groups for o in optimizers), []):
            group['lr'] = get_lr(it)
        losses = []
        for micro in range(n_micro):
            asked = time.perf_counter()
            host = upcoming.popleft().result()
            waited += time.perf_counter() - asked
            upcoming.append(reader.submit(read, it * n_micro + micro + prefetch))
            batch = to_device(host, meta, c, dev)
            with step_model.no_sync() if world > 1 and micro < n_micro - 1 else nullcontext(), autocast():
                loss, terms = step_model(batch)
            scaler.scale(loss / n_micro).backward()
            losses.append(torch.stack([loss.detach(), *terms.values()]))
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
        for optimizer in optimizers:
            scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        scaler.update()
        model.follow(it)
        history.append(torch.cat([torch.stack(losses).mean(0), norm[None]]))
        it += 1
        if world == 1:
            leave = bool(stop)
        elif it % 10 == 0:                                             # all ranks leave together, if one is told to
            told = torch.tensor(float(bool(stop)), device=dev)
            torch.distributed.all_reduce(told)
            leave = told > 0
        keep = keep_interval and it % keep_interval == 0

        # a line of the log
        if it % log_interval == 0 or eval_interval and it % eval_interval == 0 or it >= max_iters or keep or leave:
            values, names = torch.stack(history).float(), ['loss', *terms, 'grad_norm']
            if world > 1:
                torch.distributed.all_reduce(values)
            values = values.cpu() / world
            if not values[:, :-1 if scaler.is_enabled() else None].isfinite().all():            # float16: steps of infinite gradients are skipped
                not_finite(values, names, it - len(values), sets, c, total)
            took, n = time.perf_counter() - mark, len(values)
            timing = dict(pairs_per_s=n * total / took, ms=1000 * took / n, wait=waited / took, memory_gb=memory_gb(dev))
            if gflop:
                timing |= dict(tflop_per_s=gflop * timing['pairs_per_s'] / 1e3) | (dict(mfu=gflop * timing['pairs_per_s'] / 1e3 / world / peak) if peak else {})
            for i, row in zip(range(it - n, it), values.tolist()):
                log(dict(iter=i) | dict(zip(names, row)) | dict(lr=get_lr(i)) | (timing if i == it - 1 else {}))
            left = int((max_iters - it) * took / n)
            say(f'iter {it}/{max_iters} | ' + ' '.join(f'{k} {v:.3f}' for k, v in zip(names, values.mean(0).tolist()) if '/' not in k) +
                f" | lr {get_lr(it - 1):.1e} | {timing['ms']:.0f} ms, {timing['pairs_per_s']:.{0 if timing['pairs_per_s'] >= 10 else 2}f} pairs/s, " +
                (f"{timing['tflop_per_s']:.3g} TFLOP/s, " if gflop else '') + (f"MFU {100 * timing['mfu']:.1f} %, " if 'mfu' in timing else '') +
                f"{100 * timing['wait']:.1f} % waiting for data, {timing['memory_gb']:.2f} GB | ETA {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}")
            history, waited, mark = [], 0.0, time.perf_counter()
            if keep:
                checkpoint_to(f'iter_{it:06d}.pt')
            if leave:
                break
    if leave:
        checkpoint_to('latest.pt')
    if not all(w.result() for w in writing):                           # the last one; waits for it
        sys.exit(f'error: the last checkpoint could not be written to {out_dir}')
    if leave:
        say(f'stopped at iteration {it}; the same command goes on from there')
        sys.exit(130)
    say(f'done: {it - start} iterations in {(time.perf_counter() - began) / 60:.1f} minutes. Next: python eval.py --run={out_dir}')
    if world > 1:
        torch.distributed.destroy_process_group()

if __name__ == '__main__':
    config = configure(globals())
    main()
