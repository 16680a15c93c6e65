"""What a run learned: numbers into out/<run>/eval.json, pictures into out/<run>/*.png.

    python eval.py --run=out/demo                                   everything, on the held-out videos
    python eval.py --run=out/demo --task=retrieval --candidates=1000
    python eval.py --run=out/demo --truth=data/scenes/videos/truth  also by concept and colour
    python eval.py --run=out/demo --task=search --query="a red circle"      a file of runs/, and its
    python eval.py --run=out/demo --task=search -h                          own settings
    python eval.py --table='out/*'                                  compare runs: the knobs that differ

Judged are zero-shot retrieval both ways; masked words with the right picture, another one and none
(the honest test that pictures are used); PSNR of painted patches; pictures from words alone and
words from pictures alone. All on videos that training never saw, windows in the middle.

n pictures and m texts, B samples, T text tokens (1 + T with [CLS]), N patches of P values, D width.
"""
import hashlib, importlib, json, math, re, sys, tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

import model as models
from configurator import at_least, configure
from data.arrays import CAPTIONS, Frames, open_sets, unpatchify
from data.pictures import as_picture, sheet
from data.scenes import truth as truths
from model import take
from runs.caption import as_text
from runs.machine import open_device
from runs.paint import to_pixels
from runs.table import compare

run = 'out/run'                  # a folder of train.py
checkpoint: Literal['best', 'latest'] = 'best'
dataset = ''                     # data/<dataset>; default: the run's own
split: Literal['test', 'val', 'train'] = 'test'
task = 'retrieval,words,patches,keywords,ground,pictures,curves'     # or one file of runs/
candidates = 1000                # pairs to retrieve among, at most: their words do not overlap
rerank = 16                      # itm looks again at so many of itc's best
table = ''                       # a pattern of run folders to compare, instead of --run
truth = ''                       # folder with NAME.json per video: what is to be seen when
seed = 0
n_pictures = 8                   # rows of the pictures
write_length = 16                # tokens written about a picture
batch_size = 64
device = 'auto'

MATRIX = 1000                    # pictures to rank by likelihood, at most: each with every text
MATCHED = 200                    # pictures that itm ranks without itc to choose the best by

# ----------------------------------------------------------------------------------------------
# the run

def open_run(config):
    """The checkpoint of --run -> model; k: every setting, and what belongs to the run."""
    k = SimpleNamespace(**config)
    path = Path(k.run) / f'{k.checkpoint}.pt'
    if k.checkpoint == 'best' and not path.exists():                   # a run without validation
        path = path.with_name('latest.pt')
    model, state = models.read_checkpoint(path, open_device(k.device))
    k.data_dir, k.context_s = state['config']['data_dir'], state['config']['context_s']
    k.dataset = k.dataset or state['config']['dataset'].split(',')[0]
    k.iteration = state.get('iter_num')
    with open(path, 'rb') as f:                                        # whatever the file is called
        k.weights = hashlib.file_digest(f, 'sha256').hexdigest()[:12]
    return model, k

