"""What is kept of one video until all are joined, and files that are written whole or not at all.

A shard holds the patch rows as they come, then an .npz of everything else (the index), then the
rows' length in bytes (8)."""
import contextlib, hashlib, io, json, os, secrets, shutil, sys
from pathlib import Path

import numpy as np

from data.arrays import FRAME_SILENT
from data.sources import read_names

FRAME = np.dtype([('video', 'u4'), ('t_ms', 'u4'), ('t_end_ms', 'u4'), ('token', 'u8'),
                  ('flags', 'u2')])
VIDEO = np.dtype([('token_start', 'u8'), ('token_end', 'u8'), ('frame_start', 'u8'),
                  ('frame_end', 'u8'), ('duration_ms', 'u4'), ('row', 'u4'), ('flags', 'u2')])

def sha256(key):
    return hashlib.sha256(key.encode(errors='backslashreplace')).hexdigest()

def shard_path(root, key, ending='.shard'):
    name = sha256(key)[:40]                        # never from a title or an id
    return root / name[:2] / (name + ending)

def read_shard(path):
    """-> (index {tokens, times, frames, hashes, pixels, row}, bytes of patch rows before it)."""
    with open(path, 'rb') as f:
        f.seek(-8, os.SEEK_END)
        size = int.from_bytes(f.read(8), 'little')
        f.seek(size)
        with np.load(io.BytesIO(f.read()[:-8]), allow_pickle=False) as z:
            index = dict(z)
    return index | dict(row=json.loads(index['row'].tobytes())), size

@contextlib.contextmanager
def whole(path):
    """A file to write, which appears at path whole or not at all."""
    part = Path(f'{path}.part{secrets.token_hex(8)}')
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(part, 'wb') as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)

def write_lines(path, lines):
    with whole(path) as f:
        f.writelines(f'{line}\n'.encode(errors='surrogateescape') for line in lines)

def video_records(index, some, video, frame, token, row):
    """A video, counted from `video`, `frame` and `token` -> records of frames.npy and videos.npy,
    tokens, times, pixels. A frame points at the first token after its middle."""
    frames = np.zeros(len(some), FRAME)
    frames['video'] = video
    frames['t_ms'], frames['t_end_ms'], frames['flags'] = index['frames'].T
    shown = index['frames'][:, :2].astype(np.int64)
    tokens, times, about = index['tokens'], index['times'], index['row']
    middle = np.searchsorted(times, shown.sum(1) // 2)
    frames['token'] = token + np.minimum(middle, len(tokens) - 1)
    first, after = np.searchsorted(times[:-1], shown.T)
    frames['flags'][first >= after] |= FRAME_SILENT
    videos = np.zeros(1, VIDEO)
    videos[0] = (token, token + len(tokens), frame, frame + len(some),
                 round(about['duration'] * 1000), row, about['flags'])
    return dict(frames=frames, videos=videos, tokens=tokens, times=times, pixels=index['pixels'])

class Hashed:
    """A file that is written from its start to its end, and its sha256 on the way."""
    def __init__(self, path):
        self.file = open(path, 'wb')
        self.digest = hashlib.sha256()

    def write(self, data):
        data = memoryview(data).cast('B')
        self.file.write(data)
        self.digest.update(data)

    def close(self):
        size = self.file.tell()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return dict(sha256=self.digest.hexdigest(), bytes=size)

def packs_to_remake(root, items, gone):
    """The shards of packs that hold pictures of `gone`, to be made anew without. Adds the keys of
    the pictures to `gone`: they stay out under any name. Exits if what is needed is not there."""
    held = []
    for i in items:
        path = shard_path(root / 'shards', i['key'])
        if path.exists() and 'about' in (index := read_shard(path)[0]):
            rows = list(map(json.loads, index['about'].tobytes().decode().splitlines()))
            gone |= {row['key'] for row in rows if gone & {row['key'], row['source']}}
            ok = {row['source']: row['key'] for row in rows if row['status'] == 'ok'}
            held.append((i, path, ok))
    found = [pack for pack in held if gone & set(pack[2].values())]
    for i, _, ok in found:
        needed = [i['source']] if 'tar' in i else [x for x in ok if ok[x] not in gone]
        if lost := [x for x in needed if not os.path.exists(x)]:
            sys.exit(f'error: {lost[0]} is not there any more, and its pack cannot be made anew '
                     'without it; put it back, or exclude it too. Nothing was changed')
    return [path for _, path, _ in found]

def take_down(root, items, names):
    """--exclude: shards, words and media of these go, the keys are remembered -> what stays, all
    that was ever excluded."""
    memory = root / 'excluded.txt'
    gone = read_names(memory) if memory.exists() else []
    for name in names:
        gone += read_names(name) if name.endswith('.txt') else [name]
    gone = {line.strip() for line in gone} - {''}
    packs = packs_to_remake(root, items, gone) if names else []
    if packs:
        write_lines(memory, sorted(gone))          # before anything of them is lost
    for path in packs:
        path.unlink()
    for i in items:
        if gone & {i['key'], i['key'].split(':', 1)[1], i['url'], i['source']}:
            gone.add(i['key'])                     # it stays out under any name
            for path in root.glob(f"*/*/{shard_path(root, i['key'], '').name}*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    if gone:
        write_lines(memory, sorted(gone))
    return [i for i in items if i['key'] not in gone], gone
