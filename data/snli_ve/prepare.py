"""SNLI-VE (does the picture entail the sentence?) as examples for fine-tuning. The files are the
public ones (github.com/necla-ml/SNLI-VE), the pictures Flickr30k's.

    python data/snli_ve/prepare.py --source=/data/snli_ve --out=data/snli_ve/snli_ve
    python eval.py --run=out/full --task=finetune --examples=data/snli_ve/snli_ve

Under --source: snli_ve_{train,dev,test}.jsonl and flickr30k_images/<number>.jpg. Left out and
counted: sentences on which the annotators did not agree (label '-'), or whose picture is missing.
"""
import os, sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure
from data.examples import public_file, read_lines, write_examples

source = ''
out = 'data/snli_ve/snli_ve'

def main():
    found = dict(train=[], val=[], test=[])
    skipped = Counter()
    for split, name in ('train', 'train'), ('val', 'dev'), ('test', 'test'):
        file = f'snli_ve_{name}.jsonl'
        with public_file(file, 'SNLI-VE'):
            for i, row in enumerate(read_lines(Path(source, file))):
                image = Path(source, 'flickr30k_images', f"{row['Flickr30K_ID']}.jpg")
                if row['gold_label'] not in ('entailment', 'neutral', 'contradiction'):
                    skipped['no_label'] += 1
                elif not image.exists():
                    skipped['no_picture'] += 1
                else:
                    found[split].append(dict(
                        id=row.get('pairID', i), images=[os.path.relpath(image, out)],
                        text=row['sentence2'], label=row['gold_label']))
    write_examples(out, found, skipped)

if __name__ == '__main__':
    config = configure(globals())
    main()
