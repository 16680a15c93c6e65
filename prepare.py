"""Narrated videos -> memory-mapped patches, tokens and frame index in data/<dataset>/, ready for train.py.

    python prepare.py talks/ --dataset=talks                    files, folders, and text files that list them; Whisper where no captions lie beside
    python prepare.py "ytsearch50:oil painting tutorial" --dataset=oil    searches, channels, playlists and URLs, by yt-dlp
    python prepare.py --pairs=coco.json --dataset=coco          an image-caption list into the same arrays
    python prepare.py talks/ --dry_run                          how many videos, hours, bytes, and how long it will take
    python prepare.py --dataset=talks --check                   validate a finished set

What was named is frozen into data/<dataset>/items.jsonl, which is itself an input: a data set is a recipe that can be published. Each
video becomes one shard by a pure function (decode key frames, transcribe, tokenise), in worker processes; a last step joins the
shards. Ctrl-C or a crash loses at most the videos in flight: run the same command again. The arrays come out the same, byte for byte,
with any number of workers. More inputs given later are added to the set; --overwrite starts it anew.
"""
import base64, collections, concurrent.futures as futures, functools, hashlib, html, importlib.util, io, itertools, json, math
import multiprocessing, os, re, shutil, signal, sys, threading, time, types
from pathlib import Path
from typing import Literal
import numpy as np
from configurator import at_least, configure

# what goes in
dataset = 'mine'                 # the arrays go to <data_dir>/<dataset>
data_dir = 'data'
videos: tuple[str, ...] = ()     # files, folders, URLs, ytsearchN:queries, .txt lists of all these, items.jsonl; plain arguments do the same
pairs = ''                       # image-caption list, JSON or JSONL: {"image": path, "caption": text or [texts]}
all_files = False                # folders: try every file, whatever its extension
exclude: tuple[str, ...] = ()    # keys, ids, URLs or .txt lists of them that leave the set, now and for good
# from the network, by yt-dlp
max_per_input = 0                # videos of each channel, playlist or search; 0: all
licence = ''                     # only videos whose licence contains this: Creative Commons
min_s, max_s = 20, 7200          # only videos of this length, seconds
max_height = 360                 # the smallest format from here down is taken; above only if there is no other
auto_captions = False            # take the site's automatic captions where it has no others, instead of running Whisper: for laptops
sleep_s = 5.0                    # wait this long, up to twice as long, between downloads: faster gets an address refused
cookies = ''                     # a cookies.txt, for what only you may see
keep_media = False               # keep the files after their frames and words are taken
retry_failed = False             # ask again for what is gone, private or filtered, and for what crashed
# pictures
image_size = 160                 # stored side; a few patches more than the model sees, train.py takes random windows of it
patch_size = 16                  # stored patch side; the model's may be any multiple
min_gap_s = 1.0                  # after a kept frame, skip key frames for this long
max_gap_s = 30.0                 # where key frames are rarer (screen captures), seek a frame this often
same_bits = 6                    # near-duplicate of the last kept frame: at most so many of 64 dHash bits differ ...
again_bits = 3                   # ... the same for any of the last 64 kept (A-B-A cuts, title cards)
same_level = 24                  # ... and no cell of a 36 x 32 grey thumbnail differs by more (of 255): small objects matter
# words
text: Literal['auto', 'sidecar', 'whisper'] = 'auto'   # auto: a sidecar where there is one, else Whisper
whisper_model = 'auto'           # a name (tiny.en ... turbo) or the path of a .pt; auto: turbo on CUDA, else base.en
language = 'en'                  # keep speech in this language (multilingual models vote); any: keep all
whisper_batch = 16               # 30-second chunks decoded together, always within one video; 64 on a large GPU
keep_silent = False              # keep videos without words (image-only training)
# running
workers = 0                      # processes; 0: one per core (with Whisper on CUDA: 4)
device = 'auto'                  # of Whisper: cpu, cuda
timeout_s = 1200                 # per video, plus three times its length
val_fraction: float | None = None    # by video; None: 0.1 below 2,000 videos, else 0.01
test_fraction: float | None = None
overwrite = False                # forget the set's former items and shards (what Whisper heard is kept)
resolve = False                  # only freeze the inputs into items.jsonl
preview = False                  # only write data/<dataset>/preview.html: look at your data
check = False                    # only validate the finished set
dry_run = False                  # only count and estimate

FORMAT = 1                       # of data/<dataset>/; train.py and eval.py refuse another
EXTENSIONS = '.mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .flv .ogv .wmv .3gp'.split()
SIDECARS = '.json3', '.vtt', '.srt'
EXTRACTION = 'image_size patch_size min_gap_s max_gap_s same_bits again_bits same_level text whisper_model language keep_silent'.split()
EOT = 50256                      # <|endoftext|> of GPT-2 closes every text
FRAME = np.dtype([('video', 'u4'), ('t_ms', 'u4'), ('t_end_ms', 'u4'), ('token', 'u8'), ('flags', 'u2')])
VIDEO = np.dtype([('token_start', 'u8'), ('token_end', 'u8'), ('frame_start', 'u8'), ('frame_end', 'u8'), ('duration_ms', 'u4'),
                  ('row', 'u4'), ('flags', 'u2')])
FRAME_SEEKED, FRAME_SILENT = 1, 2                    # frames.flags: found by seeking, not a key frame; no word spoken while it stands
VIDEO_CAPTIONS, VIDEO_TRUNCATED, VIDEO_STATIC = 1, 2, 4                                # videos.flags

class Bad(Exception):
    """A video that cannot be used: cause (a word to count by) and a message that says what is wrong."""
    def __init__(self, cause, message):
        super().__init__(message)
        self.cause = cause

