"""What was named -> videos: files, folders, lists; the network, by yt-dlp.

A video is an item: a dict with its key (a site's id, or a hash of the content: not the
name), source, title and url, and what else is known of it: bytes, sidecar, duration.
"""
import collections, functools, hashlib, json, os, re, sys, unicodedata
from pathlib import Path

EXTENSIONS = ('.mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .mpe .m2v .ts .mts .m2t .m2ts .vob .mxf '
              '.flv .f4v .ogv .ogm .wmv .asf .3gp .3g2 .divx .rm .rmvb').split()
SIDECARS = '.json3', '.vtt', '.srt', '.json', '.tsv'                    # the first there is
CAPTIONS_OF = (r'(?i:\.(?:auto|cc|default|forced|orig|sdh|und)|\.([a-z]{2,3})(?:[-_][-\w]*)?)*'
               r'(?i:(\.json3?|\.vtt|\.srt|\.tsv))')                    # after the name of a video
# the second code that ISO 639-2 has for some languages, from their English names
ENGLISH = dict(sq='alb', hy='arm', eu='baq', my='bur', zh='chi', cs='cze', nl='dut', fr='fre',
               ka='geo', de='ger', el='gre', mk='mac', mi='mao', ms='may', fa='per', ro='rum',
               sk='slo', bo='tib', cy='wel') | {'is': 'ice'}
REMOTE = re.compile(r'https?://|\w+search\d*:')

class Bad(ValueError):
    """An item that cannot be used: cause, a word to count by, and a message of what is wrong."""
    def __init__(self, cause, message):
        super().__init__(message)
        self.cause = cause

def find_items(inputs, cfg, known, online=True):
    """-> items, and rows of videos.jsonl for what is none. `known`: the items of former runs; what
    they came from on the network is not asked for again, nor anything if not `online`."""
    named = [found for name in inputs for found in expand(name, cfg.all_files)]
    items = {i['key']: i for i in named if isinstance(i, dict)}
    asked = {i.get('asked') for i in known}
    refused, whose = [], {}
    for path in named:
        if isinstance(path, dict):
            continue
        row = dict(key=f'path:{path}', source=str(path), title='', url='')
        try:
            if isinstance(path, str):
                row['url'] = path
                found = find_online(path, cfg) if online and path not in asked else []
                items |= {i['key']: i for i in found if i['key'] not in items}
                continue
            row['title'] = path.stem
            item = row | find_file(path, cfg.language, cfg.captions)
            other = whose.setdefault(item['sidecar'] or path, path)
            if other.parent != path.parent:
                sys.exit(f"error: {item['sidecar']} would be the captions of {other} and of "
                         f'{path}: put captions beside the videos')
            first = items.setdefault(item['key'], item)
            if first['source'] != row['source']:
                raise Bad('duplicate', f"{path}: the same file as {first['source']}")
        except Bad as e:
            refused.append(row | dict(cause=e.cause, message=str(e)))
    return list(items.values()), refused

def expand(name, all_files, folder=Path(), within=()):
    """Yield what a name stands for: Paths, URLs and searches (str), items of an items.jsonl.
    `within`: the lists that it is named in. os.path, for no file can have some names."""
    path = folder / name
    kind = path.suffix.lower()
    if REMOTE.match(name) and not os.path.lexists(path):
        # without the place in a page, but C# in a search
        yield re.sub(r'(?<=.)#(?!!).*', '', name) if name.startswith('http') else name
    elif os.path.isdir(path):
        yield from walk(path, all_files)
    elif kind == '.txt' and os.path.isfile(path) and os.access(path, os.R_OK):
        if path.resolve() in within:               # a list that names itself
            return
        within = (*within, path.resolve())
        for line in read_names(path):
            if line.strip() and not line.startswith('#'):
                yield from expand(line.strip(), all_files, path.parent, within)
    elif kind == '.jsonl' and os.path.isfile(path):
        for row in read_rows(path):
            known = row if isinstance(row, dict) else {}
            texts = [known.get(k) for k in ('key', 'source', 'title', 'url')]
            if not all(isinstance(t, str) for t in texts) or ':' not in texts[0]:
                sys.exit(f'error: {path} is no items.jsonl of prepare.py; '
                         f'an image-caption list is given by --pairs={path}')
            yield row
    else:
        yield path

