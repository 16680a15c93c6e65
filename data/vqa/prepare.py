"""VQA v2 as examples for fine-tuning. The files are the public ones (visualqa.org), the pictures
COCO's.

    python data/vqa/prepare.py --source=/data/vqa --out=data/vqa/v2
    python eval.py --run=out/full --task=finetune --examples=data/vqa/v2

Under --source: v2_OpenEnded_mscoco_*_questions.json, v2_mscoco_*_annotations.json, and pictures
as train2014/COCO_train2014_000000000042.jpg. train.jsonl is train2014; of val2014 every tenth
picture is val.jsonl, the others test.jsonl (the official test answers are not public). Left out and
counted: questions with fewer than four answers, without a picture, or whose number came before.
"""
import json, os, sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure
from data.examples import as_compared, public_file, write_examples

source = ''
out = 'data/vqa/v2'

def read(name, key):
    return json.loads(Path(source, name).read_text(encoding='utf-8-sig'))[key]

def read_year(year, found, skipped):
    """The questions of train2014 or val2014 -> examples into found {split: rows}."""
    answers = {}
    for a in read(f'v2_mscoco_{year}_annotations.json', 'annotations'):
        answers[a['question_id']] = as_compared([x['answer'] for x in a['answers']])
    seen = set()
    for q in read(f'v2_OpenEnded_mscoco_{year}_questions.json', 'questions'):
        number = q['question_id']
        image = Path(source, year, f"COCO_{year}_{q['image_id']:012d}.jpg")
        if len(answers.get(number, ())) < 4:
            skipped['fewer_than_4_answers'] += 1
        elif not image.exists():
            skipped['no_picture'] += 1
        elif number in seen:
            skipped['number_came_before'] += 1
        else:
            seen.add(number)
            held = 'test' if q['image_id'] % 10 else 'val'
            found['train' if year == 'train2014' else held].append(dict(
                id=number, images=[os.path.relpath(image, out)], text=q['question'],
                answers=answers[number]))

def main():
    found = dict(train=[], val=[], test=[])
    skipped = Counter()
    for year in 'train2014', 'val2014':
        with public_file(f'v2_*_{year}_*.json', 'VQA v2'):
            read_year(year, found, skipped)
    write_examples(out, found, skipped)

if __name__ == '__main__':
    config = configure(globals())
    main()