def gpt2_encoding():
    """GPT-2's byte-pair encoding, built offline from the rank file that openai-whisper ships -> tiktoken.Encoding, 50257 ids."""
    import tiktoken
    spec = importlib.util.find_spec('whisper')                         # finds the files without importing torch
    if spec is None:
        sys.exit('error: the GPT-2 tokenizer comes with openai-whisper: pip install -r requirements.txt')
    raw = Path(spec.submodule_search_locations[0], 'assets', 'gpt2.tiktoken').read_bytes()
    if hashlib.sha256(raw).hexdigest() != TOKENIZER_SHA256:
        sys.exit('error: openai-whisper holds another GPT-2 rank file than expected; reinstall it')
    ranks = {base64.b64decode(word): int(rank) for word, rank in (line.split() for line in raw.splitlines() if line)}
    return tiktoken.Encoding('gpt2', explicit_n_vocab=50257, mergeable_ranks=ranks, special_tokens={'<|endoftext|>': EOT}, pat_str=
        r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s""")
TOKENIZER_SHA256 = '306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930'     # = OpenAI's r50k_base

# ----------------------------------------------------------------------------------------------------------------------
# resolve: what the user named -> items, one per video or image

REMOTE = re.compile(r'https?://|\w+search\d*:')

def find_items(inputs, pairs, cfg, known, online=True):
    """-> (items, refused): items are dicts with a canonical key (a site's id, or a hash of the content: not the name), refused are rows for
    videos.jsonl. `known`: the items of former runs; an input from the network that they stem from is not asked again, none if not `online`."""
    paths, items, refused, asked = [], {}, [], {i.get('asked') for i in known}
    def expand(name, folder=Path(), within=()):
        path = folder / name
        if REMOTE.match(name):
            paths.append(re.sub(r'(?<=.)#(?!!).*', '', name) if name.startswith('http') else name)    # the place in a page, not C# in a search
        elif os.path.isdir(path):
            paths.extend(sorted(p for p in path.rglob('*') if p.is_file() and p.suffix.lower() not in SIDECARS and (
                cfg['all_files'] or p.suffix.lower() in EXTENSIONS)))
        elif path.suffix.lower() == '.txt' and os.path.isfile(path) and os.access(path, os.R_OK):
            for line in path.read_text(encoding='utf-8-sig', errors='replace').splitlines() if path.resolve() not in within else ():
                if line.strip() and not line.startswith('#'):
                    expand(line.strip(), path.parent, (*within, path.resolve()))
        elif path.suffix.lower() == '.jsonl' and os.path.isfile(path):
            rows = read_rows(path)
            if not all(isinstance(i, dict) and all(isinstance(i.get(k), str) for k in ('key', 'source', 'title', 'url')) and ':' in i['key'] for i in rows):
                sys.exit(f'error: {path} is no items.jsonl of prepare.py; an image-caption list is given by --pairs={path}')
            items.update((i['key'], i) for i in rows)
        else:
            paths.append(path)
    for name in inputs:
        expand(name)
    for path in paths:
        row = dict(key='path:' + str(path), source=str(path), title=getattr(path, 'stem', ''), url='')
        if isinstance(path, str):
            try:
                found = find_online(path, cfg) if online and path not in asked else []
                items |= {i['key']: i for i in found if i['key'] not in items}
            except Bad as e:
                refused.append(row | dict(url=path, cause=e.cause, message=str(e)))
        elif not os.path.isfile(path):                                 # which a name that no file can have is neither
            refused.append(row | dict(cause='not_found', message=f'{path}: no such file'))
        elif path.stat().st_size == 0:
            refused.append(row | dict(cause='empty', message=f'{path}: 0 bytes'))
        elif not os.access(path, os.R_OK):
            refused.append(row | dict(cause='unreadable', message=f'{path}: permission denied'))
        else:
            item = row | dict(key=content_key(path), bytes=path.stat().st_size, sidecar=sidecar(path))
            if items.setdefault(item['key'], item) is not item:
                refused.append(row | dict(cause='duplicate', message=f"{path}: the same file as {items[item['key']]['source']}"))
    for n, pair in enumerate(read_rows(pairs) if pairs else ()):
        image, caption = (pair.get('image'), pair.get('caption')) if isinstance(pair, dict) else (None, None)
        texts = [c for c in ([caption] if isinstance(caption, str) else caption if isinstance(caption, list) else []) if isinstance(c, str) and c.strip()]
        path = Path(pairs).parent / str(image)
        row = dict(key=f'pair:{n}', source=str(path), title=path.stem, url='')
        wrong_split = isinstance(pair, dict) and pair.get('split') not in (None, 'train', 'val', 'test')
        if not isinstance(image, str) or not texts or wrong_split or not os.access(path, os.R_OK) or not os.path.isfile(path):
            cause = 'bad_row' if not isinstance(image, str) or wrong_split else 'no_text' if not texts else 'not_found'
            refused.append(row | dict(cause=cause, message=f'{pairs}, entry {n}: ' + dict(not_found=f'{path}: no such file, or not readable').get(
                cause, 'needs {"image": path, "caption": text or [texts]}, and if there is a "split", train, val or test')))
            continue
        item = items.setdefault(key := content_key(path), row | dict(key=key, bytes=path.stat().st_size, captions=[]) | {k: pair[k] for k in ('split',) if pair.get(k)})
        item.setdefault('captions', []).extend(t for t in texts if t not in item.get('captions', []))  # COCO lists an image once per caption
    return list(items.values()), refused

def read_rows(path):
    """The entries of a JSON list [...] or a JSONL file."""
    try:
        raw = Path(path).read_text(encoding='utf-8-sig')
        return json.loads(raw) if raw.lstrip()[:1] == '[' else [json.loads(line) for line in raw.splitlines() if line.strip()]
    except (OSError, ValueError) as e:
        sys.exit(f'error: {path}: {e}')

def content_key(path):
    """file:<hash of the size and of the first and last megabyte>: the same for copies and renamed files."""
    size = os.path.getsize(path)
    with open(path, 'rb') as f:
        digest = hashlib.sha256(str(size).encode() + f.read(1 << 20))
        f.seek(max(0, size - (1 << 20)))
        digest.update(f.read())
    return 'file:' + digest.hexdigest()[:40]

def sidecar(path):
    """talk.mp4 -> the talk.json3, talk.vtt or talk.srt beside it, also talk.en.vtt; '' if there is none."""
    beside = [p for p in path.parent.glob(re.sub(r'([\[\]*?])', r'[\1]', path.stem) + '.*') if p.suffix.lower() in SIDECARS]
    beside.sort(key=lambda p: (SIDECARS.index(p.suffix.lower()), len(p.name), p.name))
    return str(beside[0]) if beside else ''

# ----------------------------------------------------------------------------------------------------------------------
# the network: yt-dlp's Python API, one request at a time; no merging, so no ffmpeg program

class Quiet:
    """yt-dlp's logger: keeps the last thing it said, for why a video was left out."""
    said = ''
    def debug(self, text):
        self.said = text if re.search('skipping|does not pass|Aborting', text) else self.said
    def info(self, text): self.debug(text)
    def warning(self, text): pass
    def error(self, text): pass

def downloader(cfg, **options):
    """A YoutubeDL with everything set explicitly: the defaults of the Python API are not those of the command line."""
    import yt_dlp
    h, wait = cfg['max_height'], lambda n: min(2 ** n, 60)
    conditions = f"!is_live & live_status!=?is_upcoming & duration>=?{cfg['min_s']} & duration<=?{cfg['max_s']} & age_limit<?18"
    return yt_dlp.YoutubeDL(dict(
        format=f'b[height<=?{h}][protocol^=http]/(bv[height<=?{h}],wa)/b[height<={2 * h}]/w/ba',   # one file, else two; in this order HLS comes last
        match_filter=yt_dlp.match_filter_func(conditions + (f" & license*={cfg['licence']!r}" if cfg['licence'] else '')),
        retries=5, fragment_retries=5, extractor_retries=2, file_access_retries=3, socket_timeout=30, continuedl=True, retry_sleep_functions=dict(
            http=wait, fragment=wait, extractor=wait), sleep_interval=cfg['sleep_s'], max_sleep_interval=2 * cfg['sleep_s'],
        sleep_interval_requests=cfg['sleep_s'] / 8, sleep_interval_subtitles=cfg['sleep_s'] / 2, throttledratelimit=100_000, max_filesize=2 << 30,
        noplaylist=True, ignoreerrors=False, subtitleslangs=[f"{cfg['language']}.*" if cfg['language'] != 'any' else 'all'],
        subtitlesformat='json3/vtt/srt', writesubtitles=cfg['text'] != 'whisper', writeautomaticsub=cfg['auto_captions'],
        extractor_args=dict(youtube=dict(skip=['translated_subs'])), js_runtimes=dict(deno={}, node={}), fixup='never', updatetime=False,
        restrictfilenames=True, cachedir=False, noprogress=True, quiet=True, logger=Quiet(), cookiefile=cfg['cookies'] or None) | options)

CAUSES = dict(                                                         # yt-dlp's words -> cause; the first that fits. Refusals stop the run, see process_all
    refused=r"HTTP Error 4(29|03)|Too Many Requests|try again later|rate.?limit|not a bot",
    private=r'private video|video is private|HTTP Error 401', members=r'members.only|join this channel', age=r'confirm your age|age.restricted', drm=r'\bDRM\b',
    geo=r'your country|your location|geo.?restrict', gone=r'removed|terminated|no longer available|HTTP Error 4(04|10)|video unavailable|does not exist',
    no_video=r'Unsupported URL|no video|Requested format is not available|No video formats', upcoming=r'premieres in|will begin in|is live')
PASSING = 'refused', 'network'                                         # causes that may be over the next time

def polite(ask, url):
    """ask(), with yt-dlp's errors as Bad(cause, its own message)."""
    import yt_dlp
    try:
        return ask()
    except (yt_dlp.utils.YoutubeDLError, OSError, ValueError) as e:
        message = re.sub(r'\x1b\[[\d;]*m|^ERROR: ', '', str(e)).split('; please report this issue')[0]
        raise Bad(next((c for c, words in CAUSES.items() if re.search(words, message, re.I)), 'network'), f'{url}: {message}') from None

def find_online(name, cfg):
    """A URL, playlist, channel or ytsearchN:query -> items; only lists are asked for, nothing is downloaded."""
    from yt_dlp.extractor.youtube import YoutubeIE
    row = dict(source=name, title='', url=name, asked=name)
    if video := YoutubeIE.get_temp_id(name):                           # one video, also out of a playlist: needs no request
        url = 'https://www.youtube.com/watch?v=' + video
        return [row | dict(key='youtube:' + video, source=url, url=url)]
    if Path(name.split('?')[0]).suffix.lower() in EXTENSIONS:
        return [row | dict(key='url:' + name)]
    with downloader(cfg, extract_flat='in_playlist', playlistend=cfg['max_per_input'] or None, match_filter=None) as ydl:
        info = polite(lambda: ydl.extract_info(name, download=False), name)
    items = []
    for e in info['entries'] if 'entries' in info else [info]:
        url, kind = e.get('webpage_url') or e.get('url') or name, e.get('ie_key') or e.get('extractor_key') or 'Generic'
        if re.search('Tab|Playlist', kind):                            # the tabs of a channel
            items += [i | dict(asked=name) for i in find_online(url, cfg)]
        else:
            items.append(row | dict(key='url:' + url.split('#')[0] if kind == 'Generic' else f"{kind.lower()}:{e['id']}", source=url, url=url,
                                    title=e.get('title') or '', duration=e.get('duration') or 0))
    return items[:cfg['max_per_input'] or None]

def fetch(item, cfg):
    """Download one video into its folder under raw/ -> the item with media (one file, or picture and sound), sidecar and what is known of it."""
    folder = shard_path(cfg['root'] / 'raw', item['key'], '')
    folder.mkdir(parents=True, exist_ok=True)
    with downloader(cfg, outtmpl=f"{str(folder).replace('%', '%%')}/%(format_id)s.%(ext)s") as ydl:
        info = polite(lambda: ydl.extract_info(item['url']), item['url'])
        info = info if 'entries' not in info else next(iter(info['entries']), {})              # a page with several: the first
        if not (media := [d['filepath'] for d in info.get('requested_downloads') or ()]):
            raise Bad('filtered', f"{item['url']}: {ydl.params['logger'].said or 'nothing to download'}")
    captions = [c['filepath'] for c in (info.get('requested_subtitles') or {}).values() if os.path.exists(c.get('filepath') or '')]
    known = {k: info[k] for k in 'license channel_id upload_date language'.split() if info.get(k)}
    return item | known | dict(media=media, sidecar=min(captions, key=len, default=''), title=info.get('title') or item['title'], bytes=sum(map(os.path.getsize, media)))

def check_javascript():
    """YouTube's player needs a JavaScript runtime; without one most formats are missing."""
    import yt_dlp                                                      # noqa: F401  fills supported_js_runtimes
    from yt_dlp.globals import supported_js_runtimes
    found = [f'{i.name} {i.version}' for n in ('deno', 'node') if (i := supported_js_runtimes.value[n]().info) and i.supported]
    print(f'JavaScript for YouTube: {found[0]}' if found else 'warning: no JavaScript runtime, which YouTube needs since 2025; install one: pip install deno')

# ----------------------------------------------------------------------------------------------------------------------
# pictures: the key frames of a video

class Decoder:
    """One open video. Key frames come by a packet loop: container.decode() ends for good at the first bad packet (PyAV issue 812)."""
    def __init__(self, path):
        import av
        self.errors, self.bad, self.path = av.FFmpegError, 0, path
        try:
            self.container = av.open(str(path))
        except (av.FFmpegError, OSError, ValueError) as e:
            raise Bad('not_media', f'{path}: cannot be opened as a video: {e}') from None
        self.video = next((s for s in self.container.streams.video if not s.disposition & 1 << 10), None)     # 1 << 10: cover art
        self.audio = next(iter(self.container.streams.audio), None)
        for stream in filter(None, (self.video, self.audio)):
            stream.codec_context.thread_count = 1                      # one process per video; frame threads lose frames on an error
        self.start = (self.container.start_time or 0) / 1e6            # both streams count from here
        self.duration = (self.container.duration or 0) / 1e6           # as declared; seconds
        self.end = 0.0                                                 # as found, by packets; seconds
        if self.video and (side := self.video.codec_context) and not 16 <= min(side.width, side.height) <= max(side.width, side.height) <= 8192:
            raise Bad('size', f'{path}: {side.width} x {side.height} pixels')

    def packets(self, stream, keyframes=False):
        """Yield (seconds, frame) in order; a packet that cannot be decoded is counted and skipped."""
        stream.codec_context.skip_frame = 'NONKEY' if keyframes else 'DEFAULT'
        stream_packets = self.container.demux(stream)
        while True:
            try:
                packet = next(stream_packets, None)
                if packet is None:
                    return
                if packet.pts is not None:
                    self.end = max(self.end, float((packet.pts + (packet.duration or 0)) * packet.time_base) - self.start)
                if keyframes and packet.size and not packet.is_keyframe:
                    continue
                frames = packet.decode()
            except self.errors as e:
                self.bad += 1
                if self.bad > 10_000 or isinstance(e, EOFError):
                    return
                continue
            yield from ((frame.time - self.start, frame) for frame in frames if frame.time is not None and not frame.is_corrupt)

    def seek(self, t):
        """The first frame at or after t seconds, exactly: decoded from the key frame before it. None at the end."""
        try:
            self.container.seek(int((t + self.start) * 1e6))
            return next(((s, f) for s, f in self.packets(self.video) if s >= t - 1e-3), None)
        except self.errors:
            return None

def thumbnail(frame):
    """-> 36 x 32 grey uint8, and its dHash: 64 bits, each whether a cell of an 8 x 9 grid is darker than its right neighbour."""
    grey = frame.reformat(36, 32, 'gray', interpolation='AREA').to_ndarray()
    cells = grey.reshape(8, 4, 9, 4).astype(np.int32).sum((1, 3))
    return grey, np.packbits(cells[:, 1:] > cells[:, :-1])

def square(frame, stream, size):
    """Shorter side to `size`, centre crop; rotation and pixel aspect applied -> uint8 (size, size, 3)."""
    aspect = float(stream.sample_aspect_ratio or 1) or 1.0
    w, h = frame.width * aspect, frame.height
    w, h = (max(size, round(side * size / min(w, h))) for side in (w, h))
    space = 'ITU709' if frame.colorspace == 2 and frame.height >= 720 else None                 # 2: unspecified; HD is bt709
    rgb = frame.reformat(w, h, 'rgb24', src_colorspace=space, interpolation='AREA').to_ndarray()
    rgb = np.rot90(rgb, round(frame.rotation / 90) % 4)
    y, x = (rgb.shape[0] - size) // 2, (rgb.shape[1] - size) // 2
    return rgb[y:y + size, x:x + size]

def shots(video, max_gap_s):
    """Yield (seconds, frame or None, flags): the key frames in order, and sought frames where key frames are rarer than max_gap_s."""
    last, seeker = 0.0, None
    def fill(until):
        nonlocal seeker
        for gap in np.arange(last + max_gap_s, until - max_gap_s / 2, max_gap_s):
            seeker = seeker or Decoder(video.path)
            yield *(seeker.seek(gap) or (gap, None)), FRAME_SEEKED
    for t, frame in video.packets(video.video, keyframes=True):
        yield from fill(t)
        last = t
        yield t, frame, 0
    yield from fill(video.end)

def key_frames(video, cfg, count):
    """Yield (t_ms, flags, dHash, picture uint8 (S, S, 3)) of the frames to keep, in order; picture None: an earlier one is back.

    Near-duplicates of the last kept frame, frames too soon after it and blank ones are dropped; `count` says how many of each."""
    kept, last_t, seeker = [], -math.inf, None                         # kept: thumbnails of the last 64 kept frames
    for t, frame, flags in shots(video, cfg.max_gap_s):
        count['frames_seen'] += 1
        grey, bits = thumbnail(frame) if frame else (np.zeros((32, 36), np.uint8), None)
        if frame and not flags and (grey.std() < 8 or not 10 <= grey.mean() <= 245):           # a fade: look half a second later
            seeker = seeker or Decoder(video.path)
            later, later_thumbnail = (found := seeker.seek(t + .5)) and found[1], found and thumbnail(found[1])
            if later and later_thumbnail[0].std() > grey.std():
                frame, flags, (grey, bits) = later, FRAME_SEEKED, later_thumbnail
        def like(other, limit):
            return np.bitwise_count(bits ^ other[1]).sum() <= limit and np.abs(grey.astype(np.int16) - other[0]).max() <= cfg.same_level
        if grey.std() < 2:
            count['frames_blank'] += 1
        elif kept and like(kept[-1], cfg.same_bits):
            count['frames_duplicate'] += 1
        elif t - last_t < cfg.min_gap_s:
            count['frames_too_soon'] += 1
        elif any(like(other, cfg.again_bits) for other in kept):
            count['frames_again'] += 1
            yield round(t * 1000), 0, bits, None
        else:
            kept, last_t = kept[-63:] + [(grey, bits)], t
            count['frames_kept'] += 1
            yield round(t * 1000), flags, bits, square(frame, video.video, cfg.image_size)

def image_square(path, size):
    """An image file -> uint8 (size, size, 3): orientation applied, shorter side resized, centre crop."""
    from PIL import Image, ImageOps, UnidentifiedImageError
    try:
        with Image.open(path) as image:
            image.draft('RGB', (size * 2, size * 2))                   # a large JPEG is decoded at a fraction of its size
            return np.asarray(ImageOps.fit(ImageOps.exif_transpose(image).convert('RGB'), (size, size), Image.Resampling.BOX))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise Bad('not_media', f'{path}: not a readable image: {e}') from None

# ----------------------------------------------------------------------------------------------------------------------
# words: a sidecar, or Whisper -> segments [(start_s, end_s, text)]

CLOCK = r'(?:(\d+):)?(\d{1,2}):(\d{2})[.,](\d{3})'
def seconds(h, m, s, ms):
    return int(h or 0) * 3600 + int(m) * 60 + int(s) + int(ms) / 1000

def clean(text):
    """Spoken words only: no tags, no [Music] or (applause), no notes, no speaker marks; white space collapsed."""
    text = re.sub(r'<[^>]*>|\[[^\]]*\]|\([^)]*\)|[\u2669-\u266f]+[^\u2669-\u266f]*[\u2669-\u266f]+|[\u2669-\u266f]|>>+|https?://\S+', ' ', html.unescape(text))
    return ' '.join(text.replace('\u200b', '').split())

def read_sidecar(path):
    """A .vtt, .srt or YouTube .json3 -> segments; a line that a rolling caption shows again is taken once."""
    raw, segments = Path(path).read_text(encoding='utf-8-sig', errors='replace'), []
    if path.lower().endswith('.json3'):
        try:
            for event in json.loads(raw)['events']:
                if event.get('segs') and not event.get('aAppend'):     # aAppend: the line break that rolls
                    starts = [event['tStartMs'] + seg.get('tOffsetMs', 0) for seg in event['segs']] + [event['tStartMs'] + event.get('dDurationMs', 0)]
                    segments += [(a / 1000, max(a, b) / 1000, seg.get('utf8', '')) for a, b, seg in zip(starts, starts[1:], event['segs'])]
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise Bad('bad_sidecar', f'{path}: not YouTube json3: {type(e).__name__} {e}') from None
    before, tagged = [], '<c>' in raw
    for block in raw.replace('\r\n', '\n').split('\n\n') if not segments else ():
        times = re.search(CLOCK + r'\s*-->\s*' + CLOCK, block)
        lines = [line for line in block[times.end():].split('\n')[1:] if clean(line)] if times else []
        fresh = [line for line in lines if clean(line) not in before or not tagged and len(lines) == 1]           # a rolling caption shows its last line again
        if fresh:
            parts = re.split(f'<{CLOCK}>', ' '.join(fresh))            # <00:00:01.500><c> word</c>: words with their own times
            starts = [seconds(*times.groups()[:4])] + [seconds(*parts[i:i + 4]) for i in range(1, len(parts), 5)] + [seconds(*times.groups()[4:])]
            segments += zip(starts, starts[1:], parts[::5])
        before = [clean(line) for line in lines]
    segments = sorted(((a, b, clean(text)) for a, b, text in segments if clean(text)), key=lambda s: s[0])
    if not segments:
        raise Bad('no_text', f'{path}: no captions in it')
    ends = [a for a, _, _ in segments[1:]] + [math.inf]
    return [(a, max(a, min(b, end)), text) for (a, b, text), end in zip(segments, ends)]

RATE = 16000                                                           # Hz; what Whisper hears
def speech_chunks(video):
    """Yield (start_s, float32 samples of at most 30 s), cut at quiet points; silence between them is skipped."""
    import av
    resampler, rest, begin = av.AudioResampler('s16', 'mono', RATE), np.zeros(0, np.int16), 0         # begin: position of rest[0]
    def blocks():                                                      # some ten minutes at a time: memory stays flat
        parts, length, total = [], 0, 0
        for t, frame in video.packets(video.audio):
            gap = round(t * RATE) - total
            new = [np.zeros(gap, np.int16)] if gap > RATE // 10 else []          # a lost packet: silence keeps the times right
            new += [part.to_ndarray()[0] for part in resampler.resample(frame)]
            parts, length, total = parts + new, length + sum(map(len, new)), total + sum(map(len, new))
            if length > 600 * RATE:
                yield np.concatenate(parts), False
                parts, length = [], 0
        yield np.concatenate(parts + [np.zeros(0, np.int16)]), True
    for block, last in blocks():
        audio = np.concatenate([rest, block])
        level = audio[:len(audio) // 320 * 320].reshape(-1, 320).astype(np.float32)            # 20 ms
        level = 20 * np.log10(np.sqrt((level ** 2).mean(1)) / 32768 + 1e-5)                    # dB of full scale
        speech = np.flatnonzero(level > np.clip(np.percentile(level, 10) + 6, -50, -35)) if len(level) else np.zeros(0, int)
        at = 0                                                         # in 20 ms steps
        while len(ahead := speech[speech >= at]):
            at = max(at, ahead[0] - 10)
            if not last and at + 1500 > len(level):
                break                                                  # continues in the next block
            near = level[at + 1100:at + 1350]                          # 22 to 27 s on: the last quiet point, for chunks cost the same whatever their
            end = len(level)                                           # length; but of a full 30 s Whisper leaves out the end: word errors double
            if at + 1350 < len(level):
                end = at + 1100 + int(np.flatnonzero(near <= near.min() + 3)[-1])
            if (ahead < end).sum() >= 10:                              # 0.2 s of sound at least
                yield (begin + at * 320) / RATE, audio[at * 320:end * 320].astype(np.float32) / 32768
            at = end
        keep = min(at, len(level)) if len(ahead) else max(at, len(level) - 50)
        rest, begin = audio[keep * 320:], begin + keep * 320

@functools.cache
def load_whisper(name, device):
    """A Whisper model by name (downloaded once) or by the path of a .pt; exits with the remedies where it cannot be had."""
    import torch, whisper
    device = (f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else 'cpu') if device == 'auto' else device
    name = ('turbo' if device.startswith('cuda') else 'base.en') if name == 'auto' else name
    try:
        return whisper.load_model(name, device=device).eval()
    except Exception as e:                                             # no network, no such name, a broken file
        sys.exit(f'error: Whisper weights {name!r} cannot be loaded ({type(e).__name__}: {str(e).splitlines()[0][:200]}). Either give the path '
                 'of downloaded weights (--whisper_model=path/base.en.pt), or put captions beside the videos (talk.mp4 + talk.vtt)')

def transcribe(video, key, cfg, count):
    """openai-whisper on batches of chunks, no context carried over -> segments. Deterministic: batches lie within one video,
    and sampling (only where greedy decoding fails) is seeded by the video, the chunk and the temperature."""
    import torch, whisper
    model = load_whisper(cfg.whisper_model, cfg.device)
    spoken = None if not model.is_multilingual else None if cfg.language == 'any' else cfg.language
    options = dict(language=spoken or (None if model.is_multilingual else 'en'), fp16=model.device.type == 'cuda')
    tokenizer = whisper.tokenizer.get_tokenizer(model.is_multilingual, num_languages=model.num_languages, language=spoken or 'en')
    segments, votes, chunks = [], [], speech_chunks(video)
    while batch := list(itertools.islice(chunks, cfg.whisper_batch)):
        mel = torch.stack([whisper.log_mel_spectrogram(whisper.pad_or_trim(audio), model.dims.n_mels, device=model.device) for _, audio in batch])
        with torch.no_grad():
            heard = model.encoder(mel.half() if options['fp16'] else mel)
            if spoken:
                votes += [p.get(spoken, 0.) for p in model.detect_language(heard)[1]]
                if len(votes) >= 5 and np.mean(votes) < .2:
                    break
        results = model.decode(heard, whisper.DecodingOptions(**options))
        for temperature in .4, .8:
            failed = [i for i, r in enumerate(results) if r.compression_ratio > 2.4 or r.avg_logprob < -1 and r.no_speech_prob < .6]
            if not failed:
                break
            count['chunks_again'] += len(failed)
            torch.manual_seed(int(hashlib.sha256(f'{key} {len(segments)} {batch[failed[0]][0]} {temperature}'.encode()).hexdigest()[:15], 16))
            again = model.decode(heard[failed], whisper.DecodingOptions(**options, temperature=temperature))
            for i, r in zip(failed, again):
                results[i] = r
        for (start, audio), result in zip(batch, results):
            count['chunks'] += 1
            if cause := hallucinated(result, len(audio) / RATE):
                count['chunks_' + cause] += 1
            else:
                segments += timed(result.tokens, tokenizer, start, len(audio) / RATE)
    if votes and np.mean(votes) < .8:
        raise Bad('language', f'{video.path}: p({spoken}) = {np.mean(votes):.2f}')
    return segments

def hallucinated(result, length):
    """Why a chunk's text is not speech, or ''. `length` in seconds. Whisper invents text on silence and loops on music."""
    words = result.text.lower().split()
    grams = collections.Counter(zip(*(words[i:] for i in range(4))))
    if result.no_speech_prob > .6 and result.avg_logprob < -.5:
        return 'silent'
    if result.compression_ratio > 2.4 or max(grams.values(), default=0) > 4 or any(len(set(words[i:i + 5])) == 1 for i in range(len(words) - 4)):
        return 'loop'
    if result.avg_logprob < -1:
        return 'unsure'
    if not words or len(result.text) > 25 * length or len(result.text) < length / 8 and result.no_speech_prob > .3:
        return 'rate'
    if result.no_speech_prob > .2 and re.sub(r'\W+', ' ', result.text.lower()).strip() in (
            'thank you', 'thanks for watching', 'thank you for watching', 'please subscribe', 'subtitles by the amara org community', 'you', 'bye'):
        return 'stock_phrase'
    return ''

def timed(tokens, tokenizer, start, length):
    """Whisper's tokens of one chunk -> segments, cut at its timestamp tokens (20 ms steps)."""
    segments, begin, words = [], 0.0, []
    for token in [*tokens, tokenizer.timestamp_begin + round(length / .02)]:
        if token < tokenizer.eot:
            words.append(token)
        elif token >= tokenizer.timestamp_begin:
            t = min((token - tokenizer.timestamp_begin) * .02, length)
            if text := clean(tokenizer.decode(words)):
                segments.append((start + begin, start + max(t, begin), text))
            begin, words = t, []
    return segments

def tokenise(segments, encoding, duration_ms):
    """-> tokens uint16, times uint32 (ms): each token at its share, by bytes, of its segment; <|endoftext|> at the duration closes them."""
    tokens, times = [], []
    for a, b, text in segments:
        ids = encoding.encode_ordinary(' ' + text)                     # the space keeps a word's tokens the same everywhere
        ends = np.cumsum([len(encoding.decode_single_token_bytes(i)) for i in ids])
        tokens += ids
        times += list(1000 * (a + (b - a) * np.concatenate([[0], ends[:-1]]) / ends[-1]))
    times = np.clip(np.maximum.accumulate(np.array(times + [0.])), 0, duration_ms).astype(np.uint32)
    times[-1] = duration_ms
    return np.array(tokens + [EOT], np.uint16), times

# ----------------------------------------------------------------------------------------------------------------------
# one video -> one shard: the patch rows as they come, then an .npz of everything else, then the rows' length in bytes (8)

def shard_path(root, key, ending='.shard'):
    name = hashlib.sha256(key.encode()).hexdigest()[:40]               # never from a title or an id
    return root / name[:2] / (name + ending)

def read_shard(path):
    """-> (index {tokens, times, frames, pixels, row}, bytes of patch rows before it)."""
    with open(path, 'rb') as f:
        f.seek(-8, os.SEEK_END)
        rows = int.from_bytes(f.read(8), 'little')
        f.seek(rows)
        with np.load(io.BytesIO(f.read()[:-8]), allow_pickle=False) as z:
            index = {k: z[k] for k in z.files}
    return index | {'row': json.loads(index['row'].tobytes())}, rows

def patchify_uint8(picture, patch_size):
    """(S, S, 3) -> (n_patches, patch_size * patch_size * 3): patches in raster order, each (row, column, channel)."""
    n, p = len(picture) // patch_size, patch_size
    return picture.reshape(n, p, n, p, 3).swapaxes(1, 2).reshape(n * n, p * p * 3)

def process(item, cfg):
    """One video or image -> its shard, whole or not at all, and its row. Pure: depends on nothing but the item and the settings."""
    cfg, count, spent = types.SimpleNamespace(**cfg), collections.Counter(), {}
    if hasattr(signal, 'SIGALRM'):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)                  # a hang ends this process, even inside a C library
        signal.alarm(cfg.timeout_s)
    path = shard_path(cfg.root / 'shards', item['key'])
    path.parent.mkdir(parents=True, exist_ok=True)
    part, row = path.with_suffix(f'.part{os.getpid()}'), {k: v for k, v in item.items() if k not in ('captions', 'sidecar', 'media')}
    try:
        with open(part, 'wb') as out:
            index = (extract_image if 'captions' in item else extract_video)(item, cfg, count, spent, out)
            rows = out.tell()
            row |= dict(status='ok', cause='', seconds=spent, counts=dict(count), **index.pop('row'))
            np.savez(stream := io.BytesIO(), row=np.frombuffer(json.dumps(row).encode(), np.uint8), **index)
            out.write(stream.getvalue() + rows.to_bytes(8, 'little'))
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, path)
        shard_path(cfg.root / 'shards', item['key'], '.err.json').unlink(missing_ok=True)
        return row
    except Bad as e:
        return failed(cfg.root, row | dict(counts=dict(count)), e.cause, str(e))
    except Exception as e:                                             # not foreseen: counted as such, and the run goes on
        if getattr(e, 'errno', None) in (28, 30, 122):                 # disk full, read-only, over quota: every other video would fail too
            raise
        return failed(cfg.root, row, 'error', f"{item['source']}: {type(e).__name__}: {e}")
    finally:
        part.unlink(missing_ok=True)
        if hasattr(signal, 'SIGALRM'):
            signal.alarm(0)

def failed(root, row, cause, message):
    """Record why an item gives no shard; it is tried again by the next run, but not one that crashed or hung."""
    row = row | dict(status='failed', cause=cause, message=message)
    path = shard_path(root / 'shards', row['key'], '.err.json')
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(row).encode())
    return row

