"""What came of a set, for people: the table, the preview, the estimate."""
import base64
import collections
import io
from pathlib import Path

import numpy as np

from data.arrays import Frames, read_meta, unpatchify
from data.sources import Bad, read_rows
from data.tokens import gpt2_encoding

def table(rows, seconds=0):
    """Rows of videos.jsonl, and how long they took -> lines of text."""
    ok = [r for r in rows if r['status'] == 'ok']
    causes = collections.Counter(r['cause'] for r in rows if r['status'] != 'ok')
    count, spent, length = (collections.Counter() for _ in range(3))
    for r in ok:
        count.update(r['counts'])
        for stage, s in r.get('seconds', {}).items():
            spent[stage] += s
            length[stage] += r['duration']

    def dropped(kind):
        out = [f'{n} {c.removeprefix(kind)}' for c, n in sorted(count.items())
               if c.startswith(kind) and c[len(kind):] not in ('kept', 'seen', 'again')]
        return ', '.join(out) or 'none'
    hours = sum(r['duration'] for r in ok) / 3600
    lines = [f'videos  {len(ok)} ok' + ''.join(f', {n} {c}' for c, n in sorted(causes.items())),
             f'length  {hours:.2f} h',
             f"frames  {count['frames_kept']} kept of {count['frames_seen']} key frames; "
             f"dropped: {dropped('frames_')}",
             f"tokens  {sum(r['n_tokens'] for r in ok)}"]
    if count['chunks']:
        lines.append(f"speech  {count['chunks']} chunks of <= 30 s, {count['chunks_again']} decoded "
                     f"again; dropped: {dropped('chunks_')}")
    if seconds:
        paces = [f'{s}: {length[s] / t:.0f} x real time per worker, ' for s, t in spent.items() if t]
        lines.append(f"speed   {''.join(paces)}{length['frames'] / seconds:.0f} x in all")
    return '\n'.join('  ' + line for line in lines)

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

def estimate(items, cfg, length_of):
    """--dry_run: what a run would take. length_of: a file's path -> seconds; Bad if unreadable."""
    hours = broken = 0
    videos = [i for i in items if 'captions' not in i]
    for item in videos:
        try:                                       # ten minutes where a site does not say
            length = (item.get('duration') or 600) if item['url'] else length_of(item['source'])
            hours += length / 3600
        except Bad as e:
            broken += 1
            print(f'  cannot be read ({e.cause}): {e}')
    images = len(items) - len(videos)
    online = sum(bool(i['url']) for i in items)
    size = (images + 400 * hours) * (3 * cfg.image_size ** 2 + 26)     # 400 frames an hour stay
    print(f'{len(videos)} videos ({online} to download, {broken} unreadable), {hours:.2f} hours, '
          f'{images} images with captions: about {size / 1e6:.0f} MB of arrays '
          '(as much again for shards)')
