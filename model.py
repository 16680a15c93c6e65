"""One transformer for pictures and words, and the masking objectives that train it.

    import model
    m = model.load('out/scenes/best.pt')
    m.encode_image(pil) @ m.encode_text('a red circle on the left')

Departures from the textbook:
- One stack of identical pre-norm ViT blocks for both modalities. Layers below n_unimodal attend
  within a modality, the others over [text ; image]: 0 is ViLT / M3AE, n_layer a CLIP of one tower.
- Masked patches leave the sequence (MAE), masked words become [MASK] (BERT); a light predictor
  paints patches.
- A batch is cut into parts by position, and each part masks differently: PARTS.
- All randomness is an input: batch['noise_*'] is uniform, a mask or a negative a function of it.
- A teacher, the moving average of the model, exists only where an objective asks for it.

Shapes: B samples (n of one part), T text tokens (1 + T with [CLS]), N patches of P values, K of
them kept, D width, V vocabulary. A mask is 1 where removed, pad is 1 where there is no token.
"""
import copy, functools, math, pickle, sys
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from data.arrays import patchify
from data.tokens import compact, compact_lookup, gpt2_encoding

# ----------------------------------------------------------------------------------------------
# what is masked

class Part(NamedTuple):
    """What a sample shows of each modality. What it can learn follows from that."""
    words: str | None        # whole, or some, a range or all of them masked; None: no words
    patches: str | None      # keep_hi, keep_lo or keep_0 of them shown; None: no picture

    @property
    def sees(self):
        return self.patches in ('keep_hi', 'keep_lo')

    @property
    def writes(self):
        """mlm: it has words to fill in."""
        return self.words in ('some', 'range', 'all')

    @property
    def writes_all(self):
        """... from the picture alone."""
        return self.words == 'all' and self.patches is not None

    @property
    def paints(self):
        """mim: it has patches to fill in."""
        return self.patches in ('keep_lo', 'keep_0')

    @property
    def paints_all(self):
        """... from the words alone."""
        return self.words is not None and self.patches == 'keep_0'

    @property
    def pairs(self):
        """itc: it has words and a picture that belong together."""
        return self.words is not None and self.patches is not None

    @property
    def matches(self):
        """itm, tag: such a pair, with keep_hi of the picture."""
        return self.pairs and self.patches == 'keep_hi'

    @property
    def fuses_whole(self):
        """psl, without itm: whole words meet some patches in the joint layers."""
        return self.words == 'whole' and self.patches == 'keep_lo'

#                       words    patches
PARTS = dict(
    xmm_text=Part(     'some',  'keep_hi'),  # words from both: BERT with an image, SIMLA's XMM
    amm_text=Part(     'all',   'keep_hi'),  # words from the picture alone: CapPa, 2306.07915
    clean=Part(        'whole', 'keep_hi'),  # nothing to fill in: CLIP, FLIP
    xmm_image=Part(    'whole', 'keep_lo'),  # patches from both: MAE with a text, SIMLA's XMM
    joint=Part(        'range', 'keep_lo'),  # words and patches at once: M3AE, VLC
    amm_image=Part(    'whole', 'keep_0'),   # patches from the words alone
    image_only=Part(   None,    'keep_lo'),  # MAE
    text_only=Part(    'some',  None))       # BERT

# what each objective needs of a part
OBJECTIVES = dict(mlm='writes', mim='paints', itc='pairs', itm='matches', psl='fuses_whole',
                  tag='matches')

