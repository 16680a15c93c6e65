"""What a run learned: numbers into out/<run>/eval.json (eval-<dataset>.json for --dataset), pictures into out/<run>/*.png.

    python eval.py --run=out/demo                                   everything, on the held-out videos
    python eval.py --run=out/demo --task=retrieval --candidates=1000
    python eval.py --run=out/demo --truth=data/scenes/videos/truth  also by concept, and whether the painted colours are the right ones
    python eval.py --table='out/*'                                  compare runs: the knobs that differ, mean and deviation over seeds
    python eval.py --run=out/talks --task=search --query="a red circle" --page      the moments that show it, in any prepared set; --image=x.jpg: that look like it
    python eval.py --run=out/full --task=classify --examples=data/vqa/v2        fine-tune: questions, pairs of pictures, entailment (data/vqa, nlvr2, snli_ve)
    python eval.py --run=out/full --task=probe --examples=pictures/             frozen features: linear, kNN, zero-shot, text alone; train/<class>/*.jpg will do
    python eval.py --run=out/demo --task=caption --image=x.jpg      what is to be seen; --task=paint --query="a red circle": the other way

What the judged tasks measure: zero-shot retrieval both ways; masked words with the right picture, another one and none (the honest test that pictures are used); PSNR of
painted patches; pictures from words alone and words from pictures alone. All on videos that training never saw, windows in the middle.
"""
import base64, dataclasses, fcntl, functools, glob, hashlib, html, io, json, math, os, re, sys, tempfile, textwrap, time
from collections import Counter
from pathlib import Path
from typing import Literal
import numpy as np
import torch
import torch.nn.functional as F
import model as models
import train
from configurator import at_least, configure
from model import choose_words, take, unpatchify

run = 'out/run'                  # a folder of train.py
checkpoint: Literal['best', 'latest'] = 'best'
dataset = ''                     # data/<dataset>; default: the run's own
split: Literal['test', 'val', 'train'] = 'test'
task = 'retrieval,words,patches,keywords,ground,pictures,curves'     # or search, caption, paint, classify, probe
candidates = 1000                # pairs to retrieve among, at most; of each video those whose words do not overlap
rerank = 16                      # itm looks again at so many of itc's best; without itc it ranks the first 200 pairs in full
table = ''                       # a pattern of run folders to compare, instead of --run
truth = ''                       # folder with NAME.json per video that says what is to be seen when, for scores by concept
query = ''                       # search: these words; paint: from them
image = ''                       # search: what looks like this picture; caption: what is to be seen in it, or in each of this folder
top = 20                         # search: so many moments,
page = False                     # also as a web page, out/<run>/search.html, that works offline
refs = ''                        # ground: phrases and boxes of one's own pictures, RefCOCO-style, instead of the truth's
ground_layer = 0                 # ground: which of the joint layers to look at
examples = ''                    # classify, probe: a folder with train.jsonl, val.jsonl and, if there, test.jsonl; or train/<class>/*.jpg, val/, test/
only: Literal['', 'text', 'image'] = ''      # classify: the baseline that sees nothing else
epochs = 10
learning_rate = 2e-3             # classify: of the head and the words; each layer below has layer_decay of the one above
layer_decay = .75
n_labels = 3129                  # classify, probe: the commonest of the training answers (VQA v2: 3129)
templates = 'a {}|there is a {}|this picture shows a {}'      # probe: how a label is said
seed = 0
n_pictures = 8                   # rows of the pictures
write_length = 16                # tokens written about a picture
batch_size = 64
device = 'auto'
dtype: Literal['auto', 'float32', 'bfloat16'] = 'auto'       # classify: of the fine-tuning; auto: bfloat16 on CUDA

# ----------------------------------------------------------------------------------------------------------------------

def open_model():
    """-> the checkpoint of --run. train.py's knobs are set as the run had them."""
    path = checkpoint_path()
    if ',' in dataset and task != 'search':
        sys.exit(f'error: --dataset={dataset}: one set at a time is judged')
    model = models.load(path, train.open_device(device))
    knobs = torch.load(path, map_location='cpu', weights_only=True)['config']
    vars(train).update(knobs | dict(dataset=dataset or knobs['dataset'].split(',')[0], overfit=0, dataset_weights=()))
    return model

def checkpoint_path():
    path = Path(run) / f'{checkpoint}.pt'
    return path if path.exists() or checkpoint != 'best' else Path(run) / 'latest.pt'          # a run without a validation set

def weights_hash():
    """Which weights they are, whatever their file is called: what is kept of other weights is not taken for theirs."""
    with open(checkpoint_path(), 'rb') as f:
        return hashlib.file_digest(f, 'sha256').hexdigest()[:12]

def read_picture(path):
    """-> PIL RGB, upright; ValueError if it cannot be read."""
    from PIL import Image, ImageOps
    try:
        return ImageOps.exif_transpose(Image.open(path)).convert('RGB')
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise ValueError(f'{path} cannot be read as a picture ({e})') from None

def load_run(splits=None):
    """-> (model, data): the checkpoint and the split to judge it on, or [data of each split that has frames]. train.py's knobs are set as the run had them."""
    model = open_model()
    from prepare import gpt2_encoding
    sets = [d for s in splits or (split,) for d in train.open_sets(s, model.config, model.vocab.cpu().numpy(), gpt2_encoding())]
    if splits and sets:
        return model, sets
    if not sets:
        sys.exit(f'error: the {split} split of {train.dataset} has no frame with words; take another --split, or prepare more videos')
    return model, sets[0]

