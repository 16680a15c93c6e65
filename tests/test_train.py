"""pytest tests/test_train.py -q      on a small set of scenes that the real programs prepared"""

import functools, json, math, os, random, re, shutil, signal, subprocess, sys, time, types
from pathlib import Path
import numpy as np
from PIL import Image
import pytest
import torch
import train
from configurator import configure, knobs
from conftest import ROOT, script, start
from data.arrays import (
    Frames,
    draw_noise,
    get_batch,
    open_sets,
    patchify,
    read_tokens,
    unpatchify,
)
from data.views import seen, views, window_patches
from data.tokens import EOT, build_keywords, build_vocab, gpt2_encoding
from model import VLConfig, plan_positions
from runs import checkpoints
from runs.muon import Muon, orthogonal

DEFAULTS = {k: getattr(train, k) for k in knobs(vars(train))}
TINY = dict(
    image_size=32,
    patch_size=8,
    text_len=16,
    context_s=0.5,
    n_layer=3,
    n_unimodal=2,
    n_head=2,
    n_embd=32,
    proj_dim=16,
    batch_size=32,
    max_iters=12,
    warmup_iters=4,
    n_samples=0,
    eval_interval=4,
    eval_iters=2,
    log_interval=2,
    device='cpu',
)

FULL = dict(
    itm=1.0,
    psl=1.0,
    tag=1.0,
    distill=0.4,
    distill_iters=6,
    queue_size=40,
    parts='xmm_text:1,xmm_image:1,amm_text:1,amm_image:1',
    n_unimodal=2,
)


@pytest.fixture
def knob():
    """Set train.py's knobs as a command line would, for one test."""

    def put(*files, **values):
        vars(train).update(DEFAULTS)
        argv = [f'--{k}={v}' for k, v in values.items()]
        train.config = configure(vars(train), VLConfig, argv=[*argv, *files])

    put()
    yield put
    put()


def run(knob, folder, out, *files, **values):
    """train.main() in this process -> its log."""
    values = TINY | values
    knob(*files, f'--data_dir={folder}/data', f'--out_dir={out}', **values)
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    try:
        train.main()
    finally:
        for s, handler in zip((signal.SIGINT, signal.SIGTERM), before):
            signal.signal(s, handler)
    return read_log(out)


def command(folder, out, **values):
    values = TINY | dict(data_dir=f'{folder}/data', out_dir=out) | values
    return [str(ROOT / 'train.py'), *(f'--{k}={v}' for k, v in values.items())]


def read_log(out):
    return [json.loads(line) for line in open(Path(out) / 'log.jsonl')]


def numbers(log):
    """What must be equal: all but the timings."""
    return [
        {k: v for k, v in line.items() if k not in ('pairs_per_s', 'wait', 'ms', 'memory_gb')}
        for line in log
    ]


def weights(out, name='latest'):
    return torch.load(Path(out) / f'{name}.pt', weights_only=True)['model']


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values()))


@pytest.fixture(scope='session')
def unbroken(scenes, tmp_path_factory):
    """The reference run."""
    out = tmp_path_factory.mktemp('unbroken') / 'run'
    done = script(*command(scenes, out))
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def opened(scenes, split='train', dataset='scenes', weights=(), context_s=0.5, **values):
    """-> the sets, the configuration, the vocabulary."""
    vocab, _ = build_vocab(
        [read_tokens(f'{scenes}/data/{name}', 'train') for name in dataset.split(',')]
    )
    of_model = {k: v for k, v in (TINY | values).items() if k in VLConfig.__dataclass_fields__}
    c = VLConfig(**of_model, vocab_size=len(vocab), full_size=40, n_keywords=0)
    sets = open_sets(f'{scenes}/data', dataset, split, c, vocab, context_s, weights, seed=0)
    return sets, c, vocab


# --- text windows ---------------------------------------------------------------------------------


@pytest.mark.parametrize('T', [6, 16, 64])
@pytest.mark.parametrize('context', [0, 1.0, 30.0])
def test_the_words_of_a_frame(scenes, T, context):
    data = Frames(scenes / 'data/scenes', 'train', T, context)
    ids = np.arange(len(data.frames))
    start, length = data.spans(ids)
    for i in ids:
        f, v = data.frames[i], data.videos[data.frames[i]['video']]
        spoken = [
            k
            for k in range(int(v['token_start']), int(v['token_end']) - 1)
            if f['t_ms'] - 1000 * context <= data.times[k] < f['t_end_ms'] + 1000 * context
        ]
        assert length[i] == min(T, len(spoken))
        if spoken:
            got = list(range(start[i], start[i] + length[i]))
            assert set(got) <= set(spoken) and 50256 not in data.tokens[got]
            if len(spoken) > T:  # as central as the span allows
                want = min(max(int(f['token']) - T // 2, spoken[0]), spoken[-1] + 1 - T)
                assert got[0] == want


def test_jittered_words_stay_in_bounds(scenes):
    data = Frames(scenes / 'data/scenes', 'train', 12, 1.0)
    ids, starts = np.repeat(np.arange(len(data.frames)), 20), set()
    noise = np.random.default_rng(0).random((len(ids), 3))
    start, length = data.spans(ids, noise)
    for i, s, n in zip(ids, start, length):
        f, v = data.frames[i], data.videos[data.frames[i]['video']]
        assert v['token_start'] <= s and s + n < v['token_end'] and 1 <= n <= 12
        assert (
            int(f['t_ms']) - 2000 <= data.times[s] and data.times[s + n - 1] < f['t_end_ms'] + 2000
        )
        starts.add((i, s))
    assert len(starts) > 3 * len(data.frames), 'and they do vary'


def test_caption_lists(tmp_path, knob):
    from PIL import Image

    (tmp_path / 'list.json').write_text(
        json.dumps(
            [
                dict(
                    image=f'{n}.png',
                    caption=[f'first of {n}', f'second caption of {n} is longer', 'third'],
                )
                for n in range(5)
            ]
        )
    )
    for n in range(5):
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (40, 40, 3), np.uint8)).save(
            tmp_path / f'{n}.png'
        )
    subprocess.run(
        [
            sys.executable,
            ROOT / 'prepare.py',
            f'--pairs={tmp_path}/list.json',
            f'--data_dir={tmp_path}/data',
            '--dataset=scenes',
            '--image_size=40',
            '--patch_size=8',
        ],
        check=True,
        capture_output=True,
    )
    data = Frames(tmp_path / 'data/scenes', 'train', 16, 1.0)
    ids = np.arange(len(data.frames))
    assert all(data.text(*span).startswith('first of') for span in zip(*data.spans(ids)))
    for frame in data.frames:
        said = [data.text(*span) for span in zip(*data.captions(frame['video']))]
        for text, want in zip(said, ['first of', 'second caption of', 'third'], strict=True):
            assert text.startswith(want) and '<|endoftext|>' not in text
    drawn = {tuple(data.spans(ids[:1], np.full((1, 3), u))[0]) for u in (0.1, 0.5, 0.9)}
    assert len(drawn) == 3, 'training draws one of them'
    assert run(knob, tmp_path, tmp_path / 'out', max_iters=2)[-1]['iter'] == 2


