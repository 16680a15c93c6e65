"""pytest tests/test_prepare_slow.py --slow -q -s      prepare.py under abuse, and how fast it is:
minutes"""

import collections, io, json, os, random, re, resource, shutil, signal, subprocess, sys, time
from fractions import Fraction
from pathlib import Path
import av
import numpy as np
import pytest
from PIL import Image
import prepare
from data.check import problems
from data.video import Decoder
from data.words import load_whisper, transcribe
from conftest import ROOT
from test_fetch import Site, args, site  # noqa: F401  (site is a fixture)
from test_prepare import hashes, make_video, rows_of, run, scene_picture, settings

pytestmark = pytest.mark.slow


def moving_video(path, minutes, size=(640, 360), fps=25, gop_s=5, crf=17):
    """H.264 with a key frame every gop_s seconds: slow pans of ten seconds over soft noise."""
    rng = np.random.default_rng(0)
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(
            'libx264',
            rate=fps,
            options=dict(preset='veryfast', crf=str(crf), g=str(gop_s * fps), sc_threshold='0'),
        )
        stream.width, stream.height, stream.pix_fmt = *size, 'yuv420p'
        for _ in range(int(minutes * 6)):
            big = np.asarray(
                Image.fromarray(rng.integers(0, 256, (24, 40, 3), np.uint8)).resize(
                    (size[0] + 260, size[1] + 260), Image.Resampling.BICUBIC
                )
            )
            big = np.clip(big + rng.normal(0, 6, big.shape), 0, 255).astype(np.uint8)
            for i in range(10 * fps):
                container.mux(
                    stream.encode(
                        av.VideoFrame.from_ndarray(big[i : i + size[1], i : i + size[0]], 'rgb24')
                    )
                )
        container.mux(stream.encode())

    def clock(s):
        return f'{s // 3600:02d}:{s // 60 % 60:02d}:{s % 60:02d}.000'

    path.with_suffix('.vtt').write_text(
        'WEBVTT\n\n'
        + ''.join(
            f'{clock(s)} --> {clock(s + 3)}\nwhat is said at second {s}\n\n'
            for s in range(0, int(minutes * 60), 3)
        )
    )


def test_speed_at_360p(tmp_path, capsys):
    """Key frames and captions of 20 minutes of moving 360p H.264 with a key frame every 5 s, on one
    core."""
    moving_video(tmp_path / 'talk.mp4', 20)
    speeds = []
    for n in range(3):
        done = run(tmp_path / 'talk.mp4', f'--data_dir={tmp_path}/data{n}', '--dataset=talk')
        assert done.returncode == 0, done.stderr
        (row,) = json.loads((tmp_path / f'data{n}/talk/stats.json').read_text())['rows']
        speeds.append(row['duration'] / row['seconds'])
    with capsys.disabled():
        rate = (tmp_path / 'talk.mp4').stat().st_size * 8 / 1200 / 1e6
        print(
            f"\n  360p, {rate:.2f} Mb/s: {sorted(speeds)[1]:.0f} x real time on one core (median "
            f"of 3); {row['counts']}"
        )
    assert sorted(speeds)[1] > 200 and row['n_frames'] > 100


def words_of(text):
    return re.sub(r"[^a-z' ]", ' ', text.lower().replace('-', '')).split()


def errors(said, heard):
    """Word errors: the edit distance of two lists."""
    row = np.arange(len(heard) + 1)
    codes = {w: i for i, w in enumerate({*said, *heard})}
    target = np.array([codes[w] for w in heard])
    for i, w in enumerate(said):
        best = np.minimum(row[1:] + 1, row[:-1] + (target != codes[w]))
        row = np.concatenate([[i + 1], best])
        row = np.minimum.accumulate(row - np.arange(len(row))) + np.arange(len(row))  # insertions
    return int(row[-1])


