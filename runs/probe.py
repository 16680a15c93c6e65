"""Frozen features, probed: linear and kNN on pictures, zero-shot from the names of the labels,
linear on the texts alone.

    python eval.py --run=out/full --task=probe --examples=data/scenes/tasks/classes
"""
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from configurator import at_least
from data.examples import read_splits
from runs.finetune import batch_of, tell

DECAYS = 1e-4, 1e-3, 1e-2, 1e-1      # one is chosen on val

@dataclass
class Knobs:
    examples: str = ''               # folder of data/examples.py's format, or <split>/<class>/
    n_labels: int = 3129             # the commonest of the training answers
    templates: str = 'a {}|there is a {}|this picture shows a {}'      # how a label is said

def features(model, rows, batch_size):
    """The [CLS] and the mean of the unimodal states (of all layers if there are none) -> of each
    picture (n, I * 2 D), of each text (n, 2 D)."""
    pictures, texts = [], []
    for i in range(0, len(rows), batch_size):
        patches, tokens, pad = batch_of(model, rows[i:i + batch_size])
        images = [model.see(model.normalise(x)) for x in patches.unbind(1)]
        text = model.read(tokens, pad)
        if not model.config.n_unimodal:
            images = [model.fuse(None, x, None)[1] for x in images]
            text = model.fuse(text, None, pad)[0]
        seen = [part for x in images for part in (x[:, 0], x[:, 1:].mean(1))]
        real = (~pad)[..., None]
        pictures.append(torch.cat(seen, 1))
        texts.append(torch.cat([text[:, 0], (text * real).sum(1) / real.sum(1)], 1))
    return [torch.cat(x).float().cpu().numpy() for x in (pictures, texts)]

def zero_shot(model, rows, labels, k):
    """-> for each picture the number of the label whose name is nearest."""
    told, seen = [], []
    for label in labels:
        tokens, pad = model.tokenise([t.replace('{}', label) for t in k.templates.split('|')])
        dev = model.pixel_mean.device
        told.append(model.text_embedding(tokens.to(dev), F.pad(pad, (1, 0)).to(dev)).mean(0))
    for i in range(0, len(rows), k.batch_size):
        patches = batch_of(model, rows[i:i + k.batch_size])[0]
        seen.append(model.image_embedding(patches[:, 0]))
    score = torch.cat(seen) @ F.normalize(torch.stack(told), dim=1).T
    return score.argmax(1).cpu().numpy()

def main(model, k):
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        sys.exit('error: --task=probe needs scikit-learn: pip install -r requirements.txt')
    at_least(vars(k), n_labels=2)
    folder = Path(k.examples)
    rows = read_splits(folder, model.config.text_len)
    best = {s: [max(r['scores'], key=r['scores'].get) for r in some] for s, some in rows.items()}
    labels = [label for label, _ in Counter(best['train']).most_common(k.n_labels)]
    place = {label: i for i, label in enumerate(labels)}
    y = {s: np.array([place.get(label, -1) for label in best[s]]) for s in rows}    # -1: wrong
    x = {s: features(model, some, 4 * k.batch_size) for s, some in rows.items()}
    known = y['train'] >= 0
    last = list(rows)[-1]                                              # test, if there is one

    def right(guess, split):
        return float((guess == y[split]).mean())

    def linear(kind):
        fits = []
        for decay in DECAYS:
            fit = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (decay * known.sum())))
            fits.append(fit.fit(x['train'][kind][known], y['train'][known]))
        chosen = max(fits, key=lambda fit: right(fit.predict(x['val'][kind]), 'val'))
        return right(chosen.predict(x[last][kind]), last)

    found = dict(task=f'probe of {folder.name}', labels=len(labels), train_examples=len(known),
                 examples=len(y[last]), split=last, commonest=right(0, last), linear=linear(0))
    if any(row['text'] for row in rows['train']):
        found['text_only'] = linear(1)
    near = KNeighborsClassifier(min(20, known.sum()), metric='cosine',
                                weights=lambda distance: np.exp(-distance / .07))
    near.fit(x['train'][0][known], y['train'][known])
    found['knn'] = right(near.predict(x[last][0]), last)
    if model.config.has('itc') and len(rows[last][0]['images']) == 1:
        found['zero_shot'] = right(zero_shot(model, rows[last], labels, k), last)
    path = Path(k.run, f"probe-{'-'.join(folder.resolve().parts[1:][-2:])}.json")
    return tell(found, path)
