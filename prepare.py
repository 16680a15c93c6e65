"""Narrated videos -> memory-mapped patches, tokens and frame index in data/<dataset>/.

    python prepare.py talks/ --dataset=talks             files, folders, text files that list them
    python prepare.py "ytsearch50:oil painting" --dataset=oil    searches, channels, playlists, URLs
    python prepare.py --pairs=coco.json --dataset=coco   an image-caption list, into the same arrays
    python prepare.py --pairs="cc3m/*.tar" --dataset=cc3m    or WebDataset tars, as of img2dataset
    python prepare.py talks/ --dry_run                   how many videos, hours and bytes
    python prepare.py --dataset=talks --check            validate a finished set

What was named is frozen into data/<dataset>/items.jsonl, itself an input: a data set is a recipe
that can be published. Each video, or a thousand pairs, becomes one shard by a pure function, in
worker processes; a last step joins the shards. Ctrl-C, SIGTERM or a crash loses at most what is in
flight: run the same command again. (A script's background is deaf to Ctrl-C, as any program's
there; SIGTERM stops it.) The arrays are the same, byte for byte, with any number of workers. Inputs
given later are added to the set.
"""
import collections, contextlib, io, json, math, multiprocessing, os
import shutil, signal, sys, threading, time, types, zipfile
import concurrent.futures as futures
from pathlib import Path
from typing import Literal

import numpy as np

from configurator import at_least, configure, shares
from data.arrays import FORMAT, patchify
from data.check import doubts, problems
from data.packs import (find_packs, is_pack, lines_of, pack_records, places, read_pack,
                        split_packs, tally, what_is_in)
from data.pictures import pixel_sums
from data.report import estimate, table, write_preview
from data.shards import (FRAME, VIDEO, Hashed, read_shard, sha256, shard_path, take_down,
                         video_records, whole, write_lines)
from data.sources import PASSING, Bad, check_javascript, fetch, find_items, read_rows
from data.splits import SPLITS, marks, split_of, uploads
from data.tokens import EOT, TOKENIZER_SHA256
from data.video import Decoder, key_frames, reach
from data.words import load_whisper, read_sidecar, tokenise, transcribe

# what goes in
dataset = 'mine'                 # the arrays go to <data_dir>/<dataset>
data_dir = 'data'
videos: tuple[str, ...] = ()     # files, folders, URLs, ytsearchN:queries, .txt lists of all these,
                                 # items.jsonl; plain arguments do the same
pairs = ''                       # image-caption list: {"image": path, "caption": text or [texts]};
                                 # or .tar files of WebDataset: a folder of them, or "a/*.tar"
all_files = False                # folders: try every file, whatever its extension
exclude: tuple[str, ...] = ()    # keys, ids, URLs or .txt lists of them that leave the set for good
# from the network, by yt-dlp
max_per_input = 0                # videos of each channel, playlist or search; 0: all
licence = ''                     # only videos whose licence contains this: Creative Commons
min_s, max_s = 20, 7200          # only videos of this length, seconds
max_height = 360                 # the smallest format from here down; above if there is no other
auto_captions = False            # a site's automatic captions instead of Whisper: for laptops
sleep_s = 5.0                    # wait this long, up to twice as long, between downloads
cookies = ''                     # a cookies.txt, for what only you may see
keep_media = False               # keep the files after their frames and words are taken
retry_failed = False             # ask again for what is gone or filtered, and for what crashed
# pictures
image_size = 160                 # stored side; train.py takes random windows of it
patch_size = 16                  # stored patch side; the model's may be any multiple
min_gap_s = 1.0                  # after a kept frame, skip key frames for this long
max_gap_s = 30.0                 # where key frames are rarer (screen captures), seek one this often
same_bits = 6                    # near-duplicate: at most so many of 64 dHash bits differ from the
again_bits = 3                   # last kept frame's, or from any of the last 64 (title cards),
same_level = 24                  # and no cell of a 36 x 32 grey thumbnail by more of 255
# words
captions = ''                    # the folder with the captions, if they are not beside them
text: Literal['auto', 'sidecar', 'whisper'] = 'auto'    # auto: captions that can be read
whisper_model = 'auto'           # tiny.en ... turbo, or a .pt; auto: turbo on CUDA, else base.en
language = 'en'                  # captions, speech (multilingual models vote) in this, or any
whisper_batch = 16               # 30-second chunks decoded together; 64 on a large GPU
keep_silent = False              # keep videos without words (image-only training)
# running
workers = 0                      # processes; 0: one per core (with Whisper on CUDA: 4)
device = 'auto'                  # of Whisper: cpu, cuda
timeout_s = 1200                 # per video, plus three times its length
val_fraction: float | None = None       # by video; None: 0.1 below 2,000 videos, else 0.01
test_fraction: float | None = None
overwrite = False                # forget the set's items and shards (not what Whisper heard)
resolve = False                  # only freeze the inputs into items.jsonl
preview = False                  # only write data/<dataset>/preview.html: look at your data
check = False                    # only validate the finished set
dry_run = False                  # only count and estimate

