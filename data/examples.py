"""Examples for fine-tuning and probes: JSONL of {"images": [one or two paths], "text": ...,
"label": ...}, or "answers" of four or more people for the label; "id" as you like."""
import json, os, sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from data.tokens import gpt2_encoding

SUFFIXES = '.jpg', '.jpeg', '.png', '.webp'

@contextmanager
def public_file(name, of):
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
        sys.exit(f'error: {name}: {e!r}; --source must be the folder with the files of {of}')

def convert(source, out, of, files, example, labels):
    """Public files of JSON lines {split: name} under `source` -> examples in `out`, those with one
    of the labels and their pictures. example(row, number, name) -> an example with paths."""
    found, skipped = {split: [] for split in files}, Counter()
    for split, name in files.items():
        with public_file(name, of):
            lines = Path(source, name).read_text(encoding='utf-8').split('\n')
            rows = [json.loads(line) for line in lines if line.strip()]
            for number, row in enumerate(rows):
                made = example(row, number, name)
                if made['label'] not in labels:
                    skipped['no_label'] += 1
                elif not all(p.exists() for p in made['images']):
                    skipped['no_picture'] += 1
                else:
                    made['images'] = [os.path.relpath(p, out) for p in made['images']]
                    found[split].append(made)
    write_examples(out, found, skipped)

def write_examples(out, found, skipped):
    """found {split: rows} -> out/<split>.jsonl. skipped: Counter of causes, to be told."""
    if not all(found.values()):
        sys.exit(f'error: nothing is left for {min(found, key=lambda s: len(found[s]))}; left out: '
                 f'{dict(skipped)}; is --source the folder with the pictures?')
    Path(out).mkdir(parents=True, exist_ok=True)
    for split, rows in found.items():
        lines = [json.dumps(row) + '\n' for row in rows]
        Path(out, f'{split}.jsonl').write_text(''.join(lines), encoding='utf-8')
    counts = ', '.join(f'{len(rows)} {split}' for split, rows in found.items())
    print(f'{out}: {counts}', *(f'left out {n}: {k}' for k, n in skipped.items()), sep='; ')

def read_example(line, folder):
    """-> row with scores {label: what it is worth}: of 1, 2, 3, 4 people .3, .6, .9, 1."""
    row = json.loads(line.decode())
    row['images'] = [folder / p for p in row['images']]
    if 'answers' in row:
        fine = isinstance(row['answers'], list) and len(row['answers']) >= 4
        row['scores'] = {a: min(1, .3 * n) for a, n in Counter(row['answers']).items()}
    else:
        fine = row['label'] is not None
        row['scores'] = {str(row['label']): 1.}
    if not fine or not 1 <= len(row['images']) <= 2 or not isinstance(row['text'], str):
        raise ValueError
    return row

def read_examples(path):
    """JSONL, or a folder <class>/ of pictures without text -> rows whose pictures are there."""
    pictures = [p for p in sorted(path.glob('*/*')) if p.suffix.lower() in SUFFIXES]
    rows = [dict(images=[p], text='', scores={p.parent.name: 1.}) for p in pictures]
    lines = path.read_bytes().split(b'\n') if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                rows.append(read_example(line, path.parent))
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            sys.exit(f'error: {path}, line {number}: expected one or two "images", a text, and '
                     f'a label, or the "answers" of four or more people ({e!r})')
    there = [row for row in rows if all(p.exists() for p in row['images'])]
    if not there:
        sys.exit(f'error: {path} is absent or has no example whose pictures are there')
    if lost := len(rows) - len(there):
        print(f'{path}: {lost} of {len(rows)} examples left out: their pictures are absent')
    return there

def read_splits(folder, room):
    """-> {train, val, and test if there is one: rows}. room: the model's, in tokens of text."""
    folders = not (folder / 'train.jsonl').exists() and (folder / 'train').is_dir()
    paths = {s: folder / (s if folders else f'{s}.jsonl') for s in ('train', 'val', 'test')}
    found = {s: read_examples(p) for s, p in paths.items() if s != 'test' or p.exists()}
    for split, rows in found.items():
        texts = [' ' + ' '.join(row['text'].split()) for row in rows]
        if long := sum(len(t) > room for t in gpt2_encoding().encode_ordinary_batch(texts)):
            print(f'{paths[split]}: {long} of {len(rows)} texts have more than the {room} tokens '
                  'that the model reads')
    if len({len(row['images']) for rows in found.values() for row in rows}) > 1:
        sys.exit(f'error: {folder}: some examples have one picture and some two')
    return found

def worth(row, answer):
    """What an answer scores: its label's worth; of people's answers the official VQA accuracy,
    the mean over each nine others of min(count / 3, 1)."""
    if 'answers' not in row:
        return row['scores'].get(answer, 0.)
    n = row['answers'].count(answer)
    others = [n - (given == answer) for given in row['answers']]
    return float(np.mean([min(count / 3, 1) for count in others]))
