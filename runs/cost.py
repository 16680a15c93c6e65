"""What a training step costs, counted without computing: train.py --dry_run, --tflop_budget."""
from dataclasses import asdict

import torch
from torch.utils.flop_counter import FlopCounterMode

from model import OBJECTIVES, VLConfig, VLModel

def cost(c, B=16):
    """-> GFLOP per pair of a training step (forward, backward, teacher), MB per pair kept for the
    backward pass (float32); counted without computing."""
    kept = {}
    def keep(x):
        kept[x.untyped_storage()._cdata] = x.untyped_storage()
        return x
    with torch.device('meta'):
        model, N, T = VLModel(c), c.n_patches, c.text_len
        batch = dict(
            patches=torch.empty(B, N, c.patch_size ** 2 * 3, dtype=torch.uint8),
            tokens=torch.empty(B, T, dtype=torch.long), pad=torch.empty(B, T, dtype=torch.bool),
            video=torch.arange(B), noise_image=torch.empty(B, N), noise_text=torch.empty(B, T),
            noise_rate=torch.empty(B), noise_itm=torch.empty(B, B))
        with FlopCounterMode(display=False) as counter:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                loss = model(batch)[0]
            loss.backward()
    weights = {x.untyped_storage()._cdata for x in (*model.parameters(), *model.buffers())}
    kept_bytes = sum(x.nbytes() for key, x in kept.items() if key not in weights)
    return counter.get_total_flops() / B / 1e9, kept_bytes / B / 1e6

def print_cost(c):
    """The objectives of a VLConfig, one after the other."""
    spent, names = 0., []
    off = {name: 0. for name in (*OBJECTIVES, 'distill') if getattr(c, name)}
    for name in list(off):
        off.pop(name)
        names.append(name)
        try:
            total, kept = cost(VLConfig(**asdict(c) | off))
        except ValueError:                                             # nothing without the next
            continue
        print(f"{total - spent:8.1f} GFLOP per pair for {' and '.join(names)}")
        spent, names = total, []
    size = sum(p.numel() for p in VLModel(c).parameters() if p.requires_grad) / 1e6
    print(f'{spent:8.1f} GFLOP per pair in all; {size:.1f} M parameters, {c.vocab_size} words; per '
          f'pair {kept:.0f} MB\n         of activations are kept in float32, half in bfloat16')
