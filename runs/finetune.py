"""Fine-tuning: questions (VQA v2), pairs of pictures (NLVR2), entailment (SNLI-VE), one loop.

    python eval.py --run=out/full --task=finetune --examples=data/vqa/v2
    python eval.py --run=out/full --task=finetune --examples=data/vqa/v2 --only=text

Into out/<run>/finetune-<examples>-<seed>/: result.json, predictions_*.jsonl, the best weights.
Ctrl-C, and the same command again: it goes on.
"""
import hashlib, json, sys
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import model as models
from configurator import at_least
from data.arrays import patchify
from data.examples import read_splits, worth
from data.pictures import middle_square, read_picture
from data.tokens import gpt2_encoding
from data.weights import load_former
from runs.checkpoints import save_checkpoint
from runs.muon import Muon
from runs.table import keep

WEIGHT_DECAY = .05
PATIENCE = 4                         # epochs without a better one: enough

@dataclass
class Knobs:
    examples: str = ''               # folder of data/examples.py's format
    only: Literal['', 'text'] = ''   # text: the baseline that sees no picture
    epochs: int = 10
    learning_rate: float = 2e-3      # of the head and the words,
    layer_decay: float = .75         # of a layer, as a share of that of the layer above
    n_labels: int = 3129             # the commonest of the training answers (VQA v2: 3129)
    dtype: Literal['auto', 'float32', 'bfloat16'] = 'auto'       # auto: bfloat16 on CUDA

class Classifier(nn.Module):
    """The [CLS] of words fused with each picture, and a [MASK] after the words, where masked
    language modelling has learned to answer -> two layers -> scores of the labels. Without joint
    layers (CLIP): the [CLS] of words and picture side by side."""
    def __init__(self, model, n_images, n_labels, only):
        super().__init__()
        self.model = model
        self.only = only
        c = model.config
        self.towers = c.n_unimodal == c.n_layer
        states = 1 if only and self.towers else 2
        width = states * (1 if only else n_images) * c.n_embd
        self.head = nn.Sequential(nn.Linear(width, 2 * c.n_embd), nn.LayerNorm(2 * c.n_embd),
                                  nn.GELU(), nn.Linear(2 * c.n_embd, n_labels))

    def forward(self, patches, tokens, pad):
        """patches (B, I, N, P) uint8, tokens (B, T), pad (B, 1 + T) -> (B, labels)."""
        m = self.model
        T = m.config.text_len
        row = torch.arange(len(tokens), device=tokens.device)
        end = (~pad[:, 1:]).sum(1).clamp(max=T - 1)                    # the [MASK]'s place
        tokens = F.pad(tokens, (0, 1))
        pad = F.pad(pad, (0, 1), value=True)
        tokens[row, end] = m.mask_id
        pad[row, 1 + end] = False
        pad = pad[:, :1 + T]
        text = m.read(tokens[:, :T], pad)

        states = []
        for x in [None] if self.only else patches.unbind(1):
            image = None if x is None else m.see(m.normalise(x))
            if self.towers:
                states += [x[:, 0] for x in (text, image) if x is not None]
            else:
                fused, _, _ = m.fuse(text, image, pad)
                states += [fused[:, 0], fused[row, 1 + end]]
        return self.head(torch.cat(states, 1)).float()

@lru_cache(20_000)
def square(path, size):
    """A picture -> its middle square, (size, size, 3) uint8."""
    try:
        return middle_square(read_picture(path), size)
    except ValueError as e:
        sys.exit(f'error: {e}; take it out of the examples')

