"""Image-caption lists and WebDataset tars -> packs: one shard per thousand pictures, or per tar.

A pack is an item (data/sources.py) with pairs, [[image, captions, split], ...], or a tar as
img2dataset writes it. Beside a video's, its shard has of each picture: ids (n, 16) uint8, a hash of
the file's bytes; ends (n,), where its tokens end; given (n,), the split that the list says, or -1;
and about, lines of JSON: the pictures, then what was left out and why.
"""
import collections, glob, gzip, hashlib, io, itertools, json, os, tarfile, zlib
from pathlib import Path

import numpy as np

from data.arrays import CAPTIONS, patchify
from data.pictures import middle_square, pixel_sums, read_picture
from data.shards import FRAME, VIDEO, read_shard, sha256, shard_path
from data.sources import Bad, content_key, read_rows
from data.splits import SPLITS
from data.tokens import EOT, gpt2_encoding

PACK = 1000                      # pictures of a list that are read in one go
PICTURES = '.jpg', '.jpeg', '.png', '.webp', '.gif', '.bmp', '.tif', '.tiff', '.ppm'
LARGEST = 1 << 28                # bytes of a picture or a text that are read
CAPTION = 'caption', 'text', 'TEXT'                # where img2dataset's .json has the words

# ----------------------------------------------------------------------------------------------
# what was named -> items

def find_packs(name):
    """--pairs: a list, a tar, a folder or a pattern of tars -> items, rows of videos.jsonl for the
    entries of a list that are no pair."""
    path = Path(name)
    if path.suffix.lower() in ('.json', '.jsonl'):
        return packs_of_list(path)
    pattern = f'{glob.escape(name)}/*.tar' if path.is_dir() else name
    tars = sorted(map(Path, glob.glob(pattern, recursive=True)))
    if not tars:
        raise SystemExit(f'error: --pairs={name} is no list (.json, .jsonl), nor are there tars')
    items = [dict(key=content_key(tar), source=str(tar), title=tar.stem, url='', tar=True,
                  bytes=tar.stat().st_size) for tar in tars]
    return items, []

def packs_of_list(path):
    pairs, refused = {}, []
    for n, entry in enumerate(read_rows(path)):
        entry = entry if isinstance(entry, dict) else {}
        image, split = entry.get('image'), entry.get('split')
        try:
            if not isinstance(image, str) or split not in (None, *SPLITS):
                raise Bad('bad_row', 'needs {"image": path, "caption": text or [texts]}, '
                                     'and if there is a "split", train, val or test')
            texts = captions_of(entry.get('caption'))
        except Bad as e:
            image = Path(str(image))
            refused.append(dict(key=f'pair:{n}', source=str(path.parent / image), title=image.stem,
                                url='', cause=e.cause, message=f'{path}, entry {n}: {e}'))
            continue

        # COCO lists a picture once per caption
        _, captions, _ = pairs.setdefault(image, [str(path.parent / image), [], split])
        captions += [text for text in texts if text not in captions]

    pairs = list(pairs.values())
    items = []
    for at in range(0, len(pairs), PACK):
        some = pairs[at:at + PACK]
        sizes = [os.path.getsize(image) if os.path.isfile(image) else 0 for image, _, _ in some]
        what = [(os.path.relpath(pair[0], path.parent), pair[1:]) for pair in some]
        items.append(dict(key='pack:' + sha256(json.dumps([what, sizes]))[:40], source=str(path),
                          title=f'{path.stem} {at}', url='', bytes=sum(sizes), pairs=some))
    return items, refused

def captions_of(told):
    """What a list or a tar says of a picture -> its captions, or Bad."""
    told = told if isinstance(told, list) else [told]
    texts = [' '.join(text.split()) for text in told if isinstance(text, str)]
    if not any(texts):
        raise Bad('no_text', 'it has no caption: text or [texts]')
    return list(dict.fromkeys(filter(None, texts)))

def is_pack(item):
    return 'pairs' in item or 'tar' in item

def size_of(item):
    """How many pictures a pack has, as far as one can tell without reading all of it."""
    if 'pairs' in item:
        return len(item['pairs'])
    try:
        with tarfile.open(item['source']) as tar:
            return sum(name.lower().endswith(PICTURES) for name in tar.getnames())
    except (tarfile.TarError, EOFError) as e:
        raise Bad('truncated', f"{item['source']}: {e}") from None

# ----------------------------------------------------------------------------------------------
# an item -> its shard

