"""pytest tests/test_fetch.py -q      real yt-dlp against a server on loopback that serves good and
bad answers"""

import http.server, json, os, re, shutil, threading, time
from pathlib import Path
import pytest
from data.check import problems
from data import sources
from data.splits import uploads
from test_prepare import hashes, make_video, rows_of, run, settings


class Site(http.server.BaseHTTPRequestHandler):
    """GET /<what>/<file>: good, slow, cut (once), page, feed, or a status code; counts what is
    asked."""

    asked, folder, cut = [], None, set()

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):  # noqa: C901  (a site has many pages)
        what, name = self.path.split('?')[0].strip('/').split('/')
        if self.command == 'GET':
            self.asked.append(self.path)
        if what.isdigit():
            return self.send_error(int(what))
        kind, status, begin = 'video/mp4', 200, 0
        if what == 'page':
            body, kind = (
                b'<html><head><title>A page &lt;b&gt;</title></head><body><video><source '
                b'src="/good/%s.mp4" type="video/mp4"><track kind="captions" '
                b'srclang="en" src="/good/%s.vtt"></video></body></html>'
                % (name[:2].encode(), name[:2].encode()),
                'text/html',
            )
        elif what == 'mpd':  # picture and sound apart
            body, kind = (
                (
                    b'<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
                    b'mediaPresentationDuration="PT12S"><Period><AdaptationSet '
                    b'mimeType="video/mp4">'
                    b'<Representation id="picture" bandwidth="90000" width="96" height="64" '
                    b'codecs="avc1.4d401e"><BaseURL>/good/v0.mp4</BaseURL></Representation>'
                    b'</AdaptationSet><AdaptationSet mimeType="audio/mp4"><Representation '
                    b'id="sound" bandwidth="48000" codecs="mp4a.40.2"><BaseURL>/good/sound.mp4'
                    b'</BaseURL></Representation></AdaptationSet></Period></MPD>'
                ),
                'application/dash+xml',
            )
        elif what == 'html':
            body, kind = b'<html><body>Sorry, an error.</body></html>', 'text/html'
        elif what == 'garbage':
            body = bytes(range(256)) * 40
        elif what == 'feed':
            rows = ''.join(
                f'<item><title>Talk {n}</title><guid>{n}</guid><enclosure '
                f'url="http://{self.headers["Host"]}/good/v{n}.mp4" type="video/mp4"/></item>'
                for n in range(4)
            )
            body, kind = (
                (
                    '<?xml version="1.0"?><rss version="2.0"><channel>'
                    f'<title>Talks</title>{rows}</channel></rss>'
                ).encode(),
                'application/rss+xml',
            )
        else:
            body = (self.folder / name).read_bytes()
        if what in ('good', 'cut', 'slow') and (
            asked := re.match(r'bytes=(\d+)-', self.headers.get('Range') or '')
        ):
            begin, status = int(asked[1]), 206
        self.send_response(status)
        self.send_header('Content-Type', kind)
        self.send_header('Content-Length', str(len(body) - begin))
        self.send_header('Accept-Ranges', 'bytes')
        if status == 206:
            self.send_header('Content-Range', f'bytes {begin}-{len(body) - 1}/{len(body)}')
        self.end_headers()
        if self.command == 'HEAD':
            return
        if (
            what == 'cut' and begin == 0 and name not in self.cut
        ):  # half of it, then the line is dead
            self.cut.add(name)
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        for i in range(begin, len(body), 4096):
            self.wfile.write(body[i : i + 4096])
            time.sleep(0.05 if what == 'slow' else 0)

    def log_message(self, *args):
        pass


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    Site.folder = tmp_path_factory.mktemp('site')
    for n in range(8):
        make_video(Site.folder / f'v{n}.mp4', [1, 2, 3], seed=100 + n)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


def args(tmp_path, *more):
    return [
        f'--data_dir={tmp_path}/data',
        '--dataset=set',
        '--image_size=32',
        '--patch_size=8',
        '--text=sidecar',
        '--keep_silent=true',
        '--sleep_s=0',
        '--min_s=0',
        *more,
    ]


