"""The embedded demo set: narrated videos of simple scenes, with the full truth about them. No
download, no weights.

    python data/scenes/prepare.py     20 s: 1,200 videos, .vtt, truth/*.json in data/scenes/videos/
    python prepare.py data/scenes/videos --dataset=scenes --image_size=64 --patch_size=8

A video is a sequence of scenes: two or three objects with a colour, a shape, a size and a place on
a plain, graded, striped or dotted ground, and a voice (as captions) that speaks of them in varied
words, not always of everything, not always in the same order. The same seed gives the same
pictures and words; after Ctrl-C it goes on. truth/NAME.json has, for each scene, start and end in
seconds, the ground, each object with its box [x0, y0, x1, y1] in pixels, and what is said.
"""
import functools, json, os, signal, sys
from multiprocessing import Pool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import at_least, configure

n_videos = 1200
scenes_per_video = 16
size = 128                       # pixels per side
seed = 0
out = 'data/scenes/videos'

FPS = 2                          # a scene stands still; its first frame is a key frame
COLOURS = dict(red=(214, 40, 40), green=(44, 150, 60), blue=(40, 80, 205), yellow=(248, 214, 40),
               orange=(244, 130, 30), purple=(128, 48, 160), black=(24, 24, 28),
               white=(250, 250, 250))
RIM = 60, 60, 60
GROUNDS = dict(grey=(178, 180, 184), sand=(214, 190, 150), sky=(150, 190, 222),
               mint=(164, 208, 178), rose=(220, 170, 176))
TEXTURES = 'plain', 'graded', 'striped', 'dotted'
SIZES = dict(small=.12, large=.20)                   # half an object's side, of the picture's
SAY_SIZE = dict(small=('small', 'little', 'tiny'), large=('large', 'big'))
PLACES = (                                           # two ways to speak of each cell
    ('at the top left', 'in the upper left corner'), ('at the top', 'at the top in the middle'),
    ('at the top right', 'in the upper right corner'),
    ('on the left', 'on the left side'), ('in the middle', 'in the centre'),
    ('on the right', 'on the right side'),
    ('at the bottom left', 'in the lower left corner'),
    ('at the bottom', 'at the bottom in the middle'),
    ('at the bottom right', 'in the lower right corner'))
TURN = np.linspace(0, 2 * np.pi, 61)[:-1]
SPIKES = np.arange(10) * np.pi / 5 - np.pi / 2
OUTLINES = dict(                                     # points (n, 2) in [-1, 1], y down
    circle=np.stack([np.cos(TURN), np.sin(TURN)], 1),
    square=np.array([(-.88, -.88), (.88, -.88), (.88, .88), (-.88, .88)]),
    triangle=np.array([(0, -1), (1, .85), (-1, .85)]),
    star=np.stack([np.cos(SPIKES), np.sin(SPIKES)], 1) * np.tile([1, .42], 5)[:, None],
    heart=np.stack([np.sin(TURN) ** 3,
                    (2.5 - (13 * np.cos(TURN) - 5 * np.cos(2 * TURN) - 2 * np.cos(3 * TURN)
                            - np.cos(4 * TURN))) / 14.5], 1),
    cross=np.array([(-.33, -1), (.33, -1), (.33, -.33), (1, -.33), (1, .33), (.33, .33), (.33, 1),
                    (-.33, 1), (-.33, .33), (-1, .33), (-1, -.33), (-.33, -.33)]),
    diamond=np.array([(0, -1), (.75, 0), (0, 1), (-.75, 0)]))
OUTLINES['ring'] = OUTLINES['circle']
OPENERS = ('here is', 'now we see', 'look at', 'there is', 'this picture shows', 'okay, next comes',
           'you can see', 'and this is')

def pick(rng, some):
    return str(rng.choice(list(some)))

# ----------------------------------------------------------------------------------------------
# pictures

def draw_ground(rng, side):
    """-> PIL picture, what it is of."""
    scene = dict(ground=pick(rng, GROUNDS), texture=pick(rng, TEXTURES))
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    shade = 0 * x
    if scene['texture'] == 'graded':
        shade = (x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1)) * 40
    elif scene['texture'] == 'striped':
        shade = 14 * np.sign(np.sin(2 * np.pi * 6 * (x if rng.random() < .5 else y)))
    elif scene['texture'] == 'dotted':
        shade = -26 * (((x * 8 % 1) - .5) ** 2 + ((y * 8 % 1) - .5) ** 2 < .04)
    pixels = np.array(GROUNDS[scene['ground']]) + rng.uniform(-8, 8) + shade[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), scene

def draw_object(rng, image, cell, others):
    """Into one of the 3 x 3 cells of the picture -> what it is, with its box."""
    row, column = divmod(int(cell), 3)
    o = dict(shape=pick(rng, OUTLINES), colour=pick(rng, COLOURS), size=pick(rng, SIZES), row=row,
             column=column)
    for other in others:                             # no two large ones side by side
        apart = max(abs(row - other['row']), abs(column - other['column']))
        if other['size'] == 'large' and apart == 1:
            o['size'] = 'small'
    half = SIZES[o['size']] * rng.uniform(.92, 1.08)
    centre = (np.array([column, row]) + .5) / 3 + rng.uniform(-.03, .03, 2)
    centre = np.clip(centre, half + .01, .99 - half)
    low, high = np.round(np.stack([centre - half, centre + half]) * image.width).astype(int)

    paint(image, o['shape'], RIM, low, high, 1.)
    paint(image, o['shape'], COLOURS[o['colour']], low, high, .9)
    points = OUTLINES[o['shape']]
    box = (low + high) / 2 + (high - low) / 2 * np.stack([points.min(0), points.max(0)])
    return o | dict(box=[round(float(v), 1) for v in box.ravel()])

