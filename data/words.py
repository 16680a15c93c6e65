"""What is said: captions or Whisper -> segments [(start_s, end_s, text)], in order -> tokens."""
import codecs, functools, hashlib, html, itertools, json, math, os, re, sys
from pathlib import Path

import numpy as np

from data.sources import Bad
from data.tokens import EOT, gpt2_encoding

CLOCK = r'(?:(\d{1,3}):)?(\d{1,2}):(\d{1,2})(?:[.,:;](\d*))?'             # h, m, s, fraction
MARKUP = re.compile(r'</?(?:[bcisuv]|font|lang|rt|ruby|span)(?:[.\s][^<>]*)?/?>', re.I)
UNSEEN = r'\0[^\0]*\0|\{\\[^{}]*\}|[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]'
NOT_SPOKEN = (r'<br\s*/?>|\[[^\]]*\]|\([^)]*\)'    # [Music], (applause)
              r'|[\u2669-\u266f]+[^\u2669-\u266f]*[\u2669-\u266f]+|[\u2669-\u266f]'     # notes
              r'|>>+|https?://\S+')                # speaker marks, links

def clean(text):
    """Spoken words only, white space collapsed."""
    text = re.sub(UNSEEN, '', html.unescape(MARKUP.sub('', text)))
    return ' '.join(re.sub(NOT_SPOKEN, ' ', text).split())

def read_sidecar(path, count):
    """A .vtt, .srt, YouTube's .json3, a .json or .tsv of Whisper -> segments; counts the cues that
    cannot be read."""
    read = READERS.get(os.path.splitext(path)[1].lower(), read_cues)
    try:
        segments = once(read(decode(Path(path).read_bytes(), count), count))
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise Bad('bad_sidecar', f'{path}: {type(e).__name__} {e}') from None
    segments.sort(key=lambda segment: segment[0])
    if not segments:
        raise Bad('no_text', f'{path}: no captions in it')

    # none lasts into the next
    ends = [a for a, _, _ in segments[1:]] + [math.inf]
    return [(a, max(a, min(b, end)), text) for (a, b, text), end in zip(segments, ends)]

codecs.register_error('windows', lambda e: (e.object[e.start:e.end].decode('cp1252'), e.end))

def decode(raw, count):
    """By the mark, else UTF-8; bytes that are not, which is counted, as Windows-1252."""
    encoding = {b'\xff\xfe': 'utf-16', b'\xfe\xff': 'utf-16'}.get(raw[:2], 'utf-8-sig')
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        count['sidecar_not_utf8'] += 1
    text = raw.decode(encoding, 'windows')
    if len(re.findall('[À-ÿ]', text)) > len(re.findall('[A-Za-z]', text)):
        raise ValueError('not UTF-8, and another alphabet: save it as UTF-8')
    return text

def read_json3(raw, count):
    """-> cues (begin_s, end_s, text). Between NULs in the text: when the word after it begins."""
    cues = []
    for event in json.loads(raw)['events']:
        text = ''
        for word in event.get('segs') or () if isinstance(event, dict) else [event]:
            try:
                if event.get('aAppend'):           # the line break that rolls
                    break
                begin = round(event['tStartMs'])
                end = begin + round(event.get('dDurationMs') or 0)
                at = begin + round(word.get('tOffsetMs') or 0)
                text += f'\0{at / 1000}\0' + word.get('utf8', '')
            except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
                count['cues_unread'] += 1
        if text:
            cues.append((begin / 1000, end / 1000, text))
    return cues

def read_json(raw, count):
    """What openai-whisper, faster-whisper, whisperX write, or HowTo100M's lists of start, end and
    text -> such cues."""
    told = json.loads(raw)
    if isinstance(told, dict) and 'segments' not in told:
        told = [dict(start=a, end=b, text=text)
                for a, b, text in zip(told['start'], told['end'], told['text'], strict=True)]
    cues = []
    for segment in told['segments'] if isinstance(told, dict) else told:
        try:
            begin, end, text = float(segment['start']), float(segment['end']), segment['text']
            if not -1 < begin < end + 1 < 1e6:
                raise ValueError
            text = clean(text)                     # of what is no speech as a whole
            cues.append((max(0, begin), end, with_times(text, segment.get('words') or [])))
        except (AttributeError, KeyError, TypeError, ValueError):
            count['cues_unread'] += 1
    return cues