def extract_video(item, cfg, count, spent, out):
    """The key frames of a video to `out`, its words and times -> the shard's index."""
    began, flags, frames, hashes, pixels = time.perf_counter(), 0, [], [], np.zeros((2, 3), np.int64)
    media = item.get('media') or [item['source']]                      # a site may give picture and sound as two files
    video = Decoder(media[0])
    if video.video is None:
        raise Bad('no_video', f"{item['source']}: no video track")
    sound = Decoder(media[-1]) if len(media) > 1 else video
    if hasattr(signal, 'SIGALRM'):
        signal.alarm(int(cfg.timeout_s + 3 * video.duration))
    for t_ms, frame_flags, bits, picture in key_frames(video, cfg, count):
        if frames and frames[-1][1] is None:
            frames[-1][1] = t_ms                                       # until the next kept frame, or until an earlier picture is back
        if picture is not None:
            frames.append([t_ms, None, frame_flags])
            hashes.append(bits)
            out.write(patchify_uint8(picture, cfg.patch_size).tobytes())
            pixels += [picture.sum((0, 1), np.int64), (picture.astype(np.int64) ** 2).sum((0, 1))]
    length = max(video.end, video.duration if not video.bad else 0) if video.end > .98 * video.duration else video.end
    if video.end < .98 * video.duration:                               # cut off, or packets lost to the end
        flags |= VIDEO_TRUNCATED
        if video.end < .5 * video.duration:
            raise Bad('truncated', f"{item['source']}: only {video.end:.0f} of {video.duration:.0f} seconds can be read")
    if not frames:
        raise Bad('no_frames', f"{item['source']}: no key frame can be decoded" + (', all are blank' if count['frames_blank'] else ''))
    flags |= VIDEO_STATIC * (count['frames_kept'] * 10 <= count['frames_seen'])
    spent['frames'] = time.perf_counter() - began
    began, words_from = time.perf_counter(), 'sidecar'
    if item.get('sidecar') and cfg.text != 'whisper':
        segments = read_sidecar(item['sidecar'])
        spent['sidecar'] = time.perf_counter() - began
    elif cfg.text == 'sidecar' or sound.audio is None:
        why = 'it has no audio track' if sound.audio is None else '--text=sidecar'
        if not cfg.keep_silent:
            raise Bad('no_text', f"{item['source']}: no .vtt, .srt or .json3 beside it, and {why}")
        segments = []
    else:
        words_from, model_name = 'whisper', hashlib.sha256((cfg.whisper_model + cfg.language).encode()).hexdigest()[:8]
        heard = shard_path(cfg.root / 'words', item['key'], f'.{model_name}.json')   # kept: other image sizes need no second hearing
        if not heard.exists():
            heard.parent.mkdir(parents=True, exist_ok=True)
            segments = transcribe(Decoder(media[-1]), item['key'], cfg, counted := collections.Counter())
            heard.with_suffix(f'.part{os.getpid()}').write_text(json.dumps([segments, counted]))
            os.replace(heard.with_suffix(f'.part{os.getpid()}'), heard)
            spent['whisper'] = time.perf_counter() - began
        segments, counted = json.loads(heard.read_text())
        count.update(counted)
    duration_ms = round(1000 * max(length, frames[-1][0] / 1000))
    tokens, times = tokenise([s for s in segments if s[0] * 1000 < duration_ms], gpt2_encoding_once(), duration_ms)
    if len(tokens) == 1 and not cfg.keep_silent:
        raise Bad('no_speech', f"{item['source']}: no words were heard" if words_from == 'whisper' else f"{item['sidecar']}: no words in time")
    frames[-1][1] = frames[-1][1] or duration_ms
    return dict(tokens=tokens, times=times, frames=np.array(frames, np.uint32).reshape(-1, 3), hashes=np.array(hashes, np.uint8), pixels=pixels, row=dict(
        duration=duration_ms / 1000, flags=flags, words_from=words_from, n_frames=len(frames), n_tokens=len(tokens)))

