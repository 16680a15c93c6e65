"""pytest tests/test_model.py -q      every test runs over all parts or all objectives, so that a
new one is tested for free"""

import argparse
import math
import time
from dataclasses import asdict
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import model as models
import train
from runs.cost import cost
from data.arrays import patchify, unpatchify
from data.tokens import compact, compact_lookup, gpt2_encoding
from data.weights import load_weights
from model import (
    PARTS,
    Part,
    VLConfig,
    VLModel,
    Words,
    choose_words,
    masked_mean,
    part_rows,
    plan_positions,
)

B, T, V = 32, 12, 90
EVERY = ','.join(f'{p}:2' for p in PARTS)
SMALL = dict(
    image_size=32,
    full_size=40,
    patch_size=8,
    text_len=T,
    vocab_size=V,
    n_layer=3,
    n_unimodal=2,
    n_head=2,
    n_embd=32,
    proj_dim=16,
    n_keywords=0,
    parts='xmm_text:7,xmm_image:7,amm_text:1,amm_image:1',
)


def build(seed=0, **settings):
    torch.manual_seed(seed)
    c = VLConfig(**SMALL | settings)
    keywords = torch.arange(0, 2 * c.n_keywords, 2)
    return VLModel(c, word_start=torch.rand(V + 2) < 0.6, keywords=keywords)


def make_batch(c, n=B, seed=0, full=False):
    g = torch.Generator().manual_seed(seed)
    length = torch.full((n, 1), T) if full else torch.randint(1, T + 1, (n, 1), generator=g)
    N, P = c.n_patches, c.patch_size**2 * 3
    return dict(
        patches=torch.randint(0, 256, (n, N, P), dtype=torch.uint8, generator=g),
        tokens=torch.randint(0, V, (n, T), generator=g),
        pad=torch.arange(T) >= length,
        video=torch.arange(n),
        noise_image=torch.rand(n, N, generator=g),
        noise_text=torch.rand(n, T, generator=g),
        noise_rate=torch.rand(n, generator=g),
        noise_itm=torch.rand(n, n, generator=g),
    )


