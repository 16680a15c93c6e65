"""One transformer for pictures and words, and the masking objectives that train it. Read top to bottom, in the order of the data.

    import model; m = model.load('out/scenes/best.pt'); m.encode_image(pil) @ m.encode_text('a red circle on the left')

Departures from the textbook:
- One stack of identical pre-norm ViT blocks for both modalities. Layers below n_unimodal attend within a modality, the others over
  [text ; image] jointly. n_unimodal = 0 is ViLT / M3AE, n_layer is a CLIP with shared weights, 2/3 of the depth is the default.
- Patches that are masked leave the sequence (MAE); words that are masked become [MASK] (BERT). A light predictor paints patches.
- A batch is cut into fixed parts by position, and each part masks differently: PARTS is the table of every masking objective.
- All randomness is an input: batch['noise_*'] is uniform noise, and a mask is a pure function of it.
Shapes: B samples, T text tokens (1 + T with [CLS]), N patches of P values, K of them kept, D width, V vocabulary. A mask is 1 where removed,
pad is 1 where there is no token.
"""
import functools, math, pickle, sys
from dataclasses import dataclass
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
    norm_pix: bool = False         # predict per-patch normalised pixels (MAE): better features, but no colour can be seen
    mlm: float = 1.                # weights of the objectives; 0: off
    mim: float = 1.
    itc: float = 1.
    itc_variant: str = 'infonce'   # or sigmoid (SigLIP, arXiv:2303.15343)

    def __post_init__(self):
        try:
            self.plan = {name: int(n) for name, n in (p.split(':') for p in self.parts.split(',')) if int(n)}
            unknown = set(self.plan) - set(PARTS)
        except ValueError:
            unknown = {self.parts}
        joint = [p for p in PARTS if p in self.plan and p not in ('clean', 'image_only', 'text_only')] if not unknown else []
        for wrong, message in (
                (unknown, f"parts={self.parts!r}: expected name:count,... with names out of {', '.join(PARTS)}"),
                (self.image_size % self.patch_size, f'image_size={self.image_size} is not a multiple of patch_size={self.patch_size}'),
                (self.n_embd % self.n_head, f'n_embd={self.n_embd} is not a multiple of n_head={self.n_head}'),
                (not 0 <= self.n_unimodal <= self.n_layer, f'n_unimodal={self.n_unimodal} must be from 0 to n_layer={self.n_layer}'),
                (self.n_unimodal == self.n_layer and joint, f"n_unimodal=n_layer leaves no joint layers, which {', '.join(joint)} need"),
                (not 0 < self.keep_lo < 1 or not 0 < self.keep_hi <= 1, f'keep_hi={self.keep_hi} and keep_lo={self.keep_lo} are shares of the patches'),
                (not 0 < self.mask_rate <= 1, f'mask_rate={self.mask_rate} must be a share of the words'),
                (not any((self.mlm, self.mim, self.itc)), 'every objective has weight 0'),
                (not unknown and 0 < self.n_unimodal < self.n_layer and not self.has('mlm') and not self.has('mim'),
                 'nothing uses the joint layers: set n_unimodal=n_layer, or give mlm or mim a weight and a part'),
                (self.itc_variant not in ('infonce', 'sigmoid'), f"itc_variant must be 'infonce' or 'sigmoid', not {self.itc_variant!r}")):
            if wrong:
                raise ValueError(message)

    @property
    def n_patches(self):
        return (self.image_size // self.patch_size) ** 2               # N

    def has(self, objective):
        """Whether an objective has a weight and a part to work on."""
        words, patches = zip(*(PARTS[p] for p in self.plan))
        part = dict(mlm=any(w not in (None, 'none') for w in words), mim=any(p in ('xmm_image', 'joint', 'amm_image', 'image_only') for p in self.plan),
                    itc=any(p not in ('image_only', 'text_only') for p in self.plan))
        return getattr(self, objective) > 0 and part[objective]

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
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(x.transpose(1, 2).reshape(B, L, D))

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
        self.head = nn.Linear(D, c.patch_size ** 2 * 3)

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

class VLModel(nn.Module):
    def __init__(self, config, vocab=None, word_start=None, pixel_mean=(.5, .5, .5), pixel_std=(.25, .25, .25)):
        super().__init__()
        self.config = c = config
        D, P, V = c.n_embd, c.patch_size ** 2 * 3, c.vocab_size
        self.mask_id, self.cls_id = V, V + 1                           # [MASK] and [CLS] come after the data's own tokens
        self.register_buffer('vocab', torch.arange(V) if vocab is None else torch.as_tensor(vocab))       # the GPT-2 id of each token
        self.register_buffer('word_start', torch.ones(V + 2, dtype=torch.bool) if word_start is None else torch.as_tensor(word_start))
        self.register_buffer('pixel_mean', torch.as_tensor(pixel_mean, dtype=torch.float32))
        self.register_buffer('pixel_std', torch.as_tensor(pixel_std, dtype=torch.float32))
        self.tok_embed = nn.Embedding(V + 2, D)
        self.text_pos_embed = nn.Parameter(sincos_pos_embed(torch.arange(1 + c.text_len), D)[None])                 # (1, 1 + T, D)
        self.type_embed = nn.Parameter(torch.zeros(2, 1, D))           # text, image
        self.patch_embed = nn.Linear(P, D)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, D))
        self.pos_embed = nn.Parameter(torch.cat([torch.zeros(1, D), grid_pos_embed(math.isqrt(c.n_patches), D)])[None])      # (1, 1 + N, D)
        self.blocks = nn.ModuleList(Block(D, c.n_head) for _ in range(c.n_layer))
        if c.has('mlm') or c.has('mim'):                               # a head exists only for an objective in use: every parameter has a gradient
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
        self.init_weights()
        words, patches = zip(*(PARTS[p] for p in c.plan))
        unused = [self.tok_embed.weight, self.text_pos_embed] * (not any(words)) + [
            *self.patch_embed.parameters(), self.pos_embed, self.cls_token] * (not any(patches) and not c.has('itc'))
        for p in unused:                                               # BERT sees no patches, MAE no words
            p.requires_grad_(False)

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
        -> normalised states of both, None for what is absent."""
        L = 0 if text is None else text.shape[1]
        if image is None or text is None:
            x, pad = (text, pad) if image is None else (image, None)
        else:
            x, pad = torch.cat([text, image], 1), F.pad(pad, (0, image.shape[1]))
        x = self.norm(run(self.blocks[self.config.n_unimodal:], x, pad))
        return x[:, :L] if L else None, x[:, L:] if image is not None else None

    def embedding(self, states, proj, pad=None):
        """Unimodal states -> ITC embedding (B, proj_dim) of unit length, from [CLS]. With n_unimodal = 0: all layers on one modality alone."""
        if self.config.n_unimodal == 0:
            states = run(self.blocks, states, pad)
        return F.normalize(proj(states[:, 0]).float(), dim=-1)

    # --- one step -----------------------------------------------------------------------------------------------------

    def forward(self, batch):
        """All passes and objectives of one batch -> (loss, {name: detached scalar}).

        batch: patches (B, N, P) uint8, tokens (B, T), pad (B, T) bool, video (B,) ids, and uniform noise in [0, 1): noise_image (B, N),
        noise_text (B, T), noise_rate (B,). Parts of the same shape share a pass: pictures at keep_hi; pictures at keep_lo; words; words
        with a picture at keep_hi; words with a picture at keep_lo; words alone through the joint layers."""
        c, N = self.config, batch['patches'].shape[1]
        at = part_rows(c, len(batch['tokens']), batch['tokens'].device)                        # {part: its positions in the batch}
        mlm, mim, itc = (c.has(o) for o in ('mlm', 'mim', 'itc'))
        def of(*names): return [p for p in names if p in at]
        def rows(x, names): return torch.cat([x[at[p]] for p in names])
        def split(x, names): return dict(zip(names, x.split([len(at[p]) for p in names])))
        x = self.normalise(batch['patches'])

        # pictures alone: image[part] (n, 1 + K, D)
        image, ids_keep = {}, {}
        for keep, names in (c.keep_hi, of('xmm_text', 'amm_text', 'clean')), (c.keep_lo, of('xmm_image', 'joint', 'image_only', *['amm_image'] * itc)):
            if names:
                ids = rows(batch['noise_image'], names).argsort(1)[:, :max(1, round(N * keep))]
                image |= split(self.unimodal(self.embed_image(rows(x, names), ids)), names)
                ids_keep |= split(ids, names)

        # words alone, clean and masked in one call: clean[part], masked[part] (n, 1 + T, D)
        names = of('xmm_text', 'amm_text', 'clean', 'xmm_image', 'joint', 'amm_image') if itc else of('xmm_image', 'amm_image')
        names_masked = of('xmm_text', 'amm_text', 'joint', 'text_only') if mlm else []
        pad = split(F.pad(rows(batch['pad'], of(*PARTS)), (1, 0)), of(*PARTS))                 # [CLS] is never padding
        tokens = split(rows(batch['tokens'], of(*PARTS)), of(*PARTS))
        hidden = {p: self.hide_words(p, tokens[p], pad[p][:, 1:], batch['noise_text'][at[p]], batch['noise_rate'][at[p]]) for p in names_masked}
        clean, masked = {}, {}
        if names or names_masked:
            states = self.unimodal(self.embed_text(torch.cat([tokens[p] for p in names] + [hidden[p][0] for p in names_masked])),
                                   torch.cat([pad[p] for p in names + names_masked]))
            n = sum(len(at[p]) for p in names)
            clean, masked = split(states[:n], names), split(states[n:], names_masked)

        # joint layers: text[part], picture[part] normalised
        text, picture = {}, {}
        words = {p: masked.get(p, clean.get(p)) for p in at}           # the words that a part shows: masked ones where it fills them in
        for names, with_image in ((of('xmm_text', 'amm_text') if mlm else [], True), (of('xmm_image') * mim + of('joint'), True),
                                  (of('amm_image') * mim + of('text_only') * mlm, False), (of('image_only') * mim, True)):
            if names:
                has_words = words[names[0]] is not None
                t, i = self.fuse(torch.cat([words[p] for p in names]) if has_words else None,
                                 torch.cat([image[p] for p in names]) if with_image else None, torch.cat([pad[p] for p in names]))
                text |= split(t, names) if has_words else {}
                picture |= split(i, names) if with_image else {}

        losses = {}                                                    # a batch too small for every part may lack some
        if hidden:
            losses |= self.mlm_loss(text, hidden)
        if mim and of('xmm_image', 'joint', 'amm_image', 'image_only'):
            losses |= self.mim_loss(text, picture, pad, ids_keep, {p: x[at[p]] for p in at})
        if itc and (names := of('xmm_text', 'amm_text', 'clean', 'xmm_image', 'joint', 'amm_image')):
            losses['itc'] = self.itc_loss(torch.cat([self.embedding(image[p], self.image_proj) for p in names]),
                                          torch.cat([self.embedding(clean[p], self.text_proj, pad[p]) for p in names]), rows(batch['video'], names))
        loss = sum((getattr(c, name) * value for name, value in losses.items() if '/' not in name), x.new_zeros(()))
        return loss, {name: value.detach() for name, value in losses.items()}

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

    def mlm_loss(self, text, hidden):
        """Masked language modelling. text[part] (n, 1 + T, D), hidden[part] from hide_words -> {mlm, mlm/part}. BERT, arXiv:1810.04805."""
        names = list(hidden)
        states = torch.cat([take(text[p][:, 1:], hidden[p][1]).flatten(0, 1) for p in names])                    # (slots, D)
        error = F.cross_entropy(self.word_logits(states).float(), torch.cat([hidden[p][3].flatten() for p in names]), reduction='none')
        error = dict(zip(names, error.split([hidden[p][1].numel() for p in names])))
        return self.by_part('mlm', {p: (error[p].view_as(hidden[p][1]), hidden[p][2]) for p in names})

    def mim_loss(self, text, picture, pad, ids_keep, x):
        """Masked image modelling by pixels, on removed patches only -> {mim, mim/part}. MAE, arXiv:2111.06377; with words: M3AE, arXiv:2205.14204."""
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
                errors |= {p: ((painted[p].float() - self.pixel_target(x[p])).square().mean(2), gone[p]) for p in names}
        return self.by_part('mim', errors)

    def pixel_target(self, x):
        """Normalised patches (B, N, P) -> what the predictor shall paint: they themselves, or each with its own mean and variance removed."""
        return (x - x.mean(2, keepdim=True)) / (x.var(2, keepdim=True) + 1e-6).sqrt() if self.config.norm_pix else x

    def by_part(self, name, errors):
        """{part: (error (n, L), mask (n, L))} -> {name: mean over all samples, name/part: mean over the part's}."""
        means = {part: masked_mean(error, mask) for part, (error, mask) in errors.items()}
        n = sum(len(error) for error, _ in errors.values())
        total = sum(means[part] * (len(errors[part][0]) / n) for part in means)
        return {name: total} | ({f'{name}/{part}': value for part, value in means.items()} if len(means) > 1 else {})

    def itc_loss(self, image, text, video):
        """Image-text contrast over the global batch, both ways. image, text (n, proj_dim) of unit length, video (n,): other frames of the
        same video look and sound alike, so they are no negatives. CLIP, arXiv:2103.00020; sigmoid: SigLIP, arXiv:2303.15343."""
        images, texts, videos, rank = gather(image), gather(text), gather(video), torch.distributed.get_rank() if distributed() else 0
        own = torch.arange(len(image), device=image.device) + rank * len(image)                # the columns of the true pairs
        alike = (video[:, None] == videos) & (own[:, None] != torch.arange(len(videos), device=own.device))
        scale = self.logit_scale.exp().clamp(max=100)
        if self.config.itc_variant == 'sigmoid':
            logits = scale * image @ texts.T + self.logit_bias
            sign = torch.full_like(logits, -1.).scatter(1, own[:, None], 1.)
            return -(F.logsigmoid(sign * logits) * ~alike).sum(1).mean()
        to_text, to_image = ((scale * a @ b.T).masked_fill(alike, -math.inf) for a, b in ((image, texts), (text, images)))
        return (F.cross_entropy(to_text, own) + F.cross_entropy(to_image, own)) / 2

    # --- use ----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def paint(self, tokens, pad):
        """Words (B, T), pad (B, 1 + T) -> the picture they suggest, normalised patches (B, N, P). Nothing but the words goes in."""
        text, _ = self.fuse(self.unimodal(self.embed_text(tokens), pad), None, pad)
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
            text, _ = self.fuse(self.unimodal(self.embed_text(tokens), pad), image, pad)
            sure, best = self.word_logits(text[:, 1:]).float().softmax(-1).max(-1)             # (B, length)
            sure = sure.masked_fill(tokens != self.mask_id, 2.)        # what is written stays
            keep = sure.topk(math.ceil(length * (step + 1) / steps)).indices
            tokens = tokens.scatter(1, keep, torch.where(tokens == self.mask_id, best, tokens).gather(1, keep))
        return tokens

    @torch.no_grad()
    def encode_image(self, pictures):
        """PIL picture(s) -> unit vectors (B, proj_dim); (proj_dim,) for a single one. Compare by dot product with encode_text."""
        many = pictures if isinstance(pictures, (list, tuple)) else [pictures]
        c, cut = self.config, (self.config.full_size - self.config.image_size) // 2
        from PIL import Image, ImageOps
        arrays = [np.asarray(ImageOps.fit(p.convert('RGB'), (c.full_size,) * 2, Image.Resampling.BOX)) for p in many]
        pixels = torch.from_numpy(np.stack(arrays))[:, cut:cut + c.image_size, cut:cut + c.image_size].to(self.pixel_mean.device)
        z = self.embedding(self.unimodal(self.embed_image(self.normalise(patchify(pixels, c.patch_size)))), self.image_proj)
        return z if many is pictures else z[0]

    @torch.no_grad()
    def encode_text(self, texts):
        """String(s) -> unit vectors (B, proj_dim); (proj_dim,) for a single one. Words beyond text_len tokens are not read."""
        from prepare import gpt2_encoding
        many = texts if isinstance(texts, (list, tuple)) else [texts]
        encoding, lookup = gpt2_encoding(), compact_lookup(self.vocab.cpu().numpy())
        ids = [compact(np.array(encoding.encode_ordinary(' ' + ' '.join(t.split()))), lookup, encoding)[:self.config.text_len] for t in many]
        tokens = torch.zeros(len(many), self.config.text_len, dtype=torch.long)
        for row, i in zip(tokens, ids):
            row[:len(i)] = torch.as_tensor(i)
        pad = torch.arange(self.config.text_len) >= torch.tensor([len(i) for i in ids])[:, None]
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

def gather(x):
    """(n, ...) of every rank -> (ranks * n, ...), in rank order, with gradients."""
    return torch.cat(torch.distributed.nn.functional.all_gather(x)) if distributed() else x

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
    except (KeyError, TypeError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as e:
        sys.exit(f'error: {path} is not a checkpoint of this version of train.py ({type(e).__name__}: {str(e)[:200].splitlines()[:1]})')
    return model.to(device).eval()