def extract_image(item, cfg, count, spent, out):
    """One image with its captions, each closed by <|endoftext|>: a video of one frame and no duration."""
    began, encoding = time.perf_counter(), gpt2_encoding_once()
    picture = image_square(item['source'], cfg.image_size)
    out.write(patchify_uint8(picture, cfg.patch_size).tobytes())
    count['frames_seen'] = count['frames_kept'] = 1
    tokens = np.concatenate([tokenise([(0, 0, ' '.join(text.split()))], encoding, 0)[0] for text in item['captions']])
    spent['frames'] = time.perf_counter() - began
    return dict(tokens=tokens, times=np.zeros(len(tokens), np.uint32), frames=np.zeros((1, 3), np.uint32), hashes=np.zeros((0, 8), np.uint8), pixels=np.stack(
        [picture.sum((0, 1), np.int64), (picture.astype(np.int64) ** 2).sum((0, 1))]), row=dict(
        duration=0.0, flags=VIDEO_CAPTIONS, words_from='captions', n_frames=1, n_tokens=len(tokens)))

gpt2_encoding_once = functools.cache(gpt2_encoding)

# ----------------------------------------------------------------------------------------------------------------------
# all videos: a process each time, so that one that crashes or hangs costs only itself

def start_worker():
    signal.signal(signal.SIGINT, signal.SIG_IGN)                       # Ctrl-C is the parent's to answer,
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()       # and none outlives it
    os.environ['OMP_NUM_THREADS'] = '1'                                # before torch: the same sums whatever the machine and the workers

