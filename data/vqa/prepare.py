"""VQA v2 as examples for `eval.py --task=classify`. The files are the public ones (visualqa.org), the pictures COCO's.

    python data/vqa/prepare.py --source=/data/vqa --out=data/vqa/v2
    python eval.py --run=out/full --task=classify --examples=data/vqa/v2

Under --source: v2_OpenEnded_mscoco_{train,val}2014_questions.json, v2_mscoco_{train,val}2014_annotations.json, and {train,val}2014/ with
COCO_train2014_000000000042.jpg and so on. train.jsonl is train2014; of val2014 every tenth picture is val.jsonl, the others
test.jsonl (the official test answers are not public). Answers are normalised as the official metric does it. Left out and counted: questions
without answers, of which a picture is missing, or whose number came before.
"""
import json, os, re, sys
from collections import Counter
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure

source = ''
out = 'data/vqa/v2'

NUMBERS = {w: str(i) for i, w in enumerate('zero one two three four five six seven eight nine ten'.split())} | dict(none='0')

def normalise(answer):
    """An answer as the official metric compares it: lower case, no punctuation, digits for numbers, no articles."""
    answer = re.sub(r"(?<!\d)[.,](?!\d)|[;/\[\]\"{}()=+\\_<>@`?!]|(?<!\w)'|'(?!\w)", ' ', answer.lower().replace('\n', ' '))
    return ' '.join(NUMBERS.get(w, w) for w in answer.split() if w not in ('a', 'an', 'the'))

def read(path):
    try:
        return json.loads(Path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError) as e:
        sys.exit(f'error: {path}: {e}; --source must be the folder with the files of VQA v2')

def main():
    rows, skipped = dict(train=[], val=[], test=[]), Counter()
    for split in 'train2014', 'val2014':
        questions = read(Path(source, f'v2_OpenEnded_mscoco_{split}_questions.json'))['questions']
        answers = {a['question_id']: a['answers'] for a in read(Path(source, f'v2_mscoco_{split}_annotations.json'))['annotations']}
        seen = set()
        for q in questions:
            image = Path(source, split, f"COCO_{split}_{q['image_id']:012d}.jpg")
            if cause := ('no_answers' if not answers.get(q['question_id']) else 'no_picture' if not image.exists() else
                         'number_came_before' if q['question_id'] in seen else ''):
                skipped[cause] += 1
                continue
            seen.add(q['question_id'])
            part = 'train' if split == 'train2014' else 'test' if q['image_id'] % 10 else 'val'
            rows[part].append(dict(id=q['question_id'], images=[os.path.relpath(image, out)], text=q['question'],
                                   answers=[normalise(a['answer']) for a in answers[q['question_id']]]))
    Path(out).mkdir(parents=True, exist_ok=True)
    for part, lines in rows.items():
        Path(out, f'{part}.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
    print(f'{out}: ' + ', '.join(f'{len(v)} {k}' for k, v in rows.items()) + ''.join(f'; left out {n}: {k}' for k, n in skipped.items()))

if __name__ == '__main__':
    config = configure(globals())
    main()
