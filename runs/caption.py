"""What the model writes about a picture, or each of a folder, from the picture alone.

    python eval.py --run=out/demo --task=caption --image=photos/
"""
import sys
from dataclasses import dataclass

from data.pictures import open_pictures
from data.tokens import gpt2_encoding
from model import PARTS

@dataclass
class Knobs:
    image: str = ''              # what is to be seen in it, or in each of this folder

def as_text(model, words):
    """Ids of the model's tokens (n,) -> what they say."""
    return gpt2_encoding().decode(model.vocab[words].tolist()).strip()

def main(model, k):
    """-> {path: text}"""
    c = model.config
    parts = [PARTS[name] for name in c.plan]
    if not c.has('mlm') or not any(part.writes and part.matches for part in parts):
        sys.exit(f'error: {k.run} has not learned to tell words from pictures; '
                 'take a run with mlm and amm_text among its parts')
    found, out = open_pictures(k.image), {}
    for i in range(0, len(found), k.batch_size):
        paths, pictures = zip(*found[i:i + k.batch_size])
        written = model.write(model.read_pictures(pictures), min(k.write_length, c.text_len))
        for path, words in zip(paths, written):
            out[str(path)] = as_text(model, words)
            print(f'{path}: {out[str(path)]}')
    return out