def weight(item):
    """Of the progress bar: bytes, guessed before a download."""
    return item.get('bytes') or round(40_000 * (item.get('duration') or 600))

def process_all(items, cfg, workers, bar):
    """Run `process` over items in worker processes -> (rows, refused). A worker that dies is replaced, its video counted as crash or timeout.
    Videos from the network are fetched here, one after the other, while the workers are busy; refused: whether the site told us to stop."""
    mine, rows, pools, jobs, broken, refusals = threading.local(), [], [], [], [], 0
    room = threading.Semaphore(2 * workers)                            # no more files than this wait on the disk
    def done(item, row):
        bar.update(weight(item))
        if row['status'] == 'failed':
            bar.write(f"skipped ({row['cause']}): {row['message']}")
        rows.append(row)
        bar.set_postfix_str(f'{len(rows)}/{len(items)} videos', refresh=False)
    def one(item, fetched):
        if not hasattr(mine, 'pool'):
            mine.pool = futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), start_worker)
            pools.append(mine.pool)
        began = time.monotonic()
        try:
            row = mine.pool.submit(process, fetched, cfg).result()
        except futures.process.BrokenProcessPool:
            del mine.pool
            cause = 'timeout' if time.monotonic() - began >= cfg['timeout_s'] else 'crash'
            row = failed(cfg['root'], {k: v for k, v in item.items() if k != 'captions'}, cause, f"{item['source']}: {cause} while it was read")
        finally:
            if fetched is not item:
                room.release()
        if fetched is not item and not cfg['keep_media']:
            shutil.rmtree(Path(fetched['media'][0]).parent)
        done(item, row)
    def submit(*args):
        jobs.append(threads.submit(one, *args))
        jobs[-1].add_done_callback(lambda job: job.cancelled() or job.exception() and broken.append(job))
    threads = futures.ThreadPoolExecutor(workers)
    try:
        for item in items:
            if not item['url']:
                submit(item, item)
        for item in (i for i in items if i['url'] and not broken):
            room.acquire()
            try:
                fetched = fetch(item, cfg)
            except Bad as e:
                room.release()
                refusals = (refusals + 1) * (e.cause == 'refused')
                done(item, failed(cfg['root'], item, e.cause, str(e)))
                if refusals == 3:
                    break
                continue
            refusals = 0
            submit(item, fetched)
        for job in jobs:
            job.result()
        for pool in pools:
            pool.shutdown(wait=False)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)              # after Ctrl-C or a full disk, what waits stays undone
    return rows, refusals == 3

