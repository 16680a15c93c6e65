"""What came of a set, for people: the table, the preview, the estimate."""
import base64
import collections
import io
from pathlib import Path

import numpy as np

from data.arrays import Frames, read_meta, unpatchify
from data.sources import Bad, read_rows
from data.tokens import gpt2_encoding
from data.video import Decoder

def table(rows, seconds=0):
    """Rows of videos.jsonl, and how long they took -> lines of text."""
    ok = [r for r in rows if r['status'] == 'ok']
    count = collections.Counter()
    for r in ok:
        count.update(r['counts'])

    def listed(counts, prefix=''):
        return ', '.join(f'{n} {c.removeprefix(prefix)}' for c, n in sorted(counts.items())
                         if c.startswith(prefix))
    causes = collections.Counter(r['cause'] or 'ok' for r in rows)
    length = sum(r['duration'] for r in ok)
    lines = dict(videos=listed(causes), length=f'{length / 3600:.2f} h',
                 frames=listed(count, 'frames_'), speech=listed(count, 'chunks'),
                 tokens=sum(r['n_tokens'] for r in ok))
    if seconds:
        lines['speed'] = f'{length / seconds:.0f} x real time'
    return '\n'.join(f'  {name:8s}{line}' for name, line in lines.items() if line != '')

def write_preview(root, n=24):
    """root/preview.html: n random frames with the words around them, and what became of each
    video. One static page; nothing in it is trusted: the template escapes."""
    import jinja2
    rows = read_rows(root / 'videos.jsonl')
    counts = read_meta(root)['counts']
    every = sum(c['frames'] for c in counts.values())
    rng = np.random.default_rng(0)
    cards = []
    for split in counts:
        data = Frames(root, split, silent=True)
        share = min(-(-n * len(data.frames) // max(1, every)), len(data.frames))
        chosen = sorted(rng.choice(len(data.frames), share, replace=False))
        cards += [card(data, int(i), rows) for i in chosen]
    template = jinja2.Template(Path(__file__).with_name('preview.html').read_text(), autoescape=True)
    page = template.render(name=root.name, table=table(rows), cards=cards,
                           rows=sorted(rows, key=lambda r: r['status']))
    (root / 'preview.html').write_text(page, encoding='utf-8')
    print(f"wrote {root / 'preview.html'}")

def card(data, i, rows):
    """Frame i for the template: the picture, where it stands, what was said."""
    from PIL import Image
    frame = data.frames[i]
    video = data.videos[frame['video']]
    span = slice(int(video['token_start']), int(video['token_end']) - 1)
    when = data.times[span].astype(np.int64)
    t = int(frame['t_ms'])
    end = max(int(frame['t_end_ms']), t + 1)

    def words(a, b):
        return gpt2_encoding().decode(data.tokens[span][(when >= a) & (when < b)].tolist())
    png = io.BytesIO()
    picture = unpatchify(data.patches[i:i + 1], data.meta['patch_size'])[0]
    Image.fromarray(picture).save(png, 'PNG')
    return dict(split=data.split, row=rows[video['row']], t=t // 1000, stands=(end - t) / 1000,
                png=base64.b64encode(png.getvalue()).decode(), before=words(t - 1000, t),
                during=words(t, end), after=words(end, end + 1000))

def estimate(items, cfg):
    """--dry_run: open each file, decode and download nothing, print what a run would take."""
    hours = broken = 0
    for item in items:
        try:                                       # ten minutes where a site does not say
            if item['url']:
                hours += (item.get('duration') or 600) / 3600
            elif 'captions' not in item:
                hours += Decoder(item['source']).duration / 3600
        except Bad as e:
            broken += 1
            print(f'  cannot be read ({e.cause}): {e}')
    images = sum('captions' in i for i in items)
    online = sum(bool(i['url']) for i in items)
    size = (images + 400 * hours) * 3 * cfg.image_size ** 2 / 1e6      # 400 frames an hour stay
    print(f'{len(items) - images} videos ({online} to download, {broken} unreadable), '
          f'{hours:.2f} hours, {images} images with captions: about {size:.0f} MB of arrays '
          '(as much again for shards)')
