"""pytest tests/test_video.py -q      pictures, times and sound of files as people have them, built
here with PyAV; real Whisper where NANOVLP_WHISPER names weights"""

import collections, os
from fractions import Fraction
from pathlib import Path
import av
import numpy as np
import pytest
from PIL import Image
import prepare
from data.report import estimate
from data.shards import read_shard, shard_path
from data.video import Decoder, key_frames, reach, speaks
from data.words import loudness, sound, transcribe
from test_prepare import DATA, WHISPER, scene_picture, settings, word_errors

SIZE = 96, 64
CLOSED = dict(preset='ultrafast', crf='10', sc_threshold='0')


def tone(hz, seconds, rate=16000, layout='mono', codec='aac', language='', default=False):
    """A sound track: silence, and in each even second a tone."""
    t = np.arange(round(seconds * rate)) / rate
    wave = 8000 * np.sin(2 * np.pi * hz * t) * (t % 2 < 1)
    return dict(
        wave=wave, rate=rate, layout=layout, codec=codec, language=language, default=default
    )


def film(path, kinds, seconds=4, fps=5, sounds=(), codec='libx264', start=0, **how):
    """Scenes of so many seconds, each with a key frame at its start, and sound tracks, interleaved;
    the clock starts at `start`. how: options, aspect, format, keep (which packets), container."""
    packets = []
    with av.open(str(path), 'w', how.get('format'), options=how.get('container', {})) as out:
        stream = out.add_stream(codec, rate=fps, options=how.get('options', CLOSED))
        stream.width, stream.height, stream.pix_fmt = *how.get('size', SIZE), 'yuv420p'
        stream.codec_context.gop_size = 10_000
        if how.get('aspect'):
            stream.codec_context.sample_aspect_ratio = how['aspect']
        tracks = [(out.add_stream(s['codec'], s['rate'], layout=s['layout']), s) for s in sounds]
        for track, s in tracks:
            track.metadata['language'] = s['language']
            track.disposition = av.stream.Disposition.default if s['default'] else 0
        for i in range(len(kinds) * seconds * fps):
            kind = kinds[i // (seconds * fps)]
            picture = kind if isinstance(kind, np.ndarray) else scene_picture(kind, SIZE)
            frame = av.VideoFrame.from_ndarray(picture, 'rgb24')
            frame.pts, frame.time_base = i, Fraction(1, fps)
            frame.pict_type = int('options' not in how and i % (seconds * fps) == 0)
            packets += stream.encode(frame)
        packets += stream.encode()
        for track, s in tracks:
            for i in range(0, len(s['wave']) - 1024, 1024):
                wave = np.stack([s['wave'][i : i + 1024]] * track.layout.nb_channels, 1)
                frame = av.AudioFrame.from_ndarray(
                    wave.astype(np.int16).reshape(1, -1), 's16', s['layout']
                )
                frame.sample_rate, frame.pts = s['rate'], i
                packets += track.encode(frame)
            packets += track.encode()
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            packet.pts += round(start / packet.time_base)
            packet.dts += round(start / packet.time_base)
            if how.get('keep', lambda packet: True)(packet):
                out.mux(packet)
    return path


def look(path, **more):
    """-> [(second, number of the scene or None where none is seen)], counts, the decoder"""
    count, video = collections.Counter(), Decoder(path)
    kept = list(key_frames(video, settings(**more), count))
    return [(round(t / 1000, 1), kind_of(p)) for t, _, _, p in kept], dict(count), video


def kind_of(picture):
    if picture is None:
        return None
    far = [np.abs(picture - square(scene_picture(k, SIZE)).astype(int)).mean() for k in range(12)]
    assert min(far) < 12, far
    return int(np.argmin(far))


def square(picture):
    middle = Image.fromarray(picture[:, 16:80])
    return np.asarray(middle.resize((32, 32), Image.Resampling.BOX))


def made(path, root, **more):
    """The row and the shard of a video, its words every two seconds up to `words` seconds."""
    words = more.pop('words', 0)
    cues = [f'00:00:{s:02}.000 --> 00:00:{s + 1:02}.000\nword {s}\n' for s in range(0, words, 2)]
    (root / 'words.vtt').write_text('\n'.join(['WEBVTT\n', *cues]))
    media = dict(media=more.pop('media')) if 'media' in more else {}
    cfg = settings(root=root / 'set', text='sidecar', **more)
    item = dict(key='k', source=str(path), url='', sidecar=str(root / 'words.vtt')) | media
    row = prepare.process(item, cfg)
    ok = row['status'] == 'ok'
    return row, read_shard(shard_path(cfg.root / 'shards', 'k'))[0] if ok else None


def scenes_at(seconds, *kinds):
    return [(seconds * i, kind) for i, kind in enumerate(kinds)]


# --- pictures -------------------------------------------------------------------------------------

X264_OPEN = {'preset': 'veryfast', 'x264-params': 'open-gop=1:keyint=60:min-keyint=60:scenecut=0'}
X265 = {'preset': 'ultrafast', 'x265-params': 'keyint=130:min-keyint=130:scenecut=0:log-level=none'}


@pytest.mark.parametrize(
    'name, codec, options, seconds, fps',
    [
        ('a.mp4', 'libx264', X264_OPEN, 6, 10),
        ('a.mkv', 'libx265', X265, 13, 10),
        ('a.ts', 'libx264', X264_OPEN, 6, 10),
    ],
)
def test_key_frames_of_open_gops_are_in_order(tmp_path, name, codec, options, seconds, fps):
    path = film(tmp_path / name, [5, 1, 4, 2, 3], seconds, fps, codec=codec, options=options)
    seen, count, _ = look(path)
    assert [k for _, k in seen] == [5, 1, 4, 2, 3], seen
    assert all(abs(t - seconds * i) < 0.3 for i, (t, _) in enumerate(seen)), seen


def test_a_recording_that_begins_between_two_key_frames(tmp_path):
    began = []  # without the first key frame

    def keep(packet):
        began.append(1)
        return len(began) > 25

    path = film(tmp_path / 'a.ts', [1, 2, 3], 6, 10, options=X264_OPEN, keep=keep)
    seen, count, _ = look(path)
    assert [k for _, k in seen] == [2, 3] and count['seconds_unseen'] == 3, (seen, count)


def test_a_key_frame_that_is_damaged_ends_the_picture_before_it(tmp_path):
    path = film(tmp_path / 'a.mp4', [1, 2, 3, 4])
    with av.open(str(path)) as read:
        key = [p for p in read.demux(video=0) if p.is_keyframe][1]
        at, size = key.pos, key.size
    raw = bytearray(path.read_bytes())
    raw[at + 8 : at + size] = bytes(size - 8)
    path.write_bytes(raw)
    seen, count, _ = look(path)
    assert seen == [(0, 1), (4, None), (8, 3), (12, 4)] and count['seconds_unseen'] == 4, count
    row, shard = made(path, tmp_path, words=16)
    assert shard['frames'][:, :2].tolist() == [[0, 4000], [8000, 12000], [12000, 16000]]


def test_pictures_that_refresh_bit_by_bit_are_seen(tmp_path):
    refresh = {
        'preset': 'veryfast',
        'x264-params': 'intra-refresh=1:keyint=30:scenecut=0:bframes=0',
    }
    path = film(tmp_path / 'a.ts', [1, 2, 3], 8, options=refresh)
    seen, count, _ = look(path)
    assert [k for _, k in seen] == [1, 2, 3], (seen, count)


@pytest.mark.parametrize('cut', [1.0, 2.6, 5.2])
def test_trimmed_without_encoding(tmp_path, cut):
    """The key frame that the beginning needs lies before it, hidden by an edit list."""
    source = film(tmp_path / 'whole.mp4', [1, 2, 3, 4])
    path = tmp_path / 'a.mp4'
    with (
        av.open(str(source)) as read,
        av.open(str(path), 'w', options=dict(avoid_negative_ts='disabled')) as write,
    ):
        stream = write.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(read.streams.video[0]):
            if packet.dts is not None:
                packet.pts -= round(cut / packet.time_base)
                packet.dts -= round(cut / packet.time_base)
                if packet.is_keyframe:
                    keyed = packet.pts * packet.time_base > -4
                if keyed:
                    packet.stream = stream
                    write.mux(packet)
    seen, count, video = look(path)
    first = int(cut // 4)
    want = [(max(0, round(4 * i - cut, 1)), i + 1) for i in range(first, 4)]
    assert len(seen) == len(want) and not count['seconds_unseen'], (seen, count)
    for (t, kind), (at, which) in zip(seen, want):
        assert kind == which and abs(t - at) < 0.21, (seen, want)


MATRICES = [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1)]
MATRICES += [(0, 1, 1, 0), (0, -1, 1, 0), (0, 1, -1, 0), (0, -1, -1, 0)]


def test_mirrored_and_turned_as_players_show_it(tmp_path):
    path = film(tmp_path / 'a.mp4', [7], size=(64, 64))
    raw = bytearray(path.read_bytes())
    at = raw.index(b'tkhd') + 4 + 40
    plain = next(iter(Decoder(path).key_frames()))[1].to_ndarray(format='rgb24').astype(int)
    for a, b, c, d in MATRICES:
        entries = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
        raw[at : at + 36] = b''.join(v.to_bytes(4, 'big', signed=True) for v in entries)
        path.write_bytes(raw)
        y, x = np.mgrid[:64, :64]
        to = np.stack([b * x + d * y, a * x + c * y]) % 64  # where the matrix moves a pixel
        mirrored = np.array([b + d, a + c]) < 0
        to = (to - mirrored[:, None, None]) % 64
        want = np.empty_like(plain)
        want[*to] = plain
        ((_, _, _, picture),) = key_frames(
            Decoder(path), settings(image_size=64), collections.Counter()
        )
        assert np.abs(picture - want).mean() < 2, (a, b, c, d)


def test_the_shape_of_a_pixel_may_change(tmp_path):
    half = scene_picture(1, SIZE)[:, ::2].copy(), scene_picture(2, SIZE)[:, ::2].copy()
    wide = film(tmp_path / 'w.ts', half[:1], size=(48, 64), aspect=Fraction(2, 1))
    plain = film(tmp_path / 'p.ts', half[1:], size=(48, 64), aspect=Fraction(1, 1), start=4)
    path = tmp_path / 'a.ts'
    path.write_bytes(wide.read_bytes() + plain.read_bytes())
    count = collections.Counter()
    first, second = key_frames(Decoder(path), settings(), count)
    want = Image.fromarray(half[1][8:56]).resize((32, 32), Image.Resampling.BOX)
    assert kind_of(first[3]) == 1 and np.abs(second[3] - np.asarray(want).astype(int)).mean() < 12


def test_no_decoder(tmp_path, capsys):
    path = film(tmp_path / 'a.mp4', [1, 2], sounds=[tone(500, 8)])
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'avc1', b'q7zx'))
    row, _ = made(path, tmp_path, words=8)
    assert row['cause'] == 'no_codec' and 'q7zx' in row['message'] and 'a.mp4' in row['message']
    estimate([dict(source=str(path), url='')], settings())
    assert 'cannot be read (no_codec)' in capsys.readouterr().out
    path = film(tmp_path / 'a.mkv', [1, 2], sounds=[tone(500, 8)])  # such sound is no loss
    path.write_bytes(path.read_bytes().replace(b'A_AAC', b'A_QQQ'))
    row, shard = made(path, tmp_path, words=8)
    assert row['status'] == 'ok' and row['n_frames'] == 2 and Decoder(path).audio is None


