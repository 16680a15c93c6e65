"""pytest tests/test_packs.py -q      image-caption lists and WebDataset tars"""

import io
import json
import random
import tarfile
from types import SimpleNamespace
import numpy as np
import pytest
import torch
import prepare
from PIL import Image
from data import packs
from data.arrays import Frames, unpatchify
from data.check import problems
from data.packs import find_packs, split_packs
from data.pictures import middle_square, read_picture
from data.report import estimate
from data.shards import shard_path
from runs.unlearned import unlearned
from test_prepare import args, hashes, rows_of, run, settings


def picture(n, size=(48, 40)):
    noise = np.random.default_rng(n).integers(0, 256, (6, 5, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.NEAREST)


def encoded(n, form):
    file = io.BytesIO()
    picture(n).save(file, form)
    return file.getvalue()


def write_tar(path, members):
    with tarfile.open(path, 'w') as tar:
        folder = tarfile.TarInfo('of_no_sample')
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, raw in members:
            about = tarfile.TarInfo(name)
            about.size = len(raw)
            tar.addfile(about, io.BytesIO(raw))


def pairs_list(folder, n, **more):
    """n pictures and list.jsonl with all of them -> its path, as text."""
    rows = []
    for i in range(n):
        picture(i).save(folder / f'{i}.png')
        rows.append(dict(image=f'{i}.png', caption=f'picture number {i}') | more)
    (folder / 'list.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    return str(folder / 'list.jsonl')


def join(root, items, order=None, **more):
    """All shards, made in an order, joined -> meta, rows."""
    cfg = settings(root=root, timeout_s=60, **more)
    for item in order or items:
        prepare.process(item, cfg)
    return prepare.finalise(root, items, [], cfg)


def titles(root, split):
    """-> {title: its first caption} of a split, by the arrays alone."""
    data, rows = Frames(root, split), rows_of(root)
    start, length = data.spans(np.arange(len(data.frames)))
    said = [data.text(a, n) for a, n in zip(start, length)]
    return dict(zip((rows[row]['title'] for row in data.videos['row']), said))


def test_tars_as_img2dataset_writes_them(tmp_path):
    """What is damaged is counted by its cause and harms no other; names in a tar lead nowhere."""
    good = [
        ('000000.jpg', encoded(0, 'JPEG')),
        ('000000.json', json.dumps(dict(caption='from the json', status='success')).encode()),
        ('000000.txt', b'from the text'),
        ('a/b.c/000001.seg.png', encoded(1, 'PNG')),  # of a sample of another ending
        ('a/b.c/000002.webp', encoded(2, 'WEBP')),
        ('a/b.c/000002.json', json.dumps(dict(TEXT=['one', 'two'], split='test')).encode()),
        ('../../../000003.png', encoded(3, 'PNG')),
        ('../../../000003.txt', b'an evil name'),
    ]
    bad = [
        ('x0.png', encoded(4, 'PNG')),  # no words
        ('x1.txt', b'no picture'),
        ('x2.png', b'\x89PNG'),
        ('x2.txt', b'broken'),
        ('x3.png', encoded(5, 'PNG')),
        ('x3.json', b'{"caption'),
        ('x4.png', encoded(0, 'JPEG')),
        ('x4.txt', b'the bytes of the first'),
    ]
    write_tar(tmp_path / '00000.tar', good)
    write_tar(tmp_path / '00001.tar', bad)
    write_tar(tmp_path / 'cut.tar', [(f'{i}.ppm', encoded(i, 'PPM')) for i in range(9)])
    raw = (tmp_path / 'cut.tar').read_bytes()
    (tmp_path / 'cut.tar').write_bytes(raw[: len(raw) // 2])

    done = run(f'--pairs={tmp_path}/*.tar', *args(tmp_path))
    root = tmp_path / 'data/set'
    assert done.returncode == 0 and not problems(root), done.stdout + done.stderr
    told = dict.fromkeys(['bad_row', 'duplicate', 'not_media', 'truncated'], 1)
    told |= dict(ok=3, no_text=1 + 4, not_found=2)  # in the half of the tar that is there: 4
    listed = done.stdout.split('videos  ')[1].splitlines()[0]
    assert sorted(listed.split(', ')) == sorted(f'{n} {what}' for what, n in told.items())
    assert {r['cause']: 1 for r in rows_of(root)}.keys() == {'', *told} - {'ok'}
    said = {k: v for split in ('train', 'val', 'test') for k, v in titles(root, split).items()}
    assert said == {'000000': 'from the text', '000002': 'one', '000003': 'an evil name'}
    assert '000002' in titles(root, 'test') and not list(tmp_path.parent.glob('000003*'))


@pytest.mark.parametrize('damage', ['none', 'no end', 'header', 'within a header'])
def test_a_tar_that_ends_too_early_is_told(tmp_path, damage):
    pairs = [
        (f'{i}.{kind}', raw)
        for i in range(6)
        for kind, raw in (('png', encoded(i, 'PNG')), ('txt', b'words'))
    ]
    write_tar(tmp_path / 'a.tar', pairs)
    raw = bytearray((tmp_path / 'a.tar').read_bytes())
    at = raw.index(b'3.png')  # where its header begins
    if damage == 'header':
        raw[at + 100] ^= 255
    cut = dict(none=None, header=None) | {'no end': at, 'within a header': at + 99}
    (tmp_path / 'a.tar').write_bytes(raw[: cut[damage]])
    (item,), _ = find_packs(str(tmp_path))
    _, rows = join(tmp_path / 'set', [item])
    told = rows[item['key']]['pictures']
    assert told == (dict(ok=6) if damage == 'none' else dict(ok=3, truncated=1))


@pytest.mark.parametrize('given', ['x', 'x.txt', '*.tar', '.'])
def test_no_list_and_no_tars_is_one_line(tmp_path, given):
    done = run(f'--pairs={tmp_path / given}', *args(tmp_path))
    assert done.returncode == 1 and 'is no list' in done.stderr and 'Trace' not in done.stderr


def test_a_thousand_pairs_are_a_shard_and_all_orders_give_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(packs, 'PACK', 4)
    items, _ = find_packs(pairs_list(tmp_path, 30))
    assert [len(item['pairs']) for item in items] == [4] * 7 + [2]
    join(tmp_path / 'a', items)
    join(tmp_path / 'b', items, order=random.Random(0).sample(items, 8))
    assert hashes(tmp_path / 'a') == hashes(tmp_path / 'b') and not problems(tmp_path / 'a')
    assert len(list((tmp_path / 'a/shards').rglob('*.shard'))) == 8

    seen = 0
    for split in 'train', 'val', 'test':
        data, rows = Frames(tmp_path / 'a', split), rows_of(tmp_path / 'a')
        for i, row in enumerate(data.videos['row']):
            stored = unpatchify(data.patches[i : i + 1], 8)[0]
            alone = middle_square(read_picture(rows[row]['source'], 32), 32)
            assert np.array_equal(stored, alone)
            assert titles(tmp_path / 'a', split)[rows[row]['title']].endswith(rows[row]['title'])
            seen += 1
    assert seen == 30


def test_a_picture_that_changed_is_read_again_and_the_others_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(packs, 'PACK', 4)
    path = pairs_list(tmp_path, 12)
    before = {item['key'] for item in find_packs(path)[0]}
    picture(5, (64, 64)).save(tmp_path / '5.png')
    after = {item['key'] for item in find_packs(path)[0]}
    assert len(before & after) == 2 and len(before | after) == 4


def test_an_edited_list_replaces_what_it_was(tmp_path):
    path = pairs_list(tmp_path, 12)
    root = tmp_path / 'data/set'
    assert run(f'--pairs={path}', *args(tmp_path)).returncode == 0
    lines = open(path).read().splitlines()
    lines[3] = json.dumps(dict(image='3.png', caption='something else', split='train'))
    del lines[7]
    open(path, 'w').write('\n'.join(lines))
    done = run(f'--pairs={path}', *args(tmp_path))
    assert done.returncode == 0 and not problems(root), done.stderr
    assert sorted(int(row['title']) for row in rows_of(root)) == [*range(7), *range(8, 12)]
    assert titles(root, 'train')['3'] == 'something else'
    assert len((root / 'items.jsonl').read_text().splitlines()) == 1


def test_no_other_program_is_started_for_a_picture(tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript, whatever the name of the file."""
    from PIL import EpsImagePlugin

    started = []
    monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', lambda *_, **__: started.append(1))
    picture(0).save(tmp_path / 'a.eps')
    (tmp_path / 'a.eps').rename(tmp_path / 'a.png')
    with pytest.raises(ValueError, match='cannot be read as a picture'):
        read_picture(tmp_path / 'a.png')
    assert not started


def test_of_equal_words_one_is_judged_if_asked(tmp_path):
    path = pairs_list(tmp_path, 6)
    rows = [json.loads(line) for line in open(path)]
    for row, said in zip(rows, ['an arrow', 'a boat', 'an arrow', 'a boat', 'a cat', 'an arrow']):
        row |= dict(caption=[said, f'it shows {said}'], split='test')
    open(path, 'w').write('\n'.join(map(json.dumps, rows)))
    assert run(f'--pairs={path}', *args(tmp_path)).returncode == 0
    data = Frames(tmp_path / 'data/set', 'test')
    assert len(data.pairs(10)[0]) == 6
    ids, start, length = data.pairs(10, distinct=True)
    said = [data.text(a, n) for a, n in zip(start, length)]
    assert sorted(said) == ['a boat', 'a cat', 'an arrow']


def test_splits_are_given_or_by_the_hash_of_the_picture(tmp_path):
    (item,), _ = find_packs(pairs_list(tmp_path, 30))
    for i, (_, _, split) in enumerate(item['pairs']):
        item['pairs'][i][2] = split or ('val' if i < 3 else 'test' if i < 9 else None)
    meta, _ = join(tmp_path / 'set', [item], val_fraction=0.0, test_fraction=0.0)
    assert [n['frames'] for n in meta['counts'].values()] == [21, 3, 6]

    ids = np.random.default_rng(0).integers(0, 256, (20_000, 16), np.uint8)
    made = dict(ids=ids, given=np.full(20_000, -1, np.int8))
    split = split_packs(dict(x=made), 0.1, 0.05, set())['x']
    assert [round((split == code).mean(), 2) for code in range(3)] == [0.85, 0.1, 0.05]
    parts = {k: dict(ids=ids[i::2], given=made['given'][i::2]) for i, k in enumerate('ab')}
    halves = split_packs(parts, 0.1, 0.05, set())
    assert all(np.array_equal(halves[k], split[i::2]) for i, k in enumerate('ab'))

    few = dict(ids=ids[:3], given=made['given'][:3])
    assert sorted(split_packs(dict(x=few), 0.01, 0.01, set())['x']) == [0, 1, 2], 'lent one each'
    again = dict(x=few, y=dict(ids=ids[1:4], given=made['given'][:3]))
    assert list(split_packs(again, 0.0, 0.0, set())['y']) == [-1, -1, 0], 'the first one stays'
    again['y']['given'] = np.array([2, -1, -1], np.int8)
    said = split_packs(again, 0.0, 0.0, set())
    assert [list(x) for x in said.values()] == [[0, -1, 0], [2, -1, 0]], 'or the one held out'


def test_without_learning_a_picture_finds_the_words_of_those_that_look_like_it(tmp_path):
    nouns = 'apple boat cat dog egg fish goat house ink jar kite lamp moon nail owl pen'.split()
    rows = []
    for n, noun in enumerate(nouns):
        for split, blur in (('train', 24), ('train', 40), ('test', 32)):
            small = picture(n).resize((blur, blur), Image.Resampling.BILINEAR)
            small.save(tmp_path / f'{noun}-{split}-{blur}.png')
            said = f'a {noun} of size {blur} in a {split}'
            rows.append(dict(image=f'{noun}-{split}-{blur}.png', caption=said, split=split))
    (tmp_path / 'list.json').write_text(json.dumps(rows))
    join(tmp_path / 'set', find_packs(str(tmp_path / 'list.json'))[0])
    data = Frames(tmp_path / 'set', 'test')
    ids, *spans = data.pairs(100)
    texts = SimpleNamespace(start=spans[0], length=spans[1], owner=None)
    z = unlearned(data, ids, texts)
    assert len(ids) == 16 and torch.equal((z.z_image @ z.z_text.T).argmax(1), torch.arange(16))
    z = unlearned(data, np.roll(ids, 1), texts)
    assert torch.equal((z.z_image @ z.z_text.T).argmax(1), torch.arange(16).roll(1))
    train = Frames(tmp_path / 'set', 'train')
    ids, start, length = train.pairs(100)
    z = unlearned(train, ids, SimpleNamespace(start=start, length=length, owner=None))
    assert (z.z_image @ z.z_text.T).diagonal().max() < 0.85, 'its own words are not looked up'


@pytest.mark.parametrize('by', ['key', 'source'])
def test_an_excluded_picture_leaves_for_good(tmp_path, by):
    path = pairs_list(tmp_path, 12)
    root = tmp_path / 'data/set'
    assert run(f'--pairs={path}', *args(tmp_path)).returncode == 0
    gone = next(row for row in rows_of(root) if row['title'] == '7')
    (key,) = {row['pack'] for row in rows_of(root)}
    held = shard_path(root / 'shards', key).stat().st_size
    done = run(f'--exclude={gone[by]}', *args(tmp_path))
    assert done.returncode == 0 and not problems(root), done.stderr
    assert len(rows_of(root)) == 11 and gone['key'] not in {row['key'] for row in rows_of(root)}
    assert held - shard_path(root / 'shards', key).stat().st_size > 32 * 32 * 3
    before = hashes(root)
    assert run(f'--pairs={path}', *args(tmp_path)).returncode == 0 and hashes(root) == before


def test_an_excluded_picture_stays_out_under_another_name_and_no_other_is_lost(tmp_path):
    path = pairs_list(tmp_path, 12)
    rows = [dict(image='copy.png', caption='the same again')]
    (tmp_path / 'copy.png').write_bytes((tmp_path / '7.png').read_bytes())
    (tmp_path / 'more.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    root = tmp_path / 'data/set'
    for one in path, tmp_path / 'more.jsonl':
        assert run(f'--pairs={one}', *args(tmp_path)).returncode == 0
    before = hashes(root)
    (tmp_path / '3.png').rename(tmp_path / 'away.png')
    done = run(f'--exclude={tmp_path}/7.png', *args(tmp_path))
    assert done.returncode == 1 and '3.png is not there any more' in done.stderr
    (tmp_path / 'away.png').rename(tmp_path / '3.png')
    assert run(*args(tmp_path)).returncode == 0 and hashes(root) == before, 'nothing was changed'
    assert run(f'--exclude={tmp_path}/7.png', *args(tmp_path)).returncode == 0
    assert {row['title'] for row in rows_of(root)} == {str(n) for n in range(12) if n != 7}


def test_pictures_and_videos_are_one_set(tmp_path, scenes):
    video = sorted((scenes / 'videos').glob('*.mp4'))[0]
    done = run(video, f'--pairs={pairs_list(tmp_path, 9)}', *args(tmp_path))
    root = tmp_path / 'data/set'
    assert done.returncode == 0 and not problems(root), done.stderr
    counts = json.loads((root / 'meta.json').read_text())['counts']
    assert sum(n['videos'] for n in counts.values()) == 10


def test_a_dry_run_counts_the_pictures(tmp_path, capsys):
    write_tar(tmp_path / 'a.tar', [(f'{i}.png', b'') for i in range(5)])
    items = find_packs(str(tmp_path))[0] + find_packs(pairs_list(tmp_path, 3))[0]
    estimate(items, settings())
    assert '0 videos' in (said := capsys.readouterr().out) and '8 images' in said