def test_urls_pages_and_feeds_become_items_and_arrays(site, tmp_path):
    Site.asked.clear()
    argv = [
        f'{site}/feed/talks.xml',
        f'{site}/page/v4.html',
        f'{site}/good/v5.mp4',
        f'{site}/cut/v6.mp4',
        f'{site}/slow/v7.mp4',
        f'{site}/good/v5.mp4#t=3',
    ]
    done = run(*argv, *args(tmp_path))
    assert done.returncode == 0 and '8 ok' in done.stdout, done.stdout + done.stderr
    root = tmp_path / 'data/set'
    items = [json.loads(line) for line in open(root / 'items.jsonl')]
    assert len(items) == 8 and sorted(i['title'] for i in items if i['asked'].endswith('.xml')) == [
        f'Talk {n}' for n in range(4)
    ]
    rows = rows_of(root)
    assert all(
        r['status'] == 'ok' and r['n_frames'] == 3 and r['url'].startswith(site) for r in rows
    ) and not problems(root)
    assert [
        r['title'][:10] for r in rows if r['words_from'] == 'sidecar' and r['n_tokens'] > 10
    ] == ['A page <b>'], 'its captions came along'
    assert not [p for p in (root / 'raw').rglob('*') if p.is_file()], (
        'the files themselves are gone'
    )
    before, n = hashes(root), len(Site.asked)
    again = run(*argv, *args(tmp_path))
    assert again.returncode == 0 and hashes(root) == before
    assert Site.asked[n:] == [], 'nothing is asked twice'
    recipe = run(root / 'items.jsonl', *args(tmp_path / 'other', '--keep_media=true'))
    assert recipe.returncode == 0 and {
        k: v for k, v in hashes(tmp_path / 'other/data/set').items() if 'bin' in k
    } == {k: v for k, v in before.items() if 'bin' in k}
    assert len([p for p in (tmp_path / 'other/data/set/raw').rglob('*.mp4')]) == 8


@pytest.mark.skipif(
    'NANOVLP_WHISPER' not in os.environ or 'NANOVLP_DATA' not in os.environ,
    reason='set NANOVLP_WHISPER and NANOVLP_DATA',
)
def test_picture_and_sound_as_two_files(site, tmp_path):
    shutil.copy(
        sorted(Path(os.environ['NANOVLP_DATA'], 'stamps_en').glob('*.mp4'))[0],
        Site.folder / 'sound.mp4',
    )
    done = run(
        f'{site}/mpd/talk.mpd',
        *args(
            tmp_path,
            '--text=auto',
            f"--whisper_model={os.environ['NANOVLP_WHISPER']}",
            '--keep_media=true',
        ),
    )
    (Site.folder / 'sound.mp4').unlink()
    (row,) = rows_of(tmp_path / 'data/set')
    assert (
        row['status'] == 'ok'
        and row['n_frames'] == 3
        and row['words_from'] == 'whisper'
        and row['n_tokens'] > 5
    ), done.stdout + done.stderr
    assert len([p for p in (tmp_path / 'data/set/raw').rglob('*') if p.is_file()]) == 2


def test_every_refusal_has_its_cause_and_is_not_asked_again(site, tmp_path):
    bad = {
        '404/a.mp4': 'gone',
        '410/a.mp4': 'gone',
        '401/a.mp4': 'private',
        'html/a.mp4': 'no_video',
        'garbage/a.mp4': 'not_media',
    }
    done = run(f'{site}/good/v0.mp4', *(f'{site}/{b}' for b in bad), *args(tmp_path))
    rows = {r['url'].removeprefix(site + '/'): r for r in rows_of(tmp_path / 'data/set')}
    assert {b: rows[b]['cause'] for b in bad} == bad and rows['good/v0.mp4']['status'] == 'ok', (
        done.stderr
    )
    assert '404' in rows['404/a.mp4']['message']
    Site.asked.clear()
    run(*args(tmp_path))
    assert not Site.asked
    run(*args(tmp_path, '--retry_failed=true'))
    assert len({a for a in Site.asked if 'a.mp4' in a}) == 5


def test_three_refusals_in_a_row_stop_the_run_and_the_rest_stays_pending(site, tmp_path):
    argv = [
        f'{site}/good/v0.mp4',
        *(f'{site}/429/{n}.mp4' for n in range(3)),
        *(f'{site}/good/v{n}.mp4' for n in range(1, 4)),
    ]
    done = run(*argv, *args(tmp_path))
    rows = {r['url'].removeprefix(site + '/'): r for r in rows_of(tmp_path / 'data/set')}
    assert (
        done.returncode == 75
        and 'Wait an hour' in done.stderr
        and rows['good/v0.mp4']['status'] == 'ok'
    ), done.stderr
    assert {rows[f'429/{n}.mp4']['cause'] for n in range(3)} == {'refused'} and {
        rows[f'good/v{n}.mp4']['cause'] for n in range(1, 4)
    } == {'pending'}


def test_filters_leave_out_by_length_and_say_so(site, tmp_path):
    done = run(
        f'{site}/feed/talks.xml', *args(tmp_path, '--max_per_input=2', '--licence=Creative Commons')
    )
    rows = rows_of(tmp_path / 'data/set')
    assert (
        done.returncode == 1
        and len(rows) == 2
        and {r['cause'] for r in rows} == {'filtered'}
        and 'license' in rows[0]['message']
    ), done.stderr