def plans():
    """Every part alone, with the objectives it can feed, and the mixes."""
    for name, part in PARTS.items():
        depth = SMALL['n_layer'] if name == 'clean' else SMALL['n_unimodal']
        yield (
            name,
            dict(
                parts=f'{name}:1',
                mlm=float(part.writes),
                mim=float(part.paints),
                itc=float(part.pairs),
                n_unimodal=depth,
            ),
        )
    yield 'default', {}
    yield 'every', dict(parts=EVERY)
    yield 'no_itc', dict(itc=0.0)
    yield 'norm_pix', dict(mim_target='norm_pix')
    yield 'itm', dict(itm=1.0)
    yield 'itm_alone', dict(itm=1.0, mlm=0.0, mim=0.0, itc=0.0, parts='clean:1')
    yield 'psl', dict(psl=1.0)
    yield 'psl_taught', dict(psl=1.0, itm=1.0, distill=0.4, distill_iters=1)
    yield 'tag', dict(tag=1.0, n_keywords=V // 2)
    yield 'tag_towers', dict(tag=1.0, n_keywords=3, parts='clean:3,text_only:1', n_unimodal=3)
    yield 'distilled', dict(distill=0.4, distill_iters=1, parts=EVERY)
    yield 'queue', dict(queue_size=64, distill=0.4, distill_iters=1)
    yield (
        'full',
        dict(
            itm=1.0,
            psl=1.0,
            tag=1.0,
            n_keywords=V // 2,
            distill=0.4,
            distill_iters=1,
            parts='xmm_text:7,xmm_image:7,amm_text:1,amm_image:1',
        ),
    )
    yield 'whole_pictures', dict(keep_hi=1.0)
    yield 'single_tokens', dict(whole_word=False)
    yield 'vilt_dial', dict(n_unimodal=0, parts=EVERY)
    yield 'towers', dict(n_unimodal=3, parts='image_only:1,text_only:1,clean:2')


PLANS = dict(plans())
every_plan = pytest.mark.parametrize('plan', PLANS)

# --- losses and gradients -------------------------------------------------------------------------


@every_plan
@pytest.mark.parametrize('n', [1, 2, B])
def test_finite_loss_and_a_gradient_for_every_parameter(plan, n):
    m = build(**PLANS[plan])
    loss, parts = m(make_batch(m.config, n))
    assert loss.isfinite() and all(v.isfinite() for v in parts.values())
    assert math.isclose(
        loss.item(),
        sum(getattr(m.config, k) * v.item() for k, v in parts.items() if '/' not in k),
        rel_tol=1e-5,
    )
    if n == B:
        loss.backward()
        without = [
            name
            for name, p in m.named_parameters()
            if p.requires_grad and (p.grad is None or p.grad.abs().sum() == 0)
        ]
        assert not without, f'no gradient: {without}'


@every_plan
def test_the_extremes_of_text(plan):
    """Captions of one token and of none at all."""
    m = build(**PLANS[plan])
    for n_tokens in 0, 1:
        batch = make_batch(m.config) | dict(pad=torch.arange(T).expand(B, T) >= n_tokens)
        loss, _ = m(batch)
        loss.backward()
        assert loss.isfinite() and all(
            p.grad is None or p.grad.isfinite().all() for p in m.parameters()
        )


def by_heart(parts, **settings):
    """Eight pairs, patches of one grey each, by a model of two layers and a high learning rate
    -> the losses at first and after 50 steps."""
    shallow = dict(n_layer=2, n_unimodal=1, n_embd=64, keep_hi=1.0, keep_lo=0.5)
    m = build(**shallow, parts=parts, **settings)
    batch = make_batch(m.config, 16)
    for k in 'patches', 'tokens', 'pad', 'video':
        batch[k] = batch[k][torch.arange(16) % 8]
    batch['patches'] = batch['patches'][:, :, :1].expand(-1, -1, 192)
    optimizers, first = train.configure_optimizers(m), m(batch)[1]
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group['lr'] *= 4
    for _ in range(50):
        loss, last = m(batch)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return first, last


@pytest.mark.parametrize('parts', [SMALL['parts'], EVERY], ids=['default', 'every'])
def test_overfits_eight_pairs(parts):
    first, last = by_heart(parts)
    for name in 'mlm', 'mim', 'itc':
        assert last[name] < 0.35 * first[name], (name, first[name], last[name])


def test_muon_has_the_matrices_between_what_comes_in_and_what_comes_out():
    m = build(parts=EVERY, itm=1.0, psl=1.0, distill=0.4)
    names = {id(p): name for name, p in m.named_parameters()}
    adamw, muon = train.configure_optimizers(m)
    has = [
        {names[id(p)] for p in group['params']}
        for group in (*adamw.param_groups, *muon.param_groups)
    ]
    decayed, others, matrices = has
    assert decayed == {'predictor.head.weight', 'itm_head.weight', 'keyword_head.weight'}
    assert 'tok_embed.weight' in others
    among = 'patch_embed', 'predictor.embed', 'blocks.0.attn.qkv', 'mlm_head.0', 'image_proj.1'
    assert {f'{name}.weight' for name in among} <= matrices
    assert sum(map(len, has)) == sum(p.requires_grad for p in m.parameters())


def test_chance_level_at_the_start():
    m = build(n_embd=64)
    _, losses = m(make_batch(m.config))
    assert (
        abs(losses['mlm'] - math.log(V)) < 0.2
        and abs(losses['mim'] - 1.6) < 0.6
        and losses['itc'] < 2 * math.log(B)
    )


def test_a_way_of_masking_is_a_row_of_a_table(monkeypatch):
    """A new row of PARTS is shown, hidden, fused and learned from, without a line elsewhere."""
    monkeypatch.setitem(PARTS, 'joint_hi', Part('range', 'keep_hi'))
    monkeypatch.setitem(PARTS, 'blind', Part('all', 'keep_lo'))
    plan_positions.cache_clear()
    part_rows.cache_clear()
    for part, learned in ('joint_hi', ('mlm', 'itc', 'itm')), ('blind', ('mlm', 'mim', 'itc')):
        first, last = by_heart(f'{part}:1', itm=float('itm' in learned))
        assert set(first) == set(learned)
        for name in set(learned) - {'itm'}:
            assert last[name] < 0.5 * first[name], (part, name, first[name], last[name])
    plan_positions.cache_clear()
    part_rows.cache_clear()


def test_a_plan_that_nothing_learns_from_is_an_error(monkeypatch):
    monkeypatch.setitem(PARTS, 'idle', Part('whole', None))
    with pytest.raises(ValueError, match='no objective has a weight and a part of idle:1'):
        build(parts='idle:1')


# --- masks leak nothing ---------------------------------------------------------------------------


def outputs(m, batch):
    """What the model says about each sample: word logits on masked slots, painted patches; caught
    where the losses take them."""
    caught = {}

    def word_logits(states, real=m.word_logits):
        return caught.setdefault('words', real(states))

    def predictor_forward(*args, real=m.predictor.forward):
        return caught.setdefault('patches' if args[0] is not None else 'alone', real(*args))

    m.word_logits, m.predictor.forward = word_logits, predictor_forward
    m(batch)
    del m.word_logits, m.predictor.forward
    return {k: v.detach() for k, v in caught.items()}


def test_masked_words_and_patches_cannot_be_seen():
    m = build(parts=EVERY, itc=0.0)
    c, batch = m.config, make_batch(build().config, full=True)
    at = part_rows(c.parts, B, torch.device('cpu'))
    before, changed = outputs(m, batch), {k: v.clone() for k, v in batch.items()}
    m.word_start[:] = True  # so that a new word in a place leaves the choice of places alone
    before = outputs(m, batch)
    n_changed = 0
    for part, rows in at.items():
        words, patches = PARTS[part]
        if words in ('some', 'all', 'range'):
            _, slots, used, _ = m.hide_words(
                part,
                batch['tokens'][rows],
                batch['pad'][rows],
                batch['noise_text'][rows],
                batch['noise_rate'][rows],
            )
            for r, s, u in zip(rows, slots, used):
                changed['tokens'][r, s[u]] = (changed['tokens'][r, s[u]] + 7) % V
                n_changed += int(u.sum())
        keep = {'keep_hi': c.keep_hi, 'keep_lo': c.keep_lo}.get(patches, 0)
        gone = batch['noise_image'][rows].argsort(1)[:, round(c.n_patches * keep) :]
        for r, g in zip(rows, gone):
            changed['patches'][r, g] = 255 - changed['patches'][r, g]
            n_changed += len(g)
    after = outputs(m, changed)
    assert (
        n_changed > 400
        and set(before) == {'words', 'patches', 'alone'}
        and all(torch.equal(before[k], after[k]) for k in before)
    )
    assert m(batch)[0] != m(changed)[0], 'the targets did change'
    visible = {k: v.clone() for k, v in batch.items()}
    visible['patches'] = 255 - visible['patches']
    assert not torch.equal(outputs(m, visible)['words'], before['words']), (
        'and what can be seen does matter'
    )


def test_the_picture_cannot_change_the_words_before_the_joint_layers():
    m, batch = build(), make_batch(build().config)
    pad = F.pad(batch['pad'], (1, 0))
    text = m.unimodal(m.embed_text(batch['tokens']), pad)
    image = m.unimodal(m.embed_image(m.normalise(batch['patches'])))
    fused, picture, _ = m.fuse(text, image, pad)
    other, *_ = m.fuse(text, image.flip(0), pad)
    assert not torch.allclose(fused, other), 'the joint layers do look'
    texts = []
    real, m.embedding = (
        m.embedding,
        lambda states, proj, pad=None: (
            (proj is m.text_proj and texts.append(states.detach().clone()))
            or real(states, proj, pad)
        ),
    )
    m(batch)
    m(batch | dict(patches=255 - batch['patches']))
    assert len(texts) == 8 and all(torch.equal(a, b) for a, b in zip(texts[:4], texts[4:])), (
        'to the bit'
    )


@pytest.mark.parametrize('n_unimodal', [0, 2, 3])
def test_padding_does_not_matter(n_unimodal):
    m = (
        build(
            n_unimodal=n_unimodal,
            parts='clean:1' if n_unimodal else 'xmm_text:1',
            mlm=float(n_unimodal == 0),
            mim=0.0,
        )
        if n_unimodal != 2
        else build()
    )
    batch = make_batch(m.config)
    other = batch | dict(
        tokens=torch.where(batch['pad'], (batch['tokens'] + 5) % V, batch['tokens'])
    )

    def embed(b):
        return m.text_embedding(b['tokens'], F.pad(b['pad'], (1, 0)))

    assert not torch.equal(batch['tokens'], other['tokens']) and torch.equal(
        embed(batch), embed(other)
    )
    assert torch.equal(m(batch)[0], m(other)[0])


@every_plan
def test_batch_order_cannot_change_an_embedding(plan):
    m = build(**PLANS[plan])
    batch, order = (
        make_batch(m.config),
        torch.randperm(B, generator=torch.Generator().manual_seed(1)),
    )
    x, pad = m.normalise(batch['patches']), F.pad(batch['pad'], (1, 0))
    for states, shuffled in (
        (m.unimodal(m.embed_image(x)), m.unimodal(m.embed_image(x[order]))),
        (
            m.unimodal(m.embed_text(batch['tokens']), pad),
            m.unimodal(m.embed_text(batch['tokens'][order]), pad[order]),
        ),
    ):
        assert torch.allclose(states[order], shuffled, atol=1e-6)


# --- masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('rate', [0.15, 0.4, 1.0])
@pytest.mark.parametrize('words', [True, False])
def test_choose_words(rate, words):
    g = torch.Generator().manual_seed(0)
    n, S = 400, math.ceil(T * rate)
    tokens, start = torch.randint(0, V, (n, T), generator=g), torch.rand(V, generator=g) < 0.5
    length = torch.randint(0, T + 1, (n, 1), generator=g)
    pad, noise = torch.arange(T) >= length, torch.rand(n, T, generator=g)
    slots, used = choose_words(tokens, pad, noise, rate, S, start if words else None)
    assert slots.shape == used.shape == (n, S)
    share = 0
    for i in range(n):
        chosen, L = set(slots[i][used[i]].tolist()), int(length[i])
        budget = math.ceil(L * rate)
        assert (
            len(chosen) == used[i].sum()
            and all(s < L for s in chosen)
            and (len(chosen) >= 1) == (L > 0)
            and len(chosen) <= budget
        )
        share += len(chosen) / budget if budget else 1
        if not words or rate == 1:
            assert len(chosen) == budget
        else:  # whole words, unless the very first one alone is more than the budget
            word = np.cumsum(
                [bool(start[t]) or j == 0 for j, t in enumerate(tokens[i, :L].tolist())]
            )
            parts = {w: {j for j in range(L) if word[j] == w} for w in set(word)}
            assert (
                all(p <= chosen or not p & chosen for p in parts.values())
                or len({word[j] for j in chosen}) == 1
            )
    assert share / n > (0.99 if not words or rate == 1 else 0.75)
    assert len({tuple(s.tolist()) for s in slots}) > 3 * T, 'another mask for each sample'
    again, _ = choose_words(tokens, pad, noise, rate, S, start if words else None)
    assert torch.equal(slots, again)


def test_masks_are_uniform_and_differ_by_sample():
    m = build(parts='xmm_image:1')
    batch = make_batch(m.config, 2000)
    keep = round(m.config.n_patches * m.config.keep_lo)
    kept = batch['noise_image'].argsort(1)[:, :keep]
    share = torch.bincount(kept.flatten(), minlength=m.config.n_patches) / 2000
    assert (share - m.config.keep_lo).abs().max() < 0.05 and len(
        {tuple(sorted(k.tolist())) for k in kept[:100]}
    ) > 60


def test_masked_mean_is_the_mean_over_samples_of_their_means():
    loss, mask = (
        torch.tensor([[1.0, 2.0, 9.0], [4.0, 0.0, 0.0], [7.0, 7.0, 7.0]]),
        torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]]),
    )
    assert masked_mean(loss, mask).item() == pytest.approx((1.5 + 4 + 0) / 3)


