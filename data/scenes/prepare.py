"""The embedded demo set: narrated videos of simple scenes, with the full truth about them. No download, no weights.

    python data/scenes/prepare.py                    ~20 s: 600 mp4 files, a .vtt beside each, truth/*.json  (in data/scenes/videos/)
    python prepare.py data/scenes/videos --dataset=scenes --image_size=64 --patch_size=8        then like any other videos

A video is a sequence of scenes: two or three objects with a colour, a shape, a size and a place on a plain, graded, striped or
dotted ground, and a voice (as captions) that speaks of them in varied words, not always of everything, not always in the same order.
The same seed gives the same pictures and words; after Ctrl-C it goes on. truth/NAME.json has, for each scene, start and end in seconds, the ground, each object
with its box [x0, y0, x1, y1] in pixels, the relations between objects, what is said, and which words name which object.
"""
import concurrent.futures, json, os, signal, sys
from fractions import Fraction
from pathlib import Path
import numpy as np
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import at_least, configure

n_videos = 600
scenes_per_video = 16
size = 128                       # pixels per side
fps = 2                          # a scene stands still; its first frame is a key frame, as encoders make it
seed = 0
out = 'data/scenes/videos'

COLOURS = dict(red=(214, 40, 40), green=(44, 150, 60), blue=(40, 80, 205), yellow=(248, 214, 40), orange=(244, 130, 30),
               purple=(128, 48, 160), black=(24, 24, 28), white=(250, 250, 250))
GROUNDS = dict(grey=(178, 180, 184), sand=(214, 190, 150), sky=(150, 190, 222), mint=(164, 208, 178), rose=(220, 170, 176))
TEXTURES = 'plain', 'graded', 'striped', 'dotted'
SIZES = dict(small=.12, large=.20)                   # half the side of the object's box, as a share of the picture's
SAY_SIZE = dict(small=('small', 'little', 'tiny'), large=('large', 'big'))
SHAPES = 'circle', 'square', 'triangle', 'star', 'heart', 'cross', 'diamond', 'ring'
ROWS, COLUMNS = ('top', '', 'bottom'), ('left', '', 'right')

def outline(shape):
    """Points of a shape in the unit square [-1, 1], y down."""
    turn = np.linspace(0, 2 * np.pi, 61)[:-1]
    if shape in ('circle', 'ring'):
        return np.stack([np.cos(turn), np.sin(turn)], 1)
    if shape == 'star':
        a = np.arange(10) * np.pi / 5 - np.pi / 2
        return np.stack([np.cos(a), np.sin(a)], 1) * np.where(np.arange(10) % 2, .42, 1.)[:, None]
    if shape == 'heart':
        x = 16 * np.sin(turn) ** 3
        y = -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn))
        return np.stack([x / 16, (y + 2.5) / 14.5], 1)
    return np.array(dict(square=[(-.88, -.88), (.88, -.88), (.88, .88), (-.88, .88)], triangle=[(0, -1), (1, .85), (-1, .85)],
                         diamond=[(0, -1), (.75, 0), (0, 1), (-.75, 0)], cross=[(-.33, -1), (.33, -1), (.33, -.33), (1, -.33), (1, .33), (.33, .33),
                         (.33, 1), (-.33, 1), (-.33, .33), (-1, .33), (-1, -.33), (-.33, -.33)])[shape], float)