@pytest.mark.skipif(
    'NANOVLP_WHISPER' not in os.environ or 'NANOVLP_DATA' not in os.environ,
    reason='set NANOVLP_WHISPER and NANOVLP_DATA',
)
def test_batched_whisper_is_faster_than_transcribe_and_as_right(tmp_path, capsys):
    """Paired runs, in turn, on the same eight minutes of speech with the same weights and threads:
    time and word error rate against the truth."""
    import torch

    torch.set_num_threads(1)
    videos, n = sorted(Path(os.environ['NANOVLP_DATA'], 'drawings').glob('*.mp4'))[:6], 0
    truth = [
        words_of(
            ' '.join(
                s['said']
                for v in videos
                for s in json.loads((v.parent / 'truth' / f'{v.stem}.json').read_text())['segments']
            )
        )
    ]
    with av.open(
        str(tmp_path / 'long.m4a'), 'w', format='mp4'
    ) as out:  # one sound track of eight minutes
        stream = out.add_stream('aac', rate=16000, layout='mono')
        for video in map(Decoder, videos):
            resampler = av.AudioResampler('s16', 'mono', 16000)
            for piece in (p for _, f in video.frames(video.audio) for p in resampler.resample(f)):
                piece.pts, n = n, n + piece.samples
                out.mux(stream.encode(piece))
        out.mux(stream.encode())
    videos = [tmp_path / 'long.m4a']
    cfg = settings(whisper_model=os.environ['NANOVLP_WHISPER'], device='cpu')
    model = load_whisper(cfg.whisper_model, 'cpu')
    ratio, wrong = [], collections.Counter()
    for turn in range(5):
        spent = {}
        for name in ('ours', 'theirs') if turn % 2 else ('theirs', 'ours'):
            began, heard = time.perf_counter(), []
            for video in videos:
                if name == 'ours':
                    heard.append(
                        ' '.join(
                            t
                            for _, _, t in transcribe(
                                Decoder(video), 'key', cfg, collections.Counter()
                            )
                        )
                    )
                else:
                    resampler, decoder = (
                        av.AudioResampler('s16', 'mono', 16000),
                        Decoder(video),
                    )
                    sound = np.concatenate(
                        [
                            p.to_ndarray()[0]
                            for _, f in decoder.frames(decoder.audio)
                            for p in resampler.resample(f)
                        ]
                    )
                    heard.append(
                        model.transcribe(
                            sound.astype(np.float32) / 32768, fp16=False, language='en'
                        )['text']
                    )
            spent[name] = time.perf_counter() - began
            wrong[name] = sum(errors(t, words_of(h)) for t, h in zip(truth, heard)) / sum(
                map(len, truth)
            )
        ratio.append(spent['theirs'] / spent['ours'])
    with capsys.disabled():
        print(
            f"\n  Whisper, batches of {cfg.whisper_batch}: {sorted(ratio)[2]:.2f} x as fast as "
            f"transcribe (median of 5: {', '.join(f'{r:.2f}' for r in ratio)}); "
            f"word error rate {wrong['ours']:.3f}, transcribe {wrong['theirs']:.3f}"
        )
    assert sorted(ratio)[2] > 1.6 and wrong['ours'] < wrong['theirs'] + 0.01


