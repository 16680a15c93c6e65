"""pytest tests/test_tasks.py -q      public task files -> examples -> fine-tuning"""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import fields
from types import SimpleNamespace
import numpy as np
import pytest
import torch
import model as models
from conftest import ROOT, script
from data.examples import read_examples, worth
from data.vqa import prepare as vqa
from PIL import Image
from runs import finetune, probe
from runs.table import numbers, results
from test_train import command


def go(path, *argv):
    if path != 'data/scenes/prepare.py':
        return script(path, *argv)
    argv = [path, *argv]  # which forks: better not of a process with threads
    return subprocess.run(
        [sys.executable, *map(str, argv)], capture_output=True, text=True, cwd=ROOT
    )


def rows(path):
    return [json.loads(line) for line in open(path, encoding='utf-8')]


def carry_out(task, run, **settings):
    """A task on the latest checkpoint of a run, as eval.py starts it."""
    weights = hashlib.sha256((run / 'latest.pt').read_bytes()).hexdigest()[:12]
    k = dict(run=str(run), weights=weights, batch_size=32, seed=0)
    k |= {f.name: f.default for f in fields(task.Knobs)} | settings
    with torch.no_grad():
        return task.main(models.load(run / 'latest.pt'), SimpleNamespace(**k))


@pytest.fixture(scope='session')
def tasks(scenes, tmp_path_factory):
    """The truth of the small scenes in the public formats, and read back by the adapters -> folder
    with vqa, nlvr2, snli_ve."""
    root = tmp_path_factory.mktemp('tasks')
    done = go(
        'data/scenes/tasks.py',
        f'--videos={scenes}/videos',
        f'--dataset={scenes}/data/scenes',
        f'--out={root}/source',
    )
    assert done.returncode == 0, done.stderr
    for name in 'vqa', 'nlvr2', 'snli_ve':
        done = go(
            f'data/{name}/prepare.py', f'--source={root}/source/{name}', f'--out={root}/{name}'
        )
        assert done.returncode == 0, done.stderr
    done = go(
        'data/karpathy/prepare.py', f'--source={root}/source/vqa', f'--out={root}/captions.jsonl'
    )
    assert done.returncode == 0, done.stderr
    return root


def test_scenes_go_on_and_two_sets_never_mix(scenes, tasks, tmp_path):
    small = 'data/scenes/prepare.py', '--scenes_per_video=2', '--size=64', f'--out={tmp_path}'
    assert go(*small, '--n_videos=3').returncode == 0
    lost, kept = tmp_path / 'scenes_0001.mp4', tmp_path / 'scenes_0002.mp4'
    was, at = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    assert (
        go(*small, '--n_videos=4').returncode == 0
        and lost.read_bytes() == was
        and kept.stat().st_mtime_ns == at
        and (tmp_path / 'scenes_0003.mp4').exists()
    )
    done = go(*small, '--n_videos=4', '--seed=1')
    assert (
        done.returncode == 1 and 'was made with' in done.stderr and 'Traceback' not in done.stderr
    )
    done = go(
        'data/scenes/tasks.py',
        f'--videos={scenes}/videos',
        f'--dataset={scenes}/data/scenes',
        f'--out={tasks}/source',
    )
    assert done.returncode == 1 and 'exists; remove it' in done.stderr


def test_scenes_are_true_in_every_format(scenes, tasks):
    vqa = rows(tasks / 'vqa/train.jsonl')
    assert len(vqa) > 100 and all(
        len(r['images']) == 1
        and (tasks / 'vqa' / r['images'][0]).exists()
        and len(set(r['answers'])) == 1
        for r in vqa
    )
    assert (
        0.3
        < np.mean([r['answers'][0] == 'yes' for r in vqa if r['answers'][0] in ('yes', 'no')])
        < 0.7
    )
    pairs = rows(tasks / 'nlvr2/train.jsonl')
    assert (
        len(pairs) > 50
        and all(len(r['images']) == 2 and r['label'] in ('true', 'false') for r in pairs)
        and 0.3 < np.mean([r['label'] == 'true' for r in pairs]) < 0.7
    )
    assert {r['label'] for r in rows(tasks / 'snli_ve/train.jsonl')} == {
        'entailment',
        'contradiction',
        'neutral',
    }
    held = {r['title'] for r in rows(scenes / 'data/scenes/videos.jsonl') if r['split'] != 'train'}
    pictures = {
        s: {(tasks / 'vqa' / r['images'][0]).resolve().name for r in rows(tasks / f'vqa/{s}.jsonl')}
        for s in ('train', 'val', 'test')
    }
    assert (
        held
        and len(pictures['val'] | pictures['test']) == 10 * len(held)
        and not pictures['train'] & (pictures['val'] | pictures['test'])
    )


