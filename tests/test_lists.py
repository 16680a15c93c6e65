"""pytest tests/test_lists.py -q      what is named, what of it is taken, and what a set's owner is
told: names, folders, lists, pictures of every mode, counts, doubts"""

import json, os, struct, tempfile
from pathlib import Path
import numpy as np
import pytest
from PIL import Image, ImageDraw
import prepare
from data import sources
from data.check import doubts, problems
from data.packs import find_packs
from data.pictures import middle_square, read_picture
from data.report import table, write_preview
from data.video import Decoder
from test_prepare import args, make_video, rows_of, run, settings

# --- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'form', ['rgba.png', 'la.png', 'palette.png', 'key.png', 'a.webp', 'a.gif']
)
def test_what_is_transparent_stands_on_white(tmp_path, form):
    """A disc on nothing; what lies beneath is black, or blue."""
    kind, path = form.split('.')[0], tmp_path / form
    clear = Image.new('RGBA', (90, 60), (0, 0, 255 if kind == 'key' else 0, 0))
    ImageDraw.Draw(clear).ellipse([30, 15, 60, 45], fill=(90, 90, 90, 255))
    if kind == 'la':
        clear.convert('LA').save(path)
    elif kind == 'palette':
        clear.quantize(4).save(path)
    elif kind == 'key':  # a colour is named that stands for nothing
        clear.convert('RGB').save(path, transparency=(0, 0, 255))
    else:
        clear.save(path)
    for square in middle_square(read_picture(path), 32), middle_square(Image.open(path), 32):
        assert (square[[0, 0, -1, -1], [0, -1, 0, -1]] > 245).all()
        assert (abs(square[16, 16].astype(int) - 90) < 12).all()


@pytest.mark.parametrize('form', ['16.png', '16.tiff', '16.pgm', 'float.tiff', 'below.tiff'])
def test_deep_pictures_keep_their_greys(tmp_path, form):
    """A grey that grows from left to right, to 3/4 of white; or from below 0."""
    kind, path = form.split('.')[0], tmp_path / form
    want = np.tile(np.linspace(0, 0.75, 64), (48, 1))
    ranges = {
        'float': want.astype(np.float32),
        'below': (want * 4e5 - 1e5).astype(np.int32),
    }
    picture = ranges.get(kind, (want * 65535).astype(np.uint16))
    if form.endswith('pgm'):  # Pillow 10 does not write it
        path.write_bytes(b'P5 64 48 65535\n' + picture.astype('>u2').tobytes())
    else:
        Image.fromarray(picture).save(path)
    if kind == 'below':
        want = want / 0.75
    found = np.asarray(read_picture(path))
    assert found.shape == (48, 64, 3)
    assert np.abs(found - 255 * want[..., None]).max() <= 1


def orientation(way):
    """EXIF that says which way is up, and has a resolution below 0, which cannot be written."""
    tags = struct.pack('<HHII', 0x112, 3, 1, way) + struct.pack('<HHII', 0x11A, 10, 1, 38)
    return b'Exif\0\0II*\0' + struct.pack('<IH', 8, 2) + tags + struct.pack('<Iii', 0, -300, 1)


@pytest.mark.parametrize('way', range(1, 9))
def test_photos_are_turned_whatever_else_their_exif_says(tmp_path, way):
    """Once, also when a turned picture is handed on."""
    upright = np.zeros((40, 60, 3), np.uint8)
    upright[:20, :30] = 255, 0, 0
    upright[20:, 30:] = 0, 0, 255
    turns = [  # upright -> as it is stored
        lambda x: x,
        lambda x: x[:, ::-1],
        lambda x: x[::-1, ::-1],
        lambda x: x[::-1],
        lambda x: x.swapaxes(0, 1),
        np.rot90,
        lambda x: x[::-1, ::-1].swapaxes(0, 1),
        lambda x: np.rot90(x, -1),
    ]
    stored = Image.fromarray(np.ascontiguousarray(turns[way - 1](upright)))
    stored.save(tmp_path / 'photo.jpg', quality=95, subsampling=0, exif=orientation(way))
    picture = read_picture(tmp_path / 'photo.jpg')
    assert np.abs(np.asarray(picture).astype(int) - upright).mean() < 3
    twice = middle_square(picture, 40).astype(int)
    assert np.abs(twice - upright[:, 10:50]).mean() < 3


def test_exif_that_cannot_be_read_leaves_the_picture_as_it_is(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (16, 24, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / 'a.png', exif=b'Exif\0\0II*\0\xff\xff\xff\xff')
    assert (np.asarray(read_picture(tmp_path / 'a.png')) == noise).all()


def test_a_picture_that_fails_while_it_is_read_is_told(tmp_path):
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / 'a.png')
    raw = (tmp_path / 'a.png').read_bytes()
    (tmp_path / 'a.png').write_bytes(raw[:60])
    with pytest.raises(sources.Bad, match='a.png cannot be read as a picture') as e:
        read_picture(tmp_path / 'a.png')
    assert e.value.cause == 'not_media'


# --- names, folders, lists ------------------------------------------------------------------------


