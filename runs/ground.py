"""--task=ground: where a phrase is in a picture, by a model that has never seen a box.

    python eval.py --run=out/demo --task=ground --truth=data/scenes/videos/truth
    python eval.py --run=out/talks --task=ground --refs=refs.json

Is the peak of the phrase's map in its box (pointing game), how much of the map is, how good is the
box around its largest region? What another picture's phrase points at is mere salience. n phrases,
N = g * g patches of P values; boxes (n, 4): x0, y0, x1, y1 in pixels of the model's picture.
"""
import json, math, sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from data.arrays import EVAL_SEED, draw_noise
from data.pictures import as_picture, read_picture, sheet
from data.scenes import truth

@dataclass
class Knobs:
    refs: str = ''               # [{"image": path, "text": phrase, "box": [x, y, w, h]}, ...], JSON
    ground_layer: int = 0        # which of the joint layers to look at

# ----------------------------------------------------------------------------------------------
# maps

@torch.enable_grad()
def attention_map(model, patches, tokens, pad, layer):
    """Attention from the words to the patches (n, N, P) in a joint layer, where more of it would
    raise the score that both belong together -> (n, N), not negative. The score is the matching
    head's; without itm, how well the words, all masked, are told. Grad-CAM: ALBEF, 2107.07651."""
    c, L = model.config, pad.shape[1]
    hidden = tokens if c.has('itm') else torch.full_like(tokens, model.mask_id)
    x = torch.cat([model.read(hidden, pad), model.see(model.normalise(patches))], 1).detach()
    mask = ~F.pad(pad, (0, x.shape[1] - L))[:, None, None]
    for i, block in enumerate(model.blocks[c.n_unimodal:]):
        if i != layer:
            x = block(x, mask)
            continue
        q, k, v = block.attn.heads(block.norm1(x))
        logits = q @ k.mT / math.sqrt(q.shape[-1])
        weight = logits.masked_fill(~mask, -math.inf).softmax(-1)      # (n, n_head, L + N, L + N)
        x = x + block.attn.merge(weight @ v)
        x = x + block.mlp(block.norm2(x))
    x = model.norm(x)
    if c.has('itm'):
        score = model.itm_head(x[:, 0]) @ x.new_tensor([-1., 1.])
    else:
        told = model.word_logits(x[:, 1:L]).log_softmax(-1).gather(2, tokens[..., None])
        score = told[..., 0] * ~pad[:, 1:]

    gradient, = torch.autograd.grad(score.sum(), weight)
    share = weight[:, :, :L, L + 1:]
    share = share / share.sum(-1, keepdim=True)                        # among the patches
    said = (~pad[:, None, :, None]).float()                            # by [CLS] and the words
    heat = (share * gradient[:, :, :L, L + 1:].clamp(min=0) * said).sum(2) / said.sum(2)
    return heat.mean(1).detach()

