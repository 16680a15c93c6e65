"""What one training step spends its time on, by kind of work, from a profile of train.py's own:

    python runs/kinds.py config/bench.py --batch_size=16        settings as train.py takes them
"""
import functools, re, sys
from contextlib import nullcontext
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import train
from configurator import configure
from data.views import to_device
from model import VLConfig

# names of kernels on CUDA, of operators elsewhere; the first that fits
KINDS = {
    'attention': r'flash|fmha|sdp|attention',
    'matrix products': r'gemm|nvjet|cutlass|cublas|aten::(add|b)?mm$|mkldnn|linear',
    'between ranks': r'nccl|gloo|c10d|all_reduce|all_gather',
    'copies': r'memcpy|memset|aten::(copy_|cat|clone|_to_copy|fill_|zero_)$',
    'elementwise, norms, gathers': ''}

def by_kind(profile, dev):
    """-> {kind: ms}."""
    spent = dict.fromkeys(KINDS, 0.)
    for event in profile.key_averages():
        if dev.type == 'cuda':
            if event.device_type != torch.autograd.DeviceType.CUDA:
                continue
            took = event.self_device_time_total
        else:
            took = event.self_cpu_time_total
        kind = next(k for k, names in KINDS.items() if re.search(names, event.key, re.I))
        spent[kind] += took / 1000
    return spent

def main():
    dev, precision = train.set_up()
    autocast = nullcontext
    if precision != 'float32':
        autocast = functools.partial(torch.autocast, dev.type, getattr(torch, precision))
    model, sets, _ = train.build(dev)
    optimizers = train.configure_optimizers(model)
    reader = train.Reader(sets, model.config, 0)
    step_model = train.prepare_step(model, reader, dev, autocast)
    scaler = torch.amp.GradScaler(dev.type, enabled=False)

    # two to warm up, then one of which the passes and the update are profiled apart
    activities = [torch.profiler.ProfilerActivity.CPU]
    if dev.type == 'cuda':
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    for it in range(3):
        batch = to_device(reader.next(), sets[0].meta, model.config, dev)
        with torch.profiler.profile(activities=activities) as passes:
            with autocast():
                loss, _ = step_model(batch)
            loss.backward()
        with torch.profiler.profile(activities=activities) as rest:
            train.update(model, optimizers, scaler)
            model.follow(it)
    spent = by_kind(passes, dev)
    spent['optimizer, teacher'] = sum(by_kind(rest, dev).values())

    total = sum(spent.values())
    print(f'one step: {total:.1f} ms of work')
    for kind, took in spent.items():
        print(f'{took:10.1f} ms {took / total:6.1%}  {kind}')

if __name__ == '__main__':
    train.config = configure(vars(train), VLConfig)
    main()
