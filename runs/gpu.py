"""What a training step consists of, measured alone on a CUDA GPU. runs/gpu.sh calls it:

    python runs/gpu.py arrays        data/gpu: random patches and words at config/bench.py's size
    python runs/gpu.py machine       versions, power; a large matrix product, a large copy
    python runs/gpu.py products      the step's own: the trunk's, and the words' with 50,304 rows
    python runs/gpu.py attention     each length and kernel: time, error, NaN
    python runs/gpu.py parts         optimizer, teacher, snapshot, copy to the device, window
    python runs/gpu.py table         out/gpu/*.json and the logs of train.py -> out/gpu/table.md

Each measured row is printed at once, as a line of JSON, and kept in out/gpu/<step>.json.
"""
import json, subprocess, sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

OUT = Path('out/gpu')
FRAMES, SIDE, PATCH = 2048, 272, 16
PAIRS = 512                      # of a step
D, TOKENS = 768, 124_416         # width, and the rows of the step's largest product
KERNELS = 'CUDNN_ATTENTION', 'FLASH_ATTENTION', 'EFFICIENT_ATTENTION'

def ms(f, n=10):
    """Of the device, the median of n calls after two."""
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(n + 2)]
    for begin, end in events:
        begin.record()
        f()
        end.record()
    torch.cuda.synchronize()
    return float(np.median([begin.elapsed_time(end) for begin, end in events[2:]]))

def random(*shape, dtype=torch.bfloat16, grad=False):
    return torch.randn(*shape, device='cuda', dtype=dtype, requires_grad=grad)

def arrays():
    """A set that nobody can learn from, in the format of prepare.py."""
    from data.arrays import FORMAT
    from data.tokens import EOT
    from prepare import FRAME, SPLITS, VIDEO
    root, rng, about, counts = Path('data/gpu'), np.random.default_rng(0), {}, {}
    root.mkdir(parents=True, exist_ok=True)

    def put(name, array):
        array.tofile(root / name) if name.endswith('.bin') else np.save(root / name, array)
        about[name] = dict(bytes=(root / name).stat().st_size, sha256='')
    for split in SPLITS:
        n = FRAMES if split == 'train' else 64             # frames, each of a video of its own
        T = 40                                             # words of each
        tokens = rng.integers(0, EOT, (n, T)).astype(np.uint16)
        tokens[:, -1] = EOT
        frames, videos = np.zeros(n, FRAME), np.zeros(n, VIDEO)
        frames['video'] = videos['row'] = np.arange(n)
        frames['t_end_ms'] = videos['duration_ms'] = 1000
        frames['token'] = videos['token_start'] = np.arange(n) * T
        videos['token_end'] = videos['token_start'] + T
        videos['frame_start'] = np.arange(n)
        videos['frame_end'] = np.arange(n) + 1
        put(f'{split}_patches.bin', rng.integers(0, 256, (n, SIDE ** 2 * 3), np.uint8))
        put(f'{split}_tokens.bin', tokens)
        put(f'{split}_times.bin', np.tile(np.linspace(0, 1000, T).astype(np.uint32), n))
        put(f'{split}_frames.npy', frames)
        put(f'{split}_videos.npy', videos)
        counts[split] = dict(videos=n, frames=n, tokens=n * T)
    (root / 'meta.json').write_text(json.dumps(dict(
        format=FORMAT, image_size=SIDE, patch_size=PATCH, pixel_mean=[.5] * 3, pixel_std=[.25] * 3,
        counts=counts, arrays=about)))

def machine():
    """Exits with the cause where there is no NVIDIA GPU."""
    asked = 'name,driver_version,clocks.sm,clocks.max.sm,power.limit,memory.total'
    told = subprocess.run(f'nvidia-smi --query-gpu={asked} --format=csv,noheader'.split(),
                          capture_output=True, text=True).stdout.strip()
    yield dict(gpu=told, torch=torch.__version__, cudnn=torch.backends.cudnn.version())
    a, b = random(8192, 8192), random(8192, 8192)
    yield dict(what='8192^3 bfloat16', tflop_per_s=2 * 8192 ** 3 / ms(lambda: a @ b) / 1e9)
    x = torch.empty(2 << 30, dtype=torch.uint8, device='cuda')
    y = torch.empty_like(x)
    yield dict(what='copy on the device', gb_per_s=2 * x.nbytes / ms(lambda: y.copy_(x)) / 1e6)

def products():
    for rows in TOKENS, 33_024:
        for a, b in (D, 3 * D), (D, D), (D, 4 * D), (4 * D, D):
            x, w, g = random(rows, a), random(b, a), random(rows, b)
            flop = 2 * rows * a * b / 1e9
            yield dict(what=f'{rows} x {a} x {b}', forward=flop / ms(lambda: F.linear(x, w)),
                       to_input=flop / ms(lambda: g @ w), to_weight=flop / ms(lambda: g.T @ x))
    for words in 50_257, 50_304:
        x, w = random(3936, D), random(words, D)
        yield dict(what=f'{words} words, ms', ms=ms(lambda: F.linear(x, w)))