def with_times(text, words):
    """A segment's text, before each of its words when it begins, where that is known."""
    timed, at = '', 0
    for word in words:
        said = (word.get('word') or word.get('text') or '').strip()
        begin = float(word.get('start') or 'nan')
        found = text.find(said, at)
        if said and found >= at:
            mark = f'\0{begin}\0' if math.isfinite(begin) else ''
            timed += text[at:found] + mark + said
            at = found + len(said)
    return timed + text[at:]

def read_tsv(raw, count):
    """Whisper's .tsv: start, end (ms), text -> such cues."""
    cues = []
    lines = raw.replace('\r', '').split('\n')
    for line in lines[lines[0].startswith('start'):]:
        if not line.strip():
            continue
        try:
            begin, end, text = line.split('\t', 2)
            cues.append((int(begin) / 1000, int(end) / 1000, text))
        except ValueError:
            count['cues_unread'] += 1
    return cues

SHOWN = re.compile(rf'(?<![-\w.,:;]){CLOCK}\s*-->\s*{CLOCK}(?![.,:;]?\w)')
NOT_A_CUE = re.compile(r'(?:WEBVTT|NOTE|STYLE|REGION)\b')

def read_cues(raw, count):
    """.vtt or .srt -> such cues: a line with an arrow begins one, its text goes up to the next."""
    lines = re.split(r'\r*\n|\r', re.sub(UNSEEN, '', raw).strip())
    vtt = lines[0].startswith('WEBVTT')
    cues = []
    text = ['']                                    # of a cue: its line with the arrow, then these
    block = False
    for line in map(str.strip, lines):
        if vtt and text[-1] == '' and NOT_A_CUE.match(line):
            block = True                           # up to an empty line or a cue
        elif '-->' in line:
            # the line before may be the cue's name: a number, in .vtt after a gap anything
            if text[-3:-2] == [''] == text[-1:] and text[-2].isdecimal():
                del text[-2:]
            elif text[-1].isdecimal() or vtt and text[-2:-1] == ['']:
                text.pop()
            block = False
            text = [line]
            if clocks := SHOWN.search(line):
                clocks = clocks.groups()
                cues.append((seconds(*clocks[:4]), seconds(*clocks[4:]), text))
            else:
                count['cues_unread'] += 1
        else:
            block = block and line != ''
            if not block:
                # <00:00:01.500><c> word</c>: words with their own times
                at = re.sub(f'<{CLOCK}>', lambda m: f'\0{seconds(*m.groups())}\0', line)
                text.append(at)
    return [(a, b, '\n'.join(text[1:])) for a, b, text in cues]

READERS = {'.json3': read_json3, '.json': read_json, '.tsv': read_tsv}

def seconds(h, m, s, fraction):
    return 3600 * int(h or 0) + 60 * int(m) + int(s) + float(f'0.{fraction or 0}')

def once(cues):
    """Cues -> segments. Where captions roll, each shows again lines of the one before."""
    before, again = [], []
    spoken = rolls = 0
    for begin, end, text in cues:
        lines = [line + ' ' for line in map(clean, text.split('\n')) if line]
        while not ''.join(lines).startswith(''.join(before)):
            before = before[1:]
        again.append(len(''.join(before).split()))
        spoken += bool(lines)
        if before and (before != lines or 0 < end - begin < .05):      # else it was said twice
            rolls += 1
        before = lines[-9:]

    segments = []
    for (begin, end, text), old in zip(cues, again):
        if 2 * rolls < spoken:
            old = 0
        # a time within a word is none
        parts = re.split(r'\0(?:(?<!\S\0)|(?=[^\0]*\0\s))([^\0]*)\0', MARKUP.sub('', text))
        times = [begin, *map(float, parts[1::2]), end]
        for a, b, part in zip(times, times[1:], parts[::2]):
            words = clean(part).split()
            if words[old:]:
                segments.append((a, b, ' '.join(words[old:])))
            old = max(0, old - len(words))
    return segments

# ----------------------------------------------------------------------------------------------
# Whisper, on batches of chunks of one video

RATE = 16000                     # Hz; what Whisper hears
STEP = 320                       # samples: 20 ms

