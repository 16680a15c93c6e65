"""The picture that words suggest, from the words alone: out/<run>/paint.png.

    python eval.py --run=out/demo --task=paint --query="a red circle at the top"
"""
import sys
from dataclasses import dataclass
from pathlib import Path

from data.pictures import as_picture, sheet

@dataclass
class Knobs:
    query: str = ''              # these words

def to_pixels(model, x):
    """Normalised patches (B, N, P) -> pixels in [0, 1]."""
    pixels = x.unflatten(2, (-1, 3)) * model.pixel_std + model.pixel_mean
    return pixels.flatten(2).clamp(0, 1)

def main(model, k):
    c = model.config
    if not c.has('mim') or not c.any('paints_all') or c.mim_target != 'pixels':
        sys.exit(f'error: {k.run} has not learned to paint from words; '
                 'take a run with mim=1, mim_target=pixels and amm_image among its parts')
    if not k.query:
        sys.exit('error: paint needs --query="words"')
    painted = to_pixels(model, model.paint(*model.tokenise([k.query])))[0]
    row = [k.query, as_picture(painted, c.patch_size)]
    sheet(['words', 'painted'], [row], Path(k.run) / 'paint.png')
