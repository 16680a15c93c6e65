"""Moments of prepared sets: what is seen and said in them, and which fit some words or a picture.

A part is a split of a set (data/arrays.py, Frames). The embedding of every frame, and the index of
all that is said, are made once, and kept in out/<run>/search/, without a run in data/search/.
"""
import fcntl, hashlib, io, json, os, re, sys
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urldefrag, urlsplit

import numpy as np

from data.arrays import CAPTIONS, Frames, open_sets, unpatchify
from data.sources import EXTENSIONS
from data.splits import SPLITS
from runs.said import best_said, marked, open_said, said_at, text_of

RANK = 60                        # reciprocal rank fusion: a rank counts 1 / (RANK + rank)

# ----------------------------------------------------------------------------------------------
# embeddings of all frames

def frame_embeddings(model, data, k):
    """-> (n, proj_dim) float16, memory-mapped; goes on after Ctrl-C."""
    which = f'{data.path.name}-{data.split}'
    made_of = f"{k.weights} {data.meta['arrays'][f'{data.split}_patches.bin']['sha256']}"
    digest = hashlib.sha256(made_of.encode()).hexdigest()[:12]
    name = Path(k.run) / 'search' / f'{which}-{digest}.bin'
    if not name.exists():
        name.parent.mkdir(exist_ok=True)
        with open(name.with_suffix('.part'), 'ab') as f:
            fcntl.flock(f, fcntl.LOCK_EX)                              # a second search waits
            if not name.exists():
                embed_frames(model, data, f, k.batch_size)
                for old in name.parent.glob(f'{which}-*.bin'):         # of other weights
                    old.unlink()
                name.with_suffix('.part').rename(name)
    return np.memmap(name, np.float16, 'r').reshape(-1, model.config.proj_dim)

def embed_frames(model, data, f, batch_size):
    """Append to f what it lacks of the embeddings of all frames."""
    from tqdm import tqdm
    n, row = len(data.frames), 2 * model.config.proj_dim               # bytes
    done = f.tell() // row
    f.truncate(row * done)
    for i in tqdm(range(done, n, batch_size), 'frames', disable=None):
        ids = np.arange(i, min(i + batch_size, n))
        z = model.image_embedding(data.pictures(ids, model.config, model.vocab.device))
        f.write(z.half().cpu().numpy().tobytes())

def nearest(embeddings, query, n, chunk=1 << 16):
    """Rows of (frames, d) closest to query (d,) -> ids (n,), cosines (n,), best first; a chunk at a
    time is in memory."""
    ids, scores = np.zeros(0, np.int64), np.zeros(0, np.float32)
    for i in range(0, len(embeddings), chunk):
        score = embeddings[i:i + chunk].astype(np.float32) @ query
        best = np.argpartition(-score, min(n, len(score)) - 1)[:n]
        ids = np.concatenate([ids, best + i])
        scores = np.concatenate([scores, score[best]])
        order = np.argsort(-scores, kind='stable')[:n]
        ids, scores = ids[order], scores[order]
    return ids, scores

# ----------------------------------------------------------------------------------------------
# what fits

def open_parts(model, k):
    """-> all splits of all sets, as the model reads them, or without a model as they are."""
    parts = []
    for split in SPLITS:
        if model is None:
            parts += [Frames(Path(k.data_dir) / name, split) for name in k.dataset.split(',')]
        else:
            vocab = model.vocab.cpu().numpy()
            parts += open_sets(k.data_dir, k.dataset, split, model.config, vocab, k.context_s)
    parts = [data for data in parts if len(data.usable)]
    if not parts:
        sys.exit(f'error: {k.dataset} has no frame with words; prepare more videos')
    return parts

def open_index(model, k):
    """-> parts; rows, z, the embeddings of each; said; model. What k.by does not need is None."""
    parts = open_parts(model, k)
    z, said = [None] * len(parts), None
    if k.by != 'said':
        z = [frame_embeddings(model, data, k) for data in parts]
    if k.by != 'seen':
        kept = parts[0].path.parent if model is None else Path(k.run)
        said = open_said(parts, kept / 'search')
    rows = [open_rows(data) for data in parts]
    return SimpleNamespace(parts=parts, rows=rows, z=z, said=said, model=model)

def find(index, k, query, wanted, only=None):
    """The best moments for words, and an embedding (d,) of them or a picture; '' and None: not by
    these. only: part, first and last + 1 of the frames to look at. Frames are ranked by what is
    seen, passages by what is said, and each counts by its ranks."""
    seen, which = [], []
    for i, z in enumerate(index.z):
        first, end = 0, len(index.parts[i].frames)
        if only:
            first, end = only[1:] if only[0] == i else (0, 0)
        if wanted is not None and z is not None and end > first:
            frames, cosines = nearest(z[first:end], wanted, 8 * k.top)
            seen += zip(-cosines, [i] * len(frames), first + frames)
    if query and index.said:
        which, _ = best_said(index.said, query, 8 * k.top, only)

    # a frame's rank counts for its best passage, if one of them is found
    best, score = {}, {}
    for rank, i in enumerate(which):
        passage = index.said.passages[i]
        at = int(passage['part']), int(passage['frame'])
        best.setdefault(at, int(i))
        score[*at, int(i)] = 1 / (RANK + rank)
    for rank, (_, part, frame) in enumerate(sorted(seen)[:8 * k.top]):
        at = part, int(frame), best.get((part, int(frame)))
        score[at] = score.get(at, 0) + 1 / (RANK + rank)
    order = sorted(score, key=lambda at: -score[at])
    return choose((moment(index, *at, query, wanted) for at in order), k.top)

