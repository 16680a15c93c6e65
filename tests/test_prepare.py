"""pytest tests/test_prepare.py -q      real files, built here with PyAV; real Whisper where
NANOVLP_WHISPER names weights"""

import collections, contextlib, hashlib, json, os, shutil, signal, subprocess, sys, time, types
from fractions import Fraction
from pathlib import Path
import av
import numpy as np
import pytest
from PIL import Image
import configurator
import prepare
from data.check import problems
from data import sources
from data.packs import find_packs, pair_of, samples
from data.splits import marks, split_of
from data.tokens import gpt2_encoding
from data.video import Decoder, FRAME_SEEKED, key_frames
from data.words import hallucinated, read_sidecar, tokenise
from conftest import ROOT, script, start, wait_for


def make_video(
    path, scenes, seconds=4, size=(96, 64), fps=4, gop=10_000, sound=False, words=True, seed=0
):
    """An mp4 whose scenes are seeded pictures, each `seconds` long and a key frame at its start;
    with a .vtt beside it if `words`."""
    with av.open(str(path), 'w', format='mp4') as container:
        stream = container.add_stream(
            'libx264', rate=fps, options=dict(crf='10', preset='ultrafast', **{'sc_threshold': '0'})
        )
        stream.width, stream.height, stream.pix_fmt = *size, 'yuv444p'
        stream.codec_context.gop_size = gop
        audio = container.add_stream('aac', rate=16000, layout='mono') if sound else None
        for n, kind in enumerate(scenes):
            frame = av.VideoFrame.from_ndarray(scene_picture(kind, size, seed), 'rgb24')
            for i in range(seconds * fps):
                frame.pts, frame.time_base, frame.pict_type = (
                    (n * seconds * fps + i),
                    Fraction(1, fps),
                    1 if i == 0 else 0,
                )
                container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            wave = (np.sin(np.arange(16000 * seconds * len(scenes)) / 20) * 3000).astype(np.int16)[
                None
            ]
            for i in range(0, wave.shape[1], 1024):
                piece = av.AudioFrame.from_ndarray(wave[:, i : i + 1024], 's16', 'mono')
                piece.sample_rate, piece.pts = 16000, i
                container.mux(audio.encode(piece))
            container.mux(audio.encode())
    if words:

        def clock(s):
            return f'00:{s // 60:02d}:{s % 60:02d}.000'

        path.with_suffix('.vtt').write_text(
            'WEBVTT\n\n'
            + ''.join(
                f'{clock(n * seconds)} --> {clock((n + 1) * seconds)}\nhere is number {kind} of '
                'this video\n\n'
                for n, kind in enumerate(scenes)
            )
        )
    return path


def scene_picture(kind, size, seed=0):
    """Blocks of random colours: another picture for each kind."""
    blocks = np.random.default_rng([seed, kind]).integers(20, 236, (4, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST))


def run(*argv, cwd=ROOT, **env):
    if cwd == ROOT and not env:
        return script('prepare.py', *argv)
    return subprocess.run(
        [sys.executable, ROOT / 'prepare.py', *map(str, argv)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | env,
    )


def args(tmp_path, *more, dataset='set'):
    return [
        f'--data_dir={tmp_path}/data',
        f'--dataset={dataset}',
        '--image_size=32',
        '--patch_size=8',
        '--text=sidecar',
        '--workers=1',
        *more,
    ]


def settings(**more):
    """The defaults of every knob but the sizes of the pictures."""
    knobs = {k: getattr(prepare, k) for k in configurator.knobs(vars(prepare))}
    return types.SimpleNamespace(**knobs | dict(image_size=32, patch_size=8, excluded=set()) | more)


def hashes(folder):
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.glob('*'))
        if p.suffix in ('.bin', '.npy') or p.name in ('meta.json', 'videos.jsonl')
    }


def rows_of(folder):
    return [json.loads(line) for line in open(folder / 'videos.jsonl')]


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('videos')
    for n in range(6):
        make_video(folder / f'v{n}.mp4', [1, 2, 3], seed=n)
    return folder


@pytest.fixture(scope='module')
def finished(videos, tmp_path_factory):
    """The same videos by one worker, unbroken."""
    folder = tmp_path_factory.mktemp('finished')
    done = run(videos, *args(folder, '--workers=1'))
    assert done.returncode == 0, done.stderr
    return folder / 'data' / 'set'


# --- text -----------------------------------------------------------------------------------------


def test_gpt2_encoding_is_gpt2s():
    encoding = gpt2_encoding()
    assert (
        encoding.encode_ordinary('hello world') == [31373, 995]
        and encoding.n_vocab == 50257
        and encoding.eot_token == 50256
    )
    text = "Don't  panic — naïve 日本語 <|endoftext|> 42\n"
    assert encoding.decode(
        encoding.encode_ordinary(text)
    ) == text and 50256 not in encoding.encode_ordinary(text)


ROLLING = '''WEBVTT
Kind: captions

00:00:00.500 --> 00:00:02.500 align:start position:0%
{space}
so<00:00:01.000><c> here</c><00:00:01.500><c> we</c>

00:00:02.500 --> 00:00:02.510
so here we

00:00:02.510 --> 00:00:04.000
so here we
go<00:00:03.000><c> again</c> [Music]
'''.replace('{space}', ' ')  # as YouTube writes it


