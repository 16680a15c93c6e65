"""pytest tests/test_eval.py -q      on runs that train.py made"""

import json, math, shutil, subprocess, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import pytest
import torch
import eval as evaluation
import model as models
from configurator import configure
from conftest import ROOT, script
from PIL import Image
from data.arrays import EVAL_SEED, Frames, draw_noise, open_sets, unpatchify
from data.scenes import truth
from runs import caption, ground, paint
from runs.table import numbers, settings
from runs.writing import judge, scores
from test_packs import pairs_list
from test_train import command


def opened(run, **settings):
    """-> model, k, as a task gets them."""
    k = dict(run=str(run), checkpoint='best', dataset='', data_dir='', device='cpu', batch_size=64)
    return evaluation.open_run(k | dict(write_length=16, distinct=False, mask_rate=0) | settings)


def train_split(model, k):
    vocab = model.vocab.numpy()
    return open_sets(k.data_dir, k.dataset, 'train', model.config, vocab, k.context_s)[0]


def tiny(**settings):
    """An untrained model without data."""
    torch.manual_seed(0)
    sizes = dict(image_size=32, full_size=40, patch_size=8, text_len=6, vocab_size=50, n_keywords=0)
    sizes |= dict(n_layer=2, n_unimodal=1, n_head=2, n_embd=32)
    return models.VLModel(models.VLConfig(**sizes | settings)).eval()


def evaluate(*argv):
    return script('eval.py', *argv)


def test_a_trained_run_is_better_than_chance_and_draws_its_pictures(scenes, trained):
    done = evaluate(
        f'--run={trained}', '--split=train', f'--truth={scenes}/videos/truth', '--checkpoint=latest'
    )
    assert done.returncode == 0, done.stderr
    r = numbers(trained / 'eval.json')
    assert r['said_precision'] == 1 > r['said_recall'] > 0.3, 'what is said is true, but not all'
    assert 0 <= r['written_f1'] <= 1 and r['written_of_another_f1'] < r['said_f1']
    assert 'pictures' not in json.loads((trained / 'eval.json').read_text()), 'finds no number'
    assert (
        r['candidates'] > 40
        and r['chance_r1'] == 1 / r['candidates']
        and min(r['i2t_r1'], r['t2i_r1']) > 8 * r['chance_r1']
    )
    assert r['i2t_r1'] <= r['i2t_r5'] <= r['i2t_r10'] <= 1
    ranked = 'itm', 'itm_sum', 'likelihood', 'likelihood_sum'
    assert min(r[f'{by}_{way}_r1'] for by in ranked for way in ('i2t', 't2i')) > 2 * r['chance_r1']
    assert r['tags_f1'] > 1.2 * r['tags_of_another_f1'] > 0
    assert r['mlm_bits_right'] < r['mlm_bits_shuffled'], 'the picture is used'
    assert (
        r['psnr_from_words'] > r['psnr_from_other_words']
        and r['psnr_masked'] > r['psnr_mean_picture']
    )
    assert (
        0 < r['colour_acc_from_words'] < 1
        and r['colour_objects'] > 50
        and r['colours'] == 8
        and 'train split of scenes' in r['protocol']
    )
    for name in 'pictures', 'retrieval', 'curves':
        assert np.asarray(Image.open(trained / f'{name}.png')).std() > 20


def test_an_untrained_run_is_at_chance(untrained):
    done = evaluate(f'--run={untrained}', '--split=train', '--task=retrieval,words')
    r = numbers(untrained / 'eval.json')
    assert (
        done.returncode == 0
        and r['i2t_r1'] < 0.1
        and abs(r['mlm_acc_right'] - r['mlm_acc_shuffled']) < 0.02
        and abs(r['i2t_median_rank'] / r['candidates'] - 0.5) < 0.25
    )