def members(path):
    """Yield (name, {ending: bytes}) of each sample of a tar: members in a row whose paths are the
    same up to the first dot of the file's name. Only those that a pair is made of are read."""
    name, parts = None, {}
    with tarfile.open(path) as tar:
        for member in tar:
            tar.members = []                       # or it remembers all
            if member.isdir():
                continue
            folder, file = os.path.split(member.name)
            stem, _, ending = file.partition('.')
            if not stem or not ending:             # ._x.png of macOS; as WebDataset has it
                continue
            if (here := os.path.join(folder, stem)) != name:
                if name:
                    yield name, parts
                name, parts = here, {}
            ending = '.' + ending.lower()
            if member.isfile() and ending in (*PICTURES, '.txt', '.json'):
                parts[ending] = tar.extractfile(member).read(LARGEST)
        end = tar.offset
    if name:
        yield name, parts
    # a damaged header looks like the end, which is blocks of zeros
    if path.lower().endswith('.tar'):
        with open(path, 'rb') as file:
            file.seek(end)
            if not (block := file.read(512)) or block.strip(b'\0'):
                raise tarfile.ReadError('a damaged header, or no end')

def samples(item):
    """Yield (source, title, what is known of it) of each picture of a pack; see pair_of."""
    for image, captions, split in item.get('pairs', ()):
        yield image, Path(image).stem, dict(image=image, captions=captions, split=split)
    if 'tar' in item:
        try:
            for name, parts in members(item['source']):
                yield f"{item['source']}/{name}", os.path.basename(name), parts
        except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as e:
            yield item['source'], item['title'], dict(truncated=e)

def pair_of(parts):
    """What is known of a sample -> bytes of the picture, captions, split; or Bad."""
    if 'truncated' in parts:
        raise Bad('truncated', f"from here on it cannot be read ({parts['truncated']})")
    if 'image' in parts:
        if not os.path.isfile(parts['image']) or not os.access(parts['image'], os.R_OK):
            raise Bad('not_found', 'no such file, or not readable')
        return Path(parts['image']).read_bytes(), parts['captions'], parts['split']

    pictures = [ending for ending in parts if ending in PICTURES]
    if not pictures:
        raise Bad('not_found', f"no picture beside {', '.join(parts) or 'nothing'}")
    about = {}
    if '.json' in parts:
        try:
            about = dict(json.loads(parts['.json']))
        except (ValueError, TypeError):
            raise Bad('bad_row', 'its .json cannot be read') from None
    if about.get('split') not in (None, *SPLITS):
        raise Bad('bad_row', f"split is {about['split']!r}: expected train, val or test")
    told = [parts.get('.txt', b'').decode('utf-8-sig', 'replace'), *map(about.get, CAPTION)]
    spoken = [texts for texts in told if texts and (not isinstance(texts, str) or texts.strip())]
    return parts[pictures[0]], captions_of(spoken[0] if spoken else None), about.get('split')

def encode(captions):
    """-> tokens, each caption closed. A space first: a word is the same anywhere."""
    encoding = gpt2_encoding()
    return [token for text in captions for token in (*encoding.encode_ordinary(' ' + text), EOT)]

def read_pack(item, cfg, count, out):
    """The pictures of a pack with their captions: videos of one frame without duration -> index,
    what the row says."""
    kept, left, tokens = [], [], []
    for source, title, parts in samples(item):
        row = dict(key='', source=source, title=title, url='', pack=item['key'])
        try:
            raw, captions, split = pair_of(parts)
            row['key'] = 'file:' + hashlib.sha256(raw).hexdigest()[:32]
            if cfg.excluded & {row['key'], source}:
                continue
            picture = read_picture(io.BytesIO(raw), cfg.image_size)
        except Bad as e:
            row |= dict(status='failed', cause=e.cause, message=f'{source}: {e}')
            left.append(row | dict(key=f"{item['key']}:{len(left)}"))
            continue
        picture = middle_square(picture, cfg.image_size)
        out.write(patchify(picture[None], cfg.patch_size).tobytes())
        said = encode(captions)
        tokens += said
        kept.append((row | dict(status='ok', cause='', n_tokens=len(said)),
                     list(bytes.fromhex(row['key'][5:])), len(tokens),
                     SPLITS.index(split) if split in SPLITS else -1, pixel_sums(picture)))

    rows, ids, ends, given, pixels = zip(*kept) if kept else [()] * 5
    count['frames_seen'] = count['frames_kept'] = len(kept)
    index = dict(
        ids=np.array(ids, np.uint8).reshape(-1, 16), ends=np.array(ends, np.int64),
        given=np.array(given, np.int8), pixels=np.array(pixels, np.int64).reshape(-1, 2, 3),
        tokens=np.array(tokens, np.uint16), frames=np.zeros((len(kept), 3), np.uint32),
        about=np.frombuffer('\n'.join(map(json.dumps, [*rows, *left])).encode(), np.uint8))
    return index, dict(duration=0., words_from='captions')

