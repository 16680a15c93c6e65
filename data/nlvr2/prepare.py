"""NLVR2 (is the sentence true of the two pictures?) as examples for fine-tuning. The files are the
public ones: github.com/lil-lab/nlvr.

    python data/nlvr2/prepare.py --source=/data/nlvr2 --out=data/nlvr2/nlvr2
    python eval.py --run=out/full --task=finetune --examples=data/nlvr2/nlvr2

Under --source: {train,dev,test1}.json and images/{train/<directory>,dev,test1}/*.png. Left out and
counted: sentences of which a picture is missing (some have left the web), or no truth value given.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure
from data.examples import convert

source = ''
out = 'data/nlvr2/nlvr2'

def example(row, number, file):
    folder = Path(source, 'images', Path(file).stem, str(row.get('directory', '')))
    stem = row['identifier'].rsplit('-', 1)[0]
    return dict(id=row['identifier'], images=[folder / f'{stem}-img{k}.png' for k in range(2)],
                text=row['sentence'], label=str(row.get('label')).lower())

if __name__ == '__main__':
    config = configure(globals())
    convert(source, out, 'NLVR2', dict(train='train.json', val='dev.json', test='test1.json'),
            example, ('true', 'false'))
