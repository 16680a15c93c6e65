"""pytest tests/test_icons.py -q      a small package like @iconify/json, drawn and prepared"""

import json
import tarfile
import numpy as np
import pytest
from conftest import script
from data.arrays import Frames
from data.check import problems
from test_prepare import rows_of

pytest.importorskip('resvg_py', reason='icons are drawn by resvg-py')

SHAPES = {
    'circle': '<circle cx="12" cy="12" r="9" fill="currentColor"/>',
    'square': '<path fill="currentColor" d="M4 4h16v16H4z"/>',
    'bar-chart': '<path fill="currentColor" d="M4 14h4v6H4zm6-8h4v14h-4zm6 4h4v10h-4z"/>',
}


def shape(n):
    """One of many, told by its place and size."""
    return f'<path fill="currentColor" d="M{n % 12} {n % 7}h{4 + n % 9}v{4 + n % 11}H{n % 12}z"/>'


@pytest.fixture(scope='module')
def package(tmp_path_factory):
    """Twelve sets of the same 60 shapes, and what must be left out."""
    folder = tmp_path_factory.mktemp('iconify')
    (folder / 'json').mkdir()
    about = dict(
        author=dict(name='x'), license=dict(title='MIT'), palette=False, category='UI 24px'
    )
    sets = {}
    for hand in range(12):
        icons = {
            f'thing-{chr(97 + n % 26)}{chr(97 + n // 26)}x-outline': dict(body=shape(n))
            for n in range(57)
        }
        icons |= {f'{name}-24-filled': dict(body=body) for name, body in SHAPES.items()}
        sets[f'set{hand}'] = about | dict(name=f'Set {hand}', total=60), dict(icons=icons)
    odd = {
        '404': '',
        '24-hours': '',
        'empty-box': '',
        'bad-box': '<path',
        'gone-box': SHAPES['circle'],
    }
    odd = {name: dict(body=body) for name, body in odd.items()}
    odd['gone-box']['hidden'] = True
    sets['misc'] = about | dict(name='Odd', total=5), dict(icons=odd)
    sets['noto'] = about | dict(name='Noto', total=1), dict(icons=dict(hand=dict(body='')))
    sets['faces'] = about | dict(category='Emoji', name='Faces', total=1), dict(icons={})
    sets['free'] = about | dict(license=dict(title='GPL'), name='Free', total=7), dict(icons={})
    (folder / 'collections.json').write_text(json.dumps({p: a for p, (a, _) in sets.items()}))
    for prefix, (_, data) in sets.items():
        text = json.dumps(data | dict(prefix=prefix, width=24, height=24))
        (folder / 'json' / f'{prefix}.json').write_text(text)
    return folder


def draw(package, out, *more):
    argv = f'--source={package}', f'--out={out}', '--size=32', '--licence=mit', '--workers=1'
    return script('data/icons/prepare.py', *argv, '--test_share=.2', '--hands_share=.3', *more)