def sound(video, count):
    """Yield int16 samples. A lost packet is silence, which keeps the times right."""
    import av
    form = None
    total = 0
    for t, frame in video.frames(video.audio):
        now = frame.format.name, frame.layout.name, frame.sample_rate
        if now != form:
            count['sound_changes'] += form is not None
            form = now
            resampler = av.AudioResampler('s16', 'mono', RATE)
        parts = [part.to_ndarray()[0] for part in resampler.resample(frame)]
        gap = 0 if t is None else round(t * RATE) - total
        if gap > RATE // 10:
            total += gap
            for n in range(gap, 0, -60 * RATE):    # in pieces: memory stays flat
                yield np.zeros(min(n, 60 * RATE), np.int16)
        for part in parts:
            total += len(part)
            yield part

def speech_chunks(video, count):
    """Yield (start_s, float32 samples of at most 30 s), cut at quiet points, without silence."""
    pieces = sound(video, count)
    rest = np.zeros(0, np.int16)
    begin = 0                                      # position of rest[0]
    last = False
    while not last:

        # ten minutes at a time: memory stays flat
        parts = [rest]
        room = 600 * RATE
        for piece in pieces:
            parts.append(piece)
            room -= len(piece)
            if room < 0:
                break
        last = room >= 0
        audio = np.concatenate(parts)
        level, speech = loudness(audio)
        n = len(level)
        at = 0                                     # in steps
        while len(ahead := speech[speech >= at]):
            at = max(at, ahead[0] - 10)
            if not last and at + 1500 > n:
                break                              # goes on in the next block

            # the last quiet point 22 to 27 s on: a chunk costs the same whatever its length, but
            # of a full 30 s Whisper leaves out the end, and word errors double
            end = n
            if at + 1350 < n:
                near = level[at + 1100:at + 1350]
                end = at + 1100 + int(np.flatnonzero(near <= near.min() + 3)[-1])
            if (ahead < end).sum() >= 10:          # 0.2 s of sound at least
                samples = audio[at * STEP:end * STEP].astype(np.float32)
                yield (begin + at * STEP) / RATE, samples / 32768
            at = end
        keep = min(at, n) if len(ahead) else max(at, n - 50)
        rest = audio[keep * STEP:]
        begin += keep * STEP

