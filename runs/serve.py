"""--task=search --serve: a page on this machine, which answers and plays the videos.

No path of a request reaches the disk: it names parts, videos and frames by their numbers, and what
is read are the arrays and the files that videos.jsonl names.
"""
import mimetypes, socket, sys, threading
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import torch

from data.arrays import CAPTIONS
from runs.moments import answer, find, jpeg_of, printable, row_of, template

HEADERS = {
    'Content-Security-Policy':
        "default-src 'none'; img-src 'self'; media-src 'self'; script-src 'self'; "
        "style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    'X-Content-Type-Options': 'nosniff', 'Referrer-Policy': 'no-referrer'}
LONGEST = 1000                   # letters of a query that are read
one_at_a_time = threading.Lock()

def serve(index, k):
    try:
        import uvicorn
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.routing import Route
    except ImportError:
        sys.exit('error: --serve needs two packages more: pip install starlette uvicorn')
    routes = [Route('/', page), Route('/search.js', script),
              Route('/picture/{part:int}/{frame:int}.jpg', picture),
              Route('/video/{part:int}/{video:int}', video)]
    hosts = ['*'] if k.host == '0.0.0.0' else ['127.0.0.1', 'localhost', '[::1]', k.host]
    app = Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, hosts)])
    app.state.index, app.state.k = index, k
    app.state.template = template()
    try:
        listen = socket.create_server((k.host, k.port))
    except (OSError, OverflowError) as e:
        sys.exit(f'error: {k.host}:{k.port} cannot be listened on ({e}); --port=0 takes any that '
                 'is free')
    print(f'http://{k.host}:{listen.getsockname()[1]}      Ctrl-C ends it', flush=True)
    settings = uvicorn.Config(app, log_level='warning', server_header=False)
    uvicorn.Server(settings).run(sockets=[listen])

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
    for m in moments:
        beautify(m, index, query, by)
    title = ''
    if only:
        title = moments[0]['title'] if moments else 'one video'
    html = request.app.state.template.render(
        live=True, q=query, by=by, ways=ways, dataset=k.dataset, moments=moments, notice=notice,
        asked=query, only=asked.get('only', '') if only else '', only_title=title,
        everywhere='/?' + urlencode(dict(q=query, by=by)))
    return HTMLResponse(html, headers=HEADERS)

def found(index, k, query, by, like, only):
    """-> moments for words, or for what looks like a frame."""
    span = (only[0], *frames_of(index, *only)) if only else None
    if like and index.z[like[0]] is not None:
        wanted = index.z[like[0]][like[1]].astype(np.float32)
        return find(index, k, '', wanted, span)
    return answer(index, k, query, by, only=span) if query else []

def beautify(m, index, query, by):
    """Adds the links of the page."""
    at = f"{m['part']}.{m['video']}"
    local = not m['row']['url']
    m['gone'] = local and not Path(m['row']['source']).is_file()
    m['play'] = ''
    if local and not m['gone'] and not m['still']:
        m['play'] = f"/video/{m['part']}/{m['video']}#t={m['at']}"
    m['link'] = m['play'] if local else m['link']                      # no file:// from a page
    m['picture'] = f"/picture/{m['part']}/{m['frame']}.jpg"
    m['within'] = '/?' + urlencode(dict(q=query, by=by, only=at))
    m['like'] = ''
    if index.z[m['part']] is not None:
        m['like'] = '/?' + urlencode(dict(like=f"{m['part']}.{m['frame']}"))

def script(request):
    from starlette.responses import FileResponse
    return FileResponse(Path(__file__).with_name('search.js'), headers=HEADERS)

def picture(request):
    from starlette.responses import Response
    index, at = request.app.state.index, request.path_params
    if at['part'] >= len(index.parts) or at['frame'] >= len(index.parts[at['part']].frames):
        return Response(status_code=404)
    jpeg = jpeg_of(index.parts[at['part']], at['frame'])
    keep = {'Cache-Control': 'max-age=3600'}
    return Response(jpeg, media_type='image/jpeg', headers=HEADERS | keep)

def video(request):
    """A file by ranges, so that a browser begins in the middle."""
    from starlette.responses import FileResponse, Response
    index, at = request.app.state.index, request.path_params
    if at['part'] >= len(index.parts) or at['video'] >= len(index.parts[at['part']].videos):
        return Response(status_code=404)
    data = index.parts[at['part']]
    about = data.videos[at['video']]
    source = Path(row_of(data, at['video'])['source'])
    if about['flags'] & CAPTIONS or not source.is_file():
        return Response(status_code=404)
    kind = mimetypes.guess_type(source.name)[0] or ''
    if kind.split('/')[0] not in ('video', 'audio'):
        kind = 'application/octet-stream'
    return FileResponse(source, media_type=kind, headers=HEADERS)
