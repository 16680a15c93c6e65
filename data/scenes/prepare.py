"""The embedded demo set: narrated videos of simple scenes, with the full truth about them. No
download, no weights.

    python data/scenes/prepare.py     20 s: 600 videos, .vtt, truth/*.json in data/scenes/videos/
    python prepare.py data/scenes/videos --dataset=scenes --image_size=64 --patch_size=8

A video is a sequence of scenes: two or three objects with a colour, a shape, a size and a place on
a plain, graded, striped or dotted ground, and a voice (as captions) that speaks of them in varied
words, not always of everything, not always in the same order. The same seed gives the same
pictures and words; after Ctrl-C it goes on. truth/NAME.json has, for each scene, start and end in
seconds, the ground, each object with its box [x0, y0, x1, y1] in pixels, the relations between
objects, what is said, and which words name which object.
"""
import functools, json, os, signal, sys
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import at_least, configure

n_videos = 600
scenes_per_video = 16
size = 128                       # pixels per side
fps = 2                          # a scene stands still; its first frame is a key frame
seed = 0
out = 'data/scenes/videos'

COLOURS = dict(red=(214, 40, 40), green=(44, 150, 60), blue=(40, 80, 205), yellow=(248, 214, 40),
               orange=(244, 130, 30), purple=(128, 48, 160), black=(24, 24, 28),
               white=(250, 250, 250))
RIM = 60, 60, 60
GROUNDS = dict(grey=(178, 180, 184), sand=(214, 190, 150), sky=(150, 190, 222),
               mint=(164, 208, 178), rose=(220, 170, 176))
TEXTURES = 'plain', 'graded', 'striped', 'dotted'
SIZES = dict(small=.12, large=.20)                   # half an object's side, of the picture's
SAY_SIZE = dict(small=('small', 'little', 'tiny'), large=('large', 'big'))
SHAPES = 'circle', 'square', 'triangle', 'star', 'heart', 'cross', 'diamond', 'ring'
ROWS = 'top', '', 'bottom'
COLUMNS = 'left', '', 'right'
CORNERS = dict(                                      # points in [-1, 1], y down
    square=[(-.88, -.88), (.88, -.88), (.88, .88), (-.88, .88)],
    triangle=[(0, -1), (1, .85), (-1, .85)],
    diamond=[(0, -1), (.75, 0), (0, 1), (-.75, 0)],
    cross=[(-.33, -1), (.33, -1), (.33, -.33), (1, -.33), (1, .33), (.33, .33), (.33, 1),
           (-.33, 1), (-.33, .33), (-1, .33), (-1, -.33), (-.33, -.33)])
OPENERS = ('here is', 'now we see', 'look at', 'there is', 'this picture shows', 'okay, next comes',
           'you can see', 'and this is')

# ----------------------------------------------------------------------------------------------
# pictures

def outline(shape):
    """Points (n, 2) of a shape in the unit square [-1, 1], y down."""
    turn = np.linspace(0, 2 * np.pi, 61)[:-1]
    if shape in ('circle', 'ring'):
        return np.stack([np.cos(turn), np.sin(turn)], 1)
    if shape == 'star':
        a = np.arange(10) * np.pi / 5 - np.pi / 2
        radius = np.where(np.arange(10) % 2, .42, 1.)
        return np.stack([np.cos(a), np.sin(a)], 1) * radius[:, None]
    if shape == 'heart':
        x = 16 * np.sin(turn) ** 3
        y = -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn))
        return np.stack([x / 16, (y + 2.5) / 14.5], 1)
    return np.array(CORNERS[shape], float)

def draw_ground(rng, side):
    """-> PIL picture, the ground's colour, its texture."""
    ground = str(rng.choice(list(GROUNDS)))
    texture = str(rng.choice(TEXTURES))
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    shade = 0 * x
    if texture == 'graded':
        shade = (x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1)) * 40
    elif texture == 'striped':
        shade = 14 * np.sign(np.sin(2 * np.pi * 6 * (x if rng.random() < .5 else y)))
    elif texture == 'dotted':
        shade = -26 * (((x * 8 % 1) - .5) ** 2 + ((y * 8 % 1) - .5) ** 2 < .04)
    pixels = np.array(GROUNDS[ground]) + rng.uniform(-8, 8) + shade[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), ground, texture