def loudness(audio):
    """int16 samples -> dB of full scale of each step, and which steps are loud for this sound."""
    steps = audio[:len(audio) // STEP * STEP].reshape(-1, STEP).astype(np.float32)
    level = 20 * np.log10(np.sqrt((steps ** 2).mean(1)) / 32768 + 1e-5)
    floor = np.percentile(level, 10) if len(level) else 0

    # however quiet: Whisper hears 30 s as loud as their loudest are
    parts = [level[i:i + 1500] for i in range(0, len(level), 1500)]
    least = np.clip([np.percentile(part, 95) - 20 for part in parts], -85, -50)
    limit = np.clip(floor + 6, np.repeat(least, 1500)[:len(level)], -35)
    return level, np.flatnonzero(level > limit)

@functools.cache
def load_whisper(name, device):
    """A Whisper model by name (downloaded once) or by the path of a .pt, else the remedies."""
    import torch
    import whisper
    if device == 'auto':
        gpu = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        device = gpu if torch.cuda.is_available() else 'cpu'
    if name == 'auto':
        name = 'turbo' if device.startswith('cuda') else 'base.en'
    try:
        return whisper.load_model(name, device=device).eval()
    except Exception as e:                         # no network, no such name, a broken file
        why = str(e).splitlines()[0][:200]
        sys.exit(f'error: Whisper weights {name!r} cannot be loaded ({type(e).__name__}: {why}). '
                 'Give the path of downloaded ones (--whisper_model=path/base.en.pt), '
                 'or put captions beside the videos (talk.mp4 + talk.vtt)')

def transcribe(video, key, cfg, count):
    """-> segments, the same every time; no context is carried from chunk to chunk."""
    import torch
    import whisper
    model = load_whisper(cfg.whisper_model, cfg.device)
    many = model.is_multilingual
    wanted = cfg.language if many and cfg.language != 'any' else None
    options = dict(language=wanted if many else 'en', fp16=model.device.type == 'cuda')
    tokenizer = whisper.tokenizer.get_tokenizer(
        many, num_languages=model.num_languages, language=wanted or 'en')
    segments, votes = [], []
    chunks = speech_chunks(video, count)
    while batch := list(itertools.islice(chunks, cfg.whisper_batch)):
        mel = torch.stack([whisper.log_mel_spectrogram(
            whisper.pad_or_trim(audio), model.dims.n_mels, device=model.device)
            for _, audio in batch])
        with torch.no_grad():
            heard = model.encoder(mel.half() if options['fp16'] else mel)
        if wanted:
            votes += [p.get(wanted, 0.) for p in model.detect_language(heard)[1]]
            if len(votes) >= 5 and np.mean(votes) < .2:
                break
        results = model.decode(heard, **options)

        # where greedy decoding fails, sample, seeded by the first chunk that failed
        for temperature in .4, .8:
            failed = [i for i, r in enumerate(results) if r.compression_ratio > 2.4
                      or r.avg_logprob < -1 and r.no_speech_prob < .6]
            if not failed:
                break
            count['chunks_again'] += len(failed)
            seed = f'{key} {len(segments)} {batch[failed[0]][0]} {temperature}'
            torch.manual_seed(int(hashlib.sha256(seed.encode()).hexdigest()[:15], 16))
            again = model.decode(heard[failed], **options, temperature=temperature)
            for i, result in zip(failed, again):
                results[i] = result

        for (start, audio), result in zip(batch, results):
            count['chunks'] += 1
            if cause := hallucinated(result, len(audio) / RATE):
                count['chunks_' + cause] += 1
            else:
                segments += timed(result.tokens, tokenizer, start, len(audio) / RATE)
    if votes and np.mean(votes) < .8:
        raise Bad('language', f'{video.path}: p({wanted}) = {np.mean(votes):.2f}')
    return segments

STOCK = ('thank you', 'thanks for watching', 'thank you for watching', 'please subscribe',
         'subtitles by the amara org community', 'you', 'bye')

def hallucinated(result, length):
    """Why the text of a chunk of `length` seconds is not speech, or ''."""
    words = result.text.lower().split()
    fours = list(zip(words, words[1:], words[2:], words[3:]))
    loops = any(fours.count(four) > 4 for four in set(fours))
    stutters = any(a == b and len(set(a)) == 1 for a, b in zip(fours, fours[1:]))
    if result.no_speech_prob > .6 and result.avg_logprob < -.5:
        return 'silent'
    if result.compression_ratio > 2.4 or loops or stutters:
        return 'loop'
    if result.avg_logprob < -1:
        return 'unsure'
    rate = len(result.text) / length
    if not words or rate > 25 or rate < 1 / 8 and result.no_speech_prob > .3:
        return 'rate'
    if result.no_speech_prob > .2 and re.sub(r'\W+', ' ', ' '.join(words)).strip() in STOCK:
        return 'stock_phrase'
    return ''

def timed(tokens, tokenizer, start, length):
    """Whisper's tokens of one chunk -> segments, cut at its timestamp tokens of 20 ms."""
    zero = tokenizer.timestamp_begin
    segments, words = [], []
    begin = 0.0
    for token in [*tokens, zero + round(length / .02)]:
        if token < tokenizer.eot:
            words.append(token)
        elif token >= zero:
            t = min((token - zero) * .02, length)
            if text := clean(tokenizer.decode(words)):
                segments.append((start + begin, start + max(t, begin), text))
            begin = t
            words = []
    return segments

def tokenise(segments, duration_ms):
    """-> tokens uint16, times uint32 (ms): each token at its share, by bytes, of its segment;
    <|endoftext|> at the duration closes them."""
    encoding = gpt2_encoding()
    tokens, times = [], []
    for a, b, text in segments:
        ids = encoding.encode_ordinary(' ' + text)  # the space: a word is the same tokens anywhere
        ends = np.cumsum([len(encoding.decode_single_token_bytes(i)) for i in ids])
        times += list(1000 * (a + (b - a) * np.concatenate([[0], ends[:-1]]) / ends[-1]))
        tokens += ids
    times = np.maximum.accumulate([*times, 0.])
    times = np.clip(times, 0, duration_ms).astype(np.uint32)
    times[-1] = duration_ms
    return np.array(tokens + [EOT], np.uint16), times