def test_vqa_files_with_their_oddities(tmp_path):
    source = tmp_path / 'v2'
    for split in 'train2014', 'val2014':
        (source / split).mkdir(parents=True)
        for n in (1, 2, 10, 524291):
            Image.new('RGB', (9, 9)).save(source / split / f'COCO_{split}_{n:012d}.jpg')
        asked = [
            dict(image_id=n, question_id=10 * n, question=f'Qué, is {n}?')
            for n in (1, 2, 10, 524291, 77)
        ] + [dict(image_id=1, question_id=10, question='again')]
        people = [
            'The  Cat.',
            'two',
            '3,000',
            "it's",
            'a dog!',
            'T-shirt',
            'dont know',
            '8:00 a.m.',
            'U.S.',
            'ó',
        ]
        told = [
            dict(
                question_id=10 * n,
                multiple_choice_answer='x',
                answers=[dict(answer=a) for a in people],
            )
            for n in (1, 10, 524291, 77)
        ]
        (source / f'v2_OpenEnded_mscoco_{split}_questions.json').write_text(
            json.dumps(dict(info={}, questions=asked))
        )
        (source / f'v2_mscoco_{split}_annotations.json').write_text(
            json.dumps(dict(info={}, annotations=told))
        )
    done = go('data/vqa/prepare.py', f'--source={source}', f'--out={tmp_path}/out')
    assert all(
        words in done.stdout
        for words in (
            '3 train, 1 val, 2 test',
            '2: fewer_than_4_answers',
            '2: no_picture',
            '2: number_came_before',
        )
    ), done.stderr
    row = rows(tmp_path / 'out/train.jsonl')[0]
    assert (
        row['text'] == 'Qué, is 1?'
        and row['answers']
        == ['cat', '2', '3000', "it's", 'dog', 't shirt', "don't know", '8:00 am', 'us', 'ó']
        and row['id'] == 10
    )
    done = go('data/vqa/prepare.py', f'--source={tmp_path}/absent', f'--out={tmp_path}/out')
    assert (
        done.returncode == 1
        and 'must be the folder' in done.stderr
        and 'Traceback' not in done.stderr
    )


def test_what_all_say_alike_is_compared_as_it_is_written(tmp_path, monkeypatch):
    """As the official metric does, which normalises only where people differ; from files with byte
    order marks."""
    (tmp_path / 'train2014').mkdir()
    Image.new('RGB', (9, 9)).save(tmp_path / f'train2014/COCO_train2014_{3:012d}.jpg')
    said = [['X-ray\n'] * 10, ['X-ray'] * 9 + ['two'], ['two'] * 10]
    told = [
        dict(question_id=n, answers=[dict(answer=a) for a in people])
        for n, people in enumerate(said)
    ]
    asked = [dict(image_id=3, question_id=n, question='What?') for n in range(3)]
    for name, key, value in (
        ('v2_mscoco_train2014_annotations', 'annotations', told),
        ('v2_OpenEnded_mscoco_train2014_questions', 'questions', asked),
    ):
        (tmp_path / f'{name}.json').write_text(json.dumps({key: value}), encoding='utf-8-sig')
    for name in 'source', 'out':
        monkeypatch.setattr(vqa, name, str(tmp_path))
    found = dict(train=[])
    vqa.read_year('train2014', found, {})
    assert [r['answers'][0] for r in found['train']] == ['X-ray', 'x ray', 'two']
    assert [worth(r, 'X-ray') for r in found['train']] == [1, 1, 0]
    assert [worth(r, 'x ray') for r in found['train']] == [0, 1, 0]
    assert [worth(r, '2') for r in found['train']] == [0, pytest.approx(0.3), 0]


