"""--task=keywords: are psl's pseudo-labels true of the picture? Share of the chosen words, of those
that the teacher adds, and of any content words of the text, that --truth names."""
import numpy as np

from data.scenes import truth
from runs.caption import as_text

def judge(model, data, pairs, k):
    c = model.config
    if not c.has('psl'):
        return {}
    if c.psl_variant != 'content_words' or not k.truth:
        return dict(skipped='no psl by content words, or no --truth')
    name = {}
    for token, word in enumerate(model.keyword.tolist()):
        if word >= 0:
            name[word] = as_text(model, [token]).lower()
    scenes = truth.scenes(data, pairs[0], k.truth)
    right = dict(voted=[], added=[], any=[])
    for rows, x, tokens, pad, _ in data.batches(pairs, c, model.vocab.device, k.batch_size):
        taught = model.teacher.see(model.teacher.normalise(x))[:, 0]
        before = model.fuse(model.read(tokens, pad), model.see(model.normalise(x)), pad)[2]
        chosen, _ = model.keywords(taught, model.votes(before, pad), tokens, pad[:, 1:])
        said = model.keyword[tokens].masked_fill(pad[:, 1:], -1)
        for i, row in enumerate(rows):
            true = truth.true_words(scenes[row][0])
            mine = set(said[i].tolist()) - {-1}
            for word in chosen[i].nonzero().flatten().tolist():
                right['voted' if word in mine else 'added'].append(name[word] in true)
            right['any'] += [name[word] in true for word in mine]
    out = {f'keyword_precision_{kind}': float(np.mean(v)) for kind, v in right.items() if v}
    return out | dict(keywords_added=len(right['added']))
