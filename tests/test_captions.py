"""pytest tests/test_captions.py -q      captions of every shape, and whose they are; real Whisper
where NANOVLP_WHISPER names weights"""

import collections, json, os, unicodedata
import pytest
import prepare
from data import sources
from data.words import read_sidecar
from test_prepare import make_video, settings


@pytest.fixture
def read(tmp_path):
    def read(content, name='a.srt'):
        """-> segments, and how many cues could not be read."""
        content = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(content)
        count = collections.Counter()
        segments = read_sidecar(str(tmp_path / name), count)
        return segments, count['cues_unread']

    return read


def texts(found):
    return [text for _, _, text in found[0]]


SAID = [(1.5, 3.0, 'first the onions'), (3.0, 61.25, 'then we wait'), (3600.0, 3601.0, '7 cups')]
SRT = '''1
00:00:01,500 --> 00:00:03,000
first the onions

2
00:00:03,000 --> 00:01:01,250
then
we wait

3
01:00:00,000 --> 01:00:01,000
7 cups
'''


@pytest.mark.parametrize(
    'old, new',
    [
        ('\n', '\r\n'),
        ('\n', '\r\r\n'),
        ('\n', '\r'),
        ('\n', '\n\n'),
        ('\n\n', '\n\t \n'),
        ('\n\n', '\n\xa0\n'),
        ('\n\n', '\n'),
        ('\n\n', '\n\n\n'),
        ('then\n', 'then\n\n'),
        ('then\n', '\u200e\n\n then\n \n'),
        ('\n00', '\r\n\ufeff 00'),
        ('000\n', '000 X1:63 X2:223 Y1:43\n'),
    ],
)
def test_blocks(read, old, new):
    assert read(SRT.replace(old, new)) == (SAID, 0)
    web = 'WEBVTT - of a talk\nKind: captions\n\n' + SRT.replace(',', '.')
    assert read(web.replace(old, new), 'a.vtt') == (SAID, 0)


def test_blocks_that_are_no_cues(read):
    web = (
        'WEBVTT\nX-TIMESTAMP-MAP=LOCAL:0\n\nSTYLE\n::cue(b) { color: red }\n\nREGION\nid:a\n\n'
        'NOTE a --> b\nof the editor\n\nintro\n00:01.500 --> 00:03.000 line:0 region:a\n'
        'first the onions\n\nNOTE one\n\nNOTE two\n\nanother name\n00:03.000 --> 01:01.250\n'
        'then we wait\n\nWEBVTT\nX-TIMESTAMP-MAP=LOCAL:9\n\n60:00.000-->01:00:01\n7 cups'
    )
    assert read(web, 'a.vtt') == (SAID, 0)


@pytest.mark.parametrize(
    'clock, second',
    [
        ('00:01:02,5', 62.5),
        ('0:1:2', 62),
        ('00:01:02:250', 62.25),
        ('00:01:02,75', 62.75),
        ('0:1:2.', 62),
        ('01:02', 62),
        ('1:2.125', 62.125),
        ('01:02:125', 62.125),
        ('100:00:00.000', 360_000),
    ],
)
def test_clocks(read, clock, second):
    text = f'1\n00:00:01,000 --> 00:00:02,000\nbefore\n\n2\n{clock} --> 101:00:00,000\nlong after\n'
    assert read(text) == ([(1, 2, 'before'), (second, 363_600, 'long after')], 0)


@pytest.mark.parametrize('clock', ['00:00:0l,000', '-00:00:03,000', '', 'three', '00:00:03,0o0'])
def test_a_cue_whose_clock_is_none_is_counted_and_nobody_elses_words(read, clock):
    odd = f'{clock} --> 00:00:04,000\nlost\nwords\n\n'
    text = SRT.replace('2\n', f'9\n{odd}2\n')
    assert read(text) == (SAID, 1)


@pytest.mark.parametrize(
    'encoding, mark',
    [
        ('utf-16-le', b'\xff\xfe'),
        ('utf-16-be', b'\xfe\xff'),
        ('utf-8', b'\xef\xbb\xbf'),
        ('utf-8', b''),
        ('cp1252', b''),
    ],
)
def test_encodings(read, encoding, mark):
    text = 'Señor Müller’s crème brûlée – 5 €'
    content = SRT.replace('then', text).encode(encoding)
    assert texts(read(mark + content))[1] == text + ' we wait'