# ----------------------------------------------------------------------------------------------------------------------
# finalise: all shards -> the arrays; deterministic, meta.json last

def split_of(keys, val_fraction, test_fraction):
    """{key: split} by a hash of each key: nobody moves when a video is added, but from val and test to train as a set reaches 2,000, of which smaller shares do.
    A small set lends val and test one video each, but never its last."""
    share = {k: int(hashlib.sha256(k.encode()).hexdigest()[:8], 16) / 2 ** 32 for k in sorted(keys)}
    split = {k: 'test' if u < test_fraction else 'val' if u < test_fraction + val_fraction else 'train' for k, u in share.items()}
    if split and 'train' not in split.values():
        split[max(split, key=share.get)] = 'train'
    for want, fraction in ('val', val_fraction), ('test', test_fraction):
        if fraction and want not in split.values() and list(split.values()).count('train') >= 2 and len(split) >= 3:
            split[min((k for k in split if split[k] == 'train'), key=share.get)] = want
    return split

class Output:
    """A file that is written beside its name, with its sha256; the caller renames when all are there."""
    def __init__(self, path):
        self.path, self.file, self.digest, self.size = path, open(f'{path}.part', 'wb'), hashlib.sha256(), 0

    def write(self, data):
        data = memoryview(data).cast('B')
        self.file.write(data)
        self.digest.update(data)
        self.size += len(data)

    def close(self):
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return dict(sha256=self.digest.hexdigest(), bytes=self.size)

def write_whole(path, data):
    """bytes -> path, whole or not at all."""
    part = Path(f'{path}.part{os.getpid()}')
    with open(part, 'wb') as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    os.replace(part, path)

def npy_header(dtype, n):
    np.lib.format.write_array_header_1_0(stream := io.BytesIO(), dict(descr=np.lib.format.dtype_to_descr(dtype), fortran_order=False, shape=(n,)))
    return stream.getvalue()

def uploads(*kinds):
    """Dicts {key: set of hashes}, by pictures and by words -> {key: the first key of its group}: re-uploads share more than half of the smaller set."""
    first = {k: k for kind in kinds for k in kind}
    def root(k):
        while first[k] != k:
            k = first[k]
        return k
    for marks in kinds:
        holders, shared = collections.defaultdict(list), collections.Counter()
        for key in sorted(marks):
            for mark in marks[key]:
                if len(holders[mark]) < 8:                             # what more have is a title card or a greeting
                    shared.update((other, key) for other in holders[mark])
                    holders[mark].append(key)
        for (a, b), n in shared.items():
            if n >= 4 and 2 * n > min(len(marks[a]), len(marks[b])):
                a, b = sorted((root(a), root(b)))
                first[b] = a
    return {k: root(k) for k in first}

def marks(index):
    """What a re-upload has in common with its original: the dHash of each frame, and one in 8 of the hashes of 8 tokens in a row."""
    tokens = index['tokens'].astype(np.uint64)
    n = max(len(tokens) - 7, 0)                                        # runs of eight tokens; a few words have none
    grams = sum((tokens[i:i + n] * np.uint64(0x9E3779B97F4A7C15 ** (i + 1) % 2 ** 64) for i in range(8)), np.zeros(n, np.uint64))
    grams ^= grams >> np.uint64(29)
    return {h.tobytes() for h in index['hashes']}, {int(g) for g in grams if g % 8 == 0}

def finished(root):
    """What stands in a finished set -> meta, rows of videos.jsonl; both empty if it is not finished, or damaged."""
    try:
        return json.loads((root / 'meta.json').read_text()), [json.loads(line) for line in open(root / 'videos.jsonl', encoding='utf-8')]
    except (OSError, ValueError):
        return {}, []

def finalise(root, items, refused, cfg):
    """Join the shards of all items -> (meta, rows). The same shards give the same bytes, in whatever order they were made; one is in memory at a time."""
    rows, paths, pictures, texts = {r['key']: r | dict(status='failed', counts={}) for r in refused}, {}, {}, {}
    for item in sorted(items, key=lambda i: i['key']):
        key, path = item['key'], shard_path(root / 'shards', item['key'])
        rows[key] = item | dict(status='pending', cause='pending', message='not asked for yet', counts={})
        if path.exists():
            try:
                index, paths[key] = read_shard(path)[0], path
            except (OSError, ValueError, KeyError) as e:
                path.unlink()
                sys.exit(f'error: {path} was damaged ({e}) and is removed; run the same command again to make it anew')
            rows[key], (pictures[key], texts[key]) = index['row'], marks(index)
        elif (error := path.with_suffix('.err.json')).exists():
            rows[key] = json.loads(error.read_text())
    small = .1 if len(paths) < 2000 else .01
    fractions = [small if f is None else f for f in (cfg['val_fraction'], cfg['test_fraction'])]
    group = uploads(pictures, texts)                                   # re-uploads follow the first of them
    given = {i['key']: i['split'] for i in items if i.get('split')}    # by an image-caption list, as COCO's and Flickr30k's
    split = split_of(set(group.values()) - given.keys(), *fractions) | given
    split = {k: given.get(k) or split[g] for k, g in group.items()}
    order = {k: n for n, k in enumerate(sorted(rows))}
    meta = dict(format=FORMAT, image_size=cfg['image_size'], patch_size=cfg['patch_size'], tokenizer='gpt2', tokenizer_sha256=TOKENIZER_SHA256,
                special_ids={'<|endoftext|>': EOT}, split_rule=f"sha256 of the key, by video: val {fractions[0]:g}, test {fractions[1]:g}; re-uploads together"
                + '; or as the list says' * bool(given),
                config={k: cfg[k] for k in EXTRACTION}, keys_sha256=hashlib.sha256(json.dumps([sorted(split.items()), sorted(rows)]).encode()).hexdigest())
    old, listed = finished(root)
    if old.items() >= meta.items() and all((root / n).exists() and (root / n).stat().st_size == about['bytes'] for n, about in old['arrays'].items()):
        return old, rows
    if lost := [r['key'] for r in listed if r['status'] == 'ok' and r['key'] in rows and r['key'] not in paths]:
        sys.exit(f'error: {len(lost)} videos of the finished set have no shard any more, so it cannot be joined anew without them; it stays as it is. '
                 'Prepare a further set beside it and train on both (--dataset=a,b), or make them again: delete meta.json and run the same command')
    (root / 'meta.json').unlink(missing_ok=True)
    meta |= dict(hours=0.0, counts={}, arrays={}, reuploads=sum(k != g for k, g in group.items()))
    pixels, n_pixels, files = np.zeros((2, 3), object), 0, []          # Python integers: exact
    for name in 'train', 'val', 'test':
        mine = [k for k in sorted(paths) if split[k] == name]
        out = {a: Output(root / f'{name}_{a}') for a in ('patches.bin', 'tokens.bin', 'times.bin', 'frames.npy', 'videos.npy')}
        out['frames.npy'].write(npy_header(FRAME, sum(rows[k]['n_frames'] for k in mine)))
        videos, t, f = np.zeros(len(mine), VIDEO), 0, 0
        for v, key in enumerate(mine):
            index, size = read_shard(paths[key])
            row, n = index['row'], len(index['frames'])
            videos[v] = t, t + len(index['tokens']), f, f + n, round(row['duration'] * 1000), order[key], row['flags']
            ends = np.flatnonzero(index['tokens'] == EOT)
            frame = np.zeros(n, FRAME)
            frame['video'], (frame['t_ms'], frame['t_end_ms'], frame['flags']) = v, index['frames'].T
            middle = (frame['t_ms'].astype(np.int64) + frame['t_end_ms']) // 2
            frame['token'] = t + np.minimum(np.searchsorted(index['times'], middle), ends[0] if row['flags'] & VIDEO_CAPTIONS else ends[-1])
            spoken = np.searchsorted(index['times'][:-1], frame['t_ms']) < np.searchsorted(index['times'][:-1], frame['t_end_ms'])
            frame['flags'] |= np.where(spoken | (row['flags'] & VIDEO_CAPTIONS > 0), 0, FRAME_SILENT).astype('u2')
            for array, data in ('tokens.bin', index['tokens']), ('times.bin', index['times']), ('frames.npy', frame):
                out[array].write(np.ascontiguousarray(data).view(np.uint8))
            with open(paths[key], 'rb') as shard:
                while size:
                    out['patches.bin'].write(part := shard.read(min(size, 1 << 24)))
                    size -= len(part)
            t, f, rows[key]['split'] = t + len(index['tokens']), f + n, name
            meta['hours'] += row['duration'] / 3600
            if name == 'train':
                pixels, n_pixels = pixels + index['pixels'], n_pixels + n * cfg['image_size'] ** 2
        np.save(stream := io.BytesIO(), videos)
        out['videos.npy'].write(stream.getvalue())
        meta['arrays'] |= {o.path.name: o.close() for o in out.values()}
        meta['counts'][name] = dict(videos=len(mine), frames=f, tokens=t)
        files += [o.path for o in out.values()]
    mean = [p / max(n_pixels, 1) / 255 for p in pixels[0]]
    meta |= dict(pixel_mean=mean, pixel_std=[math.sqrt(max(q / max(n_pixels, 1) / 255 ** 2 - m * m, 0)) for m, q in zip(mean, pixels[1])])
    keep = 'key source title url duration split status cause message words_from n_frames n_tokens counts license channel_id upload_date language'.split()
    for path in files:
        os.replace(f'{path}.part', path)
    write_whole(root / 'videos.jsonl', ''.join(json.dumps({k: rows[key][k] for k in keep if k in rows[key]}) + '\n' for key in sorted(rows)).encode())
    write_whole(root / 'meta.json', json.dumps(meta, indent=1).encode())          # last: it exists = the set is complete
    return meta, rows