def test_the_plan_is_by_position():
    at = plan_positions('xmm_text:7,xmm_image:7,amm_text:1,amm_image:1', 64)
    assert {k: len(v) for k, v in at.items()} == dict(
        xmm_text=28, amm_text=4, xmm_image=28, amm_image=4
    )
    assert sorted(sum(at.values(), [])) == list(range(64))
    again = plan_positions('xmm_text:7,xmm_image:7,amm_text:1,amm_image:1', 16)
    assert all([p % 16 for p in at[k]] == again[k] * 4 for k in at), (
        'the same for every 16: two ranks of 32 are one of 64'
    )


def test_patchify_is_undone_and_says_what_it_says():
    x = torch.arange(2 * 16 * 16 * 3).view(2, 16, 16, 3)
    y = patchify(x, 4)
    assert torch.equal(unpatchify(y, 4), x) and torch.equal(y[1, 5].view(4, 4, 3), x[1, 4:8, 4:8])


def test_mim_targets_are_the_removed_patches_themselves():
    """A predictor that gives back the true patches has no loss; one that errs on kept patches alone
    neither."""
    m = build(parts='xmm_image:1', itc=0.0, mlm=0.0)
    batch = make_batch(m.config)
    x = m.normalise(batch['patches'])
    gone = torch.ones(B, m.config.n_patches).scatter(
        1, batch['noise_image'].argsort(1)[:, : round(0.25 * m.config.n_patches)], 0.0
    )
    m.predictor.forward = lambda *a: x
    assert m(batch)[1]['mim'] == 0
    m.predictor.forward = lambda *a: x + 9 * (1 - gone)[..., None]
    assert m(batch)[1]['mim'] == 0
    m.predictor.forward = lambda *a: x + 2 * gone[..., None]
    assert m(batch)[1]['mim'].item() == pytest.approx(4, rel=1e-4)


# --- objectives -----------------------------------------------------------------------------------


def test_frames_of_one_video_are_no_negatives():
    m, g = build(), torch.Generator().manual_seed(0)
    a, b = (F.normalize(torch.randn(6, 16, generator=g), dim=-1) for _ in range(2))
    video = torch.tensor([0, 0, 1, 2, 2, 2])
    want = 0
    for x, y in (a, b), (b, a):
        logits = m.logit_scale.exp() * x @ y.T
        for i in range(6):
            rivals = [j for j in range(6) if j == i or video[j] != video[i]]
            want += (logits[i, rivals].logsumexp(0) - logits[i, i]) / 12
    assert torch.allclose(m.itc_loss(a, b, torch.stack([video, torch.arange(6)]), None), want)


def test_norm_pix_is_maes():
    m = build(mim_target='norm_pix')
    x = torch.randn(3, 16, 192)
    want = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=True) + 1e-6) ** 0.5
    assert torch.allclose(m.mim_targets(x), want)


