"""Others' training steps on the arrays and at the size of config/bench.py, then the table with our
rows: out/bench/table.md.

From scratch, AdamW: transformers' ViLT doing its masked-word pass alone; a CLIP of two towers (12
layers of width 512 for the words).
"""
import json, sys, time
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import train
from configurator import ConfigError, parse
from data.arrays import open_sets, read_meta, unpatchify
from model import VLConfig
from runs.log import SPEED
from runs.machine import memory_gb, open_device, peak_of

V = 50257

def size(c):
    return dict(hidden_size=c.n_embd, intermediate_size=4 * c.n_embd, num_hidden_layers=c.n_layer,
                num_attention_heads=c.n_head, image_size=c.image_size, patch_size=c.patch_size)

def vilt(c):
    from transformers import ViltConfig, ViltForMaskedLM
    net = ViltForMaskedLM(ViltConfig(vocab_size=V, max_position_embeddings=c.text_len, **size(c)))

    def loss(pixels, tokens, mask):
        hidden = torch.rand(tokens.shape, device=tokens.device) < .15
        return net(input_ids=torch.where(hidden, 0, tokens), attention_mask=mask,
                   pixel_values=pixels, labels=torch.where(hidden, tokens, -100)).loss
    return net, loss

def clip(c):
    from transformers import CLIPConfig, CLIPModel
    text = dict(vocab_size=V, max_position_embeddings=c.text_len, pad_token_id=0,
                bos_token_id=V - 1, eos_token_id=V - 1)
    net = CLIPModel(CLIPConfig(vision_config=size(c), text_config=text))

    def loss(pixels, tokens, mask):
        return net(tokens, pixels, mask, return_loss=True).loss
    return net, loss

def measure(make, c, batches, dev, way):
    """-> a row: the median of the steps after two."""
    from torch.utils.flop_counter import FlopCounterMode
    cuda = dev.type == 'cuda'
    net, loss = make(c)
    net.to(dev).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with FlopCounterMode(display=False) as counter:
        loss(*(x[:4] for x in batches[0])).backward()
    optimizer.zero_grad()
    if way == 'compiled':
        net.forward = torch.compile(net.forward)

    took = []
    for batch in batches:
        began = time.perf_counter()
        with torch.autocast(dev.type, torch.bfloat16, enabled=way != 'float32'):
            value = loss(*batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        if cuda:
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)

    took = float(np.median(took[2:]))
    pace = len(batches[0][0]) / took
    gflop = counter.get_total_flops() / 4e9
    row = dict(ms=1000 * took, pairs_per_s=pace, gflop_per_pair=gflop,
               tflop_per_s=gflop * pace / 1e3)
    if cuda:
        row['memory_gb'] = memory_gb(dev)
    if peak := peak_of(dev):
        row['mfu'] = row['tflop_per_s'] / peak
    return row

def read_batches(k, c, dev):
    """-> (pixels (B, 3, H, W), tokens, mask (B, T)) of each step: three, over and over, on the
    device beforehand (ours cross the bus in the step, as a quarter of the bytes)."""
    data, = open_sets(k['data_dir'], k['dataset'], 'train', c, None, k['context_s'])
    three = []
    for ids in np.resize(data.usable, (3, k['batch_size'])):
        patches, tokens, pad = data.read(ids, *data.spans(ids), c, 'cpu')
        pixels = (unpatchify(patches, c.patch_size).float() / 255 - .5) / .25
        batch = pixels.permute(0, 3, 1, 2).contiguous(), tokens, 1 - pad[:, 1:].long()
        three.append([x.to(dev) for x in batch])
    return (three * k['max_iters'])[:2 + max(2, k['max_iters'] // 4)]

def our_rows():
    """Medians of the last three quarters of each run's lines."""
    for path in sorted(Path('out/bench').glob('*/log.jsonl')):
        lines = [x for x in map(json.loads, open(path)) if 'ms' in x]
        lines = lines[max(1, len(lines) // 4):]
        row = dict(what=f'nanoVLP, all objectives, {path.parent.name}')
        for name in SPEED.keys() & lines[-1].keys():
            row[name] = float(np.median([x[name] for x in lines if name in x]))
        row['gflop_per_pair'] = 1e3 * row['tflop_per_s'] / row['pairs_per_s']
        yield row

def peer_rows(c, batches, dev):
    peers = {"transformers' ViLT, masked words alone": vilt, 'two-tower CLIP (transformers)': clip}
    for name, make in peers.items():
        for way in ['compiled', 'eager'] if dev.type == 'cuda' else ['float32', 'bfloat16']:
            try:
                yield dict(what=f'{name}, {way}') | measure(make, c, batches, dev, way)
            except Exception as e:
                print(f'{name}, {way}: {type(e).__name__}: {str(e)[:200]}')

def write_table(rows, title):
    lines = [title, '', ' | '.join(['training step', *SPEED]), '---|' * 8]
    for row in rows:
        cells = [form.format(row[k]) if k in row else '' for k, form in SPEED.items()]
        lines.append(' | '.join([row['what'], *cells]))
    Path('out/bench/table.md').write_text('\n'.join(lines) + '\n')
    print(*lines, sep='\n')

if __name__ == '__main__':
    try:
        k, _ = parse(vars(train), sys.argv[1:], settings=[VLConfig])
    except ConfigError as e:
        sys.exit(f'error: {e}')
    dev = open_device('auto')
    side = read_meta(Path(k['data_dir']) / k['dataset'])['image_size']
    k |= dict(vocab_size=V, full_size=side, n_keywords=0)
    c = VLConfig(**{f.name: k[f.name] for f in fields(VLConfig)})
    name = f'CPU, {torch.get_num_threads()} threads'
    if dev.type == 'cuda':
        name = torch.cuda.get_device_name()
    write_table([*our_rows(), *peer_rows(c, read_batches(k, c, dev), dev)],
                f'{name}, torch {torch.__version__}, batches of {k["batch_size"]}')