# ----------------------------------------------------------------------------------------------------------------------
# --check: does a finished set keep the contract? Uses none of the code above that wrote it

def problems(root):
    """-> list of sentences, empty if data/<dataset> is sound. Recomputes everything from the files alone."""
    try:
        meta = json.loads((root / 'meta.json').read_text())
        rows = [json.loads(line) for line in open(root / 'videos.jsonl', encoding='utf-8')]
    except (OSError, ValueError) as e:
        return [f'{e}: the set is not complete; run prepare.py on it again']
    bad = [] if meta['format'] == 1 else [f"format {meta['format']}, this code reads 1"]
    for name, about in meta['arrays'].items():
        if not (root / name).exists() or (root / name).stat().st_size != about['bytes']:
            bad.append(f"{name}: not the {about['bytes']} bytes that meta.json states")
        elif hashlib.file_digest(open(root / name, 'rb'), 'sha256').hexdigest() != about['sha256']:
            bad.append(f'{name}: its sha256 is not the one in meta.json')
    if bad:
        return bad
    seen, row_bytes = set(), meta['image_size'] ** 2 * 3
    for split, n in meta['counts'].items():
        tokens, times = (np.fromfile(root / f'{split}_{a}.bin', t) for a, t in (('tokens', '<u2'), ('times', '<u4')))
        frames, videos = (np.load(root / f'{split}_{a}.npy', allow_pickle=False) for a in ('frames', 'videos'))
        def must(true, sentence):
            bad.extend([] if true else [f'{split}: {sentence}'])
        must((len(tokens), len(times), len(frames), len(videos)) == (n['tokens'], n['tokens'], n['frames'], n['videos']), 'counts differ from meta.json')
        must(os.path.getsize(root / f'{split}_patches.bin') == n['frames'] * row_bytes, 'patches.bin is not one row per frame')
        must((tokens <= 50256).all(), 'a token is not a GPT-2 id')
        for what, total in ('token', len(tokens)), ('frame', len(frames)):
            edges = np.append(videos[what + '_start'], total)
            must(edges[0] == 0 and (videos[what + '_end'] == edges[1:]).all(), f'the {what}s of the videos are not end to end')
        for i, v in enumerate(videos):
            said, when, mine = (a[int(v['token_start']):int(v['token_end'])] for a in (tokens, times, np.arange(len(tokens))))
            shown, row = frames[int(v['frame_start']):int(v['frame_end'])], rows[v['row']] if v['row'] < len(rows) else {}
            must(row.get('status') == 'ok' and row.get('split') == split and row['key'] not in seen, f'video {i}: its row in videos.jsonl is wrong')
            seen.add(row.get('key'))
            ends, caption = np.flatnonzero(said == 50256), v['flags'] & 1
            must(len(said) and said[-1] == 50256 and (caption or len(ends) == 1), f'video {i}: <|endoftext|> must close each text, and stand nowhere else')
            must((np.diff(when.astype(np.int64)) >= 0).all() and when[-1:] == v['duration_ms'], f'video {i}: times must rise to the duration')
            must((shown['video'] == i).all() and (np.diff(shown['t_ms'].astype(np.int64)) > 0).all(), f'video {i}: frames out of order')
            must((shown['t_end_ms'][:-1] <= shown['t_ms'][1:]).all() and (shown['t_end_ms'] <= v['duration_ms']).all() and
                 (caption or (shown['t_ms'] < shown['t_end_ms']).all()), f'video {i}: a frame stands for no time')
            middle = (shown['t_ms'].astype(np.int64) + shown['t_end_ms']) // 2
            first = [int(mine[np.flatnonzero((when >= m) | (said == 50256))[0]]) for m in middle] if len(said) else []
            must(list(shown['token']) == first, f'video {i}: a frame does not point at the first token after its middle')
    return bad

# ----------------------------------------------------------------------------------------------------------------------

def table(rows, seconds=0):
    """What came of it all, for people."""
    ok, causes, count, spent = [r for r in rows if r['status'] == 'ok'], collections.Counter(), collections.Counter(), collections.Counter()
    causes.update(r['cause'] for r in rows if r['status'] != 'ok')
    for r in ok:
        count.update(r['counts'])
        spent.update(r.get('seconds', {}))
    hours = sum(r['duration'] for r in ok) / 3600
    by = {s: sum(r['duration'] for r in ok if s in r.get('seconds', {})) for s in spent}
    lines = [('videos', f'{len(ok)} ok' + ''.join(f', {n} {c}' for c, n in sorted(causes.items()))), ('length', f'{hours:.2f} h'),
             ('frames', f"{count['frames_kept']} kept of {count['frames_seen']} key frames; dropped: " + (', '.join(
                 f"{n} {c.removeprefix('frames_')}" for c, n in sorted(count.items()) if c.startswith('frames_') and c not in ('frames_kept', 'frames_seen')) or 'none')),
             ('tokens', f"{sum(r['n_tokens'] for r in ok)}")]
    if count['chunks']:
        lines += [('speech', f"{count['chunks']} chunks of <= 30 s, {count['chunks_again']} decoded again; dropped: " + (', '.join(
            f"{n} {c.removeprefix('chunks_')}" for c, n in sorted(count.items()) if c.startswith('chunks_') and c != 'chunks_again') or 'none'))]
    if seconds:
        paces = [f'{s}: {by[s] / t:.0f} x real time per worker' for s, t in spent.items() if t > 0 and by[s]]
        lines += [('speed', ', '.join(paces) + f"; {by.get('frames', 0) / seconds:.0f} x in all")]
    return '\n'.join(f'  {k:8s}{v}' for k, v in lines)