# --- pictures, order, noise -----------------------------------------------------------------------


def test_windows_are_cut_from_the_picture(scenes):
    (data,), c, _ = opened(scenes)
    raw = torch.from_numpy(data.patches[:4])
    whole = unpatchify(raw, 8)  # (4, 40, 40, 3)
    for p in 8, 16, 32:
        window = window_patches(
            raw,
            torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]]),
            data.meta,
            types.SimpleNamespace(image_size=32, patch_size=p),
        )
        for i, (y, x) in enumerate([(0, 0), (8, 0), (0, 8), (8, 8)]):
            assert torch.equal(unpatchify(window, p)[i], whole[i, y : y + 32, x : x + 32])


def test_an_epoch_has_every_frame_once_and_spreads_each_video(scenes):
    (data,), _, _ = opened(scenes)
    orders = [data.order(e) for e in range(3)]
    for order in orders:
        assert sorted(order) == list(data.usable)
        for v in np.unique(data.frames['video'][order]):
            at = np.flatnonzero(data.frames['video'][order] == v)
            assert np.diff(at).min() >= 0.25 * len(order) / len(at), (
                'frames of one video are far apart'
            )
    assert not np.array_equal(orders[0], orders[1]) and np.array_equal(orders[0], data.order(0))
    stream = np.concatenate(orders)
    for first, count in (
        (0, 10),
        (len(data.usable) - 3, 9),
        (2 * len(data.usable), 5),
        (7, 2 * len(data.usable)),
    ):
        assert np.array_equal(data.sample(first, count), stream[first : first + count])


def test_noise_is_a_function_of_seed_iteration_and_position():
    a = draw_noise(3, 5, 0, 64, 37)
    assert (
        a.shape == (64, 37)
        and a.dtype == np.float32
        and 0 <= a.min()
        and a.max() < 1
        and abs(a.mean() - 0.5) < 0.02
    )
    assert all(np.array_equal(a[i : i + 8], draw_noise(3, 5, i, 8, 37)) for i in range(0, 64, 8)), (
        'a rank draws its slice alone'
    )
    assert not np.array_equal(a, draw_noise(4, 5, 0, 64, 37)) and not np.array_equal(
        a, draw_noise(3, 6, 0, 64, 37)
    )
    assert len(np.unique(a)) > 0.99 * a.size


def test_ranks_see_what_one_rank_sees(scenes):
    for itm in 0.0, 1.0:
        sets, c, _ = opened(scenes, itm=itm)
        whole = get_batch(sets, c, 3, 0, 32, 32)
        halves = [get_batch(sets, c, 3, i, 16, 32) for i in (0, 16)]
        for k in whole:
            if k != 'noise_itm' or not itm:  # which is as wide as a rank has candidates
                assert torch.equal(whole[k], torch.cat([h[k] for h in halves]))
    assert (
        set(whole) >= {'raw', 'offset', 'tokens', 'pad', 'video', 'ids'}
        and len(set(whole['ids'].tolist())) == 32
    )


def test_sets_are_mixed_by_weight(scenes, knob, tmp_path):
    shutil.copytree(scenes / 'data' / 'scenes', tmp_path / 'data' / 'a')
    shutil.copytree(scenes / 'data' / 'scenes', tmp_path / 'data' / 'b')
    sets, c, _ = opened(tmp_path, dataset='a,b', weights=(0.75, 0.25))
    batch = get_batch(sets, c, 0, 0, 32, 32)
    assert len(set(batch['video'].tolist())) > 8 and (batch['video'] >= 1 << 32).sum() == 8
    for raw, video, frame in zip(batch['raw'], batch['video'], batch['ids']):
        data = sets[int(video) >> 32]
        assert (
            np.array_equal(data.patches[int(frame)], raw)
            and data.frames['video'][int(frame)] == int(video) & 0xFFFFFFFF
        )
    halves = [get_batch(sets, c, 0, i, 16, 32) for i in (0, 16)]
    assert torch.equal(batch['ids'], torch.cat([h['ids'] for h in halves]))
    assert (
        run(
            knob,
            tmp_path,
            tmp_path / 'out',
            dataset='a,b',
            dataset_weights=(0.75, 0.25),
            max_iters=2,
        )[-1]['iter']
        == 2
    )
    sets, c, _ = opened(tmp_path, dataset='a,b', weights=(0.99, 0.01))
    for it in range(
        9
    ):  # a batch may have no place for the smaller set, whatever frame it would be at
        assert (get_batch(sets, c, it, 0, 32, 32)['video'] < 1 << 32).all()
    assert (
        len(sets[1].sample(3 * len(sets[1].usable), 0)) == 0
        and len(opened(tmp_path, dataset='a,b', weights=(1.0, 0.0))[0]) == 1
    )


@pytest.mark.parametrize('weights', [(0.5, 0.5), (0.75, 0.25)])
@pytest.mark.parametrize('preset', ['simla', 'amm', 'full'])
def test_each_set_learns_by_every_part(scenes, weights, preset):
    """A position in a batch has the same part in every iteration, so the sets must move."""
    sets, c, _ = opened(scenes, dataset='scenes,scenes', weights=weights)
    parts = re.search(r"parts = '(.+)'", (ROOT / f'config/{preset}.py').read_text())[1]
    of_set = torch.stack([get_batch(sets, c, it, 0, 16, 16)['video'] >> 32 for it in range(16)])
    for name, at in plan_positions(parts, 16).items():
        assert of_set[:, at].float().mean() == weights[1], name


def test_evaluation_pairs_share_no_words(scenes):
    (data,), c, _ = opened(scenes, context_s=2.0)
    ids, start, length = data.pairs(1000)
    video = data.frames['video'][ids]
    assert len(ids) > 10 and all(
        start[i] + length[i] <= start[i + 1]
        for i in range(len(ids) - 1)
        if video[i] == video[i + 1]
    )


def test_ranks_count_ties_against_the_truth():
    score = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0], [5.0, 6.0, 4.0]])
    assert train.ranks(score).tolist() == [0, 1, 2]


# --- exactness ------------------------------------------------------------------------------------