def draw_scene(rng):
    """-> (picture uint8 (size, size, 3), scene dict without times and words)."""
    from PIL import Image, ImageDraw
    ground, texture = str(rng.choice(list(GROUNDS))), str(rng.choice(TEXTURES))
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    shade = dict(plain=lambda: 0 * x, graded=lambda: (x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1)) * 40,
                 striped=lambda: 14 * np.sign(np.sin(2 * np.pi * 6 * (x if rng.random() < .5 else y))),
                 dotted=lambda: -26 * (((x * 8 % 1) - .5) ** 2 + ((y * 8 % 1) - .5) ** 2 < .04))[texture]()
    image = Image.fromarray(np.clip(np.array(GROUNDS[ground]) + rng.uniform(-8, 8) + shade[..., None], 0, 255).astype(np.uint8))
    objects, cells = [], rng.permutation(9)[:rng.integers(2, 4)]       # a cell of the 3 x 3 places each
    for cell in cells:
        row, column = divmod(int(cell), 3)
        shape, colour, how_big = str(rng.choice(SHAPES)), str(rng.choice(list(COLOURS))), str(rng.choice(list(SIZES)))
        if any(o['size'] == 'large' and max(abs(row - o['row']), abs(column - o['column'])) == 1 for o in objects):
            how_big = 'small'                                          # no two large ones side by side
        half = SIZES[how_big] * rng.uniform(.92, 1.08)
        centre = np.clip((np.array([column, row]) + .5) / 3 + rng.uniform(-.03, .03, 2), half + .01, .99 - half)
        x0, y0, x1, y1 = np.round(np.concatenate([centre - half, centre + half]) * size).astype(int)
        for colour_here, grow in ((60, 60, 60), 1.), (COLOURS[colour], .9):                    # a dark rim, then the colour
            mask = Image.new('L', (3 * (x1 - x0), 3 * (y1 - y0)))      # three times the size, then averaged
            middle = np.array(mask.size) / 2
            pen = ImageDraw.Draw(mask)
            pen.polygon([tuple(p) for p in middle + middle * grow * outline(shape)], fill=255)
            if shape == 'ring':
                pen.polygon([tuple(p) for p in middle + middle * (1.45 - grow) * outline('circle')], fill=0)
            mask = mask.resize((x1 - x0, y1 - y0), Image.Resampling.BOX)
            image.paste(colour_here, (int(x0), int(y0)), mask)
        corners = np.array([x0 + x1, y0 + y1]) / 2 + np.array([x1 - x0, y1 - y0]) / 2 * np.stack([outline(shape).min(0), outline(shape).max(0)])
        objects.append(dict(shape=shape, colour=colour, size=how_big, row=row, column=column, box=[round(float(v), 1) for v in corners.ravel()]))
    relations = [[i, name, j] for i, a in enumerate(objects) for j, b in enumerate(objects) for name, true in (
        ('above', a['row'] < b['row']), ('below', a['row'] > b['row']), ('left of', a['column'] < b['column']),
        ('right of', a['column'] > b['column'])) if true]
    return np.asarray(image), dict(ground=ground, texture=texture, objects=objects, relations=relations)

def place(rng, o):
    """Words for one of the nine places."""
    row, column = ROWS[o['row']], COLUMNS[o['column']]
    if not row and not column:
        return str(rng.choice(['in the middle', 'in the centre']))
    if row and column:
        return str(rng.choice([f'at the {row} {column}', f"in the {dict(top='upper', bottom='lower')[row]} {column} corner"]))
    return str(rng.choice([f'at the {row}', f'at the {row} in the middle'] if row else [f'on the {column}', f'on the {column} side']))

def narrate(rng, scene):
    """-> (words, [[phrase, object], ...]): one way to speak of a scene; most things are said, and all that is said is true."""
    objects = [scene['objects'][i] | dict(i=int(i)) for i in rng.permutation(len(scene['objects']))]
    for o in objects:
        o['phrase'] = (f"{rng.choice(SAY_SIZE[o['size']])} " if rng.random() < .7 else '') + f"{o['colour']} {o['shape']}"
        o['the'] = ('an ' if o['phrase'][0] in 'aeiou' else 'a ') + o['phrase']
    a, b, *more = objects
    opener = rng.choice(['here is', 'now we see', 'look at', 'there is', 'this picture shows', 'okay, next comes', 'you can see', 'and this is'])
    related = [name for i, name, j in scene['relations'] if (i, j) == (b['i'], a['i'])]
    if related and rng.random() < .35:
        name = str(rng.choice(related))
        it = dict(above='above it', below='below it').get(name, f"to the {name.split()[0]} of it")
        words = [f"{opener} {a['the']} {place(rng, a)}", f"{it} there is {b['the']}"]
    else:
        words = [f"{opener} {a['the']} {place(rng, a)}", f"and {b['the']} {place(rng, b)}"]
    words += [f"{rng.choice(['and', 'then', 'also'])} {o['the']} {place(rng, o)}" for o in more]
    if rng.random() < .3:
        words.append(str(rng.choice([f"on a {scene['ground']} ground", f"the ground is {scene['texture']}"])))
    elif rng.random() < .15:
        words.append(str(rng.choice(['nice', 'let us go on', 'well', 'you know'])))
    return words, [[o['phrase'], o['i']] for o in objects]

