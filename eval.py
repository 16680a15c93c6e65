"""What a run learned: numbers into out/<run>/eval.json, pictures into out/<run>/*.png.

    python eval.py --run=out/demo                        everything, on videos never trained on
    python eval.py --run=out/demo --truth=data/scenes/videos/truth      also colours and places
    python eval.py --run=out/demo --task=search -h       a file of runs/ has settings of its own
    python eval.py --table='out/*'                       compare runs

n pictures and m texts, B samples, T text tokens (1 + T with [CLS]), N patches of P values, D width.
"""
import hashlib, importlib, json, math, re, sys, tempfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

import model as models
from configurator import ConfigError, at_least, configure, knobs, read_file, shares
from data.arrays import CAPTIONS, Frames, open_sets, unpatchify
from data.pictures import as_picture, evenly, sheet
from data.scenes import truth as truths
from model import take
from runs.machine import open_device
from runs.paint import to_pixels
from runs.pictures import reconstruct, repainting
from runs.table import compare, tell
from runs.unlearned import unlearned

run = 'out/run'                  # a folder of train.py
checkpoint: Literal['best', 'latest'] = 'best'
dataset = ''                     # of data_dir; default: the run's own
data_dir = ''                    # where the sets lie by now; default: where they were in training
split: Literal['test', 'val', 'train'] = 'test'
task = 'retrieval,words,patches,tags,writing,ground,pictures,curves'    # or a file of runs/
candidates = 1000                # pairs to retrieve among, at most: their words do not overlap
distinct = False                 # of pictures with the same words only one: many drew an arrow
rerank = 16                      # itm looks again at so many of itc's best
mask_rate = 0.                   # share of the tokens that the task words hides; 0: the run's own
table = ''                       # a pattern of run folders to compare, instead of --run
truth = ''                       # folder with NAME.json per video: what is to be seen when
seed = 0
n_pictures = 8                   # rows of the pictures
write_length = 16                # tokens written about a picture
batch_size = 64
device = 'auto'

MATRIX = 1000                    # pictures that are told from all texts by likelihood,
MATCHED = 200                    # by itm, without itc to choose the best by
JUDGED = 'candidates', 'distinct', 'truth'       # the settings that numbers hang on

# ----------------------------------------------------------------------------------------------
# the run

def open_run(config):
    """-> the model of --run; k: every setting, and what belongs to the run."""
    k = SimpleNamespace(**config)
    path = Path(k.run) / f'{k.checkpoint}.pt'
    if k.checkpoint == 'best' and not path.exists():                   # a run without validation
        path = path.with_name('latest.pt')
    model, state = models.read_checkpoint(path, open_device(k.device))
    model.config.mask_rate = k.mask_rate or model.config.mask_rate
    k.data_dir = k.data_dir or state['config']['data_dir']
    k.context_s = state['config']['context_s']
    k.dataset = k.dataset or state['config']['dataset'].split(',')[0]
    k.iteration = state.get('iter_num')
    with open(path, 'rb') as f:                                        # whatever the file is called
        k.weights = hashlib.file_digest(f, 'sha256').hexdigest()[:12]
    return model, k

