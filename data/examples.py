"""Examples for fine-tuning and probes: JSONL of {"images": [one or two paths], "text": ...,
"label": ...}, or "answers" of four or more people for the label; "id" as you like. In test.jsonl
neither need be known."""
import json, os, re, sys
from collections import Counter
from contextlib import contextmanager
from functools import lru_cache
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
            lines = Path(source, name).read_text(encoding='utf-8-sig').split('\n')
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
    tell(out, {split: len(rows) for split, rows in found.items()}, skipped)

def tell(out, counts, skipped):
    """What was written, what was left out and why."""
    written = ', '.join(f'{n} {what}' for what, n in counts.items())
    print(f'{out}: {written}', *(f'left out {n}: {k}' for k, n in skipped.items()), sep='; ')

def read_example(line, folder, known):
    """-> row with scores {label: what it is worth}: of 1, 2, 3, 4 people .3, .6, .9, 1; {} if
    nothing is known, which may be."""
    row = json.loads(line.decode('utf-8-sig'))
    row['images'] = [folder / p for p in row['images']]
    row['scores'] = {}
    fine = not known
    if people := row.get('answers'):
        fine = isinstance(people, list) and len(people) >= 4
        row['answers'] = list(map(str, people))
        row['scores'] = {a: min(1, .3 * n) for a, n in Counter(row['answers']).items()}
    elif row.get('label') is not None:
        fine = True
        row['scores'] = {str(row['label']): 1.}
    if not fine or not 1 <= len(row['images']) <= 2 or not isinstance(row['text'], str):
        raise ValueError
    return row

def read_examples(path, known=True):
    """JSONL, or a folder <class>/ of pictures without text -> rows whose pictures are there.
    known: each must have an answer."""
    pictures = [p for p in sorted(path.glob('*/*')) if p.suffix.lower() in SUFFIXES]
    rows = [dict(images=[p], text='', scores={p.parent.name: 1.}) for p in pictures]
    lines = path.read_bytes().split(b'\n') if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                rows.append(read_example(line, path.parent, known))
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
    found = {s: read_examples(p, s != 'test') for s, p in paths.items()
             if s != 'test' or p.exists()}
    for split, rows in found.items():
        texts = [' ' + ' '.join(row['text'].split()) for row in rows]
        if long := sum(len(t) > room for t in gpt2_encoding().encode_ordinary_batch(texts)):
            print(f'{paths[split]}: {long} of {len(rows)} texts have more than the {room} tokens '
                  'that the model reads')
    if len({len(row['images']) for rows in found.values() for row in rows}) > 1:
        sys.exit(f'error: {folder}: some examples have one picture and some two')
    return found

NUMBERS = 'zero one two three four five six seven eight nine ten'.split()
NUMBERS = {w: str(i) for i, w in enumerate(NUMBERS)} | dict(none='0')
CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
CONTRACTIONS = {w[:i] + w[i + 1:]: w for w in CONTRACTIONS for i, c in enumerate(w) if c == "'"}

@lru_cache(100_000)
def normalise(answer):
    """An answer as the official VQA metric compares it: lower case, no punctuation (a space in its
    place, unless one is beside it or a comma stands between digits), digits for numbers, no
    articles, apostrophes in contractions."""
    between_digits = re.search(r'\d,\d', answer)
    text = answer
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        gone = between_digits or f'{mark} ' in answer or f' {mark}' in answer
        text = text.replace(mark, '' if gone else ' ')
    words = [NUMBERS.get(w, w) for w in re.sub(r'\.(?!\d)', '', text).lower().split()]
    return ' '.join(CONTRACTIONS.get(w, w) for w in words if w not in ('a', 'an', 'the'))

def as_compared(answers):
    """What people said, as the official metric compares it: as written where all say the same."""
    answers = [re.sub('[\n\t]', ' ', answer).strip() for answer in answers]
    return answers if len(set(answers)) == 1 else [normalise(answer) for answer in answers]

def worth(row, answer):
    """What an answer scores: its label's worth; of people's answers the official VQA accuracy,
    the mean over each nine others of min(count / 3, 1)."""
    if not row.get('answers'):
        return row['scores'].get(answer, 0.)
    given = as_compared(row['answers'])
    if len(set(given)) > 1:
        answer = normalise(answer)
    n = given.count(answer)
    others = [n - (one == answer) for one in given]
    return float(np.mean([min(count / 3, 1) for count in others]))