@dataclass
class VLConfig:
    # what the data decides
    vocab_size: int                # V
    full_size: int                 # side of the stored picture, of which the model sees a window
    n_keywords: int                # C: content words of the vocabulary, what tag asks for
    # sizes
    image_size: int = 64           # at random places in training, in the middle in evaluation
    patch_size: int = 8            # any multiple of the stored one
    text_len: int = 32             # T: tokens, around the middle of the time that the frame stands
    n_layer: int = 6
    n_unimodal: int = 4            # layers within a modality: 0 is ViLT, M3AE, n_layer CLIP
    n_head: int = 6
    n_embd: int = 192              # D
    predictor_n_layer: int = 2     # paints the removed patches; half as wide
    proj_dim: int = 128            # of the embedding that retrieval compares
    # what is hidden: PARTS; of every 16 samples half are for contrast alone (runs/RESULTS.md)
    parts: str = 'clean:8,xmm_text:3,xmm_image:3,amm_text:1,amm_image:1'
    keep_hi: float = .5            # share of the patches kept where words are filled in (FLIP),
    keep_lo: float = .25           # and where patches are painted (MAE)
    mask_rate: float = .4          # share of the words masked where some are (2202.08005)
    whole_word: bool = True        # mask all tokens of a word together (ViLT)
    mim_target: Literal['pixels', 'norm_pix'] = 'pixels'   # norm_pix: per patch, no colours (MAE)
    # what is learned: weights of the objectives; 0 is off
    mlm: float = 1.                # masked language modelling
    mim: float = 1.                # masked image modelling
    itc: float = 1.                # image-text contrast, over batch_size x ranks
    queue_size: int = 0            # teacher embeddings of earlier batches as negatives (ALBEF)
    itm: float = 0.                # image-text matching against hard negatives
    psl: float = 0.                # pseudo-labelled keywords (SIMLA)
    tag: float = 0.                # the text's content words, told by some patch
    distill: float = 0.            # share of the teacher's soft targets in mlm, itc, psl,
    distill_iters: int = 1000      # reached after so many steps
    teacher_momentum: float = .995

    def __post_init__(self):
        self.plan = read_plan(self.parts)
        for name in ('image_size', 'patch_size', 'text_len', 'vocab_size', 'n_layer', 'n_head',
                     'n_embd', 'predictor_n_layer', 'proj_dim', 'distill_iters'):
            require(getattr(self, name) >= 1, f'{name}={getattr(self, name)} must be 1 or more')
        for name in ('keep_hi', 'keep_lo', 'mask_rate'):
            require(0 < getattr(self, name) <= 1, f'{name}={getattr(self, name)} must be a share')
        require(not self.any('paints') or round(self.n_patches * self.keep_lo) < self.n_patches,
                f'keep_lo={self.keep_lo} of {self.n_patches} patches leaves nothing to paint')
        require(0 <= self.distill < 1, f'distill={self.distill} must be a share below 1')
        for name in 'teacher_momentum', 'queue_size':
            require(getattr(self, name) >= 0, f'{name}={getattr(self, name)} must be 0 or more')
        require(self.teacher_momentum <= 1, 'teacher_momentum must be at most 1')
        require(self.image_size % self.patch_size == 0,
                f'image_size={self.image_size} is not a multiple of patch_size={self.patch_size}')
        require(self.n_embd % self.n_head == 0,
                f'n_embd={self.n_embd} is not a multiple of n_head={self.n_head}')

        # the dial and the plan must leave each objective what it works on
        require(0 <= self.n_unimodal <= self.n_layer,
                f'n_unimodal={self.n_unimodal} must be from 0 to n_layer={self.n_layer}')
        require(any(map(self.has, OBJECTIVES)),
                f'no objective has a weight and a part of {self.parts} to work on')
        if self.n_unimodal == self.n_layer:
            joint = [p for p in self.plan
                     if PARTS[p].pairs and (PARTS[p].writes or PARTS[p].paints)]
            require(not joint and not self.itm, 'n_unimodal=n_layer leaves no joint layers, which '
                    f"{' '.join(joint) or 'itm'} needs")
        else:
            require(any(map(self.has, ('mlm', 'mim', 'itm'))), 'nothing uses the joint layers: '
                    'set n_unimodal=n_layer, or turn on mlm, mim or itm')
        require(self.n_unimodal > 0 or not self.psl and not self.tag,
                'psl and tag look at pictures alone: n_unimodal must be 1 or more')
        for name in 'itm', 'psl', 'tag':
            require(self.has(name) or not getattr(self, name),
                    f'{name} has no part of {self.parts} to work on')
        for p in self.plan:
            require(self.mlm or not (PARTS[p].writes and PARTS[p].paints),
                    f'the part {p} masks words for mlm: give it a weight, or take xmm_image')
        require(self.has('itc') or not self.psl, 'psl needs itc')
        require(self.has('mlm') or not self.tag, 'tag needs mlm, whose head says its words')

    @property
    def n_patches(self):
        return (self.image_size // self.patch_size) ** 2               # N

    def any(self, quality):
        """Whether a part of the plan has a quality of Part: writes, paints_all, ..."""
        return any(getattr(PARTS[p], quality) for p in self.plan)

    def has(self, objective):
        """Whether an objective has a weight and a part to work on."""
        if objective == 'psl' and self.has('itm'):                     # which fuses whole words
            return self.psl > 0
        return getattr(self, objective) > 0 and self.any(OBJECTIVES[objective])

    @property
    def teacher(self):
        """Whether an objective needs one."""
        return bool(self.distill or self.queue_size and self.has('itc'))

def require(true, message):
    if not true:
        raise ValueError(message)

def read_plan(parts):
    """'xmm_text:7,amm_text:1' -> {part: samples per cycle}."""
    try:
        plan = {name: int(n) for name, n in (p.split(':') for p in parts.split(','))}
        require(plan.keys() <= PARTS.keys() and min(plan.values()) >= 0 and any(plan.values()), '')
    except ValueError:
        raise ValueError(f'parts={parts!r}: expected name:count,... with names out of '
                         + ', '.join(PARTS)) from None
    return {name: n for name, n in plan.items() if n}

@functools.lru_cache
def plan_positions(parts, B):
    """{part: its positions in a batch}: by position modulo the cycle, parts evenly interleaved."""
    plan = read_plan(parts)
    cycle = sorted(((j + .5) / n, i, name)
                   for i, (name, n) in enumerate(plan.items()) for j in range(n))
    rows = {name: [] for name in PARTS}
    for i in range(B):
        rows[cycle[i % len(cycle)][2]].append(i)
    return {name: positions for name, positions in rows.items() if positions}

@functools.lru_cache
def part_rows(parts, B, device):
    """The same as tensors."""
    return {name: torch.tensor(rows, device=device)
            for name, rows in plan_positions(parts, B).items()}

# ----------------------------------------------------------------------------------------------
# positions and masks

def sincos_pos_embed(position, D):
    """Sine-cosine positions (L,) -> (L, D)."""
    angle = position[:, None].float() / 10000 ** (torch.arange(D // 2) / (D // 2))
    return F.pad(torch.cat([angle.sin(), angle.cos()], 1), (0, D % 2))

def grid_pos_embed(n, D):
    """Positions of an n x n grid -> (n * n, D): half of D for each axis (MAE)."""
    y = torch.arange(n).repeat_interleave(n)
    x = torch.arange(n).repeat(n)
    return torch.cat([sincos_pos_embed(x, D // 2), sincos_pos_embed(y, D - D // 2)], 1)

def take(x, ids):
    """(B, L, D), (B, K) -> (B, K, D): those rows of each sample."""
    return x.gather(1, ids[..., None].expand(-1, -1, x.shape[-1]))

def choose_words(tokens, pad, noise, rate, n_slots, word_start):
    """The words with the least noise, whole, until a share `rate` of the tokens is chosen, at least
    one. tokens, pad, noise (B, T); rate float or (B, 1); word_start (V,) bool, or None: single
    tokens -> slots (B, n_slots) positions, used (B, n_slots) bool: no shape depends on the data."""
    B, T = tokens.shape
    at = torch.arange(T, device=tokens.device)
    if word_start is not None:                    # all tokens of a word have the noise of its first
        first = torch.where(word_start[tokens] | (at == 0), at, 0).cummax(1).values
        noise = noise.gather(1, first)
    noise = noise.masked_fill(pad, math.inf)
    n = (~pad).sum(1, keepdim=True)
    budget = (n * rate).ceil().clamp(max=n_slots)                      # (B, 1)
    by_noise, slots = noise.sort(dim=1, stable=True)
    end = (noise[:, None] <= by_noise[:, :, None]).sum(2)              # tokens up to its word's end
    whole = end <= budget
    first = by_noise == by_noise[:, :1]                                # the first word may be cut
    used = (at < budget) & (whole | first) & (at < n)
    return slots[:, :n_slots], used[:, :n_slots]

def masked_mean(loss, mask):
    """Mean over samples of the mean over each sample's masked positions; 0 where it has none."""
    mask = mask.to(loss.dtype)
    return ((loss * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()

# ----------------------------------------------------------------------------------------------
# the trunk

class Attention(nn.Module):
    def __init__(self, D, n_head):
        super().__init__()
        self.n_head = n_head
        self.qkv = nn.Linear(D, 3 * D)
        self.proj = nn.Linear(D, D)

    def heads(self, x, first=0, last=3):
        """(B, L, D) -> (q, k, v)[first:last], each (B, n_head, L, D / n_head)."""
        B, L, D = x.shape
        w, b = self.qkv.weight, self.qkv.bias
        if last - first < 3:                       # a slice of all would cost its backward pass
            w, b = w[first * D:last * D], b[first * D:last * D]
        x = F.linear(x, w, b).view(B, L, last - first, self.n_head, -1)
        return x.permute(2, 0, 3, 1, 4)

    def forward(self, x, mask, n=None):
        """n: only the first n positions ask, of all; None: each does."""
        if n is None:
            q, k, v = self.heads(x)
        else:
            q, k, v = *self.heads(x[:, :n], 0, 1), *self.heads(x, 1, 3)
        if q.dtype == torch.bfloat16 and q.device.type == 'cpu':
            # there its backward pass takes six times as long as in float32 (torch 2.13)
            with torch.autocast('cpu', enabled=False):
                x = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask)
        else:
            x = F.scaled_dot_product_attention(q, k, v, mask)
        return self.proj(x.transpose(1, 2).flatten(2))

    def cls_row(self, x, mask):
        """How much the first position attends to each (B, n_head, L)."""
        q, k = *self.heads(x[:, :1], 0, 1), *self.heads(x, 1, 2)
        score = (q @ k.mT).float() / math.sqrt(q.shape[3])             # (B, n_head, 1, L)
        return score.masked_fill(~mask, -math.inf).softmax(-1)[:, :, 0]

class MLP(nn.Module):
    def __init__(self, D):
        super().__init__()
        self.fc1 = nn.Linear(D, 4 * D)
        self.fc2 = nn.Linear(4 * D, D)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))

class Block(nn.Module):
    """The standard pre-norm ViT block, by timm's names, so that ViT checkpoints fit."""
    def __init__(self, D, n_head):
        super().__init__()
        self.norm1 = nn.LayerNorm(D, eps=1e-6)
        self.attn = Attention(D, n_head)
        self.norm2 = nn.LayerNorm(D, eps=1e-6)
        self.mlp = MLP(D)

    def forward(self, x, mask=None, n=None):
        """n: the states of the first n positions only."""
        x = x[:, :n] + self.attn(self.norm1(x), mask, n)
        return x + self.mlp(self.norm2(x))

def run(blocks, x, pad=None, n=None):
    """x (B, L, D) through blocks; pad (B, L): keys that nobody may look at, or None; n: the last
    block, if there is one, says the first n positions only. Under bfloat16 autocast the states
    are bfloat16 as well."""
    mask = None if pad is None else ~pad[:, None, None]                # (B, 1, 1, L), 1 = look
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        if torch.get_autocast_dtype(x.device.type) == torch.bfloat16:  # float16 would overflow
            x = x.bfloat16()
    for i, block in enumerate(blocks, 1):
        x = block(x, mask, n if i == len(blocks) else None)
    return x

class Predictor(nn.Module):
    """Paints patches: states of words and kept patches, and mask queries with positions in place
    of the removed ones, through a few narrow blocks -> (B, N, P) for every place."""
    def __init__(self, c):
        super().__init__()
        D = max(c.n_embd // 2, 32) // 4 * 4
        self.embed = nn.Linear(c.n_embd, D)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, D))
        self.pos_embed = nn.Parameter(grid_pos_embed(math.isqrt(c.n_patches), D)[None])
        n_head = max(1, D // 32 if D % 32 == 0 else 1)
        self.blocks = nn.ModuleList(Block(D, n_head) for _ in range(c.predictor_n_layer))
        self.norm = nn.LayerNorm(D, eps=1e-6)
        self.head = nn.Linear(D, c.patch_size ** 2 * 3)

    def canvas(self, states, ids_keep):
        """Fused states of kept patches (B, K, D) at ids_keep (B, K), mask tokens elsewhere."""
        blank = self.mask_token.expand(len(states), self.pos_embed.shape[1], -1)
        at = ids_keep[..., None].expand(-1, -1, blank.shape[2])
        return blank.scatter(1, at, self.embed(states).to(blank.dtype))            # (B, N, D')

    def forward(self, text, canvas, pad):
        """text (B, 1 + T, D) or None, canvas (B, N, D'), pad (B, 1 + T) or None -> (B, N, P)."""
        x = canvas + self.pos_embed
        if text is None:
            return self.head(self.norm(run(self.blocks, x)))
        N = canvas.shape[1]
        x = torch.cat([x, self.embed(text)], 1)
        return self.head(self.norm(run(self.blocks, x, F.pad(pad, (N, 0)), N)))

# ----------------------------------------------------------------------------------------------
# a batch by part: {part: rows}

class Words(NamedTuple):
    """Words of which some are to be filled in."""
    tokens: torch.Tensor           # (n, T), with [MASK]
    slots: torch.Tensor            # (n, S) where
    used: torch.Tensor             # (n, S) bool: the others are spare
    targets: torch.Tensor          # (n, S)

class Shown(NamedTuple):
    """What each part of a batch shows and hides; n rows of the batch are of it."""
    at: dict                       # (n,) positions in the batch
    x: dict                        # (n, N, P) normalised patches
    keep: dict                     # (n, K) which of them stay
    tokens: dict                   # (n, T)
    pad: dict                      # (n, 1 + T), where [CLS] is never padding
    masked: dict                   # Words, of the parts that fill some in
    whole: list                    # parts whose words are read as they are
    fused: list                    # parts whose own words and patches meet in the joint layers
    painted: list                  # parts whose patches mim paints
    contrast: list                 # parts whose pictures and words itc compares
    match: list                    # parts whose pairs itm judges
    salient: list                  # parts that psl asks for keywords
    tagged: list                   # parts whose patches tag asks for words

class States(NamedTuple):
    """What the layers within a modality make of a batch, by part."""
    image: dict                    # (n, 1 + K, D), or [CLS] alone: (n, 1, D)
    whole: dict                    # (n, 1 + T, D) of whole words, or [CLS] alone,
    masked: dict                   # of words with [MASK]
    z_image: dict                  # (n, proj_dim) ITC embeddings
    z_text: dict

    def shown(self, part, s):
        """Words, picture and pad as the part shows them, for fuse."""
        words = self.masked.get(part, self.whole.get(part))
        picture = None if PARTS[part].patches == 'keep_0' else self.image.get(part)
        return words, picture, s.pad[part]

    def z(self, parts):
        return join(self.z_image, parts), join(self.z_text, parts)

def join(by_part, names):
    """Rows of several parts, one part after the other."""
    return torch.cat([by_part[p] for p in names])

def together(f, rows):
    """f on each of {name: (tensor (n, L, ...) or None, ...)} -> {name: f's result}, in one call
    for all names of the same lengths L: f must treat each row by itself."""
    alike = {}
    for name, args in rows.items():
        lengths = tuple(0 if x is None else x.shape[1] for x in args)
        alike.setdefault(lengths, []).append(name)
    out = {}
    for names in alike.values():
        columns = list(zip(*(rows[name] for name in names)))
        result = f(*(None if column[0] is None else torch.cat(column) for column in columns))
        sizes = [len(x) for x in next(column for column in columns if column[0] is not None)]
        for states in result if isinstance(result, tuple) else (result,):
            pieces = [None] * len(names) if states is None else states.split(sizes)
            for name, piece in zip(names, pieces):
                out.setdefault(name, []).append(piece)
    return {name: pieces[0] if len(pieces) == 1 else pieces for name, pieces in out.items()}

class VLModel(nn.Module):
    def __init__(self, config, vocab=None, word_start=None, pixel_mean=(.5, .5, .5),
                 pixel_std=(.25, .25, .25), keywords=None):
        """vocab (V,): the GPT-2 id of each token; word_start (V + 2,): whether it starts a word;
        keywords (C,): the tokens that tag asks for."""
        super().__init__()
        self.config = c = config
        D, P, V = c.n_embd, c.patch_size ** 2 * 3, c.vocab_size
        self.mask_id, self.cls_id = V, V + 1                           # after the data's own tokens

        # what is known of the data
        def buffer(name, value, otherwise=None):
            self.register_buffer(name, torch.as_tensor(otherwise if value is None else value))
        buffer('vocab', vocab, torch.arange(V))
        buffer('word_start', word_start, torch.ones(V + 2, dtype=torch.bool))
        if c.has('tag'):
            buffer('keywords', keywords, torch.arange(c.n_keywords))
        buffer('pixel_mean', torch.as_tensor(pixel_mean, dtype=torch.float32))
        buffer('pixel_std', torch.as_tensor(pixel_std, dtype=torch.float32))

        # embeddings and trunk
        text_pos = sincos_pos_embed(torch.arange(1 + c.text_len), D)
        image_pos = grid_pos_embed(math.isqrt(c.n_patches), D)
        image_pos = torch.cat([torch.zeros(1, D), image_pos])          # [CLS] has none
        self.tok_embed = nn.Embedding(V + 2, D)
        self.text_pos_embed = nn.Parameter(text_pos[None])             # (1, 1 + T, D)
        self.type_embed = nn.Parameter(torch.zeros(2, 1, D))           # text, image
        self.patch_embed = nn.Linear(P, D)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, D))
        self.pos_embed = nn.Parameter(image_pos[None])                 # (1, 1 + N, D)
        self.blocks = nn.ModuleList(Block(D, c.n_head) for _ in range(c.n_layer))
        self.add_heads()
        self.init_weights()

        self.teacher = None
        if c.teacher:
            self.teacher = copy.deepcopy(self).requires_grad_(False).eval()
            buffer('alpha', torch.zeros(()))                           # share of soft targets, now
        if c.queue_size and c.has('itc'):
            buffer('queue_image', torch.zeros(c.queue_size, c.proj_dim))
            buffer('queue_text', torch.zeros(c.queue_size, c.proj_dim))
            buffer('queue_ids', torch.full((2, c.queue_size), -1))     # video, sentence; -1: empty
            buffer('queue_at', torch.zeros((), dtype=torch.long))

    def add_heads(self):
        """A head exists only for an objective in use: every parameter has a gradient."""
        c, D = self.config, self.config.n_embd
        if c.has('mlm') or c.has('mim') or c.has('itm'):
            self.norm = nn.LayerNorm(D, eps=1e-6)
        if c.has('mlm'):
            self.mlm_head = nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.LayerNorm(D))
            self.mlm_bias = nn.Parameter(torch.zeros(c.vocab_size))
        if c.has('mim'):
            self.predictor = Predictor(c)
        if c.has('itc'):
            for name in 'text_proj', 'image_proj':
                proj = nn.Sequential(nn.LayerNorm(D), nn.Linear(D, c.proj_dim, bias=False))
                setattr(self, name, proj)
            self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / .07)))
        if c.has('itm'):
            self.itm_head = nn.Linear(D, 2)
        if c.has('psl'):
            self.keyword_head = nn.Linear(c.proj_dim, c.vocab_size)
        if c.has('tag'):
            self.tag_bias = nn.Parameter(torch.zeros(()))

        # BERT sees no patches, MAE no words
        unused = []
        if not c.any('words'):
            unused += [self.tok_embed.weight, self.text_pos_embed]
        if not c.any('sees') and not c.has('itc'):
            unused += [*self.patch_embed.parameters(), self.pos_embed, self.cls_token]
        for p in unused:
            p.requires_grad_(False)

    def train(self, mode=True):
        """The teacher stays in eval mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    @torch.no_grad()
    def follow(self, it):
        """After step `it`: the teacher moves towards the model, its soft targets gain weight."""
        if self.teacher is None:
            return
        c = self.config
        momentum = min(c.teacher_momentum, (1 + it) / (10 + it))       # faster in the first steps
        mine = [p for n, p in self.named_parameters() if not n.startswith('teacher.')]
        torch._foreach_lerp_(list(self.teacher.parameters()), mine, 1 - momentum)
        self.alpha.fill_(c.distill * min(1, (it + 1) / c.distill_iters))

    def init_weights(self):
        """Xavier for matrices (MAE), less 1 / sqrt(2 n_layer) at the end of each residual branch
        (GPT-2), N(0, 0.02) for special vectors. Words come in at unit scale, like patches and
        positions, and go out (tied) so that logits start small."""
        c = self.config
        for name, p in self.named_parameters():
            if name == 'tok_embed.weight':
                nn.init.normal_(p, std=c.n_embd ** -.5)
            elif name.endswith(('attn.proj.weight', 'mlp.fc2.weight')):
                nn.init.xavier_uniform_(p, gain=(2 * c.n_layer) ** -.5)
            elif p.dim() == 2:
                nn.init.xavier_uniform_(p)
            elif p.dim() > 2 and not name.endswith('pos_embed'):
                nn.init.normal_(p, std=.02)
            elif name.endswith('bias'):
                nn.init.zeros_(p)
            elif name == 'mlm_head.2.weight':
                nn.init.constant_(p, .3)                               # the first loss is ln V
        if c.has('psl'):                                               # few words are keywords
            nn.init.constant_(self.keyword_head.bias, -4.)
        if c.has('tag'):                                               # one in every second text
            nn.init.constant_(self.tag_bias, -math.log(2 * max(1, c.n_keywords)))

    # --- states -------------------------------------------------------------------------------

    def normalise(self, patches):
        """uint8 patches (B, N, P) -> float, zero mean and unit variance over the training set."""
        B, N, P = patches.shape
        x = patches.view(B, N, P // 3, 3).float() / 255
        return ((x - self.pixel_mean) / self.pixel_std).view(B, N, P)

    def embed_text(self, tokens):
        """(B, T) -> (B, 1 + T, D), [CLS] first."""
        tokens = F.pad(tokens, (1, 0), value=self.cls_id)
        x = self.tok_embed(tokens) * self.config.n_embd ** .5
        return x + self.text_pos_embed[:, :tokens.shape[1]] + self.type_embed[0]

    def embed_image(self, x, ids_keep=None):
        """Normalised patches (B, N, P), ids_keep (B, K) of those that stay -> (B, 1 + K, D)."""
        pos = self.pos_embed[:, 1:].expand(len(x), -1, -1)
        if ids_keep is not None:
            x, pos = take(x, ids_keep), take(pos, ids_keep)
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        return torch.cat([cls.to(pos.dtype), self.patch_embed(x) + pos], 1) + self.type_embed[1]

    def unimodal(self, x, pad=None, n=None):
        """The layers within a modality: (B, L, D) -> (B, L, D), of the last the first n alone."""
        return run(self.blocks[:self.config.n_unimodal], x, pad, n)

    def read(self, tokens, pad, n=None):
        """Words (B, T), pad (B, 1 + T) -> unimodal states (B, 1 + T or n, D)."""
        return self.unimodal(self.embed_text(tokens), pad, n)

    def see(self, x, ids_keep=None, n=None):
        """Normalised patches (B, N, P), those that stay (B, K) -> unimodal states (B, 1 + K or n,
        D)."""
        return self.unimodal(self.embed_image(x, ids_keep), None, n)

    def fuse(self, text, image, pad, n=None):
        """The joint layers over unimodal states (B, 1 + T, D) and (B, 1 + K, D), either may be None
        -> normalised states of both, None for what is absent; and all before the last layer. n: the
        last layer asks for the first n words alone, where nobody reads the others."""
        if text is None:
            x, pad, L = image, None, 0
        elif image is None:
            x, L = text, text.shape[1]
        else:
            x, L = torch.cat([text, image], 1), text.shape[1]
            pad = F.pad(pad, (0, image.shape[1]))
        joint = self.blocks[self.config.n_unimodal:]                   # none at the end of the dial
        before = run(joint[:-1], x, pad)
        x = self.norm(run(joint[-1:], before, pad, n)[:, :n])
        if n:
            return x, None, before
        return (None if text is None else x[:, :L]), (None if image is None else x[:, L:]), before

    def fuse_words(self, text, image, pad):
        return self.fuse(text, image, pad, text.shape[1])

    def fuse_cls(self, text, image, pad):
        return self.fuse(text, image, pad, 1)

    def embedding(self, states, proj, pad=None):
        """Unimodal states -> ITC embedding (B, proj_dim) of unit length, from [CLS]."""
        if self.config.n_unimodal == 0:                                # all layers, on it alone
            states = run(self.blocks, states, pad, 1)
        return F.normalize(proj(states[:, 0]).float(), dim=-1)

    # --- one step -----------------------------------------------------------------------------

    def forward(self, batch):
        """-> loss, {name: detached scalar}.

        batch: patches (B, N, P) uint8, tokens (B, T), pad (B, T) bool, video (B,) ids, and noise,
        uniform in [0, 1): noise_image (B, N), noise_text (B, T), noise_rate (B,); with itm
        noise_itm (B, B)."""
        c = self.config
        s = self.show(batch)
        ids = torch.stack([batch['video'], sentence(batch['tokens'], batch['pad'])])     # (2, B)

        # layers within a modality; the teacher sees the same patches and the same masked words
        mine = self.alone(s, s.fused, s.match)
        taught = None
        if self.teacher is not None:
            with torch.no_grad():
                asked = s._replace(masked=s.masked if c.distill else {}, tagged=[])
                taught = self.teacher.alone(asked, asked.masked, [])

        # joint layers: what each part shows, and the pairs that itm judges
        rows = {p: mine.shown(p, s) for p in s.fused}                  # (words, picture, pad) each
        wide = {p: rows.pop(p) for p in s.painted}                     # whose picture is read, too
        fused = together(self.fuse, wide) | together(self.fuse_words, rows)
        if s.match:
            pairs, possible = self.pair_up(s, mine, ids, batch['noise_itm'])
            fused |= together(self.fuse_cls, pairs)

        losses = {}
        if s.masked:
            soft = self.soft_words(s, taught) if c.distill else {}
            losses |= self.mlm_loss(fused, s.masked, soft)
        if s.painted:
            losses |= self.mim_loss(fused, s)
        if s.contrast:
            soft = taught.z(s.contrast) if c.distill or c.queue_size else None
            losses['itc'] = self.itc_loss(*mine.z(s.contrast), ids[:, join(s.at, s.contrast)], soft)
        if s.match:
            losses['itm'] = self.itm_loss(fused['match'][0], fused['mismatch'][0], possible)
        if s.salient:
            losses['psl'] = self.psl_loss(s, mine, taught, fused)
        if s.tagged:
            losses['tag'] = self.tag_loss(s, mine)

        weighted = [getattr(c, name) * value for name, value in losses.items() if '/' not in name]
        # a zero that no compiler can know of, or it would take the loss of a single objective and
        # its copy for one output, which then has no gradient (torch 2.14; clone() helps until 2.13)
        loss = sum(weighted, 0 * batch['noise_rate'].sum())
        return loss, {name: value.detach() for name, value in losses.items()}

    def show(self, batch):
        """What each part of a batch shows, hides and is asked for -> Shown."""
        c = self.config
        at = part_rows(c.parts, len(batch['tokens']), batch['tokens'].device)

        def rows(x):
            return {p: x[i] for p, i in at.items()}
        x = rows(self.normalise(batch['patches']))
        tokens = rows(batch['tokens'])
        pad = rows(F.pad(batch['pad'], (1, 0)))

        def parts(objective, quality=None):
            quality = quality or OBJECTIVES[objective]
            return [p for p in at if c.has(objective) and getattr(PARTS[p], quality)]
        painted, contrast, match = parts('mim'), parts('itc'), parts('itm')
        salient = parts('psl', 'matches' if match else None)
        tagged = parts('tag')

        masked = {p: self.hide_words(p, tokens[p], pad[p][:, 1:], batch['noise_text'][at[p]],
                                     batch['noise_rate'][at[p]])
                  for p in parts('mlm')}
        # contrast, matching and keywords look at whole words, also of parts that mask theirs
        read = contrast + match + salient + [p for p in painted if PARTS[p].words == 'whole']
        whole = [p for p in at if p in read]
        fused = [p for p in at if p in masked or p in painted or not match and p in salient]
        keep = {p: self.choose_patches(p, batch['noise_image'][at[p]])
                for p in at if PARTS[p].sees or p in contrast}
        return Shown(at, x, keep, tokens, pad, masked,
                     whole, fused, painted, contrast, match, salient, tagged)

    def choose_patches(self, part, noise):
        """noise (n, N) -> which patches stay (n, K)."""
        c = self.config
        # of parts that hide the picture, contrast still sees some
        share = dict(keep_hi=c.keep_hi, keep_lo=c.keep_lo, keep_0=c.keep_lo)[PARTS[part].patches]
        return noise.argsort(1)[:, :max(1, round(c.n_patches * share))]

    def hide_words(self, part, tokens, pad, noise, noise_rate):
        """-> Words: S slots, the part's rate of T, rounded up."""
        c, T = self.config, tokens.shape[1]
        rate, most = dict(some=(c.mask_rate, c.mask_rate), all=(1., 1.),
                          range=(.15 + .6 * noise_rate[:, None], .75))[PARTS[part].words]
        S = math.ceil(T * most)
        start = self.word_start if c.whole_word else None
        slots, used = choose_words(tokens, pad, noise, rate, S, start)
        targets = tokens.gather(1, slots)
        hidden = tokens.scatter(1, slots, torch.where(used, self.mask_id, targets))
        return Words(hidden, slots, used, targets)

    def alone(self, s, fused, match):
        """The layers within a modality. The last says [CLS] alone where joint layers read nothing:
        they read what parts that are fused show, and whole pairs to match. tag reads patches."""
        def states(f, rows, read):
            cls = {p: rows.pop(p) for p in [*rows] if p not in read}
            return together(f, rows) | together(functools.partial(f, n=1), cls)
        seen = [p for p in s.keep if p in [*match, *s.tagged] or p in fused and PARTS[p].sees]
        image = states(self.see, {p: (s.x[p], s.keep[p]) for p in s.keep}, seen)

        hidden = {('masked', p): (s.masked[p].tokens, s.pad[p]) for p in s.masked}
        rows = hidden | {('whole', p): (s.tokens[p], s.pad[p]) for p in s.whole}
        told = [('whole', p) for p in s.whole if p in match or p in fused and p not in s.masked]
        text = states(self.read, rows, [*hidden, *told])
        whole = {p: text['whole', p] for p in s.whole}
        masked = {p: text['masked', p] for p in s.masked}
        return States(image, whole, masked,
                      {p: self.embedding(image[p], self.image_proj) for p in s.contrast},
                      {p: self.embedding(whole[p], self.text_proj, s.pad[p]) for p in s.contrast})

    def pair_up(self, s, mine, ids, noise):
        """What itm judges -> {match: pairs as they are, mismatch: every second has another picture
        and the others other words, hard to tell by itc}; possible (n,) bool: there was such a
        negative in the batch."""
        words, picture, pad, i = (join(d, s.match) for d in (mine.whole, mine.image, s.pad, s.at))
        picture = picture[:, :picture.shape[1] // 2]   # half of it does as well (runs/RESULTS.md)
        own = torch.arange(len(i), device=i.device)
        similar = torch.zeros(len(i), len(i), device=i.device)         # without itc: any other
        if s.contrast:
            z_image, z_text = mine.z(s.match)
            similar = (self.logit_scale.exp().clamp(max=100) * z_text @ z_image.T).detach()
        alike = (ids[:, i, None] == ids[:, None, i]).any(0)            # same video or same sentence
        neg_image, neg_text, possible = self.negatives(similar, alike, noise[i][:, i])
        a = torch.where(own % 2 == 0, own, neg_text)                   # whose words
        b = torch.where(own % 2 == 0, neg_image, own)                  # whose picture
        mismatch = words[a], picture[b], pad[a]
        return dict(match=(words, picture, pad), mismatch=mismatch), possible

    @torch.no_grad()
    def negatives(self, similar, alike, noise):
        """similar (n, n): words i, picture j, as ITC sees them; alike (n, n) bool: not to be chosen
        -> picture for each words (n,), words for each picture (n,), possible (n,) bool. Drawn from
        softmax(similar) by the Gumbel trick (ALBEF)."""
        gumbel = -(-noise.clamp(1e-9, 1 - 1e-7).log()).log()
        score = (similar.float() + gumbel).masked_fill(alike, -math.inf)
        return score.argmax(1), score.argmax(0), ~alike.all(1)

    # --- objectives ---------------------------------------------------------------------------

    def word_logits(self, states):
        """Normalised states (..., D) -> (..., V). Call it on masked positions only: this is the
        widest matrix of the model."""
        V = self.config.vocab_size
        weight = self.tok_embed.weight             # all of it: a slice would cost its backward pass
        if states.is_cuda:                         # tensor cores want rows of whole 128 bytes
            weight = F.pad(weight, (0, 0, 0, -len(weight) % 64))
        bias = F.pad(self.mlm_bias, (0, len(weight) - V))
        return F.linear(self.mlm_head(states), weight, bias)[..., :V]

    def mlm_loss(self, fused, masked, soft):
        """Masked language modelling (BERT, 1810.04805). fused[part] words (n, 1 + T, D) first,
        masked[part] Words, soft[part] (n, S, V) the teacher's distribution (ALBEF)
        -> {mlm, mlm/part}."""
        states = [take(fused[p][0][:, 1:], w.slots).flatten(0, 1) for p, w in masked.items()]
        logits = self.word_logits(torch.cat(states)).float()           # (all slots, V)
        targets = torch.cat([w.targets.flatten() for w in masked.values()])
        error = F.cross_entropy(logits, targets, reduction='none')
        if soft:
            soft = torch.cat([soft[p].flatten(0, 1) for p in masked]).float()
            softly = F.cross_entropy(logits, soft, reduction='none')
            error = (1 - self.alpha) * error + self.alpha * softly
        pieces = error.split([w.used.numel() for w in masked.values()])
        return by_part('mlm', {p: (piece.view_as(w.used), w.used)
                               for (p, w), piece in zip(masked.items(), pieces)})

    @torch.no_grad()
    def soft_words(self, s, taught):
        """The teacher's distribution for each masked word -> {part: (n, S, V)}."""
        fused = together(self.teacher.fuse_words, {p: taught.shown(p, s) for p in s.masked})
        return {p: self.teacher.word_logits(take(fused[p][0][:, 1:], words.slots)).softmax(-1)
                for p, words in s.masked.items()}

    def mim_loss(self, fused, s):
        """Masked image modelling, on removed patches only (MAE, 2111.06377; with words M3AE,
        2205.14204) -> {mim, mim/part}."""
        rows, gone = {}, {}
        for p in s.painted:
            text, picture, _ = fused[p]
            n, N, _ = s.x[p].shape
            if picture is None:                                        # from the words alone
                keep = torch.zeros(n, 0, dtype=torch.long, device=s.x[p].device)
                canvas = self.predictor.canvas(text[:, :0], keep)
            else:
                keep = s.keep[p]
                canvas = self.predictor.canvas(picture[:, 1:], keep)
            rows[p] = (text, canvas, None if text is None else s.pad[p])
            gone[p] = torch.ones(n, N, device=s.x[p].device).scatter(1, keep, 0.)      # 1 = removed
        painted = together(self.predictor, rows)
        errors = {}
        for p in s.painted:
            error = F.mse_loss(painted[p].float(), self.mim_targets(s.x[p]), reduction='none')
            errors[p] = (error.mean(2), gone[p])
        return by_part('mim', errors)

    def mim_targets(self, x):
        """Normalised patches (B, N, P) -> what the predictor shall tell of each."""
        if self.config.mim_target == 'norm_pix':
            return (x - x.mean(2, keepdim=True)) / (x.var(2, keepdim=True) + 1e-6).sqrt()
        return x

    def itc_loss(self, image, text, ids, teacher):
        """Image-text contrast over the global batch, both ways (CLIP, 2103.00020).

        image, text (n, proj_dim) of unit length; ids (2, n) of video and sentence: neither frames
        of one video nor equal sentences are negatives. teacher (image, text) or None: its
        embeddings are the candidates, with a queue of former ones, and soft targets (ALBEF)."""
        c, n = self.config, len(image)
        with no_autocast(image):                                       # bfloat16 is too coarse
            images, texts = (gather(z) for z in (teacher or (image, text)))
            new = images, texts, gather(ids.T).T                       # of all ranks
            other_images, other_texts, other_ids = self.with_queue(*new)

            # the columns of the true pairs, and those that are not to be counted
            own = n * rank() + torch.arange(n, device=image.device)
            alike = (ids[:, :, None] == other_ids[:, None]).any(0) | (other_ids[0] < 0)
            alike = alike.scatter(1, own[:, None], False)
            scale = self.logit_scale.exp().clamp(max=100)

            def terms(query, others, taught):
                logits = (scale * query @ others.T).masked_fill(alike, -1e4)
                hard = F.cross_entropy(logits, own) / 2
                if not c.distill:
                    return [hard]
                with torch.no_grad():
                    target = (scale * taught @ others.T).masked_fill(alike, -1e4).softmax(1)
                return [hard * (1 - self.alpha), self.alpha * F.cross_entropy(logits, target) / 2]
            soft_image, soft_text = teacher or (None, None)
            loss = sum(terms(image, other_texts, soft_image) + terms(text, other_images, soft_text))
            if c.queue_size and self.training:
                self.enqueue(*new)
        return loss

    def with_queue(self, images, texts, ids):
        if not self.config.queue_size:
            return images, texts, ids
        return (torch.cat([images, self.queue_image]), torch.cat([texts, self.queue_text]),
                torch.cat([ids, self.queue_ids], 1))

    @torch.no_grad()
    def enqueue(self, images, texts, ids):
        n = min(len(images), self.config.queue_size)                   # no place twice
        at = (self.queue_at + torch.arange(n, device=images.device)) % self.config.queue_size
        self.queue_image[at] = images[:n].to(self.queue_image.dtype)
        self.queue_text[at] = texts[:n].to(self.queue_text.dtype)
        self.queue_ids[:, at] = ids[:, :n]
        self.queue_at.copy_((self.queue_at + n) % self.config.queue_size)

    def itm_loss(self, match, mismatch, possible):
        """Image-text matching: is this the right pair? Fused words (n, 1 + T, D), judged by [CLS];
        possible (n,) bool: the mismatched ones to count (ALBEF)."""
        logits = self.itm_head(torch.cat([match[:, 0], mismatch[:, 0]])).float()
        always = torch.ones_like(possible)
        right = torch.cat([always, ~always]).long()
        error = F.cross_entropy(logits, right, reduction='none')
        return masked_mean(error[None], torch.cat([always, possible])[None])

    def psl_loss(self, s, mine, taught, fused):
        """Pseudo-labelled keywords: the words that the pair's fused [CLS] attends to are to be told
        from the picture alone (SIMLA, 2203.14395)."""
        pad, tokens = join(s.pad, s.salient), join(s.tokens, s.salient)
        before = [fused[p][2] for p in (['match'] if s.match else s.salient)]
        votes = self.votes(torch.cat(before), pad)
        image = torch.cat([mine.image[p][:, 0] for p in s.salient])    # (n, D): unimodal [CLS]
        soft = taught and torch.cat([taught.image[p][:, 0] for p in s.salient])
        return self.keyword_loss(image, soft, votes, tokens, pad[:, 1:])

    def keyword_loss(self, image, taught, votes, tokens, pad):
        """4 tokens per head, the 5 with most votes, BCE over the vocabulary. image (n, D), taught
        likewise or None, votes (n, n_head, T), tokens, pad (n, T)."""
        n, T = tokens.shape
        votes = votes.masked_fill(pad[:, None], 0.)
        ballot = torch.zeros_like(votes).scatter(2, votes.topk(min(4, T), 2).indices, 1.)
        count, at = ballot.sum(1).masked_fill(pad, -1).topk(min(5, T), 1)
        target = image.new_zeros(n, self.config.vocab_size)            # said twice: once
        target = target.scatter_reduce(1, tokens.gather(1, at), (count > 0).to(image.dtype), 'amax')
        z = F.normalize(self.image_proj(image).float(), dim=-1)
        if taught is not None:
            with torch.no_grad():
                z_taught = F.normalize(self.teacher.image_proj(taught).float(), dim=-1)
                soft = self.teacher.keyword_head(z_taught).float().sigmoid()
                target = (1 - self.alpha) * target + self.alpha * soft
        return F.binary_cross_entropy_with_logits(self.keyword_head(z).float(), target)

    @torch.no_grad()
    def votes(self, before, pad):
        """States before the last layer (n, 1 + T + 1 + K, D), pad (n, 1 + T)
        -> how much the fused [CLS] attends to each word (n, n_head, T)."""
        mask = F.pad(~pad, (0, before.shape[1] - pad.shape[1]), value=True)[:, None, None]
        last = self.blocks[-1]
        return last.attn.cls_row(last.norm1(before), mask)[:, :, 1:pad.shape[1]]

    def tag_loss(self, s, mine):
        """Image tagging: is this content word said of the picture (Tag2Text, 2303.05657)? Some
        patch has to say it, with the head that fills in words (multiple instances, 1411.4952)."""
        tokens, pad = join(s.tokens, s.tagged), join(s.pad, s.tagged)[:, 1:]
        said = ((tokens[:, :, None] == self.keywords) & ~pad[:, :, None]).any(1).float()    # (n, C)
        tags = self.tags(join(mine.image, s.tagged))
        return F.binary_cross_entropy_with_logits(tags, said, reduction='none').sum(1).mean()

    def tags(self, image):
        """Unimodal states of pictures (n, 1 + K, D) -> logits (n, C) of the content words."""
        each = F.linear(self.mlm_head(self.norm(image[:, 1:])), self.tok_embed(self.keywords))
        some = each.float().logsumexp(1) - math.log(each.shape[1])     # of (n, K, C), whatever K
        return some + self.mlm_bias[self.keywords] + self.tag_bias

    # --- use ----------------------------------------------------------------------------------

    @torch.no_grad()
    def paint(self, tokens, pad):
        """Words (B, T), pad (B, 1 + T) -> the picture they suggest, normalised patches (B, N, P).
        Nothing but the words goes in."""
        text, _, _ = self.fuse(self.read(tokens, pad), None, pad)
        nowhere = torch.zeros(len(tokens), 0, dtype=torch.long, device=tokens.device)
        return self.predictor(text, self.predictor.canvas(text[:, :0], nowhere), pad).float()

    @torch.no_grad()
    def write(self, patches, length=16, steps=None):
        """Pictures (B, N, P) uint8 -> words (B, length) from nothing else: all are [MASK], and each
        step keeps the surest (Mask-Predict, 1904.09324); without a number of steps, one word."""
        B, device, steps = len(patches), patches.device, steps or length
        image = self.see(self.normalise(patches))
        tokens = torch.full((B, length), self.mask_id, device=device)
        pad = torch.zeros(B, 1 + length, dtype=torch.bool, device=device)
        for step in range(steps):
            text, _, _ = self.fuse(self.read(tokens, pad), image, pad)
            p, best = self.word_logits(text[:, 1:]).float().softmax(-1).max(-1)        # (B, length)
            blank = tokens == self.mask_id
            p = p.masked_fill(~blank, 2.)                              # what is written stays
            surest = p.topk(math.ceil(length * (step + 1) / steps)).indices
            written = torch.where(blank, best, tokens)
            tokens = tokens.scatter(1, surest, written.gather(1, surest))
        return tokens

    def image_embedding(self, patches, ids_keep=None):
        """uint8 patches (B, N, P), those that stay (B, K) -> ITC embeddings (B, proj_dim)."""
        return self.embedding(self.see(self.normalise(patches), ids_keep, 1), self.image_proj)

    def text_embedding(self, tokens, pad):
        """Words (B, T), pad (B, 1 + T) -> ITC embeddings (B, proj_dim)."""
        return self.embedding(self.read(tokens, pad, 1), self.text_proj, pad)

    def read_pictures(self, pictures):
        """[B PIL pictures] -> patches (B, N, P) uint8: the middle square, as in evaluation."""
        from data.pictures import middle_square
        c = self.config
        a, b = (c.full_size - c.image_size) // 2, (c.full_size + c.image_size) // 2
        pixels = np.stack([middle_square(p, c.full_size)[a:b, a:b] for p in pictures])
        return patchify(torch.from_numpy(pixels).to(self.pixel_mean.device), c.patch_size)

    def tokenise(self, texts):
        """[B strings] -> tokens (B, T) in the model's vocabulary, pad (B, 1 + T). Words beyond
        text_len tokens are not read."""
        T, lookup = self.config.text_len, compact_lookup(self.vocab.cpu().numpy())
        tokens = torch.zeros(len(texts), T, dtype=torch.long)
        pad = torch.ones(len(texts), 1 + T, dtype=torch.bool)
        for i, text in enumerate(texts):
            ids = gpt2_encoding().encode_ordinary(' ' + ' '.join(text.split()))
            ids = torch.from_numpy(compact(np.array(ids, int), lookup)[:T])
            tokens[i, :len(ids)] = ids
            pad[i, :1 + len(ids)] = False
        return tokens.to(self.vocab.device), pad.to(self.vocab.device)

    @torch.no_grad()
    def encode_image(self, pictures):
        """PIL picture(s) -> unit vectors (B, proj_dim); (proj_dim,) for a single one."""
        if not isinstance(pictures, (list, tuple)):
            return self.encode_image([pictures])[0]
        return self.image_embedding(self.read_pictures(pictures))

    @torch.no_grad()
    def encode_text(self, texts):
        """String(s) -> unit vectors (B, proj_dim); (proj_dim,) for a single one."""
        if isinstance(texts, str):
            return self.encode_text([texts])[0]
        return self.text_embedding(*self.tokenise(texts))

# ----------------------------------------------------------------------------------------------

def by_part(name, errors):
    """{part: (error (n, L), mask (n, L))} -> {name: mean over samples, name/part: of a part's}."""
    means = {p: masked_mean(error, mask) for p, (error, mask) in errors.items()}
    n = sum(len(error) for error, _ in errors.values())
    total = sum(means[p] * (len(error) / n) for p, (error, _) in errors.items())
    if len(means) == 1:
        return {name: total}
    return {name: total} | {f'{name}/{p}': mean for p, mean in means.items()}

def sentence(tokens, pad):
    """One number for each row's words: (B, T), (B, T) -> (B,); equal words, equal numbers."""
    # a prime of 16 bits: up to 32,768 tokens it stays within the 32-bit integers of GPU kernels
    weights = torch.arange(1, tokens.shape[1] + 1, device=tokens.device) * 65_521 + 97
    return ((tokens + 1) * (tokens + 7) * weights * ~pad).sum(1).abs()

def no_autocast(x):
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)

