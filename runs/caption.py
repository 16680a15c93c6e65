"""What the model writes about a picture, or each of a folder, from the picture alone.

    python eval.py --run=out/demo --task=caption --image=photos/
"""
import itertools, sys
from dataclasses import dataclass

import torch

from data.pictures import open_pictures
from data.tokens import gpt2_encoding
from model import PARTS

@dataclass
class Knobs:
    image: str = ''              # what is to be seen in it, or in each of this folder

def as_text(model, words):
    """Ids of the model's tokens (n,) -> what they say."""
    return gpt2_encoding().decode(model.vocab[words].tolist()).strip()

@torch.no_grad()
def describe(model, patches, longest):
    """Pictures (B, N, P) uint8 -> for each the ids of some words about it: of drafts of all lengths
    up to `longest`, what the contrast finds nearest to the picture."""
    B, longest = len(patches), min(longest, model.config.text_len)
    drafts = [model.write(patches, n) for n in range(min(4, longest), longest + 1, 2)]
    if not model.config.has('itc'):
        return drafts[-1]
    z, near = model.image_embedding(patches), []
    for words in drafts:
        pad = torch.zeros(B, 1 + words.shape[1], dtype=torch.bool, device=patches.device)
        near.append((z * model.text_embedding(words, pad)).sum(1))
    return [drafts[best][i] for i, best in enumerate(torch.stack(near).argmax(0).tolist())]

def main(model, k):
    """-> {path: text}"""
    c = model.config
    parts = [PARTS[name] for name in c.plan]
    if not c.has('mlm') or not any(part.writes and part.matches for part in parts):
        sys.exit(f'error: {k.run} has not learned to tell words from pictures; '
                 'take a run with mlm and amm_text among its parts')
    found, out = open_pictures(k.image), {}
    while some := list(itertools.islice(found, k.batch_size)):
        paths, pictures = zip(*some)
        written = describe(model, model.read_pictures(pictures), k.write_length)
        for path, words in zip(paths, written):
            out[str(path)] = as_text(model, words)
            print(f'{path}: {out[str(path)]}')
    return out
