"""--task=search --serve: a page on this machine, which answers and plays the videos.

No path of a request reaches the disk: it names parts, videos and frames by their numbers, and what
is read are the arrays and the files that videos.jsonl names.
"""
import contextlib, hashlib, json, logging, mimetypes, os, socket, sys, threading
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import torch

from data.sources import EXTENSIONS
from runs.moments import answer, find, jpeg_of, printable, template

HEADERS = {
    'Content-Security-Policy':
        "default-src 'none'; img-src 'self'; media-src 'self'; script-src 'self'; "
        "style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    'X-Content-Type-Options': 'nosniff', 'Referrer-Policy': 'no-referrer',
    'Cache-Control': 'no-cache'}
LONGEST = 1000                   # letters of a query that are read
one_at_a_time = threading.Lock()

def listen(k):
    """-> a socket; exits with the remedy before any work is done."""
    try:
        import starlette, uvicorn  # noqa: F401
    except ImportError:
        sys.exit('error: --serve needs two packages more: pip install starlette uvicorn')
    try:
        if not k.host:
            raise OSError('an empty name would be everybody')
        family = socket.AF_INET6 if ':' in k.host else socket.AF_INET
        return socket.create_server((k.host, k.port), family=family)
    except (OSError, OverflowError) as e:
        sys.exit(f'error: {k.host}:{k.port} cannot be listened on ({e}); --port=0 takes any that '
                 'is free')

def serve(index, k, listening):
    import uvicorn
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.routing import Route
    # another set on the same port has other addresses: a browser remembers
    made_of = [[str(data.path), data.meta['keys_sha256']] for data in index.parts]
    site = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:12]
    routes = [Route('/', page), Route('/search.js', script),
              Route(f'/{site}/picture/{{at}}.jpg', picture), Route(f'/{site}/video/{{at}}', video)]
    anywhere = k.host in ('0.0.0.0', '::')
    hosts = ['*'] if anywhere else ['127.0.0.1', 'localhost', '[::1]', k.host, f'[{k.host}]']
    app = Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, hosts)])
    app.state.index, app.state.k, app.state.site = index, k, site
    app.state.template = template()
    host = f'[{k.host}]' if ':' in k.host else k.host
    print(f'http://{host}:{listening.getsockname()[1]}      Ctrl-C ends it', flush=True)
    settings = uvicorn.Config(app, log_level='warning', server_header=False,
                              timeout_graceful_shutdown=1)
    server = uvicorn.Server(settings)
    # Ctrl-C cuts off whoever watches, which is no error
    logging.getLogger('uvicorn.error').addFilter(lambda record: not server.should_exit)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listening])

# ----------------------------------------------------------------------------------------------
# what is asked for

def numbered(text, index, what):
    """'3.7' -> the part 3 and its video or frame 7, or None if there is no such."""
    numbers = text.split('.')
    if len(numbers) != 2 or not all(n.isascii() and n.isdigit() and len(n) < 12 for n in numbers):
        return None
    part, i = map(int, numbers)
    if part < len(index.parts) and i < len(getattr(index.parts[part], what)):
        return part, i

def frames_of(index, part, number):
    """-> the first frame of a video, and its last + 1."""
    at = index.parts[part].videos[number]
    return int(at['frame_start']), int(at['frame_end'])

def page(request):
    from starlette.responses import HTMLResponse
    index, k = request.app.state.index, request.app.state.k
    asked = request.query_params
    query = printable(asked.get('q', '')[:LONGEST]).strip()
    ways = ['both', 'seen', 'said'] if k.by == 'both' else [k.by]
    by = asked['by'] if asked.get('by') in ways else k.by
    like = numbered(asked.get('like', ''), index, 'frames')
    only = numbered(asked.get('only', ''), index, 'videos')
    notice = ''
    if len(asked.get('q', '')) > LONGEST:
        notice = f'The first {LONGEST} letters of it were read.'

    moments = []
    if query or like:
        with one_at_a_time, torch.no_grad():
            moments = found(index, k, query, by, like, only)
        if not moments:
            notice = f'Nothing was found for "{query}".'
    way = dict(by=by) | {name: asked[name] for name in ('like', 'only') if asked.get(name)}
    for m in moments:
        add_links(m, request.app.state, dict(q=query) | way)
    title = ''
    if only:
        row = index.rows[only[0]](only[1])
        title = printable(row['title'] or row['source'])
    way.pop('only', None)
    html = request.app.state.template.render(
        live=True, q=query, by=by, ways=ways, dataset=k.dataset, moments=moments, notice=notice,
        asked=query, only=asked.get('only', '') if only else '', only_title=title,
        everywhere='/?' + urlencode(dict(q=query) | way))
    return HTMLResponse(html, headers=HEADERS)

def found(index, k, query, by, like, only):
    """-> moments for words, or for what looks like a frame."""
    span = (only[0], *frames_of(index, *only)) if only else None
    if like and index.z[like[0]] is not None:
        wanted = index.z[like[0]][like[1]].astype(np.float32)
        return find(index, k, '', wanted, span)
    return answer(index, k, query, by, only=span) if query else []

def add_links(m, state, asked):
    """What the page needs of a moment; asked: the settings that it was found by."""
    place = f"/{state.site}/video/{m['part']}.{m['video']}"
    here = not m['row']['url']
    m['gone'] = here and not m['still'] and not os.path.isfile(m['row']['source'])
    m['play'] = f"{place}#t={m['at']}" if here and playable(m['row']) and not m['still'] else ''
    m['link'] = m['play'] if here else m['link']                       # no file:// from a page
    m['picture'] = f"/{state.site}/picture/{m['part']}.{m['frame']}.jpg"
    m['within'] = '/?' + urlencode(asked | dict(only=f"{m['part']}.{m['video']}"))
    m['like'] = ''
    if state.index.z[m['part']] is not None:
        asked = {name: value for name, value in asked.items() if name in ('by', 'only')}
        m['like'] = '/?' + urlencode(dict(like=f"{m['part']}.{m['frame']}") | asked)

def playable(row):
    """A file of this machine that was read as a video, no site's."""
    kind = os.path.splitext(row['source'])[1].lower()
    return not row['url'] and kind in EXTENSIONS and os.path.isfile(row['source'])

def script(request):
    from starlette.responses import FileResponse
    return FileResponse(Path(__file__).with_name('search.js'), headers=HEADERS)

def picture(request):
    from starlette.responses import Response
    index = request.app.state.index
    at = numbered(request.path_params['at'], index, 'frames')
    if at is None:
        return Response(status_code=404)
    keep = {'Cache-Control': 'max-age=3600'}
    return Response(jpeg_of(index.parts[at[0]], at[1]), media_type='image/jpeg',
                    headers=HEADERS | keep)

def video(request):
    """A file by ranges, so that a browser begins in the middle."""
    from starlette.responses import FileResponse, Response
    index = request.app.state.index
    at = numbered(request.path_params['at'], index, 'videos')
    row = index.rows[at[0]](at[1]) if at else dict(url='', source='')
    if not playable(row):
        return Response(status_code=404)
    kind = mimetypes.guess_type(row['source'])[0] or 'video/mp4'       # else the browser's guess
    return FileResponse(row['source'], media_type=kind, headers=HEADERS)
