"""VQA v2 as examples for `eval.py --task=classify`. The files are the public ones (visualqa.org), the pictures COCO's.

    python data/vqa/prepare.py --source=/data/vqa --out=data/vqa/v2
    python eval.py --run=out/full --task=classify --examples=data/vqa/v2

Under --source: v2_OpenEnded_mscoco_{train,val}2014_questions.json, v2_mscoco_{train,val}2014_annotations.json, and {train,val}2014/ with
COCO_train2014_000000000042.jpg and so on. train.jsonl is train2014; of val2014 every tenth picture is val.jsonl, the others
test.jsonl (the official test answers are not public). Answers are normalised as the official metric does it. Left out and counted: questions
with fewer than four answers, of which a picture is missing, or whose number came before.
"""
import json, os, re, sys
from collections import Counter
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure

source = ''
out = 'data/vqa/v2'

NUMBERS = {w: str(i) for i, w in enumerate('zero one two three four five six seven eight nine ten'.split())} | dict(none='0')
CONTRACTIONS = {w[:i] + w[i + 1:]: w for w in """ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't
    she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've
    something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll
    y'all'd've you'd you'd've you'll you're you've""".split() for i, c in enumerate(w) if c == "'"}              # an apostrophe that people left out

def normalise(answer):
    """An answer as the official metric compares it: lower case, no punctuation (a space in its place, unless one is beside it or a comma stands between
    digits), digits for numbers, no articles, apostrophes in contractions. The metric does so only where the ten answers are not all the same."""
    answer = answer.replace('\n', ' ').replace('\t', ' ').strip()
    text = answer
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        text = text.replace(mark, '' if f'{mark} ' in answer or f' {mark}' in answer or re.search(r'\d,\d', answer) else ' ')
    words = [NUMBERS.get(w, w) for w in re.sub(r'\.(?!\d)', '', text).lower().split()]
    return ' '.join(CONTRACTIONS.get(w, w) for w in words if w not in ('a', 'an', 'the'))

def read(name):
    try:
        return json.loads(Path(source, name).read_text(encoding='utf-8'))
    except (OSError, ValueError) as e:
        sys.exit(f'error: {name}: {e}; --source must be the folder with the files of VQA v2')

def main():
    rows, skipped = dict(train=[], val=[], test=[]), Counter()
    for split in 'train2014', 'val2014':
        questions, annotations = f'v2_OpenEnded_mscoco_{split}_questions.json', f'v2_mscoco_{split}_annotations.json'
        try:
            answers = {a['question_id']: [normalise(x['answer']) for x in a['answers']] for a in read(annotations)['annotations']}
            seen = set()
            for q in read(questions)['questions']:
                image = Path(source, split, f"COCO_{split}_{q['image_id']:012d}.jpg")
                if cause := ('fewer_than_4_answers' if len(answers.get(q['question_id'], ())) < 4 else 'no_picture' if not image.exists() else
                             'number_came_before' if q['question_id'] in seen else ''):
                    skipped[cause] += 1
                    continue
                seen.add(q['question_id'])
                part = 'train' if split == 'train2014' else 'test' if q['image_id'] % 10 else 'val'
                rows[part].append(dict(id=q['question_id'], images=[os.path.relpath(image, out)], text=q['question'], answers=answers[q['question_id']]))
        except (LookupError, TypeError, ValueError, AttributeError) as e:
            sys.exit(f'error: {questions}, {annotations}: {type(e).__name__}: {e}; expected the files of VQA v2')
    if not all(rows.values()):
        sys.exit(f'error: no questions for {min(rows, key=lambda k: len(rows[k]))} are left; left out: {dict(skipped)}; is {source} the folder with the pictures?')
    Path(out).mkdir(parents=True, exist_ok=True)
    for part, lines in rows.items():
        Path(out, f'{part}.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
    print(f'{out}: ' + ', '.join(f'{len(v)} {k}' for k, v in rows.items()) + ''.join(f'; left out {n}: {k}' for k, n in skipped.items()))

if __name__ == '__main__':
    config = configure(globals())
    main()