def test_killed_at_fifty_moments_the_arrays_are_the_same(tmp_path):
    for n in range(8):
        make_video(tmp_path / f'v{n}.mp4', [10 * n + k for k in range(4)])
    run(tmp_path, *args(tmp_path / 'whole'))
    want = hashes(tmp_path / 'whole/data/set')
    began = time.monotonic()
    run(tmp_path, *args(tmp_path / 'timing'))
    length, rng = time.monotonic() - began, random.Random(0)
    for n in range(50):
        if n % 5 == 0:  # five kills, then it may finish
            shutil.rmtree(tmp_path / 'killed', ignore_errors=True)
        process = subprocess.Popen(
            [sys.executable, ROOT / 'prepare.py', tmp_path, *args(tmp_path / 'killed')],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(rng.uniform(0, length))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        if n % 5 == 4:
            done = run(tmp_path, *args(tmp_path / 'killed'))
            assert done.returncode == 0 and hashes(tmp_path / 'killed/data/set') == want, (
                done.stderr
            )


def test_two_hundred_mutated_files_harm_nobody(tmp_path):
    rng = random.Random(1)
    originals = [
        make_video(
            tmp_path / f'good{n}.mp4', [10 * n + k for k in range(3)], seconds=2, sound=n == 0
        )
        for n in range(3)
    ]
    run(*originals, *args(tmp_path / 'alone'))
    for n in range(200):
        raw = bytearray(rng.choice(originals).read_bytes())
        for _ in range(rng.choice([1, 10, 40])):
            at = rng.randrange(len(raw) + 1)
            how, n_bytes = rng.choice(['flip', 'flip', 'cut', 'insert']), rng.randrange(1, 400)
            flipped = bytes(b ^ 1 << n_bytes % 8 for b in raw[at : at + 1])
            raw[at : at + dict(cut=n_bytes, flip=1, insert=0)[how]] = dict(
                cut=b'', flip=flipped, insert=rng.randbytes(n_bytes)
            )[how]
        (tmp_path / f'mutant{n:03d}.mp4').write_bytes(raw)
        shutil.copy(tmp_path / 'good1.vtt', tmp_path / f'mutant{n:03d}.vtt')
    done = run(tmp_path, *args(tmp_path / 'all', '--timeout_s=30'))
    rows = rows_of(tmp_path / 'all/data/set')
    causes = collections.Counter(r['cause'] or 'ok' for r in rows)
    print(f'\n  {dict(causes)}')
    assert (
        done.returncode == 0
        and len(rows) == 203
        and 'error' not in causes
        and not problems(tmp_path / 'all/data/set')
    ), causes
    fine = {r['title']: r for r in rows if r['title'].startswith('good')}
    assert len(fine) == 3 and all(r['status'] == 'ok' and r['n_frames'] == 3 for r in fine.values())


def test_ten_thousand_shards_are_joined_in_linear_time_and_flat_memory(tmp_path, capsys):
    make_video(tmp_path / 'v.mp4', [1, 2])
    run(tmp_path / 'v.mp4', *args(tmp_path))
    root = tmp_path / 'data/set'
    (one,) = [json.loads(line) for line in open(root / 'items.jsonl')]
    made = next((root / 'shards').glob('*/*.shard'))
    index, size = prepare.read_shard(made)
    patches, row = made.read_bytes()[:size], index.pop('row')

    def item(n):
        return one | dict(key=f'file:{n:040d}')

    spent = {}
    for have in 2_500, 10_000:
        for n in range(have):
            path = prepare.shard_path(root / 'shards', item(n)['key'])
            path.parent.mkdir(exist_ok=True)
            np.savez(
                stream := io.BytesIO(),
                row=np.frombuffer(json.dumps(row | dict(key=item(n)['key'])).encode(), np.uint8),
                **index,
            )
            path.write_bytes(patches + stream.getvalue() + size.to_bytes(8, 'little'))
        (root / 'items.jsonl').write_text(''.join(json.dumps(item(n)) + '\n' for n in range(have)))
        code = (
            f"import resource, sys, time; sys.path.insert(0, {str(ROOT)!r}); sys.argv = "
            f"['prepare.py'] + {args(tmp_path)!r}; import runpy\nbegan = time.time()\n"
            f"try: runpy.run_path({str(ROOT / 'prepare.py')!r}, run_name='__main__')\nexcept "
            "SystemExit as e: assert not e.code, e\n"
            "print(time.time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
        )
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
        spent[have] = tuple(map(float, done.stdout.splitlines()[-1].split()))
    with capsys.disabled():
        print(f'\n  joining (seconds, MB): {spent}')
    assert spent[10_000][0] < 6 * spent[2_500][0] and spent[10_000][1] < spent[2_500][1] + 150


def test_ten_hours_in_flat_memory(tmp_path, capsys):
    """A 10-hour file, one worker: its peak memory."""
    with av.open(str(tmp_path / 'long.mp4'), 'w') as container:
        stream = container.add_stream(
            'libx264', rate=1, options=dict(preset='ultrafast', g='5', sc_threshold='0')
        )
        stream.width, stream.height, stream.pix_fmt = 160, 96, 'yuv420p'
        for second in range(36_000):  # another picture every ten seconds
            if second % 10 == 0:
                frame = av.VideoFrame.from_ndarray(
                    scene_picture(second // 10, (160, 96)), 'rgb24'
                ).reformat(format='yuv420p')
            frame.pts, frame.time_base = second, Fraction(1, 1)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())

    def clock(s):
        return f'{s // 3600:02d}:{s // 60 % 60:02d}:{s % 60:02d}.000'

    (tmp_path / 'long.vtt').write_text(
        'WEBVTT\n\n'
        + ''.join(f'{clock(s)} --> {clock(s + 2)}\nwords {s}\n\n' for s in range(0, 35990, 5))
    )
    done = run(tmp_path / 'long.mp4', *args(tmp_path))
    (row,) = rows_of(tmp_path / 'data/set')
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    with capsys.disabled():
        print(f"\n  {row['duration'] / 3600:.1f} hours: the largest process took {peak:.0f} MB")
    assert row['status'] == 'ok' and row['duration'] > 35_000 and peak < 1500, done.stderr


def test_a_channel_of_thirty_mixed_videos_interrupted_twice(site, tmp_path):  # noqa: F811
    for n in range(8, 22):
        make_video(Site.folder / f'v{n}.mp4', [10 * n + k for k in range(6)], seconds=2)
    good = [f'{site}/good/v{n}.mp4' for n in range(8, 20)] + [
        f'{site}/slow/v20.mp4',
        f'{site}/cut/v21.mp4',
    ]
    bad = [
        f'{site}/{what}/{n}.mp4'
        for n, what in enumerate(
            ['404', '410', '401', 'html', 'garbage', '403', '503', '404', 'garbage', 'html']
        )
    ]
    copies = [f'{site}/good/v{n}.mp4?copy=1' for n in range(8, 12)] + [
        f'{site}/good/v9.mp4#t=2',
        f'{site}/good/v10.mp4',
    ]
    (tmp_path / 'channel.txt').write_text(
        '# a channel\n'
        + '\n'.join([x for both in zip(good, bad + copies) for x in both] + (bad + copies)[14:])
        + '\n'
    )
    argv = [sys.executable, ROOT / 'prepare.py', tmp_path / 'channel.txt', *args(tmp_path)]
    for how, after in (signal.SIGINT, 6), (signal.SIGKILL, 8):
        process = subprocess.Popen(
            argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(after)
        process.send_signal(how)
        process.wait()
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    rows = rows_of(tmp_path / 'data/set')
    causes = collections.Counter(r['cause'] or 'ok' for r in rows)
    print(done.stdout[done.stdout.index('joining') :])
    assert (
        done.returncode == 0
        and len(rows) == 28
        and causes['ok'] == 18
        and not problems(tmp_path / 'data/set')
    ), (causes, done.stderr)
    assert (
        sum(causes.values()) - causes['ok'] == 10 and not causes['pending'] and not causes['error']
    )
    assert json.loads((tmp_path / 'data/set/meta.json').read_text())['reuploads'] >= 4
