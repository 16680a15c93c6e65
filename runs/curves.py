"""--task=curves: the run's log.jsonl as out/<run>/curves.png: each objective in training (smoothed)
and validation, and the validation retrieval."""
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import model as models

@dataclass
class Knobs:
    pass

def judge(model, data, pairs, k):
    path = Path(k.run) / 'log.jsonl'
    if not path.exists():
        return dict(skipped=f'no curves: {path} not found')
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt

    lines = path.read_text().split('\n')
    log = [json.loads(line) for line in lines if line.endswith('}')]   # a crash may cut the last

    def of(key):
        return np.array([(e['iter'], e[key]) for e in log if key in e]).reshape(-1, 2).T

    names = [name for name in models.OBJECTIVES if any(name in e for e in log)]
    n = len(names) + 1
    figure, axes = plt.subplots(1, n, figsize=(4 * n, 3), constrained_layout=True, squeeze=False)
    axes = axes[0]
    for axis, name in zip(axes, names):
        it, value = of(name)
        window = max(1, len(it) // 50)
        smooth = np.convolve(value, np.ones(window) / window, 'valid')
        axis.plot(it[window - 1:], smooth, label='training', lw=1)
        axis.plot(*of(f'val/{name}'), 'o-', label='validation', ms=3)
        axis.set(title=f'{name} loss')
        axis.legend()
    for key, label in dict(i2t_r1='picture to words', t2i_r1='words to picture',
                           chance='chance').items():
        axes[-1].plot(*of(f'val/{key}'), 'o-', label=label, ms=3)
    axes[-1].set(title='validation R@1')
    axes[-1].legend()
    figure.savefig(path.with_name('curves.png'), dpi=90)
    plt.close(figure)
    print(f"wrote {path.with_name('curves.png')}")
    return {}
