"""NLVR2 (is the sentence true of the two pictures?) as examples for fine-tuning. The files are the
public ones: github.com/lil-lab/nlvr.

    python data/nlvr2/prepare.py --source=/data/nlvr2 --out=data/nlvr2/nlvr2
    python eval.py --run=out/full --task=finetune --examples=data/nlvr2/nlvr2

Under --source: {train,dev,test1}.json and images/{train/<directory>,dev,test1}/*.png. Left out and
counted: sentences of which a picture is missing (some have left the web), or no truth value given.
"""
import os, sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure
from data.examples import public_file, read_lines, write_examples

source = ''
out = 'data/nlvr2/nlvr2'

def main():
    found = dict(train=[], val=[], test=[])
    skipped = Counter()
    for split, name in ('train', 'train'), ('val', 'dev'), ('test', 'test1'):
        with public_file(f'{name}.json', 'NLVR2'):
            for row in read_lines(Path(source, f'{name}.json')):
                folder = Path(source, 'images', name, str(row.get('directory', '')))
                stem = row['identifier'].rsplit('-', 1)[0]
                images = [folder / f'{stem}-img{k}.png' for k in range(2)]
                label = str(row.get('label')).lower()
                if not all(p.exists() for p in images):
                    skipped['no_picture'] += 1
                elif label not in ('true', 'false'):
                    skipped['no_label'] += 1
                else:
                    found[split].append(dict(
                        id=row['identifier'], images=[os.path.relpath(p, out) for p in images],
                        text=row['sentence'], label=label))
    write_examples(out, found, skipped)

if __name__ == '__main__':
    config = configure(globals())
    main()