def test_excluded_videos_leave_for_good(site, tmp_path):
    run(f'{site}/feed/talks.xml', *args(tmp_path))
    root = tmp_path / 'data/set'
    (tmp_path / 'gone.txt').write_text(f'{site}/good/v1.mp4\n')
    done = run(*args(tmp_path, f'--exclude={tmp_path}/gone.txt'))
    assert done.returncode == 0 and len(rows_of(root)) == 3 and not problems(root)
    assert len(list((root / 'shards').glob('*/*.shard'))) == 3
    done = run(f'{site}/feed/talks.xml', f'{site}/good/v1.mp4', *args(tmp_path))
    assert len(rows_of(root)) == 3 and 'v1.mp4' not in (root / 'items.jsonl').read_text()


def test_the_inputs_can_be_frozen_first(site, tmp_path):
    dry = run(f'{site}/feed/talks.xml', *args(tmp_path, '--dry_run'))
    assert (
        dry.returncode == 0
        and '4 videos (4 to download' in dry.stdout
        and not (tmp_path / 'data').exists()
    ), dry.stderr
    done = run(f'{site}/feed/talks.xml', *args(tmp_path, '--resolve=true'))
    assert (
        done.returncode == 0
        and len((tmp_path / 'data/set/items.jsonl').read_text().splitlines()) == 4
        and not list((tmp_path / 'data/set/shards').glob('*/*'))
    )


@pytest.mark.parametrize(
    'message, cause',
    [
        ('ERROR: [youtube] abc: Private video. Sign in if you have been granted access', 'private'),
        ('ERROR: [youtube] abc: Video unavailable', 'gone'),
        ('[youtube] abc: Sign in to confirm you\u2019re not a bot. Use --cookies', 'refused'),
        ('HTTP Error 429: Too Many Requests', 'refused'),
        (
            "This content isn't available, try again later. The current session has been "
            "rate-limited by YouTube for up to an hour",
            'refused',
        ),
        ('[youtube] abc: Join this channel to get access to members-only content', 'members'),
        ('Sign in to confirm your age. This video may be inappropriate', 'age'),
        ('The uploader has not made this video available in your country', 'geo'),
        ('This video has been removed by the uploader', 'gone'),
        ('Requested format is not available', 'no_video'),
        ('Premieres in 3 hours', 'upcoming'),
        ('The read operation timed out', 'network'),
        ('HTTP Error 503', 'network'),
    ],
)
def test_causes_of_what_sites_say(message, cause):
    import yt_dlp

    def ask():
        raise yt_dlp.utils.DownloadError(message)

    with pytest.raises(sources.Bad, match=re.escape(message.removeprefix('ERROR: ')[:40])) as e:
        sources.polite(ask, 'url')
    assert e.value.cause == cause


def test_urls_of_one_video_have_one_key():
    cfg = settings()
    keys = {
        sources.find_online(u, cfg)[0]['key']
        for u in (
            'https://www.youtube.com/watch?v=dQw4w9WgXcQ',
            'https://youtu.be/dQw4w9WgXcQ?t=10',
            'https://www.youtube.com/shorts/dQw4w9WgXcQ',
            'https://m.youtube.com/watch?v=dQw4w9WgXcQ&list=PL1&index=2',
        )
    }
    assert keys == {'youtube:dQw4w9WgXcQ'}


def formats(*rows):
    return [
        dict(
            format_id=i,
            ext='mp4',
            url='http://x/' + i,
            protocol=p,
            height=h,
            vcodec=v,
            acodec=a,
            tbr=h or 50,
        )
        for i, p, h, v, a in rows
    ]


@pytest.mark.parametrize(
    'have, want',
    [
        (
            [
                ('139', 'https', None, 'none', 'aac'),
                ('134', 'https', 360, 'avc1', 'none'),
                ('93', 'm3u8_native', 360, 'avc1', 'aac'),
                ('18', 'https', 360, 'avc1', 'aac'),
            ],
            ['18'],
        ),
        (
            [
                ('139', 'https', None, 'none', 'aac'),
                ('160', 'https', 144, 'avc1', 'none'),
                ('134', 'https', 360, 'avc1', 'none'),
                ('137', 'https', 1080, 'avc1', 'none'),
            ],
            ['134', '139'],
        ),
        ([('0', 'http', None, None, None)], ['0']),
        ([('hd', 'https', 1080, 'avc1', 'aac')], ['hd']),
    ],
)
def test_the_format_is_one_file_or_two_but_never_a_merge(have, want):
    cfg = settings()
    with sources.downloader(cfg) as ydl:
        chosen = list(
            ydl.build_format_selector(ydl.params['format'])(
                dict(formats=formats(*have), has_merged_format=True, incomplete_formats=False)
            )
        )
    assert [f['format_id'] for f in chosen] == want


