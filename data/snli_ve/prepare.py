"""SNLI-VE (does the picture entail the sentence?) as examples for fine-tuning. The files are the
public ones (github.com/necla-ml/SNLI-VE), the pictures Flickr30k's.

    python data/snli_ve/prepare.py --source=/data/snli_ve --out=data/snli_ve/snli_ve
    python eval.py --run=out/full --task=finetune --examples=data/snli_ve/snli_ve

Under --source: snli_ve_{train,dev,test}.jsonl and flickr30k_images/<number>.jpg. Left out and
counted: sentences on which the annotators did not agree (label '-'), or whose picture is missing.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure
from data.examples import convert

source = ''
out = 'data/snli_ve/snli_ve'

def example(row, number, file):
    image = Path(source, 'flickr30k_images', f"{row['Flickr30K_ID']}.jpg")
    return dict(id=row.get('pairID', number), images=[image], text=row['sentence2'],
                label=row['gold_label'])

if __name__ == '__main__':
    config = configure(globals())
    files = dict(train='snli_ve_train.jsonl', val='snli_ve_dev.jsonl', test='snli_ve_test.jsonl')
    convert(source, out, 'SNLI-VE', files, example, ('entailment', 'neutral', 'contradiction'))
