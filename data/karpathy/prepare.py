"""COCO or Flickr30k in Karpathy's splits, five captions per picture, as an image-caption list for
prepare.py. The files are the public ones (dataset_coco.json or dataset_flickr30k.json of "Deep
Visual-Semantic Alignments", arXiv:1412.2306).

    python data/karpathy/prepare.py --source=/data/coco --out=data/karpathy/coco.jsonl
    python prepare.py --pairs=data/karpathy/coco.jsonl --dataset=coco --image_size=160
    python eval.py --run=out/talks --dataset=coco --candidates=5000 --task=retrieval     zero-shot
    python train.py --dataset=coco --init_from=out/talks/best.pt --out_dir=out/talks-coco

Under --source: dataset_*.json and its pictures, in <filepath>/<filename> as the file says, or in
images/ or flickr30k-images/. restval is train, as usual. Left out and counted: pictures that are
missing or have no sentence, numbers that came before.
"""
import json, os, sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure
from data.examples import public_file, tell

source = ''
out = 'data/karpathy/coco.jsonl'

def read_image(image):
    """-> its number, its row of the list; the row's image is None if there is no such picture."""
    file = image['filename']
    folders = image.get('filepath', ''), 'images', 'flickr30k-images'
    paths = [Path(source, folder, file) for folder in folders]
    found = [os.path.relpath(p, Path(out).parent) for p in paths if p.exists()]
    texts = [' '.join(s['raw'].split()) for s in image.get('sentences', [])]
    row = dict(image=found[0] if found else None, caption=[t for t in texts if t],
               split=image['split'].replace('restval', 'train'))
    return str(image.get('cocoid', image.get('imgid', file))), row

def main():
    files = sorted(Path(source).glob('dataset_*.json')) if source else []
    if len(files) != 1:
        sys.exit(f'error: {source or "--source"} must be a folder with one dataset_coco.json '
                 f'or dataset_flickr30k.json; it has {len(files)}')
    rows = {}
    skipped = Counter()
    with public_file(files[0], 'Karpathy, {"images": [{filename, split, sentences: [{raw}]}]}'):
        images = json.loads(files[0].read_text(encoding='utf-8-sig'))['images']
        read = [read_image(image) for image in images]
    for number, row in read:
        if number in rows:
            skipped['number_came_before'] += 1
        elif not row['caption']:
            skipped['no_text'] += 1
        elif row['split'] not in ('train', 'val', 'test'):
            skipped['other_split'] += 1
        elif row['image'] is None:
            skipped['no_picture'] += 1
        else:
            rows[number] = row
    if not rows:
        sys.exit(f'error: nothing is left; left out: {dict(skipped)}; '
                 f'is {source} the folder with the pictures?')

    Path(out).parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row) + '\n' for row in rows.values()]
    Path(out).write_text(''.join(lines), encoding='utf-8')
    counts = Counter(row['split'] for row in rows.values())
    counts['captions'] = sum(len(row['caption']) for row in rows.values())
    tell(out, counts, skipped)

if __name__ == '__main__':
    config = configure(globals())
    main()