def write_preview(root, n=24):
    """root/preview.html: n random frames with the words around them, and what became of each video. One static page; nothing in it is trusted."""
    from PIL import Image
    meta, rows, rng = json.loads((root / 'meta.json').read_text()), read_rows(root / 'videos.jsonl'), np.random.default_rng(0)
    encoding, S, p, safe, cards = gpt2_encoding(), meta['image_size'], meta['patch_size'], html.escape, []
    for split, counts in meta['counts'].items():
        frames, videos = (np.load(root / f'{split}_{a}.npy', allow_pickle=False) for a in ('frames', 'videos'))
        tokens, times = (np.memmap(root / f'{split}_{a}.bin', t, 'r') if counts['tokens'] else () for a, t in (('tokens', '<u2'), ('times', '<u4')))
        share = -(-n * len(frames) // max(1, sum(c['frames'] for c in meta['counts'].values())))
        for i in sorted(rng.choice(len(frames), min(share, len(frames)), replace=False)):
            f, v = frames[i], videos[frames[i]['video']]
            row, span = rows[v['row']], slice(int(v['token_start']), int(v['token_end']) - 1)
            when, said = times[span].astype(np.int64), tokens[span]
            def words(a, b):
                return safe(encoding.decode(said[(when >= a) & (when < b)].tolist()))
            t, end = int(f['t_ms']), max(int(f['t_end_ms']), int(f['t_ms']) + 1)
            patches = np.fromfile(root / f'{split}_patches.bin', np.uint8, S * S * 3, offset=int(i) * S * S * 3).reshape(S // p, S // p, p, p, 3)
            Image.fromarray(patches.swapaxes(1, 2).reshape(S, S, 3)).save(stream := io.BytesIO(), 'PNG')
            link = row['url'] + ('&' if '?' in row['url'] else '?') + f't={t // 1000}' if re.match('https?://', row['url']) else ''
            clock, title = f'{t // 60000}:{t // 1000 % 60:02d}', safe(row['title'])
            cards.append(f'<figure><img src="data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"><figcaption><small>{split}, '
                         f'{f"""<a href="{safe(link)}">{title}, {clock}</a>""" if link else f"{title}, {clock}"}, stands {(end - t) / 1000:.1f} s</small><br>'
                         f'{words(t - 1000, t)}<b>{words(t, end)}</b>{words(end, end + 1000)}</figcaption></figure>')
    def cells(r):
        counts = ', '.join(f"{v} {k.removeprefix('frames_')}" for k, v in r.get('counts', {}).items())
        return (r['status'], r['cause'] or r.get('split', ''), r['title'] or r['source'], f"{r.get('duration') or 0:.0f} s", r.get('n_tokens', ''), counts,
                r.get('message', ''))
    lines = [[safe(str(c)) for c in cells(r)] for r in sorted(rows, key=lambda r: r['status'])]
    heads = 'status', 'split or cause', 'title', 'length', 'tokens', 'frames and chunks: kept, dropped', 'message'
    write_whole(root / 'preview.html', f"""<!doctype html><meta charset="utf-8"><title>{safe(root.name)}</title><style>
body {{ font: 14px sans-serif; margin: 2em }} figure {{ display: inline-block; width: 220px; margin: 0 14px 18px 0; vertical-align: top }} img {{ width: 220px }}
table {{ border-collapse: collapse }} td, th {{ border-bottom: 1px solid #ddd; padding: 2px 10px; text-align: left }}</style>
<h1>{safe(root.name)}</h1><pre>{safe(table(rows))}</pre><p>Random frames; bold: said while the frame stands, around it: one second before and after.</p>
{''.join(cards)}<h2>Videos</h2><table><tr>{''.join(f'<th>{h}' for h in heads)}{''.join('<tr>' + ''.join(f'<td>{c}' for c in line) for line in lines[:500])}
</table>{f'<p>and {len(lines) - 500} more, see videos.jsonl' if len(lines) > 500 else ''}""".encode())
    print(f"wrote {root / 'preview.html'}")

def estimate(items, cfg):
    """--dry_run: open each file, decode and download nothing, print what a run would take."""
    hours, broken, speech, online = 0.0, 0, 0.0, sum(bool(i['url']) for i in items)
    for item in items:
        try:                                                           # ten minutes where a site does not say
            length = 0 if 'captions' in item else (item.get('duration') or 600) / 3600 if item['url'] else Decoder(item['source']).duration / 3600
            hours, speech = hours + length, speech + length * (not item.get('sidecar') or cfg['text'] == 'whisper')
        except Bad as e:
            broken += 1
            print(f'  cannot be read ({e.cause}): {e}')
    images = sum('captions' in i for i in items)
    size = (images + hours * 400) * (image_size ** 2 * 3 + 26)                               # some 400 frames an hour stay
    pace = next((x for name, x in WHISPER_PACE.items() if name in cfg['whisper_model']), 7)
    took = max((hours * 3600 / 400 + images * .005 + speech * 3600 / pace) / cfg['workers'], online * (1.5 * cfg['sleep_s'] + 5))
    print(f"{len(items) - images} videos ({online} to download, {broken} unreadable), {hours:.2f} hours ({speech:.2f} to transcribe), {images} images with captions: "
          f"about {size / 1e6:.0f} MB of arrays (as much again for shards), and {took / 60:.1f} minutes with {cfg['workers']} workers on a CPU")
WHISPER_PACE = {'tiny': 15, 'base': 7, 'small': 2.5, 'medium': .8, 'turbo': .7, 'large': .4}  # x real time on one core, roughly

def may_pass(root, item):
    """Whether to try an item again that failed before: not what killed its worker, nor, to be polite, what a site said for good."""
    error = shard_path(root / 'shards', item['key'], '.err.json')
    cause = json.loads(error.read_text())['cause'] if error.exists() else ''
    return cause in PASSING if cause and item['url'] else cause not in ('crash', 'timeout')

def take_down(root, items):
    """--exclude: items, shards, words and media of these go, and the keys are remembered -> the items that stay."""
    listed = [line.strip() for name in exclude for line in (Path(name).read_text(encoding='utf-8', errors='replace').splitlines() if name.endswith('.txt') else [name])]
    memory = root / 'excluded.txt'
    gone = {line for line in listed + (memory.read_text().splitlines() if memory.exists() else []) if line}
    out = [i for i in items if gone & {i['key'], i['key'].split(':', 1)[1], i['url'], i['source']} - {''}]
    gone |= {i['key'] for i in out}                                    # a key stays out under any name
    for item in out:
        shard = shard_path(root / 'shards', item['key'])
        for path in shard, shard.with_suffix('.err.json'):
            path.unlink(missing_ok=True)
        for folder in root.glob(f"words/*/{shard.stem}*"), [shard_path(root / 'raw', item['key'], '')]:
            for path in folder:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    if gone:
        write_whole(memory, '\n'.join(sorted(gone) + ['']).encode())
    return [i for i in items if i['key'] not in gone]

def main():
    root = Path(data_dir) / dataset
    if check:
        try:
            found = problems(root)
        except (LookupError, TypeError, AttributeError, OSError, ValueError) as e:
            found = [f'meta.json or videos.jsonl is damaged ({type(e).__name__}: {e})']
        print('\n'.join([*found, 'to join the shards anew, delete meta.json and run prepare.py on it again'] * bool(found)) or f'{root}: all is as it should be')
        sys.exit(bool(found))
    if preview:
        if not (root / 'meta.json').exists():
            sys.exit(f'error: {root} is not complete; run prepare.py on it first')
        return write_preview(root)
    begun, old = root / 'shards' / 'config.json', {}
    try:
        old = json.loads(begun.read_text()) if not overwrite else {}
    except (OSError, ValueError):                                      # not begun
        pass
    for k in EXTRACTION:                                               # what is not given now is as it was when the set was begun
        if k in old and k not in config['_source']:
            config[k] = globals()[k] = old[k]
    if patch_size < 1 or image_size % patch_size or not 16 <= image_size <= 1024:
        sys.exit(f'error: image_size={image_size} must be a multiple of patch_size={patch_size}, from 16 to 1024')
    cfg = {k: v for k, v in config.items() if k != '_source'} | dict(root=root)
    rank, world = (int(os.environ.get(a, os.environ.get(b, d))) for a, b, d in (
        ('RANK', 'SLURM_ARRAY_TASK_ID', 0), ('WORLD_SIZE', 'SLURM_ARRAY_TASK_COUNT', 1)))
    known = root / 'items.jsonl'
    former = read_rows(known) if known.exists() and not overwrite else []
    items, refused = find_items(videos, pairs, cfg, former, online=rank == 0)
    items = list(({i['key']: i for i in former} | {i['key']: i for i in items}).values())
    if not items:
        print(*(f"{r['cause']}: {r['message']}" for r in refused), sep='\n')
        sys.exit('error: no videos found; name files, folders or .txt lists of them: python prepare.py talks/ --dataset=talks')
    cores = os.cpu_count() or 1
    at_least(globals(), workers=0)
    cfg['workers'] = workers or cores
    if dry_run:
        return estimate(items, cfg)
    if overwrite and world > 1:
        sys.exit('error: --overwrite by many ranks would delete what the others made; run it once alone with --resolve, then the ranks without it')
    try:
        if overwrite and root.exists():
            (root / 'meta.json').unlink(missing_ok=True)
            shutil.rmtree(root / 'shards', ignore_errors=True)
        (root / 'shards').mkdir(parents=True, exist_ok=True)
        extraction = {k: cfg[k] for k in EXTRACTION}
        if differs := [f'{k} was {old.get(k)!r}, now {v!r}' for k, v in extraction.items() if old.get(k, v) != v]:
            sys.exit(f"error: {root} was begun with other settings: {'; '.join(differs)}. Take another --dataset, or --overwrite")
        if not old:
            write_whole(begun, json.dumps(extraction).encode())
        items = take_down(root, items)
        if rank == 0:
            write_whole(known, ''.join(json.dumps(i) + '\n' for i in sorted(items, key=lambda i: i['key'])).encode())
        if resolve:
            return print(f'{known}: {len(items)} videos. It is an input like others: python prepare.py {known} --dataset={dataset}')
        mine = sorted(items, key=lambda i: (0, '') if i['url'] else (-weight(i), i['key']))    # files: the longest first. Ranks share them, but one asks a site
        mine = [i for n, i in enumerate(mine) if (rank == 0 if i['url'] else n % world == rank)]
        todo = [i for i in mine if not shard_path(root / 'shards', i['key']).exists() and (retry_failed or may_pass(root, i))]
        print(f'{root}: {len(mine)} videos, {len(mine) - len(todo)} done before, {len(todo)} to do with {cfg["workers"]} workers')
        if any(i['key'].startswith('youtube:') for i in todo):
            check_javascript()
        if text != 'sidecar' and any('captions' not in i and (text == 'whisper' or not i.get('sidecar')) for i in todo):
            model = load_whisper.__wrapped__(whisper_model, device)    # once here, so that workers do not all download, or all fail
            cfg['workers'] = workers or (min(4, cores) if model.device.type == 'cuda' else cores)
            del model
        began = time.monotonic()
        from tqdm import tqdm
        with tqdm(total=sum(map(weight, todo)), unit='B', unit_scale=True, smoothing=.1, disable=not todo) as bar:
            for row in refused:
                bar.write(f"skipped ({row['cause']}): {row['message']}")
            rows, told_to_stop = process_all(todo, cfg, cfg['workers'], bar)
        seconds = time.monotonic() - began
        if world > 1:
            return print(f'rank {rank} of {world}: done. When all are, this command without ranks joins the shards; the videos need not be named again')
        print('joining the shards')
        meta, all_rows = finalise(root, items, refused, cfg)
    except KeyboardInterrupt:
        print('\ninterrupted; the finished videos are kept: run the same command again to go on', flush=True)
        os._exit(130)                                                  # the workers see it and end
    except OSError as e:
        sys.exit(f'error: {e}; what was finished is kept: run the same command again once that is mended')
    print(table(list(all_rows.values()), seconds if rows else 0))
    for name, n in meta['counts'].items():
        print(f"  {name:8s}{n['videos']} videos, {n['frames']} frames, {n['tokens']} tokens")
    (root / 'stats.json').write_text(json.dumps(dict(seconds=seconds, rows=rows), default=str))
    if told_to_stop:
        print('stopped: the site refused three requests in a row (too many, or it suspects a robot). What was fetched is kept. Wait an hour or more, raise '
              '--sleep_s, and run the same command again: it goes on with what is pending', file=sys.stderr)
        sys.exit(75)
    if not meta['counts']['train']['videos']:
        sys.exit('error: nothing to train on: no video gave frames and words (the causes are above)')
    window = image_size - image_size // 5 // patch_size * patch_size   # a fifth less, to cut windows from
    print(f'{root}: ready. Next: python train.py --dataset={dataset} --data_dir={data_dir} --image_size={window} --patch_size={patch_size}')

if __name__ == '__main__':
    config = configure(globals(), positional='videos')
    main()
