"""The truth of the scenes as downstream tasks, in the very file formats of VQA v2, NLVR2, SNLI-VE, Karpathy's splits, and folders named by class, so
that each runs end to end without a download.

    python data/scenes/tasks.py                      after prepare.py: data/scenes/tasks/{vqa,nlvr2,snli_ve,classes}/
    python data/vqa/prepare.py --source=data/scenes/tasks/vqa --out=data/vqa/scenes           then the adapters, as for the real data
    python data/nlvr2/prepare.py --source=data/scenes/tasks/nlvr2 --out=data/nlvr2/scenes
    python data/snli_ve/prepare.py --source=data/scenes/tasks/snli_ve --out=data/snli_ve/scenes
    python data/karpathy/prepare.py --source=data/scenes/tasks/vqa --out=data/karpathy/scenes.jsonl       five descriptions per picture

Pictures of the videos that the prepared set holds out are in val and test here as well. One picture per scene; yes and no, true and false are balanced.
classes/<split>/<colour shape>/ are windows of half the picture's side with one object in them.
"""
import importlib.util, json, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import at_least, configure

videos = 'data/scenes/videos'    # of data/scenes/prepare.py
dataset = 'data/scenes'          # of prepare.py: says which videos are held out
out = 'data/scenes/tasks'
per_picture = 2                  # questions, statements or hypotheses
train_videos = 1200              # at most
seed = 0

def a(words):
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"

def named(o):
    return f"{o['colour']} {o['shape']}"

def absent(rng, scene, palette, shapes):
    """A colour and shape that is not there, one of the two if possible taken from an object that is."""
    there = {named(o) for o in scene['objects']}
    o = scene['objects'][rng.integers(len(scene['objects']))]
    while True:
        colour, shape = (o['colour'], str(rng.choice(shapes))) if rng.random() < .5 else (str(rng.choice(palette)), o['shape'])
        if f'{colour} {shape}' not in there:
            return f'{colour} {shape}'

def question(rng, scene, palette, shapes):
    """-> (question, answer)"""
    objects, kind = scene['objects'], rng.integers(5)
    o = objects[rng.integers(len(objects))]
    if kind == 0 and sum(p['shape'] == o['shape'] for p in objects) == 1:
        return f"what colour is the {o['shape']}?", o['colour']
    if kind == 1 and sum(p['colour'] == o['colour'] for p in objects) == 1:
        return f"what shape is {o['colour']}?", o['shape']
    if kind == 2:
        return 'how many things are there?', str(len(objects))
    yes = rng.random() < .5
    return f"is there {a(named(o) if yes else absent(rng, scene, palette, shapes))}?", 'yes' if yes else 'no'

def statement(rng, left, right, palette, shapes):
    """-> (sentence about two pictures, whether it is true), half of them true"""
    want = bool(rng.random() < .5)
    for _ in range(100):
        scene = (left, right)[rng.integers(2)]
        o = named(scene['objects'][rng.integers(len(scene['objects']))])
        inside = [o in map(named, s['objects']) for s in (left, right)]
        shape = o.split()[1]
        n = [sum(p['shape'] == shape for p in s['objects']) for s in (left, right)]
        sentence, true = [(f'there is {a(o)} in the left picture', inside[0]), (f'the right picture shows {a(o)}', inside[1]),
                          (f'both pictures have a {shape}' if shape[0] not in 'aeiou' else f'both pictures have an {shape}', min(n) > 0),
                          ('the left picture has more things than the right one', len(left['objects']) > len(right['objects']))][rng.integers(4)]
        if true == want:
            break
    return sentence, true

def hypothesis(rng, scene, palette, shapes):
    """-> (hypothesis, label): true by the picture, false by it, or nothing that it can tell"""
    o = scene['objects'][rng.integers(len(scene['objects']))]
    label = ('entailment', 'contradiction', 'neutral')[rng.integers(3)]
    return dict(entailment=f'there is {a(named(o))}', contradiction=f'there is {a(absent(rng, scene, palette, shapes))}',
                neutral=f"the {named(o)} {rng.choice(['is new', 'is expensive', 'belongs to someone', 'was made yesterday'])}")[label], label

def alone(picture, scene):
    """Windows of half the side that show one object and no part of another -> (object, window)."""
    side = picture.width // 2
    for o in scene['objects']:
        x, y = (int(np.clip((o['box'][k] + o['box'][k + 2] - side) / 2, 0, picture.width - side)) for k in (0, 1))
        if not any(p is not o and x < p['box'][2] and p['box'][0] < x + side and y < p['box'][3] and p['box'][1] < y + side for p in scene['objects']):
            yield o, picture.crop((x, y, x + side, y + side))

def pictures(name):
    """Key frames of a video -> [(seconds, PIL picture)]."""
    import av
    with av.open(str(Path(videos, f'{name}.mp4'))) as container:
        container.streams.video[0].codec_context.skip_frame = 'NONKEY'
        return [(f.time, f.to_image()) for f in container.decode(video=0)]

