"""The arrays that prepare.py wrote, read: frames, the words around them, epochs, batches.

Order, windows and masks are a pure function of (seed, iteration, position): a resumed run goes on
as the unbroken one would, and N ranks see what one would.

B samples, G x G stored patches per frame of which the model sees a window, T text tokens, N patches
of P values. torch is imported where tensors are made: prepare.py's workers must start fast.
"""
import functools, json, math, sys
from pathlib import Path

import numpy as np

from data.tokens import EOT, compact, compact_lookup, gpt2_encoding

FORMAT = 1                       # of data/<dataset>/
EVAL_SEED = 2 ** 32 - 1          # the same validation batches and masks, whatever the seed
CAPTIONS = 1                     # bit of videos.flags: an image-caption list, a caption per <EOT>
FRAME_SILENT = 2                 # bit of frames.flags: no word is spoken while it stands
BLOCK, RUN = 1 << 20, 1 << 12    # frames that are put in order together, and that stay neighbours

def patchify(images, p):
    """(B, H, W, 3) -> (B, N, p * p * 3): patches in raster order, each (row, column, channel).
    Of torch or numpy, as is unpatchify."""
    B, H, W, C = images.shape
    x = images.reshape(B, H // p, p, W // p, p, C)
    return x.swapaxes(2, 3).reshape(B, -1, p * p * C)

def unpatchify(patches, p):
    """(B, N, p * p * 3) -> (B, H, W, 3), square."""
    B, N, _ = patches.shape
    n = math.isqrt(N)
    return patches.reshape(B, n, n, p, p, 3).swapaxes(2, 3).reshape(B, n * p, n * p, 3)

# ----------------------------------------------------------------------------------------------
# one split of a set

def read_meta(path):
    """data/<dataset> -> its meta.json, once all arrays are found whole. Exits with the remedy."""
    path = Path(path)
    make = f'python prepare.py <videos> --dataset={path.name}'
    if path.name == 'scenes':
        make = 'bash runs/demo.sh'
    again = f'join the shards again: python prepare.py --dataset={path.name} ' \
            f'--data_dir={path.parent}'
    try:
        meta = json.loads((path / 'meta.json').read_text())
    except OSError:
        sys.exit(f'error: {path}/meta.json not found: the set is absent or unfinished; make it: '
                 f'{make}; or say where it is by now: --data_dir=...')
    except ValueError as e:
        sys.exit(f'error: {path}/meta.json is damaged ({e}); {again}')
    if meta['format'] != FORMAT:
        sys.exit(f"error: {path} has format {meta['format']}, this code reads {FORMAT}; "
                 'prepare it again')
    for name, about in meta['arrays'].items():
        file = path / name
        size = file.stat().st_size if file.exists() else 0
        if size != about['bytes']:
            sys.exit(f"error: {file} has {size} bytes, meta.json says {about['bytes']}; {again}")
    return meta

def read_tokens(path, split):
    """-> the GPT-2 ids of a split, end to end, memory-mapped (n_tokens,) uint16."""
    return open_array(path, split, 'tokens', np.uint16, read_meta(path)['counts'][split]['tokens'])

def open_array(path, split, name, dtype, *shape):
    if not math.prod(shape):
        return np.zeros(shape, dtype)                                  # which cannot be mapped
    return np.memmap(Path(path) / f'{split}_{name}.bin', dtype, 'r', shape=shape)

class Frames:
    """One split of data/<dataset>, memory-mapped.

    vocab (V,): the GPT-2 ids of the model's tokens; None: all. silent: also frames without words;
    overfit: only so many frames. Exits with the remedy where the set is absent or damaged."""
    def __init__(self, path, split, text_len=32, context_s=1., vocab=None, seed=EVAL_SEED,
                 weight=1., silent=False, overfit=0):
        self.path = path = Path(path)
        self.split = split
        self.text_len = text_len                                       # T
        self.context_s = context_s       # take the words spoken this long before and after, too
        self.seed = seed
        self.weight = weight                                           # share of a mixed batch
        self.lookup = compact_lookup(np.arange(EOT + 1) if vocab is None else vocab)

        # as on disk
        self.meta = meta = read_meta(path)
        n = meta['counts'][split]
        G = meta['image_size'] // meta['patch_size']
        self.patches = open_array(path, split, 'patches', np.uint8, n['frames'], G ** 2,
                                  meta['patch_size'] ** 2 * 3)
        self.tokens = open_array(path, split, 'tokens', np.uint16, n['tokens'])
        self.times = open_array(path, split, 'times', np.uint32, n['tokens'])      # ms
        self.frames = np.load(path / f'{split}_frames.npy', 'r', allow_pickle=False)
        self.videos = np.load(path / f'{split}_videos.npy', 'r', allow_pickle=False)

        # the frames to learn from or to be judged on; words may also be said around a silent one
        usable = np.ones(len(self.frames), bool)
        if not silent:
            quiet = np.flatnonzero(self.frames['flags'] & FRAME_SILENT)
            usable[quiet] = self.all_spans(quiet)[1] > 0
        self.usable = np.flatnonzero(usable)
        if overfit and len(self.usable):
            some = np.linspace(0, len(self.usable) - 1, overfit).astype(int)
            self.usable = self.usable[some]

        # runs of whole videos, which an epoch of millions of frames shuffles first
        video = self.frames['video'][self.usable[::RUN]]
        begins = np.searchsorted(self.usable, self.videos['frame_start'][video])
        self.runs = np.unique(np.append(begins, len(self.usable)))
        self.plan = functools.lru_cache(2)(self.plan)                  # of this epoch and the next
        self.order = functools.lru_cache(2)(self.order)

    # --- words --------------------------------------------------------------------------------

    def spans(self, ids, noise=None):
        """The words of frames `ids` (B,): spoken while a frame stands, and context_s around, at
        most T around the middle -> start, length (B,) into tokens; length 0: nothing is said.
        noise (B, 3) uniform: jitter of the context's ends and of the middle. Image-caption lists:
        a caption drawn by the noise, else the first."""
        T = self.text_len
        frames = self.frames[ids]
        videos = self.videos[frames['video']]

        def column(x):
            return x.astype(np.int64)[:, None]

        # 4T tokens around the middle of each frame's stand, and which of them were said near it
        at = column(frames['token']) + np.arange(-2 * T, 2 * T)
        inside = (column(videos['token_start']) <= at) & (at < column(videos['token_end']) - 1)
        when = self.times[np.clip(at, 0, len(self.times) - 1)].astype(np.int64)

        def said(before, after):                                       # seconds
            return (inside & (when >= column(frames['t_ms']) - 1000 * before)
                    & (when < column(frames['t_end_ms']) + 1000 * after))
        heard = said(self.context_s, self.context_s)
        middle = 2 * T
        if noise is not None:
            wide = 2 * self.context_s
            jittered = said(wide * noise[:, :1], wide * noise[:, 1:2])
            heard = np.where(jittered.any(1, keepdims=True), jittered, heard)
            middle = middle + np.round((noise[:, 2] - .5) * T / 2).astype(np.int64)

        # they are contiguous, because times rise: T of them, as central as they allow
        first = heard.argmax(1)
        n = heard.sum(1)
        start = np.clip(middle - T // 2, first, np.maximum(first, first + n - T))
        start = at[np.arange(len(at)), start]
        length = np.minimum(n, T)
        for i in np.flatnonzero(videos['flags'] & CAPTIONS):
            told = np.stack(self.captions(frames['video'][i]), 1)
            start[i], length[i] = told[0 if noise is None else int(noise[i, 0] * len(told))]
        return start, length

    def captions(self, video):
        """All captions of a picture of an image-caption list -> starts, lengths (at most T)."""
        a, b = (int(self.videos[video][key]) for key in ('token_start', 'token_end'))
        ends = a + np.flatnonzero(self.tokens[a:b] == EOT)
        starts = np.array([a, *(ends[:-1] + 1)])
        return starts, np.minimum(ends - starts, self.text_len)

    def all_spans(self, ids):
        """spans of any number of frames, a piece at a time."""
        pieces = [self.spans(some) for some in np.array_split(ids, len(ids) // 8192 + 1)]
        start, length = zip(*pieces)
        return np.concatenate(start), np.concatenate(length)

    def words(self, start, length):
        """Spans -> tokens (B, T) int64 in the model's vocabulary, pad (B, T) bool."""
        T = self.text_len
        ids = self.tokens[np.clip(start[:, None] + np.arange(T), 0, len(self.tokens) - 1)]
        pad = np.arange(T) >= length[:, None]
        known = np.where(pad, 0, self.lookup[ids])
        for i in np.flatnonzero((known < 0).any(1)):                   # to be spelled in bytes
            spelled = compact(ids[i, :length[i]], self.lookup)[:T]
            known[i] = 0
            known[i, :len(spelled)] = spelled
            pad[i] = np.arange(T) >= len(spelled)
        return known, pad

    def text(self, start, length):
        """The words of one span, for people."""
        return gpt2_encoding().decode(self.tokens[start:start + length].tolist()).strip()

    def pairs(self, limit, distinct=False):
        """For retrieval: of each video the frames whose words do not overlap, of equal words only
        the first if `distinct`, evenly thinned to `limit` -> ids, start, length."""
        ids = np.sort(self.usable)
        start, length = self.all_spans(ids)
        keep, end, said = [], 0, set()
        for i in range(len(ids)):                                      # spans rise with the frames
            words = self.tokens[start[i]:start[i] + length[i]].tobytes()
            if start[i] >= end and not (distinct and words in said):
                keep.append(i)
                said.add(words)
                end = start[i] + length[i]
        thin = np.linspace(0, len(keep) - 1, min(limit, len(keep))).round().astype(int)
        keep = np.array(keep, int)[thin]
        return ids[keep], start[keep], length[keep]

    # --- order --------------------------------------------------------------------------------

    def plan(self, epoch):
        """-> runs of each block of an epoch, and where the blocks begin and end in it."""
        n = len(self.runs) - 1
        per_block = BLOCK // RUN
        runs = np.arange(n)
        if n > per_block:
            runs = np.random.default_rng([self.seed, epoch, n]).permutation(n)
        blocks = [runs[at:at + per_block] for at in range(0, n, per_block)]
        sizes = [np.diff(self.runs)[block].sum() for block in blocks]
        return blocks, np.cumsum([0, *sizes])

    def order(self, epoch, block=0):
        """The frames of a block of an epoch: none twice, and those of a video spread evenly: sorted
        by (j + u) / n, j shuffled within the video, u per video."""
        rng = np.random.default_rng([self.seed, epoch, block] if block else [self.seed, epoch])
        runs = self.plan(epoch)[0][block]
        usable = [self.usable[self.runs[r]:self.runs[r + 1]] for r in runs]
        frames = rng.permutation(np.concatenate(usable))
        video = self.frames['video'][frames]
        by_video = np.argsort(video, kind='stable')
        frames = frames[by_video]
        _, first, n = np.unique(video[by_video], return_index=True, return_counts=True)
        j = np.arange(len(frames)) - np.repeat(first, n)
        place = (j + np.repeat(rng.random(len(n)), n)) / np.repeat(n, n)
        return frames[np.argsort(place, kind='stable')]

    def sample(self, first, count):
        """Positions [first, first + count) of the endless stream of epochs -> frame ids."""
        pieces = [np.zeros(0, np.int64)]
        while count:
            epoch, at = divmod(first, len(self.usable))
            edges = self.plan(epoch)[1]
            block = int(np.searchsorted(edges, at, 'right')) - 1
            pieces.append(self.order(epoch, block)[at - edges[block]:][:count])
            first += len(pieces[-1])
            count -= len(pieces[-1])
        return np.concatenate(pieces)

    # --- pictures -----------------------------------------------------------------------------

    def pictures(self, ids, c, device):
        """-> patches (B, N, P) uint8 on the device: the middle square of the model's size, as it
        reads other pictures, though that may begin within a stored patch."""
        import torch
        whole = unpatchify(torch.from_numpy(self.patches[ids]).to(device), self.meta['patch_size'])
        a = (self.meta['image_size'] - c.image_size) // 2
        return patchify(whole[:, a:a + c.image_size, a:a + c.image_size], c.patch_size)

    def read(self, ids, start, length, c, device):
        """-> patches (B, N, P) uint8, tokens (B, T), pad (B, 1 + T) with [CLS], on the device."""
        import torch
        tokens, pad = (torch.from_numpy(x).to(device) for x in self.words(start, length))
        pad = torch.nn.functional.pad(pad, (1, 0))
        return self.pictures(ids, c, device), tokens, pad

    def batches(self, pairs, c, device, batch_size):
        """Yield (rows, patches, tokens, pad, noise (B, N + T)) of pairs (ids, start, length), as
        read() gives them; the noise is always the same."""
        import torch
        ids, start, length = pairs
        noise = torch.from_numpy(draw_noise(EVAL_SEED, 0, 0, len(ids), c.n_patches + c.text_len))
        for rows in np.array_split(np.arange(len(ids)), -(-len(ids) // batch_size)):
            batch = self.read(ids[rows], start[rows], length[rows], c, device)
            yield rows, *batch, noise[rows].to(device)

# ----------------------------------------------------------------------------------------------
# batches of one set or several

def open_sets(data_dir, dataset, split, c, vocab, context_s, weights=(), seed=EVAL_SEED,
              overfit=0):
    """A split of each set named in `dataset` (a,b), for a model of VLConfig c -> [Frames]; those
    without a frame to use are left out."""
    names = dataset.split(',')
    if weights and (len(weights) != len(names) or min(weights) < 0 or not sum(weights)):
        sys.exit(f'error: --dataset_weights={weights}: expected a share of 0 or more '
                 f'for each of {dataset}')
    sets = []
    for name, weight in zip(names, weights or [1.] * len(names)):
        path = Path(data_dir) / name
        meta = read_meta(path)
        G, p = meta['image_size'], meta['patch_size']
        fits = c.patch_size % p == 0 and c.image_size % p == 0 and c.image_size <= G
        if not fits or G != c.full_size or sets and p != sets[0].meta['patch_size']:
            sys.exit(f'error: {path} stores pictures of {G} px in patches of {p}: '
                     f'patch_size={c.patch_size} must be a multiple of that, image_size='
                     f'{c.image_size} no larger, and sets that are mixed must agree')
        silent = not c.any('words')                                    # learns from pictures alone
        sets.append(Frames(path, split, c.text_len, context_s, vocab, seed, weight, silent,
                           overfit))
    return [data for data in sets if len(data.usable) and data.weight]

def draw_noise(key, it, first, count, n):
    """Uniform float32 (count, n) in [0, 1) for positions [first, first + count) of iteration `it`,
    by a counter-based generator, which jumps to them."""
    steps = -(-n // 8)                                                 # of four 64-bit words each
    philox = np.random.Philox(key=np.array([key, it], np.uint64)).advance(first * steps)
    words = philox.random_raw(count * steps * 4).view(np.uint32)
    words = words.reshape(count, steps * 8)[:, :n]
    return (words >> 8).astype(np.float32) * np.float32(2 ** -24)

def mixture(weights, total, it):
    """Which set each position of a global batch is of (total,): by weight, evenly interleaved,
    shifted by the iteration: a position has always the same part of the plan."""
    share = np.cumsum([0, *weights]) / np.sum(weights)
    counts = np.diff(np.round(share * total).astype(int))
    place = np.concatenate([(np.arange(n) + .5) / max(n, 1) for n in counts])
    which = np.repeat(np.arange(len(weights)), counts)[np.argsort(place, kind='stable')]
    return np.roll(which, it)

def draw_frames(sets, it, first, count, total):
    """Positions [first, first + count) of the `total` of iteration `it` -> of each set (it, its
    places among them, the ids of its frames there)."""
    which = mixture([data.weight for data in sets], total, it)
    for d, data in enumerate(sets):
        mine = which == d
        at = np.flatnonzero(mine[first:first + count])
        begin = it * int(mine.sum()) + int(mine[:first].sum())
        yield data, at, data.sample(begin, len(at))

def get_batch(sets, c, it, first, count, total, training=True):
    """Positions [first, first + count) of the `total` of iteration `it`, as host tensors: raw
    (B, G * G, p * p * 3) uint8, offset (B, 2) of the window in stored patches, tokens, pad (B, T),
    video, ids (B,), noise_image (B, N), noise_text (B, T), noise_rate (B,), noise_itm (B, B), or
    (B, 0) without itm."""
    import torch
    T, N, lead = c.text_len, c.n_patches, sets[0]
    noise = draw_noise(lead.seed, it, first, count, N + T + 6)
    u = noise[:, N + T:]
    if not training:
        u[:, 3:5] = .5                                                 # the middle
    places = (lead.meta['image_size'] - c.image_size) // lead.meta['patch_size'] + 1     # per side
    batch = dict(
        offset=(u[:, 3:5] * places).astype(np.int64),
        tokens=np.empty((count, T), np.int64), pad=np.empty((count, T), bool),
        video=np.empty(count, np.int64), ids=np.empty(count, np.int64),
        noise_image=noise[:, :N], noise_text=noise[:, N:N + T], noise_rate=u[:, 5],
        # drawn apart, for its width is the rank's batch
        noise_itm=draw_noise(lead.seed + 2 ** 32, it, first, count, count * c.has('itm')))
    raw = torch.empty((count, *lead.patches.shape[1:]), dtype=torch.uint8,
                      pin_memory=torch.cuda.is_available())

    for d, (data, at, ids) in enumerate(draw_frames(sets, it, first, count, total)):
        start, length = data.spans(ids, u[at, :3] if training else None)
        batch['tokens'][at], batch['pad'][at] = data.words(start, length)
        batch['video'][at] = data.frames['video'][ids].astype(np.int64) + (d << 32)
        batch['ids'][at] = ids
        if len(sets) == 1:             # copied once; twice without mode='clip'
            np.take(data.patches.view(np.ndarray), ids, 0, raw.numpy(), mode='clip')
        else:
            raw.numpy()[at] = data.patches[ids]
    host = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in batch.items()}
    return dict(raw=raw) | host
