"""Where a phrase is in a picture, by a model that has never seen a box.

    python eval.py --run=out/demo --task=ground --truth=data/scenes/videos/truth
    python eval.py --run=out/talks --task=ground --refs=refs.json    rows of testA too are of test

Is the peak of the phrase's map in its box (pointing game), how good is the box around the map's
largest region? n phrases, N = g * g patches; boxes (n, 4): x0, y0, x1, y1 in pixels.
"""
import json, math, sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from data.arrays import EVAL_SEED, draw_noise
from data.pictures import as_picture, evenly, read_picture, sheet
from data.scenes import truth

@dataclass
class Knobs:
    refs: str = ''               # [{"image": path, "text", "box": [x, y, w, h], "split": --split}]

# ----------------------------------------------------------------------------------------------
# maps

def patches_map(model, patches, tokens, pad, batch_size=64, subsets=256):
    """Which patches (n, N, P), among the quarter that stays, bring the picture closer to this
    phrase than to the average one -> (n, N). RISE, 1806.07421."""
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

# ----------------------------------------------------------------------------------------------
# boxes

def enlarge(heat, side):
    """A map (N,) -> (side, side)."""
    g = math.isqrt(len(heat))
    return F.interpolate(heat.float().view(1, 1, g, g), (side, side), mode='bicubic')[0, 0]

def box_of(heat, size):
    """The largest connected region of a map (N,) above half its maximum -> box (4,)."""
    try:
        from scipy.ndimage import label
    except ImportError:
        sys.exit('error: --task=ground needs scipy: pip install -r requirements.txt')
    n = 4 * math.isqrt(len(heat))
    fine = enlarge(heat, n)
    regions = label((fine >= .5 * fine.max()).numpy())[0]
    y, x = np.nonzero(regions == np.bincount(regions[regions > 0]).argmax())
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) * size / n

def iou(a, b):
    both = (np.minimum(a, b)[:, 2:] - np.maximum(a, b)[:, :2]).clip(0).prod(1)
    areas = sum((x[:, 2:] - x[:, :2]).prod(1) for x in (a, b))
    return both / (areas - both)

def corners(box, size):
    """[x, y, width, height] in pixels of a picture of this size -> x0, y0, x1, y1; ValueError if it
    is something else, a pixel of rounding aside."""
    x, y, w, h = box
    ends = np.array([x, y, x + w, y + h], float)
    inside = min(x, y) >= -1 and min(w, h) > 0 and (ends[2:] <= np.array(size) + 1).all()
    if not inside or max(box) <= 1:
        raise ValueError(f'the box {box} is not in pixels of this picture, {size[0]} x {size[1]}; '
                         'are these corners, or shares?')
    return ends

def of_refs(model, path, split):
    """-> pixels, phrases, boxes: lists."""
    c, pixels, phrases, boxes = model.config, [], [], []
    where = path
    try:
        text = path.read_text(encoding='utf-8-sig')
        if text.lstrip()[:1] != '[':                                   # JSONL
            text = '[' + ','.join(filter(str.strip, text.split('\n'))) + ']'
        rows = json.loads(text)
        for number, row in enumerate(rows, 1):
            where = f'{path}, row {number}'
            if not str(row.get('split', split)).startswith(split):
                continue
            picture = read_picture(path.parent / row['image'])
            scale = c.full_size / min(picture.size)                    # of the middle square, and
            corner = (np.array(picture.size) * scale - c.full_size) / 2
            corner += (c.full_size - c.image_size) // 2                # of the window in it
            boxes.append(corners(row['box'], picture.size) * scale - np.tile(corner, 2))
            pixels += model.read_pictures([picture])
            phrases.append(' '.join(row['text'].split()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        sys.exit(f'error: --refs={where}: expected [{{"image": path, "text": phrase, '
                 f'"box": [x, y, width, height]}}, ...] ({type(e).__name__}: {e})')
    if other := len(rows) - len(boxes):
        print(f'{path}: {other} of {len(rows)} rows are of other splits than {split}')
    return pixels, phrases, boxes

def read_phrases(model, data, pairs, k):
    """-> pixels (n, N, P), phrases [n], boxes (n, 4); how many have their box outside."""
    c = model.config
    if k.refs:
        pixels, phrases, boxes = of_refs(model, Path(k.refs), k.split)
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
    if not c.has('itc'):
        return dict(skipped='grounding needs itc')
    if not k.truth and not k.refs:
        return dict(skipped='grounding needs --truth or --refs')
    pixels, phrases, boxes, outside = read_phrases(model, data, pairs, k)
    if not phrases:
        return dict(skipped='no phrase whose box lies in the picture')
    tokens, pad = model.tokenise(phrases)
    heat = patches_map(model, pixels, tokens, pad, k.batch_size).cpu()
    half = len(boxes) // 2                                             # phrases of other pictures
    other = patches_map(model, pixels, tokens.roll(half, 0), pad.roll(half, 0), k.batch_size).cpu()
    right, out = places(boxes, c)
    hit = hits(heat, right)
    overlap = iou(np.stack([box_of(h, c.image_size) for h in heat]), boxes)
    out |= dict(patches_pointing=hit.mean(),
                patches_pointing_other_phrase=hits(other, right).mean(),
                patches_box_iou50=(overlap >= .5).mean(), patches_box_miou=overlap.mean())
    draw(phrases, pixels, heat, hit, c, k)
    out = {name: float(v) for name, v in out.items()}
    return out | dict(phrases=len(boxes), phrases_outside=outside)

def hits(heat, right):
    """Is the peak of each map (n, N) right (n, N)? -> (n,) bool."""
    return right[np.arange(len(right)), heat.argmax(1)]

def places(boxes, c):
    """-> right (n, N): patches that touch the box, one of which the peak shall be; {share of places
    that are right, is the middle?}."""
    p, size = c.patch_size, c.image_size
    at = np.arange(p / 2, size, p)
    grid = np.stack(np.meshgrid(at, at), -1).reshape(-1, 2)
    low, high = boxes[:, None, :2] - p / 2, boxes[:, None, 2:] + p / 2

    def touched(points):
        return ((low <= points) & (points <= high)).all(-1)
    right = touched(grid)
    middle = touched(np.full((1, 2), size / 2))
    return right, dict(pointing_chance=right.mean(1).mean(), pointing_centre=middle.mean())

def draw(phrases, pixels, heat, hit, c, k):
    """out/<run>/ground.png: pictures, dark but where the map (n, N) is high; the rim tells hits."""
    rows = []
    for i in evenly(len(phrases), k.n_pictures):
        picture = as_picture(pixels[i], c.patch_size)
        glow = enlarge(heat[i], c.image_size)
        high = (glow > .5 * glow.max().clamp(min=1e-12))[..., None].numpy()
        lit = np.where(high, picture, .35 * picture + .2)
        rows.append([phrases[i], picture, (lit, 'green' if hit[i] else 'red')])
    sheet(['phrase', 'picture', 'by patches'], rows, Path(k.run) / 'ground.png')
