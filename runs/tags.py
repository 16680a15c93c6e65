"""--task=tags: which content words do the patches say (tag)? Those more likely than not against
those of the picture's text: precision, recall, F1; and of the picture half the set away."""
from runs.writing import scores

def judge(model, data, pairs, k):
    c = model.config
    if not c.has('tag'):
        return {}
    of_tag = set(model.keywords.tolist())
    told, said = [], []
    for _, x, tokens, pad, _ in data.batches(pairs, c, model.vocab.device, k.batch_size):
        sure = model.tags(model.see(model.normalise(x))) > 0           # (B, C)
        told += [set(model.keywords[row].tolist()) for row in sure]
        words = tokens.masked_fill(pad[:, 1:], -1).tolist()
        said += [of_tag.intersection(row) for row in words]
    half = len(told) // 2
    out = scores('tags', told, said)
    return out | scores('tags_of_another', told[half:] + told[:half], said)
