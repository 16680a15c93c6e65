"""Held-out frames, what the model paints and writes about them: out/<run>/pictures.png.
While it trains, a few of them at each validation: out/<run>/samples/000400.png.

B samples, N patches of P values.
"""
from pathlib import Path

import torch

from data.pictures import as_picture, evenly, sheet
from model import PARTS
from runs.caption import as_text
from runs.paint import to_pixels

def repainting(c):
    """Parts that paint removed patches from those that stay."""
    parts = [PARTS[name] for name in c.plan]
    return [part for part in parts if part.paints and part.sees]

def reconstruct(model, patches, tokens, pad, noise):
    """-> every patch (B, N, P), painted from keep_lo of them and, where it has learned that, the
    words; mask (B, N), 1 = removed."""
    c = model.config
    x = model.normalise(patches)
    ids_keep = noise[:, :c.n_patches].argsort(1)[:, :max(1, round(c.n_patches * c.keep_lo))]
    if any(part.words for part in repainting(c)):
        text = model.read(tokens, pad)
    else:
        text = pad = None
    text, image, _ = model.fuse(text, model.see(x, ids_keep), pad)
    painted = model.predictor(text, model.predictor.canvas(image[:, 1:], ids_keep), pad).float()
    if c.mim_target == 'norm_pix':         # each patch is given its true statistics: labelled so
        painted = painted * (x.var(2, keepdim=True) + 1e-6).sqrt() + x.mean(2, keepdim=True)
    gone = torch.ones(x.shape[:2], device=x.device).scatter(1, ids_keep, 0.)
    return to_pixels(model, painted), gone

def draw(model, data, pairs, n, length, path):
    """One row a frame: original, what the model sees of it, what it paints from that and the words,
    what from the words alone; what was said, and what it writes from the picture."""
    c = model.config
    pick = evenly(len(pairs[0]), n)
    pairs = [column[pick] for column in pairs]
    _, x, tokens, pad, noise = next(data.batches(pairs, c, model.vocab.device, len(pick)))
    columns = dict(original=x.float() / 255)
    if c.has('mim') and repainting(c):
        painted, gone = reconstruct(model, x, tokens, pad, noise)
        gone = gone[..., None].bool()
        columns['visible part'] = torch.where(gone, .75, columns['original'])
        how = ' (true patch statistics)' if c.mim_target == 'norm_pix' else ' from it + words'
        columns['painted' + how] = torch.where(gone, painted, columns['original'])
    if c.has('mim') and c.any('paints_all') and c.mim_target == 'pixels':
        columns['from words alone'] = to_pixels(model, model.paint(tokens, pad))
    text = [f'said: {data.text(start, length)}' for start, length in zip(*pairs[1:])]
    if c.has('mlm') and c.any('writes_all'):
        for i, written in enumerate(model.write(x, min(length, c.text_len))):
            text[i] += f'\n\nwritten from the picture: {as_text(model, written)}'
    rows = []
    for said, *patches in zip(text, *columns.values()):
        rows.append([*(as_picture(x, c.patch_size) for x in patches), said])
    sheet([*columns, 'words'], rows, path)

def judge(model, data, pairs, k):
    draw(model, data, pairs, k.n_pictures, k.write_length, Path(k.run) / 'pictures.png')
    return {}

@torch.no_grad()
def sample(model, data, pairs, n, out, it):
    """For train.py: nothing of the training changes, and a full disk costs the picture."""
    c = model.config
    if not (c.has('mim') or c.has('mlm') and c.any('writes_all')):
        return
    path = Path(out) / 'samples' / f'{it:06d}.png'
    model.eval()
    try:
        path.parent.mkdir(exist_ok=True)
        draw(model, data, pairs, n, 16, path)
    except OSError as e:
        print(f'warning: {path} not written ({e}); the run goes on without')
    model.train()