def test_muon_steps_like_torchs(knob):
    if not hasattr(torch.optim, 'Muon'):
        pytest.skip('torch.optim.Muon came with torch 2.9')
    torch.manual_seed(0)
    ours = [
        torch.nn.Parameter(torch.randn(shape)) for shape in ((32, 64), (32, 64), (96, 32), (32, 32))
    ]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    a, b = (
        Muon(ours, 1e-2, 0.05),
        torch.optim.Muon(theirs, lr=1e-2, weight_decay=0.05, adjust_lr_fn='match_rms_adamw'),
    )
    for _ in range(4):
        for p, q in zip(ours, theirs):
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        a.step(), b.step()
    for p, q in zip(ours, theirs):
        assert (p - q).norm() < 2e-4 * q.norm(), 'but for the rounding of bfloat16'
    singular = torch.linalg.svdvals(orthogonal(torch.randn(3, 20, 50)))
    assert 0.6 < singular.min() and singular.max() < 1.3


def test_muon_is_compiled_for_each_of_more_than_eight_shapes(monkeypatch):
    compile_ = functools.partial(torch.compile, backend='eager')
    monkeypatch.setattr(torch, 'compile', compile_)
    monkeypatch.setattr(torch._dynamo.config, 'recompile_limit', 8)
    graphs = torch._dynamo.utils.counters['stats']
    params = [torch.nn.Parameter(torch.randn(4, 4 + n)) for n in range(10)]
    for p in params:
        p.grad = torch.randn(p.shape)
    before = graphs['unique_graphs']
    Muon(params, 1e-2, 0.0, compiled=True).step()
    assert graphs['unique_graphs'] == before + 10


def test_a_run_learns_and_logs(unbroken):
    out, said = unbroken
    log = read_log(out)
    steps, evals = [x for x in log if 'loss' in x], [x for x in log if 'val/loss' in x]
    assert [x['iter'] for x in steps] == list(range(12)) and [x['iter'] for x in evals] == [
        0,
        4,
        8,
        12,
    ]
    assert evals[-1]['val/loss'] < evals[0]['val/loss'] and {
        'val/i2t_r1',
        'val/t2i_r1',
        'val/chance',
        'val/mlm',
        'val/mim',
        'val/itc',
    } <= set(evals[0])
    assert (
        steps[0]['lr']
        < steps[3]['lr']
        == TINY.get('learning_rate', DEFAULTS['learning_rate'])
        > steps[-1]['lr']
    )
    assert 'chance: mlm' in said and 'ETA' in said and 'pairs/s' in said and 'waiting' in said
    config = json.loads((out / 'config.json').read_text())
    assert (
        config['n_embd'] == 32
        and config['_source']['n_embd'] == 'command line'
        and not list(out.glob('*.part*'))
    )
    best = torch.load(out / 'best.pt', weights_only=True)
    assert best['iter_num'] == min(evals[1:], key=lambda x: x['val/loss'])['iter']


def test_kill_and_resume_equal_the_unbroken_run(scenes, unbroken, knob, tmp_path, capsys):
    out = tmp_path / 'run'
    for _ in range(2):
        process = start(command(scenes, out, log_interval=1))
        for line in process.stdout:
            if re.match('iter ([7-9]|1.)/', line) and (out / 'latest.pt').exists():
                process.kill()
        assert process.wait() == -signal.SIGKILL
    run(knob, scenes, out)
    assert re.search('going on from .* at iteration [48]', capsys.readouterr().out), (
        'at most the checkpoint being written is lost'
    )
    assert numbers(read_log(out)) == numbers(read_log(unbroken[0])), (
        'the same losses to the last digit'
    )
    assert same_weights(weights(out), weights(unbroken[0])) and same_weights(
        weights(out, 'best'), weights(unbroken[0], 'best')
    )


@pytest.mark.parametrize('told', [signal.SIGINT, signal.SIGTERM])
def test_what_stops_it_saves_and_the_same_command_goes_on(scenes, unbroken, knob, tmp_path, told):
    """Ctrl-C; SIGTERM where Ctrl-C is ignored."""
    out = tmp_path / 'run'
    process = start(command(scenes, out, log_interval=1), deaf=told == signal.SIGTERM)
    for line in process.stdout:
        if line.startswith('iter 1/'):
            process.send_signal(told)
            break
    said, err = process.communicate()
    assert process.returncode == 130 and 'the same command goes on' in said, err
    assert torch.load(out / 'latest.pt', weights_only=True)['iter_num'] < 12
    assert numbers(run(knob, scenes, out)) == numbers(read_log(unbroken[0]))
    assert same_weights(weights(out), weights(unbroken[0]))


def test_who_may_be_told_and_how_often(monkeypatch):
    """Ctrl-C that is ignored stays so. A rank may be told twice, by the terminal and by its
    launcher, which is no second Ctrl-C, be it the only rank."""
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        stop = train.Stop()
        signal.raise_signal(signal.SIGINT)
        assert not stop.asked(1, None)
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked(1, None)
        monkeypatch.setenv('RANK', '0')
        stop = train.Stop()
        for s in (*before, *before):
            signal.raise_signal(s)
        assert stop.asked(1, None)
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def test_validation_touches_no_training_state(scenes, unbroken, knob, tmp_path):
    log = run(knob, scenes, tmp_path / 'run', eval_interval=5, eval_iters=1)
    assert numbers(x for x in log if 'loss' in x) == numbers(
        x for x in read_log(unbroken[0]) if 'loss' in x
    )
    assert same_weights(weights(tmp_path / 'run'), weights(unbroken[0]))


def test_options_of_speed_change_no_number(scenes, unbroken, knob, tmp_path, monkeypatch):
    """Reading ahead, activations computed again, a slow disk: the losses and the
    checkpoints stay the same, to the bit."""
    save = checkpoints.save_checkpoint

    def slow(path, **state):
        time.sleep(0.3)  # the run goes on meanwhile
        return save(path, **state)

    monkeypatch.setattr(checkpoints, 'save_checkpoint', slow)
    began = time.perf_counter()
    log = run(knob, scenes, tmp_path / 'run', prefetch=1, recompute=True, keep_interval=8)
    assert numbers(log) == numbers(read_log(unbroken[0])) and same_weights(
        weights(tmp_path / 'run'), weights(unbroken[0])
    )
    kept = torch.load(tmp_path / 'run' / 'iter_000008.pt', weights_only=True)
    assert (
        kept['iter_num'] == 8
        and not same_weights(kept['model'], weights(unbroken[0]))
        and time.perf_counter() - began > 1
    )
    monkeypatch.setattr(checkpoints, 'save_checkpoint', save)
    run(knob, scenes, tmp_path / 'eight', keep_interval=8, max_iters=12, eval_interval=1000)
    assert same_weights(kept['model'], weights(tmp_path / 'eight', 'iter_000008')), (
        'what was written late is what there was'
    )


