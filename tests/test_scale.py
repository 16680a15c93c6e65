"""pytest tests/test_scale.py -q      sets of millions of frames, of which only the index exists"""

import json
import resource
import subprocess
import sys
import numpy as np
import pytest
from conftest import ROOT
from data import arrays, tokens
from data.arrays import FORMAT, Frames
from data.tokens import EOT, build_keywords, build_vocab
from prepare import FRAME, VIDEO
from test_train import opened


def test_an_epoch_in_blocks_has_every_frame_once_and_videos_whole(scenes, monkeypatch):
    monkeypatch.setattr(arrays, 'RUN', 10)
    monkeypatch.setattr(arrays, 'BLOCK', 32)
    (data,), _, _ = opened(scenes)
    n = len(data.usable)
    blocks = [[data.order(e, b) for b in range(len(data.plan(e)[0]))] for e in range(2)]
    assert all(len(epoch) > 2 and max(map(len, epoch)) < n / 2 for epoch in blocks)
    for epoch in blocks:
        assert sorted(np.concatenate(epoch)) == list(data.usable)
        videos = [set(data.frames['video'][block]) for block in epoch]
        assert sum(map(len, videos)) == len(set.union(*videos)), 'a video is in two blocks'
    stream = np.concatenate([frame for epoch in blocks for frame in epoch])
    assert not np.array_equal(np.sort(blocks[0][0]), np.sort(blocks[1][0]))
    for first, count in (0, 5), (n // 3, n // 2), (n - 2, 7), (n, 9), (3, 2 * n - 3):
        assert np.array_equal(data.sample(first, count), stream[first : first + count])


def test_words_are_counted_in_pieces_as_in_one(monkeypatch):
    said = np.random.default_rng(0).zipf(1.5, 50_000).astype(np.uint16) % EOT
    whole = [*build_vocab([said]), build_keywords([said], build_vocab([said])[0], 30)]
    monkeypatch.setattr(tokens, 'PIECE', 1000)
    pieces = [*build_vocab([said]), build_keywords([said], build_vocab([said])[0], 30)]
    assert all(map(np.array_equal, whole, pieces))


def make_index(root, n, per_video=60, words=3):
    """A train split of n frames with so many words each; the pictures take no place on the disk."""
    root.mkdir(parents=True)
    about, v = {}, n // per_video
    frames, videos = np.zeros(n, FRAME), np.zeros(v, VIDEO)
    frames['video'] = np.arange(n) // per_video
    frames['t_ms'] = np.arange(n) % per_video * 5000
    frames['t_end_ms'] = frames['t_ms'] + 5000
    frames['token'] = np.arange(n) * words + frames['video'] + 1
    videos['frame_start'] = np.arange(v) * per_video
    videos['frame_end'] = videos['frame_start'] + per_video
    videos['token_start'] = np.arange(v) * (per_video * words + 1)
    videos['token_end'] = videos['token_start'] + per_video * words + 1
    videos['duration_ms'] = per_video * 5000
    said = np.random.default_rng(0).integers(1000, 2000, (v, per_video * words + 1), np.uint16)
    said[:, -1] = EOT
    when = np.linspace(0, per_video * 5000, per_video * words + 1).astype(np.uint32)

    def put(name, array):
        if name.endswith('.npy'):
            np.save(root / name, array)
        else:
            array.tofile(root / name)
        about[name] = dict(bytes=(root / name).stat().st_size, sha256='')

    for split, share in ('train', slice(None)), ('val', slice(0)), ('test', slice(0)):
        put(f'{split}_frames.npy', frames[share])
        put(f'{split}_videos.npy', videos[share])
        put(f'{split}_tokens.bin', said[share])
        put(f'{split}_times.bin', np.tile(when, (v, 1))[share])
        rows = len(frames[share])
        with open(root / f'{split}_patches.bin', 'wb') as f:
            f.truncate(rows * 16 * 16 * 3)
        about[f'{split}_patches.bin'] = dict(bytes=rows * 16 * 16 * 3, sha256='')
    none = dict(videos=0, frames=0, tokens=0)
    counts = dict(train=dict(videos=v, frames=n, tokens=said.size), val=none, test=none)
    meta = dict(format=FORMAT, image_size=16, patch_size=8, pixel_mean=[0.5] * 3)
    meta |= dict(pixel_std=[0.25] * 3, counts=counts, arrays=about)
    (root / 'meta.json').write_text(json.dumps(meta))


ORDER = """
import resource, sys, time
from data.arrays import Frames
began = time.process_time()
data = Frames(sys.argv[1], 'train')
opened = time.process_time() - began
began = time.process_time()
data.sample(0, 512)
first = time.process_time() - began
print(len(data.usable), opened, first, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""


def test_the_index_of_a_set_is_enough_to_order_it(tmp_path):
    make_index(tmp_path / 'set', 6000)
    data = Frames(tmp_path / 'set', 'train')
    assert len(data.usable) == 6000 and sorted(data.sample(0, 6000)) == list(range(6000))
    assert data.frames.filename, 'memory-mapped'


@pytest.mark.slow
def test_twenty_million_frames_start_in_seconds(tmp_path):
    n = 20_000_040
    make_index(tmp_path / 'set', n)
    done = subprocess.run(
        [sys.executable, '-c', ORDER, str(tmp_path / 'set')],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    usable, opened_s, first_s, gb = map(float, done.stdout.split())
    print(
        f'{n} frames: opened in {opened_s:.1f} s, first batch ordered in {first_s:.1f} s, {gb} GB'
    )
    assert usable == n and opened_s < 10 and first_s < 3 and gb < 1.5

    argv = dict(dataset='set', data_dir=tmp_path, out_dir=tmp_path / 'run', max_iters=1, tag=1)
    argv |= dict(image_size=16, patch_size=8, n_layer=2, n_unimodal=1, n_embd=32, n_head=2)
    argv |= dict(batch_size=32, device='cpu', keep_hi=1.0, keep_lo=0.5, eval_interval=0)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    argv = [sys.executable, 'train.py', *(f'--{k}={v}' for k, v in argv.items())]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = after.ru_utime - before.ru_utime
    print(
        f'train.py to its first step and end: {took:.1f} s of CPU, {after.ru_maxrss / 1e6:.2f} GB'
    )
    assert after.ru_maxrss / 1e6 < 2