def test_of_two_encodings_each_is_right(read):
    content = SRT.replace('then', 'größer').encode() + SRT.replace('then', 'größer').encode(
        'cp1252'
    )
    assert texts(read(content)).count('größer we wait') == 2


@pytest.mark.parametrize(
    'text, encoding', [('сначала лук', 'cp1251'), ('まず玉ねぎ、', 'shift-jis')]
)
def test_what_is_in_no_known_encoding_is_refused(read, text, encoding):
    content = SRT.replace('then', text * 9).encode(encoding)
    with pytest.raises(sources.Bad) as e:
        read(content)
    assert e.value.cause == 'bad_sidecar' and '\n' not in str(e.value)
    assert text in texts(read(SRT.replace('then', text)))[1]


def rolling(lines, head, clock, first, last):
    """As a site shows speech: a line with the one before above it, then 10 ms of it alone."""
    text = head
    for n, (above, line) in enumerate(zip([' ', *lines], lines)):
        at, end = 2 * n + 1, 2 * n + 3
        text += f'{clock(at)} --> {clock(end - 0.01)}\n{first(above)}{line}\n\n'
        text += f'{clock(end - 0.01)} --> {clock(end)}\n{line}{last}\n\n'
    return text


LINES = ['peel two onions', 'and chop them', 'and chop them', 'then fry all', 'until brown']


@pytest.mark.parametrize(
    'mark, first, last',
    [
        ('.', lambda above: above + '\n', '\n '),  # translated: no times of words
        (',', lambda above: above.strip() + '\r\n', '\r\n '),  # converted to .srt
    ],
)
def test_rolling_captions_are_read_once(read, mark, first, last):
    def clock(s):
        return f'00:00:{s:06.3f}'.replace('.', mark)

    text = rolling(LINES, 'WEBVTT\n\n' if mark == '.' else '', clock, first, last)
    segments, unread = read(text)
    assert unread == 0 and segments == [
        (2 * n + 1, 2 * n + 2.99, line) for n, line in enumerate(LINES)
    ]


def cues(shown):
    parts = [f'00:{n:02d}.000 --> 00:{n + 1:02d}.000\n{s}\n\n' for n, s in enumerate(shown)]
    return ''.join(parts)


def test_captions_that_grow_or_roll_up_are_read_once(read):
    grow = ['we', 'we peel', 'we peel two', 'we peel two\nred', 'we peel two\nred onions']
    grow += ['red onions\nand', 'red onions\nand chop', 'them']
    assert texts(read(cues(grow))) == 'we/peel/two/red/onions/and/chop/them'.split('/')
    up = ['one fish', 'one fish\ntwo fish', 'two fish\nred fish', 'red fish\nblue fish']
    assert texts(read(cues(up))) == ['one fish', 'two fish', 'red fish', 'blue fish']


@pytest.mark.parametrize(
    'shown',
    [
        ['Go.', 'Go.', 'Go.', 'Stop.'],
        ['No.', 'No. We do not.', 'And then', 'the onions', 'No.'],
        ['and chop\nthe onions', 'the onions', 'we fry', 'all of it', 'till brown'],
    ],
)
def test_what_is_said_twice_is_kept(read, shown):
    assert texts(read(cues(shown))) == [text.replace('\n', ' ') for text in shown]


@pytest.mark.parametrize(
    'text, want',
    [
        ('as 2 < 3 and 5 > 4', 'as 2 < 3 and 5 > 4'),
        ('as x &lt; y and z &gt; y', 'as x < y and z > y'),
        ('{\\an8}on{\\i1}ions{\\i0} {first}', 'onions {first}'),
        ('<i>On</i>ions<b>,</b> <FONT color="#fff">red</FONT>', 'Onions, red'),
        (
            '<v.loud Ann Lee>Peel</v> <c.a.b>two</c> <lang en-GB>of<u/> them</lang>',
            'Peel two of them',
        ),
        ('<ruby>a<rt>b</rt></ruby><span>c</span>', 'abc'),
        ('chop<br />them<br>now', 'chop them now'),
        ('ask <me> or <John Doe> &amp;lt;', 'ask <me> or <John Doe> &lt;'),
        ('\u202bcr\u00adème\u200e\u202c \u2067ab\u2069 on&shy;ions&lrm;', 'crème ab onions'),
        ('&gt;&gt; Yes, [laughs] (we) ♪ la la ♪ can: https://a.org/b', 'Yes, can:'),
        ('dots\u200d and \u200cjoiners', 'dots\u200d and \u200cjoiners'),
    ],
)
def test_markup(read, text, want):
    assert texts(read(cues([text])))[0] == want