def test_nlvr2_and_snli_ve_files_with_their_oddities(tmp_path):
    source = tmp_path / 'n'
    for split, folder in ('train', 'train/7'), ('dev', 'dev'), ('test1', 'test1'):
        (source / 'images' / folder).mkdir(parents=True)
        for k in range(2):
            Image.new('RGB', (9, 9)).save(source / 'images' / folder / f'{split}-3-1-img{k}.png')
        base = dict(directory=7) if split == 'train' else {}
        lines = [
            base | dict(identifier=f'{split}-3-1-0', sentence='Zwei Vögel', label='True'),
            base | dict(identifier=f'{split}-3-1-1', sentence='s', label='False'),
            base | dict(identifier=f'{split}-4-1-0', sentence='gone', label='True'),
            base | dict(identifier=f'{split}-3-1-2', sentence='s', label=''),
        ]
        text = ''.join(json.dumps(x) + '\n' for x in lines)
        (source / f'{split}.json').write_text(text, encoding='utf-8-sig')
        lines = [
            dict(Flickr30K_ID=i, sentence2='a man', gold_label=g)
            for i, g in (('1', 'entailment'), ('1', '-'), ('2', 'neutral'))
        ]
        (source / f"snli_ve_{split.rstrip('1')}.jsonl").write_text(
            ''.join(json.dumps(x) + '\n' for x in lines)
        )
    (source / 'flickr30k_images').mkdir()
    Image.new('RGB', (9, 9)).save(source / 'flickr30k_images/1.jpg')
    done = go('data/nlvr2/prepare.py', f'--source={source}', f'--out={tmp_path}/nlvr2')
    assert (
        '2 train, 2 val, 2 test' in done.stdout
        and '3: no_picture' in done.stdout
        and '3: no_label' in done.stdout
    ), done.stderr
    assert rows(tmp_path / 'nlvr2/train.jsonl')[0] | dict(images=0) == dict(
        id='train-3-1-0', images=0, text='Zwei Vögel', label='true'
    )
    done = go('data/snli_ve/prepare.py', f'--source={source}', f'--out={tmp_path}/ve')
    assert (
        '1 train, 1 val, 1 test' in done.stdout
        and '3: no_label' in done.stdout
        and '3: no_picture' in done.stdout
    ), done.stderr + done.stdout


def test_karpathy_files_with_their_oddities(tmp_path):
    (tmp_path / 'coco/val2014').mkdir(parents=True)
    for n in range(6):
        Image.new('RGB', (9, 9), (n, 0, 0)).save(tmp_path / f'coco/val2014/{n}.jpg')

    def image(n, split, *raw):
        return dict(
            filepath='val2014',
            filename=f'{n}.jpg',
            cocoid=n,
            split=split,
            sentences=[dict(raw=r, tokens=[]) for r in raw],
        )

    images = [
        image(0, 'train', 'A man.\n', 'Ein Vögel', ' '),
        image(1, 'restval', 'b'),
        image(2, 'val', 'c'),
        image(3, 'test', 'd'),
        image(9, 'test', 'gone'),
        image(4, 'test'),
        image(3, 'test', 'again'),
        image(5, 'extra', 'e'),
    ]
    text = json.dumps(dict(dataset='coco', images=images))
    (tmp_path / 'coco/dataset_coco.json').write_text(text, encoding='utf-8-sig')
    done = go(
        'data/karpathy/prepare.py', f'--source={tmp_path}/coco', f'--out={tmp_path}/list.jsonl'
    )
    assert all(
        w in done.stdout
        for w in (
            '2 train, 1 val, 1 test, 5 captions',
            '1: no_picture',
            '1: no_text',
            '1: number_came_before',
            '1: other_split',
        )
    ), done.stderr
    assert rows(tmp_path / 'list.jsonl')[0] == dict(
        image='coco/val2014/0.jpg', caption=['A man.', 'Ein Vögel'], split='train'
    )
    (tmp_path / 'coco/dataset_coco.json').write_text('{"images": [{"split": "train"}]}')
    for source, words in (
        (tmp_path / 'coco', "KeyError('filename')"),
        (tmp_path / 'absent', 'must be a folder'),
    ):
        done = go('data/karpathy/prepare.py', f'--source={source}', f'--out={tmp_path}/x.jsonl')
        assert done.returncode == 1 and words in done.stderr and 'Traceback' not in done.stderr