def patches_map(model, patches, tokens, pad, batch_size=64, subsets=256):
    """Which patches (n, N, P), when they are among the quarter that stays, bring the picture's
    embedding closer to this phrase than to the average one -> (n, N). RISE, 1806.07421."""
    N = patches.shape[1]
    noise = torch.from_numpy(draw_noise(EVAL_SEED, 0, 0, subsets, N)).to(patches.device)
    stay = noise.argsort(1)[:, :max(N // 4, 1)].sort(1).values         # the same for all pictures
    kept = torch.zeros_like(noise).scatter(1, stay, 1.)
    batches = zip(tokens.split(batch_size), pad.split(batch_size))
    phrase = torch.cat([model.text_embedding(*batch) for batch in batches])
    if len(phrase) > 1:
        phrase = phrase - phrase.mean(0)
    heat = []
    for i, picture in enumerate(patches):
        if i == 0 or not torch.equal(picture, patches[i - 1]):         # its phrases are neighbours
            x = model.normalise(picture[None]).expand(subsets, -1, -1)
            z = model.embedding(model.see(x, stay), model.image_proj)
        score = z @ phrase[i]
        heat.append((kept.T @ (score - score.mean())) / kept.sum(0).clamp(min=1))
    return torch.stack(heat).clamp(min=0)

def maps(model, way, pixels, tokens, pad, k):
    if way == 'patches':
        return patches_map(model, pixels, tokens, pad, k.batch_size).cpu()
    layer = min(max(k.ground_layer, 0), model.config.n_layer - model.config.n_unimodal - 1)
    batches = zip(*(x.split(k.batch_size) for x in (pixels, tokens, pad)))
    return torch.cat([attention_map(model, *batch, layer) for batch in batches]).cpu()

# ----------------------------------------------------------------------------------------------
# boxes

def box_of(heat, size):
    """The largest connected region of a map (g, g) above half its maximum -> box (4,)."""
    try:
        from scipy.ndimage import label
    except ImportError:
        sys.exit('error: --task=ground needs scipy: pip install -r requirements.txt')
    n = 4 * len(heat)
    fine = F.interpolate(heat[None, None].float(), (n, n), mode='bicubic')[0, 0]
    regions = label((fine >= .5 * fine.max()).numpy())[0]
    y, x = np.nonzero(regions == np.bincount(regions[regions > 0]).argmax())
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) * size / n

def iou(a, b):
    both = (np.minimum(a, b)[:, 2:] - np.maximum(a, b)[:, :2]).clip(0).prod(1)
    areas = sum((x[:, 2:] - x[:, :2]).prod(1) for x in (a, b))
    return both / (areas - both)

def touching(boxes, points, slack):
    """points (m, 2) -> (n, m) bool: in the box, or this close to it."""
    low, high = boxes[:, None, :2] - slack, boxes[:, None, 2:] + slack
    return ((low <= points) & (points <= high)).all(-1)

def of_refs(model, path):
    """-> pixels [n], phrases [n], boxes [n]"""
    c, pixels, phrases, boxes = model.config, [], [], []
    try:
        text = path.read_text(encoding='utf-8')
        if text.lstrip()[:1] != '[':                                   # JSONL
            text = '[' + ','.join(filter(str.strip, text.split('\n'))) + ']'
        for row in json.loads(text):
            picture = read_picture(path.parent / row['image'])
            scale = c.full_size / min(picture.size)                    # of the middle square, and
            corner = (np.array(picture.size) * scale - c.full_size) / 2
            corner += (c.full_size - c.image_size) // 2                # of the window in it
            x, y, w, h = row['box']
            boxes.append(np.array([x, y, x + w, y + h]) * scale - np.tile(corner, 2))
            pixels += model.read_pictures([picture])
            phrases.append(' '.join(row['text'].split()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        sys.exit(f'error: --refs={path}: expected [{{"image": path, "text": phrase, '
                 f'"box": [x, y, width, height]}}, ...] ({type(e).__name__}: {e})')
    return pixels, phrases, boxes

def read_phrases(model, data, pairs, k):
    """-> pixels (n, N, P), phrases [n], boxes (n, 4); how many have their box outside."""
    c = model.config
    if k.refs:
        pixels, phrases, boxes = of_refs(model, Path(k.refs))
    else:
        rows, phrases, boxes = truth.phrases(data, pairs[0], c.image_size, k.truth)
        pixels = data.pictures(pairs[0][rows], c, model.vocab.device)
    boxes = np.clip(np.array(boxes).reshape(-1, 4), 0, c.image_size)
    seen = np.flatnonzero((boxes[:, 2:] - boxes[:, :2] >= 1).all(1))
    if not len(seen):
        return None, [], boxes, len(boxes)
    pixels = torch.stack([pixels[i] for i in seen])
    return pixels, [phrases[i] for i in seen], boxes[seen], len(boxes) - len(seen)

# ----------------------------------------------------------------------------------------------

def judge(model, data, pairs, k):
    c = model.config
    ways = ['patches'] if c.has('itc') else []
    if c.n_unimodal < c.n_layer and (c.has('itm') or c.has('mlm')):
        ways.append('attention')
    if not ways:
        return dict(skipped='grounding needs itc, or joint layers and itm or mlm')
    if not k.truth and not k.refs:
        return dict(skipped='grounding needs --truth or --refs')
    pixels, phrases, boxes, outside = read_phrases(model, data, pairs, k)
    if not phrases:
        return dict(skipped='no phrase whose box lies in the picture')
    spoken, pad = (x.to(pixels.device) for x in model.tokenise(phrases))
    words = spoken, F.pad(pad, (1, 0))
    other = np.roll(np.arange(len(boxes)), len(boxes) // 2)            # of a picture half way round

    # the patches that are right to point at, by phrase
    p = c.patch_size
    centre = np.arange(p / 2, c.image_size, p)
    grid = np.stack(np.meshgrid(centre, centre), -1).reshape(-1, 2)
    right = touching(boxes, grid, p / 2)
    out = dict(pointing_chance=right.mean(1).mean(), phrases=len(boxes), phrases_outside=outside,
               pointing_centre=touching(boxes, np.full((1, 2), c.image_size / 2), p / 2).mean())
    drawn = []
    for way in ways:
        heat = maps(model, way, pixels, *words, k)
        salient = maps(model, way, pixels, *(x[other] for x in words), k)
        found = scores(heat, boxes, grid, right, c.image_size)
        found['pointing_other_phrase'] = pointing(salient, right).mean()
        out |= {f'{way}_{name}': v for name, v in found.items()}
        drawn.append((heat, pointing(heat, right)))
    draw(ways, drawn, phrases, pixels, c, k)
    return {name: v if isinstance(v, int) else float(v) for name, v in out.items()}

def pointing(heat, right):
    """Is the peak of each map (n, N) a patch that is right (n, N)? -> (n,) bool."""
    return right[np.arange(len(heat)), heat.argmax(1)]

def scores(heat, boxes, grid, right, size):
    """Maps (n, N) -> {name: number}."""
    covered = ((boxes[:, None, :2] <= grid) & (grid < boxes[:, None, 2:])).all(-1)
    energy = (heat.numpy() * covered).sum(1) / heat.sum(1).double().clamp(min=1e-12).numpy()
    g = math.isqrt(len(grid))
    overlap = iou(np.stack([box_of(h.view(g, g), size) for h in heat]), boxes)
    return dict(pointing=pointing(heat, right).mean(), energy_in_box=energy.mean(),
                box_iou50=(overlap >= .5).mean(), box_miou=overlap.mean())

def draw(ways, drawn, phrases, pixels, c, k):
    """out/<run>/ground.png: pictures, dark but where a map (N,) is high; the rim tells hits."""
    rows, g = [], c.image_size // c.patch_size
    for i in np.linspace(0, len(phrases) - 1, min(k.n_pictures, len(phrases))).round().astype(int):
        picture = as_picture(pixels[i], c.patch_size)
        row = [phrases[i], picture]
        for heat, hit in drawn:
            glow = F.interpolate(heat[i].view(1, 1, g, g), picture.shape[:2], mode='bicubic')[0, 0]
            high = (glow > .5 * glow.max().clamp(min=1e-12))[..., None].numpy()
            row.append((np.where(high, picture, .35 * picture + .2), 'green' if hit[i] else 'red'))
        rows.append(row)
    sheet(['phrase', 'picture', *(f'by {way}' for way in ways)], rows, Path(k.run) / 'ground.png')
