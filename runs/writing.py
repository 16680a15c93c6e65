"""--task=writing: is what is written from the picture alone true? The (colour, shape) pairs that it
names against those that --truth has: precision, recall, F1; beside what is written from the picture
half the set away, and beside what was said."""
import re

import numpy as np

from data.scenes import truth
from runs.caption import as_text

def judge(model, data, pairs, k):
    c = model.config
    if not (c.has('mlm') and c.any('writes_all')):
        return {}
    if not k.truth:
        return dict(skipped='no --truth')
    scenes = truth.scenes(data, pairs[0], k.truth)
    told_of = np.flatnonzero([bool(scene) for scene, _ in scenes])     # others cannot be judged
    pairs = [x[told_of] for x in pairs]
    there = [{name for name, _ in truth.named(scenes[i][0])} for i in told_of]
    names = sorted(set().union(*there))
    if not names:
        return {}                                  # what is to be seen are no objects
    colours, shapes = zip(*(name.split(' ', 1) for name in names))
    known = re.compile(rf"\b({'|'.join(set(colours))}) ({'|'.join(set(shapes))})\b")

    def named(text):
        return {' '.join(pair) for pair in known.findall(text.lower())}
    written = []
    for _, x, _, _, _ in data.batches(pairs, c, model.vocab.device, k.batch_size):
        for words in model.write(x, min(k.write_length, c.text_len)):
            written.append(named(as_text(model, words)))
    said = [named(data.text(start, length)) for start, length in zip(*pairs[1:])]
    half = len(written) // 2
    out = scores('written', written, there)
    out |= scores('written_of_another', written[half:] + written[:half], there)
    return out | scores('said', said, there)

def scores(name, told, true):
    """Sets of pairs per picture -> precision, recall, F1 over all."""
    right = sum(len(a & b) for a, b in zip(told, true))
    precision = right / max(1, sum(map(len, told)))
    recall = right / max(1, sum(map(len, true)))
    f1 = 2 * precision * recall / max(1e-9, precision + recall)
    return {f'{name}_f1': f1, f'{name}_precision': precision, f'{name}_recall': recall}