def test_the_block_is_torchs():
    block, D = models.Block(32, 4), 32
    theirs = torch.nn.TransformerEncoderLayer(
        D,
        4,
        4 * D,
        dropout=0,
        activation='gelu',
        layer_norm_eps=1e-6,
        batch_first=True,
        norm_first=True,
    )
    theirs.load_state_dict(
        {
            'self_attn.in_proj_weight': block.attn.qkv.weight,
            'self_attn.in_proj_bias': block.attn.qkv.bias,
            'self_attn.out_proj.weight': block.attn.proj.weight,
            'self_attn.out_proj.bias': block.attn.proj.bias,
            'linear1.weight': block.mlp.fc1.weight,
            'linear1.bias': block.mlp.fc1.bias,
            'linear2.weight': block.mlp.fc2.weight,
            'linear2.bias': block.mlp.fc2.bias,
            'norm1.weight': block.norm1.weight,
            'norm1.bias': block.norm1.bias,
            'norm2.weight': block.norm2.weight,
            'norm2.bias': block.norm2.bias,
        }
    )
    x, pad = torch.randn(5, 9, D), torch.arange(9) >= torch.tensor([9, 3, 5, 1, 8])[:, None]
    assert torch.allclose(
        models.run([block], x, pad)[~pad], theirs(x, src_key_padding_mask=pad)[~pad], atol=1e-5
    )
    assert torch.allclose(models.run([block], x), theirs(x), atol=1e-5)


def test_the_ends_of_the_dial():
    m = build(n_unimodal=3, parts='clean:1', mlm=0.0, mim=0.0)
    assert not hasattr(m, 'norm') and m(make_batch(m.config))[0].isfinite()
    text = m.embed_text(make_batch(m.config)['tokens'])
    assert torch.equal(build(n_unimodal=0).unimodal(text), text)


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(n_unimodal=3), 'joint layers'),
        (dict(parts='xmm_txt:1'), 'xmm_text'),
        (dict(parts='xmm_text'), 'name:count'),
        (dict(mlm=0.0, mim=0.0, itc=0.0), 'no objective'),
        (dict(image_size=30), 'multiple of patch_size'),
        (dict(n_embd=33), 'multiple of n_head'),
        (dict(n_unimodal=4), 'from 0 to n_layer'),
        (dict(keep_lo=0.0), 'keep_lo'),
        (dict(keep_lo=1.0), 'nothing to paint'),
        (dict(mlm=0.0, mim=0.0), 'nothing uses the joint layers'),
        (dict(mask_rate=0.0), 'mask_rate'),
        (dict(itm=1.0, n_unimodal=3, parts='clean:1'), 'joint layers'),
        (dict(queue_size=-8), 'queue'),
        (dict(psl=1.0, n_unimodal=0, parts='xmm_image:1'), 'pictures alone'),
        (dict(psl=1.0, itc=0.0), 'needs itc'),
        (dict(tag=1.0, mlm=0.0), 'needs mlm'),
        (dict(tag=1.0, n_unimodal=0), 'pictures alone'),
        (dict(distill=1.0), 'below 1'),
    ],
)
def test_wrong_settings_are_explained(settings, words):
    with pytest.raises(ValueError, match=words):
        VLConfig(**SMALL | settings)


def test_sample_cost_at_the_reference_setting():
    """ViT-B/16, 256 px, T = 32: counted on the meta device, where nothing is computed."""
    c = dict(
        image_size=256,
        patch_size=16,
        full_size=288,
        vocab_size=30000,
        n_keywords=4000,
        n_layer=12,
        n_unimodal=8,
        n_head=12,
        n_embd=768,
        proj_dim=256,
        parts=SMALL['parts'],
    )
    assert 60 < cost(VLConfig(**c))[0] < 107, 'GFLOP per pair without itm, psl and a teacher'
    assert 100 < cost(VLConfig(**c, itm=1.0, psl=1.0, distill=0.4))[0] < 112


@every_plan
def test_positions_that_nobody_reads_change_nothing(plan, monkeypatch):
    """The last layers compute what is read of them: losses and gradients as of all positions."""
    m = build(**PLANS[plan])
    batch = make_batch(m.config)

    def learn():
        m.zero_grad()
        loss, terms = m(batch)
        loss.backward()
        return terms, {n: p.grad for n, p in m.named_parameters() if p.grad is not None}

    fewer, real, longer = learn(), models.run, []

    def run(blocks, x, pad=None, n=None):
        x = real(blocks, x, pad)
        longer.append(n is not None and len(blocks) and x.shape[1] > n)
        return x if n == 1 else x[:, :n]  # whoever reads more than [CLS] finds it

    monkeypatch.setattr(models, 'run', run)
    m.load_state_dict(build(**PLANS[plan]).state_dict())  # for a queue has learned
    every = learn()
    assert any(longer) or plan in ('image_only', 'text_only'), plan
    for some, all_of in zip(fewer, every):
        assert some.keys() == all_of.keys()
        for name in some:
            assert torch.allclose(some[name], all_of[name], atol=2e-5, rtol=1e-4), name


# --- use ------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    encoding = gpt2_encoding()
    single = [i for i in range(50256) if len(encoding.decode_single_token_bytes(i)) == 1]
    vocab = np.array(sorted(single + encoding.encode_ordinary(' a red circle and blue')))
    m = VLModel(VLConfig(**SMALL | dict(vocab_size=len(vocab))), vocab)
    torch.save(dict(model=m.state_dict(), model_config=asdict(m.config)), tmp_path / 'a.pt')
    return m.eval(), str(tmp_path / 'a.pt')


def test_load_and_encode(checkpoint):
    from PIL import Image

    m, path = checkpoint
    again = models.load(path)
    assert not again.training and all(
        torch.equal(a, b) for a, b in zip(m.state_dict().values(), again.state_dict().values())
    )
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))
    one, many = again.encode_image(picture), again.encode_image([picture, picture.rotate(90)])
    assert (
        one.shape == (16,)
        and many.shape == (2, 16)
        and torch.allclose(one, many[0], atol=1e-6)
        and torch.allclose(many.norm(dim=1), torch.ones(2))
    )
    words = again.encode_text(
        ['a red circle', 'a  red\ncircle', 'unseen wörds 日本', 'word ' * 99, '']
    )
    assert (
        words.shape == (5, 16)
        and torch.allclose(words[0], words[1])
        and words.isfinite().all()
        and not torch.allclose(words[0], words[2])
    )


def test_unknown_tokens_are_spelled_in_bytes(checkpoint):
    m, encoding = checkpoint[0], gpt2_encoding()
    ids = np.array(encoding.encode_ordinary(' a red zebra'))
    spelled = compact(ids, compact_lookup(m.vocab.numpy()))
    assert (
        len(spelled) > len(ids)
        and encoding.decode([int(m.vocab[i]) for i in spelled]) == ' a red zebra'
    )


def test_writing_and_painting_have_the_right_shapes(checkpoint):
    m, _ = checkpoint
    batch = make_batch(m.config, 3)
    words = m.write(batch['patches'], length=7, steps=3)
    assert words.shape == (3, 7) and words.max() < m.config.vocab_size, 'nothing is left masked'
    assert m.paint(words, torch.zeros(3, 8, dtype=torch.bool)).shape == (3, 16, 192)