# what shapes a shard: a set keeps the settings that it was begun with
EXTRACTION = ('image_size patch_size min_gap_s max_gap_s same_bits again_bits same_level '
              'text whisper_model language keep_silent').split()
VIDEO_TRUNCATED = 2              # videos.flags, beside arrays.CAPTIONS
VIDEO_STATIC = 4

# ----------------------------------------------------------------------------------------------
# one item -> one shard

def set_alarm(seconds):
    """A hang ends this process after so long, even inside a C library; 0: no more."""
    if hasattr(signal, 'alarm'):
        signal.alarm(int(seconds))

def process(item, cfg):
    """An item -> its shard, whole or not at all, and its row. Pure: depends on nothing else."""
    count = collections.Counter()
    began = time.perf_counter()
    row = {k: v for k, v in item.items() if k not in ('pairs', 'sidecar', 'media')}
    path = shard_path(cfg.root / 'shards', item['key'])
    set_alarm(cfg.timeout_s + (item['bytes'] / 1e6 if is_pack(item) else 0))
    try:
        with whole(path) as out:
            read = read_pack if is_pack(item) else read_video
            index, about = read(item, cfg, count, out)
            size = out.tell()
            row |= about | dict(status='ok', cause='', counts=dict(+count),
                                n_frames=len(index['frames']), n_tokens=len(index['tokens']),
                                seconds=time.perf_counter() - began)
            stream = io.BytesIO()
            np.savez(stream, row=np.frombuffer(json.dumps(row).encode(), np.uint8), **index)
            out.write(stream.getvalue() + size.to_bytes(8, 'little'))
        path.with_suffix('.err.json').unlink(missing_ok=True)
        return row
    except Bad as e:
        return failed(cfg.root, row | dict(counts=dict(+count)), e.cause, str(e))
    except Exception as e:                         # not foreseen: counted as such
        if getattr(e, 'errno', None) in (28, 30, 122):
            raise                                  # disk full, read-only, over quota: stop the run
        return failed(cfg.root, row, 'error', f"{item['source']}: {type(e).__name__}: {e}")
    finally:
        set_alarm(0)

def failed(root, row, cause, message):
    """Record why an item gives no shard."""
    row = row | dict(status='failed', cause=cause, message=message)
    row.pop('pairs', None)
    write_lines(shard_path(root / 'shards', row['key'], '.err.json'), [json.dumps(row)])
    return row

def take_frames(found, cfg, out):
    """Key frames, their patches to out -> frames (n, 3) of t_ms, t_end_ms (0: stands until the end)
    and flags; hashes; the sums of the pixels and of their squares."""
    frames, hashes = [], []
    pixels = np.zeros((2, 3), np.int64)
    for t_ms, flags, bits, picture in found:
        if frames and not frames[-1][1]:
            frames[-1][1] = t_ms                   # until the next, or until an earlier one is back
        if picture is not None:
            frames.append([t_ms, 0, flags])
            hashes.append(bits)
            pixels += pixel_sums(picture)
            out.write(patchify(picture[None], cfg.patch_size).tobytes())
    frames = np.array(frames, np.uint32).reshape(-1, 3)
    return dict(frames=frames, hashes=np.array(hashes, np.uint8), pixels=pixels)