@pytest.mark.parametrize(
    'name, content, want',
    [
        (
            'a.vtt',
            'WEBVTT\n\n1\n00:01.000 --> 00:02.000\n<v Bob>Hello &amp; <i>welcome</i>\nto it\n\n'
            '00:00:03.000 --> 00:00:04.500\n[Applause]\n',
            [(1.0, 2.0, 'Hello & welcome to it')],
        ),
        (
            'a.srt',
            '\ufeff1\r\n01:00:01,250 --> 01:00:02,000\r\n>> Yes.\r\n\r\n2\r\n01:00:02,000 --> '
            '01:00:03,000\r\n>> Yes.\r\n',
            [(3601.25, 3602.0, 'Yes.'), (3602.0, 3603.0, 'Yes.')],
        ),
        (
            'a.vtt',
            ROLLING,
            [
                (0.5, 1.0, 'so'),
                (1.0, 1.5, 'here'),
                (1.5, 2.5, 'we'),
                (2.51, 3.0, 'go'),
                (3.0, 4.0, 'again'),
            ],
        ),
        (
            'a.json3',
            json.dumps(
                dict(
                    events=[
                        dict(tStartMs=0, dDurationMs=9000),
                        dict(
                            tStartMs=1000,
                            dDurationMs=3000,
                            segs=[dict(utf8='so'), dict(utf8=' well', tOffsetMs=500)],
                        ),
                        dict(tStartMs=2000, aAppend=1, segs=[dict(utf8='\n')]),
                        dict(tStartMs=2000, dDurationMs=1000, segs=[dict(utf8='yes')]),
                    ]
                )
            ),
            [(1.0, 1.5, 'so'), (1.5, 2.0, 'well'), (2.0, 3.0, 'yes')],
        ),
    ],
)
def test_sidecars(tmp_path, name, content, want):
    (tmp_path / name).write_text(content)
    assert read_sidecar(str(tmp_path / name), collections.Counter()) == want


@pytest.mark.parametrize(
    'name, content, cause',
    [
        ('a.vtt', 'WEBVTT\n', 'no_text'),
        ('a.json3', '{"events": 3}', 'bad_sidecar'),
        ('a.json3', '<html>', 'bad_sidecar'),
        ('a.srt', '', 'no_text'),
    ],
)
def test_bad_sidecars(tmp_path, name, content, cause):
    (tmp_path / name).write_text(content)
    with pytest.raises(sources.Bad) as e:
        read_sidecar(str(tmp_path / name), collections.Counter())
    assert e.value.cause == cause


def test_each_token_has_its_share_of_the_time():
    encoding = gpt2_encoding()
    tokens, times = tokenise([(1.0, 3.0, 'abcd efgh'), (2.5, 9.0, 'late words')], 5000)
    assert (
        encoding.decode(tokens[:-1].tolist()) == ' abcd efgh late words'
        and tokens[-1] == 50256
        and times[-1] == 5000
    )
    assert (
        times[0] == 1000
        and (np.diff(times.astype(int)) >= 0).all()
        and times.max() == 5000
        and len(tokens) == len(times)
    )
    said = {encoding.decode([t]): m for t, m in zip(tokens[:-1].tolist(), times.tolist())}
    assert abs(said[' ef' if ' ef' in said else ' e'] - 2000) <= 1, (
        'half of the bytes, half of the time'
    )


# --- pictures -------------------------------------------------------------------------------------


def decode(path, size=32, **more):
    cfg = settings(image_size=size, **more)
    count, video = collections.Counter(), Decoder(path)
    return (
        [(t, flags, picture) for t, flags, _, picture in key_frames(video, cfg, count)],
        count,
        video,
    )


def test_key_frames_are_the_pictures_of_the_video(tmp_path):
    kept, count, video = decode(make_video(tmp_path / 'a.mp4', [1, 2, 3]), 64)
    assert [t for t, _, _ in kept] == [0, 4000, 8000] and abs(video.end(video.video) - 12) < 0.3
    for kind, (_, _, picture) in zip([1, 2, 3], kept):
        want = scene_picture(kind, (96, 64))[:, 16:80]  # the middle of the longer side
        assert picture.shape == (64, 64, 3) and np.abs(picture.astype(int) - want).mean() < 6


def test_near_duplicates_and_returning_pictures_are_dropped(tmp_path):
    kept, count, _ = decode(make_video(tmp_path / 'a.mp4', [1, 1, 2, 1, 3]))
    assert [(t, p is not None) for t, _, p in kept] == [
        (0, True),
        (8000, True),
        (12000, False),
        (16000, True),
    ]
    assert (
        count['frames_seen'],
        count['frames_kept'],
        count['frames_duplicate'],
        count['frames_again'],
    ) == (5, 3, 1, 1)


def test_frames_are_sought_where_key_frames_are_rare(tmp_path):
    path = tmp_path / 'a.mp4'
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(
            'libx264', rate=2, options=dict(preset='ultrafast', sc_threshold='0')
        )
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.gop_size = (
            96,
            64,
            'yuv420p',
            10_000,
        )
        for i in range(2 * 90):  # one key frame in 90 seconds, another picture every ten
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(scene_picture(i // 20, (96, 64)), 'rgb24'))
            )
        container.mux(stream.encode())
    kept, count, _ = decode(path)
    assert [t for t, _, _ in kept] == [0, 30000, 60000] and [f for _, f, _ in kept] == [
        0,
        FRAME_SEEKED,
        FRAME_SEEKED,
    ]
    assert (
        np.abs(
            kept[1][2].astype(int)
            - np.asarray(
                Image.fromarray(scene_picture(3, (96, 64))[:, 16:80]).resize(
                    (32, 32), Image.Resampling.BOX
                )
            )
        ).mean()
        < 12
    )


def test_blank_frames_are_replaced_or_dropped(tmp_path):
    path = tmp_path / 'a.mp4'
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(
            'libx264', rate=10, options=dict(preset='ultrafast', sc_threshold='0')
        )
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.gop_size = (
            96,
            64,
            'yuv420p',
            40,
        )
        for i in range(80):  # a fade-in of 0.3 s, then a picture; after 4 s all is black
            picture = scene_picture(1, (96, 64)) if 3 <= i < 40 else np.zeros((64, 96, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, 'rgb24')))
        container.mux(stream.encode())
    kept, count, _ = decode(path)
    assert (
        len(kept) == 1
        and kept[0][1] == FRAME_SEEKED
        and kept[0][2].std() > 20
        and count['frames_blank'] == 1
    )