def batch_of(model, rows, rng=None):
    """Examples -> patches (B, I, N, P) uint8, tokens (B, T), pad (B, 1 + T), T of the longest, on
    the device; a random window if rng, else the middle."""
    c = model.config
    free = c.full_size - c.image_size
    corner = np.full((len(rows), 2), free // 2)
    if rng is not None:
        corner = rng.integers(0, free + 1, (len(rows), 2))
    patches = []
    for row, (y, x) in zip(rows, corner):
        pixels = np.stack([square(str(p), c.full_size) for p in row['images']])
        window = pixels[:, y:y + c.image_size, x:x + c.image_size]
        patches.append(patchify(window, c.patch_size))

    tokens, pad = model.tokenise([row['text'] for row in rows])
    T = max(int((~pad[:, 1:]).sum(1).max()), 1)
    patches = torch.from_numpy(np.stack(patches)).to(tokens.device)
    return patches, tokens[:, :T], pad[:, :1 + T]

def batches(model, rows, batch_size):
    for i in range(0, len(rows), batch_size):
        yield batch_of(model, rows[i:i + batch_size])

def choose_labels(rows, n):
    """-> the n commonest labels of training; tells how many examples have none of them."""
    count = Counter()
    for row in rows['train']:
        count.update(row['scores'].keys())
    labels = [label for label, _ in count.most_common(n)]
    if len(labels) < 2:
        sys.exit('error: --examples: all examples have the same label')
    for split, some in rows.items():
        unlike = [row for row in some if row['scores'] and not row['scores'].keys() & set(labels)]
        if lost := len(unlike):
            print(f'{split}: {lost} of {len(some)} examples have no answer among the '
                  f'{len(labels)} labels, and count as wrong')
    return labels

def with_words_of(model, rows):
    """-> the model, its vocabulary wider by the words of the examples: questions have words that
    narration lacks, which it would otherwise spell."""
    said = set(model.vocab.tolist())
    for row in rows:
        said.update(gpt2_encoding().encode_ordinary(' ' + ' '.join(row['text'].split())))
    vocab = model.vocab.tolist()
    vocab = torch.tensor(vocab + sorted(said - set(vocab)))
    c = replace(model.config, vocab_size=len(vocab), psl=0., tag=0., distill=0., queue_size=0)
    wide = models.VLModel(c, vocab, torch.ones(len(vocab) + 2, dtype=torch.bool),
                          model.pixel_mean.cpu(), model.pixel_std.cpu())
    load_former(wide, {name: x.cpu() for name, x in model.state_dict().items()})
    return wide

def make_optimizers(net, k):
    """Muon for the matrices of the blocks, AdamW for the rest; a layer learns layer_decay times
    as fast as the one above."""
    top = net.model.config.n_layer + 1
    groups = {True: [], False: []}
    for name, p in net.named_parameters():
        if not p.requires_grad:
            continue
        depth = 0                                                      # patches, positions
        if name.startswith('model.blocks.'):
            depth = int(name.split('.')[2]) + 1
        elif name.startswith(('head', 'model.norm')) or 'tok_embed' in name:
            depth = top                                                # words may be new
        matrix = p.dim() == 2
        groups[matrix and 'blocks' in name].append(dict(
            params=[p], scale=k.layer_decay ** (top - depth), weight_decay=WEIGHT_DECAY * matrix))
    return [torch.optim.AdamW(groups[False], lr=k.learning_rate),
            Muon(groups[True], k.learning_rate, WEIGHT_DECAY)]

def learn(net, optimizers, rows, labels, epoch, k):
    """One epoch -> mean loss. 10 % of all steps are warm-up, then linearly to 0."""
    dev = net.model.pixel_mean.device
    half = k.dtype == 'bfloat16' or k.dtype == 'auto' and dev.type == 'cuda'
    exclusive = all(list(row['scores'].values()) == [1.] for row in rows)
    rng = np.random.default_rng([k.seed, epoch])
    order = rng.permutation(len(rows))
    steps = -(-len(rows) // k.batch_size)
    total = 0.
    net.train()
    for step in range(steps):
        done = (epoch * steps + step) / (k.epochs * steps)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                rate = min((done + 1e-3) / .1, (1 - done) / .9)
                group['lr'] = k.learning_rate * group['scale'] * rate

        some = [rows[i] for i in order[step * k.batch_size:][:k.batch_size]]
        worths = [[row['scores'].get(label, 0.) for label in labels] for row in some]
        target = torch.tensor(worths, device=dev)
        with torch.enable_grad():
            with torch.autocast(dev.type, torch.bfloat16, enabled=half):
                logits = net(*batch_of(net.model, some, rng))
            if exclusive:
                loss = F.cross_entropy(logits, target)
            else:
                loss = F.binary_cross_entropy_with_logits(logits, target) * len(labels)
            loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.)
        for optimizer in optimizers:
            optimizer.step()
        net.zero_grad(set_to_none=True)
        total += loss.item() / steps
    return total

def answers(net, rows, labels, batch_size):
    """-> the label chosen for each example."""
    net.eval()
    chosen = []
    for batch in batches(net.model, rows, batch_size):
        chosen += [labels[j] for j in net(*batch).argmax(1).tolist()]
    return chosen

def mean_worth(rows, chosen):
    """Of the examples whose answer is known; None if of none is."""
    found = [worth(row, answer) for row, answer in zip(rows, chosen) if row['scores']]
    return float(np.mean(found)) if found else None

def go_on(net, optimizers, made_of, out):
    """A run that was begun goes on, if it is the same -> where it is."""
    if not (out / 'latest.pt').exists():
        return dict(epoch=0, best=-1., best_epoch=0)
    dev = net.model.pixel_mean.device
    was = torch.load(out / 'latest.pt', map_location=dev, weights_only=True)
    if differs := [name for name, v in made_of.items() if was['made_of'].get(name) != v]:
        sys.exit(f"error: {out} was begun with other {', '.join(differs)}; "
                 'remove it, or take another --seed')
    net.load_state_dict(was['net'])
    for optimizer, state in zip(optimizers, was['optimizers']):
        optimizer.load_state_dict(state)
    return was['at']

def judge_all(net, rows, labels, out, k):
    """-> {split: score, beside the commonest answer}; predictions_<split>.jsonl."""
    found = {}
    for split in [s for s in rows if s != 'train']:
        some = rows[split]
        chosen = answers(net, some, labels, k.batch_size)
        found[split] = mean_worth(some, chosen)
        found[f'{split}_commonest'] = mean_worth(some, labels[:1] * len(some))
        found[f'{split}_examples'] = len(some)
        found[f'{split}_unjudged'] = sum(not row['scores'] for row in some)
        told = [dict(id=row.get('id', i), answer=chosen[i]) for i, row in enumerate(some)]
        lines = [json.dumps(line) + '\n' for line in told]
        (out / f'predictions_{split}.jsonl').write_text(''.join(lines), encoding='utf-8')
    return found

def main(model, k):
    """Fine-tune, keep the epoch that is best on val, judge it once on test -> {name: number}."""
    at_least(vars(k), epochs=1, n_labels=2, learning_rate=1e-12, layer_decay=0)
    folder = Path(k.examples)
    rows = read_splits(folder, model.config.text_len - 1)              # the last is the [MASK]'s
    labels = choose_labels(rows, k.n_labels)
    dev = model.pixel_mean.device
    torch.manual_seed(k.seed)
    wide = with_words_of(model, rows['train'])
    torch.manual_seed(k.seed)
    net = Classifier(wide, len(rows['train'][0]['images']), len(labels), k.only).to(dev)
    optimizers = make_optimizers(net, k)

    name = ['finetune', *folder.resolve().parts[1:][-2:], k.only, str(k.seed)]
    out = Path(k.run, '-'.join(filter(None, name)))
    out.mkdir(exist_ok=True)
    digest = hashlib.sha256(json.dumps(rows, default=str).encode()).hexdigest()
    made_of = dict(examples=digest, labels=labels)
    for name in 'weights', 'epochs', 'learning_rate', 'layer_decay', 'batch_size', 'dtype':
        made_of[name] = vars(k)[name]
    at = go_on(net, optimizers, made_of, out)
    while at['epoch'] < k.epochs and at['epoch'] - at['best_epoch'] < PATIENCE:
        loss = learn(net, optimizers, rows['train'], labels, at['epoch'], k)
        value = mean_worth(rows['val'], answers(net, rows['val'], labels, k.batch_size))
        at['epoch'] += 1
        print(f"epoch {at['epoch']}/{k.epochs} | loss {loss:.3f} | val {value:.1%}", flush=True)
        if value > at['best']:
            at |= dict(best=value, best_epoch=at['epoch'])
            save_checkpoint(out / 'best.pt', net=net.state_dict(), labels=labels)
        save_checkpoint(out / 'latest.pt', net=net.state_dict(), made_of=made_of, at=at,
                        optimizers=[o.state_dict() for o in optimizers])

    net.load_state_dict(torch.load(out / 'best.pt', map_location=dev, weights_only=True)['net'])
    found = dict(task=out.name, only=k.only or 'words and pictures', seed=k.seed,
                 labels=len(labels), best_epoch=at['best_epoch'], train_examples=len(rows['train']))
    return keep(found | judge_all(net, rows, labels, out, k), out / 'result.json')
