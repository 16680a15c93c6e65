"""The truth of the scenes as downstream tasks, in the very file formats of VQA v2, NLVR2, SNLI-VE,
Karpathy's splits, and folders named by class, so that each runs end to end without a download.

    python data/scenes/tasks.py     after prepare.py: data/scenes/tasks/{vqa,nlvr2,snli_ve,classes}/

then the adapters, as for the real data; Karpathy's finds five captions per picture in tasks/vqa:

    python data/vqa/prepare.py --source=data/scenes/tasks/vqa --out=data/vqa/scenes
    python data/karpathy/prepare.py --source=data/scenes/tasks/vqa --out=data/karpathy/scenes.jsonl

Pictures of the videos that the prepared set holds out are in val and test here as well. One picture
per scene; yes and no, true and false are balanced. classes/<split>/<colour shape>/ are windows of
half the picture's side with one object in them.
"""
import json, sys
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure
from data.scenes.prepare import narrate
from data.sources import read_rows

videos = 'data/scenes/videos'    # of data/scenes/prepare.py
dataset = 'data/scenes'          # of prepare.py: says which videos are held out
out = 'data/scenes/tasks'
seed = 0

PER_PICTURE = 2                  # questions, statements or hypotheses
TRAIN_VIDEOS = 1200              # at most
UNKNOWN = 'is new', 'is expensive', 'belongs to someone', 'was made yesterday'

# ----------------------------------------------------------------------------------------------
# what is asked and told; world: the palette, and the shapes of all scenes

def named(o):
    return f"{o['colour']} {o['shape']}"

def a(words):
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"

def has(scene, words):
    return any(words in named(o) for o in scene['objects'])

def any_of(rng, scene):
    return scene['objects'][rng.integers(len(scene['objects']))]

def absent(rng, scene, world):
    """A colour and shape that is not there, one of the two from an object that is."""
    palette, shapes = world
    there = [named(o) for o in scene['objects']]
    o = any_of(rng, scene)
    other = there[0]
    while other in there:
        key, values = ('shape', shapes) if rng.random() < .5 else ('colour', palette)
        other = named(o | {key: rng.choice(values)})
    return other

def question(rng, scene, world):
    """-> question, answer"""
    objects = scene['objects']
    kind = rng.integers(5)
    o = any_of(rng, scene)
    if kind == 0 and sum(p['shape'] == o['shape'] for p in objects) == 1:
        return f"what colour is the {o['shape']}?", o['colour']
    if kind == 1 and sum(p['colour'] == o['colour'] for p in objects) == 1:
        return f"what shape is {o['colour']}?", o['shape']
    if kind == 2:
        return 'how many things are there?', str(len(objects))
    if rng.random() < .5:
        return f'is there {a(named(o))}?', 'yes'
    return f'is there {a(absent(rng, scene, world))}?', 'no'

def statement(rng, left, right):
    """-> a sentence about two pictures, whether it is true: half of them are"""
    want = rng.random() < .5
    for _ in range(100):
        o = any_of(rng, (left, right)[rng.integers(2)])
        shape = o['shape']
        claims = [
            (f'there is {a(named(o))} in the left picture', has(left, named(o))),
            (f'the right picture shows {a(named(o))}', has(right, named(o))),
            (f'both pictures have {a(shape)}', has(left, shape) and has(right, shape)),
            ('the left picture has more things than the right one',
             len(left['objects']) > len(right['objects']))]
        sentence, true = claims[rng.integers(4)]
        if true == want:
            break
    return sentence, true

def hypothesis(rng, scene, world):
    """-> hypothesis, label: true by the picture, false by it, or nothing that it can tell"""
    o = any_of(rng, scene)
    label = ('entailment', 'contradiction', 'neutral')[rng.integers(3)]
    other = absent(rng, scene, world)
    guess = f'the {named(o)} {rng.choice(UNKNOWN)}'
    return dict(entailment=f'there is {a(named(o))}', contradiction=f'there is {a(other)}',
                neutral=guess)[label], label

# ----------------------------------------------------------------------------------------------
# pictures

def key_frames(name, scenes):
    """-> [(scene, PIL picture)] of a video."""
    import av
    with av.open(str(Path(videos, f'{name}.mp4'))) as container:
        container.streams.video[0].codec_context.skip_frame = 'NONKEY'
        frames = container.decode(video=0)
        return [(scene, frame.to_image()) for scene, frame in zip(scenes, frames, strict=True)]

def save(picture, *path, **how):
    path = Path(out, *path)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **how)

def save_windows(picture, scene, split, number):
    """Windows of half the side that show one object and no part of another."""
    side = picture.width // 2
    for i, o in enumerate(scene['objects']):
        box = np.array(o['box'])
        low = np.clip((box[:2] + box[2:] - side) / 2, 0, picture.width - side).astype(int)
        others = np.array([p['box'] for p in scene['objects'] if p is not o])
        meets = (low < others[:, 2:]) & (others[:, :2] < low + side)
        if not meets.all(1).any():
            window = picture.crop((*low.tolist(), *(low + side).tolist()))
            save(window, 'classes', split, named(o), f'{number}-{i}.png')

