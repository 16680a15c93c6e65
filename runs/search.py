"""--task=search: the moments of prepared sets, all splits, that show or say something.

    python eval.py --run=out/talks --task=search --query="a red circle" --page
    python eval.py --run=out/talks --task=search --serve         a page that answers and plays
    python eval.py --run=out/talks --task=search --image=x.jpg --dataset=a,b --top=50
    python eval.py --task=search --dataset=talks --by=said --query="ohm's law"       without a run

The embedding of every frame, and the index of all that is said, are made once, and kept
(runs/moments.py).
"""
import base64, sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from configurator import at_least
from data.pictures import open_pictures
from runs.moments import answer, jpeg_of, open_index, printable, template
from runs.serve import listen, serve

@dataclass
class Knobs:
    query: str = ''              # these words,
    image: str = ''              # or what looks like this picture
    by: Literal['both', 'seen', 'said'] = 'both'         # pictures, what is said, or both
    top: int = 20                # so many moments
    page: bool = False           # also as a web page that works offline: out/<run>/search.html
    serve: bool = False          # as a page that answers, and plays the videos: http://host:port
    host: str = '127.0.0.1'      # 0.0.0.0: whoever reaches this machine may search, too
    port: int = 8000             # 0: any that is free

def main(model, k):
    at_least(vars(k), top=1, port=0)
    if model is None and (k.by != 'said' or not k.dataset):
        sys.exit(f'error: there is no run {k.run}. What is said can be searched without one: '
                 '--by=said --dataset=<name>')
    k.data_dir = k.data_dir or 'data'
    if model is not None and not model.config.has('itc'):
        if k.by != 'both' or k.image:
            sys.exit(f'error: {k.run} was trained without itc, so it has no embeddings to search '
                     'by; take a run with --itc=1, or --by=said')
        k.by = 'said'
    if k.serve:
        listening = listen(k)
        return serve(open_index(model, k), k, listening)
    if bool(k.query.strip()) == bool(k.image):
        sys.exit('error: search needs --query="words" or --image=picture.jpg, or --serve')
    if k.image and k.by == 'said':
        sys.exit('error: a picture says nothing: --image needs --by=seen or both')
    picture = next(open_pictures(k.image))[1] if k.image else None
    moments = answer(open_index(model, k), k, k.query, k.by, picture)
    if not moments:
        sys.exit(f'error: nobody says a word of "{printable(k.query)}"')
    for m in moments:
        cosine = '     ' if m['cosine'] is None else f"{m['cosine']:.3f}"
        print(f"{cosine}  {m['clock']:>6}  {m['title'][:60]}  {m['link']}")
        print('            ' + ''.join(f'*{w}*' if of_it else w for w, of_it in m['words'])[:150])
    if k.page:
        write_page(moments, k)

def write_page(moments, k):
    """<run>/search.html: one static file with pictures, links and the words around."""
    for m in moments:
        jpeg = base64.b64encode(jpeg_of(m['data'], m['frame'])).decode()
        m['picture'] = f'data:image/jpeg;base64,{jpeg}'
    page = template().render(asked=printable(k.query or f'like {k.image}'), moments=moments,
                             dataset=k.dataset, live=False)
    path = Path(k.run) / 'search.html'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding='utf-8')
    print(f'wrote {path}')
