"""One transformer for pictures and words, and the masking objectives that train it. Read top to bottom, in the order of the data.

    import model; m = model.load('out/scenes/best.pt'); m.encode_image(pil) @ m.encode_text('a red circle on the left')
    python model.py --n_unimodal=6          where each GFLOP of a training step goes, per pair, at the reference setting (ViT-B/16, 256 px, all objectives)

Departures from the textbook:
- One stack of identical pre-norm ViT blocks for both modalities. Layers below n_unimodal attend within a modality, the others over
  [text ; image] jointly. n_unimodal = 0 is ViLT / M3AE, n_layer is a CLIP with shared weights, 2/3 of the depth is the default.
- Patches that are masked leave the sequence (MAE); words that are masked become [MASK] (BERT). A light predictor paints patches.
- A batch is cut into fixed parts by position, and each part masks differently: PARTS is the table of every masking objective.
- All randomness is an input: batch['noise_*'] is uniform noise, and a mask or a negative is a pure function of it.
- A teacher, the moving average of the model, exists only where an objective asks it for something.
Shapes: B samples, T text tokens (1 + T with [CLS]), N patches of P values, K of them kept, D width, V vocabulary. A mask is 1 where removed,
pad is 1 where there is no token.
"""
import copy, functools, math, pickle, sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import NamedTuple
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

#            part        words      patches
PARTS = dict(xmm_text  =('some',   'keep_hi'),   # words from the picture and the other words     BERT with an image; SIMLA's XMM, text side
             amm_text  =('all',    'keep_hi'),   # every word from the picture alone              alternate modality masking; CapPa, arXiv:2306.07915
             clean     =('none',   'keep_hi'),   # nothing to fill in: itc and itm only           CLIP, FLIP
             xmm_image =('none',   'keep_lo'),   # patches from the words and the other patches   MAE with a text; SIMLA's XMM, image side
             joint     =('range',  'keep_lo'),   # both at once                                   M3AE, VLC
             amm_image =('none',   None),        # every patch from the words alone               alternate modality masking
             image_only=(None,     'keep_lo'),   # no words                                       MAE
             text_only =('some',   None))        # no patches                                     BERT