def test_five_captions_a_picture_zero_shot_and_fine_tuned(scenes, tasks, fine_tune, tmp_path):
    """The list's own splits; every caption is a query, any of them is right; a run goes on from the
    weights of another."""
    build, _ = fine_tune
    done = go(
        'prepare.py',
        f'--pairs={tasks}/captions.jsonl',
        f'--data_dir={scenes}/data',
        '--dataset=captions',
        '--image_size=40',
        '--patch_size=8',
    )
    assert done.returncode == 0, done.stderr
    listed = {
        s: sum(r['split'] == s for r in rows(tasks / 'captions.jsonl'))
        for s in ('train', 'val', 'test')
    }
    meta = json.loads((scenes / 'data/captions/meta.json').read_text())
    assert (
        all(0 < meta['counts'][s]['frames'] <= listed[s] for s in listed)
        and 'as the list says' in meta['split_rule']
    )
    out = build(tmp_path / 'run', itm=1.0)
    done = go(
        'eval.py', f'--run={out}', '--dataset=captions', '--task=retrieval', '--checkpoint=latest'
    )
    assert done.returncode == 0, done.stderr
    r = numbers(out / 'eval-captions.json')
    assert (
        r['candidates'] == meta['counts']['test']['frames']
        and r['texts'] == 5 * r['candidates']
        and 'any caption' in r['protocol']
    )
    assert r['itm_i2t_r1'] < 0.5 and r['i2t_r1'] < 0.5
    done = go(
        *command(
            scenes, tmp_path / 'tuned', dataset='captions', max_iters=2, init_from=out / 'latest.pt'
        )
    )
    assert (
        done.returncode == 0
        and 'arrays loaded' in done.stdout
        and (tmp_path / 'tuned/latest.pt').exists()
    ), done.stderr