def read_video(item, cfg, count, out):
    """The key frames of a video and the words spoken over them."""
    name = item['source']
    media = item.get('media') or [name]            # a site may give picture and sound as two files
    video = Decoder(media[0], cfg.language)
    sound = Decoder(media[-1], cfg.language)
    if video.video is None:
        raise Bad('no_video', f'{name}: no video track')
    set_alarm(cfg.timeout_s + 3 * video.duration)
    index = take_frames(key_frames(video, cfg, count), cfg, out)
    frames = index['frames']

    length, cut = reach([video, sound][:len(media)])
    flags = VIDEO_TRUNCATED * cut
    if cut and length < .5 * video.duration:
        raise Bad('truncated',
                  f'{name}: only {length:.0f} of {video.duration:.0f} seconds can be read')
    if not len(frames):
        blank = ', all are blank' if count['frames_blank'] else ''
        raise Bad('no_frames', f'{name}: no key frame can be decoded{blank}')
    if len(frames) * 10 <= count['frames_seen']:
        flags |= VIDEO_STATIC
    duration_ms = round(1000 * max(length, frames[-1, 0] / 1000))
    frames[-1, 1] = frames[-1, 1] or duration_ms

    segments, about = listen(item, sound, cfg, count)
    count['words_late'] = sum(s[0] * 1000 >= duration_ms for s in segments)
    segments = [s for s in segments if s[0] * 1000 < duration_ms]
    if not segments and not cfg.keep_silent:
        raise Bad('no_speech', f'{name}: no words were heard, or none in time')
    tokens, times = tokenise(segments, duration_ms)
    index |= dict(tokens=tokens, times=times)
    return index, about | dict(duration=duration_ms / 1000, flags=flags)

def listen(item, sound, cfg, count):
    """-> segments, and for the row: where they are from, what was wrong with a sidecar."""
    wrong = Bad('no_text', f"{item['source']}: it has no captions in {cfg.language}")
    about = dict(words_from='sidecar')
    if item.get('sidecar') and cfg.text != 'whisper':
        try:
            return read_sidecar(item['sidecar'], count), about
        except Bad as e:
            wrong = e
            about['message'] = str(e)
            count['sidecar_failed'] += 1
    if cfg.text == 'sidecar' or sound.audio is None:
        if cfg.keep_silent:
            return [], about
        why = '--text=sidecar' if sound.audio else 'it has no audio track'
        raise Bad(wrong.cause, f'{wrong}, and {why}')

    # what was heard is kept: other image sizes need no second hearing
    how = sha256(cfg.whisper_model + cfg.language)[:8]
    heard = shard_path(cfg.root / 'words', item['key'], f'.{how}.json')
    if not heard.exists():
        counted = collections.Counter()
        try:
            segments = transcribe(sound, item['key'], cfg, counted)
        except SystemExit as e:                    # no weights, which only this video needs
            raise Bad(wrong.cause, f'{wrong}, and {e}') from None
        write_lines(heard, [json.dumps([segments, counted])])
    segments, counted = json.loads(heard.read_text())
    count.update(counted)
    return segments, about | dict(words_from='whisper')

# ----------------------------------------------------------------------------------------------
# all items, in processes of their own: one that crashes or hangs costs only its item

def new_pool():
    return futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), start_worker)

def start_worker():
    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)
    threading.Thread(target=end_with_parent, daemon=True).start()
    os.environ['OMP_NUM_THREADS'] = '1'            # before torch: the same sums on any machine

def submit(pool, *job):
    """What a terminal or a queue tells to all at once is the parent's to answer: the process that
    the first job starts is born deaf to it."""
    told = signal.SIGINT, signal.SIGTERM
    signal.pthread_sigmask(signal.SIG_BLOCK, told)
    try:
        return pool.submit(process, *job)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, told)

def weight(item):
    """Of the progress bar: bytes, guessed before a download."""
    return item.get('bytes') or round(40_000 * (item.get('duration') or 600))

def ended(running, cfg):
    """Wait for a job or more of {job: (item, fetched, pool, since)} -> their item, row and pool."""
    for job in futures.wait(running, return_when=futures.FIRST_COMPLETED).done:
        item, fetched, pool, since = running.pop(job)
        try:
            row = job.result()
        except futures.process.BrokenProcessPool:  # the process died: another takes its place
            pool = new_pool()
            cause = 'timeout' if time.monotonic() - since >= cfg.timeout_s else 'crash'
            row = failed(cfg.root, item, cause, f"{item['source']}: {cause} while it was read")
        if fetched is not item and not cfg.keep_media:
            shutil.rmtree(Path(fetched['media'][0]).parent)
        yield item, row, pool

