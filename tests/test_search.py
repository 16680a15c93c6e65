"""pytest tests/test_search.py -q      moments, by what is seen and said; the page that answers"""

import http.client, json, re, shutil, signal, socket, subprocess, sys
from types import SimpleNamespace
import numpy as np
import pytest
import torch
import model as models
from PIL import Image
from conftest import ROOT, script, start, wait_for
from data.arrays import CAPTIONS, Frames, unpatchify
from data.shards import FRAME, VIDEO
from data.tokens import EOT, gpt2_encoding
from runs import moments
from runs.said import PASSAGE_S, best_said, marked, open_said, passages, said_at, stemmer, text_of
from test_eval import evaluate
from test_train import command


def test_search_finds_moments_and_keeps_what_it_computed(scenes, trained, tmp_path):
    data = Frames(scenes / 'data' / 'scenes', 'train', 16, 0.0)
    told = data.text(*(x[0] for x in data.spans(np.array([2]))))
    m, every = models.load(trained / 'latest.pt'), []
    for split in 'train', 'val', 'test':
        part = Frames(data.path, split, silent=True)
        z = m.image_embedding(part.pictures(np.arange(len(part.frames)), m.config, 'cpu'))
        every += [(float(s), part, i) for i, s in enumerate(z @ m.encode_text(told))]
    _, part, i = max(every, key=lambda x: x[0])
    row = part.videos[part.frames['video'][i]]['row']
    row = json.loads(open(data.path / 'videos.jsonl').read().splitlines()[row])
    asked = f'--run={trained}', '--task=search', f'--query={told}', '--by=seen'
    asked += '--checkpoint=latest', '--top=8'
    at_once = [
        subprocess.Popen(
            [sys.executable, ROOT / 'eval.py', *asked], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for _ in range(2)
    ]
    told = [p.communicate()[0] for p in at_once]  # one waits for the other's embeddings
    done = evaluate(*asked)
    assert done.returncode == 0 and told == [done.stdout] * 2, done.stderr
    minutes, seconds = divmod(int(part.frames[i]['t_ms']) // 1000, 60)
    best = row['title'], f'{minutes}:{seconds:02d}'
    lines = done.stdout.splitlines()
    found = [(line.split()[2], line.split()[1]) for line in lines if re.match(r'\d\.\d{3} ', line)]
    assert len(found) == 8 and found[0] == best and '#t=' in done.stdout
    caches = {p: p.stat().st_mtime_ns for p in (trained / 'search').glob('*.bin')}
    assert sum(p.stat().st_size == 2 * 16 * len(data.frames) for p in caches) == 1
    cache = next(p for p in caches if '-train-' in p.name)
    whole = cache.read_bytes()
    cache.rename(cache.with_suffix('.part'))
    with open(
        cache.with_suffix('.part'), 'r+b'
    ) as f:  # as if it had been interrupted, in the middle of a row
        f.truncate(len(whole) // 9 + 5)
    again = evaluate(*asked)
    assert (
        again.stdout == done.stdout
        and cache.read_bytes() == whole
        and all(p.stat().st_mtime_ns == t for p, t in caches.items() if p != cache)
    )


def test_a_picture_finds_itself_and_hostile_titles_are_escaped(scenes, trained, tmp_path):
    shutil.copytree(scenes / 'data', tmp_path / 'data')
    path = tmp_path / 'data/scenes/videos.jsonl'
    evil = '<script>alert(1)</script>" onload="x'
    rows = [
        json.loads(line) | dict(title=evil, url='javascript:alert(2)', source='absent')
        for line in open(path)
    ]
    rows[0]['url'] = 'https://example.org/watch?v="><b>'
    path.write_text(''.join(json.dumps(r) + '\n' for r in rows))
    shutil.copytree(trained, tmp_path / 'run', ignore=shutil.ignore_patterns('search'))
    for name in ('latest.pt',):
        state = torch.load(tmp_path / 'run' / name, weights_only=True)
        state['config']['data_dir'] = str(tmp_path / 'data')
        torch.save(state, tmp_path / 'run' / name)
    data = Frames(tmp_path / 'data/scenes', 'train')
    pixels = unpatchify(np.array(data.patches[5:6]), 8)[0]
    Image.fromarray(pixels).save(tmp_path / 'x.png')
    done = evaluate(
        f'--run={tmp_path}/run',
        '--task=search',
        f'--image={tmp_path}/x.png',
        '--checkpoint=latest',
        '--page',
        '--top=100',
    )
    assert done.returncode == 0, done.stderr
    first, ms = (
        next(line for line in done.stdout.splitlines() if re.match(r'\d\.\d{3} ', line)),
        int(data.frames[5]['t_ms']),
    )
    assert (
        first.split()[1] == f'{ms // 60000}:{ms // 1000 % 60:02d}'
        and float(first.split()[0]) > 0.99
    ), 'that frame comes first'
    html = (tmp_path / 'run' / 'search.html').read_text()
    assert (
        '<script' not in html
        and 'javascript:' not in html
        and '&lt;script&gt;' in html
        and 'onload="' not in html
        and "default-src 'none'" in html
    )
    assert (
        html.count('<figure>') == html.count('data:image/jpeg;base64,') > 10
        and 'href="https://example.org/watch?v=&#34;&gt;&lt;b&gt;&amp;t=' in html
    )


# --- what is said ------------------------------------------------------------------------------


class Talk:
    """A split of two talks, written by hand: (seconds, word) of each, frames at given seconds."""

    def __init__(self, folder, *talks, flags=0, language='en'):
        self.path, self.split = folder / 'talk', 'train'
        tokens, times, frames, videos = [], [], [], []
        for v, (shown, words) in enumerate(talks):
            first = len(tokens), len(frames)
            for t, word in words:
                ids = gpt2_encoding().encode(' ' + word) if word else [EOT]
                tokens += ids
                # each token at its own time, as tokenise() has it
                times += [int(1000 * t) + 10 * i for i in range(len(ids))]
            tokens.append(EOT)
            times.append(times[-1])
            frames += [(v, int(1000 * t), 0, 0, 0) for t in shown]
            videos.append((first[0], len(tokens), first[1], len(frames), 0, v, flags))
        self.tokens, self.times = np.array(tokens, np.uint16), np.array(times, np.uint32)
        self.frames, self.videos = np.array(frames, FRAME), np.array(videos, VIDEO)
        sha = dict(sha256=str(hash((tuple(tokens), tuple(times)))))
        kinds = 'tokens.bin', 'times.bin', 'frames.npy', 'videos.npy'
        arrays = {f'train_{kind}': sha for kind in kinds}
        self.meta = dict(arrays=arrays, config=dict(language=language))


LONG = [
    (10 + i, word) for i, word in enumerate('now we solder the antidisestablishment wire'.split())
]


def test_a_passage_is_what_is_said_while_a_frame_stands(tmp_path):
    """No word is lost, none is cut, none is of another video."""
    talk = Talk(
        tmp_path,
        ([5, 12.005, 14.015], [(0, 'hello'), *LONG]),  # the long word begins before 14.015
        ([0], [(t, f'word{t}') for t in range(0, 70, 2)]),
    )
    found = passages(3, talk)
    texts = [text_of(talk, p)[0] for p in found]
    assert texts[:3] == [' hello now we solder', ' the antidisestablishment', ' wire']
    assert found['frame'][:3].tolist() == [0, 1, 2] and (found['part'] == 3).all()
    assert ''.join(texts) == gpt2_encoding().decode([t for t in talk.tokens if t != EOT])
    later = found[found['frame'] == 3]
    begins = talk.times[later['start']] / 1000
    assert (begins // PASSAGE_S == np.arange(4)).all(), 'a long stand is cut'
    for word in 'crimpinglyish', 'приветствие', 'Ελευθερία', 'Größenwahn':
        ids = gpt2_encoding().encode(' ' + word)
        talk = Talk(tmp_path, ([0, 10.005, 10.015, 10.025], [(10, word), (12, 'so')]))
        assert len(ids) > 2 and text_of(talk, passages(0, talk)[0])[0] == ' ' + word, word


def test_captions_are_one_passage_each_picture(tmp_path):
    talk = Talk(
        tmp_path,
        ([0], [(0, 'a red ball'), (0, ''), (0, 'a round toy')]),
        ([0], [(0, 'a cat')]),
        flags=CAPTIONS,
    )
    texts = [text_of(talk, p)[0] for p in passages(0, talk)]
    assert texts == [' a red ball, a round toy', ' a cat']


def test_words_are_found_by_their_stem_and_marked_where_they_are_said(tmp_path):
    talk = Talk(
        tmp_path,
        ([0, 30], [(1, 'first'), (4, 'you'), (6, 'crimp'), (8, 'it'), (31, 'then'), (33, 'pull')]),
        ([0], [(2, 'nothing'), (3, 'of'), (4, 'it')]),
    )
    found = open_said([talk], tmp_path / 'kept')
    best, score = best_said(found, 'the crimping', 5)
    assert len(best) == 1 and score[0] > 0
    text, begins = text_of(talk, found.passages[best[0]])
    words, first = marked(text, 'the crimping', found.stems[0])
    assert [w for w, of_it in words if of_it] == ['crimp'] and text[first:].startswith('crimp')
    assert said_at(talk, found.passages[best[0]], begins, first) == 6000
    for nothing in '', 'the', 'zzz', '\ud800', '   ':
        assert len(best_said(found, nothing, 5)[0]) == 0
    assert len(best_said(found, 'it', 5)[0]) == 2, 'a query of such words alone is meant so'
    only = 0, 2, 3
    assert [found.passages[i]['frame'] for i in best_said(found, 'it', 5, only)[0]] == [2]
    again = open_said([talk], tmp_path / 'kept')
    assert again.index.get_scores(['crimp']).max() == score[0]
    other = Talk(tmp_path, ([0], [(1, 'other'), (2, 'words')]))
    open_said([other], tmp_path / 'kept')
    assert len(list((tmp_path / 'kept').glob('said-*'))) == 1, 'the index of former words goes'


def test_other_writings_and_languages(tmp_path):
    words = [(1, 'Die Häuser'), (3, 'スープを作る'), (5, 'Привет мир')]
    talk = Talk(tmp_path, ([0], words), language='de')
    found = open_said([talk], tmp_path)
    for query in 'haus', 'スープ', 'привет', 'HÄUSER':
        assert len(best_said(found, query, 5)[0]) == 1, query
    english = Talk(tmp_path, ([0], [(1, 'crimping')]), language='en-GB')
    for parts in [talk, english], [english, talk]:
        found = open_said(parts, tmp_path / 'two')
        for query, at in ('haus', talk), ('crimps', english):
            best, _ = best_said(found, query, 5)
            assert [parts[found.passages[i]['part']] for i in best] == [at], 'each in its language'
    talk.meta['config']['language'] = 'any'
    assert stemmer(talk) is list
    assert not len(best_said(open_said([talk], tmp_path), 'haus', 5)[0]), 'made anew'


@pytest.mark.parametrize('query', ["ohm's law", 'ohm\u2019s law'])
def test_an_apostrophe_is_no_word(tmp_path, query):
    talk = Talk(
        tmp_path, ([0, 30, 60], [(1, "that's it's"), (31, "the laws of Ohm"), (61, "l'eau")])
    )
    found = open_said([talk], tmp_path)
    assert [found.passages[i]['frame'] for i in best_said(found, query, 5)[0]] == [1]
    assert [found.passages[i]['frame'] for i in best_said(found, 'eau', 5)[0]] == [2]
    assert not any(of_it for _, of_it in marked("that's it's", query, found.stems[0])[0])


def test_a_set_without_a_word_has_no_index(tmp_path):
    found = open_said([Talk(tmp_path, ([0], [(1, '')]))], tmp_path)
    assert found.index is None and len(best_said(found, 'x', 5)[0]) == 0


def test_both_counts_the_ranks(tmp_path):
    """What is found by eye and ear comes first; then whatever is first of either."""
    talk = Talk(
        tmp_path,
        (
            [0, 10, 20, 30],
            [(1, 'nothing'), (11, 'a whale'), (21, 'whales and a whale'), (31, 'at all')],
        ),
    )
    talk.path.mkdir()
    row = dict(title='t', source='absent', url='https://x.org/v')
    (talk.path / 'videos.jsonl').write_text(json.dumps(row) + '\n')
    talk.spans = lambda ids: (np.array([0]), np.array([1]))
    talk.text = lambda start, length: 'nothing'
    z = np.eye(4, dtype=np.float16)
    wanted = np.array([0.7, 0.5, 0.1, 0.2], np.float32)
    rows = [moments.open_rows(talk)]
    (talk.path / 'videos.jsonl').unlink()
    (talk.path / 'videos.jsonl').write_text('of another set, while this one is open')
    index = SimpleNamespace(parts=[talk], rows=rows, z=[z], said=open_said([talk], tmp_path))
    k = SimpleNamespace(top=4)
    found = moments.find(index, k, 'whale', wanted)
    assert [m['frame'] for m in found[:2]] == [1, 2] and found[0]['cosine'] == pytest.approx(0.5)
    assert {m['frame'] for m in found} == {0, 1, 2, 3}
    assert found[0]['at'] == 11 and found[0]['link'] == 'https://x.org/v?t=11'
    assert [m['frame'] for m in moments.find(index, k, '', wanted)] == [0, 1, 3, 2]
    assert [m['frame'] for m in moments.find(index, k, 'whale', None)] == [2, 1]
    assert [m['frame'] for m in moments.find(index, k, 'whale', wanted, (0, 1, 2))] == [1]


def test_each_place_of_a_long_stand_is_found(tmp_path):
    """A passage each; what begins before the first frame is found when it is said; a frame that is
    best by eye and by ear comes before one that speaks of it all the time."""
    often = [(t, 'a whale') for t in range(5, 300, 60)]
    talk = Talk(tmp_path, ([14], often), ([0, 40], [(2, 'nothing'), (41, 'whale')]))
    talk.path.mkdir()
    row = json.dumps(dict(title='t', source='absent', url='https://x.org/a.mp4?sig=3#frag'))
    (talk.path / 'videos.jsonl').write_text(f'{row}\n{row}\n')
    talk.spans = lambda ids: (np.array([0]), np.array([1]))
    talk.text = lambda start, length: 'nothing'
    z = np.array([[0.1, 0], [0.5, 0], [0.9, 0]], np.float16)
    index = SimpleNamespace(parts=[talk], z=[z], said=open_said([talk], tmp_path))
    index.rows = [moments.open_rows(talk)]
    k = SimpleNamespace(top=6)
    found = moments.find(index, k, 'whale', None)
    assert sorted((m['video'], m['at']) for m in found) == [
        *((0, t) for t in range(5, 300, 60)),
        (1, 41),
    ]
    assert found[0]['link'].startswith('https://x.org/a.mp4?sig=3#t='), 'a file, at its second'
    both = moments.find(index, k, 'whale', np.array([1, 0], np.float32))
    assert (both[0]['video'], both[0]['frame'], both[0]['at']) == (1, 2, 41)
    assert len(both) == 6, 'as many as asked for, if there are so many'


def test_what_is_said_is_found_without_a_run(scenes, tmp_path):
    data = Frames(scenes / 'data/scenes', 'train', silent=True)
    start, length = (x[0] for x in data.spans(np.array([7])))
    asked = '--task=search', f'--run={tmp_path}/no', '--dataset=scenes', '--by=said'
    asked += (f'--data_dir={scenes}/data',)
    done = evaluate(*asked, f'--query={data.text(start, length)}', '--top=3')
    assert done.returncode == 0, done.stderr
    assert data.text(start, length)[:40] in done.stdout.replace('*', '')
    nobody = evaluate(*asked, '--query=xylophones')
    assert nobody.returncode == 1 and nobody.stderr.endswith('nobody says a word of "xylophones"\n')
    for more, why in (
        (['--by=seen', '--query=x'], '--by=said --dataset'),
        (['--image=x.png'], 'a picture says nothing'),
        (['--query= '], 'search needs --query'),
        (['--query=x', '--top=0'], '--top must be'),
    ):
        done = evaluate(*asked, *more)
        assert done.returncode and why in done.stderr and 'Traceback' not in done.stderr
    shutil.rmtree(scenes / 'data/search')


def test_a_run_without_contrast_still_hears(scenes, tmp_path):
    out = tmp_path / 'run'
    assert script(*command(scenes, out, max_iters=1, itc=0.0)).returncode == 0
    asked = f'--run={out}', '--task=search', '--query=a red circle', '--top=3'
    done = evaluate(*asked)
    assert done.returncode == 0 and '*red* *circle*' in done.stdout, done.stderr
    for more in '--by=seen', '--image=x.png':
        done = evaluate(*asked[:2], '--query=' if 'image' in more else asked[2], more)
        assert done.returncode == 1 and 'trained without itc' in done.stderr


def test_the_joint_layers_judge_again_if_asked(scenes, trained):
    asked = f'--run={trained}', '--task=search', '--query=a red circle', '--checkpoint=latest'
    plain, again = evaluate(*asked, '--top=6'), evaluate(*asked, '--top=6', '--rerank=6')
    assert plain.returncode == again.returncode == 0, again.stderr

    def told(done):
        return [line.split()[:3] for line in done.stdout.splitlines() if 'scenes_' in line]

    assert len(told(plain)) == 6 and sorted(told(plain)) == sorted(told(again))
    model = models.load(trained / 'latest.pt')
    data = Frames(scenes / 'data/scenes', 'train', 16, 0.0)
    some = [dict(data=data, frame=i) for i in range(5)]
    order = [m['frame'] for m in moments.matched_again(model, 'a red circle', some)]
    tokens, pad = model.tokenise(['a red circle'])
    score = []
    for i in range(5):
        x = model.normalise(data.pictures(np.array([i]), model.config, 'cpu'))
        fused, _, _ = model.fuse(model.read(tokens, pad), model.see(x), pad)
        logit = model.itm_head(fused[:, 0])[0]
        score.append(float(logit[1] - logit[0]))
    assert order == np.argsort(-np.array(score)).tolist()


# --- the page that answers ---------------------------------------------------------------------


@pytest.fixture(scope='module')
def site(scenes, trained, tmp_path_factory):
    """A server over a copy of the scenes, all with hostile titles."""
    pytest.importorskip('uvicorn')
    pytest.importorskip('starlette')
    folder = tmp_path_factory.mktemp('site')
    shutil.copytree(scenes / 'data', folder / 'data')
    path = folder / 'data/scenes/videos.jsonl'
    rows = [json.loads(line) for line in open(path)]
    for row in rows:
        row['title'] = '<script>document.title = "broken"</script>' + row['title']
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    asked = f'--run={trained}', f'--data_dir={folder}/data', '--checkpoint=latest', '--top=30'
    process = start(['eval.py', '--task=search', '--serve', '--port=0', *asked])
    said = iter(process.stdout.readline, '')
    port = next(int(m[1]) for line in said if (m := re.search(r'127.0.0.1:(\d+)', line)))
    yield SimpleNamespace(port=port, rows=rows, process=process, folder=folder)
    process.terminate()
    process.communicate()


PICTURE = r'src="(/\w+/picture/[\d.]+.jpg)"'


def get(site, path, **headers):
    link = http.client.HTTPConnection('127.0.0.1', site.port, timeout=60)
    headers = {name.replace('_', '-'): value for name, value in headers.items()}
    link.putrequest('GET', path, skip_host='Host' in headers)
    for name, value in headers.items():
        link.putheader(name, value)
    link.endheaders()
    answer = link.getresponse()
    return answer.status, answer.headers, answer.read()


def test_the_page_answers_and_a_video_comes_by_ranges(site):
    status, headers, html = get(site, '/?q=a+red+circle')
    html = html.decode()
    assert status == 200 and html.count('<figure>') > 10 and '<mark>circle</mark>' in html
    assert '<script>document' not in html and '&lt;script&gt;document' in html
    assert "default-src 'none'" in headers['Content-Security-Policy']
    path, place = re.search(r'href="(/\w+/video/([\d.]+))#t=\d+"', html).groups()
    picture = re.search(PICTURE, html)[1]
    assert get(site, picture)[2][:2] == b'\xff\xd8'
    status, headers, some = get(site, path, Range='bytes=5-14')
    whole = get(site, path)[2]
    assert headers['Cache-Control'] == 'no-cache', 'another file may be there tomorrow'
    assert status == 206 and some == whole[5:15] and headers['Content-Type'] == 'video/mp4'
    only = get(site, f'/?q=circle&only={place}')[2].decode()
    assert set(re.findall(r'/video/([\d.]+)#', only)) == {place}
    like = get(site, '/?like=' + picture.split('/')[-1].removesuffix('.jpg'))[2].decode()
    assert re.search(PICTURE, like)[1] == picture, 'itself is most alike'
    within = re.search(r'href="([^"]*)">in this video', like)[1].replace('&amp;', '&')
    assert get(site, within)[2].decode().count('<figure>') > 1, 'also of what is alike'
    heard = get(site, '/?q=circle&by=said')[2].decode()
    assert heard.count('<mark>') >= heard.count('<figure>') > 5


@pytest.mark.parametrize(
    'path, status',
    [
        ('/SITE/video/../../../../etc/passwd', 404),
        ('/SITE/video/%2e%2e%2f%2e%2e%2fetc%2fpasswd', 404),
        ('/SITE/video/9.0', 404),
        ('/SITE/video/0.' + '9' * 5000, 404),
        ('/SITE/video/0.-1', 404),
        ('/SITE/picture/0.999999999.jpg', 404),
        ('/SITE/picture/99.0.jpg', 404),
        ('/000000000000/picture/0.0.jpg', 404),
        ('/eval.py', 404),
        ('/', 200),
        ('/?q=', 200),
        ('/?q=%00%ff%1b[2J', 200),
        ('/?q=' + '%E3%82%B9' * 400, 200),
        ('/?q=' + 'x' * 10_000, 200),
        ('/?q=a&by=worse&only=a.b&like=-1.5', 200),
        ('/?like=0.99999999&only=7.7', 200),
    ],
)
def test_whatever_is_asked_it_lives_on(site, path, status):
    address = re.search(PICTURE, get(site, '/?q=circle')[2].decode())[1].split('/')[1]
    got, _, body = get(site, path.replace('SITE', address))
    assert got == status and b'root:' not in body and b'Traceback' not in body
    if len(path) > 9000:
        assert b'The first 1000 letters' in body
    assert get(site, '/?q=circle')[0] == 200 and site.process.poll() is None


@pytest.mark.parametrize('host', ['evil.org', 'evil.org:80', '127.0.0.1.evil.org'])
def test_a_page_of_another_site_cannot_ask(site, host):
    assert get(site, '/', Host=host)[0] == 400
    assert get(site, '/', Host=f'localhost:{site.port}')[0] == 200


def test_a_video_that_goes_leaves_its_pictures(site):
    path = re.search(r'(/\w+/video/[\d.]+)#', get(site, '/?q=square')[2].decode())[1]
    sources = {row['source'] for row in site.rows}
    moved = [(s, s + '.away') for s in sources]
    for a, b in moved:
        shutil.move(a, b)
    try:
        assert get(site, path)[0] == 404
        html = get(site, '/?q=square')[2].decode()
        assert 'its file is not there any more' in html and '/video/' not in html
        assert get(site, re.search(PICTURE, html)[1])[0] == 200
    finally:
        for a, b in moved:
            shutil.move(b, a)
    assert get(site, path)[0] == 200


def test_a_port_in_use_and_missing_packages_are_one_line(scenes, tmp_path, monkeypatch):
    asked = '--task=search', f'--run={tmp_path}/no', '--dataset=scenes', '--by=said', '--serve'
    asked += (f'--data_dir={scenes}/data',)
    pytest.importorskip('uvicorn')
    with socket.create_server(('127.0.0.1', 0)) as busy:
        done = evaluate(*asked, f'--port={busy.getsockname()[1]}')
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith('error: 127.0.0.1:')
    for wrong in '--port=99999', '--port=-1', '--host=', '--host=no.such.host.':
        done = evaluate(*asked, wrong)
        assert done.returncode == 1 and 'Traceback' not in done.stderr
    monkeypatch.setitem(sys.modules, 'uvicorn', None)
    done = evaluate(*asked)
    assert done.returncode == 1 and 'pip install starlette uvicorn' in done.stderr


def test_ctrl_c_ends_it_while_somebody_watches(scenes, tmp_path):
    """A video that is too long for the buffers, of which the browser takes no more."""
    pytest.importorskip('uvicorn')
    with open(tmp_path / 'long.mp4', 'wb') as video:
        video.truncate(1 << 28)
    shutil.copytree(scenes / 'data', tmp_path / 'data')
    path = tmp_path / 'data/scenes/videos.jsonl'
    rows = [json.loads(line) | dict(source=str(tmp_path / 'long.mp4')) for line in open(path)]
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    asked = '--task=search', f'--run={tmp_path}/no', '--dataset=scenes', '--by=said', '--serve'
    process = start(['eval.py', *asked, f'--data_dir={tmp_path}/data', '--port=0'])
    said = iter(process.stdout.readline, '')
    port = next(int(m[1]) for line in said if (m := re.search(r'127.0.0.1:(\d+)', line)))
    page = get(SimpleNamespace(port=port), '/?q=circle')[2].decode()
    video = re.search(r'(/\w+/video/[\d.]+)#', page)[1]
    with socket.create_connection(('127.0.0.1', port)) as link:
        link.sendall(f'GET {video} HTTP/1.1\r\nHost: localhost\r\n\r\n'.encode())
        assert link.recv(99).startswith(b'HTTP/1.1 200')
        process.send_signal(signal.SIGINT)
        try:
            _, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert 'Traceback' not in err, err


def test_only_videos_of_this_machine_are_served(tmp_path):
    from runs.serve import playable

    for name in 'a.mp4', 'secret', 'page.html':
        (tmp_path / name).touch()
    assert playable(dict(url='', source=str(tmp_path / 'a.mp4')))
    for source in 'secret', 'page.html', 'b.mp4', 'x' * 5000 + '.mp4':
        assert not playable(dict(url='', source=str(tmp_path / source))), source
    assert not playable(dict(url='https://x.org/v', source=str(tmp_path / 'a.mp4')))


def test_in_a_browser_the_video_stands_at_that_second(site):
    """Chromium without a window: a query is typed, a moment clicked; titles do nothing."""
    api = pytest.importorskip(
        'playwright.sync_api', reason='drives Chromium: pip install playwright'
    )
    chromium = shutil.which('chromium') or shutil.which('google-chrome')
    if not chromium:
        pytest.skip('no Chromium is installed')
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
        page = browser.new_page()
        wrong = []
        page.on('pageerror', lambda e: wrong.append(str(e)))
        page.on('requestfailed', lambda r: wrong.append(r.url) if '/video/' not in r.url else None)
        page.goto(f'http://127.0.0.1:{site.port}/')
        page.keyboard.type('a <b>red</b> circle "')
        page.keyboard.press('Enter')
        page.wait_for_selector('figure')
        assert page.locator('figure').count() > 10 and 'broken' not in page.title()
        loaded = '[...document.images].every(i => i.complete && i.naturalWidth >= 160)'
        wait_for(lambda: page.evaluate(loaded))
        first = page.locator('a.play:has(img)').nth(3)
        at = int(first.get_attribute('data-at'))
        first.click()
        wait_for(lambda: page.evaluate('document.querySelector("video").readyState >= 2'))
        now = page.evaluate('document.querySelector("video").currentTime')
        assert at <= now < at + 5 and page.evaluate('document.querySelector("dialog").open')
        page.keyboard.press('Escape')
        assert not page.evaluate('document.querySelector("dialog").open')
        page.evaluate('document.activeElement.blur()')
        page.keyboard.press('/')
        assert page.evaluate('document.activeElement.name') == 'q'
        page.keyboard.press('ArrowDown')
        page.keyboard.press('ArrowRight')
        assert page.evaluate('document.activeElement.className') == 'play'
        page.focus('select')
        page.keyboard.press('ArrowDown')
        assert page.evaluate('document.activeElement.name') == 'by', 'as its browser has it'
        page.get_by_text('more like this').first.click()
        page.wait_for_selector('figure')
        assert '?like=' in page.url and not wrong, wrong
        browser.close()


@pytest.mark.slow
def test_a_million_frames_are_searched_in_seconds(tmp_path):
    """float16, memory-mapped: at most 3 s a query and 2 GB on 2 cores; the same frames as an exact
    search finds."""
    import resource, time

    rng, n, d = np.random.default_rng(0), 1_000_000, 128
    e = np.lib.format.open_memmap(tmp_path / 'e.npy', 'w+', np.float16, (n, d))
    for i in range(0, n, 50_000):
        x = rng.standard_normal((50_000, d), np.float32)
        e[i : i + 50_000] = x / np.linalg.norm(x, axis=1, keepdims=True)
    e.flush()
    q = np.array(e[777_777], np.float32)
    e = np.load(tmp_path / 'e.npy', mmap_mode='r')
    began = time.perf_counter()
    ids, scores = moments.nearest(e, q, 160)
    took = time.perf_counter() - began
    print(f'{took:.2f} s, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB')
    exact = np.concatenate([e[i : i + 50_000].astype(np.float32) @ q for i in range(0, n, 50_000)])
    assert (
        took < 3
        and ids[0] == 777_777
        and set(ids) == set(np.argsort(-exact)[:160])
        and (np.diff(scores) <= 0).all()
    )


@pytest.mark.slow
def test_a_million_frames_are_heard_in_seconds(tmp_path):
    """15 words a frame: the index is made in minutes, a query takes at most 1.5 s and 1.5 GB."""
    import resource, time

    n, each = 1_000_000, 15
    rng = np.random.default_rng(0)
    words = [t for t in range(50256) if re.fullmatch(' [a-z]{4,}', gpt2_encoding().decode([t]))]
    rank = (rng.pareto(0.7, n * each) * 20).astype(int) % len(words)  # a few are everywhere
    talk = Talk(tmp_path)
    talk.tokens = np.append(np.array(words, np.uint16)[rank], EOT).astype(np.uint16)
    talk.times = np.arange(len(talk.tokens), dtype=np.uint32) * 100
    talk.frames = np.zeros(n, FRAME)
    talk.frames['t_ms'] = np.arange(n) * each * 100
    talk.videos = np.array([(0, len(talk.tokens), 0, n, 0, 0, 0)], VIDEO)
    began = time.perf_counter()
    found = open_said([talk], tmp_path)
    made = time.perf_counter() - began
    assert len(found.passages) == n
    began = time.perf_counter()
    open_said([talk], tmp_path)
    opened = time.perf_counter() - began
    asked = ' '.join(gpt2_encoding().decode([words[i]]) for i in (0, 100, 5000))
    began = time.perf_counter()
    best, _ = best_said(found, asked, 160)
    took = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f'made {made:.0f} s, opened {opened:.2f} s, asked {took:.2f} s, {memory:.2f} GB')
    assert len(best) == 160 and took < 1.5 and memory < 4