def test_probes_of_frozen_features(fine_tune, tmp_path):
    """A colour is linear in the features of any model; what words say of a label is not looked at;
    folders named by class will do."""
    build, _ = fine_tune
    for split, n in ('train', 60), ('val', 24), ('test', 24):
        for i in range(n):
            (folder := tmp_path / 'colours' / split / ('red', 'green', 'blue')[i % 3]).mkdir(
                parents=True, exist_ok=True
            )
            pixels = (
                np.random.default_rng([n, i]).integers(0, 90, (40, 40, 3))
                + 150 * np.eye(3, dtype=int)[i % 3]
            )
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{i}.png')
    where = dict(run=build(tmp_path / 'run'), examples=str(tmp_path / 'colours'), batch_size=16)
    found = carry_out(probe, **where)
    assert found['linear'] > 0.9
    assert found['knn'] > 0.9
    assert found['split'] == 'test'
    assert found['labels'] == 3
    assert 0 <= found['zero_shot'] <= 1
    lines = []
    for i in range(48):
        colour = ('red', 'green', 'blue')[i % 3]
        size = ('small', 'large')[i // 24]
        lines.append(
            dict(images=[f'test/{colour}/{i % 24}.png'], text=f'it is {size}', label='ab'[i // 24])
        )
    for split in 'train', 'val', 'test':
        (tmp_path / 'colours' / f'{split}.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    found = carry_out(probe, **where)
    assert found['linear'] <= 0.6, 'the words tell the label, the pictures do not'


def test_what_answers_are_worth(tmp_path):
    people = ['cat'] * 2 + ['dog'] * 5 + ['cow', 'pig', 'hen']
    row = dict(answers=people)
    assert (
        worth(row, 'dog') == 1
        and worth(row, 'owl') == 0
        and worth(row, 'cat') == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    )
    Image.new('RGB', (9, 9)).save(tmp_path / 'x.png')
    lines = [
        dict(images=['x.png'], text='t', answers=people),
        dict(images=['gone.png'], text='t', label='a'),
    ]
    (tmp_path / 'train.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    (row,) = read_examples(tmp_path / 'train.jsonl')
    assert row['scores'] == pytest.approx(dict(cat=0.6, dog=1, cow=0.3, pig=0.3, hen=0.3))

    def example(**others):
        return json.dumps(dict(images=['x.png'], text='t') | others)

    for line, words in (
        (example(), 'line 1'),
        ('nonsense', 'line 1'),
        ('', 'no example'),
        (example(images=['x.png'] * 3, label='a'), 'one or two'),
        (example(text=5, label='a'), 'a text'),
        (example(label=None), 'a label'),
        (example(answers='cats'), 'four or more'),
        (example(answers=['a']), 'four or more'),
        ('{"text": "\udcff"}', 'line 1'),
    ):
        (tmp_path / 'bad.jsonl').write_text(line, errors='surrogateescape')
        with pytest.raises(SystemExit, match=words):
            read_examples(tmp_path / 'bad.jsonl')
    broken = bytearray((tmp_path / 'x.png').read_bytes())
    broken[20] ^= 255  # in the header: PIL raises SyntaxError or ValueError, not OSError
    (tmp_path / 'x.png').write_bytes(broken)
    with pytest.raises(SystemExit, match='take it out of the examples'):
        finetune.square(str(tmp_path / 'x.png'), 8)


@pytest.fixture
def fine_tune(scenes):
    """-> a function that fine-tunes a small untrained model in a folder of its own."""

    def build(out, **settings):
        done = go(*command(scenes, out, max_iters=1, eval_interval=0, **settings))
        assert done.returncode == 0, done.stderr
        return out

    def run(out, **knobs):
        return carry_out(finetune, out, **(dict(epochs=2) | knobs))

    return build, run


def test_fine_tuning_learns_resumes_and_counts(tasks, fine_tune, tmp_path, monkeypatch):
    build, run = fine_tune
    out = build(tmp_path / 'run', n_embd=64)
    whole = run(out, examples=str(tasks / 'nlvr2'), epochs=3)
    n = whole['test_examples']
    name = f'finetune-{tasks.name}-nlvr2-0'
    assert (
        whole['labels'] == 2
        and 0 <= whole['test'] <= 1
        and n
        == len(rows(tasks / 'nlvr2/test.jsonl'))
        == len(rows(out / name / 'predictions_test.jsonl'))
    )
    shutil.copytree(out, tmp_path / 'again', ignore=shutil.ignore_patterns('finetune*'))
    calls = []

    def stop_in_the_second_epoch(*a):
        calls.append(1)
        if len(calls) > 1.5 * whole['val_examples']:
            raise KeyboardInterrupt
        return worth(*a)

    monkeypatch.setattr(finetune, 'worth', stop_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / 'again', examples=str(tasks / 'nlvr2'), epochs=3)
    monkeypatch.setattr(finetune, 'worth', worth)
    assert run(tmp_path / 'again', examples=str(tasks / 'nlvr2'), epochs=3) == whole
    a, b = (
        torch.load(o / name / 'best.pt', weights_only=True)['net']
        for o in (out, tmp_path / 'again')
    )
    assert all(torch.equal(a[k], b[k]) for k in a), 'to the bit'
    with pytest.raises(SystemExit, match='was begun with other epochs'):
        run(out, examples=str(tasks / 'nlvr2'), epochs=5)
    state = torch.load(out / 'latest.pt', weights_only=True)  # trained anew, as many iterations
    state['model']['norm.weight'] *= 2
    torch.save(state, out / 'latest.pt')
    with pytest.raises(SystemExit, match='was begun with other weights'):
        run(out, examples=str(tasks / 'nlvr2'), epochs=3)
    assert run(out, examples=str(tasks / 'vqa'), epochs=1, n_labels=3)['labels'] == 3
    with pytest.raises(SystemExit, match='--layer_decay must be 0 or more'):
        run(out, examples=str(tasks / 'vqa'), layer_decay=-0.5)
    assert run(out, examples=str(tasks / 'snli_ve'), epochs=1, only='text')['only'] == 'text'


def test_a_test_set_without_answers_is_predicted(fine_tune, tmp_path, capsys):
    """Some or all of it: counted as unjudged, in neither score; probes are judged on what is left;
    in train and val an answer is a must."""
    build, run = fine_tune
    out, ex = build(tmp_path / 'run'), tmp_path / 'ex'
    ex.mkdir()
    Image.new('RGB', (40, 40), 'red').save(ex / 'x.png')

    def write(split, *answers):
        lines = [json.dumps(dict(images=['x.png'], text='is it so?') | a) for a in answers]
        (ex / f'{split}.jsonl').write_text('\n'.join(lines), encoding='utf-8-sig')

    yes, no = dict(label='yes'), dict(answers=['no'] * 4)
    write('train', *[yes, no] * 8)
    write('val', yes, yes, no)
    write('test', yes, {}, dict(label=None), dict(answers=[]), no)
    found = run(out, examples=str(ex), epochs=1)
    assert (found['test_examples'], found['test_unjudged']) == (5, 3)
    assert found['test'] == found['test_commonest'] == 0.5
    told = out / f'finetune-{tmp_path.name}-ex-0'
    answers = [r['answer'] for r in rows(told / 'predictions_test.jsonl')]
    assert len(answers) == 5 and set(answers) <= {'yes', 'no'}
    write('test', {}, {})
    shutil.rmtree(told)
    found = run(out, examples=str(ex), epochs=1)
    assert found['test'] is None and found['test_unjudged'] == 2
    (out / 'eval.json').write_text('{}')
    assert results(out)[f'finetune-{tmp_path.name}-ex'] == [found['val']]
    found = carry_out(probe, out, examples=str(ex))
    assert (
        found['split'] == 'val' and 'test: 2 of 2 examples have no label' in capsys.readouterr().out
    )
    write('val', yes, {})
    with pytest.raises(SystemExit, match='val.jsonl, line 2'):
        run(out, examples=str(ex), epochs=1)


def test_one_picture_is_learned_by_heart(fine_tune, tmp_path):
    """Colours from pictures: the words do not tell, so the baseline that sees only the words must
    fail where the whole succeeds. CLIP's towers too."""
    build, run = fine_tune
    (tmp_path / 'colours').mkdir()
    for split, n in ('train', 96), ('val', 24):
        lines = []
        for i in range(n):
            colour = ('red', 'green', 'blue')[i % 3]
            Image.new('RGB', (40, 40), colour).save(tmp_path / f'colours/{split}{i}.png')
            lines.append(
                dict(images=[f'{split}{i}.png'], text='which colour is this?', label=colour)
            )
        (tmp_path / f'colours/{split}.jsonl').write_text(
            ''.join(json.dumps(x) + '\n' for x in lines)
        )
    for settings in (
        dict(n_embd=32),
        dict(n_embd=32, parts='clean:1', mlm=0.0, mim=0.0, n_unimodal=3),
    ):
        out = build(tmp_path / f'run{len(settings)}', **settings)
        whole = run(out, examples=str(tmp_path / 'colours'), epochs=6, learning_rate=4e-3)
        assert whole['val'] > 0.9 and 'test' not in whole
        assert run(out, examples=str(tmp_path / 'colours'), epochs=2, only='text')[
            'val'
        ] == pytest.approx(1 / 3)


def test_the_head_reads_words_and_every_picture():
    torch.manual_seed(0)
    m = models.VLModel(
        models.VLConfig(
            image_size=32,
            full_size=32,
            patch_size=8,
            text_len=6,
            vocab_size=50,
            n_keywords=0,
            n_layer=3,
            n_unimodal=2,
            n_head=2,
            n_embd=32,
        )
    ).eval()
    patches, tokens, pad = (
        torch.randint(0, 256, (2, 2, 16, 192), dtype=torch.uint8),
        torch.randint(0, 50, (2, 6)),
        torch.zeros(2, 7, dtype=torch.bool),
    )
    changed = [patches.clone(), patches.clone()]
    changed[0][:, 0], changed[1][:, 1] = 0, 0
    for only, words, first, second in (
        ('', True, True, True),
        ('text', True, False, False),
    ):
        net = finetune.Classifier(m, 2, 5, only).eval()
        with torch.no_grad():
            before = net(patches, tokens, pad)
            for now, reads in (
                (net(patches, (tokens + 1) % 50, pad), words),
                (net(changed[0], tokens, pad), first),
                (net(changed[1], tokens, pad), second),
            ):
                assert torch.equal(before, now) != reads