# --- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'name, scenes, ends', [('a.mp4', [1], 18), ('b.mkv', [1, 2], 30), ('c.webm', [3], 9)]
)
def test_the_last_picture_stands_until_the_sound_ends(tmp_path, name, scenes, ends):
    codecs = dict(codec='libvpx', options={}) if name == 'c.webm' else {}
    voice = tone(400, ends, 48000 if codecs else 16000, codec='libopus' if codecs else 'aac')
    path = film(tmp_path / name, scenes, sounds=[voice], **codecs)
    row, shard = made(path, tmp_path, words=ends)
    frames = shard['frames']
    assert len(frames) == len(scenes) and row['flags'] & prepare.VIDEO_TRUNCATED == 0
    assert abs(frames[-1, 1] / 1000 - ends) < 0.3 and abs(row['duration'] - ends) < 0.3
    assert (
        b'word %d' % (ends - 2 + ends % 2) in decoded(shard) and 'words_late' not in row['counts']
    )


def decoded(shard):
    from data.tokens import gpt2_encoding

    return gpt2_encoding().decode_bytes(shard['tokens'][:-1].tolist())


def test_sound_in_a_file_of_its_own_outlasts_the_picture(tmp_path):
    picture = film(tmp_path / 'a.mp4', [1, 2])
    both = film(tmp_path / 'b.mp4', [1], sounds=[tone(400, 14)])
    row, shard = made(picture, tmp_path, words=30, media=[str(picture), str(both)])
    assert abs(row['duration'] - 14) < 0.3 and row['counts']['words_late'] == 8, row
    assert b'word 12' in decoded(shard) and b'word 14' not in decoded(shard)