def choose(moments, top):
    """The best, of those of a video within 5 s only one."""
    chosen, taken = [], {}
    for m in moments:
        near = taken.setdefault((m['part'], m['video']), [])
        if all(abs(m['at'] - other) >= 5 for other in near):
            near.append(m['at'])
            chosen.append(m)
        if len(chosen) == top:
            break
    return chosen

def matched_again(model, query, moments):
    """As the joint layers judge words and picture together, the best first."""
    import torch
    tokens, pad = model.tokenise([query])
    pictures = torch.cat([m['data'].pictures(np.array([m['frame']]), model.config, pad.device)
                          for m in moments])
    n = len(moments)
    text, pad = model.read(tokens, pad).expand(n, -1, -1), pad.expand(n, -1)
    fused, _, _ = model.fuse(text, model.see(model.normalise(pictures)), pad)
    score = model.itm_head(fused[:, 0]).float()
    return [moments[i] for i in (score[:, 1] - score[:, 0]).argsort(descending=True)]

def answer(index, k, query, by, picture=None, only=None):
    """The moments for words or a PIL picture."""
    wanted, words = None, query if by != 'seen' else ''
    if by != 'said' and index.model is not None:
        model = index.model
        wanted = model.encode_image(picture) if picture else model.encode_text(query)
        wanted = wanted.float().cpu().numpy()
    moments = find(index, k, words, wanted, only)
    again = k.rerank if 'rerank' in k._source else 0                   # a default of retrieval
    if again and query and moments and by != 'said' and index.model.config.has('itm'):
        moments[:again] = matched_again(index.model, query, moments[:again])
    return moments

# ----------------------------------------------------------------------------------------------
# moments, for people

def printable(text):
    """Without line ends, control sequences of a terminal, and halves of characters."""
    return re.sub(' +', ' ', ''.join(c if c.isprintable() else ' ' for c in text))

def open_rows(data):
    """-> a function of a video's number to what videos.jsonl says of it now: another file may take
    its place while the arrays are open."""
    file = open(data.path / 'videos.jsonl', 'rb')
    ends = np.cumsum([0, *map(len, file)])

    def row_of(video):
        line = int(data.videos[video]['row'])
        return json.loads(os.pread(file.fileno(), ends[line + 1] - ends[line], ends[line]))
    return row_of

def moment(index, part, i, passage, query, wanted):
    """Frame i of a part, the number of a passage or None -> what there is to say of it."""
    data = index.parts[part]
    frame = data.frames[i]
    video, row = data.videos[frame['video']], index.rows[part](frame['video'])
    at = int(frame['t_ms'])
    if passage is None:
        start, length = data.spans(np.array([i]))
        words = [(data.text(start[0], length[0]), False)]
        if query and index.said:
            words, _ = marked(words[0][0], query, index.said.stems[part])
    else:
        passage = index.said.passages[passage]
        text, begins = text_of(data, passage)
        words, first = marked(text, query, index.said.stems[part])
        at = said_at(data, passage, begins, first)
    cosine = None
    if wanted is not None and index.z[part] is not None:
        cosine = float(index.z[part][i].astype(np.float32) @ wanted)
    still = bool(video['flags'] & CAPTIONS)                            # a picture has no time
    return dict(part=part, frame=i, video=int(frame['video']), data=data, row=row, cosine=cosine,
                at=at // 1000, still=still, clock=f'{at // 60_000}:{at // 1000 % 60:02d}',
                title=printable(row['title'] or row['source']).strip(),
                link=link_of(row, at // 1000, still),
                words=[(printable(piece), of_it) for piece, of_it in words])

def link_of(row, seconds, still):
    """-> where it can be seen: at its site, or the file; '' if neither."""
    link, _ = urldefrag(row['url'] or '')
    if not link and os.path.exists(row['source']):
        link = Path(row['source']).resolve().as_uri()
    if not still:
        file = link.startswith('file:') or urlsplit(link).path.lower().endswith(tuple(EXTENSIONS))
        link += ('#t=' if file else '&t=' if '?' in link else '?t=') + str(seconds)
    return printable(link) if re.match('(https?|file)://', link) else ''

def jpeg_of(data, i):
    """A stored frame -> bytes of a JPEG."""
    from PIL import Image
    side = max(data.meta['image_size'], 160)
    pixels = unpatchify(np.array(data.patches[i])[None], data.meta['patch_size'])[0]
    file = io.BytesIO()
    picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
    picture.save(file, 'JPEG', quality=85)
    return file.getvalue()

def template():
    """search.html. Titles and words are not trusted: it escapes them."""
    from jinja2 import Environment
    page = Path(__file__).with_name('search.html').read_text(encoding='utf-8')
    return Environment(autoescape=True, trim_blocks=True).from_string(page)
