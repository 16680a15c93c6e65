"""Runs compared: python eval.py --table='out/*'"""
import glob, json, math, os, re, sys
from collections import Counter
from pathlib import Path

import numpy as np

SHOWN = """i2t_r1 t2i_r1 itm_i2t_r1 itm_t2i_r1 likelihood_i2t_r1 likelihood_t2i_r1 mlm_acc_right
mlm_acc_shuffled alignment_bits psnr_masked psnr_from_words colour_acc_from_words
tags_f1 tags_of_another_f1 patches_pointing""".split()

def tell(found):
    """{name: number} -> the screen; the same for JSON, which has no NaN: None."""
    out = {}
    for name, v in found.items():
        print(f'  {name:32s}{v:.4f}' if isinstance(v, float) else f'  {name:32s}{v}')
        out[name] = v if not isinstance(v, float) or math.isfinite(v) else None
    return out

def keep(found, path):
    path.write_text(json.dumps(tell(found), indent=1))
    print(f'wrote {path}')
    return found

def numbers(path):
    """eval.json, {task: {name: number}}, as one {name: number}."""
    found = json.loads(path.read_text())
    flat = dict(found)
    for part in found.values():
        flat |= part if isinstance(part, dict) else {}
    return flat

def settings(path):
    """Knobs, and how it was judged."""
    config = json.loads((path / 'config.json').read_text())
    found = {k: v for k, v in config.items() if k[0] != '_' and k not in ('out_dir', 'seed')}
    judged = numbers(path / 'eval.json')
    for k in ('checkpoint', 'split', 'dataset', 'candidates'):
        if k in judged:
            found[f'judged: {k}'] = judged[k]
    for task, part in json.loads((path / 'eval.json').read_text()).items():
        if isinstance(part, dict) and 'judged' in part:
            found[f'judged: {task}'] = part['judged']
    return found

def results(path):
    """-> {column: [numbers]}: eval.json, fine-tuning (a number for each seed), probes."""
    found = {k: [v] for k, v in numbers(path / 'eval.json').items()
             if k in SHOWN and v is not None}
    for p in sorted(path.glob('finetune-*/result.json')):
        result = json.loads(p.read_text())
        name = re.sub(r'-\d+$', '', p.parent.name)
        scores = [result[s] for s in ('test', 'val') if result.get(s) is not None]
        found.setdefault(name, []).append(scores[0])
    for p in sorted(path.glob('probe-*.json')):
        for k, v in json.loads(p.read_text()).items():
            if k in ('linear', 'knn', 'zero_shot'):
                found[f'{p.stem} {k}'] = [v]
    return found

def cell(values):
    if len(values) > 1:
        return f'{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}'
    return f'{values[0]:.3f}' if values else ''

def compare(pattern):
    """A Markdown table, and table.json beside the runs: the knobs in which a run differs from most
    others; runs that differ in their seed alone are one row."""
    paths = [Path(p).parent for p in sorted(glob.glob(f'{pattern}/eval.json'))]
    if not paths:
        sys.exit(f'error: no {pattern}/eval.json; '
                 'evaluate the runs first: python eval.py --run=out/<run>')
    try:
        known = {path: settings(path) for path in paths}
    except (OSError, ValueError, AttributeError) as e:
        sys.exit(f'error: config.json or eval.json of a run cannot be read: {e}')

    # what differs from the commonest value of each knob
    usual, groups = {}, {}
    for name in {name for config in known.values() for name in config}:
        have = [c for c in known.values() if name in c or not name.startswith('judged')]
        values = Counter(json.dumps(config.get(name)) for config in have)
        usual[name] = values.most_common(1)[0][0]
    for path, config in known.items():
        unlike = {k: v for k, v in config.items() if json.dumps(v) != usual[k]}
        groups.setdefault(json.dumps(unlike), []).append(path)

    rows = []
    for unlike, same in groups.items():
        name = re.sub(r'-\d+$', '', same[0].name)
        row = dict(run=name, differs=json.loads(unlike), seeds=len(same))
        for path in same:
            for k, values in results(path).items():
                row[k] = row.get(k, []) + values
        rows.append(row)
    every = {k for row in rows for k in row} - {'run', 'differs', 'seeds'}
    shown = [k for k in SHOWN if k in every] + sorted(every - set(SHOWN))
    lines = [['run', 'what differs', 'seeds', *shown], ['---'] * (3 + len(shown))]
    for row in rows:
        differs = ', '.join(f'{k}={v}' for k, v in row['differs'].items())
        cells = [cell(row.get(k, [])) for k in shown]
        lines.append([row['run'], differs, str(row['seeds']), *cells])
    for line in lines:
        print('| ' + ' | '.join(line) + ' |')
    beside = Path(os.path.commonpath([p.parent for p in paths]))
    (beside / 'table.json').write_text('[' + ',\n '.join(map(json.dumps, rows)) + ']\n')