def test_one_word_is_written_at_a_time(checkpoint, monkeypatch):
    m, _ = checkpoint
    patches, read, blank = make_batch(m.config, 3)['patches'], m.read, []

    def counted(tokens, pad):
        blank.append((tokens == m.mask_id).sum(1).unique().tolist())
        return read(tokens, pad)

    monkeypatch.setattr(m, 'read', counted)
    m.write(patches, 7)
    assert blank == [[7], [6], [5], [4], [3], [2], [1]]
    blank.clear()
    m.write(patches, 7, steps=2)
    assert blank == [[7], [3]]


@pytest.mark.parametrize('content', [b'', b'garbage', b'PK\x03\x04'])
def test_a_bad_checkpoint_is_one_line(tmp_path, content):
    (tmp_path / 'a.pt').write_bytes(content)
    for path in tmp_path / 'a.pt', tmp_path / 'absent.pt':
        with pytest.raises(SystemExit) as e:
            models.load(str(path))
        assert str(e.value).startswith('error: ') and '\n' not in str(e.value)


def test_a_checkpoint_of_another_architecture_is_one_line(checkpoint, tmp_path):
    state = torch.load(checkpoint[1], weights_only=True)
    for broken in (
        dict(state, model_config=state['model_config'] | dict(n_embd=64)),
        dict(state, model_config=dict(new_setting=1)),
        dict(model=state['model']),
        [1],
    ):
        torch.save(broken, tmp_path / 'b.pt')
        with pytest.raises(SystemExit, match='error: .*b.pt is not a checkpoint'):
            models.load(str(tmp_path / 'b.pt'))


def test_a_checkpoint_of_before_tag_still_loads(tmp_path):
    m = build(psl=1.0, distill=0.4)
    state = m.state_dict() | {f'{who}keyword': torch.arange(V) for who in ('', 'teacher.')}
    config = asdict(m.config) | dict(psl_variant='simla', itc_variant='softmax')
    torch.save(dict(model=state, model_config=config), tmp_path / 'a.pt')
    assert torch.equal(
        models.load(str(tmp_path / 'a.pt')).keyword_head.weight, m.keyword_head.weight
    )


def test_heads_over_words_follow_the_words_into_another_vocabulary(tmp_path):
    m = build(psl=1.0, tag=1.0, n_keywords=9)
    torch.save(dict(model=m.state_dict(), model_config=asdict(m.config)), tmp_path / 'a.pt')
    c = VLConfig(**SMALL | dict(psl=1.0, vocab_size=V - 1))
    now = VLModel(c, vocab=torch.arange(1, V))
    loaded, left = load_weights(now, str(tmp_path / 'a.pt'))[:2]
    assert torch.equal(now.keyword_head.weight, m.keyword_head.weight[1:])
    assert torch.equal(now.tok_embed.weight, m.tok_embed.weight[1:])
    assert left == ['tag_bias'] and 'keyword_head.bias' in loaded


@pytest.mark.filterwarnings('ignore')
@pytest.mark.xdist_group('compiled')
def test_one_graph_is_compiled_once():
    """No graph break, no recompilation whatever is in a batch, and the same loss as without."""
    import torch._dynamo
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    everything = PLANS['full'] | dict(parts=EVERY, n_layer=2, n_unimodal=1)
    m, counter = build(**everything), CompileCounter()
    compiled = torch.compile(m, backend=counter)
    for seed in range(3):
        assert torch.equal(
            compiled(make_batch(m.config, seed=seed))[0], m(make_batch(m.config, seed=seed))[0]
        )
    assert counter.frame_count == 1


# --- a pretrained ViT -----------------------------------------------------------------------------


def timm_vit(name, image_size=32, **settings):
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    vit = timm.create_model(
        name, img_size=image_size, patch_size=8, embed_dim=32, num_heads=2, depth=3, **settings
    )
    for p in vit.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return vit.eval()


@pytest.mark.parametrize(
    'name, image_size, wrap',
    [
        ('vit_tiny_patch16_224', 32, lambda x: x),
        ('vit_tiny_patch16_224', 48, lambda x: dict(state_dict=x, epoch=3)),
        ('vit_small_patch14_dinov2', 32, lambda x: {f'module.{k}': v for k, v in x.items()}),
        ('deit3_small_patch16_224', 48, lambda x: dict(state_dict_ema=x, model=None)),
        (
            'vit_small_patch16_224',
            32,
            lambda x: dict(student=None, teacher={f'backbone.{k}': v for k, v in x.items()}),
        ),
        (
            'deit_small_patch16_224',
            32,
            lambda x: dict(
                model={f'_orig_mod.{k}': v for k, v in x.items()}, args=argparse.Namespace(lr=1)
            ),
        ),
    ],
)
def test_a_vit_of_timm_gives_the_same_states(name, image_size, wrap, tmp_path):
    """Layer scale, positions without [CLS], wrappers, prefixes, the settings of a training script:
    timm's own states, to 1e-5."""
    vit = timm_vit(name, image_size)
    torch.save(wrap(vit.state_dict()), tmp_path / 'vit.pth')
    m = build(
        image_size=image_size,
        full_size=image_size,
        n_unimodal=3,
        parts='image_only:1',
        itc=0.0,
        mlm=0.0,
    )
    loaded, left = load_weights(m, tmp_path / 'vit.pth')
    assert all(told.startswith(('head', 'n_head')) for told in left)
    m.type_embed.data.zero_()
    images = torch.randn(2, 3, image_size, image_size)
    x = patchify(images.permute(0, 2, 3, 1), 8)
    assert torch.allclose(m.norm(m.see(x)), vit.forward_features(images), atol=1e-5)


@pytest.mark.parametrize(
    'name, settings, lacking',
    [
        ('vit_base_patch16_clip_224', {}, 'norm_pre'),
        ('vit_small_patch16_224', dict(qk_norm=True), 'q_norm'),
        ('vit_small_patch14_reg4_dinov2', {}, 'reg_token'),
        ('vit_small_patch16_224', dict(in_chans=1), '3 channels'),
    ],
)
def test_a_vit_that_this_trunk_is_not_is_refused(name, settings, lacking, tmp_path):
    torch.save(timm_vit(name, **settings).state_dict(), tmp_path / 'vit.pth')
    with pytest.raises(ValueError, match=lacking) as e:
        load_weights(build(), tmp_path / 'vit.pth')
    assert '\n' not in str(e.value)


