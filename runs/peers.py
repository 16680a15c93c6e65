"""Others' training steps on the arrays and at the size of config/bench.py, then the table with our rows: out/bench/table.md.   Called by runs/bench.sh.

Peers, from scratch, forward + backward + AdamW: transformers' ViLT doing its masked-word pass alone; a CLIP of two towers (ViT-B/16, and 12 layers of width 512
for the words), which is open_clip's and transformers' layout.
"""
import json, sys, time
from pathlib import Path
import numpy as np
import torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import train
from configurator import configure
from model import VLConfig, unpatchify

def vilt(c, V):
    from transformers import ViltConfig, ViltForMaskedLM
    net = ViltForMaskedLM(ViltConfig(vocab_size=V, max_position_embeddings=c.text_len, hidden_size=c.n_embd, num_hidden_layers=c.n_layer, num_attention_heads=c.n_head,
                                     intermediate_size=4 * c.n_embd, image_size=c.image_size, patch_size=c.patch_size, hidden_dropout_prob=0., qkv_bias=True))
    def loss(pixels, tokens, pad):
        hidden = torch.rand(tokens.shape, device=tokens.device) < .15
        return net(input_ids=torch.where(hidden, 0, tokens), attention_mask=(~pad).long(), pixel_values=pixels, labels=torch.where(hidden, tokens, -100)).loss
    return net, loss

def clip(c, V):
    from transformers import CLIPConfig, CLIPModel
    net = CLIPModel(CLIPConfig(projection_dim=512, vision_config=dict(hidden_size=c.n_embd, intermediate_size=4 * c.n_embd, num_hidden_layers=c.n_layer,
                               num_attention_heads=c.n_head, image_size=c.image_size, patch_size=c.patch_size, projection_dim=512),
                               text_config=dict(vocab_size=V, hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8,
                               max_position_embeddings=c.text_len, projection_dim=512, eos_token_id=V - 1, pad_token_id=0, bos_token_id=V - 1)))
    def loss(pixels, tokens, pad):
        return net(input_ids=tokens, attention_mask=(~pad).long(), pixel_values=pixels, return_loss=True).loss
    return net, loss

def measure(make, c, batches, dev, precision, compile, steps):
    """-> dict(ms, pairs_per_s, gflop, memory_gb): the median of `steps` steps after two."""
    from torch.utils.flop_counter import FlopCounterMode
    net, loss = make(c, 50257)
    net.to(dev).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=dev.type == 'cuda')
    if dev.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
    def step(batch):
        with torch.autocast(dev.type, torch.bfloat16, enabled=precision == 'bfloat16'):
            value = loss(*batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    with FlopCounterMode(display=False) as counter:                    # of four pairs
        loss(*(x[:4].to(dev) for x in batches[0])).backward()
    optimizer.zero_grad(set_to_none=True)
    if compile:
        net.forward = torch.compile(net.forward)
    took = []
    for i in range(steps + 2):
        began = time.perf_counter()
        step([x.to(dev) for x in batches[i % len(batches)]])
        if dev.type == 'cuda':
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    ms = 1000 * float(np.median(took[2:]))
    return dict(ms=ms, pairs_per_s=1000 * len(batches[0][0]) / ms, gflop=counter.get_total_flops() / 4e9,
                **(dict(memory_gb=train.memory_gb(dev)) if dev.type == 'cuda' else {}))

def main():
    dev = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    vocab, _, encoding = train.build_vocab()
    meta = train.open_split(Path(train.data_dir) / train.dataset, 'train').meta
    c = VLConfig(n_layer=train.n_layer, n_embd=train.n_embd, n_head=train.n_head, image_size=train.image_size, patch_size=train.patch_size, text_len=train.text_len,
                 vocab_size=len(vocab), full_size=meta['image_size'])
    sets, batches, B = train.open_sets('train', c, vocab, encoding), [], train.batch_size
    for it in range(3):
        batch = train.to_device(train.get_batch(sets, c, it, 0, B, B), meta, c, torch.device('cpu'))
        pixels = (unpatchify(batch['patches'], c.patch_size).float() / 255 - .5) / .25
        batches.append((pixels.permute(0, 3, 1, 2).contiguous(), batch['tokens'], batch['pad']))
    rows, steps = [], max(2, train.max_iters // 4)
    for path in sorted(Path('out/bench').glob('*/log.jsonl')):         # ours: the last three quarters of each run's lines
        log = [x for x in map(json.loads, open(path)) if 'ms' in x]
        log = log[max(1, len(log) // 4):]
        row = {k: float(np.median([x[k] for x in log if k in x])) for k in ('ms', 'pairs_per_s', 'tflop_per_s', 'mfu', 'memory_gb', 'wait') if k in log[-1]}
        rows.append(dict(what=f'nanoVLP, all objectives, {path.parent.name}', gflop=1e3 * row['tflop_per_s'] / row['pairs_per_s']) | row)
    for name, make in ("transformers' ViLT, masked words alone", vilt), ('two-tower CLIP (transformers)', clip):
        for precision, compile in (('bfloat16', True), ('bfloat16', False)) if dev.type == 'cuda' else (('float32', False), ('bfloat16', False)):
            what = f'{name}, ' + ('compiled' if compile else 'eager') * (dev.type == 'cuda') + precision * (dev.type != 'cuda')
            try:
                row = measure(make, c, batches, dev, precision, compile, steps)
            except Exception as e:
                print(f'{what}: {type(e).__name__}: {str(e)[:200]}')
                continue
            row['tflop_per_s'] = row['gflop'] * row['pairs_per_s'] / 1e3
            rows.append(dict(what=what) | row | (dict(mfu=row['tflop_per_s'] / train.peak_of(dev)) if train.peak_of(dev) else {}))
    device = torch.cuda.get_device_name() if dev.type == 'cuda' else f'CPU, {torch.get_num_threads()} threads'
    lines = [f'{device}, torch {torch.__version__}, batches of {B}', '',
             '| training step | ms | pairs/s | GFLOP per pair | TFLOP/s | MFU | memory, GB | waiting for data |', '|' + '---|' * 8]
    def cell(row, key, form): return form.format(row[key]) if key in row else ''
    lines += ['| ' + ' | '.join([r['what'], *(cell(r, k, f) for k, f in (('ms', '{:.0f}'), ('pairs_per_s', '{:.4g}'), ('gflop', '{:.1f}'), ('tflop_per_s', '{:.3g}'),
                                 ('mfu', '{:.1%}'), ('memory_gb', '{:.1f}'), ('wait', '{:.2%}')))]) + ' |' for r in rows]
    Path('out/bench/table.md').write_text('\n'.join(lines) + '\n')
    Path('out/bench/table.json').write_text(json.dumps(rows, indent=1) + '\n')
    print(*lines, sep='\n')

if __name__ == '__main__':
    vars(train).update(configure(vars(train)))
    main()
