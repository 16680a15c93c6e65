"""While it trains: what is painted and written about a few held-out frames, to be looked at."""
from pathlib import Path
from types import SimpleNamespace

import torch

@torch.no_grad()
def draw(model, data, pairs, n, out, it):
    """n rows of eval.py's pictures -> out/samples/000400.png. Nothing of the training changes; a
    full disk costs the picture."""
    c = model.config
    if not (c.has('mim') or c.has('mlm') and c.any('writes_all')):
        return
    import eval as judge
    k = SimpleNamespace(n_pictures=n, write_length=16)
    path = Path(out) / 'samples' / f'{it:06d}.png'
    model.eval()
    try:
        path.parent.mkdir(exist_ok=True)
        judge.pictures(model, data, pairs, k, path)
    except OSError as e:
        print(f'warning: {path} not written ({e}); the run goes on without')
    model.train()