def vit_state(D=32, n=4, depth=3, p=8):
    def block(i):
        return {
            f'blocks.{i}.{k}': torch.randn(s)
            for k, s in {
                'norm1.weight': D,
                'norm1.bias': D,
                'attn.qkv.weight': (3 * D, D),
                'attn.qkv.bias': 3 * D,
                'attn.proj.weight': (D, D),
                'attn.proj.bias': D,
                'norm2.weight': D,
                'norm2.bias': D,
                'mlp.fc1.weight': (4 * D, D),
                'mlp.fc1.bias': 4 * D,
                'mlp.fc2.weight': (D, 4 * D),
                'mlp.fc2.bias': D,
            }.items()
        }

    return {
        'cls_token': torch.randn(1, 1, D),
        'pos_embed': torch.randn(1, 1 + n * n, D),
        'patch_embed.proj.weight': torch.randn(D, 3, p, p),
        'patch_embed.proj.bias': torch.randn(D),
        'norm.weight': torch.randn(D),
        'norm.bias': torch.randn(D),
        'head.weight': torch.randn(10, D),
    } | {k: v for i in range(depth) for k, v in block(i).items()}


def test_vit_weights_of_every_kind_are_loaded_and_told(tmp_path):
    from safetensors.torch import save_file

    state = vit_state()
    save_file(state, tmp_path / 'a.safetensors')
    torch.save(dict(model=state), tmp_path / 'a.pth')
    for name in 'a.safetensors', 'a.pth':
        m = build(distill=0.4)
        loaded, left = load_weights(m, tmp_path / name)
        assert left[0] == 'head.weight' and left[1].startswith('n_head, which no shape tells')
        assert torch.equal(m.blocks[2].mlp.fc2.weight, state['blocks.2.mlp.fc2.weight'])
        assert torch.equal(m.pos_embed, state['pos_embed']) and torch.equal(
            m.teacher.cls_token, state['cls_token']
        )
    pos = torch.arange(9.0).view(1, 3, 3, 1).expand(1, 3, 3, 32).reshape(1, 9, 32)
    torch.save(
        state | {'pos_embed': torch.cat([torch.zeros(1, 2, 32), pos], 1)}, tmp_path / 'deit.pth'
    )  # a distillation token, another grid
    load_weights(m, tmp_path / 'deit.pth')
    assert (
        m.pos_embed[0, 1, 0] < m.pos_embed[0, 4, 0] < m.pos_embed[0, 13, 0] < m.pos_embed[0, 16, 0]
    )
    (tmp_path / 'garbage.pth').write_bytes(b'garbage')
    shape = state['patch_embed.proj.weight'].shape
    for other, words in (
        (vit_state(D=48), 'set n_embd'),
        ({'weight': torch.zeros(3)}, 'not a ViT'),
        ([1, 2], 'cannot be read'),
        (dict(model=[state]), 'not a ViT'),
        ({f'{who}.{k}': v for who in ('a', 'b') for k, v in state.items()}, 'several ViTs: a., b.'),
        (state | {'pos_embed': torch.randn(17, 32)}, 'no pos_embed of'),
        (state | {'pos_embed': torch.randn(1, 4, 4, 32)}, 'no pos_embed of'),
        (state | {'pos_embed': torch.randn(1, 1 + 14 * 7, 32)}, '99 positions: no square grid'),
        (state | {'patch_embed.proj.weight': torch.randn(*shape[:2], 2, *shape[2:])}, '3 channels'),
        (state | {'blocks.1.attn.rope.periods': torch.randn(4)}, 'rope.periods .*lacks'),
        (dict(model=state, when=time.struct_time(range(9))), "holds a time.struct_time: save its"),
    ):
        torch.save(other, tmp_path / 'other.pth')
        with pytest.raises(ValueError, match=words) as e:
            load_weights(m, tmp_path / 'other.pth')
        assert '\n' not in str(e.value) and '\x1b' not in str(e.value)
    for name in 'garbage.pth', 'absent.pth':
        with pytest.raises(ValueError, match='cannot be read'):
            load_weights(m, tmp_path / name)


def test_two_biases_of_three_and_both_kinds_of_layer_scale_are_folded(tmp_path):
    """BEiT's and EVA's: q_bias and v_bias, none for the keys; gamma_1 and gamma_2."""
    state, D = vit_state(), 32
    torch.save(state, tmp_path / 'plain.pth')
    for i in range(3):
        bias = state[f'blocks.{i}.attn.qkv.bias']
        bias[D : 2 * D] = 0
        state[f'blocks.{i}.attn.q_bias'] = bias[:D]
        state[f'blocks.{i}.attn.v_bias'] = bias[2 * D :]
        state[f'blocks.{i}.attn.k_bias'] = torch.zeros(D)
        del state[f'blocks.{i}.attn.qkv.bias']
        for k in 1, 2:
            state[f'blocks.{i}.gamma_{k}'] = torch.rand(D)
    torch.save(state, tmp_path / 'folded.pth')
    m, n = build(), build()
    load_weights(m, tmp_path / 'plain.pth')
    load_weights(n, tmp_path / 'folded.pth')
    x = torch.randn(2, 17, D)
    for i, (a, b) in enumerate(zip(m.blocks, n.blocks)):
        with torch.no_grad():
            a.attn.qkv.bias[D : 2 * D] = 0
        want = x + state[f'blocks.{i}.gamma_1'] * a.attn(a.norm1(x), None)
        want = want + state[f'blocks.{i}.gamma_2'] * a.mlp(a.norm2(want))
        assert torch.allclose(b(x), want, atol=1e-4)