# --- re-uploads, ranks, many shards, the preview --------------------------------------------------


def test_reuploads_share_a_split(tmp_path):
    """The same pictures in another file, and the same words over other pictures, follow the first
    copy."""
    for n in range(12):
        make_video(tmp_path / f'v{n}.mp4', [10 * n + k for k in range(6)], seconds=2)
    make_video(
        tmp_path / 'again.mp4', [40 + k for k in range(5)], seconds=2, words=False
    )  # v4, without its last scene
    words = (
        'WEBVTT\n\n00:00.000 --> 00:12.000\n'
        + ' '.join(f'{w} said the {w * 7 % 50} of {w * 3 % 11}' for w in range(40))
        + '\n'
    )
    for name in 'v1', 'v2':
        (tmp_path / f'{name}.vtt').write_text(words)
    done = run(tmp_path, *args(tmp_path, '--val_fraction=.4', '--test_fraction=.3'))
    split = {r['title']: r['split'] for r in rows_of(tmp_path / 'data/set')}
    assert (
        done.returncode == 0
        and split['again'] == split['v4']
        and split['v1'] == split['v2']
        and len(set(split.values())) == 3
    )
    assert json.loads((tmp_path / 'data/set/meta.json').read_text())[
        'reuploads'
    ] == 2 and not problems(tmp_path / 'data/set')


def test_uploads_are_grouped_through_pictures_and_words():
    a, b, c, d = ({f'{k}{i}' for i in range(10)} for k in 'abcd')
    assert uploads(dict(p=a, q=a | {'x'}, r=b, s=c), dict(p=set(), q=d, r=set(), s=d)) == dict(
        p='p', q='p', r='r', s='p'
    )
    assert set(uploads({str(n): a for n in range(20)}).values()) != {'0'}, (
        'a title card that all have is no sign'
    )


def test_ranks_make_the_shards_and_a_last_call_joins_them(site, tmp_path):
    folder = Site.folder
    one = run(folder, *args(tmp_path / 'one'))
    for rank in range(3):
        done = run(folder, *args(tmp_path / 'many'), RANK=str(rank), WORLD_SIZE='3')
        assert done.returncode == 0 and f'rank {rank} of 3' in done.stdout, done.stderr
    assert not (tmp_path / 'many/data/set/meta.json').exists()
    run(*args(tmp_path / 'many'))
    assert one.returncode == 0 and hashes(tmp_path / 'one/data/set') == hashes(
        tmp_path / 'many/data/set'
    )


def test_two_sets_are_joined_by_their_recipes(site, tmp_path):
    both = run(Site.folder, *args(tmp_path / 'both'))
    names = sorted(Site.folder.glob('*.mp4'))
    for folder, part in ('a', names[:3]), ('b', names[3:]):
        run(*part, *args(tmp_path / folder))
    joined = run(
        tmp_path / 'a/data/set/items.jsonl',
        tmp_path / 'b/data/set/items.jsonl',
        *args(tmp_path / 'joined'),
    )
    assert both.returncode == joined.returncode == 0 and hashes(
        tmp_path / 'both/data/set'
    ) == hashes(tmp_path / 'joined/data/set')


def test_the_preview_shows_frames_words_and_failures_and_trusts_nothing(tmp_path):
    make_video(tmp_path / '<script>alert(1)<img src=x>.mp4', [1, 2, 3])
    make_video(tmp_path / 'b.mp4', [4, 5])
    (tmp_path / 'bad"onerror=1.mp4').write_bytes(b'no video')
    run(tmp_path, *args(tmp_path))
    assert run(*args(tmp_path, '--preview=true')).returncode == 0
    page = (tmp_path / 'data/set/preview.html').read_text()
    assert (
        page.count('<img src="data:image/png') == 5
        and 'number 2 of this video' in page
        and 'not_media' in page
    )
    assert '<script>alert' not in page and '<img src=x' not in page and '&lt;script&gt;' in page


def test_a_missing_javascript_runtime_is_told_with_its_cure(monkeypatch, capsys):
    from yt_dlp.utils import _jsruntime

    monkeypatch.setattr(_jsruntime, '_find_exe', lambda name: f'/nonexistent/{name}')
    sources.check_javascript()
    assert 'pip install deno' in capsys.readouterr().out