def test_times_inside_a_word_do_not_break_it(read):
    text = 'one<00:00:00.250><c> on</c><00:00:00.500><c>ion</c><00:00:00.750><c> more</c>'
    want = [(0, 0.25, 'one'), (0.25, 0.75, 'onion'), (0.75, 1, 'more')]
    assert read(cues([text])) == (want, 0)
    assert read(cues([text.replace('00:00:00', '0:0').replace('<c>', '<c.x>')])) == (want, 0)
    segs = [('one', 0), (' on', 250), ('ion', 500), ('\n', 700), ('more', 750)]
    segs = [dict(utf8=text, tOffsetMs=at) for text, at in segs]
    event = dict(tStartMs=0, dDurationMs=1000, segs=segs)
    want[1] = (0.25, 0.7, 'onion')
    assert read(json.dumps(dict(events=[event])), 'a.json3') == (want, 0)


@pytest.mark.parametrize(
    'odd',
    [None, 'text', 7, [], dict(utf8=None), dict(utf8=' x', tOffsetMs='soon')]
    + [dict(utf8=' x', tOffsetMs=float('nan')), dict(utf8=3)],
)
def test_an_odd_segment_costs_itself(read, odd):
    good = [dict(utf8='peel'), odd, dict(utf8=' two', tOffsetMs=500)]
    events = [dict(tStartMs=1000, dDurationMs=2000, segs=good)]
    found = read(json.dumps(dict(events=events)), 'a.json3')
    assert found == ([(1, 1.5, 'peel'), (1.5, 3, 'two')], 1)


@pytest.mark.parametrize(
    'odd',
    [None, 'text', [3], dict(segs=[dict(utf8='x')]), dict(tStartMs=None, segs=[dict(utf8='x')])],
)
def test_an_odd_event_costs_itself(read, odd):
    event = dict(tStartMs=1000, dDurationMs=2000, segs=[dict(utf8='peel')])
    found = read(json.dumps(dict(events=[odd, event, dict(tStartMs=5)])), 'a.json3')
    assert found == ([(1, 3, 'peel')], 1)


@pytest.mark.parametrize(
    'files, video, language, want',
    [
        ('soup.part2.vtt soup.2.srt soup.old-take.vtt', 'soup.mp4', 'en', ''),
        ('Mr. Bean cooks.en.vtt Mr.vtt', 'Mr.mp4', 'en', 'Mr.vtt'),
        ('soup.fr.vtt soup.it.json3', 'soup.mp4', 'en', ''),
        ('soup.fr.vtt soup.it.json3', 'soup.mp4', 'fr', 'soup.fr.vtt'),
        ('soup.fr.vtt soup.it.json3', 'soup.mp4', 'any', 'soup.it.json3'),
        ('soup.es.vtt soup.en-US.vtt', 'soup.mp4', 'en', 'soup.en-US.vtt'),
        ('soup.de.json3 soup.vtt', 'soup.mp4', 'en', 'soup.vtt'),
        ('soup.vtt soup.en_GB.srt', 'soup.mp4', 'en', 'soup.en_GB.srt'),
        ('soup.en.forced.vtt soup.en.sdh.srt', 'soup.mkv', 'en', 'soup.en.sdh.srt'),
        ('soup.en.auto.vtt', 'soup.mp4', 'en', 'soup.en.auto.vtt'),
        ('soup.EN-orig.VTT', 'soup.MP4', 'en', 'soup.EN-orig.VTT'),
        ('soup.eng.srt soup.ger.srt', 'soup.mp4', 'en', 'soup.eng.srt'),
        ('soup.mp4.srt', 'soup.mp4', 'en', 'soup.mp4.srt'),
        ('soup.en.mov soup.en.vtt', 'soup.mp4', 'en', ''),
        ('soup.en.mov soup.en.vtt soup.mp4', 'soup.en.mov', 'en', 'soup.en.vtt'),
        ('soup.en.vtt soup.f251.webm', 'soup.f136.mp4', 'en', 'soup.en.vtt'),
        ('soup.en.vtt soup.mp4', 'soup.f136.mp4', 'en', ''),
        ('soup.f136.vtt soup.mp4', 'soup.f136.mp4', 'en', 'soup.f136.vtt'),
        ('crème.en.vtt', unicodedata.normalize('NFD', 'crème.mp4'), 'en', 'crème.en.vtt'),
        (
            unicodedata.normalize('NFD', 'crème.vtt'),
            'crème.mp4',
            'en',
            unicodedata.normalize('NFD', 'crème.vtt'),
        ),
        ('a[1]*.en.vtt a1.vtt', 'a[1]*.mp4', 'en', 'a[1]*.en.vtt'),
        ('b.srt b.json3 b.vtt', 'b.mp4', 'en', 'b.json3'),
        ('a1.vtt', 'a.mp4', 'en', ''),
        ('a.json a.tsv', 'a.mp4', 'en', 'a.json'),
        ('a.json a.en.tsv', 'a.mp4', 'en', 'a.en.tsv'),
        ('a.info.json', 'a.mp4', 'en', ''),  # what yt-dlp says of it
    ],
)
def test_whose_captions(tmp_path, files, video, language, want):
    names = files.split(' ') if 'Bean' not in files else ['Mr. Bean cooks.en.vtt', 'Mr.vtt']
    for name in [*names, video]:
        (tmp_path / name).touch()
    found = sources.sidecar(tmp_path / video, language)
    assert found == (want and str(tmp_path / want))


