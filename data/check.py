"""Does a finished set keep the contract? Uses none of the code that wrote it."""
import hashlib, json

import numpy as np

EOT = 50256                      # <|endoftext|>, the last of GPT-2's tokens
DOUBTS = (                       # from where on a video looks wrong, and what is said of it
    (10, 'a picture stands {:.0f} times as long as the median of the set'),
    (.25, '{:.0%} of the words are said before the first picture or after the last'),
    (.5, '{:.0%} of the words are said while one picture stands'),
    (.1, '{:.0%} of the words repeat those just before them'))

def problems(root):
    """-> sentences, none if data/<dataset> is sound. Recomputes everything from the files alone."""
    try:
        meta = json.loads((root / 'meta.json').read_text())
        with open(root / 'videos.jsonl', encoding='utf-8') as f:
            rows = [json.loads(line) for line in f]
    except (OSError, ValueError) as e:
        return [f'{e}: the set is not complete; run prepare.py on it again']
    try:
        bad = list(file_problems(root, meta))
        rows = {n: row for n, row in enumerate(rows) if row['status'] == 'ok'}
        for split, counts in {} if bad else meta['counts'].items():
            found = split_problems(root, split, counts, meta['image_size'], rows)
            bad += [f'{split}: {sentence}' for sentence in found]
        return bad
    except (LookupError, TypeError, AttributeError, OSError, ValueError) as e:
        return [f'meta.json or videos.jsonl is damaged ({type(e).__name__}: {e})']

def file_problems(root, meta):
    if meta['format'] != 1:
        yield f"format {meta['format']}, this code reads 1"
    for name, about in meta['arrays'].items():
        path = root / name
        if not path.exists() or path.stat().st_size != about['bytes']:
            yield f"{name}: not the {about['bytes']} bytes that meta.json states"
            continue
        with open(path, 'rb') as f:
            if hashlib.file_digest(f, 'sha256').hexdigest() != about['sha256']:
                yield f'{name}: its sha256 is not the one in meta.json'

def arrays(root, split):
    tokens = np.fromfile(root / f'{split}_tokens.bin', '<u2')
    times = np.fromfile(root / f'{split}_times.bin', '<u4').astype(np.int64)
    frames = np.load(root / f'{split}_frames.npy', allow_pickle=False)
    return tokens, times, frames, np.load(root / f'{split}_videos.npy', allow_pickle=False)

def split_problems(root, split, counts, image_size, rows):
    """rows {number: row of videos.jsonl}: each video takes its own away."""
    tokens, times, frames, videos = arrays(root, split)
    found = dict(videos=len(videos), frames=len(frames), tokens=len(tokens))
    if found != counts or len(times) != len(tokens):
        yield 'counts differ from meta.json'
    size = (root / f'{split}_patches.bin').stat().st_size
    if size != len(frames) * image_size ** 2 * 3:
        yield 'patches.bin is not one row per frame'
    if (tokens > EOT).any():
        yield 'a token is not a GPT-2 id'
    for what, total in ('token', len(tokens)), ('frame', len(frames)):
        edges = np.append(videos[what + '_start'], total)
        if edges[0] != 0 or (videos[what + '_end'] != edges[1:]).any():
            yield f'the {what}s of the videos are not end to end'
    for i, video in enumerate(videos):
        if rows.pop(video['row'], {}).get('split') != split:
            yield f'video {i}: its row in videos.jsonl is wrong'
        first, last = int(video['token_start']), int(video['token_end'])
        shown = frames[int(video['frame_start']):int(video['frame_end'])]
        if (shown['video'] != i).any():
            yield f'video {i}: a frame is of another'
        for sentence in video_problems(video, tokens[first:last], times[first:last], shown):
            yield f'video {i}: {sentence}'

def video_problems(video, said, when, shown):
    caption = video['flags'] & 1                   # of an image-caption list: many texts, no times
    ends = np.flatnonzero(said == EOT)
    if not len(ends) or ends[-1] != len(said) - 1 or not caption and len(ends) > 1:
        yield '<|endoftext|> must close each text, and stand nowhere else'
        return
    if (np.diff(when) < 0).any() or when[-1] != video['duration_ms']:
        yield 'times must rise to the duration'
    t, gone = shown['t_ms'].astype(np.int64), shown['t_end_ms'].astype(np.int64)
    if (np.diff(t) <= 0).any():
        yield 'frames out of order'
    if (gone[:-1] > t[1:]).any() or (gone > when[-1]).any() or not caption and (t >= gone).any():
        yield 'a frame stands for no time'
    for middle, token in zip((t + gone) // 2, shown['token'].astype(np.int64)):
        first = np.flatnonzero((when >= middle) | (said == EOT))[0]
        if token - int(video['token_start']) != first:
            yield 'a frame does not point at the first token after its middle'

# ----------------------------------------------------------------------------------------------

def doubts(root):
    """Yield what looks wrong in a set without problems. Image-caption lists have no times."""
    with open(root / 'videos.jsonl', encoding='utf-8') as f:
        sources = [json.loads(line)['source'] for line in f]
    stands, looks, names = [], [], []
    for split in json.loads((root / 'meta.json').read_text())['counts']:
        tokens, times, frames, videos = arrays(root, split)
        for video in videos[videos['flags'] & 1 == 0]:
            words = slice(int(video['token_start']), int(video['token_end']) - 1)
            shown = frames[int(video['frame_start']):int(video['frame_end'])]
            stands.append(shown['t_end_ms'] - shown['t_ms'])
            shares = *of_words(times[words], shown), repeated(tokens[words])
            looks.append([stands[-1].max(), *shares])
            names.append(sources[video['row']])
    if looks:
        looks = np.array(looks, float).T
        looks[0] /= np.median(np.concatenate(stands))
    for look, (limit, sentence) in zip(looks, DOUBTS):
        if n := (look > limit).sum():
            yield (f'{n} of {len(look)} videos, most of all {names[look.argmax()]}: '
                   + sentence.format(look.max()))

def of_words(when, shown):
    """-> shares of words said at `when` (n,): beyond a video's pictures; over one, if of many."""
    n = max(1, len(when))
    first, after = (np.searchsorted(when, shown[edge]) for edge in ('t_ms', 't_end_ms'))
    outside = len(when) - (after[-1] - first[0])
    return outside / n, (after - first).max() / n * (n >= 300)

def repeated(said):
    """The share of the tokens (n,) that belong to a second copy, right after the first, of 4 to 64
    of them: less may well be said twice."""
    again = np.zeros(len(said), bool)
    for n in range(4, min(64, len(said) // 2) + 1):
        differs = np.concatenate([[0], np.cumsum(said[n:] != said[:-n])])
        for first in np.flatnonzero(differs[n:] == differs[:-n]):
            again[first + n:first + 2 * n] = True
    return again.mean() if len(again) else 0
