"""Frozen features, probed: linear and kNN on pictures, zero-shot from the names of the labels.

    python eval.py --run=out/full --task=probe --examples=data/scenes/tasks/classes
"""
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from data.examples import read_splits
from runs.finetune import batches
from runs.table import keep

DECAYS = 1e-4, 1e-3, 1e-2, 1e-1      # one is chosen on val

@dataclass
class Knobs:
    examples: str = ''               # folder of data/examples.py's format, or <split>/<class>/
    templates: str = 'a {}|there is a {}|this picture shows a {}'      # how a label is said

def labelled(rows):
    """{split: rows} -> those whose label is known; tells how many are left out."""
    found = {}
    for split, some in rows.items():
        known = [row for row in some if row['scores']]
        if lost := len(some) - len(known):
            print(f'{split}: {lost} of {len(some)} examples have no label, and are left out')
        if known:
            found[split] = known
    return found

def features(model, rows, batch_size):
    """The [CLS] and the mean of the patches' unimodal states (of all layers if there are none) of
    each picture -> (n, I * 2 D)."""
    found = []
    for patches, _, _ in batches(model, rows, batch_size):
        seen = []
        for x in patches.unbind(1):
            x = model.see(model.normalise(x))
            if not model.config.n_unimodal:
                x = model.fuse(None, x, None)[1]
            seen += [x[:, 0], x[:, 1:].mean(1)]
        found.append(torch.cat(seen, 1).float())
    return torch.cat(found).cpu().numpy()

def zero_shot(model, rows, labels, k):
    """-> for each picture the number of the label whose name is nearest."""
    told = []
    for label in labels:
        said = [t.replace('{}', label) for t in k.templates.split('|')]
        told.append(model.encode_text(said).mean(0))
    seen = [model.image_embedding(x[:, 0]) for x, _, _ in batches(model, rows, k.batch_size)]
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
    folder = Path(k.examples)
    rows = labelled(read_splits(folder, model.config.text_len))
    best = {s: [max(r['scores'], key=r['scores'].get) for r in some] for s, some in rows.items()}
    labels = [label for label, _ in Counter(best['train']).most_common()]
    place = {label: i for i, label in enumerate(labels)}
    y = {s: np.array([place.get(label, -1) for label in best[s]]) for s in rows}    # -1: wrong
    x = {s: features(model, some, 4 * k.batch_size) for s, some in rows.items()}
    n = len(x['train'])
    last = list(rows)[-1]                                              # test, if any is known

    def right(guess, split):
        return float((guess == y[split]).mean())

    fits = []
    for decay in DECAYS:
        fit = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (decay * n)))
        fits.append(fit.fit(x['train'], y['train']))
    linear = max(fits, key=lambda fit: right(fit.predict(x['val']), 'val'))
    near = KNeighborsClassifier(min(20, n), metric='cosine',
                                weights=lambda distance: np.exp(-distance / .07))
    near.fit(x['train'], y['train'])
    found = dict(task=f'probe of {folder.name}', labels=len(labels), train_examples=n,
                 examples=len(y[last]), split=last, commonest=right(0, last),
                 linear=right(linear.predict(x[last]), last),
                 knn=right(near.predict(x[last]), last))
    if model.config.has('itc') and len(rows[last][0]['images']) == 1:
        found['zero_shot'] = right(zero_shot(model, rows[last], labels, k), last)
    path = Path(k.run, f"probe-{'-'.join(folder.resolve().parts[1:][-2:])}.json")
    return keep(found, path)