@dataclass
class VLConfig:
    image_size: int = 128          # pixels per side that the model sees,
    full_size: int = 160           # a window of a stored picture of this side
    patch_size: int = 16
    text_len: int = 32             # T
    vocab_size: int = 50257        # V
    n_layer: int = 12
    n_unimodal: int = 8            # the dial: layers within a modality, before the joint ones
    n_head: int = 12
    n_embd: int = 768              # D
    predictor_n_layer: int = 2
    proj_dim: int = 256            # of the ITC embedding
    parts: str = 'xmm_text:7,xmm_image:7,amm_text:1,amm_image:1'     # of a batch, by position modulo their sum
    keep_hi: float = .5            # share of the patches kept where words are to be filled in (FLIP, arXiv:2212.00794)
    keep_lo: float = .25           # ... and where patches are (MAE, arXiv:2111.06377)
    mask_rate: float = .4          # share of the words masked in xmm_text and text_only (arXiv:2202.08005)
    whole_word: bool = True        # mask all tokens of a word together (ViLT, arXiv:2102.03334)
    mim_target: str = 'pixels'     # or norm_pix: normalised per patch (MAE), no colour can be seen; or latent: the teacher's states
    mlm: float = 1.                # weights of the objectives; 0: off
    mim: float = 1.
    itc: float = 1.
    itm: float = 0.
    psl: float = 0.
    itc_variant: str = 'infonce'   # or sigmoid (SigLIP, arXiv:2303.15343)
    queue_size: int = 0            # teacher embeddings of earlier batches as further ITC negatives (ALBEF: 65536)
    psl_variant: str = 'content_words'   # or simla, as published
    n_keywords: int = 0            # content words of the vocabulary: what psl chooses from
    distill: float = 0.            # share of the teacher's soft targets in mlm, itc and simla's psl (ALBEF, SIMLA: .4),
    distill_iters: int = 1000      # reached after so many steps
    teacher_momentum: float = .995

    def __post_init__(self):
        self.plan = {}
        try:
            self.plan = {name: int(n) for name, n in (p.split(':') for p in self.parts.split(',')) if int(n)}
            unknown = set(self.plan) - set(PARTS) or not self.plan or min(self.plan.values()) < 0
        except ValueError:
            unknown = {self.parts}
        joint = [p for p in PARTS if p in self.plan and p not in ('clean', 'image_only', 'text_only')] if not unknown else []
        sizes = dict(image_size=1, patch_size=1, text_len=1, vocab_size=1, n_layer=1, n_head=1, n_embd=1, predictor_n_layer=1, proj_dim=1, queue_size=0, distill_iters=1)
        for name in sizes:
            if getattr(self, name) < sizes[name]:
                raise ValueError(f'{name}={getattr(self, name)} must be {sizes[name]} or more')
        for wrong, message in (
                (unknown, f"parts={self.parts!r}: expected name:count,... with names out of {', '.join(PARTS)}"),
                (self.image_size % self.patch_size, f'image_size={self.image_size} is not a multiple of patch_size={self.patch_size}'),
                (self.n_embd % self.n_head, f'n_embd={self.n_embd} is not a multiple of n_head={self.n_head}'),
                (not 0 <= self.n_unimodal <= self.n_layer, f'n_unimodal={self.n_unimodal} must be from 0 to n_layer={self.n_layer}'),
                (self.n_unimodal == self.n_layer and joint, f"n_unimodal=n_layer leaves no joint layers, which {', '.join(joint)} need"),
                (not 0 < self.keep_lo < 1 or not 0 < self.keep_hi <= 1, f'keep_hi={self.keep_hi} and keep_lo={self.keep_lo} are shares of the patches'),
                (not 0 < self.mask_rate <= 1, f'mask_rate={self.mask_rate} must be a share of the words'),
                (not unknown and not any(map(self.has, OBJECTIVES)), f'no objective has a weight and a part of {self.parts} to work on'),
                (self.n_unimodal == self.n_layer and self.itm, 'n_unimodal=n_layer leaves no joint layers, which itm needs'),
                (not unknown and self.n_unimodal < self.n_layer and not any(map(self.has, ('mlm', 'mim', 'itm'))),
                 'nothing uses the joint layers: set n_unimodal=n_layer, or give mlm, mim or itm a weight and a part'),
                (self.itc_variant not in ('infonce', 'sigmoid'), f"itc_variant must be 'infonce' or 'sigmoid', not {self.itc_variant!r}"),
                (self.itc_variant == 'sigmoid' and (self.distill or self.queue_size), 'the sigmoid itc has neither queue nor soft targets'),
                (self.mim_target not in ('pixels', 'norm_pix', 'latent'), f"mim_target must be 'pixels', 'norm_pix' or 'latent', not {self.mim_target!r}"),
                (self.psl_variant not in ('content_words', 'simla'), f"psl_variant must be 'content_words' or 'simla', not {self.psl_variant!r}"),
                (not unknown and self.has('psl') and not self.has('itc') and self.psl_variant == 'simla', "psl_variant='simla' needs itc"),
                (self.n_unimodal == 0 and (self.psl or self.mim_target == 'latent'), 'psl and latent mim look at pictures alone: n_unimodal must be 1 or more'),
                ('joint' in self.plan and not unknown and not self.mlm, 'the part joint masks words for mlm: give it a weight, or take xmm_image'),
                (not 0 <= self.distill < 1, f'distill={self.distill} must be a share below 1')):
            if wrong:
                raise ValueError(message)

    @property
    def n_patches(self):
        return (self.image_size // self.patch_size) ** 2               # N

    def has(self, objective):
        """Whether an objective has a weight and a part to work on."""
        words, patches = zip(*(PARTS[p] for p in self.plan))
        part = dict(mlm=any(w not in (None, 'none') for w in words), mim=any(p in ('xmm_image', 'joint', 'amm_image', 'image_only') for p in self.plan),
                    itc=any(p not in ('image_only', 'text_only') for p in self.plan), itm=any(p in ('xmm_text', 'amm_text', 'clean') for p in self.plan))
        part['psl'] = part['itm'] and self.itm > 0 or 'xmm_image' in self.plan
        return getattr(self, objective) > 0 and part[objective]

    @property
    def teacher(self):
        """Whether an objective needs one."""
        return bool(self.distill or self.queue_size and self.has('itc') or self.has('psl') or self.has('mim') and self.mim_target == 'latent')

OBJECTIVES = 'mlm', 'mim', 'itc', 'itm', 'psl'

# ----------------------------------------------------------------------------------------------------------------------
# patches and masks

def patchify(images, p):
    """(B, H, W, 3) -> (B, N, p * p * 3): patches in raster order, each (row, column, channel)."""
    B, H, W, C = images.shape
    return images.reshape(B, H // p, p, W // p, p, C).transpose(2, 3).reshape(B, -1, p * p * C)

def unpatchify(patches, p):
    """(B, N, p * p * 3) -> (B, H, W, 3), square."""
    B, N, _ = patches.shape
    n = math.isqrt(N)
    return patches.reshape(B, n, n, p, p, 3).transpose(2, 3).reshape(B, n * p, n * p, 3)

def sincos_pos_embed(position, D):
    """Sine-cosine positions (L,) -> (L, D)."""
    angle = position[:, None].float() / 10000 ** (torch.arange(D // 2) / (D // 2))
    return F.pad(torch.cat([angle.sin(), angle.cos()], 1), (0, D % 2))

def grid_pos_embed(n, D):
    """Positions of an n x n grid -> (n * n, D): half of D for each axis. MAE, arXiv:2111.06377."""
    y, x = torch.arange(n).repeat_interleave(n), torch.arange(n).repeat(n)
    return torch.cat([sincos_pos_embed(x, D // 2), sincos_pos_embed(y, D - D // 2)], 1)

def take(x, ids):
    """(B, L, D), (B, K) -> (B, K, D): those rows of each sample."""
    return x.gather(1, ids[..., None].expand(-1, -1, x.shape[-1]))

def choose_words(tokens, pad, noise, rate, n_slots, word_start):
    """Choose the words with the least noise, whole, until a share `rate` of the tokens (at least one) is chosen.

    tokens (B, T), pad (B, T) bool, noise (B, T) uniform, rate float or (B, 1), word_start (V,) bool or None: single tokens
    -> slots (B, n_slots) positions, used (B, n_slots) bool. The number of slots is fixed, so no shape depends on the data."""
    B, T = tokens.shape
    if word_start is not None:
        at = torch.arange(T, device=tokens.device)
        first = torch.where(word_start[tokens] | (at == 0), at, 0).cummax(1).values            # where each token's word starts
        noise = noise.gather(1, first)
    noise = noise.masked_fill(pad, math.inf)
    n = (~pad).sum(1, keepdim=True)
    budget = (n * rate).ceil().clamp(max=n_slots)                      # (B, 1)
    by_noise, slots = noise.sort(dim=1, stable=True)
    end = (noise[:, None] <= by_noise[:, :, None]).sum(2)              # (B, T): tokens up to the end of this one's word, in the order of noise
    rank = torch.arange(T, device=tokens.device)
    used = (rank < budget) & ((end <= budget) | (by_noise == by_noise[:, :1])) & (rank < n)    # the first word may be cut, the others are whole
    return slots[:, :n_slots], used[:, :n_slots]

def masked_mean(loss, mask):
    """Mean over samples of the mean over each sample's positions where mask is 1; samples without any count as 0."""
    mask = mask.to(loss.dtype)
    return ((loss * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()

# ----------------------------------------------------------------------------------------------------------------------
# the trunk

class Attention(nn.Module):
    def __init__(self, D, n_head):
        super().__init__()
        self.n_head = n_head
        self.qkv = nn.Linear(D, 3 * D)
        self.proj = nn.Linear(D, D)

    def forward(self, x, mask):
        B, L, D = x.shape
        q, k, v = self.qkv(x).view(B, L, 3, self.n_head, D // self.n_head).permute(2, 0, 3, 1, 4)         # (B, n_head, L, D / n_head)
        if q.dtype == torch.bfloat16 and q.device.type == 'cpu':       # there its backward pass takes six times as long as in float32 (torch 2.13)
            with torch.autocast('cpu', enabled=False):
                x = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)
        else:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(x.transpose(1, 2).reshape(B, L, D))

    def cls_row(self, x, mask):
        """How much the first position attends to each (B, n_head, L)."""
        B, L, D = x.shape
        (wq, wk, _), (bq, bk, _) = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        q, k = (F.linear(y, w, b).view(B, -1, self.n_head, D // self.n_head).transpose(1, 2) for y, w, b in ((x[:, :1], wq, bq), (x, wk, bk)))
        score = (q @ k.transpose(2, 3)).float() / math.sqrt(D // self.n_head)                  # (B, n_head, 1, L)
        return (score if mask is None else score.masked_fill(~mask, -math.inf)).softmax(-1)[:, :, 0]

class MLP(nn.Module):
    def __init__(self, D):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))

class Block(nn.Module):
    """The standard pre-norm ViT block, by timm's names, so that ViT checkpoints fit."""
    def __init__(self, D, n_head):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(D, eps=1e-6), Attention(D, n_head)
        self.norm2, self.mlp = nn.LayerNorm(D, eps=1e-6), MLP(D)

    def forward(self, x, mask=None):
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))

def run(blocks, x, pad=None):
    """x (B, L, D) through blocks; pad (B, L) bool: keys that nobody may look at, None if there are none."""
    mask = None if pad is None else ~pad[:, None, None]                # (B, 1, 1, L), 1 = look
    for block in blocks:
        x = block(x, mask)
    return x

class Predictor(nn.Module):
    """Paints patches: the fused states of words and kept patches, and mask queries with positions in place of the removed ones, through
    a few narrow blocks -> (B, N, P) for every place. The words alone (amm_image) give the same shape, so both run in one call."""
    def __init__(self, c):
        super().__init__()
        D = max(c.n_embd // 2, 32) // 4 * 4
        self.embed = nn.Linear(c.n_embd, D)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, D))
        self.pos_embed = nn.Parameter(grid_pos_embed(math.isqrt(c.n_patches), D)[None])
        self.blocks = nn.ModuleList(Block(D, max(1, D // 32 if D % 32 == 0 else 1)) for _ in range(c.predictor_n_layer))
        self.norm = nn.LayerNorm(D, eps=1e-6)
        self.head = nn.Linear(D, c.n_embd if c.mim_target == 'latent' else c.patch_size ** 2 * 3)

    def canvas(self, states, ids_keep):
        """Fused states of kept patches (B, K, D) at ids_keep (B, K), mask tokens elsewhere -> (B, N, D')."""
        blank = self.mask_token.expand(len(states), self.pos_embed.shape[1], -1)
        return blank.scatter(1, ids_keep[..., None].expand(-1, -1, blank.shape[2]), self.embed(states).to(blank.dtype))

    def forward(self, text, canvas, pad):
        """text (B, 1 + T, D) or None, canvas (B, N, D'), pad (B, 1 + T) or None -> (B, N, P)."""
        x, N = canvas + self.pos_embed, canvas.shape[1]
        if text is not None:
            x = torch.cat([self.embed(text), x], 1)
            pad = F.pad(pad, (0, N))
        return self.head(self.norm(run(self.blocks, x, pad)[:, -N:]))

HIGH = 'xmm_text', 'amm_text', 'clean'                                 # parts with (nearly) whole pictures: keep_hi

class Shown(NamedTuple):
    """What a batch shows and hides, by part: its n rows of the batch."""
    at: dict                       # {part: positions in the batch (n,)}
    x: dict                        # normalised patches (n, N, P)
    keep: dict                     # which of them stay (n, K)
    tokens: dict                   # whole words (n, T)
    pad: dict                      # (n, 1 + T), where [CLS] is never padding
    hidden: dict                   # of parts that fill in words: tokens with [MASK] (n, T), slots (n, S), used (n, S), targets (n, S)
    clean: list                    # parts whose whole words are read
    contrast: list                 # parts that itc compares: their pictures and whole words
    match: list                    # parts that itm judges: whole words with (nearly) whole pictures
    salient: list                  # parts that psl asks for keywords: where fused whole words are looked at

def join(by_part, names):
    """Rows of several parts, one part after the other."""
    return torch.cat([by_part[p] for p in names])

def split(rows, names, at):
    """The inverse of join -> {part: rows}."""
    return dict(zip(names, rows.split([len(at[p]) for p in names])))

class VLModel(nn.Module):
    def __init__(self, config, vocab=None, word_start=None, pixel_mean=(.5, .5, .5), pixel_std=(.25, .25, .25), keyword=None):
        """vocab (V,) the GPT-2 id of each token, word_start (V + 2,) whether it starts a word, keyword (V,) its class for psl or -1."""
        super().__init__()
        self.config = c = config
        D, P, V = c.n_embd, c.patch_size ** 2 * 3, c.vocab_size
        self.mask_id, self.cls_id = V, V + 1                           # [MASK] and [CLS] come after the data's own tokens
        self.register_buffer('vocab', torch.arange(V) if vocab is None else torch.as_tensor(vocab))       # the GPT-2 id of each token
        self.register_buffer('word_start', torch.ones(V + 2, dtype=torch.bool) if word_start is None else torch.as_tensor(word_start))
        self.register_buffer('keyword', torch.arange(V) if keyword is None else torch.as_tensor(keyword))
        self.register_buffer('pixel_mean', torch.as_tensor(pixel_mean, dtype=torch.float32))
        self.register_buffer('pixel_std', torch.as_tensor(pixel_std, dtype=torch.float32))
        self.tok_embed = nn.Embedding(V + 2, D)
        self.text_pos_embed = nn.Parameter(sincos_pos_embed(torch.arange(1 + c.text_len), D)[None])                 # (1, 1 + T, D)
        self.type_embed = nn.Parameter(torch.zeros(2, 1, D))           # text, image
        self.patch_embed = nn.Linear(P, D)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, D))
        self.pos_embed = nn.Parameter(torch.cat([torch.zeros(1, D), grid_pos_embed(math.isqrt(c.n_patches), D)])[None])      # (1, 1 + N, D)
        self.blocks = nn.ModuleList(Block(D, c.n_head) for _ in range(c.n_layer))
        if c.has('mlm') or c.has('mim') or c.has('itm'):               # a head exists only for an objective in use: every parameter has a gradient
            self.norm = nn.LayerNorm(D, eps=1e-6)
        if c.has('mlm'):
            self.mlm_head = nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.LayerNorm(D))
            self.mlm_bias = nn.Parameter(torch.zeros(V))
        if c.has('mim'):
            self.predictor = Predictor(c)
        if c.has('itc'):
            self.text_proj, self.image_proj = (nn.Sequential(nn.LayerNorm(D), nn.Linear(D, c.proj_dim, bias=False)) for _ in range(2))
            self.logit_scale = nn.Parameter(torch.tensor(math.log(10. if c.itc_variant == 'sigmoid' else 1 / .07)))
            if c.itc_variant == 'sigmoid':
                self.logit_bias = nn.Parameter(torch.tensor(-10.))
        if c.has('itm'):
            self.itm_head = nn.Linear(D, 2)
        if c.has('psl'):
            self.keyword_head = nn.Sequential(nn.LayerNorm(D), nn.Linear(D, c.n_keywords)) if c.psl_variant == 'content_words' else nn.Linear(c.proj_dim, V)
        self.init_weights()
        words, patches = zip(*(PARTS[p] for p in c.plan))
        unused = [self.tok_embed.weight, self.text_pos_embed] * (not any(words)) + [
            *self.patch_embed.parameters(), self.pos_embed, self.cls_token] * (not any(patches) and not c.has('itc'))
        for p in unused:                                               # BERT sees no patches, MAE no words
            p.requires_grad_(False)
        self.teacher = None
        if c.teacher:
            self.teacher = copy.deepcopy(self).requires_grad_(False).eval()
            self.register_buffer('alpha', torch.zeros(()))             # the share of soft targets, now
        if c.teacher and c.queue_size and c.has('itc'):
            for name in 'queue_image', 'queue_text':
                self.register_buffer(name, torch.zeros(c.queue_size, c.proj_dim))
            self.register_buffer('queue_ids', torch.full((2, c.queue_size), -1))               # video and words of each; -1: empty
            self.register_buffer('queue_at', torch.zeros((), dtype=torch.long))

    def train(self, mode=True):
        """The teacher stays in eval mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    @torch.no_grad()
    def follow(self, it):
        """After step `it`: the teacher moves towards the model, slowly after the first steps; the share of its soft targets rises."""
        if self.teacher is not None:
            momentum = min(self.config.teacher_momentum, (1 + it) / (10 + it))
            torch._foreach_lerp_(list(self.teacher.parameters()), [p for n, p in self.named_parameters() if not n.startswith('teacher.')], 1 - momentum)
            self.alpha.fill_(self.config.distill * min(1, (it + 1) / self.config.distill_iters))

    def init_weights(self):
        """Xavier for matrices (MAE), less 1 / sqrt(2 n_layer) at the end of each residual branch (GPT-2), N(0, 0.02) for special vectors.
        Embeddings of words come in at unit scale, like patches and positions, and go out (tied) so that logits start small."""
        D = self.config.n_embd
        for name, p in self.named_parameters():
            if name == 'tok_embed.weight':
                nn.init.normal_(p, std=D ** -.5)
            elif p.dim() == 2:
                nn.init.xavier_uniform_(p, gain=(2 * self.config.n_layer) ** -.5 if name.endswith(('attn.proj.weight', 'mlp.fc2.weight')) else 1.)
            elif p.dim() > 2 and not name.endswith('pos_embed'):
                nn.init.normal_(p, std=.02)
            elif name.endswith('bias') and name != 'logit_bias':
                nn.init.zeros_(p)
            elif name == 'mlm_head.2.weight':
                nn.init.constant_(p, .3)                               # small logits: the first loss is ln V
        if self.config.has('psl'):                                     # few words are keywords
            nn.init.constant_((self.keyword_head if self.config.psl_variant == 'simla' else self.keyword_head[1]).bias, -4.)

    # --- states -----------------------------------------------------------------------------------------------------

    def normalise(self, patches):
        """uint8 patches (B, N, P) -> float, zero mean and unit variance over the training set."""
        B, N, P = patches.shape
        x = (patches.view(B, N, P // 3, 3).float() / 255 - self.pixel_mean) / self.pixel_std
        return x.view(B, N, P)

    def embed_text(self, tokens):
        """(B, T) -> (B, 1 + T, D), [CLS] first."""
        cls = torch.full_like(tokens[:, :1], self.cls_id)
        return self.tok_embed(torch.cat([cls, tokens], 1)) * self.config.n_embd ** .5 + self.text_pos_embed[:, :1 + tokens.shape[1]] + self.type_embed[0]

    def embed_image(self, x, ids_keep=None):
        """Normalised patches (B, N, P), of which ids_keep (B, K) stay (None: all) -> (B, 1 + K, D)."""
        pos = self.pos_embed[:, 1:].expand(len(x), -1, -1)
        if ids_keep is not None:
            x, pos = take(x, ids_keep), take(pos, ids_keep)
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        return torch.cat([cls.to(pos.dtype), self.patch_embed(x) + pos], 1) + self.type_embed[1]

    def unimodal(self, x, pad=None):
        """The layers within a modality: (B, L, D) -> (B, L, D)."""
        return run(self.blocks[:self.config.n_unimodal], x, pad)

    def fuse(self, text, image, pad):
        """The joint layers over unimodal states (B, 1 + T, D) and (B, 1 + K, D), either may be None; pad (B, 1 + T)
        -> normalised states of both, None for what is absent; and the states before the last layer."""
        L = 0 if text is None else text.shape[1]
        if image is None or text is None:
            x, pad = (text, pad) if image is None else (image, None)
        else:
            x, pad = torch.cat([text, image], 1), F.pad(pad, (0, image.shape[1]))
        joint = self.blocks[self.config.n_unimodal:]
        before = run(joint[:-1], x, pad)
        x = self.norm(run(joint[-1:], before, pad))
        return x[:, :L] if L else None, x[:, L:] if image is not None else None, before

    def embedding(self, states, proj, pad=None):
        """Unimodal states -> ITC embedding (B, proj_dim) of unit length, from [CLS]. With n_unimodal = 0: all layers on one modality alone."""
        if self.config.n_unimodal == 0:
            states = run(self.blocks, states, pad)
        return F.normalize(proj(states[:, 0]).float(), dim=-1)

    # --- one step -----------------------------------------------------------------------------------------------------

    def forward(self, batch):
        """All passes and objectives of one batch -> (loss, {name: detached scalar}).

        batch: patches (B, N, P) uint8, tokens (B, T), pad (B, T) bool, video (B,) ids, and uniform noise in [0, 1): noise_image (B, N),
        noise_text (B, T), noise_rate (B,), with itm noise_itm (B, B). Four steps: what each part shows and hides; the layers within a modality; the
        joint layers; the objectives on their states. Parts of one shape share a pass, so there are at most six shapes, whatever is in a batch."""
        c, s = self.config, self.show(batch)
        image, whole, masked = self.alone(s)
        z = self.embeddings(s, image, whole) if s.contrast else None
        if self.teacher is not None:                                   # it sees the same patches and the same masked words
            with torch.no_grad():
                taught_image, taught_whole, taught_masked = self.teacher.alone(s)
                taught_z = self.teacher.embeddings(s, taught_image, taught_whole) if s.contrast else None

        # a part shows its masked words where it fills them in; itm has rows of its own: pairs as they are, and re-paired ones
        ids = torch.stack([batch['video'], sentence(batch['tokens'], batch['pad'])])           # (2, B): neither of these may be a negative
        words, pictures, pad = {p: masked.get(p, whole.get(p)) for p in s.at}, dict(image), dict(s.pad)
        if s.match:
            possible = self.re_pair(s, words, pictures, pad, whole, z, ids, batch['noise_itm'])
        text, picture, before = self.joint(words, pictures, pad, [
            [p for p in s.hidden if p in ('xmm_text', 'amm_text')] + ['match', 'mismatch'] * bool(s.match),
            ['xmm_image'] * ('xmm_image' in s.at and (c.has('mim') or s.salient == ['xmm_image'])) + ['joint'] * ('joint' in s.at),
            ['amm_image'] * ('amm_image' in s.at and c.has('mim')) + ['text_only'] * ('text_only' in s.hidden),
            ['image_only'] * ('image_only' in s.at and c.has('mim'))])

        losses = {}                                                    # a batch too small for every part may lack some
        if s.hidden:
            losses |= self.mlm_loss(text, s.hidden, self.soft_words(s, taught_masked, taught_image) if c.distill else {})
        if c.has('mim') and {'xmm_image', 'joint', 'amm_image', 'image_only'} & set(s.at):
            losses |= self.mim_loss(text, picture, pad, s.keep, s.x)
        if s.contrast:
            with nullcontext() if z[0].is_meta else torch.autocast(z[0].device.type, enabled=False):             # bfloat16 is too coarse for logits up to 100
                losses['itc'] = self.itc_loss(*z, torch.cat([ids[:, s.at[p]] for p in s.contrast], 1), taught_z if c.distill or c.queue_size else None)
        if s.match:
            losses['itm'] = self.itm_loss(text['match'], text['mismatch'], possible)
        if s.salient:
            votes = self.votes(before['match'] if s.match else join(before, s.salient), join(pad, s.salient))
            cls, taught_cls, tokens = join(image, s.salient)[:, 0], join(taught_image, s.salient)[:, 0], join(s.tokens, s.salient)
            losses['psl'] = self.psl_loss(cls, taught_cls, votes, tokens, join(pad, s.salient)[:, 1:])
        loss = sum((getattr(c, name) * value for name, value in losses.items() if '/' not in name), batch['noise_rate'].new_zeros(()))
        return loss, {name: value.detach() for name, value in losses.items()}

    def show(self, batch):
        """What each part of a batch shows, hides and is asked for -> Shown."""
        c, at = self.config, part_rows(self.config, len(batch['tokens']), batch['tokens'].device)
        def of(*names): return [p for p in names if p in at]
        def rows(x): return {p: x[i] for p, i in at.items()}
        x, tokens, pad = (rows(v) for v in (self.normalise(batch['patches']), batch['tokens'], F.pad(batch['pad'], (1, 0))))
        contrast = of('xmm_text', 'amm_text', 'clean', 'xmm_image', 'joint', 'amm_image') * c.has('itc')
        match = of('xmm_text', 'amm_text', 'clean') * c.has('itm')
        salient = (match or of('xmm_image')) * c.has('psl')
        clean = [p for p in of(*PARTS) if p in contrast + match + salient + ['xmm_image', 'amm_image'] * c.has('mim')]
        hidden = {p: self.hide_words(p, tokens[p], pad[p][:, 1:], batch['noise_text'][at[p]], batch['noise_rate'][at[p]])
                  for p in of('xmm_text', 'amm_text', 'joint', 'text_only') * c.has('mlm')}
        share = {p: c.keep_hi if p in HIGH else c.keep_lo for p in of(*PARTS) if p != 'text_only' and (p != 'amm_image' or p in contrast)}
        keep = {p: batch['noise_image'][at[p]].argsort(1)[:, :max(1, round(x[p].shape[1] * k))] for p, k in share.items()}
        return Shown(at, x, keep, tokens, pad, hidden, clean, contrast, match, salient)

    def alone(self, s):
        """The layers within a modality -> states of pictures (n, 1 + K, D), of whole words and of hidden words (n, 1 + T, D), each {part: states}."""
        image = {}
        for names in [p for p in s.keep if p in HIGH], [p for p in s.keep if p not in HIGH]:                     # one call for each number of patches
            if names:
                image |= split(self.unimodal(self.embed_image(join(s.x, names), join(s.keep, names))), names, s.at)
        if not s.clean and not s.hidden:
            return image, {}, {}
        tokens = [s.tokens[p] for p in s.clean] + [s.hidden[p][0] for p in s.hidden]           # whole and hidden words in one call
        states = self.unimodal(self.embed_text(torch.cat(tokens)), join(s.pad, [*s.clean, *s.hidden]))
        n = sum(len(s.at[p]) for p in s.clean)
        return image, split(states[:n], s.clean, s.at), split(states[n:], s.hidden, s.at)

    def embeddings(self, s, image, whole):
        """ITC embeddings of the contrasted parts: pictures (n, proj_dim), whole words (n, proj_dim)."""
        return (torch.cat([self.embedding(image[p], self.image_proj) for p in s.contrast]),
                torch.cat([self.embedding(whole[p], self.text_proj, s.pad[p]) for p in s.contrast]))

    def re_pair(self, s, words, pictures, pad, whole, z, ids, noise):
        """Add to words, pictures, pad the rows that itm judges: 'match', pairs of whole words and their picture; 'mismatch', where every second pair gets
        another picture and the others get other words, both hard to tell by itc -> possible (n,) bool: the batch had such a negative."""
        i, own = torch.cat([s.at[p] for p in s.match]), torch.arange(sum(len(s.at[p]) for p in s.match), device=noise.device)
        similar = torch.zeros(len(i), len(i), device=noise.device)     # without itc: any other
        if z is not None:
            z_image, z_text = (join(split(v.detach(), s.contrast, s.at), s.match) for v in z)
            similar = self.logit_scale.detach().exp().clamp(max=100) * z_text @ z_image.T
        alike = (ids[:, i, None] == ids[:, None, i]).any(0)            # (n, n)
        neg_image, neg_text, possible = self.negatives(similar, alike, noise[i][:, i])
        other_words, other_image = torch.where(own % 2 == 0, own, neg_text), torch.where(own % 2 == 0, neg_image, own)
        words['match'], pictures['match'], pad['match'] = (join(d, s.match) for d in (whole, pictures, pad))
        words['mismatch'], pad['mismatch'], pictures['mismatch'] = words['match'][other_words], pad['match'][other_words], pictures['match'][other_image]
        return possible

    def joint(self, words, pictures, pad, groups):
        """The joint layers, one call for each group of parts of one shape -> normalised states of words and pictures, and all states before the last
        layer, each {part: states}. amm_image fuses its words alone: that it has a picture is for itc only."""
        text, picture, before = {}, {}, {}
        for names in groups:
            if names:
                has_words, has_picture = words.get(names[0]) is not None, names[0] in pictures and names[0] != 'amm_image'
                sizes = [len((words if has_words else pictures)[p]) for p in names]
                t, v, b = self.fuse(join(words, names) if has_words else None, join(pictures, names) if has_picture else None, join(pad, names))
                for states, of_part in (t, text), (v, picture), (b, before):
                    of_part |= dict(zip(names, states.split(sizes))) if states is not None else {}
        return text, picture, before

    @torch.no_grad()
    def soft_words(self, s, masked, image):
        """The teacher's distribution for each hidden word -> {part: (n, S, V)}."""
        text = {p: self.teacher.fuse(masked[p], image.get(p), s.pad[p])[0] for p in s.hidden}
        return {p: self.teacher.word_logits(take(text[p][:, 1:], s.hidden[p][1])).softmax(-1) for p in s.hidden}

    def hide_words(self, part, tokens, pad, noise, noise_rate):
        """-> tokens with [MASK] (n, T), slots (n, S) where, used (n, S), targets (n, S). S is the part's rate of T, rounded up."""
        T, c = tokens.shape[1], self.config
        rate, S = {'some': (c.mask_rate, math.ceil(T * c.mask_rate)), 'all': (1., T),
                   'range': (.15 + .6 * noise_rate[:, None], math.ceil(.75 * T))}[PARTS[part][0]]
        slots, used = choose_words(tokens, pad, noise, rate, S, self.word_start if c.whole_word else None)
        targets = tokens.gather(1, slots)
        return tokens.scatter(1, slots, torch.where(used, self.mask_id, targets)), slots, used, targets

    # --- objectives ---------------------------------------------------------------------------------------------------

    def word_logits(self, states):
        """Normalised states (..., D) -> (..., V). Call it on masked positions only: this is the widest matrix of the model."""
        return F.linear(self.mlm_head(states), self.tok_embed.weight[:self.config.vocab_size], self.mlm_bias)

    def mlm_loss(self, text, hidden, soft):
        """Masked language modelling. text[part] (n, 1 + T, D), hidden[part] from hide_words, soft[part] (n, S, V) the teacher's distribution or
        nothing -> {mlm, mlm/part}. BERT, arXiv:1810.04805; distillation: ALBEF, arXiv:2107.07651."""
        names = list(hidden)
        states = torch.cat([take(text[p][:, 1:], hidden[p][1]).flatten(0, 1) for p in names])                    # (slots, D)
        logits = self.word_logits(states).float()
        error = F.cross_entropy(logits, torch.cat([hidden[p][3].flatten() for p in names]), reduction='none')
        if soft:
            error = (1 - self.alpha) * error + self.alpha * F.cross_entropy(logits, torch.cat([soft[p].flatten(0, 1) for p in names]).float(), reduction='none')
        error = dict(zip(names, error.split([hidden[p][1].numel() for p in names])))
        return self.by_part('mlm', {p: (error[p].view_as(hidden[p][1]), hidden[p][2]) for p in names})

    def mim_loss(self, text, picture, pad, ids_keep, x):
        """Masked image modelling, on removed patches only -> {mim, mim/part}. MAE, arXiv:2111.06377; with words: M3AE, arXiv:2205.14204."""
        errors = {}
        for names in [p for p in ('xmm_image', 'joint', 'amm_image') if p in x], [p for p in ('image_only',) if p in x]:
            if names:
                gone = {p: torch.ones(x[p].shape[:2], device=x[p].device) for p in names}      # 1 = removed
                gone |= {p: gone[p].scatter(1, ids_keep[p], 0.) for p in names if p in picture}
                canvas = [self.predictor.canvas(picture[p][:, 1:], ids_keep[p]) if p in picture else self.predictor.canvas(
                    text[p][:, :0], x[p].new_zeros(len(x[p]), 0, dtype=torch.long)) for p in names]
                with_words = names[0] in text
                painted = self.predictor(torch.cat([text[p] for p in names]) if with_words else None, torch.cat(canvas),
                                         torch.cat([pad[p] for p in names]) if with_words else None)
                painted = dict(zip(names, painted.split([len(x[p]) for p in names])))
                error = F.smooth_l1_loss if self.config.mim_target == 'latent' else F.mse_loss
                errors |= {p: (error(painted[p].float(), self.mim_targets(x[p]), reduction='none').mean(2), gone[p]) for p in names}
        return self.by_part('mim', errors)

    @torch.no_grad()
    def mim_targets(self, x):
        """Normalised patches (B, N, P) -> what the predictor shall tell of each: its pixels; these with its own mean and variance removed; or the
        teacher's unimodal state, normalised, of the whole picture (data2vec, arXiv:2202.03555)."""
        if self.config.mim_target == 'latent':
            return F.layer_norm(self.teacher.unimodal(self.teacher.embed_image(x))[:, 1:].float(), (self.config.n_embd,))
        return (x - x.mean(2, keepdim=True)) / (x.var(2, keepdim=True) + 1e-6).sqrt() if self.config.mim_target == 'norm_pix' else x

    def by_part(self, name, errors):
        """{part: (error (n, L), mask (n, L))} -> {name: mean over all samples, name/part: mean over the part's}."""
        means = {part: masked_mean(error, mask) for part, (error, mask) in errors.items()}
        n = sum(len(error) for error, _ in errors.values())
        total = sum(means[part] * (len(errors[part][0]) / n) for part in means)
        return {name: total} | ({f'{name}/{part}': value for part, value in means.items()} if len(means) > 1 else {})

    def itc_loss(self, image, text, ids, teacher):
        """Image-text contrast over the global batch, both ways. image, text (n, proj_dim) of unit length; ids (2, n) of video and sentence: frames of
        the same video look and sound alike, the same sentence fits both, so neither is a negative. CLIP, arXiv:2103.00020; sigmoid: SigLIP,
        arXiv:2303.15343. teacher (image, text) or None: its embeddings are the candidates, with a queue of former ones, and softly the targets: ALBEF."""
        c, n, rank = self.config, len(image), torch.distributed.get_rank() if distributed() else 0
        images, texts = (gather(z) for z in (teacher or (image, text)))
        all_ids = gather(ids.T).T
        if c.queue_size and teacher:
            images_q, texts_q, ids_q = torch.cat([images, self.queue_image]), torch.cat([texts, self.queue_text]), torch.cat([all_ids, self.queue_ids], 1)
        else:
            images_q, texts_q, ids_q = images, texts, all_ids
        own = torch.arange(n, device=image.device) + rank * n          # the columns of the true pairs
        alike = ((ids[:, :, None] == ids_q[:, None]).any(0) | (ids_q[0] < 0)) & (own[:, None] != torch.arange(ids_q.shape[1], device=own.device))
        scale = self.logit_scale.exp().clamp(max=100)
        if c.itc_variant == 'sigmoid':
            logits = scale * image @ texts.T + self.logit_bias
            sign = torch.full_like(logits, -1.).scatter(1, own[:, None], 1.)
            return -(F.logsigmoid(sign * logits) * ~alike).sum(1).mean()
        loss = 0
        for query, candidates, taught in (image, texts_q, 0), (text, images_q, 1):
            logits = (scale * query @ candidates.T).masked_fill(alike, -1e4)
            loss = loss + F.cross_entropy(logits, own) / 2 * (1 - self.alpha if c.distill else 1)
            if c.distill:
                target = (scale * teacher[taught] @ candidates.T).masked_fill(alike, -1e4).softmax(1)
                loss = loss + self.alpha * F.cross_entropy(logits, target.detach()) / 2
        if c.queue_size and teacher and self.training:
            with torch.no_grad():
                at = (self.queue_at + torch.arange(len(images), device=own.device)) % c.queue_size
                self.queue_image[at], self.queue_text[at], self.queue_ids[:, at] = images.to(self.queue_image.dtype), texts.to(self.queue_text.dtype), all_ids
                self.queue_at.copy_((self.queue_at + len(images)) % c.queue_size)
        return loss

    def itm_loss(self, match, mismatch, possible):
        """Image-text matching: is this the right pair? Fused states (n, 1 + L, D), judged by [CLS]; possible (n,): the mismatched ones to count. ALBEF."""
        logits = self.itm_head(torch.cat([match[:, 0], mismatch[:, 0]])).float()
        right = torch.cat([torch.ones_like(possible), torch.zeros_like(possible)]).long()
        return masked_mean(F.cross_entropy(logits, right, reduction='none')[None], torch.cat([torch.ones_like(possible), possible])[None])

    @torch.no_grad()
    def negatives(self, similar, alike, noise):
        """A hard negative for each pair. similar (n, n): words i, picture j, as ITC sees them; alike (n, n) bool: not to be chosen; noise (n, n) uniform
        -> picture for each words (n,), words for each picture (n,), possible (n,) bool. Drawn from softmax(similar) by the Gumbel trick: ALBEF."""
        gumbel = -(-noise.clamp(1e-9, 1 - 1e-7).log()).log()
        score = (similar.float() + gumbel).masked_fill(alike, -math.inf)
        return score.argmax(1), score.argmax(0), ~alike.all(1)

    def psl_loss(self, image, taught, votes, tokens, pad):
        """Pseudo-labelled keywords: the words that the pair's fused [CLS] attends to are to be told from the picture alone. SIMLA, arXiv:2203.14395.

        image, taught (n, D): unimodal [CLS] of the pictures, the teacher's; votes (n, n_head, T): attention of the fused [CLS]; tokens, pad (n, T).
        simla: 4 tokens per head, the 5 with most votes, BCE over the vocabulary, the teacher's soft labels. content_words: the 5 content words with
        most attention, and up to 5 that the teacher is sure of; asymmetric loss (arXiv:2009.14119), which forgives unsaid words."""
        c, T = self.config, tokens.shape[1]
        if c.psl_variant == 'simla':
            votes = votes.masked_fill(pad[:, None], 0.)
            chosen = torch.zeros_like(votes).scatter(2, votes.topk(min(4, T), 2).indices, 1.).sum(1).masked_fill(pad, -1)
            chosen, at = chosen.topk(min(5, T), 1)
            target = image.new_zeros(len(image), c.vocab_size).scatter_reduce(1, tokens.gather(1, at), (chosen > 0).to(image.dtype), 'amax')  # said twice: once
            z, z_taught = (F.normalize(m.image_proj(x).float(), dim=-1) for m, x in ((self, image), (self.teacher, taught)))
            with torch.no_grad():
                target = (1 - self.alpha) * target + self.alpha * self.teacher.keyword_head(z_taught).float().sigmoid()
            return F.binary_cross_entropy_with_logits(self.keyword_head(z).float(), target)
        target, ignored = self.keywords(taught, votes, tokens, pad)
        p = self.keyword_head(image).float().sigmoid().clamp(1e-6, 1 - 1e-6)
        shy = (p - .05).clamp(min=0)                                   # of what was not said, only confident errors count
        error = -(target * p.log() + (1 - target) * ~ignored * shy ** 4 * (1 - shy).log())
        return error.sum() / target.sum().clamp(min=1)

    @torch.no_grad()
    def votes(self, before, pad):
        """States before the last layer (n, 1 + T + 1 + K, D), pad (n, 1 + T) -> how much the fused [CLS] attends to each word (n, n_head, T)."""
        mask = F.pad(~pad, (0, before.shape[1] - pad.shape[1]), value=True)[:, None, None]
        return self.blocks[-1].attn.cls_row(self.blocks[-1].norm1(before), mask)[:, :, 1:pad.shape[1]]

    @torch.no_grad()
    def keywords(self, taught, votes, tokens, pad):
        """-> target (n, n_keywords) 0 or 1, ignored (n, n_keywords) bool: where the teacher is in doubt."""
        n, T = tokens.shape
        classes = self.keyword[tokens].masked_fill(pad, -1)            # (n, T), -1: no content word
        said = torch.zeros(n, self.config.n_keywords + 1, device=tokens.device).scatter(1, classes % (self.config.n_keywords + 1), 1.)[:, :-1]
        salience, at = votes.mean(1).masked_fill(classes < 0, -1).topk(min(5, T), 1)
        chosen = torch.where(salience >= 0, classes.gather(1, at), self.config.n_keywords)
        target = torch.zeros(n, self.config.n_keywords + 1, device=tokens.device).scatter(1, chosen, 1.)[:, :-1]
        sure, best = self.teacher.keyword_head(taught).float().sigmoid().masked_fill(said > 0, 0.).topk(min(5, self.config.n_keywords), 1)
        q = self.teacher.keyword_head(taught).float().sigmoid()
        target = target.scatter_reduce(1, best, (sure > .5).float(), 'amax')
        return target, ((q > .1) | (said > 0)) & (target == 0)

    # --- use ----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def paint(self, tokens, pad):
        """Words (B, T), pad (B, 1 + T) -> the picture they suggest, normalised patches (B, N, P). Nothing but the words goes in."""
        text, _, _ = self.fuse(self.unimodal(self.embed_text(tokens), pad), None, pad)
        nowhere = torch.zeros(len(tokens), 0, dtype=torch.long, device=tokens.device)
        return self.predictor(text, self.predictor.canvas(text[:, :0], nowhere), pad).float()

    @torch.no_grad()
    def write(self, patches, length=16, steps=8):
        """Pictures (B, N, P) uint8 -> words (B, length) about them: from all [MASK], each step keeps the surest words. Nothing but the
        picture goes in. Iterative unmasking: Mask-Predict, arXiv:1904.09324."""
        image = self.unimodal(self.embed_image(self.normalise(patches)))
        tokens = torch.full((len(patches), length), self.mask_id, device=patches.device)
        pad = torch.zeros(len(patches), 1 + length, dtype=torch.bool, device=patches.device)
        for step in range(steps):
            text, _, _ = self.fuse(self.unimodal(self.embed_text(tokens), pad), image, pad)
            sure, best = self.word_logits(text[:, 1:]).float().softmax(-1).max(-1)             # (B, length)
            sure = sure.masked_fill(tokens != self.mask_id, 2.)        # what is written stays
            keep = sure.topk(math.ceil(length * (step + 1) / steps)).indices
            tokens = tokens.scatter(1, keep, torch.where(tokens == self.mask_id, best, tokens).gather(1, keep))
        return tokens

    def read_pictures(self, pictures):
        """[B PIL pictures] -> patches (B, N, P) uint8: the middle square, as in evaluation."""
        from PIL import Image, ImageOps
        c, cut = self.config, (self.config.full_size - self.config.image_size) // 2
        arrays = [np.asarray(ImageOps.fit(ImageOps.exif_transpose(p).convert('RGB'), (c.full_size,) * 2, Image.Resampling.BOX)) for p in pictures]
        pixels = torch.from_numpy(np.stack(arrays))[:, cut:cut + c.image_size, cut:cut + c.image_size].to(self.pixel_mean.device)
        return patchify(pixels, c.patch_size)

    @torch.no_grad()
    def encode_image(self, pictures):
        """PIL picture(s) -> unit vectors (B, proj_dim); (proj_dim,) for a single one. Compare by dot product with encode_text."""
        many = pictures if isinstance(pictures, (list, tuple)) else [pictures]
        z = self.embedding(self.unimodal(self.embed_image(self.normalise(self.read_pictures(many)))), self.image_proj)
        return z if many is pictures else z[0]

    def tokenise(self, texts):
        """[B strings] -> tokens (B, T) in the model's vocabulary, pad (B, T) bool. Words beyond text_len tokens are not read."""
        from prepare import gpt2_encoding
        encoding, lookup, T = gpt2_encoding(), compact_lookup(self.vocab.cpu().numpy()), self.config.text_len
        ids = [compact(np.array(encoding.encode_ordinary(' ' + ' '.join(t.split())), np.int64), lookup, encoding)[:T] for t in texts]
        tokens = torch.tensor([[*map(int, i), *[0] * (T - len(i))] for i in ids])
        return tokens, torch.arange(T) >= torch.tensor([len(i) for i in ids])[:, None]

    @torch.no_grad()
    def encode_text(self, texts):
        """String(s) -> unit vectors (B, proj_dim); (proj_dim,) for a single one. Words beyond text_len tokens are not read."""
        many = texts if isinstance(texts, (list, tuple)) else [texts]
        tokens, pad = self.tokenise(many)
        tokens, pad = tokens.to(self.vocab.device), F.pad(pad, (1, 0)).to(self.vocab.device)
        z = self.embedding(self.unimodal(self.embed_text(tokens), pad), self.text_proj, pad)
        return z if many is texts else z[0]

# ----------------------------------------------------------------------------------------------------------------------

@functools.lru_cache
def plan_positions(parts, B):
    """Which part each position of a batch belongs to: position modulo the plan's length, parts evenly interleaved -> {part: [positions]}."""
    counts = {name: int(n) for name, n in (p.split(':') for p in parts.split(',')) if int(n)}
    cycle = [name for _, _, name in sorted(((j + .5) / n, i, name) for i, (name, n) in enumerate(counts.items()) for j in range(n))]
    rows = {name: [i for i in range(B) if cycle[i % len(cycle)] == name] for name in PARTS if name in counts}
    return {name: positions for name, positions in rows.items() if positions}

@functools.lru_cache
def _part_rows(parts, B, device):
    return {name: torch.tensor(rows, device=device) for name, rows in plan_positions(parts, B).items()}

def part_rows(config, B, device):
    return _part_rows(config.parts, B, device)

def distributed():
    return torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1

def sentence(tokens, pad):
    """One number for each row's words: (B, T), (B, T) -> (B,); equal words, equal numbers."""
    weights = torch.arange(1, tokens.shape[1] + 1, device=tokens.device) * 2654435761 + 97
    return ((tokens + 1) * (tokens + 7) * weights * ~pad).sum(1).abs()

class Gather(torch.autograd.Function):
    """(n, ...) of every rank -> (ranks * n, ...), in rank order; a rank's gradient is the sum of what all ranks say of its rows."""
    @staticmethod
    def forward(ctx, x):
        every = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(every, x.contiguous())
        return torch.cat(every)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous()
        torch.distributed.all_reduce(grad)
        return grad.chunk(torch.distributed.get_world_size())[torch.distributed.get_rank()]

def gather(x):
    return Gather.apply(x) if distributed() else x

def compact_lookup(vocab):
    """vocab (V,) GPT-2 ids -> lookup (50257,): the compact id of each GPT-2 id, -1 if it has none."""
    lookup = np.full(50257, -1, np.int64)
    lookup[vocab] = np.arange(len(vocab))
    return lookup

def compact(ids, lookup, encoding):
    """GPT-2 ids -> compact ids; a token without one is spelled in single bytes, which every vocabulary has."""
    known = lookup[ids]
    if (known >= 0).all():
        return known
    spelled = [[k] if k >= 0 else [lookup[encoding.encode_single_token(bytes([b]))] for b in encoding.decode_single_token_bytes(int(i))]
               for i, k in zip(ids, known)]
    return np.array(sum(spelled, []), np.int64)

def load(path, device='cpu'):
    """A checkpoint of train.py -> the model in eval mode. Exits with one line if it is none."""
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
        model = VLModel(VLConfig(**checkpoint['model_config']))
        model.load_state_dict(checkpoint['model'])
    except FileNotFoundError:
        sys.exit(f'error: no checkpoint {path}; train one first: python train.py')
    except (OSError, LookupError, TypeError, AttributeError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as e:
        sys.exit(f'error: {path} is not a checkpoint of this version of train.py ({type(e).__name__}: {str(e)[:200].splitlines()[:1]})')
    model.iteration = checkpoint.get('iter_num')
    return model.to(device).eval()

@torch.no_grad()
def load_vit(model, path):
    """A timm, MAE or DeiT ViT (.safetensors, or .pth read with weights_only) into the trunk: patches, positions (interpolated to this grid), [CLS],
    blocks, last norm -> (names loaded, names left out). ValueError if its shapes are not this model's."""
    try:
        if str(path).endswith('.safetensors'):
            from safetensors.torch import load_file
            former, state = False, load_file(path)
        else:
            state = torch.load(path, map_location='cpu', weights_only=True)
            former, state = 'model_config' in state, state.get('model', state.get('state_dict', state))
    except Exception as e:
        raise ValueError(f'{path} cannot be read as weights ({type(e).__name__}: {str(e)[:150]})') from None
    if former:
        return load_former(model, state)
    own, c, loaded = model.state_dict(), model.config, []
    if state.get('patch_embed.proj.weight') is None or state.get('pos_embed') is None:
        raise ValueError(f'{path} has no patch_embed.proj.weight and pos_embed: not a ViT by the names of timm')
    extra = state['pos_embed'].shape[1] - math.isqrt(state['pos_embed'].shape[1]) ** 2         # [CLS], and DeiT's distillation token
    cls_pos, grid = state['pos_embed'][:, :1] if extra else torch.zeros_like(state['pos_embed'][:, :1]), state['pos_embed'][:, extra:].float()
    old, new = math.isqrt(grid.shape[1]), math.isqrt(c.n_patches)
    if old != new:
        grid = F.interpolate(grid.view(1, old, old, -1).permute(0, 3, 1, 2), (new, new), mode='bicubic').permute(0, 2, 3, 1).reshape(1, new * new, -1)
    theirs = state | {'patch_embed.weight': state['patch_embed.proj.weight'].permute(0, 2, 3, 1).flatten(1), 'patch_embed.bias': state.get('patch_embed.proj.bias'),
                      'pos_embed': torch.cat([cls_pos, grid.to(cls_pos.dtype)], 1)}            # ours is (row, column, channel)
    for name, value in theirs.items():
        if value is not None and name in own and name.split('.')[0] in ('patch_embed', 'pos_embed', 'cls_token', 'blocks', 'norm'):
            if own[name].shape != value.shape:
                raise ValueError(f'{path}: {name} is {tuple(value.shape)}, this model has {tuple(own[name].shape)}: set n_embd, n_head, patch_size as there')
            own[name].copy_(value)
            loaded.append(name)
    if model.teacher is not None:
        model.teacher.load_state_dict({k.removeprefix('teacher.'): own[k.removeprefix('teacher.')] for k in own if k.startswith('teacher.')})
    used = {*loaded, *(['patch_embed.proj.weight', 'patch_embed.proj.bias'] if 'patch_embed.weight' in loaded else [])}
    return loaded, sorted(set(state) - used)

@torch.no_grad()
def load_former(model, theirs):
    """The weights of a run of train.py into a model for other data: words by their ids in the tokenizer, positions as far as they go, what has another shape
    is left out -> (names loaded, names left out)."""
    own, loaded = model.state_dict(), []
    at = {int(t): i for i, t in enumerate(theirs['vocab'])}
    mine, V = [i for i, t in enumerate(model.vocab.tolist()) if t in at], len(model.vocab)
    its = [at[t] for t in model.vocab.tolist() if t in at]
    for name, value in theirs.items():
        if name.startswith('keyword_head.1') and (theirs['vocab'].tolist(), theirs['keyword'].tolist()) != (model.vocab.tolist(), model.keyword.tolist()):
            continue                                                   # its classes are other words
        if name.startswith(('teacher.', 'queue')) or name in ('vocab', 'word_start', 'keyword', 'pixel_mean', 'pixel_std', 'alpha') or name not in own:
            continue
        value = value.to(own[name].device)
        if value.shape[-1:] != own[name].shape[-1:] and name != 'mlm_bias':
            continue
        if name in ('tok_embed.weight', 'mlm_bias'):
            own[name][mine] = value[its]
            own[name][V:] = value[len(at):]                            # [MASK] and [CLS]
        elif name == 'text_pos_embed':
            n = min(own[name].shape[1], value.shape[1])
            own[name][:, :n] = value[:, :n]
        elif own[name].shape == value.shape:
            own[name].copy_(value)
        else:
            continue
        loaded.append(name)
    if not any(n.startswith('blocks.') for n in loaded):
        raise ValueError('its layers have other shapes: set n_embd, n_layer and n_unimodal as there')
    if model.teacher is not None:
        model.teacher.load_state_dict({k.removeprefix('teacher.'): own[k.removeprefix('teacher.')] for k in own if k.startswith('teacher.')})
    parameters, teachers = dict(model.named_parameters()), ('teacher.', 'queue')
    left = {n for n in theirs if n not in loaded and not n.startswith(teachers) and (n in parameters or n not in own) and n != 'alpha'}
    return loaded, sorted(left | ({f'{V - len(mine)} of {V} words'} if len(mine) < V else set()))

def cost(c, B=16):
    """-> GFLOP per pair of a training step (forward, backward, teacher), MB per pair kept for the backward pass (float32); counted without computing."""
    from torch.utils.flop_counter import FlopCounterMode
    kept = {}
    def keep(x):
        kept[x.untyped_storage()._cdata] = x.untyped_storage()
        return x
    with torch.device('meta'):
        model, N, T = VLModel(c), c.n_patches, c.text_len
        batch = dict(patches=torch.empty(B, N, c.patch_size ** 2 * 3, dtype=torch.uint8), tokens=torch.empty(B, T, dtype=torch.long), video=torch.arange(B),
                     pad=torch.empty(B, T, dtype=torch.bool), noise_image=torch.empty(B, N), noise_text=torch.empty(B, T), noise_rate=torch.empty(B),
                     noise_itm=torch.empty(B, B))
        with FlopCounterMode(display=False) as counter:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                loss = model(batch)[0]
            own = {p.untyped_storage()._cdata for p in [*model.parameters(), *model.buffers()]}
            kept = sum(x.nbytes() for key, x in kept.items() if key not in own)
            loss.backward()
    return counter.get_total_flops() / B / 1e9, kept / B / 1e6

if __name__ == '__main__':
    from configurator import ConfigError, knobs, parse
    if {'-h', '--help'} & {*sys.argv}:
        sys.exit(print(f'{__doc__}\n{VLConfig()}'))
    reference = dict(image_size=256, full_size=256, vocab_size=30000, itm=1., psl=1., n_keywords=4000, distill=.4)
    try:
        import train                                                   # presets also set its knobs
        c = {k: v for k, v in parse({k: vars(train)[k] for k in knobs(vars(train))} | asdict(VLConfig()) | reference, sys.argv[1:])[0].items() if k in asdict(VLConfig())}
        VLConfig(**c)
        spent, names, off = 0., [], {o: 0. for o in ('mlm', 'mim', 'itc', 'itm', 'psl', 'distill') if c[o]}
        for name in list(off):
            off.pop(name)
            names.append(name)
            try:
                total, kept = cost(VLConfig(**c | off))
            except ValueError:                                         # nothing without the next one
                continue
            print(f"{total - spent:8.1f} GFLOP per pair for {' and '.join(names)}" + ' alone' * (not spent))
            spent, names = total, []
        print(f'{spent:8.1f} GFLOP per pair in all; {kept:.0f} MB of activations per pair are kept for the backward pass in float32, half of it in bfloat16')
    except (ValueError, ConfigError) as e:
        sys.exit(f'error: {e}')