def read_names(path):
    """The lines of a list of files, whose names may be no text: as os.fsdecode would have them."""
    text = Path(path).read_text(encoding='utf-8-sig', errors='surrogateescape')
    return text.split('\n')

def walk(top, all_files):
    """-> the videos in and below a folder; linked folders too, each once. Tells what is left."""
    found, seen = [], set()
    passed = collections.Counter()
    for folder, below, names in os.walk(
            top, onerror=lambda e: found.append(Path(e.filename)), followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below.sort()                               # the same one of two links each time
        for path in map(Path(folder).joinpath, names):
            kind = path.suffix.lower()
            if kind in EXTENSIONS or all_files and kind not in SIDECARS:
                found.append(path)
            elif kind not in SIDECARS:
                passed[kind or 'without one'] += 1
    if passed:
        kinds = ', '.join(f'{n} {kind}' for kind, n in passed.most_common())
        print(f'{top}: {passed.total()} files passed over by their endings ({kinds}); '
              '--all_files tries them too')
    return sorted(found)

def read_rows(path):
    """The entries of a JSON list [...] or a JSONL file."""
    where = path
    try:
        raw = Path(path).read_text(encoding='utf-8-sig')
        if raw.lstrip()[:1] == '[':
            return json.loads(raw)
        rows = []
        for number, line in enumerate(raw.split('\n'), 1):    # alone: a text may hold U+2028
            where = f'{path}, line {number}'
            if line.strip():
                rows.append(json.loads(line))
        return rows
    except (OSError, ValueError, RecursionError) as e:
        sys.exit(f'error: {where}: {e}')

def find_file(path, language, captions=''):
    """-> what an item has of a file. captions: the folder where its captions are, '': its own."""
    if os.path.isdir(path):
        raise Bad('unreadable', f'{path}: the folder cannot be read')
    if not os.path.isfile(path):
        raise Bad('not_found', f'{path}: no such file')
    size = path.stat().st_size
    if size == 0:
        raise Bad('empty', f'{path}: 0 bytes')
    if not os.access(path, os.R_OK):
        raise Bad('unreadable', f'{path}: permission denied')
    return dict(key=content_key(path), bytes=size, sidecar=sidecar(path, language, captions))

def content_key(path):
    """file:<hash of the size and of the first and last megabyte>: the same for copies."""
    size = os.path.getsize(path)
    with open(path, 'rb') as f:
        digest = hashlib.sha256(str(size).encode() + f.read(1 << 20))
        f.seek(max(0, size - (1 << 20)))
        digest.update(f.read())
    return 'file:' + digest.hexdigest()[:40]

@functools.lru_cache(8)
def listing(folder, changed):
    """-> {name in NFC: path} of all in a folder, the stems of the videos among them."""
    names = {unicodedata.normalize('NFC', path.name): path for path in folder.glob('*')}
    parted = map(os.path.splitext, names)
    return names, {stem for stem, kind in parted if kind.lower() in EXTENSIONS}

def sidecar(path, language, captions=''):
    """The captions beside talk.mp4: talk.vtt, talk.mp4.srt, talk.en-US.json3; never of another
    video, nor of another language. '': none."""
    names, videos = listing(path.parent, path.parent.stat().st_mtime_ns)
    if captions:
        names, _ = listing(Path(captions), os.stat(captions).st_mtime_ns)
    own, kind = os.path.splitext(unicodedata.normalize('NFC', path.name))
    stem = re.sub(r'(?<=.)\.f\d{2,3}(-\w+)?$', '', own)    # talk.f137.mp4: the sound is elsewhere
    if stem in videos:
        stem = own
    of_others = tuple(v + '.' for v in videos - {own} if v.startswith(stem))
    parts = map(re.escape, (stem, own[len(stem):], kind))
    pattern = re.compile('{}(?:{})?(?:{})?'.format(*parts) + CAPTIONS_OF)
    found = []
    for name, beside in names.items():
        match = pattern.fullmatch(name)
        if match and not name.startswith(of_others):
            code = (match[1] or '').lower()
            order = not code, match.start(2), SIDECARS.index(match[2].lower())
            if not code or language == 'any' or speaks(code, language):
                found.append((*order, str(beside)))
    return min(found, default=[''])[-1]

def speaks(code, wanted):
    """Whether a language (ISO 639-2, or a tag) is the wanted one (ISO 639-1)."""
    from yt_dlp.utils import ISO639Utils
    code = (code or 'und').split('-')[0].lower()
    return code in (wanted, ISO639Utils.short2long(wanted), ENGLISH.get(wanted))

# ----------------------------------------------------------------------------------------------
# the network: yt-dlp's Python API, one request at a time; no merging, so no ffmpeg program

class Quiet:
    """yt-dlp's logger: keeps the last thing that it said, for why a video was left out."""
    said = ''

    def debug(self, text):
        if re.search('skipping|does not pass|Aborting', text):
            self.said = text

    def ignore(self, text):
        pass

    info = debug
    warning = error = ignore

def downloader(cfg, **options):
    """A YoutubeDL with everything set: the API's defaults are not those of the command line."""
    import yt_dlp
    h = cfg.max_height
    which = ('!is_live & live_status!=?is_upcoming '
             f'& duration>=?{cfg.min_s} & duration<=?{cfg.max_s} & age_limit<?18')
    if cfg.licence:
        which += f' & license*={cfg.licence!r}'

    def wait(n):
        return min(2 ** n, 60)
    settings = dict(
        # what: one file, else two; in this order HLS comes last
        format=f'b[height<=?{h}][protocol^=http]/(bv[height<=?{h}],wa)/b[height<={2 * h}]/w/ba',
        match_filter=yt_dlp.match_filter_func(which), noplaylist=True, max_filesize=2 << 30,
        # captions
        writesubtitles=cfg.text != 'whisper', writeautomaticsub=cfg.auto_captions,
        subtitleslangs=['all', '-live_chat'] if cfg.language == 'any' else [f'{cfg.language}.*'],
        subtitlesformat='json3/vtt/srt',
        extractor_args=dict(youtube=dict(skip=['translated_subs'])),
        # a line that fails
        retries=5, fragment_retries=5, extractor_retries=2, file_access_retries=3,
        retry_sleep_functions=dict(http=wait, fragment=wait, extractor=wait), socket_timeout=30,
        throttledratelimit=100_000, continuedl=True, ignoreerrors=False,
        # a site that must not be angered
        sleep_interval=cfg.sleep_s, max_sleep_interval=2 * cfg.sleep_s,
        sleep_interval_requests=cfg.sleep_s / 8, sleep_interval_subtitles=cfg.sleep_s / 2,
        # this machine
        js_runtimes=dict(deno={}, node={}), fixup='never', updatetime=False, restrictfilenames=True,
        cachedir=False, noprogress=True, quiet=True, logger=Quiet(), cookiefile=cfg.cookies or None)
    return yt_dlp.YoutubeDL(settings | options)

# yt-dlp's words -> cause; the first that fits. `refused` may stop the run, see process_all
CAUSES = dict(
    refused=r"HTTP Error 4(29|03)|Too Many Requests|try again later|rate.?limit|not a bot",
    private=r'private video|video is private|HTTP Error 401',
    members=r'members.only|join this channel',
    age=r'confirm your age|age.restricted',
    drm=r'\bDRM\b',
    geo=r'your country|your location|geo.?restrict',
    gone=r'removed|terminated|no longer available|HTTP Error 4(04|10)|video unavailable|'
         r'does not exist',
    no_video=r'Unsupported URL|no video|Requested format is not available|No video formats',
    upcoming=r'premieres in|will begin in|is live')
PASSING = 'refused', 'network'                     # causes that may be over the next time

def polite(ask, url):
    """ask(), with yt-dlp's errors as Bad(cause, its own message)."""
    import yt_dlp
    try:
        return ask()
    except (yt_dlp.utils.YoutubeDLError, OSError, ValueError) as e:
        message = re.sub(r'\x1b\[[\d;]*m|^ERROR: ', '', str(e))
        message = message.split('; please report this issue')[0]
    fits = (cause for cause, words in CAUSES.items() if re.search(words, message, re.I))
    raise Bad(next(fits, 'network'), f'{url}: {message}')

def find_online(name, cfg):
    """A URL, playlist, channel or ytsearchN:query -> items; only lists are asked for."""
    from yt_dlp.extractor.youtube import YoutubeIE
    row = dict(source=name, title='', url=name, asked=name)
    if video := YoutubeIE.get_temp_id(name):       # one video, also out of a playlist: no request
        url = 'https://www.youtube.com/watch?v=' + video
        return [row | dict(key='youtube:' + video, source=url, url=url)]
    if Path(name.split('?')[0]).suffix.lower() in EXTENSIONS:
        return [row | dict(key='url:' + name)]

    most = cfg.max_per_input or None
    with downloader(cfg, extract_flat='in_playlist', playlistend=most, match_filter=None) as ydl:
        info = polite(lambda: ydl.extract_info(name, download=False), name)
    items = []
    for e in info.get('entries', [info]):
        url = e.get('webpage_url') or e.get('url') or name
        kind = e.get('ie_key') or e.get('extractor_key') or 'Generic'
        if re.search('Tab|Playlist', kind):        # the tabs of a channel
            items += [i | dict(asked=name) for i in find_online(url, cfg)]
            continue
        key = 'url:' + url.split('#')[0] if kind == 'Generic' else f"{kind.lower()}:{e['id']}"
        items.append(row | dict(key=key, source=url, url=url, title=e.get('title') or '',
                                duration=e.get('duration') or 0))
    return items[:most]

def fetch(item, cfg, folder):
    """Download one video into a folder -> the item with media (one file, or picture and sound),
    sidecar and what else the site says."""
    folder.mkdir(parents=True, exist_ok=True)
    name = str(folder).replace('%', '%%') + '/%(format_id)s.%(ext)s'
    with downloader(cfg, outtmpl=name) as ydl:
        info = polite(lambda: ydl.extract_info(item['url']), item['url'])
        if 'entries' in info:                      # a page with several: the first
            info = next(iter(info['entries']), {})
        media = [d['filepath'] for d in info.get('requested_downloads') or ()]
        if not media:
            why = ydl.params['logger'].said or 'nothing to download'
            raise Bad('filtered', f"{item['url']}: {why}")
    captions = (info.get('requested_subtitles') or {}).items()
    captions = [(tag != info.get('language'), len(tag), c['filepath']) for tag, c in captions
                if os.path.exists(c.get('filepath') or '')]
    said = 'license channel_id upload_date language'.split()
    return item | {k: info[k] for k in said if info.get(k)} | dict(
        media=media, sidecar=min(captions, default=[''])[-1],
        title=info.get('title') or item['title'], bytes=sum(map(os.path.getsize, media)))

def check_javascript():
    """YouTube's player needs a JavaScript runtime; without one most formats are missing."""
    import yt_dlp                                  # noqa: F401  fills supported_js_runtimes
    from yt_dlp.globals import supported_js_runtimes
    for name in 'deno', 'node':
        info = supported_js_runtimes.value[name]().info
        if info and info.supported:
            return print(f'JavaScript for YouTube: {info.name} {info.version}')
    print('warning: no JavaScript runtime, which YouTube needs since 2025; '
          'install one: pip install deno')