def distributed():
    return (torch.distributed.is_available() and torch.distributed.is_initialized()
            and torch.distributed.get_world_size() > 1)

def rank():
    return torch.distributed.get_rank() if distributed() else 0

class Gather(torch.autograd.Function):
    """(n, ...) of every rank -> (ranks * n, ...), in rank order; a rank's gradient is the sum of
    what all ranks say of its rows."""
    @staticmethod
    def forward(ctx, x):
        every = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(every, x.contiguous())
        return torch.cat(every)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous()
        torch.distributed.all_reduce(grad)
        return grad.chunk(torch.distributed.get_world_size())[rank()]

def gather(x):
    return Gather.apply(x) if distributed() else x

# ----------------------------------------------------------------------------------------------
# a checkpoint

def read_checkpoint(path, device='cpu'):
    """A checkpoint of train.py -> the model in eval mode, and all of the checkpoint: {model,
    model_config, config, iter_num, ...}. Exits with one line if it is none."""
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
        # runs until 2026-11-30 had variants, and a keyword's class for each token
        config = {k: v for k, v in checkpoint['model_config'].items() if 'variant' not in k}
        state = {k: v for k, v in checkpoint['model'].items() if not k.endswith('keyword')}
        model = VLModel(VLConfig(**config))
        model.load_state_dict(state)
    except FileNotFoundError:
        sys.exit(f'error: no checkpoint {path}; train one first: python train.py')
    except (OSError, LookupError, TypeError, AttributeError, RuntimeError, ValueError, EOFError,
            pickle.UnpicklingError) as e:
        sys.exit(f'error: {path} is not a checkpoint of this version of train.py '
                 f'({type(e).__name__}: {str(e)[:200].splitlines()[:1]})')
    return model.to(device).eval(), checkpoint

def load(path, device='cpu'):
    """A checkpoint of train.py -> the model in eval mode."""
    return read_checkpoint(path, device)[0]