def test_rotation_is_applied(tmp_path):
    path = make_video(tmp_path / 'a.mp4', [1])
    upright = decode(path, 64)[0][0][2]
    raw = bytearray(path.read_bytes())
    at = raw.index(b'tkhd') + 4 + 40  # the display matrix of the track header: a quarter turn
    raw[at : at + 36] = b''.join(
        int(v).to_bytes(4, 'big', signed=True)
        for v in (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    )
    path.write_bytes(raw)
    turned = decode(path, 64)[0][0][2]
    assert np.abs(turned.astype(int) - np.rot90(upright, -1)).mean() < 3, 'a phone held upright'


def test_a_bad_packet_costs_only_itself(tmp_path):
    path = make_video(tmp_path / 'a.mp4', list(range(8)))
    raw = bytearray(path.read_bytes())
    at = raw.index(b'mdat') + len(raw) // 3
    raw[at : at + 200] = bytes(range(200))
    path.write_bytes(raw)
    kept, count, video = decode(path)
    assert 6 <= len(kept) <= 8 and kept[-1][0] == 28_000 and abs(video.end(video.video) - 32) < 0.5


def encode(
    path,
    pictures,
    pix_fmt='yuv444p',
    codec='libx264',
    fps=4,
    pts=None,
    aspect=None,
    start=0,
    format=None,
):
    """Each picture four frames long, the first a key frame; pts: a function of the frame's number,
    in 1/100 s."""
    with av.open(str(path), 'w', format=format) as container:
        stream = container.add_stream(
            codec,
            rate=fps,
            options=dict(crf='8', preset='ultrafast', sc_threshold='0')
            if codec == 'libx264'
            else {},
        )
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], pix_fmt
        stream.codec_context.gop_size, stream.codec_context.time_base = 10_000, Fraction(1, 100)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for i in range(4 * len(pictures)):
            frame = av.VideoFrame.from_ndarray(pictures[i // 4], 'rgb24')
            frame.pts, frame.time_base, frame.pict_type = (
                (pts or (lambda i: 100 * i))(i) + start,
                Fraction(1, 100),
                int(i % 4 == 0),
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    'kind',
    [
        'odd_size',
        'ten_bit',
        'wide_pixels',
        'variable_rate',
        'late_start',
        'mpeg4_avi',
        'transport_stream',
        'wrong_extension',
    ],
)
def test_files_of_every_kind_give_the_right_pictures_at_the_right_times(kind, tmp_path):
    pictures, times, size = [scene_picture(k, (96, 64)) for k in (1, 2, 3)], [0, 4000, 8000], 32
    want = [
        np.asarray(Image.fromarray(p[:, 16:80]).resize((32, 32), Image.Resampling.BOX)).astype(int)
        for p in pictures
    ]
    if kind == 'odd_size':
        path = encode(tmp_path / 'a.mp4', [p[:63, :95] for p in pictures])
    elif kind == 'ten_bit':
        path = encode(tmp_path / 'a.mp4', pictures, 'yuv420p10le')
    elif kind == 'wide_pixels':  # stored 48 x 64, shown 96 x 64
        path = encode(tmp_path / 'a.mp4', [p[:, ::2] for p in pictures], aspect=Fraction(2, 1))
    elif kind == 'variable_rate':  # frames 0.3 s, 2 s and 0.5 s apart
        path = encode(
            tmp_path / 'a.mp4',
            pictures,
            pts=lambda i: [0, 30, 60, 90, 300, 500, 700, 900, 1000, 1050, 1100, 1150][i],
        )
        times = [0, 3000, 10000]
    elif kind == 'late_start':
        path = encode(tmp_path / 'a.ts', pictures, 'yuv420p', start=6000, format='mpegts')
    elif kind == 'mpeg4_avi':
        path = encode(tmp_path / 'a.avi', pictures, 'yuv420p', codec='mpeg4', pts=lambda i: 25 * i)
        times = [0, 1000, 2000]
    elif kind == 'transport_stream':
        path = encode(tmp_path / 'a.ts', pictures, 'yuv420p', format='mpegts')
    else:
        path = encode(tmp_path / 'a.mp4', pictures).rename(tmp_path / 'a.jpg')
    kept, _, video = decode(path, size, min_gap_s=0.5)
    assert len(kept) == 3 and max(abs(t - w) for (t, _, _), w in zip(kept, times)) <= 40, [
        t for t, _, _ in kept
    ]
    for (_, _, picture), w in zip(kept, want):
        assert np.abs(picture - w).mean() < 12, np.abs(picture - w).mean()


def test_sound_with_a_cover_is_no_video(tmp_path):
    Image.fromarray(scene_picture(1, (96, 64))).save(tmp_path / 'cover.jpg')
    with av.open(str(tmp_path / 'song.m4a'), 'w', format='mp4') as container:
        cover, audio = (
            container.add_stream('mjpeg', rate=1),
            container.add_stream('aac', rate=16000, layout='mono'),
        )
        cover.width, cover.height, cover.pix_fmt, cover.disposition = (
            96,
            64,
            'yuvj420p',
            av.stream.Disposition.attached_pic,
        )
        container.mux(cover.encode(av.VideoFrame.from_image(Image.open(tmp_path / 'cover.jpg'))))
        for i in range(30):
            piece = av.AudioFrame.from_ndarray(
                (np.random.default_rng(i).normal(size=(1, 1024)) * 3000).astype(np.int16),
                's16',
                'mono',
            )
            piece.sample_rate, piece.pts = 16000, 1024 * i
            container.mux(audio.encode(piece))
        container.mux(audio.encode())
    run(tmp_path / 'song.m4a', *args(tmp_path))
    assert rows_of(tmp_path / 'data/set')[0]['cause'] == 'no_video'


# --- the contract ---------------------------------------------------------------------------------


def test_arrays_keep_the_contract(finished, videos):
    assert problems(finished) == []
    meta = json.loads((finished / 'meta.json').read_text())
    assert (
        meta['format'],
        meta['image_size'],
        meta['patch_size'],
        sum(n['frames'] for n in meta['counts'].values()),
    ) == (1, 32, 8, 18)
    encoding, rows, seen = gpt2_encoding(), rows_of(finished), set()
    for split in 'train', 'val', 'test':
        patches = np.fromfile(finished / f'{split}_patches.bin', np.uint8).reshape(-1, 16, 192)
        tokens = np.fromfile(finished / f'{split}_tokens.bin', '<u2')
        frames, table = (np.load(finished / f'{split}_{a}.npy') for a in ('frames', 'videos'))
        assert len(table) >= 1, 'each split has a video, even in a small set'
        for i, f in enumerate(frames):
            row = rows[table[f['video']]['row']]
            seen.add(row['key'])
            seed, kind = int(row['title'][1:]), f['t_ms'] // 4000 + 1
            want = Image.fromarray(scene_picture(kind, (96, 64), seed)[:, 16:80]).resize(
                (32, 32), Image.Resampling.BOX
            )
            picture = patches[i].reshape(4, 4, 8, 8, 3).swapaxes(1, 2).reshape(32, 32, 3)
            assert (
                np.abs(picture.astype(int) - np.asarray(want)).mean() < 8
                and f['t_end_ms'] - f['t_ms'] == 4000
            )
            assert f'number {kind}' in encoding.decode(
                tokens[int(f['token']) - 4 : int(f['token']) + 4].tolist()
            ), 'the token in the middle of its time'
    assert len(seen) == 6
    mean = np.fromfile(finished / 'train_patches.bin', np.uint8).reshape(-1, 3).mean(0) / 255
    assert np.allclose(meta['pixel_mean'], mean, atol=1e-6)


@pytest.mark.parametrize(
    'damage, word',
    [
        ('cut', 'bytes'),
        ('flip', 'sha256'),
        ('token', 'middle'),
        ('eot', 'endoftext'),
        ('row', 'videos.jsonl'),
        ('meta', 'not complete'),
    ],
)
def test_check_finds_damage(finished, tmp_path, damage, word):
    folder = tmp_path / 'set'
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns('shards'))
    name = dict(token='train_frames.npy', eot='train_tokens.bin', row='train_videos.npy').get(
        damage, 'train_patches.bin'
    )
    raw = bytearray((folder / name).read_bytes())
    if damage == 'cut':
        raw = raw[:-1]
    elif damage == 'flip':
        raw[7] ^= 1
    elif damage == 'eot':
        raw[0:2] = (50256).to_bytes(2, 'little')
    elif damage in ('token', 'row'):
        array = np.load(folder / name)
        array[damage][1 if damage == 'token' else 0] += 1
        np.save(folder / name, array)
        raw = bytearray((folder / name).read_bytes())
    (folder / name).write_bytes(raw)
    meta = json.loads((folder / 'meta.json').read_text())
    if damage in ('token', 'eot', 'row'):  # a wrong writer, with right checksums
        meta['arrays'][name] = dict(sha256=hashlib.sha256(raw).hexdigest(), bytes=len(raw))
    (folder / 'meta.json').write_text('{' if damage == 'meta' else json.dumps(meta))
    assert any(word in p for p in problems(folder)), problems(folder)
    result = run('--check', f'--data_dir={tmp_path}', '--dataset=set')
    assert result.returncode == 1 and word in result.stdout and 'Traceback' not in result.stderr


def test_splits_are_by_video_and_stay(finished):
    keys = [f'file:{n}' for n in range(3000)]
    before, after = split_of(keys[:2500], 0.01, 0.01), split_of(keys, 0.01, 0.01)
    assert (
        all(after[k] == s for k, s in before.items())
        and 15 < sum(s == 'val' for s in after.values()) < 50
    )
    assert sorted(split_of(keys[:3], 0.1, 0.1).values()) == [
        'test',
        'train',
        'val',
    ] and set(split_of(keys[:2], 0.1, 0.1).values()) == {'train'}


# --- the same bytes, whatever happens -------------------------------------------------------------


@pytest.mark.parametrize('workers', [2, 4])
def test_many_workers_give_the_same_bytes(videos, finished, tmp_path, workers):
    assert run(videos, *args(tmp_path, f'--workers={workers}')).returncode == 0
    assert hashes(tmp_path / 'data' / 'set') == hashes(finished)


def test_kill_and_resume_give_the_same_bytes(videos, finished, tmp_path):
    shards, kills = tmp_path / 'data' / 'set' / 'shards', 0
    for enough in 1, 3, 5:
        process = subprocess.Popen(
            [sys.executable, ROOT / 'prepare.py', videos, *args(tmp_path, '--workers=1')],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.time() + 60
        while (
            process.poll() is None
            and len(list(shards.glob('*/*.shard'))) < enough
            and time.time() < until
        ):
            time.sleep(0.005)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kills, 'none was killed in the middle'
    done = run(videos, *args(tmp_path, '--workers=1'))
    assert done.returncode == 0 and hashes(tmp_path / 'data' / 'set') == hashes(finished)
    again = run('--check', *args(tmp_path))
    assert again.returncode == 0


def reader(pipe):
    """-> the other end of a named pipe that a process reads, which then waits; None: none does."""
    with contextlib.suppress(OSError):
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)


def newborn(parent):
    """Whether a worker is being born: it imports what prepare.py does."""
    children = Path(f'/proc/{parent}/task/{parent}/children').read_text().split()
    return any(
        b'spawn_main' in Path(f'/proc/{p}/cmdline').read_bytes()
        and 'numpy' in Path(f'/proc/{p}/maps').read_text()
        for p in children
    )


def test_what_stops_it_and_the_same_command_goes_on(videos, finished, tmp_path):
    """Ctrl-C, which a terminal sends to all processes; SIGTERM, to all or to one alone, where
    Ctrl-C is ignored; while a worker is born, and while it waits for captions from a pipe."""
    shutil.copytree(videos, tmp_path / 'in')
    pipe = tmp_path / 'in' / 'v0.vtt'
    pipe.unlink()
    os.mkfifo(pipe)
    argv = [ROOT / 'prepare.py', tmp_path / 'in', *args(tmp_path, '--workers=1')]
    for kill, told, state in (
        (os.killpg, signal.SIGINT, newborn),
        (os.killpg, signal.SIGINT, lambda _: reader(pipe)),
        (os.killpg, signal.SIGTERM, lambda _: reader(pipe)),
        (os.kill, signal.SIGTERM, lambda _: reader(pipe)),
    ):
        process = start(argv, deaf=told == signal.SIGTERM)
        wait_for(lambda: state(process.pid), process)
        kill(process.pid, told)
        out, err = process.communicate()
        assert process.returncode == 130 and 'Traceback' not in err, err
        assert 'run the same command again' in out
        wait_for(lambda: not reader(pipe))  # the worker has ended too
        assert not list((tmp_path / 'data/set/shards').glob('*/*.err.json'))
    pipe.unlink()
    shutil.copy(videos / 'v0.vtt', pipe)
    assert run(tmp_path / 'in', *args(tmp_path)).returncode == 0
    want = hashes(finished) | {'videos.jsonl': None}  # which names the folder
    assert hashes(tmp_path / 'data/set') | {'videos.jsonl': None} == want


def test_a_damaged_set_is_joined_again_and_a_lost_one_stays(videos, tmp_path):
    """Settings that are not given are those the set was begun with; arrays that are short are
    joined again; without shards nothing is replaced by less."""
    shutil.copytree(videos, tmp_path / 'videos')
    folder, again = tmp_path / 'data' / 'set', [f'--data_dir={tmp_path}/data', '--dataset=set']
    assert run(tmp_path / 'videos', *args(tmp_path)).returncode == 0
    whole = hashes(folder)
    os.truncate(folder / 'train_patches.bin', 1000)
    checked = run('--check', *again)
    assert (
        checked.returncode == 1
        and 'train_patches.bin: not the' in checked.stdout
        and 'join the shards anew' in checked.stdout
    )
    assert run(*again).returncode == 0 and hashes(folder) == whole
    shard = sorted((folder / 'shards').glob('*/*.shard'))[0]
    os.truncate(shard, 100)
    (folder / 'meta.json').unlink()
    assert (
        'was damaged' in run(*again).stderr
        and run(*again).returncode == 0
        and hashes(folder) == whole
    )
    shutil.rmtree(folder / 'shards')
    for video in sorted((tmp_path / 'videos').glob('*.mp4'))[1:]:
        video.unlink()
    done = run(tmp_path / 'videos', *args(tmp_path))
    assert (
        done.returncode == 1
        and '5 videos of the finished set have no shard' in done.stderr
        and hashes(folder) == whole
    )
    done = run(tmp_path / 'videos', *args(tmp_path, '--overwrite'), RANK='1', WORLD_SIZE='2')
    assert (
        done.returncode == 1
        and '--overwrite by many ranks' in done.stderr
        and hashes(folder) == whole
    )


def test_lists_of_nonsense(tmp_path):
    (tmp_path / 'list.txt').write_bytes(
        b'list.txt\n\xff\xfe\x00x\n'
        + b'a' * 400
        + b'\nhttps://x.org/watch#t=3\nytsearch5:C# tutorial\n'
    )
    deep = tmp_path.joinpath(*['d' * 90] * 4)  # a long path of short names is none
    deep.mkdir(parents=True)
    shutil.copy(ROOT / 'assets' / 'ground.png', deep / 'x.png')
    rows = [dict(image='x.png', caption=5)] + [
        dict(image=i, caption='x')
        for i in (5, 'a' * 400, str((deep / 'x.png').relative_to(tmp_path)))
    ]
    (tmp_path / 'pairs.json').write_text(json.dumps(rows))
    asked = []
    found = sources.find_online
    try:
        sources.find_online = lambda name, cfg: asked.append(name) or []
        items, refused = sources.find_items(
            [str(tmp_path / 'list.txt')],
            types.SimpleNamespace(all_files=False, language='en', captions=''),
            [],
        )
    finally:
        sources.find_online = found
    assert asked == ['https://x.org/watch', 'ytsearch5:C# tutorial'] and not items
    assert sorted(r['cause'] for r in refused) == ['not_found', 'not_found']
    (pack,), refused = find_packs(str(tmp_path / 'pairs.json'))
    assert sorted(r['cause'] for r in refused) == ['bad_row', 'no_text']
    assert [pair_of(parts)[1] for _, _, parts in samples(pack) if os.path.isfile(parts['image'])]


def test_a_list_that_is_no_recipe_is_one_line(tmp_path):
    (tmp_path / 'list.jsonl').write_text('{"image": "a.png", "caption": "a"}')
    done = run(tmp_path / 'list.jsonl', *args(tmp_path))
    assert done.returncode == 1 and '--pairs' in done.stderr and 'Traceback' not in done.stderr


def test_a_small_set_always_has_something_to_train_on():
    for n in range(2000):
        keys = [f'{n}-{i}' for i in range(1 + n % 6)]
        split = split_of(keys, 0.3, 0.3)
        assert set(split) == set(keys) and 'train' in split.values()
    assert split_of([], 0.1, 0.1) == {}


def test_more_videos_are_added_later(videos, finished, tmp_path):
    three = [videos / f'v{n}.mp4' for n in range(3)]
    assert run(*three, *args(tmp_path)).returncode == 0
    assert run(videos, *args(tmp_path)).returncode == 0
    assert hashes(tmp_path / 'data' / 'set') == hashes(finished)


def test_other_settings_on_a_begun_set_are_refused(videos, finished):
    result = run(
        videos,
        f'--data_dir={finished.parent}',
        '--dataset=set',
        '--image_size=64',
        '--patch_size=8',
        '--text=sidecar',
    )
    assert (
        result.returncode == 1
        and 'image_size was 32, now 64' in result.stderr
        and 'Traceback' not in result.stderr
    )
    assert problems(finished) == []


# --- bad input ------------------------------------------------------------------------------------


def test_every_bad_file_is_counted_by_its_cause_and_harms_no_other(tmp_path):
    folder = tmp_path / 'in'
    folder.mkdir()
    for n in range(3):
        make_video(folder / f'good{n}.mp4', [1, 2], seed=n)
    shutil.copy(folder / 'good0.mp4', folder / 'renamed copy ; rm -rf $HOME.mp4')
    (folder / 'empty.mp4').touch()
    (folder / 'garbage.mp4').write_bytes(os.urandom(5000))
    (folder / 'page.mp4').write_text('<html>404</html>')
    make_video(folder / 'silent.mp4', [1, 2], words=False, seed=7)
    make_video(folder / 'wordless.mp4', [1, 2], words=True, seed=8).with_suffix('.vtt').write_text(
        'WEBVTT\n'
    )
    make_video(folder / 'black.mp4', [1], seed=9)
    with av.open(str(folder / 'black.mp4'), 'w') as container:
        stream = container.add_stream('libx264', rate=4)
        stream.width, stream.height, stream.pix_fmt = 96, 64, 'yuv420p'
        for _ in range(20):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 96, 3), np.uint8), 'rgb24'))
            )
        container.mux(stream.encode())
    with av.open(str(folder / 'tiny.mp4'), 'w') as container:
        stream = container.add_stream('libx264', rate=4)
        stream.width, stream.height, stream.pix_fmt = 8, 8, 'yuv420p'
        container.mux(
            stream.encode(av.VideoFrame.from_ndarray(np.zeros((8, 8, 3), np.uint8), 'rgb24'))
        )
        container.mux(stream.encode())
    whole = make_video(folder / 'end_missing.mp4', [1, 2, 3], seed=10)
    whole.write_bytes(
        whole.read_bytes()[: -len(whole.read_bytes()) // 2]
    )  # its index is at the end, and gone
    cut = make_video(tmp_path / 'whole.mp4', list(range(10)), seed=11)
    index_first(cut, folder / 'cut.mp4', 0.7)  # its index is first: 70 % can be read
    shutil.copy(cut.with_suffix('.vtt'), folder / 'cut.vtt')
    index_first(cut, folder / 'cut_early.mp4', 0.3)
    shutil.copy(cut.with_suffix('.vtt'), folder / 'cut_early.vtt')
    shutil.copy(folder / 'good1.mp4', folder / 'misnamed.txt.bin')
    (tmp_path / 'list.txt').write_text(f'{folder}\n# a comment\n\nabsent.mp4\n')
    (folder / 'notes.txt').write_text('not a video')
    result = run(folder, tmp_path / 'absent.mp4', *args(tmp_path))
    rows = {Path(r['source']).name: r for r in rows_of(tmp_path / 'data' / 'set')}
    causes = {name: r['cause'] for name, r in rows.items()}
    assert causes == {
        'good0.mp4': '',
        'good1.mp4': '',
        'good2.mp4': '',
        'cut.mp4': '',
        'renamed copy ; rm -rf $HOME.mp4': 'duplicate',
        'empty.mp4': 'empty',
        'garbage.mp4': 'not_media',
        'page.mp4': 'not_media',
        'silent.mp4': 'no_text',
        'wordless.mp4': 'no_text',
        'black.mp4': 'no_frames',
        'tiny.mp4': 'size',
        'end_missing.mp4': 'not_media',
        'cut_early.mp4': 'truncated',
        'absent.mp4': 'not_found',
    }
    assert result.returncode == 0 and '4 ok' in result.stdout and 'Traceback' not in result.stderr
    for name, cause in causes.items():
        assert not cause or name.split('.')[0] in rows[name]['message'], (
            'the message names the file'
        )
    assert all(
        f'{n} {c}' in result.stdout for c, n in collections.Counter(causes.values()).items() if c
    ), 'all counted in the table'
    assert problems(tmp_path / 'data' / 'set') == [] and 20 < rows['cut.mp4']['duration'] < 32


def index_first(source, target, share):
    """Remux with the index at the front, then keep that share of the bytes of the pictures."""
    with (
        av.open(str(source)) as read,
        av.open(str(target), 'w', format='mp4', options=dict(movflags='faststart')) as write,
    ):
        stream = write.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(read.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                write.mux(packet)
    raw = target.read_bytes()
    target.write_bytes(raw[: raw.index(b'mdat') + int((len(raw) - raw.index(b'mdat')) * share)])


@pytest.mark.parametrize(
    'argv, words',
    [
        (['nowhere.mp4'], 'no videos found'),
        ([], 'no videos found'),
        (['--pairs=absent.json'], 'absent.json'),
        (['--image_size=30', 'x.mp4'], 'multiple of patch_size'),
        (['--image_sze=30'], "did you mean 'image_size'"),
    ],
)
def test_user_mistakes_end_with_one_line(tmp_path, argv, words):
    result = run(*args(tmp_path), *argv)
    assert (
        result.returncode == 1
        and words in result.stderr
        and result.stderr.count('\n') == 1
        and not (tmp_path / 'data').exists()
    )


def test_nothing_useful_is_an_error(tmp_path):
    (tmp_path / 'a.mp4').write_text('no')
    result = run(tmp_path / 'a.mp4', *args(tmp_path))
    assert (
        result.returncode == 1
        and 'nothing to train on' in result.stderr
        and '1 not_media' in result.stdout
    )


def test_missing_whisper_weights_name_the_remedies(tmp_path):
    make_video(tmp_path / 'a.mp4', [1], sound=True, words=False)
    result = run(tmp_path / 'a.mp4', *args(tmp_path, '--text=auto', '--whisper_model=absent.pt'))
    assert (
        result.returncode == 1
        and 'path/base.en.pt' in result.stderr
        and 'talk.vtt' in result.stderr
        and 'Traceback' not in result.stderr
    )


def test_an_unwritable_folder_is_one_line(tmp_path):
    (tmp_path / 'data').write_text('a file where the folder should be')
    result = run(make_video(tmp_path / 'a.mp4', [1]), *args(tmp_path))
    assert result.returncode == 1 and 'error:' in result.stderr and 'Traceback' not in result.stderr


def test_a_worker_that_dies_costs_one_video(tmp_path):
    cfg = settings(root=tmp_path, timeout_s=1, keep_silent=True, workers=1)
    bar = types.SimpleNamespace(
        update=lambda n: None,
        set_postfix_str=lambda *a, **k: None,
        write=lambda _: vars(cfg).update(timeout_s=600),  # of the others, on a slow machine
    )
    good = [
        dict(
            key=f'file:{n}',
            source=str(make_video(tmp_path / f'{n}.mp4', [1])),
            url='',
            bytes=1,
            sidecar='',
        )
        for n in range(2)
    ]
    pipe = tmp_path / 'pipe'  # opening it blocks for ever: a hang inside a C library
    os.mkfifo(pipe)
    hangs = dict(key='file:hangs', source=str(pipe), url='', bytes=1, sidecar='')
    rows, _ = prepare.process_all([hangs] + good, cfg, bar)
    assert sorted((r['status'], r['cause']) for r in rows) == [
        ('failed', 'timeout'),
        ('ok', ''),
        ('ok', ''),
    ]


def test_a_full_disk_ends_the_run_and_leaves_no_half_shard(videos, tmp_path, monkeypatch):
    cfg = settings(root=tmp_path, timeout_s=600)
    item = dict(
        key='file:v', source=str(videos / 'v0.mp4'), url='', bytes=1, sidecar=str(videos / 'v0.vtt')
    )

    def full(fd):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space'):
        prepare.process(item, cfg)
    assert not [p for p in tmp_path.rglob('*') if p.is_file()], (
        'not counted as a bad video either: it is tried again'
    )
    monkeypatch.undo()
    assert prepare.process(item, cfg)['status'] == 'ok'


def test_dry_run_touches_nothing(videos, tmp_path):
    result = run(videos, *args(tmp_path), '--dry_run')
    assert (
        result.returncode == 0
        and '6 videos' in result.stdout
        and '0.02 hours' in result.stdout
        and not (tmp_path / 'data').exists()
    )


# --- image-caption lists --------------------------------------------------------------------------


@pytest.mark.parametrize('form', ['json', 'jsonl'])
def test_pairs(tmp_path, form):
    for n in range(4):
        Image.fromarray(scene_picture(n, (96, 64))).save(tmp_path / f'{n}.png')
    (tmp_path / 'broken.png').write_bytes(b'\x89PNG')
    rows = [
        dict(image='0.png', caption=['a first caption', 'the second one, <|endoftext|> naïve']),
        dict(image='1.png', caption='only one', image_id=3),
        dict(image='0.png', caption='a third, in a row of its own'),
        dict(image=str(tmp_path / '2.png'), caption='two'),
        dict(image='3.png', caption=''),
        dict(image='absent.png', caption='x'),
        dict(caption='x'),
        dict(image='broken.png', caption='x'),
    ]
    path = tmp_path / f'list.{form}'
    path.write_text(json.dumps(rows) if form == 'json' else '\n'.join(map(json.dumps, rows)))
    result = run(f'--pairs={path}', *args(tmp_path))
    folder = tmp_path / 'data' / 'set'
    assert result.returncode == 0 and problems(folder) == [], result.stderr
    causes = sorted(r['cause'] for r in rows_of(folder))
    assert causes == ['', '', '', 'bad_row', 'no_text', 'not_found', 'not_media']
    encoding, texts = gpt2_encoding(), {}
    for split in 'train', 'val', 'test':
        tokens = np.fromfile(folder / f'{split}_tokens.bin', '<u2')
        for v in np.load(folder / f'{split}_videos.npy'):
            assert v['flags'] & 1 and v['frame_end'] - v['frame_start'] == 1
            said = tokens[int(v['token_start']) : int(v['token_end'])]
            texts[rows_of(folder)[v['row']]['title']] = [
                encoding.decode(t.tolist())
                for t in np.split(said, np.flatnonzero(said == 50256) + 1)[:-1]
            ]
    assert texts['1'] == [' only one<|endoftext|>'] and len(texts['0']) == 3
    assert [t.count('<|endoftext|>') for t in texts['0']] == [1, 2, 1], (
        'the written-out word is text, not the special token'
    )


# --- real speech ----------------------------------------------------------------------------------

WHISPER, DATA = os.environ.get('NANOVLP_WHISPER', ''), os.environ.get('NANOVLP_DATA', '')


@pytest.mark.skipif(
    not (os.path.exists(WHISPER) and os.path.isdir(DATA)),
    reason='NANOVLP_WHISPER and NANOVLP_DATA name no weights and videos',
)
def test_whisper_hears_what_is_said(tmp_path, request):
    source = Path(DATA) / 'drawings' / 'drawings_0009.mp4'
    for workers in (1, 2) if request.config.getoption('--slow') else (1,):
        result = run(
            source,
            *args(
                tmp_path,
                '--text=whisper',
                f'--whisper_model={WHISPER}',
                f'--workers={workers}',
                '--overwrite',
                dataset=f'w{workers}',
            ),
        )
        assert result.returncode == 0, result.stderr
        assert hashes(tmp_path / 'data' / f'w{workers}') == hashes(tmp_path / 'data' / 'w1')
    tokens, times = (
        np.fromfile(tmp_path / 'data' / 'w1' / f'train_{a}.bin', t)
        for a, t in (('tokens', '<u2'), ('times', '<u4'))
    )
    said, encoding = (
        json.loads((Path(DATA) / 'drawings' / 'truth' / 'drawings_0009.json').read_text())[
            'segments'
        ],
        gpt2_encoding(),
    )

    def plain(text):
        return ''.join(c for c in text.lower().replace('-', ' ') if c.isalnum() or c == ' ').split()

    heard, want = (
        plain(encoding.decode(tokens[:-1].tolist())),
        plain(' '.join(s['said'] for s in said)),
    )
    assert word_errors(heard, want) <= 0.1 * len(want)
    for s in said[1::3]:  # and when: the words of a segment lie within a second of it
        inside = encoding.decode(
            tokens[:-1][
                (times[:-1] >= 1000 * s['start'] - 1000) & (times[:-1] < 1000 * s['end'] + 1000)
            ].tolist()
        ).lower()
        assert sum(w in inside for w in plain(s['said'])) >= 0.7 * len(plain(s['said']))


def word_errors(heard, want):
    """Edit distance in words."""
    row = list(range(len(want) + 1))
    for i, h in enumerate(heard, 1):
        last, row[0] = row[0], i
        for j, w in enumerate(want, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (h != w))
    return row[-1]


@pytest.mark.skipif(not os.path.exists(WHISPER), reason='NANOVLP_WHISPER names no weights')
def test_a_tone_is_not_speech(tmp_path):
    make_video(tmp_path / 'a.mp4', [1, 2, 3], sound=True, words=False)
    result = run(tmp_path / 'a.mp4', *args(tmp_path, '--text=auto', f'--whisper_model={WHISPER}'))
    assert (
        result.returncode == 1 and rows_of(tmp_path / 'data' / 'set')[0]['cause'] == 'no_speech'
    ), result.stdout


def test_hallucinations_are_dropped():
    def result(text, **k):
        return types.SimpleNamespace(
            **dict(text=text, no_speech_prob=0.1, avg_logprob=-0.3, compression_ratio=1.5) | k
        )

    assert hallucinated(result('this is a perfectly ordinary sentence about paint'), 10) == ''
    assert hallucinated(result('no, no, no, that is wrong'), 4) == ''
    assert (
        hallucinated(result('x', compression_ratio=2.5), 10) == 'loop'
        and hallucinated(result('and so on ' * 12), 30) == 'loop'
    )
    assert hallucinated(result('words', no_speech_prob=0.7, avg_logprob=-0.6), 10) == 'silent'
    assert (
        hallucinated(result('Thank you.', no_speech_prob=0.3), 3) == 'stock_phrase'
        and hallucinated(result('Thank you.'), 3) == ''
    )
    assert hallucinated(result('a' * 300), 10) == 'rate'


@pytest.mark.parametrize('n', range(10))
def test_a_few_words_are_no_mark_of_a_reupload(n):
    index = dict(tokens=np.arange(n, dtype=np.uint16), hashes=np.zeros((0, 8), np.uint8))
    assert marks(index)[1] == set() if n < 8 else isinstance(marks(index)[1], set)


@pytest.mark.parametrize(
    'wrong', ['whisper_batch=0', 'max_gap_s=0', 'min_s=-3', 'timeout_s=0', 'val_fraction=1.5']
)
def test_numbers_out_of_bounds(tmp_path, wrong):
    name, _, value = wrong.partition('=')
    cfg = settings(root=tmp_path, overwrite=True, _source={}, **{name: float(value)})
    with pytest.raises(SystemExit, match=f'error: --{name} must be'):
        prepare.take_over(cfg)