def test_a_former_run_gives_its_weights_word_by_word(tmp_path):
    """Fine-tuning on other data: words are found by their ids in the tokenizer, new ones stay as
    they were drawn, the teacher starts as the student."""
    a, b = build(distill=0.4), build(seed=1, distill=0.4)
    b.vocab += 5
    for p in a.parameters():
        torch.nn.init.normal_(p)
    torch.save(dict(model=a.state_dict(), model_config=asdict(a.config)), tmp_path / 'best.pt')
    fresh = b.tok_embed.weight.detach().clone()
    loaded, left = load_weights(b, tmp_path / 'best.pt')
    assert left == [f'5 of {V} words'] and {
        n for n, _ in b.named_parameters() if not n.startswith('teacher')
    } <= set(loaded)
    assert torch.equal(b.tok_embed.weight[: V - 5], a.tok_embed.weight[5:V]) and torch.equal(
        b.tok_embed.weight[V - 5 : V], fresh[V - 5 : V]
    )
    assert torch.equal(b.tok_embed.weight[V:], a.tok_embed.weight[V:]) and torch.equal(
        b.blocks[1].attn.qkv.weight, a.blocks[1].attn.qkv.weight
    )
    assert torch.equal(b.teacher.blocks[1].attn.qkv.weight, a.blocks[1].attn.qkv.weight)
    with pytest.raises(ValueError, match='set n_embd'):
        load_weights(build(n_embd=64), tmp_path / 'best.pt')
    with pytest.raises(ValueError, match='n_head=2, this model 4: set n_head'):
        load_weights(build(n_head=4), tmp_path / 'best.pt')
    larger = build(image_size=40)
    loaded, left = load_weights(larger, tmp_path / 'best.pt')
    assert {'pos_embed', 'predictor.pos_embed'} <= set(loaded)
    for mine, its in (
        (larger.pos_embed[:, 1:], a.pos_embed[:, 1:]),
        (larger.predictor.pos_embed, a.predictor.pos_embed),
    ):
        its = its.view(1, 4, 4, -1).permute(0, 3, 1, 2)
        want = F.interpolate(its, (5, 5), mode='bicubic').permute(0, 2, 3, 1)
        assert torch.allclose(mine.reshape(want.shape), want)


# --- negatives, teacher, queue, keywords ----------------------------------------------------------