def paint(image, shape, colour, low, high, grow):
    """A shape in one colour into the box from low to high."""
    mask = Image.new('L', tuple(3 * (high - low)))   # three times the size, then averaged
    middle = np.array(mask.size) / 2
    pen = ImageDraw.Draw(mask)
    pen.polygon((middle + middle * grow * OUTLINES[shape]).ravel().tolist(), fill=255)
    if shape == 'ring':
        hole = middle + middle * (1.45 - grow) * OUTLINES['circle']
        pen.polygon(hole.ravel().tolist(), fill=0)
    image.paste(colour, tuple(low.tolist()), mask.resize(tuple(high - low), Image.Resampling.BOX))

def draw_scene(rng, side):
    """-> picture uint8 (side, side, 3), what it shows."""
    image, scene = draw_ground(rng, side)
    objects = scene['objects'] = []
    for cell in rng.permutation(9)[:rng.integers(2, 4)]:
        objects.append(draw_object(rng, image, cell, objects))
    return np.asarray(image), scene

# ----------------------------------------------------------------------------------------------
# words

def narrate(rng, scene):
    """-> [words]: one way to speak of a scene; most things are said, and all of it is true."""
    objects = [dict(scene['objects'][i]) for i in rng.permutation(len(scene['objects']))]
    for o in objects:
        o['place'] = PLACES[3 * o['row'] + o['column']]
        o['name'] = f"{o['colour']} {o['shape']}"
        if rng.random() < .7:
            o['name'] = f"{pick(rng, SAY_SIZE[o['size']])} {o['name']}"
        o['name'] = ('an ' if o['name'][0] in 'aeiou' else 'a ') + o['name']
    a, b, *more = objects
    opener = pick(rng, OPENERS)
    true = {'above it': b['row'] < a['row'], 'below it': b['row'] > a['row'],
            'to the left of it': b['column'] < a['column'],
            'to the right of it': b['column'] > a['column']}
    where = [name for name in true if true[name]]
    there = ''
    if where and rng.random() < .35:
        there = f"{pick(rng, where)} there is {b['name']}"
    words = [f"{opener} {a['name']} {pick(rng, a['place'])}",
             there or f"and {b['name']} {pick(rng, b['place'])}"]
    for o in more:
        joint = pick(rng, ('and', 'then', 'also'))
        words.append(f"{joint} {o['name']} {pick(rng, o['place'])}")

    if rng.random() < .3:
        ground = f"on a {scene['ground']} ground", f"the ground is {scene['texture']}"
        words.append(pick(rng, ground))
    elif rng.random() < .15:
        words.append(pick(rng, ('nice', 'let us go on', 'well', 'you know')))
    return words

# ----------------------------------------------------------------------------------------------
# videos

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
        options = dict(preset='ultrafast', crf='18')
        stream = container.add_stream('libx264', rate=FPS, options=options)
        stream.width = stream.height = k.size
        stream.pix_fmt = 'yuv444p'
        stream.thread_count = 1
        stream.codec_context.gop_size = 10_000
        for _ in range(k.scenes_per_video):
            picture, scene = draw_scene(rng, k.size)
            words = narrate(rng, scene)
            said = ', '.join(words)
            length = np.ceil((1 + .25 * len(said.split())) * FPS) / FPS
            frame = av.VideoFrame.from_ndarray(picture, 'rgb24')
            for i in range(int(length * FPS)):
                frame.pts = round(t * FPS) + i
                frame.pict_type = 1 if i == 0 else 0                   # 1: a key frame
                container.mux(stream.encode(frame))

            # the voice lags behind the picture
            times = np.linspace(t + rng.uniform(.2, .8), t + length - .2, len(words) + 1)
            for start, end, part in zip(times, times[1:], words):
                captions.append(f'{clock(start)} --> {clock(end)}\n{part}\n\n')
            scenes.append(scene | dict(start=t, end=t + length, said=said))
            t += length
        container.mux(stream.encode())
    video.with_suffix('.vtt').write_text(''.join(captions))
    truth = json.dumps(dict(size=k.size, palette=COLOURS, scenes=scenes))
    Path(k.out, 'truth', f'{video.stem}.json').write_text(truth)
    os.replace(f'{video}.part', video)               # last: it is there = the others are

def clock(s):
    return f'{int(s // 3600):02d}:{int(s // 60 % 60):02d}:{s % 60:06.3f}'

def main():
    from tqdm import tqdm
    at_least(globals(), n_videos=1, scenes_per_video=1, size=1)
    Path(out, 'truth').mkdir(parents=True, exist_ok=True)
    made = Path(out, 'settings.json')
    settings = json.dumps(dict(scenes_per_video=scenes_per_video, size=size, fps=FPS, seed=seed))
    if made.exists() and made.read_text() != settings:
        sys.exit(f'error: {out} was made with {made.read_text()}; remove it, or take another --out')
    made.write_text(settings)

    job = functools.partial(make_video, SimpleNamespace(**config))
    ignore = signal.SIGINT, signal.SIG_IGN           # Ctrl-C is for the parent
    with Pool(initializer=signal.signal, initargs=ignore) as pool:
        list(tqdm(pool.imap(job, range(n_videos)), total=n_videos, unit='video'))
    print(f'{out}: {n_videos} videos. Next: python prepare.py {out} --dataset=scenes '
          '--image_size=64 --patch_size=8')

if __name__ == '__main__':
    config = configure(globals())
    try:
        main()
    except KeyboardInterrupt:
        sys.exit('interrupted; the same command goes on')
    except OSError as e:
        sys.exit(f'error: {e}')
