"""SNLI-VE (does the picture entail the sentence?) as examples for `eval.py --task=classify`. The files are the public ones
(github.com/necla-ml/SNLI-VE), the pictures Flickr30k's.

    python data/snli_ve/prepare.py --source=/data/snli_ve --out=data/snli_ve/snli_ve
    python eval.py --run=out/full --task=classify --examples=data/snli_ve/snli_ve

Under --source: snli_ve_{train,dev,test}.jsonl and flickr30k_images/<number>.jpg. Left out and counted: sentences on
which the annotators did not agree (label '-'), or whose picture is missing.
"""
import json, os, sys
from collections import Counter
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure

source = ''
out = 'data/snli_ve/snli_ve'

def main():
    skipped, found = Counter(), {}
    for split, name in ('train', 'train'), ('val', 'dev'), ('test', 'test'):
        rows = []
        try:
            lines = Path(source, f'snli_ve_{name}.jsonl').read_text(encoding='utf-8').split('\n')
            for i, row in enumerate(json.loads(line) for line in lines if line.strip()):
                image = Path(source, 'flickr30k_images', f"{row['Flickr30K_ID']}.jpg")
                cause = 'no_label' if row['gold_label'] not in ('entailment', 'neutral', 'contradiction') else '' if image.exists() else 'no_picture'
                if cause:
                    skipped[cause] += 1
                else:
                    rows.append(dict(id=row.get('pairID', i), images=[os.path.relpath(image, out)], text=row['sentence2'], label=row['gold_label']))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
            sys.exit(f'error: snli_ve_{name}.jsonl: {type(e).__name__}: {e}; --source must be the folder with the files of SNLI-VE')
        found[split] = rows
    if not all(found.values()):
        sys.exit(f'error: nothing is left for {min(found, key=lambda k: len(found[k]))}; left out: {dict(skipped)}; is {source} the folder with the pictures?')
    Path(out).mkdir(parents=True, exist_ok=True)
    for split, rows in found.items():
        Path(out, f'{split}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
    print(f'{out}: ' + ', '.join(f'{len(v)} {k}' for k, v in found.items()) + ''.join(f'; left out {n}: {k}' for k, n in skipped.items()))

if __name__ == '__main__':
    config = configure(globals())
    main()