def process_all(items, cfg, bar):
    """`process` over items -> (rows, whether a site told us to stop). What is on the network is
    fetched here, one after the other, while the workers are busy."""
    rows, pictured = [], 0
    said = collections.deque(maxlen=3)             # by the site, of late
    idle = [new_pool() for _ in range(cfg.workers)]
    running = {}

    def done(item, row):
        rows.append(row)
        if row.get('message'):
            bar.write(f"skipped ({row['cause'] or 'captions'}): {row['message']}")
        what = 'videos'
        if is_pack(item):
            nonlocal pictured
            pictured += row.get('n_frames', 0)
            what = f'packs, {pictured} pairs'
        bar.set_postfix_str(f'{len(rows)}/{len(items)} {what}', refresh=False)
        bar.update(weight(item))

    def wait():
        for item, row, pool in ended(running, cfg):
            idle.append(pool)
            done(item, row)

    for item in items:
        if said.count('refused') == 3:
            break
        try:
            folder = shard_path(cfg.root / 'raw', item['key'], '')
            fetched = fetch(item, cfg, folder) if item['url'] else item
            said.append('')
        except Bad as e:
            said.append(e.cause)
            done(item, failed(cfg.root, item, e.cause, str(e)))
            continue
        if not idle:
            wait()
        pool = idle.pop()
        running[submit(pool, fetched, cfg)] = item, fetched, pool, time.monotonic()
    while running:
        wait()
    for pool in idle:
        pool.shutdown(wait=False)
    return rows, said.count('refused') == 3

# ----------------------------------------------------------------------------------------------
# all shards -> the arrays: deterministic, meta.json last

def finalise(root, items, refused, cfg):
    """Join the shards of all items -> (meta, rows {key: row}). The same shards give the same bytes,
    in whatever order they were made; one is in memory at a time."""
    rows, pictures, words, packs = collect(root, items, refused)
    group = uploads(pictures, words)
    meta, split, codes = plan(rows, group, packs, cfg)
    for key, pack in packs.items():
        rows[key]['pictures'] = tally(pack, codes[key])
    old, had = finished(root)
    if old.items() >= meta.items():
        return old, rows
    if lost := had & rows.keys() - split.keys() - packs.keys():
        sys.exit(f'error: {len(lost)} videos of the finished set have no shard any more; it stays '
                 'as it is. Prepare a further set beside it and train on both (--dataset=a,b), or '
                 'make them again: delete meta.json and run the same command')

    (root / 'meta.json').unlink(missing_ok=True)
    meta |= dict(hours=0.0, counts={}, arrays={}, reuploads=sum(k != g for k, g in group.items()))
    place = places(rows, packs)
    pixels = [write_split(root, name, rows, split, codes, place, meta) for name in SPLITS]
    meta |= statistics(pixels[0], meta['counts']['train']['frames'] * cfg.image_size ** 2)

    # all at once; meta.json last: it exists = the set is complete
    for name in meta['arrays']:
        os.replace(root / f'{name}.part', root / name)
    write_lines(root / 'videos.jsonl', lines_of(root, rows, place, codes))
    with whole(root / 'meta.json') as f:
        f.write(json.dumps(meta, indent=1).encode())
    return meta, rows

def collect(root, items, refused):
    """-> rows {key: row of videos.jsonl}; of the shards {key: marks}, of pictures and of words; of
    packs {key: what is in them}, in order."""
    rows = {r['key']: r | dict(status='failed', counts={}) for r in refused}
    pictures, words, packs = {}, {}, {}
    for item in sorted(items, key=lambda i: i['key']):
        key = item['key']
        path = shard_path(root / 'shards', key)
        error = path.with_suffix('.err.json')
        pending = dict(status='pending', cause='pending', message='not asked for yet', counts={})
        rows[key] = item | pending
        if path.exists():
            try:
                index, _ = read_shard(path)
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
                path.unlink()
                sys.exit(f'error: {path} was damaged ({e}) and is removed; '
                         'run the same command again to make it anew')
            rows[key] = index['row']
            if is_pack(item):
                packs[key] = what_is_in(index)
            else:
                pictures[key], words[key] = marks(index)
        elif error.exists():
            rows[key] = json.loads(error.read_text())
    return rows, pictures, words, packs