def make_video(n):
    """Video n: NAME.mp4, NAME.vtt and truth/NAME.json."""
    import av
    if Path(out, f'scenes_{n:04d}.mp4').exists():
        return
    rng, name, t, cues, scenes = np.random.default_rng([seed, n]), f'scenes_{n:04d}', 0.0, [], []
    with av.open(str(Path(out, f'{name}.mp4.part')), 'w', format='mp4') as container:
        stream = container.add_stream('libx264', rate=fps, options=dict(preset='ultrafast', crf='18'))
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = size, size, 'yuv444p', 1
        stream.codec_context.time_base, stream.codec_context.gop_size = Fraction(1, fps), 10_000
        for _ in range(scenes_per_video):
            picture, scene = draw_scene(rng)
            words, phrases = narrate(rng, scene)
            length = np.ceil((1 + .25 * len(' '.join(words).split())) * fps) / fps
            frame = av.VideoFrame.from_ndarray(picture, 'rgb24')
            for i in range(int(length * fps)):
                frame.pts, frame.time_base = round(t * fps) + i, Fraction(1, fps)
                frame.pict_type = 1 if i == 0 else 0                   # 1: a key frame
                container.mux(stream.encode(frame))
            spoken = np.linspace(t + rng.uniform(.2, .8), t + length - .2, len(words) + 1)           # the voice lags behind the picture
            cues += [(a, b, w) for a, b, w in zip(spoken, spoken[1:], words)]
            scenes.append(dict(start=round(t, 3), end=round(t + float(length), 3)) | scene | dict(said=', '.join(words), phrases=phrases))
            t += float(length)
        container.mux(stream.encode())
    clock = lambda s: f'{int(s // 3600):02d}:{int(s // 60 % 60):02d}:{s % 60:06.3f}'
    Path(out, f'{name}.vtt').write_text('WEBVTT\n\n' + ''.join(f'{clock(a)} --> {clock(b)}\n{w}\n\n' for a, b, w in cues))
    Path(out, 'truth', f'{name}.json').write_text(json.dumps(dict(video=f'{name}.mp4', size=size, duration=t, palette=COLOURS, scenes=scenes)))
    os.replace(Path(out, f'{name}.mp4.part'), Path(out, f'{name}.mp4'))          # last: it is there = the others are

def start(settings):
    signal.signal(signal.SIGINT, signal.SIG_IGN)                       # Ctrl-C is for the parent
    globals().update(settings)

def main():
    from tqdm import tqdm
    at_least(globals(), n_videos=1, scenes_per_video=1, size=1, fps=1)
    Path(out, 'truth').mkdir(parents=True, exist_ok=True)
    made, settings = Path(out, 'settings.json'), json.dumps(dict(scenes_per_video=scenes_per_video, size=size, fps=fps, seed=seed))
    if made.exists() and made.read_text() != settings:
        sys.exit(f'error: {out} was made with {made.read_text()}; remove it, or take another --out')
    made.write_text(settings)
    with concurrent.futures.ProcessPoolExecutor(initializer=start, initargs=(config,)) as pool:
        try:
            list(tqdm(pool.map(make_video, range(n_videos), chunksize=4), total=n_videos, unit='video'))
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            print('interrupted; the same command goes on')
            sys.exit(130)
    print(f'{out}: {n_videos} videos. Next: python prepare.py {out} --dataset=scenes --image_size=64 --patch_size=8')

if __name__ == '__main__':
    config = configure(globals())
    try:
        main()
    except OSError as e:
        sys.exit(f'error: {e}')