def test_icons_become_arrays_whose_tests_are_of_unseen_names_and_unseen_hands(package, tmp_path):
    done = draw(package, tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'left out before: 7 licence, 2 emoji, 1 no words in its name, 1 withdrawn' in done.stdout
    assert '1 cannot be drawn' in done.stdout, done.stdout
    assert ' cannot be seen' in done.stdout
    seen = {}
    for name in 'pairs', 'hands':
        made = script(
            'prepare.py',
            f'--pairs={tmp_path}/{name}',
            f'--dataset={name}',
            f'--data_dir={tmp_path}/data',
            '--image_size=32',
            '--patch_size=8',
        )
        root = tmp_path / 'data' / name
        assert made.returncode == 0 and not problems(root), made.stderr
        rows = rows_of(root)
        for split in 'train', 'val', 'test':
            data = Frames(root, split)
            of = {rows[row]['title'].split('_')[0] for row in data.videos['row']}
            start, length = data.spans(np.arange(len(data.frames)))
            words = {data.text(a, n) for a, n in zip(start, length)}
            seen[name, split] = of, words
    sets, names = zip(*(seen['pairs', split] for split in ('train', 'val', 'test')))
    assert all(names) and not names[0] & names[1] and not names[0] & names[2]
    hands, told = seen['hands', 'test']
    assert hands and not hands & set.union(*sets) and told and told <= names[0]
    assert not seen['hands', 'train'][1] and 'bar chart' in set.union(*names)
    assert not any('noto' in of for of in sets)


def test_each_is_drawn_the_same_again_and_a_stopped_run_goes_on(package, tmp_path):
    assert draw(package, tmp_path / 'a').returncode == 0
    (tmp_path / 'a/pairs/00000.tar').rename(tmp_path / 'was.tar')
    again = draw(package, tmp_path / 'a')
    assert '1 tars made' in again.stdout
    assert (tmp_path / 'a/pairs/00000.tar').read_bytes() == (tmp_path / 'was.tar').read_bytes()
    with tarfile.open(tmp_path / 'was.tar') as tar:
        looks = {
            tar.extractfile(m).read() for m in tar if 'bar-chart' in m.name and 'png' in m.name
        }
        n = sum('bar-chart' in name for name in tar.getnames()) / 2
    assert len(looks) == n > 5, 'all vary'
    other = draw(package, tmp_path / 'a', '--seed=1')
    assert other.returncode == 1 and 'other settings' in other.stderr


@pytest.mark.parametrize('source', ['absent', 'collections.json'])
def test_no_package_is_one_line(package, tmp_path, source):
    done = draw(package / source, tmp_path)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith('error: ')
    assert 'Traceback' not in done.stderr


def test_npm_fetches_it_once_and_half_an_unpacked_package_is_made_whole(
    package, tmp_path, monkeypatch
):
    """By a program npm that copies a .tgz; then by hand; then where there is none."""
    with tarfile.open(tmp_path / 'json.tgz', 'w:gz') as tar:
        tar.add(package, 'package')
    npm = tmp_path / 'bin/npm'
    npm.parent.mkdir()
    npm.write_text(f'#!/bin/sh\ncp {tmp_path}/json.tgz fetched.tgz && echo fetched.tgz\n')
    npm.chmod(0o755)
    monkeypatch.setenv('PATH', f'{npm.parent}:/bin:/usr/bin')
    out, few = tmp_path / 'out', '--n_icons=9'
    assert draw(package, out, '--source=', few).returncode == 0
    npm.write_text('#!/bin/sh\nexit 3\n')
    assert draw(package, out, '--source=', few).returncode == 0, 'it is not fetched again'

    other = tmp_path / 'other'
    done = draw(package, other, '--source=', few)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith('error: npm cannot')
    (other / 'source/part/package/json').mkdir(parents=True)  # as if killed while unpacking
    assert draw(package, other, f'--source={tmp_path}/json.tgz', few).returncode == 0
    assert len(list((other / 'source/package/json').iterdir())) == 16
    (tmp_path / 'cut.tgz').write_bytes((tmp_path / 'json.tgz').read_bytes()[:-900])
    done = draw(package, other, f'--source={tmp_path}/cut.tgz', few)
    assert done.returncode == 1 and 'cannot be unpacked' in done.stderr
    assert 'Traceback' not in done.stderr


def test_how_it_is_drawn_is_no_word_for_what_it_shows():
    from conftest import ROOT
    import importlib.util

    spec = importlib.util.spec_from_file_location('icons', ROOT / 'data/icons/prepare.py')
    icons = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(icons)
    light = ['home-light', 'home-bold', 'traffic-light', *(f'x{n}-light' for n in range(9))]
    rare = ['traffic-light', 'line-chart', *(f'x-{n}' for n in range(300))]
    style = icons.style_of(light)
    assert 'light' in style and icons.style_of(rare) == set()
    assert icons.split_name('home-light', style) == (['home'], ['light'])
    assert icons.split_name('traffic-light', icons.style_of(rare)) == (['traffic', 'light'], [])
    names = [f'outline-{n}' for n in 'abc'] + ['two-tone-cup', 'cup-24-filled-alt', 'light']
    style = icons.style_of(names)
    assert icons.split_name('outline-cup-2', style) == (['cup'], ['outline'])
    assert icons.split_name('two-tone-cup', style)[0] == ['cup']
    assert icons.split_name('cup-24-filled-alt', style) == (['cup'], ['filled', 'alt'])
    assert icons.split_name('light', style) == (['light'], []), 'something is shown'