def main():
    if not Path(dataset, 'videos.jsonl').exists() or not Path(videos, 'truth').exists():
        sys.exit(f'error: {videos}/truth or {dataset}/videos.jsonl is absent; make them: python data/scenes/prepare.py; '
                 'python prepare.py data/scenes/videos --dataset=scenes --image_size=64 --patch_size=8')
    at_least(globals(), per_picture=1, train_videos=1)
    if Path(out).exists():
        sys.exit(f'error: {out} exists; remove it, or take another --out')                     # or pictures of another set would stay in it
    rows = [json.loads(line) for line in open(Path(dataset, 'videos.jsonl'), encoding='utf-8')]
    if lost := [r['title'] for r in rows if r['status'] == 'ok' and not Path(videos, 'truth', f"{r['title']}.json").exists()]:
        sys.exit(f'error: {dataset} is not made of {videos}: there is no {videos}/truth/{lost[0]}.json')
    truth = {r['title']: json.loads(Path(videos, 'truth', f"{r['title']}.json").read_text()) for r in rows if r['status'] == 'ok'}
    held = {r['title']: r['split'] != 'train' for r in rows if r['status'] == 'ok'}
    train = set(sorted(k for k in truth if not held[k])[:train_videos])
    truth = {k: v for k, v in truth.items() if held[k] or k in train}
    shapes = sorted({o['shape'] for about in truth.values() for s in about['scenes'] for o in s['objects']})
    rng, root, number, captioned = np.random.default_rng(seed), Path(out), 0, []
    spec = importlib.util.spec_from_file_location('scenes', Path(__file__).with_name('prepare.py'))
    spec.loader.exec_module(scenes_ := importlib.util.module_from_spec(spec))
    vqa, nlvr2, snli = ({k: [] for k in names} for names in (('train2014', 'val2014'), ('train', 'dev', 'test1'), ('train', 'dev', 'test')))
    answers = {k: [] for k in vqa}
    from tqdm import tqdm
    for name in tqdm(sorted(truth), unit='video'):
        palette, scenes, split = list(truth[name]['palette']), truth[name]['scenes'], 'val2014' if held[name] else 'train2014'
        third = 'train' if not held[name] else ('dev', 'test')[len(vqa['val2014']) // (per_picture * len(scenes)) % 2]
        for folder in Path('vqa', split), Path('nlvr2', 'images', third.replace('test', 'test1')), Path('snli_ve', 'flickr30k_images'):
            (root / folder).mkdir(parents=True, exist_ok=True)
        found = [(s, p) for t, p in pictures(name) for s in scenes if abs(s['start'] - t) < .01]
        for i, (scene, picture) in enumerate(found):
            number += 1
            picture.save(root / f'vqa/{split}/COCO_{split}_{number:012d}.jpg', quality=95)
            picture.save(root / f'snli_ve/flickr30k_images/{number}.jpg', quality=95)
            told = [scene['said'], *(', '.join(scenes_.narrate(rng, scene)[0]) for _ in range(4))]
            captioned.append(dict(filepath=split, filename=f'COCO_{split}_{number:012d}.jpg', imgid=number, cocoid=number, split=third.replace('dev', 'val'),
                                  sentences=[dict(raw=t, imgid=number, sentid=5 * number + k) for k, t in enumerate(told)]))
            for o, window in alone(picture, scene):
                folder = root / 'classes' / third.replace('dev', 'val') / named(o)
                folder.mkdir(parents=True, exist_ok=True)
                window.save(folder / f"{number}-{scene['objects'].index(o)}.png")
            for _ in range(per_picture):
                asked, answer = question(rng, scene, palette, shapes)
                about = dict(image_id=number, question_id=len(vqa['train2014'] + vqa['val2014']) + 1)
                vqa[split].append(about | dict(question=asked))
                people = [dict(answer=answer, answer_confidence='yes', answer_id=k + 1) for k in range(10)]
                answers[split].append(about | dict(multiple_choice_answer=answer, answers=people))
                sentence, label = hypothesis(rng, scene, palette, shapes)
                snli[third].append(dict(Flickr30K_ID=str(number), sentence1='', sentence2=sentence, gold_label=label))
            if i % 2:
                part = third.replace('test', 'test1')
                for k in range(2):
                    (found[i - 1 + k][1]).save(root / f'nlvr2/images/{part}/{part}-{number}-0-img{k}.png')
                for k in range(2 * per_picture):
                    sentence, true = statement(rng, found[i - 1][0], scene, palette, shapes)
                    nlvr2[part].append(dict(identifier=f'{part}-{number}-0-{k}', sentence=sentence, label=str(true)))
    for split in vqa:
        (root / 'vqa' / f'v2_OpenEnded_mscoco_{split}_questions.json').write_text(json.dumps(dict(questions=vqa[split])))
        (root / 'vqa' / f'v2_mscoco_{split}_annotations.json').write_text(json.dumps(dict(annotations=answers[split])))
    (root / 'vqa' / 'dataset_coco.json').write_text(json.dumps(dict(dataset='scenes', images=captioned)))
    for name, lines in [(f'nlvr2/{k}.json', v) for k, v in nlvr2.items()] + [(f'snli_ve/snli_ve_{k}.jsonl', v) for k, v in snli.items()]:
        (root / name).write_text(''.join(json.dumps(line) + '\n' for line in lines))
    print(f'{out}: {number} pictures; ' + ', '.join(f'{len(v)} {k}' for part in (vqa, nlvr2, snli) for k, v in part.items()))

if __name__ == '__main__':
    config = configure(globals())
    main()
