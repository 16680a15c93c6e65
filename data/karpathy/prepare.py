"""COCO or Flickr30k in Karpathy's splits, five captions per picture, as an image-caption list for prepare.py. The files are the public ones
(dataset_coco.json or dataset_flickr30k.json of "Deep Visual-Semantic Alignments", arXiv:1412.2306).

    python data/karpathy/prepare.py --source=/data/coco --out=data/karpathy/coco.jsonl
    python prepare.py --pairs=data/karpathy/coco.jsonl --dataset=coco --image_size=160 --patch_size=16        stored as the run's own data
    python eval.py --run=out/talks --dataset=coco --candidates=5000 --task=retrieval                          zero-shot: 5,000 pictures, 25,000 texts
    python train.py --dataset=coco --image_size=128 --patch_size=16 --init_from=out/talks/best.pt --out_dir=out/talks-coco     fine-tuned

Under --source: dataset_*.json and its pictures, in <filepath>/<filename> as the file says, or in images/ or flickr30k-images/. restval is
train, as usual. Left out and counted: pictures that are missing or have no sentence, numbers that came before.
"""
import json, os, sys
from collections import Counter
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure

source = ''
out = 'data/karpathy/coco.jsonl'

def main():
    files = sorted(Path(source).glob('dataset_*.json')) if source else []
    if len(files) != 1:
        sys.exit(f'error: {source or "--source"} must be a folder with one dataset_coco.json or dataset_flickr30k.json; it has {len(files)}')
    try:
        images = json.loads(files[0].read_text(encoding='utf-8'))['images']
    except (OSError, ValueError, KeyError, TypeError) as e:
        sys.exit(f'error: {files[0]}: {type(e).__name__}: {e}; expected {{"images": [...]}}')
    rows, skipped, seen = [], Counter(), set()
    for image in images if isinstance(images, list) else [images]:
        try:
            number, split = str(image.get('cocoid', image.get('imgid', image['filename']))), image['split'].replace('restval', 'train')
            places = [Path(source, folder, image['filename']) for folder in (image.get('filepath', ''), 'images', 'flickr30k-images')]
            texts = [' '.join(s['raw'].split()) for s in image.get('sentences', []) if s.get('raw', '').strip()]
        except (KeyError, TypeError, AttributeError) as e:
            sys.exit(f'error: {files[0]}: an image without filename, split or raw sentences ({type(e).__name__}: {e})')
        path = next((p for p in places if p.exists()), None)
        if cause := ('number_came_before' if number in seen else 'no_text' if not texts else 'other_split' if split not in ('train', 'val', 'test') else
                     'no_picture' if path is None else ''):
            skipped[cause] += 1
            continue
        seen.add(number)
        rows.append(dict(image=os.path.relpath(path, Path(out).parent), caption=texts, split=split))
    if not rows:
        sys.exit(f'error: nothing is left; left out: {dict(skipped)}; is {source} the folder with the pictures?')
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
    counts = Counter(row['split'] for row in rows)
    print(f'{out}: ' + ', '.join(f'{counts[k]} {k}' for k in ('train', 'val', 'test')) + f"; {sum(len(r['caption']) for r in rows)} captions" +
          ''.join(f'; left out {n}: {k}' for k, n in skipped.items()))

if __name__ == '__main__':
    config = configure(globals())
    main()