def batches(model, data, ids, start, length):
    """Yield (rows, patches uint8 (B, N, P), tokens (B, T), pad (B, 1 + T), noise (B, N + T)): windows in the middle, the noise always the same."""
    c, dev = model.config, model.pixel_mean.device
    noise = torch.from_numpy(train.draw_noise(train.EVAL_SEED, 0, 0, len(ids), c.n_patches + c.text_len))
    for rows in np.array_split(np.arange(len(ids)), -(-len(ids) // batch_size)):
        yield rows, *train.read_pairs(data, ids[rows], start[rows], length[rows], c, dev), noise[rows].to(dev)

def elsewhere(video):
    """A permutation that gives each pair another video's partner: half way round a list that is sorted by video. None if one video has more than half."""
    other = np.roll(np.arange(len(video)), len(video) // 2)
    return other if (np.asarray(video)[other] != video).all() else None

def spoken(data, start, length):
    """The words of a span, for people."""
    return data.encoding.decode([int(t) for t in data.tokens[start:start + length]]).strip()

def true_scenes(data, ids):
    """What `truth` says is to be seen in each frame -> [(segment, the video's whole truth)], ({}, {}) where it says nothing."""
    rows = [json.loads(line) for line in open(data.path / 'videos.jsonl', encoding='utf-8')]
    files, scenes = {}, []
    for f in data.frames[ids]:
        path = Path(truth) / (Path(rows[data.videos[f['video']]['row']]['source']).stem + '.json')
        if path not in files:
            try:
                files[path] = dict(json.loads(path.read_text(encoding='utf-8'))) if path.exists() else {}
            except (ValueError, TypeError) as e:
                sys.exit(f'error: {path} is no JSON object ({e})')
        about, t = files[path], (int(f['t_ms']) + int(f['t_end_ms'])) / 2000
        scenes.append((next((s for s in about.get('segments', about.get('scenes', [])) if s['start'] <= t < s['end']), {}), about))
    if truth and not any(files.values()):
        sys.exit(f'error: --truth={truth} has no NAME.json for any of these videos')
    return scenes

def concepts(data, ids):
    """The name of what is to be seen in each frame, '' where the truth says nothing; None without truth."""
    def name(s): return s.get('name') or ' '.join(sorted(f"{o['colour']} {o['shape']}" for o in s.get('objects', [])))
    return np.array([name(s) for s, _ in true_scenes(data, ids)]) if truth else None

# ----------------------------------------------------------------------------------------------------------------------
# retrieval

def hits(score, mine, theirs):
    """score (q, n) of queries against candidates, labels mine (q,), theirs (n,) -> rank of each query's best candidate of its label, 0 is best; ties
    count against it, other right ones do not."""
    same = mine[:, None] == theirs
    best = score.masked_fill(~same, -math.inf).max(1, keepdim=True).values
    return (~(score < best) & ~same).sum(1)                            # so that what is not a number is not right

def recalls(rank):
    return {f'r{k}': (rank < k).float().mean().item() for k in (1, 5, 10)} | dict(median_rank=rank.median().item() + 1)

def every_caption(data, ids, start, length):
    """All captions of each picture of an image-caption list, else the words of each frame -> start, length (m,), owner (m,): which of ids they are of."""
    found, T = [], train.text_len
    for i, v in enumerate(data.videos[data.frames['video'][ids]]):
        if not v['flags'] & 1:
            found.append((start[i], length[i], i))
            continue
        ends = int(v['token_start']) + np.flatnonzero(data.tokens[v['token_start']:v['token_end']] == 50256)
        found += [(a, min(b - a, T), i) for a, b in zip([int(v['token_start']), *(ends[:-1] + 1)], ends) if b > a]
    return np.array(found).reshape(-1, 3).T

def encode(model, x, keep):
    """Batches of unimodal states (b, L, D) -> embeddings (n, proj_dim) or None without itc; if `keep`, the states too (n, L, D) float16, in a file that the
    system pages in and out: memory stays bounded however many there are."""
    file, z, shape = tempfile.TemporaryFile(dir=run), [], None
    for states, pad in x:
        if model.config.has('itc'):
            z.append(model.embedding(states, model.image_proj if pad is None else model.text_proj, pad).cpu())
        if keep:
            file.write(states.half().cpu().numpy().tobytes())
            shape = states.shape[1:]
    return torch.cat(z) if z else None, torch.from_numpy(np.memmap(file, np.float16, 'r+').reshape(-1, *shape)) if keep else None

def ranked(queries, keys, label, other, k):
    """Queries (q, d) with labels (q,) against candidates (n, d) with labels other (n,), by the dot product, 256 queries at a time -> rank of each query's
    best candidate of its label (q,), its k best candidates (q, k)."""
    scores = ((q @ keys.T, mine) for q, mine in zip(queries.split(256), label.split(256)))
    return [torch.cat(x) for x in zip(*((hits(s, mine, other), s.topk(min(k, len(other))).indices) for s, mine in scores))]

def retrieval(model, data, pairs):
    """Both ways: by the dot product of the ITC embeddings; the `rerank` best of them again by the matching head, from kept unimodal states; by how well the
    words are told from the picture."""
    c, dev, ids = model.config, model.pixel_mean.device, pairs[0]
    by_words, by_match = c.has('mlm') and 'amm_text' in c.plan, c.has('itm') and (rerank > 0 or not c.has('itc'))
    if not (c.has('itc') or by_words or by_match):
        return dict(skipped='the run has no itc, itm or amm_text to retrieve by')
    start, length, owner = every_caption(data, *pairs)
    n, m, zeros = len(ids), len(start), np.zeros(len(ids), np.int64)
    tokens, pad = (torch.from_numpy(x) for x in train.read_words(data, start, length, c.text_len))
    pad = F.pad(pad, (1, 0))
    def image_batches():
        for i in range(0, n, batch_size):
            x = train.read_pairs(data, ids[i:i + batch_size], zeros[i:i + batch_size], zeros[i:i + batch_size], c, dev)[0]
            yield model.unimodal(model.embed_image(model.normalise(x))), None
    def text_batches():
        for t, p in zip(tokens.split(batch_size), pad.split(batch_size)):
            yield model.unimodal(model.embed_text(t.to(dev)), p.to(dev)), p.to(dev)
    image, image_states = encode(model, image_batches(), by_words or by_match)
    text, text_states = encode(model, text_batches(), by_match)
    each, owner, names, out = torch.arange(n), torch.from_numpy(owner), concepts(data, ids), {}

    def whole(name, score, own):                                       # (first pictures, their texts): small enough to be one matrix
        out[f'{name}_i2t_r1'], out[f'{name}_t2i_r1'] = recalls(hits(score, each[:len(score)], own))['r1'], recalls(hits(score.T, own, each[:len(score)]))['r1']
        out[f'{name}_candidates'] = len(score)
        return hits(score.T, own, each[:len(score)]), score.T.topk(min(5, len(score))).indices
    if by_words:
        some = (owner < 1000).nonzero()[:, 0]
        rank, top = whole('likelihood', likelihood(model, image_states[:1000], tokens[some], pad[some]), owner[some])
    if by_match and image is None:                                     # nothing to choose the best by: the first 200 pictures with all their texts
        some = (owner < 200).nonzero()[:, 0]
        i, j = torch.cartesian_prod(each[:200], some).T
        rank, top = whole('itm', matching(model, image_states, text_states, pad, i, j).view(-1, len(some)), owner[some])
    for way in ('i2t', 't2i') if image is not None else ():
        queries, keys, label, other = (image, text, each, owner) if way == 'i2t' else (text, image, owner, each)
        rank, top = ranked(queries, keys, label, other, max(rerank, 5))
        out |= {f'{way}_{k}': v for k, v in recalls(rank).items()}
        if names is not None:                                          # a picture of the same thing is right too
            code, known = torch.from_numpy(np.unique(names, return_inverse=True)[1]), torch.from_numpy(names != '')[label]
            alike = recalls(ranked(queries[known], keys, code[label[known]], code[other], 1)[0]) if known.any() else {}
            out |= {f'{way}_concept_{k}': v for k, v in alike.items() if k != 'median_rank'}
        if by_match:
            again = top[:, :rerank]
            pair = torch.stack([torch.arange(len(again))[:, None].expand_as(again), again]).view(2, -1)
            logit = matching(model, image_states, text_states, pad, *(pair if way == 'i2t' else pair.flip(0))).view(again.shape)
            right = other[again] == label[:, None]                     # a right one that is not among the best cannot come first
            first = ~(logit < logit.masked_fill(~right, -math.inf).max(1, keepdim=True).values) & ~right
            out[f'itm_{way}_r1'] = (~first.any(1)).float().mean().item()
    if by_match:
        out |= rerank_cost(model, image_states, text_states, pad, batches(model, data, *pairs))
    out |= dict(candidates=n, texts=m, chance_r1=1 / n, distinct_texts=len({tuple(data.tokens[s:s + k]) for s, k in zip(start, length)}),
                protocol=f'{split} split of {data.path.name}, {n} pictures, {m} texts, weights: {checkpoint}, ' + (
                    f'frames whose words do not overlap, context {train.context_s} s' if m == n else 'any caption of a picture is right'))
    if names is not None:
        out |= dict(concepts=len(set(names)), concept_chance_r1=float((names[:, None] == names).mean()))
    retrieval_picture(model, data, (ids, start, length), owner, rank, top, n if image is not None else out.get('itm_candidates', out.get('likelihood_candidates')))
    return out

def matching(model, image_states, text_states, pad, i, j):
    """The matching head's logit for pictures i and words j (pairs,) from kept unimodal states: only the joint layers run -> (pairs,)."""
    dev, out = model.pixel_mean.device, []
    for p, w in zip(i.split(4 * batch_size), j.split(4 * batch_size)):
        match = model.itm_head(model.fuse(text_states[w].to(dev).float(), image_states[p].to(dev).float(), pad[w].to(dev))[0][:, 0]).float()
        out.append((match[:, 1] - match[:, 0]).cpu())
    return torch.cat(out)

def rerank_cost(model, image_states, text_states, pad, pairs):
    """What a pair costs when it is matched from kept states, and from pixels and words: GFLOP, ms."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode
    _, patches, tokens, blank, _ = next(pairs)
    at, out = torch.arange(len(tokens)), {}
    def whole():
        image, text = model.unimodal(model.embed_image(model.normalise(patches))), model.unimodal(model.embed_text(tokens), blank)
        return model.itm_head(model.fuse(text, image, blank)[0][:, 0])
    for name, go in ('rerank', lambda: matching(model, image_states, text_states, pad, at, at)), ('from_pixels', whole):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:          # the CPU's fused attention is not counted
            go()
        ms = []
        for _ in range(3):
            began = time.perf_counter()
            go().sum().item()
            ms.append(1000 * (time.perf_counter() - began))
        out |= {f'{name}_gflop_per_pair': counter.get_total_flops() / len(at) / 1e9, f'{name}_ms_per_pair': min(ms) / len(at)}
    return out

def likelihood(model, image_states, tokens, pad):
    """Mean log-probability of each text's words (m, T) when the picture alone is to be seen -> (n, m). What is masked differs by length alone, so each
    picture is fused once for each length."""
    dev, length = model.pixel_mean.device, (~pad).sum(1) - 1
    out = torch.zeros(len(image_states), len(tokens))
    for n_words in length.unique():
        mine = (length == n_words).nonzero()[:, 0]
        blank = pad[mine[:1]].to(dev)
        hidden = model.unimodal(model.embed_text(torch.full_like(tokens[:1], model.mask_id).to(dev)), blank)
        for rows in torch.arange(len(image_states)).split(batch_size):
            states = model.fuse(hidden.expand(len(rows), -1, -1), image_states[rows].to(dev).float(), blank.expand(len(rows), -1))[0][:, 1:1 + n_words]
            log_p = model.word_logits(states).float().log_softmax(-1)                          # (rows, n_words, V)
            said = tokens[mine, :n_words].T[None].expand(len(rows), -1, -1).to(dev)            # (rows, n_words, mine)
            out[rows[:, None], mine] = log_p.gather(2, said).mean(1).cpu()
    return out - out.mean(0)                                           # how much better than for the average picture: or short texts would always win

# ----------------------------------------------------------------------------------------------------------------------
# grounding

@torch.enable_grad()
def attention_map(model, patches, tokens, pad, layer):
    """Where a phrase is in a picture: attention from its words to the patches in joint layer `layer`, where more of it would raise the score that words and
    picture belong together -> (B, N), not negative. The score is the matching head's; without itm, how well the words, all masked, are told.
    patches (B, N, P) uint8, tokens (B, T), pad (B, 1 + T). Grad-CAM on attention as in ALBEF, arXiv:2107.07651, on a joint stack: renormalised over patches."""
    c, L = model.config, tokens.shape[1] + 1
    hidden = tokens if c.has('itm') else torch.full_like(tokens, model.mask_id)
    x = torch.cat([model.unimodal(model.embed_text(hidden), pad), model.unimodal(model.embed_image(model.normalise(patches)))], 1).detach()
    mask = ~F.pad(pad, (0, x.shape[1] - L))[:, None, None]
    joint = model.blocks[c.n_unimodal:]
    for block in joint[:layer]:
        x = block(x, mask)
    block, (B, S, D) = joint[layer], x.shape
    q, k, v = block.attn.qkv(block.norm1(x)).view(B, S, 3, c.n_head, D // c.n_head).permute(2, 0, 3, 1, 4)
    weight = (q @ k.transpose(2, 3) / math.sqrt(D // c.n_head)).masked_fill(~mask, -math.inf).softmax(-1)     # (B, n_head, S, S)
    x = x + block.attn.proj((weight @ v).transpose(1, 2).reshape(B, S, D))
    x = x + block.mlp(block.norm2(x))
    for block in joint[layer + 1:]:
        x = block(x, mask)
    x = model.norm(x)
    if c.has('itm'):
        score = model.itm_head(x[:, 0]) @ x.new_tensor([-1., 1.])
    else:
        score = (model.word_logits(x[:, 1:L]).log_softmax(-1).gather(2, tokens[..., None])[..., 0] * ~pad[:, 1:]).sum(1)
    gradient, = torch.autograd.grad(score.sum(), weight)
    to_patches = weight[:, :, :L, L + 1:] / weight[:, :, :L, L + 1:].sum(-1, keepdim=True)
    said = (~pad[:, None, :, None]).float()                            # [CLS] and the words: of the last layer itm reads [CLS] alone
    heat = (to_patches * gradient[:, :, :L, L + 1:].clamp(min=0) * said).sum(2) / said.sum(2)
    return heat.mean(1).detach()

def patches_map(model, patches, tokens, pad, subsets=256):
    """Where a phrase is in a picture: which patches, when they are among the quarter that stays, bring the picture's ITC embedding closer to this phrase than to
    the average phrase -> (B, N). Shapes as above. RISE, arXiv:1806.07421, by leaving patches out, as training does."""
    N = patches.shape[1]
    noise = torch.from_numpy(train.draw_noise(train.EVAL_SEED, 0, 0, subsets, N)).to(patches.device)
    stay = noise.argsort(1)[:, :max(N // 4, 1)].sort(1).values         # (subsets, N / 4), the same for all pictures
    kept = torch.zeros(subsets, N, device=patches.device).scatter(1, stay, 1.)
    phrase = torch.cat([model.embedding(model.unimodal(model.embed_text(t), p), model.text_proj, p) for t, p in zip(tokens.split(batch_size), pad.split(batch_size))])
    phrase, heat = phrase - phrase.mean(0) * (len(phrase) > 1), []
    for i in range(len(patches)):
        if i == 0 or not torch.equal(patches[i], patches[i - 1]):      # phrases of one picture stand together
            x = model.normalise(patches[i:i + 1]).expand(subsets, -1, -1)
            z = model.embedding(model.unimodal(model.embed_image(x, stay)), model.image_proj)
        score = z @ phrase[i]
        heat.append((kept.T @ (score - score.mean())) / kept.sum(0).clamp(min=1))
    return torch.stack(heat).clamp(min=0)

def box_of(heat, size, threshold=.5):
    """The largest connected region of a map (n, n) above threshold x its maximum, in a picture of `size` pixels -> [x0, y0, x1, y1]."""
    n = 4 * heat.shape[0]
    fine = F.interpolate(heat[None, None].float(), (n, n), mode='bicubic', align_corners=False)[0, 0]
    on, best = (fine >= threshold * fine.max()).numpy(), []
    while on.any():
        edge, region = [tuple(np.argwhere(on)[0])], []
        on[edge[0]] = False
        while edge:
            y, x = edge.pop()
            region.append((y, x))
            for near in (y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1):
                if 0 <= near[0] < n and 0 <= near[1] < n and on[near]:
                    on[near] = False
                    edge.append(near)
        best = max(best, region, key=len)
    (y0, x0), (y1, x1) = np.min(best, 0), np.max(best, 0) + 1
    return [float(v) * size / n for v in (x0, y0, x1, y1)]

def iou(a, b):
    """Of two boxes [x0, y0, x1, y1]."""
    inside = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return inside / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside)

def read_phrases(model, data, pairs):
    """What to find where -> patches (n, N, P) uint8, phrases [n], boxes (n, 4) in pixels of the model's picture: of --refs, a RefCOCO-style JSON or JSONL,
    [{"image": path, "text": phrase, "box": [x, y, width, height]}, ...], or of the truth: objects that are the only ones of their colour and shape."""
    c, boxes, phrases, pixels = model.config, [], [], []
    if not refs:
        middle = (c.full_size - c.image_size) // data.meta['patch_size'] // 2 * data.meta['patch_size']
        patches = torch.cat([b[1] for b in batches(model, data, *pairs)])
        for i, (scene, about) in enumerate(true_scenes(data, pairs[0])):
            names = [(o['colour'], o['shape']) for o in scene.get('objects', [])]
            for o, name in zip(scene.get('objects', []), names):
                if names.count(name) == 1:
                    boxes.append(np.array(o['box']) * c.full_size / about['size'] - middle)
                    phrases.append(f"a {o['size']} {' '.join(name)}")
                    pixels.append(patches[i])
    else:
        try:
            text = Path(refs).read_text(encoding='utf-8')
            rows = json.loads(text) if text.lstrip()[:1] == '[' else [json.loads(line) for line in text.split('\n') if line.strip()]
            cut = (c.full_size - c.image_size) // 2
            for row in rows:
                picture = read_picture(Path(refs).parent / row['image'])
                (x, y, w, h), scale = row['box'], c.full_size / min(picture.size)              # the middle square, as in training
                left, top = ((side * scale - c.full_size) / 2 + cut for side in picture.size)
                boxes.append(np.array([x * scale - left, y * scale - top, (x + w) * scale - left, (y + h) * scale - top]))
                pixels.append(model.read_pictures([picture])[0])
                phrases.append(' '.join(row['text'].split()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            sys.exit(f'error: --refs={refs}: expected [{{"image": path, "text": phrase, "box": [x, y, width, height]}}, ...] ({type(e).__name__}: {e})')
    boxes = np.clip(np.array(boxes).reshape(-1, 4), 0, c.image_size)
    seen = [i for i in range(len(boxes)) if boxes[i, 2] - boxes[i, 0] >= 1 and boxes[i, 3] - boxes[i, 1] >= 1]        # the others are outside the square
    return [pixels[i] for i in seen], [phrases[i] for i in seen], boxes[seen], len(boxes) - len(seen)

def ground(model, data, pairs):
    """Phrase grounding without having seen a box: is the map's peak inside the object's box (pointing game), how much of the map is, and the box drawn
    around its largest region. Two maps: by leaving patches out (itc), by the attention of a joint layer (itm, mlm). What another picture's phrase points at says
    how far mere salience goes."""
    c = model.config
    ways = ['patches'] * c.has('itc') + ['attention'] * (c.n_unimodal < c.n_layer and (c.has('itm') or c.has('mlm')))
    if not ways or not truth and not refs:
        return dict(skipped='grounding needs --truth or --refs' if ways else 'grounding needs itc, or joint layers and itm or mlm')
    pixels, phrases, boxes, outside = read_phrases(model, data, pairs)
    if not phrases:
        return dict(skipped='no phrase whose box lies in the picture')
    layer, n, half = min(max(ground_layer, 0), max(c.n_layer - c.n_unimodal - 1, 0)), c.image_size // c.patch_size, c.patch_size / 2
    tokens, pad = model.tokenise(phrases)
    tokens, pad, pixels = tokens.to(model.vocab.device), F.pad(pad, (1, 0)).to(model.vocab.device), torch.stack(pixels)
    def maps_of(way, *spoken):                                         # -> (phrases, n, n)
        heat = patches_map(model, pixels, *spoken) if way == 'patches' else torch.cat([
            attention_map(model, *(x[i:i + batch_size] for x in (pixels, *spoken)), layer) for i in range(0, len(phrases), batch_size)])
        return heat.view(-1, n, n).cpu()
    maps, other = {way: maps_of(way, tokens, pad) for way in ways}, np.roll(np.arange(len(phrases)), len(phrases) // 2)      # of a picture half way round
    centre = (np.arange(n) + .5) * c.patch_size
    def within(box, x, y): return (box[0] - half <= x) & (x <= box[2] + half) & (box[1] - half <= y) & (y <= box[3] + half)       # of a patch that touches the box
    def inside(box): return np.outer((centre >= box[1]) & (centre < box[3]), (centre >= box[0]) & (centre < box[2]))
    def points(heat): return [bool(within(box, centre[int(h.argmax()) % n], centre[int(h.argmax()) // n])) for box, h in zip(boxes, heat)]
    out, hit = {}, {}
    for way, heat in maps.items():
        hit[way] = points(heat)
        overlap = np.array([iou(box_of(h, c.image_size), box) for h, box in zip(heat, boxes)])
        energy = [float((h.numpy() * inside(box)).sum() / max(float(h.sum()), 1e-12)) for h, box in zip(heat, boxes)]
        out |= {f'{way}_pointing': float(np.mean(hit[way])), f'{way}_pointing_other_phrase': float(np.mean(points(maps_of(way, tokens[other], pad[other])))),
                f'{way}_energy_in_box': float(np.mean(energy)), f'{way}_box_iou50': float((overlap >= .5).mean()), f'{way}_box_miou': float(overlap.mean())}
    area = [within(b, *np.meshgrid(centre, centre)).mean() for b in boxes]          # the share of patches that would be right
    at_centre = np.mean([within(b, c.image_size / 2, c.image_size / 2) for b in boxes])
    def drawn(way, i):
        picture_ = picture(pixels[i].float() / 255, c.patch_size)
        glow = F.interpolate(maps[way][i][None, None], picture_.shape[:2], mode='bicubic', align_corners=False)[0, 0].clamp(min=0)
        return np.where((glow / glow.max().clamp(min=1e-12) > .5).numpy()[..., None], picture_, .35 * picture_ + .2)
    pick = np.linspace(0, len(phrases) - 1, min(n_pictures, len(phrases))).round().astype(int)
    sheet(['phrase', 'picture', *(f'by {way}' for way in ways)], [[phrases[i], picture(pixels[i].float() / 255, c.patch_size)] + [
        (drawn(way, i), 'green' if hit[way][i] else 'red') for way in ways] for i in pick], Path(run) / 'ground.png')
    return out | dict(pointing_chance=float(np.mean(area)), pointing_centre=float(at_centre), phrases=len(phrases), phrases_outside=outside)

# ----------------------------------------------------------------------------------------------------------------------
# search

def frame_embeddings(model, data):
    """ITC embedding of every frame of a split -> (n, proj_dim) float16, memory-mapped: out/<run>/search/*.npy, made once; goes on after Ctrl-C."""
    made_of = f"{weights_hash()} {data.meta['arrays'][f'{data.split}_patches.bin']['sha256']}"
    name = Path(run) / 'search' / f'{data.path.name}-{data.split}-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}.npy'
    if not name.exists():
        name.parent.mkdir(exist_ok=True)
        with open(name.with_suffix('.part'), 'ab') as f:
            fcntl.flock(f, fcntl.LOCK_EX)                              # a second search of the same frames waits for the first
            if not name.exists():
                embed_frames(model, data, f)
                for old in name.parent.glob(f'{data.path.name}-{data.split}-*.npy'):                # of an earlier checkpoint or set
                    old.unlink()
                name.with_suffix('.part').rename(name)
    return np.load(name, mmap_mode='r', allow_pickle=False)

def embed_frames(model, data, f):
    """Append to f, open for appending, what it lacks of a .npy file with the embedding of every frame."""
    from tqdm import tqdm
    n, d, head = len(data.frames), model.config.proj_dim, io.BytesIO()
    np.lib.format.write_array_header_1_0(head, dict(descr='<f2', fortran_order=False, shape=(n, d)))
    head = head.getvalue()
    done = max(0, f.tell() - len(head)) // (2 * d)                     # whole rows
    f.truncate(len(head) + 2 * d * done if f.tell() >= len(head) else 0)
    f.write(b'' if f.tell() else head)
    for ids in tqdm([np.arange(i, min(i + batch_size, n)) for i in range(done, n, batch_size)], f'{data.path.name}, {data.split}: frames', disable=None):
        x = train.read_pairs(data, ids, np.zeros(len(ids), int), np.zeros(len(ids), int), model.config, model.pixel_mean.device)[0]
        z = model.embedding(model.unimodal(model.embed_image(model.normalise(x))), model.image_proj)
        f.write(z.half().cpu().numpy().tobytes())

def nearest(embeddings, query, k, chunk=1 << 16):
    """Rows of (n, d) float16 closest to query (d,) -> (ids (k,), cosines (k,)), best first. A chunk at a time is in memory."""
    ids, scores = np.zeros(0, np.int64), np.zeros(0, np.float32)
    for i in range(0, len(embeddings), chunk):
        score = embeddings[i:i + chunk].astype(np.float32) @ query
        best = np.argpartition(-score, min(k, len(score)) - 1)[:k]
        ids, scores = np.concatenate([ids, best + i]), np.concatenate([scores, score[best]])
        order = np.argsort(-scores, kind='stable')[:k]
        ids, scores = ids[order], scores[order]
    return ids, scores

def printable(text):
    """Without line ends, control sequences of a terminal, and halves of characters."""
    return ' '.join(''.join(c if c.isprintable() else ' ' for c in text).split())

def search(model, sets):
    """The moments of a prepared set, all splits, that fit --query or --image best -> [dict(score, title, time_s, link, text, ...)], best first; of
    frames of a video within 5 seconds only the best."""
    if not model.config.has('itc'):
        sys.exit(f'error: {run} was trained without itc, so it has no embeddings to search by; take a run with --itc=1')
    if bool(query) == bool(image):
        sys.exit('error: search needs --query="words" or --image=picture.jpg')
    wanted = model.encode_image(open_pictures()[0][1]) if image else model.encode_text(query)
    found = []
    for data in sets:
        ids, scores = nearest(frame_embeddings(model, data), wanted.float().cpu().numpy(), 8 * top)
        found += [(float(score), data, int(i)) for i, score in zip(ids, scores)]
    moments, taken = [], {}
    for score, data, i in sorted(found, key=lambda f: -f[0]):
        f, video = data.frames[i], data.videos[data.frames[i]['video']]
        near = taken.setdefault((id(data), int(f['video'])), [])
        if len(moments) < top and all(abs(int(f['t_ms']) - t) >= 5000 for t in near):
            near.append(int(f['t_ms']))
            moments.append(dict(score=score, row=int(video['row']), time_s=int(f['t_ms']) / 1000, frame=i, data=data))
    rows = {}
    for path in {m['data'].path for m in moments}:
        with open(path / 'videos.jsonl', encoding='utf-8') as lines:
            wanted = {m['row'] for m in moments if m['data'].path == path}
            rows |= {(path, i): json.loads(line) for i, line in enumerate(lines) if i in wanted}
    for m in moments:
        data, f, row, t = m['data'], m['data'].frames[m['frame']], rows[m['data'].path, m.pop('row')], int(m['time_s'])
        video = data.videos[f['video']]
        span = slice(int(video['token_start']), max(int(video['token_start']), int(video['token_end']) - 1))
        heard = data.tokens[span][(data.times[span] >= int(f['t_ms']) - 1000) & (data.times[span] < int(f['t_end_ms']) + 1000)]
        link = row['url'] or (Path(row['source']).resolve().as_uri() if Path(row['source']).exists() else '')
        at = '' if video['flags'] & 1 else ('#t=' if link.startswith('file:') else '&t=' if '?' in link else '?t=') + str(t)         # a picture has no time
        m |= dict(title=printable(row['title'] or row['source']), link=printable(link + at) if re.match('(https?|file)://', link) else '',
                  text=printable(data.encoding.decode(heard[heard != 50256][:80].tolist())))
    for m in moments:
        t = int(m['time_s'])
        print(f"{m['score']:.3f}  {t // 60:3d}:{t % 60:02d}  {m['title'][:60]}  {m['link']}\n            {m['text'][:150]}")
    if page:
        write_page(moments)
    return [{k: v for k, v in m.items() if k != 'data'} for m in moments]

def write_page(moments):
    """out/<run>/search.html: one static file with pictures, links and the words around, those of the query marked. Titles and words are not trusted."""
    from PIL import Image
    cards, asked = [], set(re.findall(r'\w+', query.lower())) - train.STOP_WORDS
    for m in moments:
        data, t = m['data'], int(m['time_s'])
        S, p = data.meta['image_size'], data.meta['patch_size']
        pixels = unpatchify(torch.from_numpy(np.array(data.patches[m['frame']]))[None], p)[0].numpy()
        Image.fromarray(pixels).resize((max(S, 160),) * 2, Image.Resampling.BICUBIC).save(stream := io.BytesIO(), 'JPEG', quality=85)
        said = ''.join(f'<mark>{html.escape(w)}</mark>' if w.lower() in asked else html.escape(w) for w in re.split(r'(\w+)', m['text']))
        title = f"{html.escape(m['title'])}, {t // 60}:{t % 60:02d}"
        title = f"""<a href="{html.escape(m['link'])}">{title}</a>""" if m['link'] else title
        cards.append(f'<figure><img alt="" src="data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"><figcaption><b>{title}</b> '
                     f"<small>{m['score']:.3f}</small><br>{said}</figcaption></figure>")
    asked = html.escape(printable(query or f'like {image}'))
    path = Path(run) / 'search.html'
    path.write_text(f"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'"><title>{asked}</title><style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 1200px; padding: 0 1em; color: #222; background: #fff }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 22px }} figure {{ margin: 0 }} img {{ width: 100%; border-radius: 6px }}
a {{ color: #1550a0 }} mark {{ background: #ffe68a }} small {{ color: #777 }} figcaption {{ overflow-wrap: anywhere }}</style>
<h1>{asked}</h1><p>{len(moments)} moments of {html.escape(train.dataset)}, best first; the number is the cosine of the embeddings.</p><main>{''.join(cards)}</main></html>
""", encoding='utf-8')
    print(f'wrote {path}')

# ----------------------------------------------------------------------------------------------------------------------
# fine-tuning: questions, pairs of pictures, entailment, ... one file format, one loop

def read_examples(path):
    """JSONL of {"images": [one or two paths], "text": ..., "label": ...}, or "answers": [of four or more people], "id" as you like -> rows with `scores`, {label:
    what it is worth}. Of answers: 1, 2, 3, 4 people .3, .6, .9, 1, as is usual for VQA. Rows whose pictures are absent are left out and counted.
    Instead of JSONL, folders <split>/<class>/ of pictures will do, without text."""
    rows, absent = [], 0
    if not path.with_name('train.jsonl').exists() and (folder := path.with_suffix('')).is_dir():
        rows = [dict(images=[p], text='', label=p.parent.name, scores={p.parent.name: 1.}) for p in sorted(folder.glob('*/*'))
                if p.suffix.lower() in ('.jpg', '.jpeg', '.png', '.webp')]
    for number, line in enumerate(path.read_bytes().split(b'\n') if path.exists() else (), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
            row['images'] = [path.parent / p for p in row['images']]
            row['scores'] = {a: min(1, .3 * n) for a, n in Counter(row['answers']).items()} if 'answers' in row else {str(row['label']): 1.}
            if not (1 <= len(row['images']) <= 2 and isinstance(row['text'], str) and row.get('label', '') is not None and
                    ('answers' not in row or isinstance(row['answers'], list) and len(row['answers']) >= 4)):
                raise ValueError('one or two images, a text, and a label, or the answers of four or more people')
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            sys.exit(f'error: {path}, line {number}: expected {{"images": [...], "text": ..., "label": ...}} ({type(e).__name__}: {e})')
        if all(p.exists() for p in row['images']):
            rows.append(row)
        else:
            absent += 1
    if absent:
        print(f'{path}: {absent} of {absent + len(rows)} examples left out: their pictures are absent')
    if not rows:
        sys.exit(f'error: {path} is absent or has no example whose pictures are there')
    return rows

def read_splits(model):
    """--examples -> {train, val, and test if there is one: rows}, all with one picture or all with two."""
    folder = Path(examples)
    some = 'train', 'val', *(['test'] if (folder / ('test.jsonl' if (folder / 'train.jsonl').exists() else 'test')).exists() else [])
    rows = {s: read_examples(folder / f'{s}.jsonl') for s in some}
    from prepare import gpt2_encoding
    for s, these in rows.items():
        length = [len(t) for t in gpt2_encoding().encode_ordinary_batch([' ' + ' '.join(r['text'].split()) for r in these])]
        if long := sum(n > model.config.text_len - (task == 'classify') for n in length):           # whose last place is the [MASK]'s
            print(f'{folder}/{s}: {long} of {len(these)} texts are longer than the {model.config.text_len} tokens that the model reads; their ends are not read')
    if len({len(r['images']) for rs in rows.values() for r in rs}) > 1:
        sys.exit(f'error: {folder}: some examples have one picture and some two')
    return rows

def worth(row, answer):
    """What an answer scores: the label's worth; of people's answers the official VQA accuracy, mean over each nine others of min(count / 3, 1)."""
    if 'answers' not in row:
        return row['scores'].get(answer, 0.)
    people = row['answers']
    return float(np.mean([min((people[:i] + people[i + 1:]).count(answer) / 3, 1) for i in range(len(people))]))

class Classifier(torch.nn.Module):
    """The [CLS] of words fused with each picture, and a [MASK] after the words, where masked language modelling has learned to answer -> two layers -> scores
    of the labels. `only`: 'text' or 'image' hides the other, the honest baseline. Without joint layers (CLIP): the two [CLS] side by side."""
    def __init__(self, model, n_images, n_labels, only):
        super().__init__()
        c, self.model, self.only = model.config, model, only
        self.towers = c.n_unimodal == c.n_layer
        width = c.n_embd * (n_images if only != 'text' else 1) * (1 if only and self.towers or only == 'image' else 2)
        self.head = torch.nn.Sequential(torch.nn.Linear(width, 2 * c.n_embd), torch.nn.LayerNorm(2 * c.n_embd), torch.nn.GELU(), torch.nn.Linear(2 * c.n_embd, n_labels))

    def forward(self, patches, tokens, pad):
        """patches (B, I, N, P) uint8, tokens (B, T), pad (B, 1 + T) -> (B, labels)."""
        m, text, seen, row = self.model, None, [], torch.arange(len(tokens), device=tokens.device)
        if self.only != 'image':
            end = (~pad[:, 1:]).sum(1).clamp(max=m.config.text_len - 1)
            tokens, pad = F.pad(tokens, (0, 1)), F.pad(pad, (0, 1), value=True)
            tokens[row, end], pad[row, 1 + end] = m.mask_id, False
            tokens, pad = tokens[:, :m.config.text_len], pad[:, :1 + m.config.text_len]
            text = m.unimodal(m.embed_text(tokens), pad)
        for i in range(patches.shape[1] if self.only != 'text' else 1):
            image = None if self.only == 'text' else m.unimodal(m.embed_image(m.normalise(patches[:, i])))
            if self.towers:
                seen += [x[:, 0] for x in (text, image) if x is not None]
            else:
                fused_text, fused_image, _ = m.fuse(text, image, pad)
                seen += [fused_image[:, 0]] if text is None else [fused_text[:, 0], fused_text[row, 1 + end]]
        return self.head(torch.cat(seen, 1)).float()

@functools.lru_cache(20_000)
def square(path, size):
    """A picture -> its middle square, (size, size, 3) uint8."""
    from PIL import Image, ImageOps
    try:
        return np.asarray(ImageOps.fit(read_picture(path), (size,) * 2, Image.Resampling.BOX))
    except ValueError as e:
        sys.exit(f'error: {e}; take it out of the examples')

def with_words_of(model, rows):
    """The model, its vocabulary wider by the words of these examples: questions have words that narration lacks, which it would otherwise spell."""
    from prepare import gpt2_encoding
    encoding, old = gpt2_encoding(), model.state_dict()
    said = {i for text in {' ' + ' '.join(r['text'].split()) for r in rows} for i in encoding.encode_ordinary(text)}
    vocab = torch.tensor(model.vocab.tolist() + sorted(said - set(model.vocab.tolist())))
    c = dataclasses.replace(model.config, vocab_size=len(vocab), psl=0., distill=0., queue_size=0)
    torch.manual_seed(seed)
    wide = models.VLModel(c, vocab, torch.ones(len(vocab) + 2, dtype=torch.bool), model.pixel_mean.cpu(), model.pixel_std.cpu(), torch.full((len(vocab),), -1))
    models.load_former(wide, {k: v.cpu() for k, v in old.items()})
    return wide.to(model.vocab.device).eval()

def batch_of(model, some, rng=None):
    """Examples -> patches (B, I, N, P) uint8, tokens (B, T), pad (B, 1 + T); a random window if rng, else the middle."""
    c, dev = model.config, model.pixel_mean.device
    pixels = np.stack([[square(str(p), c.full_size) for p in r['images']] for r in some])                       # (B, I, H, W, 3)
    free = c.full_size - c.image_size
    at = np.full((len(some), 2), free // 2) if rng is None else rng.integers(0, free + 1, (len(some), 2))
    pixels = np.stack([x[:, y:y + c.image_size, z:z + c.image_size] for x, (y, z) in zip(pixels, at)])
    patches = models.patchify(torch.from_numpy(pixels.reshape(-1, *pixels.shape[2:])), c.patch_size).view(*pixels.shape[:2], c.n_patches, -1)
    tokens, pad = model.tokenise([r['text'] for r in some])
    T = max(int((~pad).sum(1).max()), 1)                               # as long as the longest
    return patches.to(dev), tokens[:, :T].to(dev), F.pad(pad[:, :T], (1, 0)).to(dev)

def classify(model):
    """Fine-tune on --examples, keep the epoch that is best on val.jsonl, judge it once on test.jsonl -> {split: score, ...}. Ctrl-C and again: it goes on."""
    folder = Path(examples)
    rows = read_splits(model)
    model, count = with_words_of(model, rows['train']), Counter()
    c, model.teacher = model.config, None
    for row in rows['train']:
        count.update(row['scores'])
    labels, exclusive = [k for k, _ in count.most_common(n_labels)], all(list(r['scores'].values()) == [1.] for r in rows['train'])
    place, dev = {k: i for i, k in enumerate(labels)}, model.vocab.device
    if len(labels) < 2:
        sys.exit(f'error: {folder}: all examples have the same label')
    for s, some in rows.items():
        if lost := sum(not place.keys() & r['scores'].keys() for r in some):
            print(f'{folder / s}.jsonl: {lost} of {len(some)} examples have no answer among the {len(labels)} labels, and count as wrong')
    net = Classifier(model, len(rows['train'][0]['images']), len(labels), only).to(dev)
    torch.manual_seed(seed)
    for p in net.head:
        if hasattr(p, 'reset_parameters'):
            p.reset_parameters()
    def depth(name):                                                   # 0: patches ... n_layer, the head n_layer + 1, and words, which may be new
        if name.startswith('head') or 'model.norm' in name or 'tok_embed' in name:
            return c.n_layer + 1
        return int(name.split('.')[2]) + 1 if name.startswith('model.blocks.') else 0
    groups = [dict(params=[p], scale=layer_decay ** (c.n_layer + 1 - depth(n)), weight_decay=.05 * (p.dim() == 2), matrix='blocks' in n and p.dim() == 2)
              for n, p in net.named_parameters() if p.requires_grad]
    optimizers = [torch.optim.AdamW([g for g in groups if not g['matrix']], lr=learning_rate), train.Muon([g for g in groups if g['matrix']], learning_rate, .05)]

    def judge(split):
        net.eval()
        with torch.no_grad():
            chosen = [labels[i] for k in range(0, len(rows[split]), batch_size) for i in net(*batch_of(model, rows[split][k:k + batch_size])).argmax(1).tolist()]
        return chosen, float(np.mean([worth(r, a) for r, a in zip(rows[split], chosen)]))

    out = Path(run) / '-'.join(['classify', *folder.resolve().parts[1:][-2:], *([only] if only else []), str(seed)])
    out.mkdir(exist_ok=True)
    made_of = dict(weights=weights_hash(), examples=hashlib.sha256(json.dumps(rows, default=str).encode()).hexdigest(), labels=labels, epochs=epochs,
                   learning_rate=learning_rate, layer_decay=layer_decay, batch_size=batch_size, dtype=dtype)
    epoch, best, best_epoch, steps = 0, -1., 0, -(-len(rows['train']) // batch_size)
    if (out / 'latest.pt').exists():
        was = torch.load(out / 'latest.pt', map_location=dev, weights_only=True)
        if differs := [k for k, v in made_of.items() if was['made_of'].get(k) != v]:
            sys.exit(f"error: {out} was begun with other {', '.join(differs)}; remove it, or take another --seed")
        net.load_state_dict(was['net'])
        for optimizer, state in zip(optimizers, was['optimizers']):
            optimizer.load_state_dict(state)
        epoch, best, best_epoch = was['epoch'], was['best'], was['best_epoch']
    while epoch < epochs and epoch - best_epoch < 4:                   # four epochs without a better one: enough
        rng = np.random.default_rng([seed, epoch])
        order, total = rng.permutation(len(rows['train'])), 0.
        net.train()
        for k in range(steps):
            some, done = [rows['train'][i] for i in order[k * batch_size:(k + 1) * batch_size]], (epoch * steps + k) / (epochs * steps)
            for group in [g for o in optimizers for g in o.param_groups]:
                group['lr'] = learning_rate * group['scale'] * min((done + 1e-3) / .1, (1 - done) / .9)           # 10 % warm-up, then linear to 0
            target = torch.zeros(len(some), len(labels), device=dev)
            for row, t in zip(some, target):
                for a, value in row['scores'].items():
                    if a in place:
                        t[place[a]] = value
            with torch.enable_grad():
                with torch.autocast(dev.type, torch.bfloat16, enabled=dtype == 'bfloat16' or dtype == 'auto' and dev.type == 'cuda'):
                    logits = net(*batch_of(model, some, rng))
                loss = F.cross_entropy(logits, target) if exclusive else F.binary_cross_entropy_with_logits(logits, target) * len(labels)
                loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.)
            for optimizer in optimizers:
                optimizer.step()
            net.zero_grad(set_to_none=True)
            total += loss.item() / steps
        epoch += 1
        value = judge('val')[1]
        print(f'epoch {epoch}/{epochs} | loss {total:.3f} | val {100 * value:.1f} %', flush=True)
        if value > best:
            best, best_epoch = value, epoch
            train.save_checkpoint(out / 'best.pt', net=net.state_dict(), labels=labels)
        train.save_checkpoint(out / 'latest.pt', net=net.state_dict(), optimizers=[o.state_dict() for o in optimizers], epoch=epoch, best=best, best_epoch=best_epoch,
                              made_of=made_of)
    net.load_state_dict(torch.load(out / 'best.pt', map_location=dev, weights_only=True)['net'])
    found = dict(task=out.name, only=only or 'words and pictures', seed=seed, labels=len(labels), best_epoch=best_epoch, train_examples=len(rows['train']))
    for s in [s for s in ('val', 'test') if s in rows]:
        chosen, found[s] = judge(s)
        found |= {f'{s}_commonest': float(np.mean([worth(r, labels[0]) for r in rows[s]])), f'{s}_examples': len(rows[s])}
        with open(out / f'predictions_{s}.jsonl', 'w', encoding='utf-8') as f:
            f.writelines(json.dumps(dict(id=r.get('id', i), answer=a)) + '\n' for i, (r, a) in enumerate(zip(rows[s], chosen)))
    (out / 'result.json').write_text(json.dumps(found, indent=1))
    print(*(f'  {k:32s}{v:.4f}' if isinstance(v, float) else f'  {k:32s}{v}' for k, v in found.items()), f'wrote {out}/result.json, predictions_*.jsonl', sep='\n')
    return found

def features(model, rows):
    """Frozen: the [CLS] and the mean of the unimodal states (of all layers if there are none) of each picture, of each text -> (n, 2 D or 2 D a picture) float32."""
    found = [], []
    for k in range(0, len(rows), 4 * batch_size):
        patches, tokens, pad = batch_of(model, rows[k:k + 4 * batch_size])
        images = [model.unimodal(model.embed_image(model.normalise(patches[:, i]))) for i in range(patches.shape[1])]
        text = model.unimodal(model.embed_text(tokens), pad)
        if not model.config.n_unimodal:
            images, text = [model.fuse(None, x, pad)[1] for x in images], model.fuse(text, None, pad)[0]
        real = (~pad)[..., None]
        found[0].append(torch.cat([y for x in images for y in (x[:, 0], x[:, 1:].mean(1))], 1).float())
        found[1].append(torch.cat([text[:, 0], (text * real).sum(1) / real.sum(1)], 1).float())
    return [torch.cat(x) for x in found]

@torch.enable_grad()
def linear(x, y, n_labels, decay):
    """Multinomial logistic regression by L-BFGS on x (n, d), y (n,) -> a function of features."""
    mean, std = x.mean(0), x.std(0).clamp(min=1e-4)
    w = torch.zeros(x.shape[1] + 1, n_labels, device=x.device, requires_grad=True)
    def ready(x): return F.pad((x - mean) / std, (0, 1), value=1.)
    optimizer, seen = torch.optim.LBFGS([w], max_iter=100, line_search_fn='strong_wolfe'), ready(x)
    def loss():
        optimizer.zero_grad()
        out = F.cross_entropy(seen @ w, y) + decay * w[:-1].square().sum() / 2
        out.backward()
        return out
    optimizer.step(loss)
    return lambda x: (ready(x) @ w).detach()

def probe(model):
    """What frozen features tell about --examples: linear and kNN on pictures, zero-shot from the names of the labels, linear on the texts alone.
    Weight decay chosen on val; test judged once."""
    folder = Path(examples)
    rows = read_splits(model)
    last, labels = list(rows)[-1], [k for k, _ in Counter(max(r['scores'], key=r['scores'].get) for r in rows['train']).most_common(n_labels)]
    place = {k: i for i, k in enumerate(labels)}
    x = {s: features(model, r) for s, r in rows.items()}
    dev = x['train'][0].device
    y = {s: torch.tensor([place.get(max(r['scores'], key=r['scores'].get), -1) for r in some], device=dev) for s, some in rows.items()}      # -1: always wrong
    known = y['train'] >= 0
    def right(score, s): return (score.argmax(1) == y[s]).float().mean().item()
    found = dict(task=f'probe of {folder.name}', labels=len(labels), train_examples=len(y['train']), examples=len(y[last]), split=last,
                 commonest=(y[last] == 0).float().mean().item())
    for k, name in enumerate(('linear', 'text_only')):
        if k == 0 or any(r['text'] for r in rows['train']):
            fits = [linear(x['train'][k][known], y['train'][known], len(labels), decay) for decay in (1e-4, 1e-3, 1e-2, 1e-1)]
            found[name] = right(max(fits, key=lambda fit: right(fit(x['val'][k]), 'val'))(x[last][k]), last)
    votes, stored = [], F.normalize(x['train'][0][known], dim=1)
    for query in F.normalize(x[last][0], dim=1).split(1024):
        near = (query @ stored.T).topk(min(20, len(stored)), 1)
        votes.append(torch.zeros(len(query), len(labels), device=dev).scatter_add(1, y['train'][known][near.indices], (near.values / .07).exp()))
    found['knn'] = right(torch.cat(votes), last)
    if model.config.has('itc') and len(rows['train'][0]['images']) == 1:
        told = []
        for label in labels:
            tokens, pad = model.tokenise([t.replace('{}', label) for t in templates.split('|')])
            pad = F.pad(pad, (1, 0)).to(dev)
            told.append(model.embedding(model.unimodal(model.embed_text(tokens.to(dev)), pad), model.text_proj, pad).mean(0))
        z = [model.embedding(model.unimodal(model.embed_image(model.normalise(batch_of(model, rows[last][k:k + batch_size])[0][:, 0]))), model.image_proj)
             for k in range(0, len(rows[last]), batch_size)]
        found['zero_shot'] = right(torch.cat(z) @ F.normalize(torch.stack(told), dim=1).T, last)
    (out := Path(run) / f"probe-{'-'.join(folder.resolve().parts[1:][-2:])}.json").write_text(json.dumps(found, indent=1))
    print(*(f'  {k:32s}{v:.4f}' if isinstance(v, float) else f'  {k:32s}{v}' for k, v in found.items()), f'wrote {out}', sep='\n')
    return found

# ----------------------------------------------------------------------------------------------------------------------
# writing and painting on request

def open_pictures():
    """--image, a file or a folder -> [(path, PIL picture)]; exits with one line if there is none, what cannot be read is told."""
    found, paths = [], sorted(Path(image).iterdir()) if Path(image).is_dir() else [Path(image)]
    for path in paths:
        try:
            found.append((path, read_picture(path)))
        except ValueError as e:
            print(f'skipped: {e}', file=sys.stderr)
    if not found:
        sys.exit(f'error: no picture in {image!r}; give --image=picture.jpg or a folder')
    return found

def caption(model):
    """What the model writes about --image, a picture or a folder of them: words from the picture alone, by iterative unmasking -> {path: text}."""
    if not model.config.has('mlm') or not {'xmm_text', 'amm_text'} & set(model.config.plan):
        sys.exit(f'error: {run} has not learned to tell words from pictures; take a run with mlm and amm_text among its parts')
    from prepare import gpt2_encoding
    found, encoding, out = open_pictures(), gpt2_encoding(), {}
    for some in (found[i:i + batch_size] for i in range(0, len(found), batch_size)):
        for (path, _), words in zip(some, model.write(model.read_pictures([p for _, p in some]), min(write_length, model.config.text_len)).cpu().numpy()):
            out[str(path)] = encoding.decode([int(model.vocab[i]) for i in words]).strip()
            print(f'{path}: {out[str(path)]}')
    return out

def paint(model):
    """The picture that --query suggests, from the words alone -> out/<run>/paint.png."""
    if not model.config.has('mim') or 'amm_image' not in model.config.plan or model.config.mim_target != 'pixels':
        sys.exit(f'error: {run} has not learned to paint from words; take a run with mim=1, mim_target=pixels and amm_image among its parts')
    if not query:
        sys.exit('error: paint needs --query="words"')
    tokens, pad = (x.to(model.vocab.device) for x in model.tokenise([query]))
    sheet(['words', 'painted'], [[query, picture(to_pixels(model, model.paint(tokens, F.pad(pad, (1, 0))))[0], model.config.patch_size)]], Path(run) / 'paint.png')

# ----------------------------------------------------------------------------------------------------------------------
# words and patches

def words(model, data, pairs):
    """Masked words told with the right picture, with another video's and with none: accuracy and bits per masked token."""
    c, other = model.config, elsewhere(data.frames['video'][pairs[0]])
    if not c.has('mlm'):
        return dict(skipped='the run has no mlm objective')
    total = {k: np.zeros(2) for k in ('right', *['shuffled'] * (other is not None), 'none')}
    count, uni = 0, torch.zeros(c.vocab_size)
    everything = list(batches(model, data, *pairs))
    patches = torch.cat([b[1] for b in everything])
    for rows, _, tokens, pad, noise in everything:
        slots, used = choose_words(tokens, pad[:, 1:], noise[:, c.n_patches:], c.mask_rate, math.ceil(c.mask_rate * c.text_len),
                                   model.word_start if c.whole_word else None)
        target = tokens.gather(1, slots)
        hidden = tokens.scatter(1, slots, torch.where(used, model.mask_id, target))
        text = model.unimodal(model.embed_text(hidden), pad)
        partner = dict(right=rows) if other is None else dict(right=rows, shuffled=other[rows])
        for name in total:
            image = model.unimodal(model.embed_image(model.normalise(patches[partner[name]]))) if name in partner else None
            logits = model.word_logits(take(model.fuse(text, image, pad)[0][:, 1:], slots)).float()[used]
            total[name] += [(logits.argmax(-1) == target[used]).sum().item(), F.cross_entropy(logits, target[used], reduction='sum').item() / math.log(2)]
        count += int(used.sum())
        uni += torch.bincount(target[used].cpu(), minlength=c.vocab_size)
    out = {f'mlm_acc_{k}': v[0] / count for k, v in total.items()} | {f'mlm_bits_{k}': v[1] / count for k, v in total.items()}
    if other is not None:
        out['alignment_bits'] = out['mlm_bits_shuffled'] - out['mlm_bits_right']               # per token: about 0 if pictures and words have nothing in common
    return out | dict(mlm_acc_commonest=(uni.max() / uni.sum()).item(), masked_tokens=count)

def to_pixels(model, x):
    """Normalised patches -> pixels in [0, 1]."""
    B, N, P = x.shape
    return (x.reshape(B, N, P // 3, 3) * model.pixel_std + model.pixel_mean).reshape(B, N, P).clamp(0, 1)

def reconstruct(model, patches, tokens, pad, noise):
    """-> painted pixels (B, N, P) of every patch from keep_lo of them and the words, mask (B, N) 1 = removed."""
    c, x = model.config, model.normalise(patches)
    ids_keep = noise[:, :c.n_patches].argsort(1)[:, :max(1, round(c.n_patches * c.keep_lo))]
    with_words = set(c.plan) & {'xmm_image', 'joint'}
    text, pad = (model.unimodal(model.embed_text(tokens), pad), pad) if with_words else (None, None)
    text, image, _ = model.fuse(text, model.unimodal(model.embed_image(x, ids_keep)), pad)
    painted = model.predictor(text, model.predictor.canvas(image[:, 1:], ids_keep), pad).float()
    if c.mim_target == 'norm_pix':                                                     # the true statistics of each patch are given back: labelled so
        painted = painted * (x.var(2, keepdim=True) + 1e-6).sqrt() + x.mean(2, keepdim=True)
    return to_pixels(model, painted), torch.ones(x.shape[:2], device=x.device).scatter(1, ids_keep, 0.)

def psnr(squares):
    """Mean squared errors of pixels in [0, 1] -> dB of their mean."""
    return -10 * math.log10(max(float(np.mean(squares)), 1e-10))

def patches(model, data, pairs):
    """PSNR of painted patches: the removed ones from the others (and the words, if it has learned that); all of them from the right words, from another
    video's, and from no idea (the mean picture of the training set)."""
    c, errors, painted = model.config, {}, {}
    if not c.has('mim') or c.mim_target == 'latent':
        return dict(skipped='the run does not paint pixels')
    training = train.open_split(data.path, 'train')
    sample = np.linspace(0, len(training.frames) - 1, min(2000, len(training.frames))).astype(int)
    nothing = np.zeros(len(sample), int)
    training.lookup = data.lookup
    mean = train.read_pairs(training, sample, nothing, nothing, c, model.pixel_mean.device)[0].float().mean(0) / 255
    everything, other = list(batches(model, data, *pairs)), elsewhere(data.frames['video'][pairs[0]])
    tokens, pad = (torch.cat([b[i] for b in everything]) for i in (2, 3))
    for rows, x, _, _, noise in everything:
        real = x.float() / 255
        found = dict(mean_picture=(mean - real).square().mean((1, 2)))
        if set(c.plan) & {'xmm_image', 'joint', 'image_only'}:
            some, gone = reconstruct(model, x, tokens[rows], pad[rows], noise)
            found['masked'] = ((some - real).square().mean(2) * gone).sum(1) / gone.sum(1)
        if 'amm_image' in c.plan and c.mim_target == 'pixels':
            for name, r in (dict(from_words=rows) if other is None else dict(from_words=rows, from_other_words=other[rows])).items():
                pixels = to_pixels(model, model.paint(tokens[r], pad[r]))
                found[name] = (pixels - real).square().mean((1, 2))
                painted.setdefault(name, []).append(unpatchify(pixels, c.patch_size).cpu())
        for k, v in found.items():
            errors.setdefault(f'psnr_{k}', []).extend(v.tolist())
    out = {k: psnr(v) for k, v in errors.items()}
    if c.mim_target == 'norm_pix':
        out['note'] = 'norm_pix: the true mean and deviation of each patch were given back'
    if truth and painted:
        real = unpatchify(torch.cat([b[1] for b in everything]), c.patch_size).cpu().numpy()
        out |= colours(data, pairs, real, {k: torch.cat(v).numpy() * 255 for k, v in painted.items()})
    return out

def colours(data, pairs, real, painted):
    """Is what was painted of the right colour? For each object of the truth that was spoken of: the mean painted colour where the object
    really is, and the nearest colour of the palette. real (n, H, W, 3) of 0..255, painted {name: the same} -> {colour_acc_name: share right}."""
    hits, palette, size = [], [], real.shape[1]
    cut = (data.meta['image_size'] - size) // 2 // data.meta['patch_size'] * data.meta['patch_size']
    for i, (scene, about) in enumerate(true_scenes(data, pairs[0])):
        palette, said = np.array(list(about.get('palette', {}).values()), float), spoken(data, pairs[1][i], pairs[2][i])
        for o in scene.get('objects', []):
            x0, y0, x1, y1 = (int(np.clip(v * data.meta['image_size'] / about['size'] - cut, 0, size)) for v in o['box'])
            want = list(about['palette']).index(o['colour'])
            own = np.abs(real[i, y0:y1, x0:x1] - palette[want]).max(-1) < 40                   # its pixels, not the ground's
            if own.sum() >= 4 and f"{o['colour']} {o['shape']}" in said:
                hits.append([np.square(p[i, y0:y1, x0:x1][own].mean(0) - palette).sum(1).argmin() == want for p in painted.values()])
    return {f'colour_acc_{k}': float(v) for k, v in zip(painted, np.mean(hits, 0))} | dict(colour_objects=len(hits), colours=len(palette)) if hits else {}

def keywords(model, data, pairs):
    """Are psl's pseudo-labels true of the picture? Share of the chosen words, of those that the teacher adds, and of any content words of the
    text, that the truth names."""
    c = model.config
    if not c.has('psl') or c.psl_variant != 'content_words' or not truth:
        return dict(skipped='no psl by content words, or no --truth') if c.has('psl') else {}
    def true_words(scene):
        objects = [v for o in scene.get('objects', []) for v in (o['colour'], o['shape'], o['size'])]
        return {w.lower() for text in [scene.get('name', ''), scene.get('ground', ''), scene.get('texture', ''), *scene.get('tags', []), *objects] for w in text.split()}
    name = {int(k): data.encoding.decode([int(i)]).strip().lower() for i, k in zip(model.vocab, model.keyword) if k >= 0}
    right = dict(voted=[], added=[], any=[])
    scenes = [true_words(s) for s, _ in true_scenes(data, pairs[0])]
    for rows, x, tokens, pad, _ in batches(model, data, *pairs):
        image = model.unimodal(model.embed_image(model.normalise(x)))
        taught = model.teacher.unimodal(model.teacher.embed_image(model.teacher.normalise(x)))[:, 0]
        before = model.fuse(model.unimodal(model.embed_text(tokens), pad), image, pad)[2]
        target, _ = model.keywords(taught, model.votes(before, pad), tokens, pad[:, 1:])
        for row, chosen, said, gone in zip(rows, target.cpu(), model.keyword[tokens].cpu(), pad[:, 1:].cpu()):
            said = {int(k) for k, g in zip(said, gone) if k >= 0 and not g}
            for k in chosen.nonzero().flatten().tolist():
                right['voted' if k in said else 'added'].append(name[k] in scenes[row])
            right['any'] += [name[k] in scenes[row] for k in said]
    return {f'keyword_precision_{k}': float(np.mean(v)) for k, v in right.items() if v} | dict(keywords_added=len(right['added']))

# ----------------------------------------------------------------------------------------------------------------------
# pictures

def sheet(columns, rows, path, cell=160):
    """A PNG: a title over each column; a row's cells are pictures (H, W, 3) in [0, 1], with a coloured rim if given as (picture, colour), or text."""
    from PIL import Image, ImageDraw, ImageFont
    font, gap = ImageFont.load_default(14), 8
    width = [cell * 2 if any(isinstance(r[i], str) for r in rows) else cell for i in range(len(columns))]
    page = Image.new('RGB', (sum(width) + gap * (len(width) + 1), 30 + len(rows) * (cell + gap)), 'white')
    pen = ImageDraw.Draw(page)
    for i, title in enumerate(columns):
        pen.text((gap * (i + 1) + sum(width[:i]), 8), title, 'black', font)
    for y, row in enumerate(rows):
        for i, item in enumerate(row):
            x0, y0 = gap * (i + 1) + sum(width[:i]), 30 + y * (cell + gap)
            if isinstance(item, str):
                pen.multiline_text((x0, y0), '\n'.join(textwrap.fill(line, 40) for line in item.split('\n')), 'black', font)
                continue
            picture, rim = item if isinstance(item, tuple) else (item, None)
            page.paste(Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8)).resize((cell, cell), Image.Resampling.NEAREST), (x0, y0))
            if rim:
                pen.rectangle([x0 - 3, y0 - 3, x0 + cell + 2, y0 + cell + 2], outline=rim, width=4)
    page.save(path)
    print(f'wrote {path}')

def picture(patches, p):
    """(N, P) in [0, 1] -> (H, W, 3)."""
    return unpatchify(patches[None].float().cpu(), p)[0].numpy()

def pictures(model, data, pairs):
    """One row a frame: original, what the model sees of it, what it paints from that and the words, what it paints from the words alone;
    what was said, and what it writes from the picture alone."""
    c = model.config
    pick = np.linspace(0, len(pairs[0]) - 1, min(n_pictures, len(pairs[0]))).round().astype(int)
    _, x, tokens, pad, noise = next(batches(model, data, *(p[pick] for p in pairs)))
    real, titles = x.float() / 255, ['original']
    columns = [[picture(r, c.patch_size) for r in real]]
    if c.has('mim') and c.mim_target != 'latent' and set(c.plan) & {'xmm_image', 'joint', 'image_only'}:
        painted, gone = reconstruct(model, x, tokens, pad, noise)
        seen = torch.where(gone[..., None].bool(), .75, real)
        full = torch.where(gone[..., None].bool(), painted, real)
        columns += [[picture(r, c.patch_size) for r in seen], [picture(r, c.patch_size) for r in full]]
        titles += ['visible part', 'painted' + (' (true patch statistics)' if c.mim_target == 'norm_pix' else ' from it + words')]
    if c.has('mim') and 'amm_image' in c.plan and c.mim_target == 'pixels':
        columns.append([picture(r, c.patch_size) for r in to_pixels(model, model.paint(tokens, pad))])
        titles.append('from words alone')
    text = [f"said: {spoken(data, s, n)}" for s, n in zip(pairs[1][pick], pairs[2][pick])]
    if c.has('mlm') and 'amm_text' in c.plan:
        written = model.write(x, min(write_length, model.config.text_len)).cpu().numpy()
        text = [f'{t}\n\nwritten from the picture: {data.encoding.decode([int(model.vocab[i]) for i in w]).strip()}' for t, w in zip(text, written)]
    sheet(titles + ['words'], list(zip(*columns, text)), Path(run) / 'pictures.png')
    return {}

def retrieval_picture(model, data, spans, owner, rank, top, n):
    """Words and the five pictures that come first, the right one with a green rim: hits and misses alike. rank, top: of each text's n candidates."""
    ids, start, length = spans
    pick = np.linspace(0, len(rank) - 1, min(n_pictures, len(rank))).round().astype(int)
    def show(i):
        x = next(batches(model, data, ids[[i]], np.zeros(1, int), np.zeros(1, int)))[1]
        return picture(x[0].float() / 255, model.config.patch_size)
    rows = [[f'"{spoken(data, start[j], length[j])}"\n\nthe right one came {rank[j] + 1}. of {n}'] +
            [(show(int(i)), 'green' if i == owner[j] else None) for i in top[j, :5]] for j in pick]
    sheet(['words', *(f'{k + 1}.' for k in range(min(5, top.shape[1])))], rows, Path(run) / 'retrieval.png')

def curves(*_):
    """The run's log.jsonl as a picture: each objective in training (smoothed) and validation, and the validation retrieval."""
    path = Path(run) / 'log.jsonl'
    if not path.exists():
        return dict(skipped=f'no curves: {path} not found')
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    lines = path.read_text().split('\n')
    log = [json.loads(line) for line in lines if line.endswith('}')]  # all but one that a crash cut off
    names = [k for k in models.OBJECTIVES if any(k in e for e in log)]
    def of(key): return np.array([(e['iter'], e[key]) for e in log if key in e]).reshape(-1, 2).T
    figure, axes = plt.subplots(1, len(names) + 1, figsize=(4 * len(names) + 4, 3), constrained_layout=True, squeeze=False)
    for axis, name in zip(axes[0], names):
        it, value = of(name)
        n = max(1, len(it) // 50)
        axis.plot(it[n - 1:], np.convolve(value, np.ones(n) / n, 'valid'), label='training', lw=1)
        axis.plot(*of(f'val/{name}'), 'o-', label='validation', ms=3)
        axis.set_title(f'{name} loss')
        axis.legend()
    for key, label in ('val/i2t_r1', 'picture to words'), ('val/t2i_r1', 'words to picture'), ('val/chance', 'chance'):
        axes[0, -1].plot(*of(key), 'o-', label=label, ms=3)
    axes[0, -1].set_title('validation R@1')
    axes[0, -1].legend()
    figure.savefig(Path(run) / 'curves.png', dpi=90)
    plt.close(figure)
    print(f"wrote {Path(run) / 'curves.png'}")
    return {}

# ----------------------------------------------------------------------------------------------------------------------
# tables

TABLE = ('i2t_r1', 't2i_r1', 'itm_i2t_r1', 'itm_t2i_r1', 'likelihood_i2t_r1', 'likelihood_t2i_r1', 'mlm_acc_right', 'mlm_acc_shuffled', 'alignment_bits',
         'psnr_masked', 'psnr_from_words', 'colour_acc_from_words', 'keyword_precision_voted', 'keyword_precision_any', 'patches_pointing', 'attention_pointing')

def numbers(path):
    """eval.json, {task: {name: number}}, as one {name: number}."""
    found = json.loads(path.read_text())
    return {k: v for part in (found, *found.values()) if isinstance(part, dict) for k, v in part.items()}

def judged(path):
    """What is known of a run -> {column: [numbers]}: eval.json, the fine-tuned tasks (a number for each seed; test, or val where there is none), the probes."""
    found = {k: [v] for k, v in numbers(path / 'eval.json').items() if k in TABLE}
    for p in sorted(path.glob('classify-*/result.json')):
        result = json.loads(p.read_text())
        found.setdefault(re.sub(r'-\d+$', '', p.parent.name), []).append(result.get('test', result['val']))
    for p in sorted(path.glob('probe-*.json')):
        found |= {f'{p.stem} {k}': [v] for k, v in json.loads(p.read_text()).items() if k in ('linear', 'knn', 'zero_shot', 'text_only')}
    return found

def compare(pattern):
    """Runs that were evaluated -> a Markdown table, and table.json beside them: the knobs in which a run differs from most others, seeds together
    (mean and sample deviation of each number)."""
    paths = [Path(p).parent for p in sorted(glob.glob(f'{pattern}/eval.json'))]
    if not paths:
        sys.exit(f'error: no {pattern}/eval.json; evaluate the runs first: python eval.py --run=out/<run>')
    try:
        configs = [{k: v for k, v in json.loads((p / 'config.json').read_text()).items() if k[0] != '_' and k not in ('out_dir', 'seed')} |
                   {f'judged: {k}': v for k, v in numbers(p / 'eval.json').items() if k in ('checkpoint', 'split', 'dataset', 'candidates')} for p in paths]
    except (OSError, ValueError, AttributeError) as e:
        sys.exit(f'error: config.json or eval.json of a run cannot be read: {e}')
    usual = {k: Counter(json.dumps(c.get(k)) for c in configs).most_common(1)[0][0] for k in {k for c in configs for k in c}}
    groups, known = {}, {p: judged(p) for p in paths}
    for path, c in zip(paths, configs):
        unlike = {k: v for k, v in c.items() if json.dumps(v) != usual.get(k)}
        groups.setdefault(json.dumps(unlike), []).append(path)
    shown = [*(k for k in TABLE if any(k in n for n in known.values())), *sorted({k for n in known.values() for k in n} - {*TABLE})]
    rows = [dict(run=re.sub(r'-\d+$', '', same[0].name), differs=json.loads(unlike), seeds=len(same),
                 **{k: v for k in shown if (v := sum((known[p].get(k, []) for p in same), []))}) for unlike, same in groups.items()]
    def cell(values):
        return (f'{np.mean(values):.3f}' + (f' ± {np.std(values, ddof=1):.3f}' if len(values) > 1 else '')) if values else ''
    lines = [['run', 'what differs', 'seeds', *shown], ['---'] * (3 + len(shown))]
    lines += [[r['run'], ', '.join(f'{k}={v}' for k, v in r['differs'].items()), str(r['seeds']), *(cell(r.get(k, [])) for k in shown)] for r in rows]
    print(*('| ' + ' | '.join(line) + ' |' for line in lines), sep='\n')
    (Path(os.path.commonpath([p.parent for p in paths])) / 'table.json').write_text('[' + ',\n '.join(json.dumps(r) for r in rows) + ']\n')

# ----------------------------------------------------------------------------------------------------------------------

@torch.no_grad()
def main():
    at_least(globals(), candidates=1, batch_size=1, n_pictures=1, write_length=1, top=1, n_labels=2, epochs=1, seed=0, learning_rate=1e-12)
    if table:
        return compare(table)
    judge = dict(retrieval=retrieval, words=words, patches=patches, keywords=keywords, ground=ground, pictures=pictures, curves=curves)
    alone = dict(search=search, caption=caption, paint=paint, classify=classify, probe=probe)
    if task in alone:
        return search(*load_run(('train', 'val', 'test'))) if task == 'search' else alone[task](open_model())
    if unknown := set(task.split(',')) - set(judge):
        sys.exit(f"error: no task is called {', '.join(unknown)}; there are {', '.join(judge)}, and each by itself {', '.join(alone)}")
    model, data = load_run()
    pairs = train.distinct_pairs(data, model.config, candidates)
    path = Path(run) / ('eval' + f'-{data.path.name}' * bool(dataset) + '.json')               # judged on another set: results of its own
    made_of = dict(checkpoint=checkpoint, split=split, dataset=data.path.name, iteration=model.iteration, weights=weights_hash())
    try:
        results = json.loads(path.read_text())
    except (OSError, ValueError):
        results = {}
    results = results if made_of.items() <= results.items() else made_of                       # tasks that were judged before stay
    for name in task.split(','):
        found = results[name] = judge[name](model, data, pairs)
        print(*(f'  {k:32s}{v:.4f}' if isinstance(v, float) else f'  {k:32s}{v}' for k, v in found.items()), sep='\n', end='\n' * bool(found))
        path.write_text(json.dumps(results, indent=1))
    print(f'wrote {path}')

if __name__ == '__main__':
    config = configure(globals())
    try:
        main()
    except OSError as e:                                               # no such file, no right to it, no room
        sys.exit(f'error: {e}')
