"""VQA v2 as examples for fine-tuning. The files are the public ones (visualqa.org), the pictures
COCO's.

    python data/vqa/prepare.py --source=/data/vqa --out=data/vqa/v2
    python eval.py --run=out/full --task=finetune --examples=data/vqa/v2

Under --source: v2_OpenEnded_mscoco_*_questions.json, v2_mscoco_*_annotations.json, and pictures
as train2014/COCO_train2014_000000000042.jpg. train.jsonl is train2014; of val2014 every tenth
picture is val.jsonl, the others test.jsonl (the official test answers are not public). Left out and
counted: questions with fewer than four answers, without a picture, or whose number came before.
"""
import json, os, re, sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure
from data.examples import public_file, write_examples

source = ''
out = 'data/vqa/v2'

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

def normalise(answer):
    """An answer as the official metric compares it: lower case, no punctuation (a space in its
    place, unless one is beside it or a comma stands between digits), digits for numbers, no
    articles, apostrophes in contractions. The metric does so only where the ten answers differ."""
    answer = answer.replace('\n', ' ').replace('\t', ' ').strip()
    between_digits = re.search(r'\d,\d', answer)
    text = answer
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        gone = between_digits or f'{mark} ' in answer or f' {mark}' in answer
        text = text.replace(mark, '' if gone else ' ')
    words = [NUMBERS.get(w, w) for w in re.sub(r'\.(?!\d)', '', text).lower().split()]
    return ' '.join(CONTRACTIONS.get(w, w) for w in words if w not in ('a', 'an', 'the'))

def read(name, key):
    return json.loads(Path(source, name).read_text(encoding='utf-8'))[key]

def read_year(year, found, skipped):
    """The questions of train2014 or val2014 -> examples into found {split: rows}."""
    answers = {}
    for a in read(f'v2_mscoco_{year}_annotations.json', 'annotations'):
        answers[a['question_id']] = [normalise(x['answer']) for x in a['answers']]
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
