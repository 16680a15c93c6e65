"""--task=search: the moments of a prepared set, all splits, that fit some words or a picture best.

    python eval.py --run=out/talks --task=search --query="a red circle" --page
    python eval.py --run=out/talks --task=search --image=x.jpg --dataset=a,b --top=50

The embedding of every frame is made once, and kept in out/<run>/search/*.bin.
"""
import base64, fcntl, hashlib, io, json, linecache, re, sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configurator import at_least
from data.arrays import CAPTIONS, open_sets, unpatchify
from data.pictures import open_pictures
from data.tokens import STOP_WORDS

@dataclass
class Knobs:
    query: str = ''              # these words,
    image: str = ''              # or what looks like this picture
    top: int = 20                # so many moments,
    page: bool = False           # also as a web page that works offline: out/<run>/search.html

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
# moments, for people

def printable(text):
    """Without line ends, control sequences of a terminal, and halves of characters."""
    return ' '.join(''.join(c if c.isprintable() else ' ' for c in text).split())

def moment(score, data, i):
    """Frame i of a set -> what there is to say of it."""
    frame = data.frames[i]
    video = data.videos[frame['video']]
    row = json.loads(linecache.getline(str(data.path / 'videos.jsonl'), int(video['row']) + 1))
    seconds = int(frame['t_ms']) // 1000
    link = row['url'] or ''
    if not link and Path(row['source']).exists():
        link = Path(row['source']).resolve().as_uri()
    if not video['flags'] & CAPTIONS:                                  # a picture has no time
        at = '#t=' if link.startswith('file:') else '&t=' if '?' in link else '?t='
        link += f'{at}{seconds}'
    start, length = data.spans(np.array([i]))
    return dict(score=score, frame=i, data=data, clock=f'{seconds // 60}:{seconds % 60:02d}',
                title=printable(row['title'] or row['source']),
                link=printable(link) if re.match('(https?|file)://', link) else '',
                text=printable(data.text(start[0], length[0])))

def choose(found, top):
    """[(score, data, frame)] -> the best moments, of frames of a video within 5 s only one."""
    moments, taken = [], {}
    for score, data, i in sorted(found, key=lambda f: -f[0]):
        t = int(data.frames[i]['t_ms'])
        near = taken.setdefault((id(data), int(data.frames[i]['video'])), [])
        if len(moments) < top and all(abs(t - other) >= 5000 for other in near):
            near.append(t)
            moments.append(moment(score, data, i))
    return moments

def main(model, k):
    at_least(vars(k), top=1)
    if not model.config.has('itc'):
        sys.exit(f'error: {k.run} was trained without itc, so it has no embeddings to search by; '
                 'take a run with --itc=1')
    if bool(k.query) == bool(k.image):
        sys.exit('error: search needs --query="words" or --image=picture.jpg')
    if k.image:
        wanted = model.encode_image(open_pictures(k.image)[0][1])
    else:
        wanted = model.encode_text(k.query)
    found, vocab = [], model.vocab.cpu().numpy()
    for split in ('train', 'val', 'test'):
        for data in open_sets(k.data_dir, k.dataset, split, model.config, vocab, k.context_s):
            z = frame_embeddings(model, data, k)
            ids, scores = nearest(z, wanted.float().cpu().numpy(), 8 * k.top)
            found += zip(scores.tolist(), [data] * len(ids), ids.tolist())
    if not found:
        sys.exit(f'error: {k.dataset} has no frame with words; prepare more videos')
    moments = choose(found, k.top)
    for m in moments:
        print(f"{m['score']:.3f}  {m['clock']:>6}  {m['title'][:60]}  {m['link']}")
        print(f"            {m['text'][:150]}")
    if k.page:
        write_page(moments, k)

def write_page(moments, k):
    """out/<run>/search.html: one static file with pictures, links and the words around. Titles and
    words are not trusted: the template escapes them."""
    from jinja2 import Environment
    from PIL import Image
    asked = set(re.findall(r'\w+', k.query.lower())) - STOP_WORDS
    for m in moments:
        data = m['data']
        side = max(data.meta['image_size'], 160)
        patches = np.array(data.patches[m['frame']])[None]
        picture = Image.fromarray(unpatchify(patches, data.meta['patch_size'])[0])
        jpeg = io.BytesIO()
        picture.resize((side, side), Image.Resampling.BICUBIC).save(jpeg, 'JPEG', quality=85)
        m['jpeg'] = base64.b64encode(jpeg.getvalue()).decode()
        m['words'] = [(w, w.lower() in asked) for w in re.split(r'(\w+)', m['text'])]
    page = Path(__file__).with_suffix('.html').read_text(encoding='utf-8')
    page = Environment(autoescape=True, trim_blocks=True).from_string(page).render(
        asked=printable(k.query or f'like {k.image}'), moments=moments, dataset=k.dataset)
    path = Path(k.run) / 'search.html'
    path.write_text(page, encoding='utf-8')
    print(f'wrote {path}')