# ----------------------------------------------------------------------------------------------
# files

def read_truth():
    """-> {video: its truth and its split}, sorted."""
    if not Path(dataset, 'videos.jsonl').exists() or not Path(videos, 'truth').exists():
        sys.exit(f'error: {videos}/truth or {dataset}/videos.jsonl is absent; make them: '
                 'python data/scenes/prepare.py; python prepare.py data/scenes/videos '
                 '--dataset=scenes --image_size=64 --patch_size=8')
    rows = [row for row in read_rows(f'{dataset}/videos.jsonl') if row['status'] == 'ok']
    held = sorted(row['title'] for row in rows if row['split'] != 'train')
    train = sorted(row['title'] for row in rows if row['split'] == 'train')[:TRAIN_VIDEOS]
    truth = {}
    for name in sorted(held + train):
        path = Path(videos, 'truth', f'{name}.json')
        if not path.exists():
            sys.exit(f'error: {dataset} is not made of {videos}: there is no {path}')
        split = ('val', 'test')[held.index(name) % 2] if name in held else 'train'
        truth[name] = json.loads(path.read_text()) | dict(split=split)
    return truth

def add_picture(made, rng, world, scene, picture, split, number):
    """Questions, hypotheses, descriptions and windows of one picture into the rows made {(file,
    what they are called in it): ...}."""
    year = 'train2014' if split == 'train' else 'val2014'
    file = f'COCO_{year}_{number:012d}.jpg'
    save(picture, 'vqa', year, file, quality=95)
    save(picture, 'snli_ve/flickr30k_images', f'{number}.jpg', quality=95)
    save_windows(picture, scene, split, number)
    told = [scene['said'], *(', '.join(narrate(rng, scene)) for _ in range(4))]
    sentences = [dict(raw=t, imgid=number, sentid=5 * number + i) for i, t in enumerate(told)]
    made['vqa/dataset_coco.json', 'images'].append(
        dict(filepath=year, filename=file, imgid=number, cocoid=number, split=split,
             sentences=sentences))

    asked_of = made[f'vqa/v2_OpenEnded_mscoco_{year}_questions.json', 'questions']
    answered = made[f'vqa/v2_mscoco_{year}_annotations.json', 'annotations']
    told_of = made[f"snli_ve/snli_ve_{split.replace('val', 'dev')}.jsonl", '']
    for i in range(PER_PICTURE):
        about = dict(image_id=number, question_id=(number - 1) * PER_PICTURE + i + 1)
        asked, answer = question(rng, scene, world)
        people = [dict(answer=answer, answer_confidence='yes', answer_id=n) for n in range(1, 11)]
        asked_of.append(about | dict(question=asked))
        answered.append(about | dict(multiple_choice_answer=answer, answers=people))
        sentence, label = hypothesis(rng, scene, world)
        told_of.append(dict(Flickr30K_ID=str(number), sentence1='', sentence2=sentence,
                            gold_label=label))

def add_pair(made, rng, scenes, pictures, split, number):
    """Statements about two pictures."""
    part = dict(train='train', val='dev', test='test1')[split]
    name = f'{part}-{number}-0'
    for i, picture in enumerate(pictures):
        save(picture, 'nlvr2/images', part, f'{name}-img{i}.png')
    for i in range(2 * PER_PICTURE):
        sentence, true = statement(rng, *scenes)
        made[f'nlvr2/{part}.json', ''].append(
            dict(identifier=f'{name}-{i}', sentence=sentence, label=str(true)))

def main():
    from tqdm import tqdm
    truth = read_truth()
    if Path(out).exists():                           # pictures of another set would stay in it
        sys.exit(f'error: {out} exists; remove it, or take another --out')
    scenes = [scene for about in truth.values() for scene in about['scenes']]
    shapes = sorted({o['shape'] for scene in scenes for o in scene['objects']})

    rng = np.random.default_rng(seed)
    made = defaultdict(list)
    number = 0
    for name, about in tqdm(truth.items(), unit='video'):
        world = list(about['palette']), shapes
        found = key_frames(name, about['scenes'])
        for i, (scene, picture) in enumerate(found):
            number += 1
            add_picture(made, rng, world, scene, picture, about['split'], number)
            if i % 2:
                add_pair(made, rng, *zip(*found[i - 1:i + 1]), about['split'], number)
    print(f'{out}: {number} pictures')
    for (file, what), rows in made.items():
        text = ''.join(json.dumps(row) + '\n' for row in rows)
        Path(out, file).write_text(json.dumps({what: rows}) if what else text)
        print(f'{out}/{file}: {len(rows)} rows')

if __name__ == '__main__':
    config = configure(globals())
    main()