def test_flops_and_kept_settings_are_logged(scenes, knob, tmp_path):
    log = [
        x
        for x in run(knob, scenes, tmp_path / 'run', max_iters=4, count_flops=True)
        if 'pairs_per_s' in x
    ]
    for x in log:
        assert (
            x['tflop_per_s'] > 0
            and x['memory_gb'] > 0.1
            and 0 <= x['wait'] < 1
            and x['ms'] * x['pairs_per_s'] == pytest.approx(32e3)
        )


LAUNCH = ['-m', 'torch.distributed.run', '--standalone']


def torchrun(n, argv):
    done = subprocess.run(
        [sys.executable, *LAUNCH, f'--nproc_per_node={n}', *argv],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


IN_TURN = """
import json, os, runpy, sys
sys.path.insert(0, os.getcwd())
for sys.argv in json.loads(sys.argv[1]):
    runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.fixture(scope='session')
def ranks(scenes, tmp_path_factory):
    """Three runs of two ranks by one launcher, for it takes long to start; in the last, which has
    no end, it is told to stop -> their folder, all that was said."""
    out = tmp_path_factory.mktemp('ranks')
    (out / 'in_turn.py').write_text(IN_TURN)
    values = dict(batch_size=16, log_interval=1)
    runs = [
        command(scenes, out / 'summed', itc=0.0, max_iters=6, **values),
        # they meet in validation too: four batches
        command(scenes, out / 'shared', max_iters=4, muon=False, eval_iters=3, **values),
        command(scenes, out / 'stopped', max_iters=100_000, eval_interval=0, **values),
    ]
    argv = json.dumps(runs, default=str)
    process = start([*LAUNCH, '--nproc_per_node=2', out / 'in_turn.py', argv], deaf=True)
    said = ''
    for line in process.stdout:
        said += line
        if line.startswith('iter 4/100000 '):
            process.send_signal(signal.SIGTERM)
            break
    rest, err = process.communicate()
    assert 'iter 4/100000 ' in said, err
    return out, said + rest


def test_two_ranks_are_one_with_accumulation(scenes, ranks, knob, tmp_path):
    out, said = ranks
    values = dict(itc=0.0, max_iters=6, batch_size=16, gradient_accumulation_steps=2)
    one, two = run(knob, scenes, tmp_path / 'one', **values), read_log(out / 'summed')
    for a, b in zip([x for x in one if 'loss' in x], [x for x in two if 'loss' in x]):
        assert a['loss'] == pytest.approx(b['loss'], rel=1e-6)
    assert same_weights(weights(tmp_path / 'one'), weights(out / 'summed')), 'to the bit'
    assert said.count('iter 6/6 ') == 1, 'one rank speaks'


def test_two_ranks_share_their_candidates(scenes, ranks, knob, tmp_path):
    one = run(knob, scenes, tmp_path / 'one', max_iters=4, batch_size=32, muon=False)
    one, two = ([x for x in log if 'loss' in x] for log in (one, read_log(ranks[0] / 'shared')))
    assert len(one) == len(two) == 4
    for a, b in zip(one, two):  # equal up to rounding, which each step amplifies
        assert all(
            a[k] == pytest.approx(b[k], rel=1e-5) for k in ('loss', 'itc', 'mlm', 'mim')
        ) and a['grad_norm'] == pytest.approx(b['grad_norm'], rel=1e-4)


def test_torchrun_passes_on_what_stops_it(ranks):
    """SIGTERM to the launcher alone: all ranks leave after the same step, saved."""
    out, said = ranks
    at = re.search('stopped at iteration (.*); the same command goes on', said)
    assert at, said
    assert torch.load(out / 'stopped/latest.pt', weights_only=True)['iter_num'] == int(at[1])


@pytest.mark.slow
def test_memory_does_not_grow(scenes, tmp_path):
    """4,000 steps with validation and checkpoints, twice those of config/demo.py: the peak of the
    first tenth stays the peak."""
    argv = command(
        scenes, tmp_path / 'run', max_iters=4000, eval_interval=200, log_interval=100, **FULL
    )
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    memory = [x['memory_gb'] for x in read_log(tmp_path / 'run') if 'memory_gb' in x]
    print(f'{memory[3]:.3f} GB after 400 steps, {memory[-1]:.3f} GB after 4,000')
    assert len(memory) == 40 and memory[-1] < 1.02 * memory[3]


@pytest.mark.slow
def test_the_loader_is_as_fast_as_memory(tmp_path, knob):
    """160 px stored, 128 px seen, warm: at least a third of the rate at which numpy copies so many
    bytes in one piece. Needs a quiet machine."""
    for argv in (
        ['data/scenes/prepare.py', '--n_videos=60', '--size=160', f'--out={tmp_path}/videos'],
        [
            'prepare.py',
            f'{tmp_path}/videos',
            f'--data_dir={tmp_path}/data',
            '--dataset=scenes',
            '--image_size=160',
            '--patch_size=16',
        ],
    ):
        subprocess.run([sys.executable, *argv], check=True, capture_output=True, cwd=ROOT)
    vocab, _ = build_vocab([read_tokens(f'{tmp_path}/data/scenes', 'train')])
    c = VLConfig(image_size=128, patch_size=16, vocab_size=len(vocab), full_size=160, n_keywords=0)
    sets = open_sets(f'{tmp_path}/data', 'scenes', 'train', c, vocab, 1.0)
    B, best = 128, [math.inf] * 2
    whole = np.array(sets[0].patches)
    out = np.empty((B, *whole.shape[1:]), np.uint8)
    for it in range(60):
        ids = np.sort(np.random.default_rng(it).permutation(len(whole) - B)[:1])[0]
        for k, go in enumerate(
            (lambda: get_batch(sets, c, it, 0, B, B), lambda: np.copyto(out, whole[ids : ids + B]))
        ):
            began = time.perf_counter()
            go()
            best[k] = min(best[k], time.perf_counter() - began)
    print(
        f'loader {out.nbytes / best[0] / 1e9:.1f} GB/s, '
        f'memcpy {out.nbytes / best[1] / 1e9:.1f} GB/s'
    )
    assert best[1] > best[0] / 3


@pytest.mark.slow
def test_two_nodes_meet(scenes, knob, tmp_path):
    """Two launchers, as on two machines, with a rendezvous on loopback: the run of one launcher
    with two ranks, to the bit."""
    torchrun(2, command(scenes, tmp_path / 'one', max_iters=6, batch_size=16))
    port = 20000 + os.getpid() % 9000
    nodes = [
        subprocess.Popen(
            [
                sys.executable,
                '-m',
                'torch.distributed.run',
                '--nnodes=2',
                '--nproc_per_node=1',
                '--rdzv_backend=c10d',
                '--rdzv_id=7',
                f'--rdzv_endpoint=127.0.0.1:{port}',
                *command(scenes, tmp_path / 'two', max_iters=6, batch_size=16),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    said = [n.communicate(timeout=300)[0] for n in nodes]
    assert [n.returncode for n in nodes] == [0, 0], said
    assert numbers(read_log(tmp_path / 'two')) == numbers(
        read_log(tmp_path / 'one')
    ) and same_weights(weights(tmp_path / 'two'), weights(tmp_path / 'one'))


@pytest.mark.slow
@pytest.mark.parametrize('trial', range(20))
def test_a_killed_rank_is_started_again(scenes, knob, tmp_path_factory, tmp_path, trial):
    """torchrun --max-restarts: a rank is killed with -9 at a random moment; the run ends with the
    weights of the unbroken one."""
    argv, whole = (
        dict(max_iters=24, batch_size=16, eval_interval=4),
        tmp_path_factory.getbasetemp() / 'whole_two_ranks',
    )
    if not (whole / 'latest.pt').exists():
        torchrun(2, command(scenes, whole, **argv))
    out = tmp_path / 'run'
    process = subprocess.Popen(
        [
            sys.executable,
            '-m',
            'torch.distributed.run',
            '--standalone',
            '--nproc_per_node=2',
            '--max-restarts=3',
            *command(scenes, out, **argv),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    at, said = random.Random(trial).choice(range(2, 24, 2)), []
    for line in process.stdout:
        said.append(line)
        if line.startswith(f'iter {at}/') and at:
            ranks = subprocess.run(
                ['pgrep', '-f', '-P', str(process.pid), 'train.py'], capture_output=True, text=True
            ).stdout.split()
            os.kill(int(ranks[trial % 2]), signal.SIGKILL)
            at = 0
    assert process.wait() == 0 and not at, ''.join(said[-20:])
    assert numbers(read_log(out)) == numbers(read_log(whole)) and same_weights(
        weights(out), weights(whole)
    )


# --- options --------------------------------------------------------------------------------------


def test_overfitting_eight_pairs_goes_to_zero(scenes, knob, tmp_path):
    log = run(
        knob,
        scenes,
        tmp_path / 'run',
        overfit=8,
        max_iters=120,
        eval_interval=120,
        learning_rate=8e-3,
        context_s=0.0,
        keep_hi=1.0,
        keep_lo=0.5,
        n_embd=64,
        n_layer=2,
        n_unimodal=1,
        batch_size=16,
    )
    first, last = (next(x for x in lines if 'val/loss' in x) for lines in (log, log[::-1]))
    assert (
        last['val/mlm'] < 0.55 * first['val/mlm']
        and last['val/itc'] < 0.5 * first['val/itc']
        and last['val/chance'] == 1 / 8
    )


@pytest.mark.parametrize(
    'values',
    [
        dict(muon=False, batch_size=16),
        dict(compact_vocab=False, batch_size=16),
        dict(dtype='bfloat16'),
        dict(patch_size=16, mim_target='norm_pix', parts='joint:1'),
        dict(parts='clean:1', mlm=0.0, mim=0.0, n_unimodal=3, batch_size=5),
        dict(parts='text_only:1', itc=0.0, mim=0.0, n_unimodal=0),
        dict(parts='image_only:1', itc=0.0, mlm=0.0, n_unimodal=0),
    ],
)
def test_options_train(scenes, knob, tmp_path, values):
    log = run(knob, scenes, tmp_path / 'run', max_iters=3, **values)
    assert [x['iter'] for x in log if 'loss' in x] == [0, 1, 2] and all(
        math.isfinite(v) for x in log for v in x.values()
    )


# --- augmentation ---------------------------------------------------------------------------------

AUGMENT = dict(min_scale=0.3, jitter=0.4, turn=20.0)


def test_a_view_of_all_of_a_picture_is_the_picture(scenes):
    (data,), c, _ = opened(scenes, image_size=40)
    raw = torch.from_numpy(data.patches[:4])
    whole = views(np.random.default_rng(0).random((4, 8)), 1.0, 0.0, 0.0)
    assert torch.equal(seen(raw, **whole, meta=data.meta, c=c), raw)


def test_without_min_scale_a_view_is_as_large_as_the_window():
    theta = views(np.random.default_rng(0).random((500, 8)), 1.0, 0.4, 0.0, window=0.8)['theta']
    assert torch.allclose(theta[:, 0, 0], torch.tensor(0.8))
    assert -0.2 <= theta[:, :, 2].min() < -0.19 and 0.19 < theta[:, :, 2].max() <= 0.2


def test_views_keep_to_their_bounds_and_show_what_they_say():
    rng = np.random.default_rng(0)
    theta, tint = views(rng.random((5000, 8)), 0.25, 0.5, 30.0).values()
    corners = torch.tensor([[x, y, 1.0] for x in (-1, 1) for y in (-1, 1)])
    flat = views(rng.random((5000, 8)), 0.25, 0.0, 0.0)['theta']
    assert (flat @ corners.T).abs().max() <= 1 + 1e-6, 'nothing from outside the picture'
    area = torch.linalg.det(theta[:, :, :2])
    assert 0.2 < area.min() and area.max() <= 1 and 0.55 < area.mean() < 0.65
    angle = torch.rad2deg(torch.atan2(theta[:, 1, 0], theta[:, 0, 0])).abs()
    assert 28 < angle.max() <= 30.01
    grey = tint[:, :, :3].sum(2)  # of light and contrast alone: grey stays grey
    assert (grey - grey[:, :1]).abs().max() < 1e-5 and 1 / 2.25 < grey.min() < grey.max() < 2.25

    # a quarter of a turn: the right becomes the top
    picture = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    picture[:, :, 4:] = 255
    turned = torch.tensor([[[0.0, -1, 0], [1, 0, 0]]])
    same = torch.eye(3, 4)[None]
    c = types.SimpleNamespace(image_size=8, patch_size=8)
    out = seen(patchify(picture, 8), turned, same, dict(patch_size=8), c)
    assert (unpatchify(out, 8)[0, :4] == 255).all() and (unpatchify(out, 8)[0, 4:] == 0).all()


def test_augmented_runs_resume_to_the_bit_and_validate_without(scenes, knob, tmp_path):
    whole = run(knob, scenes, tmp_path / 'whole', **AUGMENT)
    run(knob, scenes, tmp_path / 'parts', **AUGMENT, max_iters=4)
    assert numbers(run(knob, scenes, tmp_path / 'parts', **AUGMENT))[-1] == numbers(whole)[-1]
    assert same_weights(weights(tmp_path / 'whole'), weights(tmp_path / 'parts'))
    plain = run(knob, scenes, tmp_path / 'plain', max_iters=1)
    assert numbers(plain)[0] == numbers(whole)[0], 'validation before the first step'
    assert plain[1]['loss'] != whole[1]['loss']
    one, two = (
        views(draw_noise(7, 5, first, n, 8), 0.3, 0.4, 20.0)['theta']
        for first, n in ((0, 32), (16, 16))
    )
    assert torch.equal(one[16:], two), 'ranks see what one would'


def test_half_precision_without_git(scenes, knob, tmp_path, monkeypatch):
    """float16: the first steps overflow, by design, and are skipped, but not again in a run that
    goes on."""
    monkeypatch.setenv('PATH', '/nonexistent')
    first = [
        x['grad_norm']
        for x in run(knob, scenes, tmp_path / 'run', dtype='float16', max_iters=8, eval_interval=0)
        if 'loss' in x
    ]
    more = [
        x
        for x in run(knob, scenes, tmp_path / 'run', dtype='float16', max_iters=12, eval_interval=0)
        if 'loss' in x
    ][8:]
    assert (
        not math.isfinite(first[0])
        and len(more) == 4
        and all(math.isfinite(x['loss'] + x['grad_norm']) for x in more)
    )
    assert json.loads((tmp_path / 'run' / 'config.json').read_text())['_git'] == ''


def test_everything_resumes_exactly(scenes, knob, tmp_path, monkeypatch):
    """Teacher, queue, keywords and negatives too: a run that ends after a checkpoint and is started
    again is the unbroken one, to the bit."""
    want, save = run(knob, scenes, tmp_path / 'whole', **FULL), checkpoints.save_checkpoint

    def save_and_die(path, **state):
        save(path, **state)
        if state['iter_num'] == 8 and path.name == 'latest.pt':
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, 'save_checkpoint', save_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(knob, scenes, tmp_path / 'broken', **FULL)
    monkeypatch.setattr(checkpoints, 'save_checkpoint', save)
    assert numbers(run(knob, scenes, tmp_path / 'broken', **FULL)) == numbers(
        want
    ) and same_weights(weights(tmp_path / 'broken'), weights(tmp_path / 'whole'))
    names = weights(tmp_path / 'whole')
    assert {'itm', 'psl', 'tag'} <= set(want[-1] if 'itm' in want[-1] else want[-2]) and int(
        names['queue_at']
    ) == 12 * 32 % 40
    assert (
        math.isclose(names['alpha'], 0.4, rel_tol=1e-6)
        and 0 < (names['teacher.patch_embed.weight'] - names['patch_embed.weight']).abs().max()
    ), 'it follows, later'


def best_of(out):
    return torch.load(out / 'best.pt', weights_only=True)


def test_best_stays_the_best_when_a_run_is_extended(scenes, knob, tmp_path):
    """It ends between two validations, is extended, and diverges: best.pt is of before."""
    out = tmp_path / 'run'
    run(knob, scenes, out, max_iters=10)
    before = best_of(out)
    log = run(knob, scenes, out, max_iters=18, eval_interval=6, learning_rate=30.0, min_lr=30.0)
    last = [x for x in log if 'val/loss' in x][-1]
    assert last['iter'] == 18 and last['val/loss'] > 20 and before['iter_num'] > 0
    assert best_of(out)['iter_num'] == before['iter_num']
    assert same_weights(best_of(out)['model'], before['model'])


@pytest.mark.parametrize(
    'other',
    [dict(best_by='val/t2i_r1'), dict(batch_size=64), dict(eval_iters=1)],
)
def test_best_is_judged_by_todays_measure(scenes, knob, tmp_path, other):
    """--best_by, the candidates of the contrast or the weights change at a resume: neither frozen
    nor replaced at once."""
    out = tmp_path / 'run'
    run(knob, scenes, out, **(dict(best_by='val/i2t_r1') if 'best_by' not in other else {}))
    assert best_of(out)['iter_num'] > 0
    log = run(knob, scenes, out, **(dict(max_iters=20, best_by='val/loss') | other))
    kept, name = best_of(out)['iter_num'], other.get('best_by', 'val/loss')
    values = {x['iter']: x[name] * (-1 if name.endswith('r1') else 1) for x in log if name in x}
    new = {it: value for it, value in values.items() if it > 12}
    if kept > 12:  # better than all before it
        assert new[kept] == min(new.values())
    else:
        former = run(
            knob,
            scenes,
            tmp_path / 'judge',
            init_from=str(out / 'best.pt'),
            max_iters=0,
            **{k: v for k, v in other.items() if k != 'best_by'},
        )
        value = former[0][name] * (-1 if name.endswith('r1') else 1)
        assert value <= min(new.values())


def test_a_start_that_fails_loses_nothing_of_the_former_run(scenes, knob, tmp_path, monkeypatch):
    """Started anew over a finished run: no wandb, a mistyped measure, a loss that is not finite."""
    out = tmp_path / 'run'
    run(knob, scenes, out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    fake = types.ModuleType('wandb')

    def init(**_):
        raise RuntimeError('No API key configured. Use `wandb login`.\nmore')

    fake.init = init
    for values, words in (
        (dict(wandb_project='x'), ['--wandb_project=x', 'No API key']),
        (dict(best_by='val/lss', eval_interval=4), ['--best_by=val/lss']),
        (dict(learning_rate=1e30, min_lr=1e30, warmup_iters=0, log_interval=1), ['not finite']),
    ):
        monkeypatch.setitem(sys.modules, 'wandb', fake)
        fails(None, words, lambda: run(knob, scenes, out, resume=False, eval_iters=1, **values))
        assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    log = run(knob, scenes, out, resume=False, max_iters=3, eval_interval=2)
    assert [x['iter'] for x in log if 'loss' in x] == [0, 1, 2] and 'seed' in train.config
    assert json.loads((out / 'config.json').read_text())['max_iters'] == 3


def test_a_resumed_run_is_the_same_run_of_wandb(scenes, knob, tmp_path, monkeypatch):
    fake, ids, logged = types.ModuleType('wandb'), [], []

    def init(id=None, **_):
        ids.append(id)
        return types.SimpleNamespace(id=id or f'new{len(ids)}')

    fake.init, fake.log = init, lambda entry, step: logged.append(step)
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    run(knob, scenes, tmp_path / 'run', wandb_project='x', max_iters=2)
    run(knob, scenes, tmp_path / 'run', wandb_project='x', max_iters=3)
    run(knob, scenes, tmp_path / 'run', wandb_project='x', max_iters=1, resume=False)
    assert ids == [None, 'new1', None] and {0, 1, 2} <= set(logged)


def test_a_full_disk_costs_lines_of_the_log_not_the_run(
    scenes, knob, tmp_path, capsys, monkeypatch
):
    out = tmp_path / 'run'
    run(knob, scenes, out, max_iters=4)
    former = read_log(out)

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('runs.log.open', full, raising=False)
    log = run(knob, scenes, out, max_iters=8)
    assert log == former, 'whole, or as it was'
    assert capsys.readouterr().out.count('No space left on device); the run goes on without') == 1
    assert torch.load(out / 'latest.pt', weights_only=True)['iter_num'] == 8


@pytest.mark.filterwarnings('ignore')
@pytest.mark.xdist_group('compiled')
def test_one_objective_compiles_to_something_differentiable(scenes, knob, tmp_path, capsys):
    """By inductor: the loss and its logged copy are two outputs."""
    values = dict(parts='text_only:1', itc=0, mim=0, n_layer=1, n_unimodal=0)
    values |= dict(max_iters=2, eval_interval=0)
    eager = run(knob, scenes, tmp_path / 'eager', **values)
    compiled = run(knob, scenes, tmp_path / 'compiled', **values, compile=True)
    assert 'torch.compile failed' not in capsys.readouterr().out
    for a, b in zip(eager, compiled):
        assert a['loss'] == pytest.approx(b['loss'], rel=1e-4)
        assert a['grad_norm'] == pytest.approx(b['grad_norm'], rel=1e-3)


@pytest.mark.parametrize(
    'preset, objectives',
    dict(
        bert='mlm',
        mae='mim',
        m3ae='mlm mim',
        vilt='mlm itm',
        clip='itc',
        flip='itc',
        albef='mlm itc itm',
        simla='mlm mim itc itm psl',
        amm='mlm mim',
        full='mlm mim itc itm psl',
    ).items(),
)
def test_presets_train_what_they_say(scenes, knob, tmp_path, preset, objectives):
    log = run(
        knob,
        scenes,
        tmp_path / 'run',
        str(ROOT / f'config/{preset}.py'),
        max_iters=2,
        eval_interval=2,
        tag=1,  # as config/demo.py has it: a preset turns off what its system has not
    )
    assert {k for k in log[1] if k in ('mlm', 'mim', 'itc', 'itm', 'psl', 'tag')} == set(
        objectives.split()
    ) and train.best_by in log[-1]
    assert (tmp_path / 'run/best.pt').exists()


def test_keywords_are_content_words(scenes):
    encoding = gpt2_encoding()
    tokens = read_tokens(f'{scenes}/data/scenes', 'train')
    vocab, _ = build_vocab([tokens])
    keywords = build_keywords([tokens], vocab, 16)
    words = {encoding.decode([int(i)]).strip() for i in vocab[keywords]}
    assert {'red', 'circle', 'star', 'purple'} <= words and not words & {
        'the',
        'and',
        'this',
        'there',
        'see',
        'in',
    }
    count = np.bincount(tokens, minlength=EOT + 1)[vocab[keywords]]
    assert count[0] > 2 * count[-1] and len(build_keywords([tokens], vocab, 16, 5)) == 5


def test_a_set_without_validation_trains(scenes, knob, tmp_path, capsys):
    folder = tmp_path / 'data'
    videos = sorted((scenes / 'videos').glob('*.mp4'))[:2]
    subprocess.run(
        [
            sys.executable,
            ROOT / 'prepare.py',
            *videos,
            f'--data_dir={folder}',
            '--dataset=scenes',
            '--image_size=40',
            '--patch_size=8',
            '--val_fraction=0',
            '--test_fraction=0',
        ],
        check=True,
        capture_output=True,
    )
    log = run(knob, tmp_path, tmp_path / 'run', max_iters=2)
    assert (
        len(log) == 2
        and 'no validation set' in capsys.readouterr().out
        and (tmp_path / 'run' / 'latest.pt').exists()
    )


# --- mistakes -------------------------------------------------------------------------------------


def fails(capsys, words, go):
    with pytest.raises(SystemExit) as e:
        go()
    message = str(e.value)
    assert (
        message.startswith('error: ') and '\n' not in message and all(w in message for w in words)
    ), message


def test_mistakes_are_one_line(scenes, knob, tmp_path, capsys):
    def go(**values):
        return lambda: run(knob, scenes, tmp_path / 'run', **values)

    fails(capsys, ['absent/meta.json', 'prepare.py'], go(dataset='absent'))
    fails(capsys, ['batch_size=20', '16'], go(batch_size=20))
    fails(capsys, ['patch_size=12', 'multiple'], go(patch_size=12, image_size=24))
    fails(capsys, ['image_size=48', '40 px'], go(image_size=48))
    fails(capsys, ['n_head'], go(n_head=5))
    fails(capsys, ['joint layers'], go(n_unimodal=3))
    fails(capsys, ['--log_interval must be 1'], go(log_interval=0))
    for name in 'grad_clip', 'weight_decay', 'learning_rate', 'min_lr', 'context_s', 'max_iters':
        fails(capsys, [f'--{name} must be 0 or more'], go(**{name: -1}))
    fails(capsys, ['--beta1 must be from 0 to below 1'], go(beta1=1))
    fails(capsys, ['--beta2 must be from 0 to below 1'], go(beta2=1.5))
    fails(capsys, ['teacher_momentum=-1'], go(teacher_momentum=-1))
    fails(capsys, ['nothing to paint'], go(keep_lo=0.99))
    fails(capsys, ['patch_size=0 must be 1'], go(patch_size=0))
    fails(capsys, ['--device=gpu'], go(device='gpu'))
    fails(capsys, ['--dataset_weights', 'a share'], go(dataset_weights=(1.0, 2.0)))
    fails(capsys, ['--best_by=val/lss', 'val/loss'], go(best_by='val/lss', max_iters=1))
    (tmp_path / 'file').write_text('')
    fails(capsys, ['cannot write', 'file'], lambda: run(knob, scenes, tmp_path / 'file' / 'run'))


@pytest.mark.parametrize(
    'damage, words',
    [
        ('short', ['train_tokens.bin', 'bytes']),
        ('gone', ['val_patches.bin', '0 bytes']),
        ('version', ['format 9']),
        ('meta', ['is damaged']),
    ],
)
def test_a_damaged_set_is_refused(scenes, knob, tmp_path, capsys, damage, words):
    shutil.copytree(scenes / 'data', tmp_path / 'data', ignore=shutil.ignore_patterns('shards'))
    folder = tmp_path / 'data' / 'scenes'
    if damage == 'short':
        with open(folder / 'train_tokens.bin', 'r+b') as f:
            f.truncate(100)
    elif damage == 'gone':
        (folder / 'val_patches.bin').unlink()
    elif damage == 'meta':
        (folder / 'meta.json').write_text('{"format')
    else:
        (folder / 'meta.json').write_text(
            json.dumps(json.loads((folder / 'meta.json').read_text()) | dict(format=9))
        )
    fails(capsys, words, lambda: run(knob, tmp_path, tmp_path / 'run'))


def test_what_a_model_costs_is_told_without_data(knob, capsys):
    # of the reference setting: test_model.py
    small = '--n_layer=2', '--n_unimodal=1', '--distill=0', '--parts=xmm_text:1,clean:1'
    knob(str(ROOT / 'config/bench.py'), *small, dry_run=True, dataset='absent')
    train.main()
    told = re.findall(r'([\d.]+) GFLOP per pair (in all|for \w+)', capsys.readouterr().out)
    cost = {name: float(gflop) for gflop, name in told}
    assert list(cost)[:5] == ['for mlm', 'for mim', 'for itc', 'for itm', 'for psl']
    assert cost.pop('in all') == pytest.approx(sum(cost.values()), abs=0.5)
    with pytest.raises(SystemExit, match='no objective'):
        knob(str(ROOT / 'config/bench.py'), '--mlm=0', '--parts=text_only:1', dry_run=True)
        train.main()


def test_another_architecture_is_refused_and_other_changes_are_told(
    scenes, unbroken, knob, tmp_path, capsys
):
    shutil.copytree(unbroken[0], tmp_path / 'run')
    fails(
        capsys,
        ['n_embd is 32 there and 64 now', '--resume=false'],
        lambda: run(knob, scenes, tmp_path / 'run', n_embd=64),
    )
    assert same_weights(weights(tmp_path / 'run'), weights(unbroken[0])), 'nothing lost'
    log = run(knob, scenes, tmp_path / 'run', max_iters=14, grad_clip=0.5)
    assert 'grad_clip 1.0 -> 0.5' in capsys.readouterr().out and [
        x['iter'] for x in log if 'loss' in x
    ] == list(range(14))
    values = dict(
        data_dir=f'{scenes}/data', out_dir=str(tmp_path / 'run'), batch_size=32, device='cpu'
    )
    knob(**values, max_iters=15)
    train.main()  # of the architecture nothing is said: that of the checkpoint
    assert (
        torch.load(tmp_path / 'run' / 'latest.pt', weights_only=True)['model_config']['n_embd']
        == 32
        == train.config['n_embd']
    )
    assert read_log(tmp_path / 'run')[-1]['iter'] == 15
    knob(**values, max_iters=16, beta2=0.9, weight_decay=0.5)
    train.main()
    adamw, muon = torch.load(tmp_path / 'run' / 'latest.pt', weights_only=True)['optimizers']
    assert (
        adamw['param_groups'][0]['betas'] == (0.9, 0.9)
        and adamw['param_groups'][0]['weight_decay']
        == muon['param_groups'][0]['weight_decay']
        == 0.5
    ), 'as told'
    fails(
        capsys,
        ['cannot go on with --muon=False'],
        lambda: run(knob, scenes, tmp_path / 'run', max_iters=17, muon=False),
    )
    state = torch.load(tmp_path / 'run' / 'latest.pt', weights_only=True)
    state['model']['vocab'][7] += 1
    torch.save(state, tmp_path / 'run' / 'latest.pt')
    fails(capsys, ['other words'], lambda: run(knob, scenes, tmp_path / 'run', max_iters=17))
    assert (tmp_path / 'run' / 'best.pt').exists()
    run(knob, scenes, tmp_path / 'run', resume=False, max_iters=1, eval_interval=0)
    assert not (tmp_path / 'run' / 'best.pt').exists(), 'the best of another run'
    (tmp_path / 'run' / 'latest.pt').write_bytes(b'garbage')
    fails(capsys, ['latest.pt is not a checkpoint'], lambda: run(knob, scenes, tmp_path / 'run'))


def test_a_loss_that_is_not_finite_stops_the_run(scenes, knob, tmp_path, capsys):
    run(knob, scenes, tmp_path / 'run', max_iters=4)
    state = torch.load(tmp_path / 'run' / 'latest.pt', weights_only=True)
    state['model']['mlm_bias'][0] = math.nan
    torch.save(state, tmp_path / 'run' / 'latest.pt')
    fails(
        capsys,
        ['mlm', 'not finite at iteration 4', 'on frames ['],
        lambda: run(knob, scenes, tmp_path / 'run', max_iters=8, eval_interval=100),
    )


def test_a_full_disk_keeps_the_former_checkpoint(tmp_path, monkeypatch, capsys):
    checkpoints.save_checkpoint(tmp_path / 'latest.pt', value=torch.ones(3))

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(train.os, 'fsync', full)
    checkpoints.save_checkpoint(tmp_path / 'latest.pt', value=torch.zeros(3))
    assert (
        torch.load(tmp_path / 'latest.pt', weights_only=True)['value'].sum() == 3
        and 'No space left' in capsys.readouterr().out
        and len(list(tmp_path.iterdir())) == 1
    )


def test_samples_are_drawn_and_change_nothing(scenes, knob, tmp_path, monkeypatch):
    """A picture a validation, of held-out frames; the steps are the same to the bit, and the model
    is in training again: else nothing would join the queue."""
    settings = dict(max_iters=4, eval_interval=2, queue_size=64)
    logs = [run(knob, scenes, tmp_path / str(n), n_samples=n, **settings) for n in (0, 3)]
    losses = [[x['loss'] for x in log if 'loss' in x] for log in logs]
    assert losses[0] == losses[1] and not (tmp_path / '0/samples').exists()
    drawn = sorted((tmp_path / '3/samples').iterdir())
    assert [p.name for p in drawn] == ['000000.png', '000002.png', '000004.png']
    pixels = [np.asarray(Image.open(p)) for p in drawn]
    assert pixels[0].std() > 20 and (pixels[0] != pixels[2]).any(), 'it learns'

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('runs.pictures.sheet', full)
    log = run(knob, scenes, tmp_path / 'full', max_iters=2, eval_interval=2, n_samples=1)
    assert sum('loss' in x for x in log) == 2


def test_tensorboard_has_what_the_log_has(scenes, knob, tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def there():
        events = EventAccumulator(str(tmp_path / 'tensorboard')).Reload()
        return [(e.step, pytest.approx(e.value, rel=1e-5)) for e in events.Scalars('loss')]

    settings = dict(tensorboard=True, log_interval=2, eval_interval=2)
    for max_iters in 4, 6:  # it goes on
        log = run(knob, scenes, tmp_path, max_iters=max_iters, **settings)
    former = [(x['iter'], x['loss']) for x in log if 'loss' in x]
    assert former == there()
    with pytest.raises(SystemExit, match='no_such'):
        run(knob, scenes, tmp_path, resume=False, best_by='no_such', **settings)
    assert former == there(), 'a start that fails loses nothing'
    log = run(knob, scenes, tmp_path, max_iters=3, resume=False, seed=1, **settings)
    assert [(x['iter'], x['loss']) for x in log if 'loss' in x] == there()


def test_tensorboard_that_is_absent_is_one_line(scenes, knob, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    with pytest.raises(SystemExit, match='pip install tensorboard'):
        run(knob, scenes, tmp_path, tensorboard=True, max_iters=1)
