"""NLVR2 (is the sentence true of the two pictures?) as examples for `eval.py --task=classify`. The files are the public ones (github.com/lil-lab/nlvr).

    python data/nlvr2/prepare.py --source=/data/nlvr2 --out=data/nlvr2/nlvr2
    python eval.py --run=out/full --task=classify --examples=data/nlvr2/nlvr2

Under --source: {train,dev,test1}.json and images/{train/<directory>,dev,test1}/*.png. Left out and counted: sentences of which a
picture is missing (part of the training pictures have left the web), or whose label is no truth value.
"""
import json, os, sys
from collections import Counter
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure

source = ''
out = 'data/nlvr2/nlvr2'

def main():
    skipped, found = Counter(), {}
    for split, name in ('train', 'train'), ('val', 'dev'), ('test', 'test1'):
        rows = []
        try:
            lines = Path(source, f'{name}.json').read_text(encoding='utf-8').split('\n')
            for row in (json.loads(line) for line in lines if line.strip()):
                folder = Path(source, 'images', name, *([str(row['directory'])] if 'directory' in row else []))
                images = [folder / f"{row['identifier'].rsplit('-', 1)[0]}-img{k}.png" for k in range(2)]
                cause = 'no_picture' if not all(p.exists() for p in images) else 'no_label' if str(row.get('label')).lower() not in ('true', 'false') else ''
                if cause:
                    skipped[cause] += 1
                else:
                    rows.append(dict(id=row['identifier'], images=[os.path.relpath(p, out) for p in images], text=row['sentence'], label=str(row['label']).lower()))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
            sys.exit(f'error: {name}.json: {type(e).__name__}: {e}; --source must be the folder with the files of NLVR2')
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
