"""What came of a set, for people: the table, the preview, the estimate."""
import base64, collections, io
from pathlib import Path

import numpy as np

from data.arrays import Frames, read_meta, unpatchify
from data.packs import is_pack, size_of
from data.sources import Bad, read_rows
from data.video import Decoder

def table(rows, seconds=0):
    """Rows of videos.jsonl, and how long they took -> lines of text."""
    ok = [r for r in rows if r['status'] == 'ok']
    causes = collections.Counter()
    for row in rows:                               # of a pack: what became of its pictures
        causes.update(row.get('pictures') or [row['cause'] or 'ok'])
    listed = ', '.join(f'{n} {what}' for what, n in sorted(causes.items()))
    length = sum(r.get('duration', 0) for r in ok)
    speed = f' at {length / seconds:.0f} x real time' if seconds else ''
    lines = [f'  videos  {listed}', f'  length  {length / 3600:.2f} h{speed}',
             f"  tokens  {sum(r['n_tokens'] for r in ok)}"]

    # what was taken and left out inside them
    for what in sorted({what for r in ok for what in r.get('counts', ())}):
        each = [r.get('counts', {}).get(what, 0) for r in ok]
        of = sum(n > 0 for n in each)
        lines.append(f"{sum(each):10} {what.replace('_', ' ')}, in {of} of {len(ok)} videos")
    return '\n'.join(lines)

def write_preview(root, n=24):
    """root/preview.html: n random frames with the words around them, and what became of each
    video. One static page; nothing in it is trusted: the template escapes."""
    import jinja2
    counts = read_meta(root)['counts']
    rows = read_rows(root / 'videos.jsonl')
    every = sum(c['frames'] for c in counts.values())
    rng = np.random.default_rng(0)
    cards = []
    for split in counts:
        data = Frames(root, split, silent=True)
        share = -(-n * len(data.frames) // max(1, every))
        chosen = sorted(rng.permutation(len(data.frames))[:share].tolist())
        cards += [card(data, i, rows) for i in chosen]
    source = Path(__file__).with_name('preview.html').read_text(encoding='utf-8')
    rows.sort(key=lambda r: r['status'])
    page = jinja2.Template(source, autoescape=True).render(
        name=root.name, table=table(rows), cards=cards, rows=rows)
    (root / 'preview.html').write_text(page, encoding='utf-8', errors='backslashreplace')
    print(f"wrote {root / 'preview.html'}")

def card(data, i, rows):
    """Frame i: the picture, where it stands, the words before, during and after it."""
    from PIL import Image
    frame = data.frames[i]
    video = data.videos[frame['video']]
    t = int(frame['t_ms'])
    end = max(int(frame['t_end_ms']), t + 1)
    first = int(video['token_start'])
    times = data.times[first:int(video['token_end']) - 1]
    at = first + np.searchsorted(times, [t - 1000, t, end, end + 1000])
    png = io.BytesIO()
    picture = unpatchify(data.patches[i:i + 1], data.meta['patch_size'])[0]
    Image.fromarray(picture).save(png, 'PNG')
    return dict(split=data.split, row=rows[video['row']], t=t // 1000, stands=(end - t) / 1000,
                words=[data.text(a, b - a) for a, b in zip(at, at[1:])],
                png=base64.b64encode(png.getvalue()).decode())

def estimate(items, cfg):
    """--dry_run: open each file, decode and download nothing, say what a run would take."""
    hours = online = packs = images = broken = 0
    for item in items:
        try:
            if item['url']:                        # ten minutes where a site does not say
                online += 1
                hours += (item.get('duration') or 600) / 3600
            elif is_pack(item):
                packs += 1
                images += size_of(item)
            else:
                hours += Decoder(item['source']).duration / 3600
        except Bad as e:
            broken += 1
            print(f'  cannot be read ({e.cause}): {e}')
    size = (images + 400 * hours) * 3 * cfg.image_size ** 2 / 1e6      # 400 frames an hour stay
    print(f'{len(items) - packs} videos ({online} to download, {broken} unreadable), {hours:.2f} '
          f'hours, {images} images: about {size:.0f} MB of arrays, and as much of shards')