def plan(rows, group, packs, cfg):
    """-> what meta.json says before the arrays are made; {key: split} of videos, re-uploads like
    the first of their group; of packs {key: the number of each picture's split}."""
    n = len(group) + sum(len(pack['ids']) for pack in packs.values())
    small = .1 if n < 2000 else .01
    val, test = (small if f is None else f for f in (cfg.val_fraction, cfg.test_fraction))
    split = split_of(set(group.values()), val, test)
    split = {key: split[first] for key, first in group.items()}
    codes = split_packs(packs, val, test, set(split.values()))
    rule = f'sha256 of the key, by video: val {val:g}, test {test:g}; re-uploads together'
    recipe = json.dumps([sorted(split.items()), sorted(rows)])
    recipe += ''.join(codes[key].tobytes().hex() for key in codes)
    given = any((pack['given'] >= 0).any() for pack in packs.values())
    return dict(
        format=FORMAT, image_size=cfg.image_size, patch_size=cfg.patch_size, tokenizer='gpt2',
        tokenizer_sha256=TOKENIZER_SHA256, special_ids={'<|endoftext|>': EOT},
        split_rule=rule + ('; or as the list says' if given else ''), config=extraction(cfg),
        keys_sha256=sha256(recipe)), split, codes

def finished(root):
    """-> meta.json if its arrays are whole, else {}; the keys of the videos and packs in it."""
    try:
        meta = json.loads((root / 'meta.json').read_text())
        with open(root / 'videos.jsonl', encoding='utf-8') as f:
            rows = map(json.loads, f)
            keys = {r.get('pack', r['key']) for r in rows if r['status'] == 'ok'}
    except (OSError, ValueError):
        return {}, set()
    for name, about in meta['arrays'].items():
        if not (root / name).exists() or (root / name).stat().st_size != about['bytes']:
            return {}, keys
    return meta, keys

def chosen(name, rows, split, codes):
    """-> {key: which frames of its shard are in a split}, in order; those with none left out."""
    mine = {key: np.arange(rows[key]['n_frames']) for key in sorted(split) if split[key] == name}
    mine |= {key: np.flatnonzero(code == SPLITS.index(name)) for key, code in codes.items()}
    return {key: some for key, some in mine.items() if len(some)}