def test_runs_are_compared_by_the_knobs_that_differ(tmp_path):
    for name, knobs, r in ('a-0', {}, 0.5), ('a-1', dict(seed=1), 0.7), ('c', dict(itc=0.0), 0.1):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'config.json').write_text(
            json.dumps(dict(out_dir=name, seed=0, itc=1.0, lr=3) | knobs)
        )
        found = dict(i2t_r1=r, t2i_r1=r)
        if name == 'a-0':  # a task that the others lack, and a number that is none
            found['ground'] = dict(patches_pointing=None, judged=dict(candidates=9, truth='x'))
        (tmp_path / name / 'eval.json').write_text(json.dumps(found))
    for name, seed, r in ('a-0', 0, 0.8), ('a-0', 1, 0.9), ('c', 0, 0.7):
        (tmp_path / name / f'finetune-vqa-{seed}').mkdir()
        (tmp_path / name / f'finetune-vqa-{seed}' / 'result.json').write_text(
            json.dumps(dict(val=0.1) | (dict(test=r) if name == 'a-0' else dict(val=r)))
        )
    (tmp_path / 'c' / 'probe-x.json').write_text(json.dumps(dict(task='probe of x', linear=0.3)))
    done = subprocess.run(
        [sys.executable, ROOT / 'eval.py', '--table=*'],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.stdout.splitlines()[-4:] == [
        '| run | what differs | seeds | i2t_r1 | t2i_r1 | finetune-vqa | probe-x linear |',
        '| --- | --- | --- | --- | --- | --- | --- |',
        '| a |  | 2 | 0.600 ± 0.141 | 0.600 ± 0.141 | 0.850 ± 0.071 |  |',
        '| c | itc=0.0 | 1 | 0.100 | 0.100 | 0.700 | 0.300 |',
    ], done.stdout + done.stderr
    assert json.loads((tmp_path / 'table.json').read_text())[1] == {
        'run': 'c',
        'differs': dict(itc=0.0),
        'seeds': 1,
        'i2t_r1': [0.1],
        't2i_r1': [0.1],
        'finetune-vqa': [0.7],
        'probe-x linear': [0.3],
    }


def test_matching_and_likelihood_are_what_each_pair_alone_gives(trained):
    """Cached states and shared passes change nothing: every entry equals the pair run by itself."""
    with torch.no_grad():
        model, k = opened(trained)
        data = train_split(model, k)
        _, patches, tokens, pad, _ = next(data.batches(data.pairs(9), model.config, 'cpu', 64))
        pictures = [(model.see(model.normalise(patches)), None)]
        image = evaluation.encode(model, pictures, None, True, trained)[1]
        text = evaluation.encode(model, [(model.read(tokens, pad), pad)], None, True, trained)[1]
        kept = SimpleNamespace(image=image, text=text, tokens=tokens, pad=pad)
        i, j = torch.arange(9).repeat_interleave(9), torch.arange(9).repeat(9)
        match = evaluation.matching(model, kept, i, j, 64).view(9, 9)
        told = evaluation.likelihood(model, kept, torch.arange(9), torch.arange(9), 64)
        alone = torch.zeros(2, 9, 9)
        for i in range(9):
            image = model.see(model.normalise(patches[i : i + 1]))
            for j in range(9):
                t, blank, n = tokens[j : j + 1], pad[j : j + 1], int((~pad[j]).sum()) - 1
                fused = model.fuse(model.read(t, blank), image, blank)[0]
                logit = model.itm_head(fused[:, 0])[0]
                hidden = model.read(torch.full_like(t, model.mask_id), blank)
                states = model.fuse(hidden, image, blank)[0][0, 1 : 1 + n]
                words = model.word_logits(states).log_softmax(-1).gather(1, t[0, :n, None])
                alone[:, i, j] = torch.stack([logit[1] - logit[0], words.mean()])
    assert torch.allclose(match, alone[0], atol=3e-3)  # states are kept in float16
    assert torch.allclose(told, alone[1] - alone[1].mean(0), atol=3e-3)


def test_recalls_of_a_known_matrix():
    score = torch.tensor([[9.0, 1, 2, 3], [5, 4, 3, 2], [1, 2, 3, 4], [0, 0, 0, 0]])
    itself = torch.eye(4, dtype=torch.bool)
    r = evaluation.recalls(evaluation.hits(score, itself))
    # ranks 1, 2, 2, 4: ties count against the truth
    assert (r['r1'], r['r5'], r['median_rank']) == (0.25, 1.0, 2)
    assert evaluation.recalls(torch.tensor([6, 0, 2, 9]))['median_rank'] == 5, '1, 3, 7, 10'
    concept = torch.tensor([0, 0, 1, 2])
    found = evaluation.hits(score, concept[:, None] == concept).tolist()
    assert found == [0, 0, 1, 3], 'the second row finds another of its kind'
    same = torch.tensor([0, 0, 0, 1])[:, None] == torch.tensor([0, 1, 0, 1])
    found = evaluation.hits(score, same).tolist()
    assert found == [0, 0, 1, 2], 'several right answers do not compete'
    nothing = evaluation.hits(score * math.nan, itself)
    assert (nothing == 3).all(), 'what is not a number is not right'


def test_psnr_of_known_errors():
    assert evaluation.psnr([0.01]) == pytest.approx(20)
    assert evaluation.psnr([0.02, 0]) == pytest.approx(20)


def test_what_is_written_is_scored_by_what_there_is():
    true = [{'red circle', 'blue square'}, {'red circle'}, set()]
    told = [{'red circle'}, {'red circle', 'green star', 'blue square'}, set()]
    assert scores('x', told, true) == dict(
        x_precision=0.5, x_recall=pytest.approx(2 / 3), x_f1=pytest.approx(4 / 7)
    )
    assert scores('x', [set()], [set()])['x_f1'] == 0


def test_pictures_without_truth_are_not_judged(scenes, trained, tmp_path):
    for path in sorted((scenes / 'videos' / 'truth').iterdir())[::2]:
        shutil.copy(path, tmp_path)
    model, k = opened(trained, truth=str(tmp_path))
    data = train_split(model, k)
    r = judge(model, data, data.pairs(40), k)
    assert r['said_precision'] == 1 and r['said_recall'] > 0.3, 'what is said there is true'


def test_partners_are_of_other_videos_or_none():
    video = np.repeat([3, 5, 9], [4, 2, 3])
    data = SimpleNamespace(frames=dict(video=video))
    found = evaluation.partners(data, np.arange(9), 'right', 'other')
    other = found['other']
    assert sorted(other) == found['right'].tolist() == list(range(9))
    assert (video[other] != video).all()
    for video in (np.repeat([1, 2], [7, 3]), np.zeros(1)):
        data = SimpleNamespace(frames=dict(video=video))
        assert list(evaluation.partners(data, np.arange(len(video)), 'right', 'other')) == ['right']


def test_the_colour_probe_knows_right_from_wrong(scenes):
    data = Frames(scenes / 'data' / 'scenes', 'train', 64, 0.0)
    ids = np.arange(len(data.frames))
    pairs = (ids, *data.spans(ids))
    real = data.patches.reshape(-1, 5, 5, 8, 8, 3).swapaxes(2, 3).reshape(-1, 40, 40, 3)
    painted = dict(itself=real.astype(float), grey=np.full(real.shape, 128.0))
    painted['other'] = np.roll(real, 7, 0).astype(float)
    r = truth.colours(data, pairs, real, painted, f'{scenes}/videos/truth')
    assert r['colour_acc_itself'] > 0.98 and r['colour_acc_grey'] < 0.3
    assert r['colour_acc_other'] < 0.35 and r['colour_objects'] > 100


def test_reconstruction_keeps_what_is_visible_and_shuffling_changes_the_video(trained):
    model, k = opened(trained)
    data = train_split(model, k)
    pairs = data.pairs(40)
    video = data.frames['video'][pairs[0]]
    other = evaluation.partners(data, pairs[0], 'right', 'other')['other']
    assert (video != video[other]).all()
    with torch.no_grad():
        _, x, tokens, pad, noise = next(data.batches(pairs, model.config, 'cpu', 64))
        painted, gone = evaluation.reconstruct(model, x, tokens, pad, noise)
        assert painted.shape == x.shape
        assert (gone.sum(1) == round(model.config.n_patches * 0.75)).all()
        again = next(data.batches(pairs, model.config, 'cpu', 64))
        assert torch.equal(again[4], noise), 'masks are fixed'
        changed = torch.where(gone[..., None].bool(), 255 - x, x)
        again = evaluation.reconstruct(model, changed, tokens, pad, noise)[0]
        assert torch.equal(again, painted), 'removed patches cannot be seen'


@pytest.mark.parametrize(
    'argv, words',
    [
        (['--run=absent'], 'no checkpoint absent/latest.pt'),
        (['--task=dance'], 'no task is called dance'),
        (['--split=test2'], "'test2'"),
        (['--rn=x'], "did you mean 'run'"),
        (['--candidates=0'], '--candidates must be 1 or more'),
        (['--rerank=-1'], '--rerank must be 0 or more'),
        (['--mask_rate=1.5'], '--mask_rate must be from 0 to below 1'),
        (['--data_dir=moved'], 'say where it is by now: --data_dir'),
        (['--device=gpu'], '--device=gpu'),
        (['--dataset=a,b'], 'one set at a time'),
        (['--truth=absent', '--task=ground', '--split=train'], 'has no NAME.json'),
    ],
)
def test_mistakes_are_one_line(trained, argv, words):
    done = evaluate(f'--run={trained}', *argv)
    assert done.returncode == 1 and words in done.stderr and 'Traceback' not in done.stderr


def test_a_set_that_moved_a_task_in_a_file_and_how_it_was_judged(scenes, untrained, tmp_path):
    """The set is looked for where --data_dir says; the last task of files and flags counts; numbers
    kept from other settings say so; NaN is none."""
    run = tmp_path / 'run'
    run.mkdir()
    state = torch.load(untrained / 'latest.pt', weights_only=True)
    state['config']['data_dir'] = 'where/it/was'
    state['model']['predictor.head.bias'] *= math.nan
    torch.save(state, run / 'latest.pt')
    (run / 'config.json').write_text('{}')
    file = tmp_path / 'mine.py'
    file.write_text("task = 'patches'\ncandidates = 7\n")

    def judge(*argv):
        argv = [f'--run={run}', f'--data_dir={scenes}/data', '--split=train', *map(str, argv)]
        tasks = evaluation.find_tasks(argv)
        evaluation.main(configure(vars(evaluation) | {}, argv=argv), tasks)
        return json.loads((run / 'eval.json').read_text(), parse_constant=pytest.fail)

    found = judge('--task=curves', file)
    assert found['patches']['psnr_masked'] is None and found['patches']['psnr_mean_picture'] > 0
    found = judge(file, '--task', 'words', '--candidates=9')
    assert found.keys() >= {'patches', 'words'} and 'curves' not in found
    assert [found[task]['judged']['candidates'] for task in ('patches', 'words')] == [7, 9]
    assert settings(run)['judged: words'] == dict(candidates=9, distinct=False, truth='')
    few, some, own, most = (
        judge('--task=words', f'--mask_rate={rate}')['words'] for rate in (0.1, 0.4, 0, 0.9)
    )
    assert some == own and own['mask_rate'] == 0.4, 'at 0 it is the rate of training'
    assert few['masked_tokens'] < own['masked_tokens'] / 2
    assert most['masked_tokens'] > own['masked_tokens'] * 2 and most['mask_rate'] == 0.9
    (tmp_path / 'broken.py').write_text('task = = 3')
    with pytest.raises(SystemExit, match='broken.py is broken'):
        judge(tmp_path / 'broken.py')


def test_a_set_without_training_pictures_is_judged(trained, tmp_path):
    run, folder = tmp_path / 'run', tmp_path / 'held'
    shutil.copytree(trained, run)
    folder.mkdir()
    pairs = pairs_list(folder, 8, split='test', caption='a small red circle and a big blue square')
    sizes = ['--image_size=40', '--patch_size=8']
    where = ['--dataset=held', f'--data_dir={tmp_path}/data']
    made = script('prepare.py', f'--pairs={pairs}', *where, *sizes)
    assert made.returncode == 0 and 'to judge by' in made.stdout, made.stderr
    done = evaluate(f'--run={run}', *where, '--task=retrieval,words,patches,tags,pictures')
    assert done.returncode == 0, done.stderr
    found = json.loads((run / 'eval-held.json').read_text())
    assert 'unlearned_i2t_r1' not in found['retrieval']
    assert found['patches']['psnr_mean_picture'] > 0


def test_runs_without_some_objectives_say_so(scenes, tmp_path):
    out = tmp_path / 'run'
    values = dict(max_iters=1, parts='image_only:1', itc=0.0, mlm=0.0, n_unimodal=0)
    script(*command(scenes, out, **values))
    done = evaluate(f'--run={out}', '--split=train')
    assert done.returncode == 0, done.stderr
    assert (
        'to retrieve by' in done.stdout
        and 'no mlm objective' in done.stdout
        and math.isfinite(numbers(out / 'eval.json')['psnr_masked'])
    )
    assert Path(out / 'pictures.png').exists()


# --- grounding ---------------------------------------------------------------------------------


def test_boxes_of_maps():
    heat = torch.zeros(8, 8)
    heat[2:5, 3:7], heat[0, 0] = 1.0, 0.9
    found = ground.box_of(heat.flatten(), 64)
    boxes = np.array([[24, 16, 56, 40], [0, 0, 2, 2], [0, 0, 1, 1]])
    others = np.array([found, [1, 1, 3, 3], [2, 2, 3, 3]])
    overlap = ground.iou(boxes, others)
    assert overlap[0] > 0.8 and overlap[1:].tolist() == pytest.approx([1 / 7, 0])


@torch.no_grad()
def test_the_map_by_patches_is_its_definition(scenes):
    """Each picture and phrase by itself, one subset at a time."""
    m = tiny()
    patches = torch.randint(0, 256, (3, 16, 192), dtype=torch.uint8)
    tokens, pad = torch.randint(0, 50, (3, 6)), torch.zeros(3, 7, dtype=torch.bool)
    patches[1] = patches[0]
    heat = ground.patches_map(m, patches, tokens, pad, subsets=40)
    phrase = m.embedding(m.unimodal(m.embed_text(tokens), pad), m.text_proj, pad)
    noise = torch.from_numpy(draw_noise(EVAL_SEED, 0, 0, 40, 16))
    for i in range(3):
        total, times, scores = torch.zeros(16), torch.zeros(16), []
        for s in range(40):
            stay = noise[s].argsort()[:4].sort().values
            z = m.embedding(
                m.unimodal(m.embed_image(m.normalise(patches[i : i + 1]), stay[None])), m.image_proj
            )[0]
            scores.append((stay, float(z @ (phrase[i] - phrase.mean(0)))))
        mean = np.mean([v for _, v in scores])
        for stay, v in scores:
            total[stay] += v - mean
            times[stay] += 1
        assert torch.allclose(heat[i], (total / times.clamp(min=1)).clamp(min=0), atol=1e-5)


def test_grounding_by_truth_and_by_references(scenes, trained, tmp_path):
    before = (trained / 'eval.json').read_text() if (trained / 'eval.json').exists() else '{}'
    done = evaluate(
        f'--run={trained}',
        '--split=train',
        f'--truth={scenes}/videos/truth',
        '--checkpoint=latest',
        '--task=ground',
    )
    assert done.returncode == 0, done.stderr
    r = numbers(trained / 'eval.json')
    assert (
        r['phrases'] > 50
        and 0 < r['pointing_chance'] < 0.7
        and all(
            json.loads((trained / 'eval.json').read_text())[k] == v
            for k, v in json.loads(before).items()
            if k != 'ground'
        )
    ), 'others stay'
    assert r['patches_pointing'] > r['pointing_chance'] + 0.1 and r['patches_pointing'] > max(
        r['pointing_centre'], r['patches_pointing_other_phrase']
    )
    Image.new('RGB', (80, 40), 'red').save(tmp_path / 'wide.png')
    rows = [
        dict(image='wide.png', text='a red thing', box=[20, 0, 40, 40]),
        dict(image='wide.png', text='outside', box=[0, 0, 5, 40]),
    ]
    (tmp_path / 'refs.json').write_text(json.dumps(rows))
    done = evaluate(
        f'--run={trained}',
        '--split=train',
        f'--refs={tmp_path}/refs.json',
        '--checkpoint=latest',
        '--task=ground',
    )
    r = numbers(trained / 'eval.json')
    assert done.returncode == 0 and (r['phrases'], r['phrases_outside']) == (1, 1), done.stderr
    assert r['patches_pointing'] == r['pointing_chance'] == 1
    (trained / 'eval.json').write_text(before)


def test_boxes_that_are_none_and_rows_of_other_splits(tmp_path, capsys):
    """The first wrong row is named; a pixel of rounding is not wrong."""
    Image.new('RGB', (64, 96), 'red').save(tmp_path / 'tall.png')
    model, path = tiny(), tmp_path / 'refs.json'
    k = SimpleNamespace(refs=str(path), split='val')

    def row(box, **others):
        return dict(image='tall.png', text='it', box=box) | others

    for content, words in (
        ('{', 'refs.json: expected'),
        ([row([1, 2, 3, 4], image='absent.png')], 'row 1.*absent.png'),
        ([row([1, 2, 3, 4]), dict(image='tall.png')], "row 2.*KeyError: 'box'"),
        ([row([9, 9, 20, 20]), row([10, 40, 60, 90])], 'row 2.*64 x 96; are these corners'),
        ([row([30, 30, -9, 9])], 'row 1.*corners'),
        ([row([-5, 0, 20, 20])], 'row 1.*corners'),
        ([row([5, math.nan, 20, 20])], 'row 1.*corners'),
        ([row([0.25, 0.5, 0.5, 0.25])], 'row 1.*or shares'),
    ):
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(SystemExit, match=words):
            ground.read_phrases(model, None, None, k)
    rows = [row([-0.4, 20, 64.9, 60]), row([0, 20, 9, 9], split='valB'), row([9], split='train')]
    path.write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8-sig')
    _, phrases, boxes, outside = ground.read_phrases(model, None, None, k)
    assert len(phrases) == len(boxes) == 2 and not outside
    assert '1 of 3 rows are of other splits than val' in capsys.readouterr().out


# --- on request --------------------------------------------------------------------------------


def test_the_middle_is_the_same_of_arrays_files_and_the_truth(scenes, trained):
    """32 of 40 px: it begins in the middle of a stored patch of 8."""
    from PIL import Image

    model, k = opened(trained)
    data = train_split(model, k)
    ids = np.arange(7, 12)
    whole = unpatchify(np.array(data.patches[ids]), 8)
    seen = data.pictures(ids, model.config, 'cpu')
    assert torch.equal(seen, model.read_pictures([Image.fromarray(x) for x in whole]))
    assert np.array_equal(unpatchify(seen, 8), whole[:, 4:36, 4:36])
    about = dict(size=64)  # pixels of the video
    assert truth.in_window([16, 32, 32, 48], about, data, 32).tolist() == [6, 16, 16, 26]


def test_captions_and_paintings_on_request(
    scenes, trained, untrained, tmp_path, monkeypatch, capsys
):
    for colour in 'red', 'blue':
        Image.new('RGB', (50, 40), colour).save(tmp_path / f'{colour}.png')
    (tmp_path / 'notes.txt').write_text('no picture')
    model, k = opened(trained, image=str(tmp_path), query='a red circle')
    with torch.no_grad():
        out = caption.main(model, k)
        paint.main(model, k)
    assert set(out) == {str(tmp_path / 'red.png'), str(tmp_path / 'blue.png')} and all(out.values())
    assert 'notes.txt cannot be read' in capsys.readouterr().err
    assert np.asarray(Image.open(trained / 'paint.png')).std() > 20
    k.image, k.query = 'absent', ''
    with pytest.raises(SystemExit, match="no picture in 'absent'"):
        caption.main(model, k)
    with pytest.raises(SystemExit, match='needs --query'):
        paint.main(model, k)


# --- doors out ---------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def exported(trained):
    done = evaluate(f'--run={trained}', '--task=export', '--checkpoint=latest')
    assert done.returncode == 0, done.stderr
    return trained / 'export'


def test_what_is_exported_is_a_moment_a_row(scenes, trained, exported):
    z = np.load(exported / 'embeddings.npy')
    rows = [json.loads(line) for line in open(exported / 'moments.jsonl')]
    assert len(z) == len(rows) > 90
    model, k = opened(trained, checkpoint='latest')
    at = next(i for i, row in enumerate(rows) if row['split'] == 'val')
    val = open_sets(k.data_dir, k.dataset, 'val', model.config, model.vocab.numpy(), k.context_s)[0]
    patches = val.pictures(np.array([0]), model.config, 'cpu')
    with torch.no_grad():
        wanted = model.image_embedding(patches)[0].numpy()
    assert np.allclose(z[at], wanted, atol=1e-3)
    start, length = val.spans(np.array([0]))
    assert rows[at]['text'] == val.text(start[0], length[0])
    assert rows[at]['start'] == val.frames[0]['t_ms'] / 1000


@pytest.mark.parametrize('objectives', ['itc', 'itc, all layers', 'mim'])
def test_timm_says_the_same_of_a_picture(objectives, tmp_path):
    """Strictly loaded, to 1e-5; its transform sees what ours does."""
    timm = pytest.importorskip('timm')
    from safetensors.torch import save_file
    from runs.export import vit_of

    settings = (
        dict(mlm=0.0, itc=0.0, mim=1.0) if objectives == 'mim' else dict(itc=1.0, proj_dim=24)
    )
    if 'all' in objectives:
        settings |= dict(n_unimodal=0)
    model = tiny(**settings)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    model.pixel_mean += torch.tensor([0.1, -0.2, 0.0])
    state, about = vit_of(model)
    save_file(state, tmp_path / 'model.safetensors', dict(format='pt'))
    (tmp_path / 'config.json').write_text(json.dumps(about))
    vit = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    again = timm.create_model(
        about['architecture'], num_classes=about['num_classes'], **about['model_args']
    )
    again.load_state_dict(state, strict=True)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=vit))
    x = transform(picture)[None]
    patches = model.read_pictures([picture])
    with torch.no_grad():
        ours = model.normalise(patches)
        assert torch.allclose(models.patchify(x.permute(0, 2, 3, 1), 8), ours, atol=1e-5)
        if objectives == 'mim':
            states = model.fuse(None, model.see(ours), None)[1]
            assert torch.allclose(vit.forward_features(x), states, atol=1e-5)
        else:
            theirs = torch.nn.functional.normalize(vit(x), dim=-1)
            assert torch.allclose(theirs, model.image_embedding(patches), atol=1e-5)
        assert torch.equal(vit(x), again.eval()(x))

    # where no crop falls between pixels, the same of another size and shape
    small = np.random.default_rng(1).integers(0, 256, (5, 8, 3), np.uint8)
    picture = Image.fromarray(small).resize((160, 80), Image.Resampling.BICUBIC)
    theirs = models.patchify(transform(picture)[None].permute(0, 2, 3, 1), 8)
    ours = model.normalise(model.read_pictures([picture]))
    assert (theirs - ours).abs().max() < 1.5 / 255 / 0.25


