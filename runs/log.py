"""What a training run writes down: out_dir/log.jsonl, the lines of the screen, wandb."""
import json, shutil, subprocess, sys, time
from pathlib import Path

import torch
import torch.distributed as dist

from runs.machine import RANK, WORLD, memory_gb, peak_of, say

class Log:
    """config: train.py's settings; start: the first step; pairs: of a step of all ranks."""
    def __init__(self, config, start, pairs):
        self.config = config
        self.pairs = pairs
        self.names = []                  # loss, mlm, ..., grad_norm
        self.micro = []                  # the losses of each micro-step of this step,
        self.history = []                # of each step since the last line,
        self.lrs = []
        self.mark = time.perf_counter()
        out = Path(config['out_dir'])
        self.path = out / 'log.jsonl'
        try:
            out.mkdir(parents=True, exist_ok=True)
            self.path.touch()
        except OSError as e:
            sys.exit(f'error: cannot write to out_dir={out}: {e}')
        self.wandb = None
        if RANK == 0:
            self.begin(out, start)

    def begin(self, out, start):
        # the log of a run that died may go beyond its checkpoint
        lines = self.path.read_text(errors='replace').splitlines(keepends=True)
        lines = [line for line in lines if line.endswith('}\n')]
        self.path.write_text(''.join(x for x in lines if json.loads(x)['iter'] < start))

        git = ''
        if shutil.which('git'):
            git = subprocess.run(['git', 'rev-parse', 'HEAD'], capture_output=True, text=True,
                                 cwd=Path(__file__).parent).stdout.strip()
        made_by = {'_git': git, '_torch': torch.__version__}
        (out / 'config.json').write_text(json.dumps(self.config | made_by, indent=1))
        if project := self.config['wandb_project']:
            try:
                import wandb
            except ImportError:
                sys.exit('error: --wandb_project needs wandb: pip install wandb')
            wandb.init(project=project, name=str(out), config=self.config, resume='allow')
            self.wandb = wandb

    def write(self, entry):
        if RANK == 0:
            with open(self.path, 'a') as f:
                f.write(json.dumps(entry) + '\n')
        if self.wandb:
            self.wandb.log(entry, step=entry['iter'])

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
        pace = speed['pairs_per_s']
        told = [f"{speed['ms']:.0f} ms", f'{pace:.{0 if pace >= 10 else 2}f} pairs/s']
        if 'tflop_per_s' in speed:
            told.append(f"{speed['tflop_per_s']:.3g} TFLOP/s")
        if 'mfu' in speed:
            told.append(f"MFU {100 * speed['mfu']:.1f} %")
        told += [f"{100 * speed['wait']:.1f} % waiting for data", f"{speed['memory_gb']:.2f} GB"]
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