def found_in(*names, **more):
    return sources.find_items(list(map(str, names)), settings(**more), [])


def test_names_that_are_no_text_are_names(tmp_path):
    """As in a locale that is strict about UTF-8; a list names them by their bytes."""
    folder = tmp_path / 'in'
    folder.mkdir()
    latin = os.fsdecode(b'Z\xfcrich \xa4.mp4')
    for n, name in enumerate((latin, 'good.mp4', 'out.mp4')):
        made = make_video(tmp_path / f'{n}.mp4', [1, 2], seed=n)
        made.rename(folder / name)
        made.with_suffix('.vtt').rename((folder / name).with_suffix('.vtt'))
    (folder / os.fsdecode(b'\xe9t\xe9.mp4')).write_text('no video')
    (tmp_path / 'list.txt').write_bytes(
        b'\xef\xbb\xbfin/Z\xfcrich \xa4.mp4\r\nin/\xe9t\xe9.mp4\r\nin/good.mp4\r\nin/out.mp4\r\n'
    )
    (tmp_path / 'out.txt').write_bytes(b'\xef\xbb\xbfabsent \xff\n' + bytes(folder / 'out.mp4'))
    strict = dict(PYTHONIOENCODING='utf-8:strict')
    done = run(
        tmp_path / 'list.txt',
        f'--exclude={tmp_path}/out.txt',
        '--workers=1',
        *args(tmp_path),
        **strict,
    )
    assert done.returncode == 0 and r'(not_media): ' in done.stdout, done.stderr
    assert r'\udce9t\udce9.mp4' in done.stdout
    root = tmp_path / 'data/set'
    rows = {r['title']: r['cause'] for r in rows_of(root)}
    assert rows == {Path(latin).stem: '', 'good': '', os.fsdecode(b'\xe9t\xe9'): 'not_media'}
    write_preview(root)
    page = (root / 'preview.html').read_text(encoding='utf-8')
    assert r'Z\udcfcrich' in page and r'\udce9t\udce9.mp4' in page


def test_titles_and_pairs_with_half_an_emoji(tmp_path):
    Image.fromarray(np.full((32, 32, 3), 99, np.uint8)).save(tmp_path / 'a.png')
    rows = [
        dict(image='a.png', caption='half \ud83d of it'),
        dict(image='\udc4d.png', caption='x'),
        dict(image='a\0.png', caption='x'),
    ]
    (tmp_path / 'pairs.json').write_text(json.dumps(rows))
    (item,), refused = find_packs(str(tmp_path / 'pairs.json'))
    cfg = settings(root=tmp_path / 'set', timeout_s=60)
    row = prepare.process(item, cfg)
    assert row['status'] == 'ok' and not refused
    _, rows = prepare.finalise(cfg.root, [item], refused, cfg)
    assert rows[item['key']]['pictures'] == dict(ok=1, not_found=2)
    write_preview(cfg.root)
    assert r'\udc4d' in (cfg.root / 'preview.html').read_text(encoding='utf-8')
    assert not problems(cfg.root)


def test_lines_of_a_list_end_at_newlines_alone(tmp_path):
    odd = ''.join(map(chr, (0x2028, 0x2029, 0x85, 0x2028)))
    rows = [dict(image=f'{n}.png', caption=f'a{odd}b') for n in range(3)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path = tmp_path / 'list.jsonl'
    path.write_bytes(b'\xef\xbb\xbf' + '\r\n'.join([*lines, '', ' ']).encode())
    assert sources.read_rows(path) == rows
    path.write_text('\n'.join([lines[0], '', '{"image": "1.png", "capt']))
    with pytest.raises(SystemExit, match='list.jsonl, line 3: '):
        sources.read_rows(path)
    name = f'a{chr(0x2028)}b.mp4'  # of a file, which may hold any of them too
    (tmp_path / name).touch()
    (tmp_path / 'list.txt').write_text(f'{name}\n', encoding='utf-8')
    assert list(sources.expand(str(tmp_path / 'list.txt'), False)) == [tmp_path / name]


def test_folders_are_read_whole_and_what_is_passed_over_is_told(tmp_path, capsys):
    """Any video's ending; linked folders once, whatever they lead to; the rest by its endings."""
    folder, far = tmp_path / 'in', tmp_path / 'far'
    for place in folder / 'deep', far / 'below':
        place.mkdir(parents=True)
    names = [f'clip{n}{kind}' for n, kind in enumerate(('.MTS', '.vob', '.rmvb', '.m2ts', '.asf'))]
    for name in names + ['notes.nfo', 'a.jpg', 'b.JPG', 'Makefile', 'clip0.srt']:
        (folder / 'deep' / name).write_text(name)
    (far / 'below' / 'c.divx').write_text('c')
    (far / 'below' / 'home').symlink_to(folder)
    (far / 'self').symlink_to(far)
    (folder / 'linked').symlink_to(far)
    (folder / 'again').symlink_to(far / 'below')
    (folder / 'gone.mkv').symlink_to(folder / 'nowhere.mkv')
    items, refused = found_in(folder)
    assert sorted(i['title'] for i in items) == ['c', 'clip0', 'clip1', 'clip2', 'clip3', 'clip4']
    assert [(r['title'], r['cause']) for r in refused] == [('gone', 'not_found')]
    told = capsys.readouterr().out
    assert told.startswith(f'{folder}: 4 files passed over by their endings (2 .jpg, ')
    assert '1 .nfo' in told and '1 without one' in told and '--all_files' in told
    items, refused = found_in(folder, all_files=True)
    assert len(items) == 10 and not capsys.readouterr().out


@pytest.mark.skipif(not hasattr(os, 'seteuid'), reason='all may read all')
def test_a_folder_that_may_not_be_read_is_told():
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0)
        os.seteuid(user or 65534)
        try:
            items, refused = found_in(folder)
        finally:
            os.seteuid(user)
            os.chmod(folder, 0o700)
    assert [(r['cause'], r['source']) for r in refused] == [('unreadable', folder)]


