"""pytest tests/test_cuda.py -q      what CUDA asks of the code, as far as a CPU can tell

With --cuda, NANOVLP_NULLGPU=<folder of the stub> and the CUDA build of torch also: every preset
compiles for sm_90, no step waits for the device, a CPU's run goes on. Nothing is computed there."""

import os
import subprocess
import sys
import pytest
import torch
import train
from conftest import ROOT
from runs import checkpoints
from runs.machine import PEAK, peak_of
from test_model import build, make_batch
from test_train import TINY, knob, run  # noqa: F401

# --- float16, bfloat16 ----------------------------------------------------------------------------


def test_a_gradient_that_is_not_finite_costs_the_step_of_all_optimizers(knob):  # noqa: F811
    knob(grad_clip=1.0)
    m = build()
    optimizers = train.configure_optimizers(m)
    assert len(optimizers) == 2
    scaler = torch.amp.GradScaler('cpu', enabled=True)
    for wrong in 'blocks.0.mlp.fc1.weight', 'tok_embed.weight', None:
        before = {n: p.detach().clone() for n, p in m.named_parameters()}
        scaler.scale(m(make_batch(m.config))[0]).backward()
        if wrong:
            m.get_parameter(wrong).grad[0, 0] = float('nan')
        scale = scaler.get_scale()
        train.update(m, optimizers, scaler)
        same = [torch.equal(p, before[n]) for n, p in m.named_parameters()]
        assert all(same) if wrong else not any(same)
        assert scaler.get_scale() == (scale / 2 if wrong else scale)
    assert all(p.isfinite().all() for p in m.parameters())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_states_are_bfloat16_between_blocks_but_never_float16(dtype):
    m, seen = build(), []
    for block in m.blocks:
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    with torch.autocast('cpu', dtype):
        loss, terms = m(make_batch(m.config))
    loss.backward()
    assert set(seen) == {dtype if dtype == torch.bfloat16 else torch.float32}
    assert all(value.dtype == torch.float32 for value in (loss, *terms.values()))
    assert all(p.grad.dtype == torch.float32 for p in m.parameters() if p.requires_grad)


# --- fewer operations, the same numbers -----------------------------------------------------------


def test_the_last_layer_asked_for_less_says_the_same():
    m = build()
    batch = make_batch(m.config, 6)
    pad = torch.nn.functional.pad(batch['pad'], (1, 0))
    text = m.read(batch['tokens'], pad)
    image = m.see(m.normalise(batch['patches']))
    whole, _, before = m.fuse(text, image, pad)
    for n in 1, 5, text.shape[1]:
        some, picture, same = m.fuse(text, image, pad, n)
        assert some.shape[1] == n and picture is None
        assert torch.allclose(some, whole[:, :n], atol=1e-6) and torch.equal(same, before)


def test_pictures_that_are_painted_are_asked_for():
    """A part whose picture nobody reads costs less than one whose picture is read."""
    asked = []
    for part in 'xmm_text', 'joint':
        m = build(parts=f'{part}:1', itc=0.0)
        m.blocks[-1].register_forward_hook(lambda _, args, out: asked.append((args[0], out)))
        m(make_batch(m.config))
    (x, fewer), (y, same) = asked
    assert fewer.shape[1] == 1 + m.config.text_len < x.shape[1] and same.shape == y.shape


def test_a_queue_smaller_than_a_batch_has_each_place_once():
    m = build(queue_size=5, parts='clean:1', mlm=0.0, mim=0.0, n_unimodal=3)
    ids = torch.arange(32).repeat(2, 1)
    z = torch.randn(32, m.config.proj_dim)
    m.enqueue(z, z, ids)
    assert m.queue_ids[0].unique().numel() == 5 and torch.equal(m.queue_image, z[m.queue_ids[0]])


def test_rows_that_fill_up_the_table_of_words_are_no_words():
    m, wide = build(), []
    real = torch.nn.functional.linear

    def linear(x, weight, bias=None):
        wide.append(len(weight))
        return real(x, weight, bias)

    class OnCuda(torch.Tensor):
        is_cuda = True

    states, V = torch.randn(3, 5, m.config.n_embd), m.config.vocab_size
    plain = m.mlm_head(states) @ m.tok_embed.weight[:V].T + m.mlm_bias
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, 'linear', linear)
        m.word_logits(states)
        assert wide.pop() == V + 2, 'a CPU copies no table'
        logits = m.word_logits(states.as_subclass(OnCuda)).as_subclass(torch.Tensor)
    assert (V + 2) % 64 and wide.pop() % 64 == 0, 'tensor cores read whole rows'
    assert logits.shape == (3, 5, V) and torch.allclose(logits, plain, atol=1e-5)
    logits.sum().backward()
    assert not m.tok_embed.weight.grad[V:].any()