def test_captions_in_a_folder_of_their_own(tmp_path):
    for name in 'films/a.mp4', 'films/a.vtt', 'films/b.mp4', 'said/a.tsv', 'said/b.en.srt':
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name, want in ('a', 'a.tsv'), ('b', 'b.en.srt'):
        found = sources.sidecar(tmp_path / f'films/{name}.mp4', 'en', tmp_path / 'said')
        assert found == str(tmp_path / 'said' / want)


def test_captions_that_two_videos_would_take_are_refused(tmp_path):
    for name in 'a/01.mp4', 'b/01.mp4', 'said/01.vtt':
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    cfg = settings(captions=str(tmp_path / 'said'))
    with pytest.raises(SystemExit, match='01.vtt would be the captions of .*a/01.mp4 and of'):
        sources.find_items([str(tmp_path / 'a'), str(tmp_path / 'b')], cfg, [])


# --- what Whisper's tools write ----------------------------------------------------------------

HEARD = [
    dict(start=0.0, end=2.5, text=' Crimp it, twice.', id=0, no_speech_prob=0.1),
    dict(start=2.5, end=4.0, text=' Then pull.', id=1, no_speech_prob=0.1),
]


@pytest.mark.parametrize('write', ['openai', 'whisperx', 'faster', 'howto100m', 'tsv'])
def test_what_the_tools_write_says_the_same(read, write):
    texts_alone = [segment['text'].strip() for segment in HEARD]
    columns = {key: [segment[key] for segment in HEARD] for key in ('start', 'end')}
    content = dict(
        openai=dict(text='Crimp it, twice. Then pull.', segments=HEARD, language='en'),
        whisperx=dict(segments=[s | dict(text=s['text'].strip()) for s in HEARD], word_segments=[]),
        faster=HEARD,
        howto100m=columns | dict(text=texts_alone),
    )
    if write == 'tsv':
        raw = 'start\tend\ttext\n0\t2500\tCrimp it, twice.\n2500\t4000\tThen pull.\n'
        found = read(raw, 'a.tsv')
    else:
        found = read(json.dumps(content[write]), 'a.json')
    assert found == ([(0.0, 2.5, 'Crimp it, twice.'), (2.5, 4.0, 'Then pull.')], 0)


@pytest.mark.parametrize('space', [' ', ''])
def test_words_have_their_own_times_where_they_are_known(read, space):
    """openai-whisper keeps the space before a word, whisperX does not, nor a time of numbers."""
    words = [('Crimp', 0.2), ('10', None), ('it,', 1.0), ('twice.', 1.75)]
    words = [dict(word=space + w) | (dict(start=t, end=t + 0.2) if t else {}) for w, t in words]
    segment = dict(start=0.0, end=2.5, text=' Crimp 10 it, twice.', words=words)
    found, unread = read(json.dumps(dict(segments=[segment])), 'a.json')
    assert not unread and [text for _, _, text in found] == ['Crimp 10', 'it,', 'twice.']
    assert [a for a, _, _ in found] == [0.2, 1.0, 1.75] and found[-1][1] == 2.5


def test_words_of_a_writing_without_spaces_stay_whole(read):
    words = [dict(word='スープ', start=0.1, end=1), dict(word='を作る', start=1, end=2)]
    segment = dict(start=0.0, end=2.0, text='スープを作る', words=words)
    assert texts(read(json.dumps(dict(segments=[segment])), 'a.json')) == ['スープを作る']