def attention():
    """Both passes at the lengths of the reference step, 64 masked too: cuDNN's NaN (pytorch issue
    196678)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    shapes = [(B, L, 64, 12) for B, L in ((512, 33), (224, 65), (256, 129), (768, 162), (224, 98))]
    for B, L, d, heads in [*shapes, (256, 289, 32, 12), (256, 64, 64, 12)]:
        q, k, v = (random(B, heads, L, d, grad=True) for _ in range(3))
        mask = None
        if L not in (65, 129):                             # pictures alone have none
            mask = torch.arange(L, device='cuda')[None, None, None] < L - 5

        def both(*x):
            F.scaled_dot_product_attention(*x, mask).sum().backward()
            return [t.grad for t in x]
        exact = [t.detach().float().requires_grad_() for t in (q, k, v)]
        with sdpa_kernel(SDPBackend.MATH):
            right = both(*exact)
        for name in KERNELS:
            row = dict(L=L, batch=B, masked=mask is not None, kernel=name)
            try:
                with sdpa_kernel(getattr(SDPBackend, name)):
                    q.grad = k.grad = v.grad = None
                    found = both(q, k, v)
                    row['nan'] = sum(int((~g.isfinite()).sum()) for g in found)
                    row['error'] = max(float((g.float() - r).abs().max())
                                       for g, r in zip(found, right))
                    yield row | dict(ms=ms(lambda: both(q, k, v)))
            except RuntimeError as e:
                yield row | dict(refused=str(e)[:80])

def parts():
    from data.views import window_patches
    from model import VLConfig, VLModel
    from runs.checkpoints import snapshot
    from runs.muon import orthogonal
    from train import configure_optimizers
    c = VLConfig(vocab_size=50_257, full_size=SIDE, n_keywords=4096, image_size=256, patch_size=16,
                 n_layer=12, n_unimodal=8, n_head=12, n_embd=D, proj_dim=256, distill=.4)
    model = VLModel(c).cuda()
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    mine = [p for p in model.parameters() if p.grad is not None]
    adamw, muon = configure_optimizers(model)
    yield dict(what='AdamW', ms=ms(adamw.step))
    yield dict(what='Muon', ms=ms(muon.step, 5))
    G = random(12, 4 * D, D)
    yield dict(what='orthogonal, 12 x 3072 x 768', eager=ms(lambda: orthogonal(G)),
               compiled=ms(lambda: muon.orthogonal(G)))
    yield dict(what='clip', ms=ms(lambda: torch.nn.utils.clip_grad_norm_(mine, 1.)))
    yield dict(what='teacher', ms=ms(lambda: model.follow(5)))
    yield dict(what='snapshot of the model', ms=ms(lambda: snapshot(model.state_dict()), 3))

    raw = torch.randint(0, 256, (PAIRS, (SIDE // PATCH) ** 2, PATCH ** 2 * 3), dtype=torch.uint8)
    there, pinned = raw.cuda(), raw.pin_memory()
    yield dict(what='114 MB to the device', ms=ms(lambda: there.copy_(pinned, non_blocking=True)))
    offset = torch.zeros(PAIRS, 2, dtype=torch.long, device='cuda')
    meta = dict(image_size=SIDE, patch_size=PATCH)
    yield dict(what='window', ms=ms(lambda: window_patches(there, offset, meta, c)))

def table():
    """What was measured, as Markdown."""
    lines = []
    for path in sorted(OUT.glob('*/log.jsonl')):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        pace = [row for row in rows if 'pairs_per_s' in row]
        if pace:
            last = pace[-1]
            lines.append(f"| {path.parent.name} | {last['ms']:.0f} | {last['pairs_per_s']:.0f} | "
                         f"{last.get('mfu', 0):.1%} | {last['memory_gb']:.1f} | "
                         f"{rows[0]['loss']:.4f}, {last['loss']:.4f} |")
    head = ['| train.py | ms | pairs/s | MFU | GB | first and last loss |', '|---' * 6 + '|']
    told = [f'    {line}' for name in ('machine', 'products', 'attention', 'parts')
            if (OUT / f'{name}.json').exists()
            for line in (OUT / f'{name}.json').read_text().splitlines()]
    (OUT / 'table.md').write_text('\n'.join([*head, *lines, '', *told]) + '\n')
    print(*head, *lines, sep='\n')

if __name__ == '__main__':
    step = sys.argv[1] if len(sys.argv) == 2 else ''
    if step in ('arrays', 'table'):
        globals()[step]()
    elif step in ('machine', 'products', 'attention', 'parts'):
        OUT.mkdir(parents=True, exist_ok=True)
        with open(OUT / f'{step}.json', 'w') as f:
            for row in globals()[step]():
                print(json.dumps(row), flush=True)
                print(json.dumps(row), file=f, flush=True)
    else:
        sys.exit(__doc__)