def write_split(root, name, rows, split, codes, place, meta):
    """The shards of one split, end to end, to NAME_*.part; adds to meta -> sums of the pixels and
    of their squares (2, 3), as Python's integers: exact."""
    mine = chosen(name, rows, split, codes)
    kinds = 'patches.bin', 'tokens.bin', 'times.bin', 'frames.npy', 'videos.npy'
    out = {kind: Hashed(root / f'{name}_{kind}.part') for kind in kinds}
    header = dict(descr=FRAME.descr, fortran_order=False, shape=(sum(map(len, mine.values())),))
    np.lib.format.write_array_header_1_0(out['frames.npy'], header)
    counts = meta['counts'][name] = dict(videos=0, frames=0, tokens=0)
    table, pixels = [np.zeros(0, VIDEO)], np.zeros((2, 3), object)
    for key, some in mine.items():
        path = shard_path(root / 'shards', key)
        index, size = read_shard(path)
        records = pack_records if key in codes else video_records
        new = records(index, some, *counts.values(), place[key])
        stored = np.memmap(path, mode='r', shape=size).reshape(len(index['frames']), -1)
        for few in np.array_split(some, len(some) // 256 + 1):         # memory stays flat
            out['patches.bin'].write(stored[few])
        for kind in 'tokens', 'times':
            out[f'{kind}.bin'].write(new[kind])
        out['frames.npy'].write(new['frames'].tobytes())
        table.append(new['videos'])
        for what in counts:
            counts[what] += len(new[what])
        pixels = pixels + new['pixels']
        rows[key]['split'] = name
        meta['hours'] += rows[key]['duration'] / 3600
    np.save(out['videos.npy'], np.concatenate(table))
    meta['arrays'] |= {f'{name}_{kind}': file.close() for kind, file in out.items()}
    return pixels

def statistics(pixels, n):
    """Sums of n pixels and of their squares (2, 3) -> mean, deviation of each channel, 0 to 1."""
    sums, squares = pixels / max(n, 1)
    mean = sums / 255
    variance = np.maximum(squares / 255 ** 2 - mean ** 2, 0)
    return dict(pixel_mean=list(mean), pixel_std=list(map(math.sqrt, variance)))

# ----------------------------------------------------------------------------------------------

def main(config):
    cfg = types.SimpleNamespace(**config)
    cfg.root = root = Path(cfg.data_dir) / cfg.dataset
    if cfg.check:
        found = problems(root)
        lines = found + ['to join the shards anew, delete meta.json and run prepare.py on it again']
        if not found:
            lines = [f'{root}: whole, and in its format']
            lines += [f'looks wrong: {doubt}' for doubt in doubts(root)]
        print(*lines, sep='\n')
        sys.exit(bool(found))
    if cfg.preview:
        return write_preview(root)
    try:
        old = take_over(cfg)
        items, refused = named(cfg)
        if cfg.dry_run:
            return estimate(items, cfg)
        begin(root, old, cfg)
        items, cfg.excluded = take_down(root, items, cfg.exclude)
        known = root / 'items.jsonl'
        if cfg.rank == 0:
            write_lines(known, map(json.dumps, sorted(items, key=lambda i: i['key'])))
        if cfg.resolve:
            return print(f'{known}: {len(items)} videos. It is an input like others: '
                         f'python prepare.py {known} --dataset={cfg.dataset}')
        run(items, refused, cfg)
    except KeyboardInterrupt:
        print('\ninterrupted; the finished videos are kept: run the same command again to go on',
              flush=True)
        os._exit(130)                              # the workers see it and end
    except OSError as e:
        sys.exit(f'error: {e}; what was finished is kept: '
                 'run the same command again once that is mended')

def extraction(cfg):
    return {key: getattr(cfg, key) for key in EXTRACTION}

def take_over(cfg):
    """Settings not given now become what the set was begun with -> those; checks them all."""
    old = {}
    with contextlib.suppress(OSError, ValueError): # not begun
        if not cfg.overwrite:
            old = json.loads((cfg.root / 'shards' / 'config.json').read_text())
    vars(cfg).update((k, v) for k, v in old.items() if k not in cfg._source)
    if cfg.patch_size < 1 or cfg.image_size % cfg.patch_size or not 16 <= cfg.image_size <= 1024:
        sys.exit(f'error: image_size={cfg.image_size} must be a multiple of '
                 f'patch_size={cfg.patch_size}, from 16 to 1024')
    if cfg.captions and not os.path.isdir(cfg.captions):
        sys.exit(f'error: --captions={cfg.captions}: no such folder')
    counts = 'workers max_per_input min_s max_s sleep_s min_gap_s same_level'
    at_least(vars(cfg), **dict.fromkeys(counts.split(), 0))
    at_least(vars(cfg), max_gap_s=.1, max_height=1, whisper_batch=1, timeout_s=1)
    shares(vars(cfg), 'val_fraction', 'test_fraction')
    env = os.environ
    cfg.rank = int(env.get('RANK', env.get('SLURM_ARRAY_TASK_ID', 0)))
    cfg.world = int(env.get('WORLD_SIZE', env.get('SLURM_ARRAY_TASK_COUNT', 1)))
    return old

def named(cfg):
    """-> the items of former runs and of this one, rows of what is none."""
    known = cfg.root / 'items.jsonl'
    former = read_rows(known) if known.exists() and not cfg.overwrite else []
    items, refused = find_items(cfg.videos, cfg, former, online=cfg.rank == 0)
    if cfg.pairs:
        packs, left = find_packs(cfg.pairs)
        sources = {pack['source'] for pack in packs}
        former = [i for i in former if i['source'] not in sources or not is_pack(i)]
        items += packs
        refused += left
    items = {i['key']: i for i in former + items}
    if not items:
        print(*(f"{r['cause']}: {r['message']}" for r in refused), sep='\n')
        sys.exit('error: no videos found; name files, folders or .txt lists of them: '
                 'python prepare.py talks/ --dataset=talks')
    return list(items.values()), refused

def begin(root, old, cfg):
    """Make the set's folder, or make sure that it is one of these settings."""
    if cfg.overwrite:
        if cfg.world > 1:
            sys.exit('error: --overwrite by many ranks would delete what the others made; '
                     'run it once alone with --resolve, then the ranks without it')
        (root / 'meta.json').unlink(missing_ok=True)
        shutil.rmtree(root / 'shards', ignore_errors=True)
    now = extraction(cfg)
    differs = [f'{k} was {old[k]!r}, now {v!r}' for k, v in now.items() if old.get(k, v) != v]
    if differs:
        sys.exit(f"error: {root} was begun with other settings: {'; '.join(differs)}. "
                 'Take another --dataset, or --overwrite')
    if not old:
        write_lines(root / 'shards' / 'config.json', [json.dumps(now)])

def to_do(items, cfg):
    """-> the items for this rank: files, the longest first, then what is on the network, which one
    rank alone asks for."""
    def wanted(item):
        path = shard_path(cfg.root / 'shards', item['key'])
        error = path.with_suffix('.err.json')
        if path.exists() or cfg.retry_failed or not error.exists():
            return not path.exists()
        cause = json.loads(error.read_text())['cause']
        if item['url']:
            return cause in PASSING                # else a site said so for good
        return cause not in ('crash', 'timeout')
    files = sorted((i for i in items if not i['url']), key=lambda i: (-weight(i), i['key']))
    mine = files[cfg.rank::cfg.world]
    if cfg.rank == 0:
        mine += [i for i in items if i['url']]
    return [i for i in mine if wanted(i)]

def set_up(todo, cfg):
    """What all workers need: a JavaScript for YouTube; Whisper, tried once here, so that they do
    not all download, or all fail."""
    if any(i['key'].startswith('youtube:') for i in todo):
        check_javascript()
    most = os.cpu_count() or 1
    spoken = [i for i in todo if not is_pack(i)
              and (cfg.text == 'whisper' or not i.get('sidecar'))]
    if spoken and cfg.text != 'sidecar':
        if load_whisper(cfg.whisper_model, cfg.device).device.type == 'cuda':
            most = min(4, most)
        load_whisper.cache_clear()
    cfg.workers = cfg.workers or most

def run(items, refused, cfg):
    """Make the shards that are missing, join all."""
    from tqdm import tqdm
    root = cfg.root
    todo = to_do(items, cfg)
    set_up(todo, cfg)
    what = 'packs of pictures' if all(map(is_pack, items)) else 'videos'
    print(f'{root}: {len(todo)} of {len(items)} {what} to do with {cfg.workers} workers')
    began = time.monotonic()
    with tqdm(total=sum(map(weight, todo)), unit='B', unit_scale=True, disable=not todo) as bar:
        for row in refused:
            bar.write(f"skipped ({row['cause']}): {row['message']}")
        made, told_to_stop = process_all(todo, cfg, bar)
    seconds = time.monotonic() - began
    if cfg.world > 1:
        return print(f'rank {cfg.rank} of {cfg.world}: done. When all are, this command without '
                     'ranks joins the shards; the videos need not be named again')

    print('joining the shards')
    meta, rows = finalise(root, items, refused, cfg)
    print(table(list(rows.values()), seconds if made else 0))
    for name, n in meta['counts'].items():
        print(f"  {name:8s}{n['videos']} videos, {n['frames']} frames, {n['tokens']} tokens")
    (root / 'stats.json').write_text(json.dumps(dict(seconds=seconds, rows=made), default=str))
    if told_to_stop:
        print('stopped: the site refused three requests in a row. What was fetched is kept. Wait '
              'an hour or more, raise --sleep_s, and run the same command again', file=sys.stderr)
        sys.exit(75)
    if not any(n['videos'] for n in meta['counts'].values()):
        sys.exit('error: nothing to train on: no video gave frames and words; the causes are above')
    if not meta['counts']['train']['videos']:
        return print(f'{root}: ready to judge by, not to train on: python eval.py '
                     f'--dataset={cfg.dataset} --split=test --data_dir={cfg.data_dir} --run=...')
    window = cfg.image_size - cfg.image_size // 5 // cfg.patch_size * cfg.patch_size
    print(f'{root}: ready. Next: python train.py --dataset={cfg.dataset} --data_dir={cfg.data_dir} '
          f'--image_size={window} --patch_size={cfg.patch_size}')

if __name__ == '__main__':
    signal.signal(signal.SIGTERM, signal.default_int_handler)          # as Ctrl-C
    main(configure(globals(), positional='videos'))
