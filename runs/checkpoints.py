"""What a training run keeps of itself: out_dir/latest.pt, best.pt."""
import os, shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch

from runs.machine import RANK

def snapshot(state):
    """A copy of a state in memory, which a later step cannot change."""
    def copied(x):
        if isinstance(x, dict):
            return {k: copied(v) for k, v in x.items()}
        if isinstance(x, list):
            return [copied(v) for v in x]
        if not torch.is_tensor(x):
            return x
        # pinned: hundreds of copies follow each other, and the host waits once for all
        host = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda)
        return host.copy_(x.detach(), non_blocking=True)
    copy = copied(state)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return copy

def save_checkpoint(path, **state):
    """Whole or not at all: written beside, flushed, renamed -> whether it was. A full disk costs
    this checkpoint, not the former one and not the run."""
    part = Path(f'{path}.part{os.getpid()}')
    try:
        with open(part, 'wb') as f:
            torch.save(state, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
        return True
    except (OSError, RuntimeError) as e:                               # torch's of a short write
        part.unlink(missing_ok=True)
        print(f'warning: checkpoint {path} not written ({e}); the former one stays')
        return False

def link_latest(path, after):
    """latest.pt under another name too, without a second copy or write, if the writing `after`
    which it comes went well -> whether it was."""
    if after and not after.result():
        return False
    part = Path(f'{path}.part{os.getpid()}')
    for put in os.link, shutil.copyfile:                               # not every disk has links
        try:
            put(path.with_name('latest.pt'), part)
            os.replace(part, path)
            return True
        except OSError as e:
            part.unlink(missing_ok=True)
            why = e
    print(f'warning: checkpoint {path} not written ({why})')
    return False

class Checkpoints:
    """What a run keeps: copied at once, written behind the next steps, one at a time."""
    def __init__(self, config, model, optimizers, scaler):
        self.folder = Path(config['out_dir'])
        self.config = {k: v for k, v in config.items() if k[0] != '_'}
        self.model = model
        self.optimizers = optimizers
        self.scaler = scaler
        self.writer = ThreadPoolExecutor(1)
        self.writing = None

    def save(self, name, it):
        if RANK:
            return
        self.wait()                                                    # one copy at a time
        state = snapshot(dict(model=self.model.state_dict(), scaler=self.scaler.state_dict(),
                              optimizers=[o.state_dict() for o in self.optimizers]))
        self.writing = self.writer.submit(
            save_checkpoint, self.folder / name, **state, config=self.config,
            model_config=asdict(self.model.config), iter_num=it)

    def keep(self, name):
        if RANK == 0:
            self.writing = self.writer.submit(link_latest, self.folder / name, self.writing)

    def wait(self):
        """Until the last one is written -> whether it could be."""
        return self.writing is None or self.writing.result()