@pytest.mark.parametrize('name', ['ytsearch3:cats.mp4', 'research: the film.mp4', 'file:a.mp4'])
def test_a_file_that_is_there_is_no_search(tmp_path, monkeypatch, name):
    make_video(tmp_path / 'a.mp4', [1], words=False).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    (item,), refused = found_in(name, name)
    assert item['source'] == name and item['url'] == '' and not refused
    assert Decoder(item['source']).video
    assert list(sources.expand('ytsearch3:dogs.mp4', False)) == ['ytsearch3:dogs.mp4']


# --- what is told ---------------------------------------------------------------------------------


def test_the_table_names_every_count_and_the_videos_it_is_of():
    ok = dict(status='ok', cause='', duration=60.0, n_tokens=5)
    rows = [
        ok | dict(counts=dict(frames_kept=4, cues_unread=2)),
        ok | dict(counts=dict(frames_kept=3, cues_unread=0, seconds_unseen=17)),
        ok | dict(counts=dict(frames_kept=1, cues_unread=1)),
        dict(status='failed', cause='no_codec', counts=dict(frames_kept=9)),
    ]
    lines = [' '.join(line.split()) for line in table(rows).split('\n')]
    assert lines == [
        'videos 1 no_codec, 3 ok',
        'length 0.05 h',
        'tokens 15',
        '3 cues unread, in 2 of 3 videos',
        '8 frames kept, in 3 of 3 videos',
        '17 seconds unseen, in 1 of 3 videos',
    ]


def captions(path, *cues):
    lines = [f'00:{a:06.3f} --> 00:{b:06.3f}\n{text}\n' for a, b, text in cues]
    path.with_suffix('.vtt').write_text('\n'.join(['WEBVTT\n', *lines]))


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp('good')
    return [make_video(folder / f'{n}.mp4', [1, 2, 3], seed=n) for n in range(3)]


@pytest.mark.parametrize(
    'kind, says',
    [
        ('', ''),
        ('stands', 'a picture stands 14 times'),
        ('outside', '60% of the words are said before the first picture or after the last'),
        ('still', '100% of the words are said while one picture stands'),
        ('twice', '50% of the words repeat'),
    ],
)
def test_what_looks_wrong_in_a_sound_set_is_told(tmp_path, capsys, good, kind, says):
    path = tmp_path / 'odd.mp4'
    make_video(
        path, dict(outside=[1, 2, 1, 1]).get(kind, [4]), 55 if kind == 'stands' else 4, seed=9
    )
    count = ' '.join(map(str, range(200)))
    if kind == 'outside':  # an earlier picture is back: none stands for these words
        captions(path, (0, 8, 'one two three four'), (8, 16, 'five six seven eight nine ten'))
    elif kind == 'still':
        captions(path, (0, 4, count + count))
    elif kind == 'twice':
        captions(path, (0, 4, 'a bird sings in the tree a bird sings in the tree'))
    items, _ = found_in(*good, *[path] * bool(kind))
    cfg = settings(root=tmp_path / 'set', timeout_s=60)
    assert all(prepare.process(item, cfg)['status'] == 'ok' for item in items)
    prepare.finalise(cfg.root, items, [], cfg)
    assert not problems(cfg.root)
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        prepare.main(vars(settings(check=True, data_dir=str(tmp_path), dataset='set')))
    told = capsys.readouterr().out.splitlines()
    assert not e.value.code and len(told) == 1 + bool(kind)
    if kind:
        assert told[1].startswith(f'looks wrong: 1 of 4 videos, most of all {path}: ')
        assert says in told[1]


def test_an_image_caption_list_has_no_times_to_be_wrong_in(tmp_path):
    for n in range(3):
        Image.fromarray(np.full((32, 32, 3), 60 + n, np.uint8)).save(tmp_path / f'{n}.png')
    rows = [dict(image=f'{n}.png', caption=['a b c d e f ' * 4] * 2) for n in range(3)]
    (tmp_path / 'pairs.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    items, _ = find_packs(str(tmp_path / 'pairs.jsonl'))
    cfg = settings(root=tmp_path / 'set', timeout_s=60)
    for item in items:
        prepare.process(item, cfg)
    prepare.finalise(cfg.root, items, [], cfg)
    assert not problems(cfg.root) and not list(doubts(cfg.root))