# ----------------------------------------------------------------------------------------------
# all shards -> the arrays

def what_is_in(index):
    """-> of a pack that is joined: ids, given, the number of its rows, {cause: how many}."""
    lines = index['about'].tobytes().decode().splitlines()
    causes = collections.Counter(json.loads(line)['cause'] for line in lines[len(index['ids']):])
    return dict(ids=index['ids'], given=index['given'], rows=len(lines), causes=causes)

def split_packs(packs, val, test, lent):
    """packs {key: what_is_in}, in order -> {key: (n,) int8}, the number of each picture's split: as
    its list says, else by its hash; -1 where the same picture is there already. Of a small set one
    goes to val and one to test, unless they were lent a video."""
    if not packs:
        return {}
    ids = np.concatenate([pack['ids'] for pack in packs.values()])
    given = np.concatenate([pack['given'] for pack in packs.values()])
    place = ids[:, :4].copy().view('>u4')[:, 0] / 2 ** 32
    split = np.where(place < test, 2, np.where(place < test + val, 1, 0))
    split = np.where(given < 0, split, given).astype(np.int8)

    high, low = ids.view('>u8').T
    order = np.lexsort((-given, low, high))        # of equal ones the held out, else the first
    again = (ids[order[1:]] == ids[order[:-1]]).all(1)
    split[order[1:][again]] = -1
    for code, share in (1, val), (2, test):
        train = np.flatnonzero((split == 0) & (given < 0))
        if share and SPLITS[code] not in lent and code not in split and 2 <= len(train):
            split[train[place[train].argmin()]] = code
    edges = np.cumsum([len(pack['ids']) for pack in packs.values()])
    return dict(zip(packs, np.split(split, edges[:-1])))

def pack_records(index, mine, video, frame, token, row):
    """The pictures `mine` of a pack, counted from `video`, `frame` and `token`; `row` is that of
    its first picture -> records of frames.npy and videos.npy, tokens, times, pixels."""
    begins = np.append(0, index['ends'])[:-1]
    sizes = index['ends'] - begins
    after = token + np.cumsum(sizes[mine])
    number = np.arange(len(mine))
    videos = np.zeros(len(mine), VIDEO)
    videos['token_start'], videos['token_end'] = after - sizes[mine], after
    videos['frame_start'], videos['frame_end'] = frame + number, frame + number + 1
    videos['row'], videos['flags'] = row + mine, CAPTIONS
    frames = np.zeros(len(mine), FRAME)
    frames['video'], frames['token'] = video + number, videos['token_start']
    tokens = index['tokens'][np.repeat(np.isin(np.arange(len(sizes)), mine), sizes)]
    return dict(frames=frames, videos=videos, tokens=tokens,
                times=np.zeros(len(tokens), np.uint32), pixels=index['pixels'][mine].sum(0))

def tally(pack, split):
    """-> {cause or 'ok': how many pictures of a pack}."""
    kept = int((split >= 0).sum())
    return +collections.Counter(pack['causes'], ok=kept, duplicate=len(split) - kept)

def pack_lines(index, split):
    """Yield the rows of a pack for videos.jsonl."""
    for i, line in enumerate(index['about'].tobytes().decode().splitlines()):
        row = json.loads(line)
        if i < len(split) and split[i] < 0:
            row |= dict(status='failed', cause='duplicate', message='the set has the same picture')
        elif i < len(split):
            row['split'] = SPLITS[split[i]]
        yield json.dumps(row)

def places(rows, packs):
    """-> {key: the number of its row of videos.jsonl, of a pack that of its first picture}."""
    videos = [key for key in sorted(rows) if key not in packs]
    keys = [*videos, *packs]
    sizes = [1] * len(videos) + [pack['rows'] for pack in packs.values()]
    return dict(zip(keys, itertools.accumulate(sizes, initial=0)))

def lines_of(root, rows, place, codes):
    """Yield the lines of videos.jsonl."""
    keep = ('key source title url duration split status cause message words_from n_frames n_tokens '
            'counts license channel_id upload_date language').split()
    for key in place:
        if key in codes:
            index, _ = read_shard(shard_path(root / 'shards', key))
            yield from pack_lines(index, codes[key])
        else:
            yield json.dumps({k: rows[key][k] for k in keep if k in rows[key]})
