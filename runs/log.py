"""What a training run writes down: out_dir/log.jsonl, the screen's lines, wandb, TensorBoard."""
import json, os, shutil, subprocess, sys, time
from pathlib import Path

import torch
import torch.distributed as dist

from runs.machine import RANK, WORLD, memory_gb, peak_of, say

# of a step, in words
SPEED = dict(ms='{:.0f} ms', pairs_per_s='{:.5g} pairs/s', gflop_per_pair='{:.1f} GFLOP per pair',
             tflop_per_s='{:.3g} TFLOP/s', mfu='MFU {:.1%}', wait='{:.1%} waiting for data',
             memory_gb='{:.2f} GB')

def summary_writer():
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        sys.exit('error: --tensorboard needs its package: pip install tensorboard')
    return SummaryWriter

class Log:
    """config: train.py's settings; start: the first step; pairs: of a step of all ranks; anew: the
    folder holds a former run, which stays as it is until begin()."""
    def __init__(self, config, start, pairs, anew=False):
        self.config = config
        self.start = start
        self.pairs = pairs
        self.names = []                  # loss, mlm, ..., grad_norm
        self.micro = []                  # the losses of each micro-step of this step,
        self.history = []                # of each step since the last line,
        self.lrs = []
        self.mark = time.perf_counter()
        self.full = False                # the disk
        self.out = Path(config['out_dir'])
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / 'log.jsonl').touch()
        except OSError as e:
            sys.exit(f'error: cannot write to out_dir={self.out}: {e}')

        # the log of a run that died may go beyond its checkpoint
        text = (self.out / 'log.jsonl').read_text(errors='replace')
        whole = [line for line in text.splitlines() if line.endswith('}')]
        self.lines = [line for line in whole if json.loads(line)['iter'] < start]
        self.pending = True              # these lines are not yet what is in the file
        self.wandb = self.open_wandb(anew)
        self.tensorboard = None          # until the former run is over
        self.writer = config['tensorboard'] and summary_writer()
        if not anew:
            self.begin()

    def open_wandb(self, anew):
        project, name = self.config['wandb_project'], self.out / 'wandb_id'
        if not project or RANK:
            return None
        try:
            import wandb
            known = name.exists() and not anew
            run = wandb.init(project=project, name=str(self.out), config=self.config,
                             id=name.read_text() if known else None, resume='allow')
            name.write_text(run.id)
            return wandb
        except ImportError:
            sys.exit('error: --wandb_project needs wandb: pip install wandb')
        except Exception as e:
            sys.exit(f'error: --wandb_project={project}: {type(e).__name__}: '
                     f'{str(e).splitlines()[0]}')

    def begin(self):
        """The former run of the folder is over: its best weights go, and its later lines."""
        if not self.pending or RANK:
            return
        self.pending = False
        git = ''
        if shutil.which('git'):
            git = subprocess.run(['git', 'rev-parse', 'HEAD'], capture_output=True, text=True,
                                 cwd=Path(__file__).parent).stdout.strip()
        made_by = {'_git': git, '_torch': torch.__version__}
        if not self.start:
            (self.out / 'best.pt').unlink(missing_ok=True)
        self.put('config.json', json.dumps(self.config | made_by, indent=1))
        self.put('log.jsonl', ''.join(line + '\n' for line in self.lines))
        if self.writer:
            self.tensorboard = self.writer(self.out / 'tensorboard', purge_step=self.start)
            for entry in map(json.loads, self.lines):
                if entry['iter'] >= self.start:
                    self.plot(entry)

    def put(self, name, text, mode='w'):
        """A full disk costs lines of the log, not the run."""
        path = self.out / name
        try:
            to = path if mode == 'a' else path.with_suffix('.part')    # whole, or as it was
            with open(to, mode) as f:
                f.write(text)
            os.replace(to, path)
        except OSError as e:
            if not self.full:
                print(f'warning: {path} not written ({e}); the run goes on without')
            self.full = True

    def write(self, entry):
        if RANK:
            return
        line = json.dumps(entry)
        if self.pending:
            self.lines.append(line)
        else:
            self.put('log.jsonl', line + '\n', 'a')
        if self.wandb:
            self.wandb.log(entry, step=entry['iter'])
        self.plot(entry)

    def plot(self, entry):
        if self.tensorboard:
            for name, value in entry.items():
                self.tensorboard.add_scalar(name, value, entry['iter'])

    def validation(self, it, entry):
        self.write(dict(iter=it) | entry)
        say(f'iter {it}: ' + ', '.join(f'{k} {v:.4f}' for k, v in entry.items()
                                       if k.count('/') == 1))

    def add(self, loss, terms):
        """Of a micro-step."""
        self.names = ['loss', *terms, 'grad_norm']
        self.micro.append(torch.stack([loss.detach(), *terms.values()]))

    def step(self, norm, lr):
        """Of all its micro-steps."""
        self.history.append(torch.cat([torch.stack(self.micro).mean(0), norm[None]]))
        self.lrs.append(lr)
        self.micro = []

    def line(self, it, steps, reader, dev, gflop):
        """After step it: every step since the last line to the file, their mean to the screen."""
        values = torch.stack(self.history).float()
        if WORLD > 1:
            dist.all_reduce(values)
        values = values.cpu() / WORLD
        n = len(values)
        # the gradients of float16 may be infinite: such steps are skipped
        checked = values[:, :-1] if self.config['dtype'] == 'float16' else values
        if not checked.isfinite().all():
            self.not_finite(values, it - n, reader)

        took = time.perf_counter() - self.mark
        speed = dict(pairs_per_s=n * self.pairs / took, ms=1000 * took / n,
                     wait=reader.waited / took, memory_gb=memory_gb(dev))
        if gflop:
            speed['tflop_per_s'] = gflop * speed['pairs_per_s'] / 1e3
            if peak := peak_of(dev):
                speed['mfu'] = speed['tflop_per_s'] / WORLD / peak
        for i, row in enumerate(values.tolist()):
            entry = dict(iter=it - n + i) | dict(zip(self.names, row)) | dict(lr=self.lrs[i])
            self.write(entry | speed if i == n - 1 else entry)
        self.print(it, steps, dict(zip(self.names, values.mean(0).tolist())), speed)
        self.history, self.lrs = [], []
        reader.waited = 0.
        self.mark = time.perf_counter()

    def print(self, it, steps, mean, speed):
        losses = [f'{k} {v:.3f}' for k, v in mean.items() if '/' not in k]
        told = [form.format(speed[k]) for k, form in SPEED.items() if k in speed]
        left = int((steps - it) * speed['ms'] / 1000)
        say(f"iter {it}/{steps} | {' '.join(losses)} | lr {self.lrs[-1]:.1e} | {', '.join(told)} | "
            f'ETA {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}')

    def not_finite(self, values, first, reader):
        """A loss is NaN or infinite: say which, when and on which samples, and end."""
        row = int((~values.isfinite()).any(1).nonzero()[0])
        wrong = [name for name, v in zip(self.names, values[row]) if not v.isfinite()]
        sys.exit(f"error: {', '.join(w for w in wrong if w != 'loss')} not finite at iteration "
                 f'{first + row}, on frames {str(reader.frames_of(first + row))[:300]}. '
                 'The checkpoints are from before it. Lower --learning_rate, or take '
                 '--dtype=float32; the same samples come again at this iteration')
