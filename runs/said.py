"""The words of prepared sets, to search by: passages, and their scores by BM25.

A passage is what is said while one frame stands, for PASSAGE_S at most; of a listed picture, its
captions. Parts are the splits of the sets (data/arrays.py, Frames); S passages of all of them.
"""
import contextlib, fcntl, hashlib, re, shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from data.tokens import EOT, STOP_WORDS, gpt2_encoding

PASSAGE_S = 20
PASSAGE = np.dtype([('part', 'u2'), ('frame', 'u4'), ('start', 'u8'), ('end', 'u8')])
# a letter of a writing without spaces is a word
WORD = re.compile(r'[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+')
ELIDED = re.compile(r"['\u2019](?:\w|ll|re|ve)\b|\b\w['\u2019]")       # ohm's, we'll, l'eau
VERSION = 1                      # of what is kept

def passages(part, data):
    """-> PASSAGE records of one part, in the order of its tokens."""
    videos, frames = data.videos, data.frames
    length = (videos['token_end'] - videos['token_start']).astype(int)
    spoken = np.flatnonzero(data.tokens != EOT)
    video = np.repeat(np.arange(len(videos)), length)[spoken]

    # a word is not cut: all of it is said when it begins. Within a word begin tokens of ASCII, of
    # Latin, Greek, Cyrillic, ... letters of two bytes, and those that begin within a letter
    first = [gpt2_encoding().decode_single_token_bytes(i)[:1] for i in range(EOT)]
    within = np.array([byte.isalnum() or b'\x80' <= byte < b'\xe0' != b'\xc2' for byte in first])
    begins = ~within[data.tokens[spoken]] | (np.diff(video, prepend=-1) != 0)
    begins = np.maximum.accumulate(np.where(begins, np.arange(len(spoken)), 0))
    times = data.times[spoken[begins]].astype(np.int64)

    # each word is of the frame that stood, those before the first frame are of that
    shown = frames['video'].astype(np.int64) << 32 | frames['t_ms']
    frame = np.searchsorted(shown, video << 32 | times, 'right') - 1
    frame = np.maximum(frame, videos['frame_start'][video].astype(np.int64))
    piece = np.maximum(times - frames['t_ms'][frame], 0) // (1000 * PASSAGE_S)
    new = (np.diff(frame, prepend=-1) != 0) | (np.diff(piece, prepend=-1) != 0)

    found = np.zeros(new.sum(), PASSAGE)
    last = np.append(np.flatnonzero(new)[1:], len(spoken)) - 1
    found['part'], found['frame'] = part, frame[new]
    found['start'], found['end'] = spoken[new], spoken[last[:len(found)]] + 1
    return found

def stemmer(data):
    """-> a function of words to their stems if the set's language has one, else to themselves."""
    import Stemmer
    language = data.meta['config'].get('language', 'en')
    with contextlib.suppress(KeyError):            # 'any', or none that it knows
        return Stemmer.Stemmer(language.split('-')[0].lower()).stemWords
    return list

def text_of(data, passage):
    """-> a passage's words, for people, and where each of its tokens begins in them."""
    comma, = gpt2_encoding().encode(',')           # between captions
    tokens = data.tokens[int(passage['start']):int(passage['end'])]
    return gpt2_encoding().decode_with_offsets(np.where(tokens == EOT, comma, tokens).tolist())

def said_at(data, passage, begins, letter):
    """When a letter of a passage is said, in ms."""
    token = int(passage['start']) + np.searchsorted(begins, letter, 'right') - 1
    return int(data.times[token])

def open_said(parts, folder):
    """-> index (None without words), passages (S,), stems of each part; made once, and kept in a
    folder."""
    import bm25s
    names = ' '.join(f'{data.path.name}/{data.split}' for data in parts)
    made_of = [VERSION, PASSAGE_S, *(data.meta['config'].get('language') for data in parts)]
    made_of += [data.meta['arrays'][f'{data.split}_{kind}']['sha256'] for data in parts
                for kind in ('tokens.bin', 'times.bin', 'frames.npy', 'videos.npy')]
    which, how = (hashlib.sha256(text.encode()).hexdigest()[:12] for text in (names, str(made_of)))
    name = Path(folder) / f'said-{which}-{how}'
    stems = [stemmer(data) for data in parts]
    if not name.exists():
        name.parent.mkdir(parents=True, exist_ok=True)
        with open(name.parent / f'{which}.lock', 'w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)       # a second search waits
            if not name.exists():
                for old in name.parent.glob(f'said-{which}-*'):        # of others, or unfinished
                    shutil.rmtree(old)
                part = name.with_suffix('.part')
                part.mkdir()
                make_index(parts, stems, part)
                part.rename(name)
    index, found = None, np.load(name / 'passages.npy', 'r', allow_pickle=False)
    if len(found):
        index = bm25s.BM25.load(name, mmap=True)
    return SimpleNamespace(index=index, passages=found, stems=stems)

def make_index(parts, stems, folder):
    import bm25s
    from tqdm import tqdm
    found = np.concatenate([passages(i, data) for i, data in enumerate(parts)])
    np.save(folder / 'passages.npy', found)
    number, documents = {}, []                     # of each stem the same object each time
    for passage in tqdm(found, 'words', disable=None):
        text, _ = text_of(parts[passage['part']], passage)
        words = stems[passage['part']](words_of(text))
        documents.append([number.setdefault(word, len(number)) for word in words])
    if documents:
        number.setdefault('', len(number))
        index = bm25s.BM25()
        index.index((documents, number), show_progress=False)
        index.save(folder)

def words_of(text):
    return WORD.findall(ELIDED.sub(' ', text.lower()))

def asked(query, stems):
    """A query -> the stems of its words, without those that say nothing if it has others."""
    words = words_of(query)
    return stems([w for w in words if w not in STOP_WORDS] or words)

def best_said(said, query, n, only=None):
    """-> passages (up to n,) and their scores, the best first, of those with a word of the query.
    only: part, first and last + 1 of the frames to look at."""
    words = {word for stems in said.stems for word in asked(query, stems)}
    words = sorted(words & said.index.vocab_dict.keys()) if said.index else []
    if not words:
        return np.zeros(0, int), np.zeros(0)
    score = said.index.get_scores(words)
    if only:
        at = said.passages
        score[(at['part'] != only[0]) | (at['frame'] < only[1]) | (at['frame'] >= only[2])] = 0
    best = np.argpartition(-score, min(n, len(score)) - 1)[:n]
    best = best[score[best] > 0]
    best = best[np.argsort(-score[best], kind='stable')]
    return best, score[best]

def marked(text, query, stems):
    """-> [(a piece of the text, is it a word of the query?)]; where the first of those is, or 0."""
    wanted = set(asked(query, stems))
    pieces, at, first = [], 0, None
    for word in WORD.finditer(text):
        if stems([word[0].lower()])[0] in wanted:
            pieces += [(text[at:word.start()], False), (word[0], True)]
            at = word.end()
            first = word.start() if first is None else first
    return [*pieces, (text[at:], False)], first or 0