def test_a_word_is_not_looked_for_within_the_one_before(read):
    words = [dict(word=w, start=t) for t, w in enumerate('pizza a la carte very very good'.split())]
    words[3]['word'] = None
    text = 'pizza a la carte (laughs a lot) very very good'
    segment = dict(start=0.0, end=9.0, text=text, words=words)
    found, unread = read(json.dumps(dict(segments=[segment])), 'a.json')
    assert [text for _, _, text in found] == ['pizza', 'a', 'la carte', 'very', 'very', 'good']
    assert [a for a, _, _ in found] == [0, 1, 2, 4, 5, 6] and not unread


@pytest.mark.parametrize(
    'odd',
    [
        None,
        3,
        {},
        dict(start='x', end=1, text='a'),
        dict(start=float('nan'), end=1.0, text='a'),
        dict(start=5, end=1, text='a'),
        dict(start=0, end=1e30, text='a'),
        dict(start=0, end=1, text=None),
        dict(start=0, end=1, text='a', words=[3]),
    ],
)
def test_an_odd_segment_of_whisper_costs_itself(read, odd):
    found, unread = read(json.dumps(dict(segments=[HEARD[0], odd, HEARD[1]])), 'a.json')
    assert texts((found, 0)) == ['Crimp it, twice.', 'Then pull.'] and unread == 1


@pytest.mark.parametrize(
    'raw', ['{"format": {"duration": 3}}', '[1', '3', '{"start": [1], "end": []}']
)
def test_json_that_is_no_captions_is_told(read, raw):
    with pytest.raises(sources.Bad) as bad:
        read(raw, 'a.json')
    assert bad.value.cause == 'bad_sidecar'


def test_an_odd_line_of_a_tsv_costs_itself(read):
    raw = 'start\tend\ttext\n0\t900\ta\tb\nx\t1\ty\n900\n1000\t2000\tc\u2028d\r\n'
    for written in raw, raw.partition('\n')[2]:
        found, unread = read(written, 'a.tsv')
        assert texts((found, 0)) == ['a b', 'c d'] and unread == 2


@pytest.fixture
def item(tmp_path):
    video = make_video(tmp_path / 'a.mp4', [1], sound=True, words=False)
    sidecar = str(tmp_path / 'a.vtt')
    return dict(key='file:a', source=str(video), url='', bytes=1, title='', sidecar=sidecar)


@pytest.mark.parametrize('content', [b'WEBVTT\n\nno cue', b'<html>', b'\xcf\xf0\xe8' * 9, None])
def test_captions_that_fail_are_told_and_counted(item, tmp_path, content):
    if content is not None:
        (tmp_path / 'a.vtt').write_bytes(content)
    cfg = settings(root=tmp_path, timeout_s=600, text='sidecar')
    row = prepare.process(item, cfg)
    assert row['cause'] in ('no_text', 'bad_sidecar') and row['counts']['sidecar_failed'] == 1
    cfg.keep_silent = True
    row = prepare.process(item, cfg)
    assert (row['status'], row['counts']['sidecar_failed']) == ('ok', 1)
    assert 'a.vtt' in row['message'] and '\n' not in row['message']


def test_a_run_says_whose_captions_failed(item, tmp_path):
    told = []
    bar = collections.namedtuple('Bar', 'write set_postfix_str update')
    bar = bar(told.append, lambda *a, **k: None, lambda n: None)
    cfg = settings(root=tmp_path, timeout_s=600, text='sidecar', keep_silent=True, workers=1)
    prepare.process_all([item], cfg, bar)
    assert len(told) == 1 and 'a.vtt' in told[0]


def test_captions_that_fail_leave_it_to_whisper(item, tmp_path):
    (tmp_path / 'a.vtt').write_text('1\n00:00:01,000 -> 00:00:02,000\nno arrow')
    cfg = settings(root=tmp_path, timeout_s=600, whisper_model='no/such.pt', keep_silent=True)
    row = prepare.process(item, cfg)
    assert row['cause'] == 'no_text' and '\n' not in row['message'], 'weights that are none'
    assert 'a.vtt' in row['message'] and 'no/such.pt' in row['message']
    if 'NANOVLP_WHISPER' in os.environ:
        cfg.whisper_model = os.environ['NANOVLP_WHISPER']
        row = prepare.process(item, cfg)
        assert (row['status'], row['words_from']) == ('ok', 'whisper')
        assert row['counts']['sidecar_failed'] == 1 and 'a.vtt' in row['message']
        assert 'chunks' in row['counts']