def test_a_file_that_is_cut_off_is_still_told(tmp_path):
    sounds = [tone(400, 40)]
    whole = film(
        tmp_path / 'w.mp4', list(range(10)), sounds=sounds, container=dict(movflags='faststart')
    ).read_bytes()
    for share, cause, flag in (
        (1, '', 0),
        (0.7, '', prepare.VIDEO_TRUNCATED),
        (0.3, 'truncated', 0),
    ):
        path = tmp_path / f'{share}.mp4'
        media = whole.index(b'mdat')
        path.write_bytes(whole[: media + int((len(whole) - media) * share)])
        row, _ = made(path, tmp_path, words=40)
        assert row['cause'] == cause and row.get('flags', 0) == flag, row


def onsets(path, **more):
    """Seconds at which a tone begins."""
    pieces = list(sound(Decoder(path, **more), collections.Counter()))
    heard = np.abs(np.concatenate(pieces).astype(int))
    loud = heard[: len(heard) // 800 * 800].reshape(-1, 800).max(1) > 2000  # of 50 ms
    return np.flatnonzero(loud[1:] & ~loud[:-1]) / 20 + 0.05


@pytest.mark.parametrize('start', [0, 19_800, 95_000])
def test_a_clock_that_restarts_or_jumps_goes_on(tmp_path, start):
    """A transport stream of two parts, the second an hour or a day on, or back at the beginning."""
    path = tmp_path / 'a.ts'
    with open(path, 'wb') as joined:
        for n, at in enumerate((0, start)):
            kinds = [4 * n + k for k in range(4)]
            part = film(tmp_path / f'{n}.ts', kinds, sounds=[tone(700, 16)], start=at)
            joined.write(part.read_bytes())
    seen, count, video = look(path, max_gap_s=1.5)
    assert [k for _, k in seen] == list(range(8)) and count['clock_steps'] == 1, (seen, count)
    assert count['frames_duplicate'] == 16, 'sought in the right part'
    assert all(abs(t - 4 * n) < 0.4 for n, (t, _) in enumerate(seen)), seen
    assert abs(reach([video])[0] - 32) < 0.7 and not reach([video])[1]

    # the sound is on the same clock: a tone begins with each picture
    heard = onsets(path)
    assert all(min(abs(heard - t)) < 0.3 for t, _ in seen) and len(heard) == 16, (heard, seen)
    pieces = [len(piece) for piece in sound(Decoder(path), collections.Counter())]
    assert sum(pieces) < 33 * 16000 and max(pieces) <= 60 * 16000


# --- sound ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'language, pitch', [('en', 900), ('de', 600), ('any', 600), ('fr', 600), ('pt', 1200)]
)
def test_which_sound_is_heard(tmp_path, language, pitch):
    sounds = [
        tone(300, 4, 48000, language='eng', codec='libopus'),  # nobody can decode it
        tone(1200, 4, language='por'),
        tone(600, 4, language='ger', default=True),
        tone(900, 4, language='eng'),
    ]
    path = film(tmp_path / 'a.mkv', [1], sounds=sounds)
    path.write_bytes(path.read_bytes().replace(b'A_OPUS', b'A_OQUS'))
    samples = np.concatenate(list(sound(Decoder(path, language), collections.Counter())))
    assert abs(np.argmax(np.abs(np.fft.rfft(samples[:16000]))) - pitch) < 20