# --- compiling ------------------------------------------------------------------------------------


@pytest.mark.xdist_group('compiled')
def test_a_compiler_that_fails_ends_the_run_and_says_the_remedy(
    scenes,
    knob,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    """Silently eager would be slower unseen."""
    torch._dynamo.reset()
    monkeypatch.setattr('torch._inductor.config.force_disable_caches', True)
    monkeypatch.setattr('torch._inductor.config.cpp.cxx', ('no-such-compiler',))
    alone = dict(parts='text_only:1', itc=0, mim=0, n_layer=1, n_unimodal=0, max_iters=1)
    with pytest.raises(SystemExit, match='error: torch.compile failed.*--compile=false'):
        run(knob, scenes, tmp_path / 'run', **alone, compile=True)
    assert not (tmp_path / 'run' / 'latest.pt').exists()


def test_cuda_graphs_are_compiled_and_add_up_nothing(scenes, knob, tmp_path):  # noqa: F811
    for value in dict(gradient_accumulation_steps=2), dict(compile=False):
        with pytest.raises(SystemExit, match='reduce-overhead needs compile, and no accumulation'):
            run(knob, scenes, tmp_path / 'run', compile_mode='reduce-overhead', **value)


def test_lengths_at_which_cudnn_gives_nan_turn_it_off(monkeypatch):
    seen = []
    monkeypatch.setattr(torch.backends.cuda, 'enable_cudnn_sdp', seen.append)
    for text_len in 12, 63, 45:  # 64 words; 46 and a [CLS] and 17 of 16 patches: no
        train.prepare_step(build(text_len=text_len), None, torch.device('cpu'), None)
    assert seen == [False]


# --- checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize('links', [True, False])
def test_best_is_the_last_checkpoint_under_another_name(tmp_path, monkeypatch, links):
    def no_links(*_):
        raise OSError('this disk has no links')

    if not links:
        monkeypatch.setattr(os, 'link', no_links)
    m = build()
    scaler = torch.amp.GradScaler('cpu', enabled=False)
    kept = checkpoints.Checkpoints(dict(out_dir=str(tmp_path), _source={}), m, [], scaler)
    latest, best = tmp_path / 'latest.pt', tmp_path / 'best.pt'
    kept.save('latest.pt', 4)
    kept.keep('best.pt')
    assert kept.wait() and best.read_bytes() == latest.read_bytes()
    assert best.samefile(latest) == links
    with torch.no_grad():
        m.cls_token.add_(1)
    kept.save('latest.pt', 8)
    assert kept.wait()
    its = [torch.load(path, weights_only=True)['iter_num'] for path in (best, latest)]
    assert its == [4, 8] and sorted(p.name for p in tmp_path.iterdir()) == ['best.pt', 'latest.pt']

    # what could not be written is not the best
    monkeypatch.setattr(checkpoints, 'save_checkpoint', lambda *_, **__: False)
    kept.save('latest.pt', 12)
    kept.keep('best.pt')
    assert not kept.wait()
    assert torch.load(best, weights_only=True)['iter_num'] == 4


# --- the machine ----------------------------------------------------------------------------------


def test_a_card_is_known_by_its_full_name(monkeypatch):
    names = {'NVIDIA H100 PCIe': 756, 'NVIDIA H200 NVL': 836, 'NVIDIA H100 80GB HBM3': 989}
    for name, tflops in (names | {'NVIDIA L40': 181, 'NVIDIA L40S': 362, 'NVIDIA L4': 121}).items():
        monkeypatch.setattr(torch.cuda, 'get_device_name', lambda _, name=name: name)
        assert peak_of(torch.device('cuda')) == tflops
    order = list(PEAK)
    assert not [(a, b) for a in order for b in order[: order.index(a)] if a != b and b in a]


# --- the null GPU: bash runs/test.sh --cuda -------------------------------------------------------

MODEL = """
import sys, torch, torch._inductor.compile_fx, train
from configurator import configure
from dataclasses import fields
from model import VLConfig, VLModel
from runs.muon import orthogonal
from test_model import make_batch
config = configure(vars(train), VLConfig, argv=sys.argv[1:])
knobs = {f.name: config[f.name] for f in fields(VLConfig) if f.name in config}
alone = round(2 * config['n_unimodal'] / config['n_layer'])
c = VLConfig(**knobs | dict(n_layer=2, n_unimodal=alone, n_head=2, n_embd=64, proj_dim=16,
             predictor_n_layer=1, text_len=12, image_size=32, patch_size=8, full_size=32,
             vocab_size=90, n_keywords=40))
model = VLModel(c).cuda()
batch = {k: v.cuda() for k, v in make_batch(c, 2 * sum(c.plan.values())).items()}
# a stub captures no graphs: how many Inductor would
taken = []
torch._inductor.compile_fx.cudagraphify = lambda step, *_, **__: taken.append(1) or step
step = torch.compile(model, fullgraph=True, mode='reduce-overhead')
for dtype in torch.bfloat16, torch.float16:
    with torch.autocast('cuda', dtype):
        loss, _ = step(batch)
    loss.backward()
    model.zero_grad()
    print('compiled', dtype)
print(len(taken), 'CUDA graphs')
torch.compile(orthogonal, dynamic=False)(torch.ones(2, 32, 64, device='cuda'))
"""

RUN = """
import sys, traceback, warnings, torch, train
from configurator import configure
from model import VLConfig
train.config = configure(vars(train), VLConfig)
torch.equal = lambda *_: True                   # what comes back from a stub is no vocabulary
update, steps, waits = train.update, [], []

def counted(*args):
    steps.append(update(*args))
    torch.cuda.set_sync_debug_mode('warn' if len(steps) > 2 else 'default')
    return steps[-1]

def noted(message, *_, **__):
    here = [f for f in traceback.extract_stack() if f.name == 'main']
    if 'called a synchronizing' in str(message) and here:
        waits.append(here[-1].line)

train.update, warnings.showwarning = counted, noted
warnings.simplefilter('always')
train.main()
print('waits', set(waits))
"""


@pytest.fixture(scope='session')
def null_gpu(request, tmp_path_factory):
    """-> f(code, *argv): that Python on the stub; skipped where it cannot be had."""
    stub = os.environ.get('NANOVLP_NULLGPU')
    if not request.config.getoption('--cuda'):
        pytest.skip('the tier of the null GPU: --cuda')
    if not stub or not torch.version.cuda:
        pytest.skip('needs NANOVLP_NULLGPU=<folder of the stub> and the CUDA build of torch')
    out = tmp_path_factory.mktemp('nullgpu')
    build = ['bash', f'{stub}/build.sh', sys.executable, str(out)]
    subprocess.run(build, check=True, capture_output=True)

    def python(code, *argv):
        script = f'. {out}/env.sh && exec "$0" "$@"'
        done = subprocess.run(
            ['bash', '-c', script, sys.executable, '-c', code, *argv],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | dict(PYTHONPATH=f'{ROOT}:{ROOT}/tests'),
        )
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
        return done.stdout

    return python


PRESETS = sorted(p.name for p in ROOT.glob('config/*.py'))


@pytest.mark.parametrize('argv', [*PRESETS, 'full.py --tag=1'])
def test_it_compiles_for_sm_90_in_one_graph(null_gpu, argv):
    said = null_gpu(MODEL, *f'config/{argv}'.split())
    # forward and backward
    assert said.count('compiled') == 2 and '4 CUDA graphs' in said, said


def test_no_step_waits_for_the_device_and_a_run_of_a_cpu_goes_on(null_gpu, scenes, tmp_path):
    values = TINY | dict(itm=1, psl=1, tag=1, distill=0.4, eval_interval=0, log_interval=50)
    values |= dict(compile=False, count_flops=False, data_dir=f'{scenes}/data', out_dir=tmp_path)

    def train_on(device, max_iters):
        last = values | dict(device=device, max_iters=max_iters)
        return null_gpu(RUN, *(f'--{k}={v}' for k, v in last.items()))

    train_on('cpu', 3)
    said = train_on('cuda', 10)
    # the one line of the log at the end reads all losses of the run
    assert "waits {'log.line(it, steps, reader, dev, gflop)'}" in said, said