def test_clip_benchmark_finds_the_same_recalls(scenes, trained):
    metric = pytest.importorskip('clip_benchmark.metrics.zeroshot_retrieval')
    from runs.export import clip

    model, k = opened(
        trained, checkpoint='latest', candidates=60, rerank=0, n_pictures=2, split='train', seed=0
    )
    data = train_split(model, k)
    ids, start, length = data.pairs(1000)
    said = [data.text(a, n) for a, n in zip(start, length)]
    # equal texts tie, which is luck there; read as a text, a comma begins with a space
    once = [said.index(text) for text in sorted(set(said)) if text[0].isalnum()]
    ids, start, length = ids[once], start[once], length[once]
    both, transform, tokenizer = clip(trained / 'latest.pt')
    pixels = unpatchify(np.array(data.patches[ids]), 8)
    pairs = [
        (transform(Image.fromarray(x)), [data.text(a, n)]) for x, a, n in zip(pixels, start, length)
    ]
    batches = [
        (torch.stack([x for x, _ in pairs[i : i + 16]]), [t for _, t in pairs[i : i + 16]])
        for i in range(0, len(pairs), 16)
    ]
    theirs = metric.evaluate(both, batches, tokenizer, 'cpu', amp=False, recall_k_list=[1, 5, 10])
    with torch.no_grad():
        ours = evaluation.retrieval(model, data, (ids, start, length), k)
    assert len(ids) > 40 and 0.1 < ours['t2i_r1'] < 1
    for n in 1, 5, 10:
        there = theirs[f'image_retrieval_recall@{n}'], theirs[f'text_retrieval_recall@{n}']
        here = ours[f't2i_r{n}'], ours[f'i2t_r{n}']
        assert np.allclose(here, there)