def draw_object(rng, image, cell, others):
    """Into one of the 3 x 3 cells of the picture -> what it is, with its box."""
    row, column = divmod(int(cell), 3)
    shape = str(rng.choice(SHAPES))
    colour = str(rng.choice(list(COLOURS)))
    how_big = str(rng.choice(list(SIZES)))
    for o in others:                                 # no two large ones side by side
        if o['size'] == 'large' and max(abs(row - o['row']), abs(column - o['column'])) == 1:
            how_big = 'small'
    half = SIZES[how_big] * rng.uniform(.92, 1.08)
    centre = (np.array([column, row]) + .5) / 3 + rng.uniform(-.03, .03, 2)
    centre = np.clip(centre, half + .01, .99 - half)
    low, high = np.round(np.stack([centre - half, centre + half]) * image.width).astype(int)

    paint(image, shape, RIM, low, high, 1.)
    paint(image, shape, COLOURS[colour], low, high, .9)
    extent = np.stack([outline(shape).min(0), outline(shape).max(0)])
    box = (low + high) / 2 + (high - low) / 2 * extent
    return dict(shape=shape, colour=colour, size=how_big, row=row, column=column,
                box=[round(float(v), 1) for v in box.ravel()])

def paint(image, shape, colour, low, high, grow):
    """A shape in one colour into the box from low to high."""
    mask = Image.new('L', tuple(3 * (high - low)))   # three times the size, then averaged
    middle = np.array(mask.size) / 2
    pen = ImageDraw.Draw(mask)
    pen.polygon((middle + middle * grow * outline(shape)).ravel().tolist(), fill=255)
    if shape == 'ring':
        hole = middle + middle * (1.45 - grow) * outline('circle')
        pen.polygon(hole.ravel().tolist(), fill=0)
    image.paste(colour, tuple(low.tolist()), mask.resize(tuple(high - low), Image.Resampling.BOX))

def draw_scene(rng, side):
    """-> (picture uint8 (side, side, 3), scene dict without times and words)."""
    image, ground, texture = draw_ground(rng, side)
    objects = []
    for cell in rng.permutation(9)[:rng.integers(2, 4)]:
        objects.append(draw_object(rng, image, cell, objects))

    relations = []
    for i, a in enumerate(objects):
        for j, b in enumerate(objects):
            true = {'above': a['row'] < b['row'], 'below': a['row'] > b['row'],
                    'left of': a['column'] < b['column'], 'right of': a['column'] > b['column']}
            relations += [[i, name, j] for name in true if true[name]]
    scene = dict(ground=ground, texture=texture, objects=objects, relations=relations)
    return np.asarray(image), scene

# ----------------------------------------------------------------------------------------------
# words

def place(rng, o):
    """Words for one of the nine places."""
    row = ROWS[o['row']]
    column = COLUMNS[o['column']]
    if row and column:
        upper = dict(top='upper', bottom='lower')[row]
        ways = f'at the {row} {column}', f'in the {upper} {column} corner'
    elif row:
        ways = f'at the {row}', f'at the {row} in the middle'
    elif column:
        ways = f'on the {column}', f'on the {column} side'
    else:
        ways = 'in the middle', 'in the centre'
    return str(rng.choice(ways))

def narrate(rng, scene):
    """-> (words, [[phrase, object], ...]): one way to speak of a scene; most things are said, and
    all that is said is true."""
    objects = [scene['objects'][i] | dict(i=int(i))
               for i in rng.permutation(len(scene['objects']))]
    for o in objects:
        how_big = f"{rng.choice(SAY_SIZE[o['size']])} " if rng.random() < .7 else ''
        o['phrase'] = f"{how_big}{o['colour']} {o['shape']}"
        o['the'] = ('an ' if o['phrase'][0] in 'aeiou' else 'a ') + o['phrase']
    a, b, *more = objects
    opener = rng.choice(OPENERS)
    names = [name for i, name, j in scene['relations'] if (i, j) == (b['i'], a['i'])]
    name = ''
    if names and rng.random() < .35:
        name = str(rng.choice(names))
    words = [f"{opener} {a['the']} {place(rng, a)}"]
    if name:
        it = dict(above='above it', below='below it').get(name, f'to the {name.split()[0]} of it')
        words.append(f"{it} there is {b['the']}")
    else:
        words.append(f"and {b['the']} {place(rng, b)}")
    words += [f"{rng.choice(['and', 'then', 'also'])} {o['the']} {place(rng, o)}" for o in more]

    if rng.random() < .3:
        ground = f"on a {scene['ground']} ground", f"the ground is {scene['texture']}"
        words.append(str(rng.choice(ground)))
    elif rng.random() < .15:
        words.append(str(rng.choice(['nice', 'let us go on', 'well', 'you know'])))
    return words, [[o['phrase'], o['i']] for o in objects]