def elsewhere(data, ids):
    """A permutation that gives each frame a partner of another video: half way round, as ids are
    sorted by video. None if one video has more than half."""
    video = data.frames['video'][ids]
    other = np.roll(np.arange(len(ids)), len(ids) // 2)
    return other if (video[other] != video).all() else None

def repainting(c):
    """Parts of the run that paint removed patches from those that stay."""
    parts = [models.PARTS[name] for name in c.plan]
    return [part for part in parts if part.paints and part.sees]

# ----------------------------------------------------------------------------------------------
# retrieval

def hits(score, same):
    """score (q, n) of queries against candidates, same (q, n) bool: which are right -> rank of each
    query's best right candidate, 0 is best. Ties and what is not a number count against it, other
    right ones do not."""
    best = score.masked_fill(~same, -math.inf).max(1, keepdim=True).values
    return (~(score < best) & ~same).sum(1)

def recalls(rank):
    found = {f'r{n}': (rank < n).float().mean().item() for n in (1, 5, 10)}
    return found | dict(median_rank=rank.median().item() + 1)

class Kept(NamedTuple):
    """What is ranked: n pictures, m texts; states and embeddings None where nothing needs them."""
    start: np.ndarray              # (m,) the words of each text
    length: np.ndarray
    owner: torch.Tensor            # (m,) its picture
    tokens: torch.Tensor           # (m, T)
    pad: torch.Tensor              # (m, 1 + T)
    z_image: torch.Tensor          # (n, proj_dim)
    z_text: torch.Tensor
    image: torch.Tensor            # (n, 1 + N, D) unimodal states, float16
    text: torch.Tensor

    def sides(self, way):
        """-> queries, the picture of each, candidates, the picture of each."""
        images = self.z_image, torch.arange(len(self.z_image))
        texts = self.z_text, self.owner
        return (*images, *texts) if way == 'i2t' else (*texts, *images)

def every_caption(data, ids, start, length):
    """All captions of the pictures of a list, else the words of each frame -> start, length (m,),
    owner (m,): which of ids they are of."""
    found = []
    for i, video in enumerate(data.frames['video'][ids]):
        if data.videos['flags'][video] & CAPTIONS:
            found += [(a, n, i) for a, n in zip(*data.captions(video)) if n]
        else:
            found.append((start[i], length[i], i))
    return np.array(found).reshape(-1, 3).T

def encode(model, batches, proj, states_too, folder):
    """Batches of (unimodal states (B, L, D), pad or None) -> ITC embeddings (n, proj_dim), or None
    without proj; the states (n, L, D) float16, or None, in a file that the system pages in and
    out: memory stays bounded however many there are."""
    file, z, kept = tempfile.TemporaryFile(dir=folder), [], None
    for states, pad in batches:
        if proj is not None:
            z.append(model.embedding(states, proj, pad).cpu())
        if states_too:
            file.write(states.half().cpu().numpy().tobytes())
            shape = states.shape[1:]
    if states_too:
        kept = torch.from_numpy(np.memmap(file, np.float16, 'r+').reshape(-1, *shape))
    return torch.cat(z) if z else None, kept

def keep(model, data, pairs, k, images_too, texts_too):
    """-> Kept, with the states of pictures or texts, too."""
    c, device, size = model.config, model.vocab.device, k.batch_size
    ids = pairs[0]
    start, length, owner = every_caption(data, *pairs)
    tokens, pad = map(torch.from_numpy, data.words(start, length))
    pad = F.pad(pad, (1, 0))

    def images():
        for some in np.split(ids, range(size, len(ids), size)):
            yield model.see(model.normalise(data.pictures(some, c, device))), None

    def texts():
        for t, p in zip(tokens.to(device).split(size), pad.to(device).split(size)):
            yield model.read(t, p), p

    projections = (model.image_proj, model.text_proj) if c.has('itc') else (None, None)
    z_image, image = encode(model, images(), projections[0], images_too, k.run)
    z_text, text = encode(model, texts(), projections[1], texts_too, k.run)
    return Kept(start, length, torch.from_numpy(owner), tokens, pad, z_image, z_text, image, text)

def retrieval(model, data, pairs, k):
    """Both ways: by the dot product of the ITC embeddings, the best of them again by the matching
    head; by how well the words are told from the picture."""
    c = model.config
    told = c.has('mlm') and c.any('writes_all')
    matched = c.has('itm') and (k.rerank > 0 or not c.has('itc'))
    if not (c.has('itc') or told or matched):
        return dict(skipped='the run has no itc, itm or amm_text to retrieve by')
    kept = keep(model, data, pairs, k, told or matched, matched)
    out, concept = protocol(data, pairs, kept, k)
    if told:
        found, rank, top = by_likelihood(model, kept, k.batch_size)
        out |= found
    if c.has('itc'):
        for way in ('i2t', 't2i'):
            found, rank, top = by_contrast(kept, way, concept, max(k.rerank, 5))
            out |= found
            if matched:
                out |= by_matching_again(model, kept, way, top[:, :k.rerank], k.batch_size)
    elif matched:
        found, rank, top = by_matching(model, kept, k.batch_size)
        out |= found
    draw_retrieval(data, c, pairs[0], kept, rank, top, k)
    return out

def protocol(data, pairs, kept, k):
    """-> what was retrieved among, and the concept of each picture (n,), -1: unknown, or None."""
    n, m = len(pairs[0]), len(kept.owner)
    said = {tuple(data.tokens[a:a + b]) for a, b in zip(kept.start, kept.length)}
    rule = 'any caption of a picture is right'
    if m == n:
        rule = f'frames whose words do not overlap, context {k.context_s} s'
    out = dict(candidates=n, texts=m, chance_r1=1 / n, distinct_texts=len(said),
               protocol=f'{k.split} split of {data.path.name}, {n} pictures, {m} texts, '
                        f'weights: {k.checkpoint}, {rule}')
    if not k.truth:
        return out, None
    names = truths.concepts(data, pairs[0], k.truth)
    each, concept = np.unique(names, return_inverse=True)
    out |= dict(concepts=len(each), concept_chance_r1=float((names[:, None] == names).mean()))
    return out, torch.from_numpy(np.where(names == '', -1, concept))

def by_contrast(kept, way, concept, n_best):
    """By the dot product -> {name: number}; of each query, the rank of its best right candidate
    (q,) and its best candidates (q, n_best)."""
    queries, label, keys, other = kept.sides(way)
    rank, top = ranked(queries, label, keys, other, n_best)
    out = {f'{way}_{name}': v for name, v in recalls(rank).items()}
    if concept is not None and (concept[label] >= 0).any():            # the same thing is right too
        known = concept[label] >= 0
        alike, _ = ranked(queries[known], concept[label[known]], keys, concept[other], 1)
        for name, v in recalls(alike).items():
            if name != 'median_rank':
                out[f'{way}_concept_{name}'] = v
    return out, rank, top

def ranked(queries, label, keys, other, n_best):
    """256 queries at a time."""
    rank, top = [], []
    for query, mine in zip(queries.split(256), label.split(256)):
        score = query @ keys.T
        rank.append(hits(score, mine[:, None] == other))
        top.append(score.topk(min(n_best, len(keys))).indices)
    return torch.cat(rank), torch.cat(top)

def by_matching_again(model, kept, way, top, batch_size):
    """The matching head ranks the best candidates (q, n) of each query again: a right one that is
    not among them cannot come first."""
    _, label, _, other = kept.sides(way)
    query = torch.arange(len(top))[:, None].expand_as(top)
    pair = (query, top) if way == 'i2t' else (top, query)
    logit = matching(model, kept, *(x.flatten() for x in pair), batch_size).view(top.shape)
    return {f'itm_{way}_r1': recalls(hits(logit, other[top] == label[:, None]))['r1']}

def by_matching(model, kept, batch_size):
    """Nothing to choose the best by: the first pictures with all their texts."""
    some = (kept.owner < MATCHED).nonzero()[:, 0]
    i, j = torch.cartesian_prod(torch.arange(min(MATCHED, len(kept.image))), some).T
    score = matching(model, kept, i, j, batch_size).view(-1, len(some))
    return both_ways('itm', score, kept.owner[some])

def by_likelihood(model, kept, batch_size):
    some = (kept.owner < MATRIX).nonzero()[:, 0]
    score = likelihood(model, kept.image[:MATRIX], kept.tokens[some], kept.pad[some], batch_size)
    return both_ways('likelihood', score, kept.owner[some])

def both_ways(name, score, own):
    """score (n, m) of the first pictures and their texts, own (m,): the picture of each, small
    enough to be one matrix -> {name: number}; of each text rank (m,), best pictures (m, 5)."""
    same = torch.arange(len(score))[:, None] == own
    rank = hits(score.T, same.T)
    out = {f'{name}_i2t_r1': recalls(hits(score, same))['r1'],
           f'{name}_t2i_r1': recalls(rank)['r1'], f'{name}_candidates': len(score)}
    return out, rank, score.T.topk(min(5, len(score))).indices

def matching(model, kept, i, j, batch_size):
    """The matching head's logit for pictures i and texts j (pairs,) from kept states: only the
    joint layers run -> (pairs,)."""
    device, out = model.vocab.device, []
    for a, b in zip(i.split(4 * batch_size), j.split(4 * batch_size)):
        text, image = (x.to(device).float() for x in (kept.text[b], kept.image[a]))
        fused, _, _ = model.fuse(text, image, kept.pad[b].to(device))
        match = model.itm_head(fused[:, 0]).float()
        out.append((match[:, 1] - match[:, 0]).cpu())
    return torch.cat(out)

def likelihood(model, image, tokens, pad, batch_size):
    """Mean log-probability of each text's words (m, T) when the picture alone is to be seen, from
    kept states (n, 1 + N, D) -> (n, m). What is masked differs by length alone, so each picture
    is fused once for each length."""
    device, length = model.vocab.device, (~pad).sum(1) - 1
    out = torch.zeros(len(image), len(tokens))
    for n in length.unique():
        mine = (length == n).nonzero()[:, 0]
        blank = pad[mine[:1]].to(device)
        hidden = model.read(torch.full_like(tokens[:1], model.mask_id).to(device), blank)
        said = tokens[mine, :n].T[None].to(device)                     # (1, n, mine)
        for rows in torch.arange(len(image)).split(batch_size):
            B = len(rows)
            text, _, _ = model.fuse(hidden.expand(B, -1, -1), image[rows].to(device).float(),
                                    blank.expand(B, -1))
            log_p = model.word_logits(text[:, 1:1 + n]).float().log_softmax(-1)    # (B, n, V)
            out[rows[:, None], mine] = log_p.gather(2, said.expand(B, -1, -1)).mean(1).cpu()
    return out - out.mean(0)       # more than for the average picture: or short texts always win

def draw_retrieval(data, c, ids, kept, rank, top, k):
    """Words and the five pictures that come first, the right one with a green rim: hits and misses
    alike. rank (m,), top (m, n): of each text."""
    rows, n = [], len(ids) if kept.z_image is not None else min(len(ids), len(rank))
    for j in np.linspace(0, len(rank) - 1, min(k.n_pictures, len(rank))).round().astype(int):
        said = data.text(kept.start[j], kept.length[j])
        row = [f'"{said}"\n\nthe right one came {rank[j] + 1}. of {n}']
        for i in top[j, :5].tolist():
            shown = as_picture(data.pictures(ids[[i]], c, 'cpu')[0], c.patch_size)
            row.append((shown, 'green' if i == kept.owner[j] else None))
        rows.append(row)
    titles = [f'{i + 1}.' for i in range(len(rows[0]) - 1)]
    sheet(['words', *titles], rows, Path(k.run) / 'retrieval.png')

# ----------------------------------------------------------------------------------------------
# words and patches

def words(model, data, pairs, k):
    """Masked words told with the right picture, with another video's and with none: accuracy and
    bits per masked token."""
    c = model.config
    if not c.has('mlm'):
        return dict(skipped='the run has no mlm objective')
    partner = dict(right=np.arange(len(pairs[0])), shuffled=elsewhere(data, pairs[0]), none=None)
    if partner['shuffled'] is None:
        del partner['shuffled']
    everything = list(data.batches(pairs, c, model.vocab.device, k.batch_size))
    x = torch.cat([batch[1] for batch in everything])
    total, said = {name: np.zeros(2) for name in partner}, torch.zeros(c.vocab_size)
    for rows, _, tokens, pad, noise in everything:
        noise = noise[:, c.n_patches:]
        hidden = model.hide_words('xmm_text', tokens, pad[:, 1:], noise, noise[:, 0])
        text = model.read(hidden.tokens, pad)
        target = hidden.targets[hidden.used]
        said += torch.bincount(target.cpu(), minlength=c.vocab_size)
        for name, other in partner.items():
            image = None if other is None else model.see(model.normalise(x[other[rows]]))
            states = take(model.fuse(text, image, pad)[0][:, 1:], hidden.slots)
            logits = model.word_logits(states).float()[hidden.used]
            bits = F.cross_entropy(logits, target, reduction='sum') / math.log(2)
            total[name] += [(logits.argmax(-1) == target).sum().item(), bits.item()]
    return word_numbers(total, said)

def word_numbers(total, said):
    """{picture: (right, bits)}, how often each token was masked (V,) -> {name: number}."""
    n, out = int(said.sum()), {}
    for name, (right, bits) in total.items():
        out |= {f'mlm_acc_{name}': right / n, f'mlm_bits_{name}': bits / n}
    if 'shuffled' in total:        # per token: about 0 if pictures and words have nothing in common
        out['alignment_bits'] = out['mlm_bits_shuffled'] - out['mlm_bits_right']
    return out | dict(mlm_acc_commonest=(said.max() / said.sum()).item(), masked_tokens=n)

def reconstruct(model, patches, tokens, pad, noise):
    """-> painted pixels (B, N, P) of every patch from keep_lo of them and, where it has learned
    that, the words; mask (B, N), 1 = removed."""
    c, x = model.config, model.normalise(patches)
    ids_keep = noise[:, :c.n_patches].argsort(1)[:, :max(1, round(c.n_patches * c.keep_lo))]
    text = None
    if any(part.words for part in repainting(c)):
        text = model.read(tokens, pad)
    text, image, _ = model.fuse(text, model.see(x, ids_keep), pad)
    painted = model.predictor(text, model.predictor.canvas(image[:, 1:], ids_keep), pad).float()
    if c.mim_target == 'norm_pix':         # each patch is given its true statistics: labelled so
        painted = painted * (x.var(2, keepdim=True) + 1e-6).sqrt() + x.mean(2, keepdim=True)
    gone = torch.ones(x.shape[:2], device=x.device).scatter(1, ids_keep, 0.)
    return to_pixels(model, painted), gone

def psnr(squares):
    """Mean squared errors of pixels in [0, 1] -> dB of their mean."""
    return -10 * math.log10(max(float(np.mean(squares)), 1e-10))

def mean_picture(model, data):
    """Of the training set -> (N, P) in [0, 1]."""
    training = Frames(data.path, 'train', silent=True)
    sample = np.linspace(0, len(training.frames) - 1, min(2000, len(training.frames))).astype(int)
    return training.pictures(sample, model.config, model.vocab.device).float().mean(0) / 255

def patches(model, data, pairs, k):
    """PSNR of painted patches: the removed ones from the others (and the words, if it has learned
    that); all of them from the right words, from another video's, and from no idea (the mean
    picture of the training set)."""
    c = model.config
    if not c.has('mim'):
        return dict(skipped='the run does not paint pixels')
    partner = {}
    if c.any('paints_all') and c.mim_target == 'pixels':
        partner['from_words'] = np.arange(len(pairs[0]))
        other = elsewhere(data, pairs[0])
        if other is not None:
            partner['from_other_words'] = other
    mean = mean_picture(model, data)
    everything = list(data.batches(pairs, c, model.vocab.device, k.batch_size))
    tokens, pad = (torch.cat([batch[i] for batch in everything]) for i in (2, 3))
    errors, painted = {}, {name: [] for name in partner}
    for rows, x, _, _, noise in everything:
        real = x.float() / 255
        found = dict(mean_picture=(mean - real).square().mean((1, 2)))
        if repainting(c):
            some, gone = reconstruct(model, x, tokens[rows], pad[rows], noise)
            found['masked'] = ((some - real).square().mean(2) * gone).sum(1) / gone.sum(1)
        for name, other in partner.items():
            pixels = to_pixels(model, model.paint(tokens[other[rows]], pad[other[rows]]))
            found[name] = (pixels - real).square().mean((1, 2))
            painted[name].append(unpatchify(pixels, c.patch_size).cpu())
        for name, v in found.items():
            errors.setdefault(f'psnr_{name}', []).extend(v.tolist())
    out = {name: psnr(v) for name, v in errors.items()}
    if c.mim_target == 'norm_pix':
        out['note'] = 'norm_pix: the true mean and deviation of each patch were given back'
    if k.truth and painted:
        real = unpatchify(torch.cat([batch[1] for batch in everything]), c.patch_size).cpu().numpy()
        painted = {name: 255 * torch.cat(v).numpy() for name, v in painted.items()}
        out |= truths.colours(data, pairs, real, painted, k.truth)
    return out

def keywords(model, data, pairs, k):
    """Are psl's pseudo-labels true of the picture? Share of the chosen words, of those that the
    teacher adds, and of any content words of the text, that the truth names."""
    c = model.config
    if not c.has('psl'):
        return {}
    if c.psl_variant != 'content_words' or not k.truth:
        return dict(skipped='no psl by content words, or no --truth')
    name = {}
    for token, word in zip(model.vocab, model.keyword.tolist()):
        if word >= 0:
            name[word] = as_text(model, token[None]).lower()
    scenes = truths.scenes(data, pairs[0], k.truth)
    right = dict(voted=[], added=[], any=[])
    for rows, x, tokens, pad, _ in data.batches(pairs, c, model.vocab.device, k.batch_size):
        taught = model.teacher.see(model.teacher.normalise(x))[:, 0]
        before = model.fuse(model.read(tokens, pad), model.see(model.normalise(x)), pad)[2]
        chosen, _ = model.keywords(taught, model.votes(before, pad), tokens, pad[:, 1:])
        said = model.keyword[tokens].masked_fill(pad[:, 1:], -1)
        for i, row in enumerate(rows):
            true = truths.true_words(scenes[row][0])
            mine = set(said[i].tolist()) - {-1}
            for word in chosen[i].nonzero().flatten().tolist():
                right['voted' if word in mine else 'added'].append(name[word] in true)
            right['any'] += [name[word] in true for word in mine]
    out = {f'keyword_precision_{kind}': float(np.mean(v)) for kind, v in right.items() if v}
    return out | dict(keywords_added=len(right['added']))

def pictures(model, data, pairs, k):
    """One row a frame: original, what the model sees of it, what it paints from that and the words,
    what it paints from the words alone; what was said, and what it writes from the picture."""
    c = model.config
    pick = np.linspace(0, len(pairs[0]) - 1, min(k.n_pictures, len(pairs[0]))).round().astype(int)
    pairs = [p[pick] for p in pairs]
    _, x, tokens, pad, noise = next(data.batches(pairs, c, model.vocab.device, len(pick)))
    real = x.float() / 255
    columns = dict(original=real)
    if c.has('mim') and repainting(c):
        painted, gone = reconstruct(model, x, tokens, pad, noise)
        gone = gone[..., None].bool()
        columns['visible part'] = torch.where(gone, .75, real)
        how = ' (true patch statistics)' if c.mim_target == 'norm_pix' else ' from it + words'
        columns['painted' + how] = torch.where(gone, painted, real)
    if c.has('mim') and c.any('paints_all') and c.mim_target == 'pixels':
        columns['from words alone'] = to_pixels(model, model.paint(tokens, pad))
    written = []
    if c.has('mlm') and c.any('writes_all'):
        written = model.write(x, min(k.write_length, c.text_len))
    rows = []
    for i in range(len(pick)):
        text = f'said: {data.text(pairs[1][i], pairs[2][i])}'
        if len(written):
            text += f'\n\nwritten from the picture: {as_text(model, written[i])}'
        rows.append([as_picture(column[i], c.patch_size) for column in columns.values()] + [text])
    sheet([*columns, 'words'], rows, Path(k.run) / 'pictures.png')
    return {}

# ----------------------------------------------------------------------------------------------
# tasks

JUDGES = dict(retrieval=retrieval, words=words, patches=patches, keywords=keywords,
              pictures=pictures)

def find_tasks(argv):
    """The last --task of a command line -> {name: a judge of this file, or a module of runs/};
    before its settings are read, for a module brings some. Exits with one line if there is none."""
    asked = task
    for arg, following in zip(argv, argv[1:] + [task]):
        if arg == '--task':
            asked = following
        elif arg.startswith('--task='):
            asked = arg.removeprefix('--task=')
    alone, judges = [], [*JUDGES]
    for path in sorted(Path(__file__).with_name('runs').glob('*.py')):
        if what := re.search(r'^def (judge|main)\(model, ', path.read_text(), re.M):
            (judges if what[1] == 'judge' else alone).append(path.stem)
    names = asked.split(',')
    if unknown := set(names) - set(judges) - set(alone if len(names) == 1 else []):
        sys.exit(f"error: no task is called {', '.join(unknown)}; there are {', '.join(judges)}, "
                 f"and each by itself {', '.join(alone)}")
    return {name: JUDGES.get(name) or importlib.import_module(f'runs.{name}') for name in names}

@torch.no_grad()
def main(config, tasks):
    at_least(config, candidates=1, batch_size=1, n_pictures=1, write_length=1, seed=0)
    if config['table']:
        return compare(config['table'])
    if ',' in config['dataset'] and 'search' not in tasks:
        sys.exit(f"error: --dataset={config['dataset']}: one set at a time is judged")
    model, k = open_run(config)
    for module in tasks.values():
        if hasattr(module, 'main'):
            return module.main(model, k)

    vocab = model.vocab.cpu().numpy()
    sets = open_sets(k.data_dir, k.dataset, k.split, model.config, vocab, k.context_s)
    if not sets:
        sys.exit(f'error: the {k.split} split of {k.dataset} has no frame with words; '
                 'take another --split, or prepare more videos')
    pairs = sets[0].pairs(k.candidates)

    # what was judged of the same weights on the same frames before stays
    path = Path(k.run) / ('eval' + f'-{k.dataset}' * bool(config['dataset']) + '.json')
    about = dict(checkpoint=k.checkpoint, split=k.split, dataset=k.dataset, iteration=k.iteration,
                 weights=k.weights)
    try:
        results = json.loads(path.read_text())
    except (OSError, ValueError):
        results = {}
    if not about.items() <= results.items():
        results = about
    for name, judge in tasks.items():
        found = results[name] = getattr(judge, 'judge', judge)(model, sets[0], pairs, k)
        for what, v in found.items():
            print(f'  {what:32s}{v:.4f}' if isinstance(v, float) else f'  {what:32s}{v}')
        path.write_text(json.dumps(results, indent=1))
    print(f'wrote {path}')

if __name__ == '__main__':
    tasks = find_tasks(sys.argv[1:])
    config = configure(globals(), *(m.Knobs for m in tasks.values() if hasattr(m, 'Knobs')))
    try:
        main(config, tasks)
    except OSError as e:                                               # no such file, no right to it
        sys.exit(f'error: {e}')