def partners(data, ids, right, other):
    """-> {right: each row of ids, other: rows of other videos, half way round}; no other if one
    video has more than half."""
    video = data.frames['video'][ids]
    own = np.arange(len(ids))
    far = np.roll(own, len(ids) // 2)
    return {right: own} | ({other: far} if (video[far] != video).all() else {})

# ----------------------------------------------------------------------------------------------
# retrieval

def hits(score, same):
    """score (q, n) of queries against candidates, same (q, n): which are right -> rank of the best
    right one (q,), 0 is first. Ties and NaN count against it, other right ones do not."""
    best = score.masked_fill(~same, -math.inf).max(1, keepdim=True).values
    return (~(score < best) & ~same).sum(1)

def recalls(rank):
    found = {f'r{n}': (rank < n).float().mean().item() for n in (1, 5, 10)}
    return found | dict(median_rank=float(np.median(rank)) + 1)

def every_caption(data, ids, start, length):
    """All captions of listed pictures, else the words of each frame -> start, length, owner (m,):
    which of ids they are of."""
    found = []
    for i, video in enumerate(data.frames['video'][ids]):
        if data.videos['flags'][video] & CAPTIONS:
            found += [(a, n, i) for a, n in zip(*data.captions(video)) if n]
        else:
            found.append((start[i], length[i], i))
    return np.array(found).reshape(-1, 3).T

def encode(model, batches, proj, states_too, folder):
    """Batches of (unimodal states, pad or None) -> ITC embeddings (n, proj_dim), None without proj;
    the states (n, L, D) float16, or None, in a file that the system pages in and out."""
    file = tempfile.TemporaryFile(dir=folder)
    z, kept = [], None
    for states, pad in batches:
        if proj is not None:
            z.append(model.embedding(states, proj, pad).cpu())
        if states_too:
            file.write(states.half().cpu().numpy().tobytes())
    if states_too:
        kept = torch.from_numpy(np.memmap(file, np.float16, 'r+').reshape(-1, *states.shape[1:]))
    return torch.cat(z) if z else None, kept

def keep(model, data, pairs, k, images_too, texts_too):
    """What is ranked, of n pictures and m texts: embeddings z_image, z_text, where they are to be
    kept the states image, text; start, length, owner (m,), tokens (m, T), pad (m, 1 + T)."""
    c, dev = model.config, model.vocab.device
    start, length, owner = every_caption(data, *pairs)
    tokens, pad = map(torch.from_numpy, data.words(start, length))
    pad = F.pad(pad, (1, 0))

    def images():
        for ids in torch.from_numpy(pairs[0]).split(k.batch_size):
            yield model.see(model.normalise(data.pictures(ids.numpy(), c, dev))), None

    def texts():
        for t, p in zip(tokens.split(k.batch_size), pad.split(k.batch_size)):
            p = p.to(dev)
            yield model.read(t.to(dev), p), p

    image_proj, text_proj = (model.image_proj, model.text_proj) if c.has('itc') else (None, None)
    z_image, image = encode(model, images(), image_proj, images_too, k.run)
    z_text, text = encode(model, texts(), text_proj, texts_too, k.run)
    return SimpleNamespace(z_image=z_image, image=image, z_text=z_text, text=text, pad=pad,
                           tokens=tokens, start=start, length=length, owner=torch.from_numpy(owner))

def sides(kept, way):
    """-> queries, the picture of each, candidates, the picture of each."""
    images = kept.z_image, torch.arange(len(kept.z_image))
    texts = kept.z_text, kept.owner
    return (*images, *texts) if way == 'i2t' else (*texts, *images)

def retrieval(model, data, pairs, k):
    """By the dot product of the ITC embeddings, the best of them again by the matching head; by how
    well the words are told from the picture."""
    c = model.config
    told = c.has('mlm') and c.any('writes_all')
    matched = c.has('itm') and (k.rerank > 0 or not c.has('itc'))
    if not (c.has('itc') or told or matched):
        return dict(skipped='the run has no itc, itm or amm_text to retrieve by')
    kept = keep(model, data, pairs, k, told or matched, matched)
    out = protocol(data, pairs, kept, k)
    if alike := unlearned(data, pairs[0], kept):
        for way in ('i2t', 't2i'):
            out[f'unlearned_{way}_r1'] = by_contrast(alike, way, 1)[0][f'{way}_r1']
    if told:
        found, rank, top = whole('likelihood', likelihood, model, kept, MATRIX, k.batch_size)
        out |= found
        among = found['likelihood_candidates']
    if c.has('itc'):
        among = len(pairs[0])
        for way in ('i2t', 't2i'):
            found, rank, top, near = by_contrast(kept, way, max(k.rerank, 5))
            out |= found
            if matched:
                some = top[:, :k.rerank], near[:, :k.rerank]
                out |= by_matching_again(model, kept, way, *some, k.batch_size)
    elif matched:
        found, rank, top = whole('itm', matching_matrix, model, kept, MATCHED, k.batch_size)
        out |= found
        among = found['itm_candidates']
    draw_retrieval(data, c, pairs[0], kept, rank, top, among, k)
    return out

def protocol(data, pairs, kept, k):
    """Among what is retrieved."""
    n, m = len(pairs[0]), len(kept.owner)
    said = {tuple(data.tokens[a:a + b]) for a, b in zip(kept.start, kept.length)}
    rule = 'any caption of a picture is right'
    if m == n:
        rule = f'frames whose words do not overlap, context {k.context_s} s'
    return dict(candidates=n, texts=m, chance_r1=1 / n, distinct_texts=len(said),
                protocol=f'{k.split} split of {data.path.name}, {n} pictures, {m} texts, '
                         f'weights: {k.checkpoint}, {rule}' + ', all differ' * k.distinct)

def by_contrast(kept, way, n_best):
    """By the dot product -> {name: number}; of queries rank (q,), best candidates (q, n_best), and
    their dot products."""
    queries, label, keys, other = sides(kept, way)
    rank, near, top = [], [], []
    for query, mine in zip(queries.split(256), label.split(256)):
        score = query @ keys.T
        rank.append(hits(score, mine[:, None] == other))
        for found, best in zip((near, top), score.topk(min(n_best, len(keys)))):
            found.append(best)
    rank, near, top = map(torch.cat, (rank, near, top))
    return {f'{way}_{name}': v for name, v in recalls(rank).items()}, rank, top, near

def by_matching_again(model, kept, way, top, near, at_once):
    """The matching head ranks the best candidates (q, n) again, by itself and added to what itc
    says by their dot products (q, n): no other can come first."""
    _, label, _, other = sides(kept, way)
    query = torch.arange(len(top))[:, None].expand_as(top)
    pair = (query, top) if way == 'i2t' else (top, query)
    logit = matching(model, kept, *(x.flatten() for x in pair), at_once).view(top.shape)
    contrast = model.logit_scale.exp().cpu() * near
    same = other[top] == label[:, None]
    return {f'itm_{way}_r1': recalls(hits(logit, same))['r1'],
            f'itm_sum_{way}_r1': recalls(hits(logit + contrast, same))['r1']}

def whole(name, score, model, kept, n, at_once):
    """The first n pictures with all their m texts, as one matrix, by itself and added to what itc
    says -> {name: number}; rank (m,), best pictures (m, 5) of each text."""
    some = (kept.owner < n).nonzero()[:, 0]
    own = kept.owner[some]
    matrix = score(model, kept, torch.arange(min(n, len(kept.image))), some, at_once)
    same = torch.arange(len(matrix))[:, None] == own
    rank = hits(matrix.T, same.T)
    out = {f'{name}_candidates': len(matrix)}
    scores = {name: matrix}
    if kept.z_image is not None:
        contrast = kept.z_image[:n] @ kept.z_text[some].T
        scores[f'{name}_sum'] = matrix / matrix.std() + contrast / contrast.std()
    for key, values in scores.items():
        out[f'{key}_i2t_r1'] = recalls(hits(values, same))['r1']
        out[f'{key}_t2i_r1'] = recalls(hits(values.T, same.T))['r1']
    return out, rank, matrix.T.topk(min(5, len(matrix))).indices

def matching_matrix(model, kept, images, texts, at_once):
    i, j = torch.cartesian_prod(images, texts).T
    return matching(model, kept, i, j, at_once).view(len(images), len(texts))

def matching(model, kept, i, j, at_once):
    """The matching head's logit of pictures i and texts j (pairs,) from kept states: only the joint
    layers run."""
    out = []
    dev = model.vocab.device
    for a, b in zip(i.split(4 * at_once), j.split(4 * at_once)):
        text, image = (x.to(dev).float() for x in (kept.text[b], kept.image[a]))
        fused, _, _ = model.fuse(text, image, kept.pad[b].to(dev))
        match = model.itm_head(fused[:, 0]).float()
        out.append((match[:, 1] - match[:, 0]).cpu())
    return torch.cat(out)

def likelihood(model, kept, images, texts, at_once):
    """Mean log-probability of each text's words (m,) given a picture (n,) alone -> (n, m). What is
    masked differs by length alone: each picture is fused once for each."""
    dev, tokens, pad = model.vocab.device, kept.tokens[texts], kept.pad[texts]
    length = (~pad).sum(1) - 1
    out = torch.zeros(len(images), len(texts))
    for n in length.unique():
        mine = (length == n).nonzero()[:, 0]
        blank = pad[mine[:1]].to(dev)
        hidden = model.read(torch.full_like(tokens[:1], model.mask_id).to(dev), blank)
        said = tokens[mine, :n].T[None].to(dev)                     # (1, n, mine)
        for rows in images.split(at_once):
            B = len(rows)
            text, _, _ = model.fuse(hidden.expand(B, -1, -1), kept.image[rows].to(dev).float(),
                                    blank.expand(B, -1))
            log_p = model.word_logits(text[:, 1:1 + n]).float().log_softmax(-1)    # (B, n, V)
            out[rows[:, None], mine] = log_p.gather(2, said.expand(B, -1, -1)).mean(1).cpu()
    return out - out.mean(0)       # more than for the average picture: or short texts always win

def draw_retrieval(data, c, ids, kept, rank, top, among, k):
    """Words and what comes first, the right one with a green rim. rank (m,), top (m, 5)."""
    rows = []
    for j in evenly(len(rank), k.n_pictures):
        said = data.text(kept.start[j], kept.length[j])
        row = [f'"{said}"\n\nthe right one came {rank[j] + 1}. of {among}']
        for i in top[j, :5].tolist():
            shown = as_picture(data.pictures(ids[[i]], c, 'cpu')[0], c.patch_size)
            row.append((shown, 'green' if i == kept.owner[j] else None))
        rows.append(row)
    titles = [f'{i + 1}.' for i in range(len(rows[0]) - 1)]
    sheet(['words', *titles], rows, Path(k.run) / 'retrieval.png')

# ----------------------------------------------------------------------------------------------
# words and patches

def words(model, data, pairs, k):
    """Masked words told with the right picture, another video's and none: accuracy, bits."""
    c = model.config
    if not c.has('mlm'):
        return dict(skipped='the run has no mlm objective')
    partner = partners(data, pairs[0], 'right', 'shuffled') | dict(none=None)
    everything = list(data.batches(pairs, c, model.vocab.device, k.batch_size))
    x = torch.cat([batch[1] for batch in everything])
    total = {name: np.zeros(2) for name in partner}
    said = torch.zeros(c.vocab_size)
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
            nats = F.cross_entropy(logits, target, reduction='sum').item()
            total[name] += [(logits.argmax(-1) == target).sum().item(), nats / math.log(2)]
    return word_numbers(total, said) | dict(mask_rate=c.mask_rate)

def word_numbers(total, said):
    out, n = {}, int(said.sum())
    for name, (right, bits) in total.items():
        out |= {f'mlm_acc_{name}': right / n, f'mlm_bits_{name}': bits / n}
    if 'shuffled' in total:        # per token: about 0 if pictures and words have nothing in common
        out['alignment_bits'] = out['mlm_bits_shuffled'] - out['mlm_bits_right']
    return out | dict(mlm_acc_commonest=(said.max() / said.sum()).item(), masked_tokens=n)

def psnr(squares):
    """Squared errors of pixels in [0, 1] -> dB of their mean."""
    return -10 * math.log10(max(float(np.mean(squares)), 1e-10))

def mean_picture(model, data):
    """Of the training set, else of what is judged -> (N, P) in [0, 1]."""
    training = next(d for d in (Frames(data.path, 'train', silent=True), data) if len(d.frames))
    sample = np.linspace(0, len(training.frames) - 1, min(2000, len(training.frames))).astype(int)
    return training.pictures(sample, model.config, model.vocab.device).float().mean(0) / 255

def patches(model, data, pairs, k):
    """PSNR of painted patches: the removed ones from the others and the words; all of them from the
    right words, from another video's, and from no idea."""
    c = model.config
    if not c.has('mim'):
        return dict(skipped='the run does not paint pixels')
    partner = {}
    if c.any('paints_all') and c.mim_target == 'pixels':
        partner = partners(data, pairs[0], 'from_words', 'from_other_words')
    mean = mean_picture(model, data)
    everything = list(data.batches(pairs, c, model.vocab.device, k.batch_size))
    tokens, pad = (torch.cat([batch[i] for batch in everything]) for i in (2, 3))
    errors, painted = {}, {}
    for rows, x, _, _, noise in everything:
        real = x.float() / 255
        found = dict(mean_picture=(mean - real).square().mean((1, 2)))
        if repainting(c):
            some, gone = reconstruct(model, x, tokens[rows], pad[rows], noise)
            found['masked'] = ((some - real).square().mean(2) * gone).sum(1) / gone.sum(1)
        for name, other in partner.items():
            some = to_pixels(model, model.paint(tokens[other[rows]], pad[other[rows]]))
            found[name] = (some - real).square().mean((1, 2))
            painted.setdefault(name, []).append(unpatchify(some, c.patch_size).cpu())
        for name, squares in found.items():
            errors.setdefault(name, []).extend(squares.tolist())
    out = {f'psnr_{name}': psnr(squares) for name, squares in errors.items()}
    if c.mim_target == 'norm_pix':
        out['note'] = 'norm_pix: the true mean and deviation of each patch were given back'
    if k.truth and painted:
        x = torch.cat([batch[1] for batch in everything])
        real = unpatchify(x, c.patch_size).cpu().numpy()
        painted = {name: 255 * torch.cat(some).numpy() for name, some in painted.items()}
        out |= truths.colours(data, pairs, real, painted, k.truth)
    return out

# ----------------------------------------------------------------------------------------------
# tasks

JUDGES = dict(retrieval=retrieval, words=words, patches=patches)

def find_tasks(argv):
    """The last --task of a command line or its files -> {name: a judge of this file, or a module of
    runs/}. Before all other settings, for a module brings some."""
    asked = task
    for arg, following in zip(argv, argv[1:] + [task]):
        if arg == '--task':
            asked = following
        elif arg.startswith('--task='):
            asked = arg.removeprefix('--task=')
        elif arg.endswith(('.py', '.json')):
            with suppress(ConfigError, KeyError):                      # configure will tell
                asked = str(read_file(arg, {k: globals()[k] for k in knobs(globals())})['task'])
    judges, alone = list(JUDGES), []
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
    at_least(config, candidates=1, rerank=0, batch_size=1, n_pictures=1, write_length=1, seed=0)
    shares(config, 'mask_rate')
    if config['table']:
        return compare(config['table'])
    if ',' in config['dataset'] and 'search' not in tasks:
        sys.exit(f"error: --dataset={config['dataset']}: one set at a time is judged")
    if 'search' in tasks and not list(Path(config['run']).glob('*.pt')):    # words need no run
        return tasks['search'].main(None, SimpleNamespace(**config))
    model, k = open_run(config)
    for module in tasks.values():
        if hasattr(module, 'main'):
            return module.main(model, k)

    vocab = model.vocab.cpu().numpy()
    sets = open_sets(k.data_dir, k.dataset, k.split, model.config, vocab, k.context_s)
    if not sets:
        sys.exit(f'error: the {k.split} split of {k.dataset} has no frame with words; '
                 'take another --split, or prepare more videos')
    pairs = sets[0].pairs(k.candidates, k.distinct)

    # what was judged before, of the same weights and frames, stays
    path = Path(k.run) / (f'eval-{k.dataset}.json' if config['dataset'] else 'eval.json')
    about = ('checkpoint', 'split', 'dataset', 'iteration', 'weights')
    about = {name: getattr(k, name) for name in about}
    try:
        results = json.loads(path.read_text())
    except (OSError, ValueError):
        results = {}
    if not about.items() <= results.items():
        results = about
    for name, judge in tasks.items():
        found = tell(getattr(judge, 'judge', judge)(model, sets[0], pairs, k))
        if found:                # pictures and curves find no numbers
            results[name] = found | dict(judged={knob: config[knob] for knob in JUDGED})
        path.write_text(json.dumps(results, indent=1, allow_nan=False))
    print(f'wrote {path}')

if __name__ == '__main__':
    tasks = find_tasks(sys.argv[1:])
    config = configure(globals(), *(m.Knobs for m in tasks.values() if hasattr(m, 'Knobs')))
    try:
        main(config, tasks)
    except OSError as e:        # no such file, no right to it, no room
        sys.exit(f'error: {e}')
