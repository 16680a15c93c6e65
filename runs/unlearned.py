"""What retrieval gives without learning: a picture stands for what was said of the training
pictures that look most like it as thumbnails; a text is near that shares rare words with it."""
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse

from data.arrays import Frames, unpatchify

SIDE = 10                        # pixels of a thumbnail
TAUGHT = 20_000                  # training pictures to compare with, at most
NEAREST = 8

def thumbnails(data, ids):
    """Frames (n,) -> (n, 3 * SIDE * SIDE) of unit length, without their mean."""
    found = []
    for some in np.array_split(ids, len(ids) // 256 + 1):
        pictures = unpatchify(torch.from_numpy(data.patches[some]), data.meta['patch_size'])
        small = F.adaptive_avg_pool2d(pictures.permute(0, 3, 1, 2).float(), SIDE).flatten(1)
        found.append(F.normalize(small - small.mean(1, keepdim=True)))
    return torch.cat(found)

def bags(data, start, length):
    """Spans (m,) -> which GPT-2 tokens are in each, sparse (m, 50257)."""
    tokens = np.concatenate([data.tokens[a:a + n] for a, n in zip(start, length)])
    rows = np.repeat(np.arange(len(length)), length)
    once = np.ones(len(rows), np.float32)
    return sparse.csr_matrix((once, (rows, tokens)), (len(length), 50257)).minimum(1)

def unlearned(data, ids, texts, look=thumbnails):
    """Frames `ids` (n,); texts: start, length, owner (m,) -> z_image (n, U), z_text (m, U) of unit
    length, owner; None where there is no training picture to look up. look(data, ids) (n, D): what
    is alike, of unit length."""
    taught = Frames(data.path, 'train', data.text_len, data.context_s)
    known = taught.usable
    if len(known) > TAUGHT:
        known = known[np.linspace(0, len(known) - 1, TAUGHT).astype(int)]
    if not len(known):
        return None
    alike = look(data, ids) @ look(taught, known).T
    if data.split == 'train':                      # nothing of the same video
        same = data.frames['video'][ids][:, None] == taught.frames['video'][known]
        alike[torch.from_numpy(same)] = -2
    near = alike.topk(min(NEAREST, len(known))).indices.numpy()

    n, m = near.shape                              # the m-th nearest counts 1 / m
    share = np.tile(1 / np.arange(1, m + 1, dtype=np.float32), n)
    rows = np.repeat(np.arange(n), m)
    pick = sparse.csr_matrix((share, (rows, near.flatten())), alike.shape)
    said = bags(taught, *taught.spans(known))
    asked = bags(data, texts.start, texts.length)
    rare = np.log((1 + len(known)) / (1 + said.sum(0).A1))
    used = np.flatnonzero(asked.sum(0).A1)         # a word that no text has tells none apart

    def dense(bag):
        return F.normalize(torch.from_numpy(bag[:, used].toarray() * rare[used].astype('f4')))
    return SimpleNamespace(z_image=dense(pick @ said), z_text=dense(asked), owner=texts.owner)