def test_a_language_has_many_codes():
    for code, wanted in (
        ('eng', 'en'),
        ('ger', 'de'),
        ('deu', 'de'),
        ('fre', 'fr'),
        ('en-US', 'en'),
    ):
        assert speaks(code, wanted)
    for code, wanted in (('est', 'es'), ('und', 'en'), (None, 'en'), ('eng', 'any')):
        assert not speaks(code, wanted)


@pytest.mark.parametrize(
    'first, then', [((44100, 'stereo'), (22050, 'mono')), ((16000, 'mono'), (48000, 'stereo'))]
)
def test_sound_that_changes_its_form(tmp_path, first, then):
    path = tmp_path / 'a.ts'
    with open(path, 'wb') as joined:
        for n, (rate, layout) in enumerate((first, then)):
            voice = tone(500 + 500 * n, 8, rate, layout)
            part = film(tmp_path / f'{n}.ts', [n + 1, n + 3], sounds=[voice], start=8 * n)
            joined.write(part.read_bytes())
    count = collections.Counter()
    samples = np.concatenate(list(sound(Decoder(path), count)))
    assert count == dict(sound_changes=1) and abs(len(samples) / 16000 - 16) < 0.3
    for second, pitch in ((2, 500), (12, 1000)):
        piece = samples[16000 * second + 4000 : 16000 * second + 12000]
        assert abs(2 * np.argmax(np.abs(np.fft.rfft(piece))) - pitch) < 20
    row, _ = made(path, tmp_path, words=16)
    assert row['status'] == 'ok'