def test_weights_weigh():
    """Half the weight, half the share of the loss: none of them is a switch."""
    settings = dict(n_keywords=V // 2, parts=EVERY)
    weights = dict(mlm=0.5, mim=0.25, itc=2.0, itm=0.1, psl=0.7, tag=0.3)
    m = build(**settings, **weights)
    loss, terms = m(make_batch(m.config))
    assert loss.item() == pytest.approx(
        sum(w * terms[k].item() for k, w in weights.items()), rel=1e-5
    )


def test_activations_of_words_that_are_not_masked_never_become_logits(monkeypatch):
    """The widest matrix of the model sees the masked slots alone."""
    m, seen = build(parts='xmm_text:1', whole_word=False), []
    monkeypatch.setattr(
        m,
        'word_logits',
        lambda states, real=m.word_logits: seen.append(states.shape) or real(states),
    )
    m(make_batch(m.config))
    assert seen == [(B * math.ceil(T * m.config.mask_rate), 32)]


def test_hard_negatives_are_drawn_by_similarity_and_never_alike():
    m, g, n = build(itm=1.0), torch.Generator().manual_seed(0), 6
    similar, alike = torch.randn(n, n, generator=g) * 2, torch.eye(n, dtype=torch.bool)
    alike[0, 1] = alike[1, 0] = True
    count, want = torch.zeros(n, n), similar.masked_fill(alike, -math.inf).softmax(1)
    for _ in range(4000):
        picture, words, possible = m.negatives(similar, alike, torch.rand(n, n, generator=g))
        assert (
            not alike[torch.arange(n), picture].any()
            and not alike[words, torch.arange(n)].any()
            and possible.all()
        )
        count[torch.arange(n), picture] += 1
    assert (count / 4000 - want).abs().max() < 0.04, 'the Gumbel trick draws from the softmax'
    assert not m.negatives(similar, torch.ones(n, n, dtype=torch.bool), torch.rand(n, n))[
        2
    ].any(), 'nobody to choose from'


def test_matched_pairs_are_true_and_mismatched_ones_are_not():
    """A head that sees whether the words belong to the picture must be right: the rows of the joint
    pass are traced by their values."""
    m = build(itm=1.0, mlm=0.0, mim=0.0, parts='clean:1', keep_hi=1.0)
    batch, seen = make_batch(m.config, 16), {}

    def fuse(text, image, pad, n):
        seen.update(text=text, image=image, pad=pad)
        return VLModel.fuse(m, text, image, pad, n)

    m.fuse = fuse
    m(batch)
    whole, pictures = (
        m.unimodal(m.embed_text(batch['tokens']), F.pad(batch['pad'], (1, 0))),
        m.unimodal(m.embed_image(m.normalise(batch['patches']))),
    )
    ids = batch['noise_image'].argsort(1)
    who_text = [int((whole[:, 0] - t[0]).abs().sum(1).argmin()) for t in seen['text']]
    full = m.unimodal(m.embed_image(m.normalise(batch['patches']), ids))[:, 0]
    who_image = [int((full - v[0]).abs().sum(1).argmin()) for v in seen['image']]
    assert who_text[:16] == who_image[:16] == list(range(16))
    assert seen['image'].shape == (32, pictures.shape[1] // 2, 32)
    assert all(a != b for a, b in zip(who_text[16:], who_image[16:]))
    assert who_text[16::2] == list(range(0, 16, 2)) and who_image[17::2] == list(range(1, 16, 2)), (
        'other pictures and other words, in turn'
    )
    assert (seen['pad'][16:] == F.pad(batch['pad'], (1, 0))[who_text[16:]]).all()


def test_what_was_asked_for_and_has_nothing_to_work_on_says_so():
    with pytest.raises(ValueError, match='itm has no part of xmm_image:1 to work on'):
        build(itm=1.0, parts='xmm_image:1')
    with pytest.raises(ValueError, match='psl has no part of clean:1,xmm_text:1 to work on'):
        build(psl=1.0, parts='clean:1,xmm_text:1')
    with pytest.raises(ValueError, match='tag has no part of xmm_image:1 to work on'):
        build(tag=1.0, parts='xmm_image:1')


def test_the_teacher_follows_slowly_without_gradient_or_training_mode():
    assert build(psl=1.0).teacher is None, 'only soft targets and a queue ask for one'
    m = build(distill=0.4, distill_iters=10)
    m.train()
    assert (
        not m.teacher.training
        and not any(p.requires_grad for p in m.teacher.parameters())
        and m.teacher.teacher is None
    )
    with torch.no_grad():
        m.patch_embed.bias += 1
    m.follow(4)
    assert torch.allclose(
        m.teacher.patch_embed.bias, m.patch_embed.bias - 5 / 14, atol=1e-6
    ) and math.isclose(m.alpha, 0.4 * 0.5, rel_tol=1e-6)
    m.follow(100_000)
    assert torch.allclose(
        m.teacher.patch_embed.bias, m.patch_embed.bias - 5 / 14 * 0.995, atol=1e-6
    ) and math.isclose(m.alpha, 0.4, rel_tol=1e-6)
    loss, _ = m(make_batch(m.config))
    loss.backward()
    assert all(p.grad is None for p in m.teacher.parameters())


def test_distillation_is_over_the_vocabulary():
    m = build(distill=0.5)
    m.alpha.fill_(1.0)
    fused = {'xmm_text': (torch.randn(3, 1 + T, 32), None, None)}
    slots, used, targets = (
        torch.arange(5).expand(3, 5),
        torch.ones(3, 5, dtype=torch.bool),
        torch.randint(0, V, (3, 5)),
    )
    log_p = m.word_logits(fused['xmm_text'][0][:, 1:6]).log_softmax(-1)
    soft = torch.rand(3, 5, V).softmax(-1)
    loss = m.mlm_loss(fused, {'xmm_text': Words(None, slots, used, targets)}, {'xmm_text': soft})[
        'mlm'
    ]
    assert torch.allclose(loss, -(soft * log_p).sum(-1).mean(), atol=1e-5)
    m.alpha.fill_(0.0)
    assert torch.allclose(
        m.mlm_loss(fused, {'xmm_text': Words(None, slots, used, targets)}, {'xmm_text': soft})[
            'mlm'
        ],
        -log_p.gather(2, targets[..., None]).mean(),
        atol=1e-5,
    )


def test_the_queue_holds_what_was_enqueued_and_forgets_the_oldest():
    m, g = build(queue_size=8, distill=0.4), torch.Generator().manual_seed(0)
    z = [F.normalize(torch.randn(6, 16, generator=g), dim=-1) for _ in range(4)]
    ids = torch.arange(12).view(2, 6)
    before = m.itc_loss(z[0], z[1], ids, (z[2], z[3]))
    assert torch.allclose(before, build(distill=0.4).itc_loss(z[0], z[1], ids, (z[2], z[3]))), (
        'empty places do not count'
    )
    assert (
        (m.queue_ids[:, :6] == ids).all()
        and torch.equal(m.queue_image[:6], z[2])
        and torch.equal(m.queue_text[:6], z[3])
        and int(m.queue_at) == 6
    )
    more = m.itc_loss(z[0], z[1], ids + 100, (z[2], z[3]))
    assert more > before, 'more candidates'
    assert m.queue_ids[0].tolist() == [102, 103, 104, 105, 4, 5, 100, 101] and int(m.queue_at) == 4
    m.eval()
    m.itc_loss(z[0], z[1], ids, (z[2], z[3]))
    assert int(m.queue_at) == 4, 'validation leaves no trace'


def test_a_word_said_twice_stays_a_pseudo_label(monkeypatch):
    """Votes for a word's first place count, though another place of it has none."""
    m, seen = build(psl=1.0, itm=1.0), []
    monkeypatch.setattr(
        F, 'binary_cross_entropy_with_logits', lambda z, target: seen.append(target) or z.mean()
    )
    tokens, votes = torch.full((1, T), 7), torch.zeros(1, m.config.n_head, T)
    tokens[0, 1:4], votes[:, :, :4] = torch.tensor([8, 9, 10]), 1.0
    m.keyword_loss(torch.randn(1, 32), None, votes, tokens, torch.zeros(1, T, dtype=torch.bool))
    assert seen[0][0].nonzero().flatten().tolist() == [7, 8, 9, 10]


def test_a_picture_is_tagged_with_the_content_words_of_its_text_by_any_of_its_patches():
    """Recomputed by hand; words that are no content words, said twice or padding change nothing."""
    m = build(tag=1.0, itc=0.0, mim=0.0, parts='xmm_text:1', n_keywords=30).eval()
    torch.nn.init.normal_(m.mlm_bias)
    batch = make_batch(m.config, 4)
    batch['tokens'][0, :4], batch['pad'][0] = torch.tensor([8, 8, 9, 20]), torch.arange(T) > 3
    want, keep = [], batch['noise_image'].argsort(1)[:, :8]
    for i in range(4):
        states = m.see(m.normalise(batch['patches'][[i]]), keep[[i]])[0, 1:]
        each = m.word_logits(m.norm(states))[:, m.keywords] + m.tag_bias
        tags = each.exp().mean(0).log()
        tokens = batch['tokens'][i][~batch['pad'][i]].tolist()
        said = torch.tensor([k in tokens for k in m.keywords.tolist()])
        assert i or m.keywords[said].tolist() == [8, 20]
        want.append(-(tags.sigmoid().log()[said].sum() + (-tags).sigmoid().log()[~said].sum()))
    assert m(batch)[1]['tag'].item() == pytest.approx(sum(want).item() / 4, rel=1e-4)

    same = {k: v.clone() for k, v in batch.items()}
    same['tokens'][0, :6] = torch.tensor([20, 8, 11, 20, 2, 4])
    assert torch.equal(m(same)[1]['tag'], m(batch)[1]['tag'])
    same['tokens'][0, 0] = 22
    assert not torch.equal(m(same)[1]['tag'], m(batch)[1]['tag'])


def test_patches_that_are_not_shown_tag_nothing():
    m = build(tag=1.0, itc=0.0, mim=0.0, parts='xmm_text:1', n_keywords=30).eval()
    batch = make_batch(m.config, 4)
    gone = batch['noise_image'].argsort(1)[:, m.config.n_patches // 2 :]
    other = batch | dict(patches=batch['patches'].clone())
    other['patches'][torch.arange(4)[:, None], gone] = (
        255 - other['patches'][torch.arange(4)[:, None], gone]
    )
    assert torch.equal(m(batch)[1]['tag'], m(other)[1]['tag'])


def test_cls_row_is_the_attention_of_the_first_position():
    attention, x, pad = (
        models.Attention(32, 4),
        torch.randn(2, 7, 32),
        torch.tensor([[0] * 7, [0] * 5 + [1] * 2]).bool(),
    )
    weights = attention.cls_row(x, ~pad[:, None, None])
    v = attention.qkv(x).view(2, 7, 3, 4, 8)[:, :, 2]  # (2, 7, 4, 8)
    mixed = attention.proj(torch.einsum('bhl,blhd->bhd', weights, v).flatten(1))
    assert torch.allclose(mixed, attention(x, ~pad[:, None, None])[:, 0], atol=1e-5)
    assert torch.allclose(weights.sum(2), torch.ones(2, 4)) and (weights[1, :, 5:] == 0).all()


def test_equal_sentences_have_equal_numbers():
    tokens, pad = (
        torch.randint(0, V, (500, T)),
        torch.arange(T) >= torch.randint(1, T + 1, (500, 1)),
    )
    number = models.sentence(tokens, pad)
    assert torch.equal(number, models.sentence(torch.where(pad, 5, tokens), pad))
    assert len(number.unique()) == len({tuple(t[~p].tolist()) for t, p in zip(tokens, pad)})
    assert (number >= 0).all()