# ----------------------------------------------------------------------------------------------
# videos

def open_stream(container, k):
    stream = container.add_stream('libx264', rate=k.fps,
                                  options=dict(preset='ultrafast', crf='18'))
    stream.width = stream.height = k.size
    stream.pix_fmt = 'yuv444p'
    stream.thread_count = 1
    stream.codec_context.time_base = Fraction(1, k.fps)
    stream.codec_context.gop_size = 10_000
    return stream

def make_video(k, n):
    """Video n: NAME.mp4, NAME.vtt and truth/NAME.json. k: the knobs, for it is another process."""
    import av
    video = Path(k.out, f'scenes_{n:04d}.mp4')
    if video.exists():
        return
    rng = np.random.default_rng([k.seed, n])
    t = 0.                                           # seconds
    captions = ['WEBVTT\n\n']
    scenes = []
    with av.open(f'{video}.part', 'w', format='mp4') as container:
        stream = open_stream(container, k)
        for _ in range(k.scenes_per_video):
            picture, scene = draw_scene(rng, k.size)
            words, phrases = narrate(rng, scene)
            said = ', '.join(words)
            length = float(np.ceil((1 + .25 * len(said.split())) * k.fps) / k.fps)
            frame = av.VideoFrame.from_ndarray(picture, 'rgb24')
            frame.time_base = Fraction(1, k.fps)
            for i in range(int(length * k.fps)):
                frame.pts = round(t * k.fps) + i
                frame.pict_type = 1 if i == 0 else 0                   # 1: a key frame
                container.mux(stream.encode(frame))

            # the voice lags behind the picture
            times = np.linspace(t + rng.uniform(.2, .8), t + length - .2, len(words) + 1)
            captions += map(caption, times, times[1:], words)
            scenes.append(dict(start=round(t, 3), end=round(t + length, 3)) | scene
                          | dict(said=said, phrases=phrases))
            t += length
        container.mux(stream.encode())
    video.with_suffix('.vtt').write_text(''.join(captions))
    truth = dict(video=video.name, size=k.size, duration=t, palette=COLOURS, scenes=scenes)
    Path(k.out, 'truth', f'{video.stem}.json').write_text(json.dumps(truth))
    os.replace(f'{video}.part', video)               # last: it is there = the others are

def caption(start, end, words):
    return f'{clock(start)} --> {clock(end)}\n{words}\n\n'

def clock(s):
    return f'{int(s // 3600):02d}:{int(s // 60 % 60):02d}:{s % 60:06.3f}'

def main():
    from tqdm import tqdm
    at_least(globals(), n_videos=1, scenes_per_video=1, size=1, fps=1)
    Path(out, 'truth').mkdir(parents=True, exist_ok=True)
    made = Path(out, 'settings.json')
    settings = json.dumps(dict(scenes_per_video=scenes_per_video, size=size, fps=fps, seed=seed))
    if made.exists() and made.read_text() != settings:
        sys.exit(f'error: {out} was made with {made.read_text()}; remove it, or take another --out')
    made.write_text(settings)

    job = functools.partial(make_video, SimpleNamespace(**config))
    ignore = signal.SIGINT, signal.SIG_IGN           # Ctrl-C is for the parent
    with ProcessPoolExecutor(initializer=signal.signal, initargs=ignore) as pool:
        try:
            list(tqdm(pool.map(job, range(n_videos), chunksize=4), total=n_videos, unit='video'))
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            print('interrupted; the same command goes on')
            sys.exit(130)
    print(f'{out}: {n_videos} videos. Next: python prepare.py {out} --dataset=scenes '
          '--image_size=64 --patch_size=8')

if __name__ == '__main__':
    config = configure(globals())
    try:
        main()
    except OSError as e:
        sys.exit(f'error: {e}')