def babble(seconds, decibels):
    """Noise that comes and goes like syllables, so loud on average; int16."""
    rng = np.random.default_rng(1)
    t = np.arange(16000 * seconds) / 16000
    wave = rng.normal(size=len(t)) * np.clip(np.sin(2 * np.pi * 3 * t) + 0.3, 0, None)
    return np.round(wave / wave.std() * 10 ** (decibels / 20) * 32768).astype(np.int16)


@pytest.mark.parametrize('decibels', [-20, -50, -60, -66])
def test_quiet_speech_is_speech(decibels):
    quiet = babble(8, decibels)
    silence = np.zeros(16000 * 30, np.int16)
    loud = babble(8, -20)
    level, speech = loudness(np.concatenate([loud, silence, silence, quiet]))
    steps = speech * 320 / 16000
    assert (steps > 68).mean() > 0.35 and not ((steps > 9) & (steps < 67)).any()


def test_faint_noise_between_loud_words_is_none():
    noise = np.random.default_rng(0).normal(size=16000 * 30) * 10
    wave = np.concatenate([babble(6, -20), np.zeros(16000 * 18), babble(6, -20)]) + noise
    steps = loudness(wave.astype(np.int16))[1] * 320 / 16000
    assert not ((steps > 6.1) & (steps < 23.9)).any() and (steps < 6).any()


@pytest.mark.skipif(
    not (os.path.exists(WHISPER) and os.path.isdir(DATA)),
    reason='NANOVLP_WHISPER and NANOVLP_DATA name no weights and videos',
)
@pytest.mark.slow
def test_quiet_words_are_heard_like_loud_ones(tmp_path):
    """The same speech at its own level and at -66 dB of full scale, in a file without loss."""
    source = Decoder(Path(DATA) / 'stamps_en' / 'stamps_en_0001.mp4')
    wave = np.concatenate(list(sound(source, collections.Counter()))).astype(float)
    cfg = settings(whisper_model=WHISPER, device='cpu')
    heard = []
    for level in wave.std(), 10 ** (-66 / 20) * 32768:
        path = tmp_path / f'{len(heard)}.wav'
        with av.open(str(path), 'w') as out:
            track = out.add_stream('pcm_s16le', 16000, layout='mono')
            samples = np.round(wave * level / wave.std()).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples[None], 's16', 'mono')
            frame.sample_rate = 16000
            out.mux(track.encode(frame))
        segments = transcribe(Decoder(path), 'key', cfg, collections.Counter())
        heard.append(' '.join(text for _, _, text in segments).split())
    assert len(heard[0]) > 5 and word_errors(heard[1], heard[0]) <= 0.2 * len(heard[0]), heard
