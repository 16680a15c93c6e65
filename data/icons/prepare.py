"""Some 340,000 drawn icons of the npm package @iconify/json, by the hands of 211 sets, as pictures
with words: a real set that anybody has in minutes. Where npm is, it is fetched (104 MB).

    pip install resvg-py
    python data/icons/prepare.py                 -> data/icons/pairs/*.tar, data/icons/hands/*.tar
    python prepare.py --pairs=data/icons/pairs --dataset=icons --image_size=80 --patch_size=8
    python prepare.py --pairs=data/icons/hands --dataset=icons_hands --image_size=80 --patch_size=8

The words are those of the name that its maker gave it, in several phrasings. Each is drawn once, on
grounds and in sizes that vary, in one ink if it has no colours of its own. Two tests: val and test
of icons have names that no training picture has; icons_hands is of sets that are not trained on, by
names that are. Left out: all sets of emoji. A picture's licence is its set's: the titles in
videos.jsonl begin with the set, data/icons/sets.json says whose it is. Ctrl-C and the same command
goes on.
"""
import colorsys, hashlib, io, json, multiprocessing, os, re, shutil, subprocess, sys, tarfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import at_least, configure, shares

source = ''                      # @iconify/json, unpacked or as .tgz; '': fetched by npm
out = 'data/icons'
size = 80                        # pixels
palette: Literal['all', 'mono', 'colour'] = 'all'
licence = ''                     # only sets whose licence contains this: MIT
n_icons = 0                      # so many of them, of all sets alike; 0: all
test_share = .02                 # of the names, and as many for val
hands_share = .05                # of the sets
workers = 0                      # 0: one per core
seed = 0

PER_TAR = 1000
EMOJI = re.compile(r'noto|fluent-emoji|openmoji|twemoji|emojione|fxemoji|streamline-emojis')
# how it is drawn, not what it shows, where a set's names often end or begin so: home-light
STYLE = set("""alt baseline black bold bordered broken bulk color colored colour curved dashed duo
    duotone fill filled flat glyph light line linear lined mini monochrome outline outlined regular
    round rounded semibold sharp solid stroke thick thin tone twotone variant wide""".split())

# ----------------------------------------------------------------------------------------------
# what there is

def find_source():
    """-> the folder with collections.json and json/."""
    package = Path(out, 'source', 'package')
    given = Path(source or package)
    if not source and not package.exists():
        given = fetch()
    if given.is_file():
        part = Path(out, 'source', 'part')
        try:
            shutil.unpack_archive(given, part, 'gztar', filter='data')
        except (shutil.ReadError, tarfile.TarError, OSError, EOFError) as e:
            sys.exit(f'error: {given} cannot be unpacked ({e})')
        shutil.rmtree(package, ignore_errors=True)
        given = (part / 'package').rename(package)
    if not Path(given, 'collections.json').is_file():
        sys.exit(f'error: no collections.json in {given}; --source=<the unpacked @iconify/json, or '
                 'its .tgz>')
    return given

def fetch():
    """The package by npm -> its .tgz."""
    Path(out, 'source').mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(['npm', 'pack', '@iconify/json', '--silent'], check=True, text=True,
                              cwd=Path(out, 'source'), stdout=subprocess.PIPE)
    except (OSError, subprocess.CalledProcessError) as e:
        sys.exit(f'error: npm cannot fetch @iconify/json ({e}); fetch it by other means, as '
                 'npmjs.com/package/@iconify/json says, and give it: --source=package.tgz')
    return Path(out, 'source', done.stdout.split()[-1])

def chosen_sets(folder):
    """-> {prefix: about} of the sets to take; how many icons of others are left out, and why."""
    sets, left = {}, Counter()
    for prefix, about in sorted(json.loads((folder / 'collections.json').read_text()).items()):
        coloured = bool(about.get('palette'))
        if EMOJI.match(prefix) or about.get('category') == 'Emoji':
            left['emoji'] += about['total']
        elif about.get('hidden'):
            left['withdrawn'] += about['total']
        elif palette != 'all' and coloured != (palette == 'colour'):
            left['palette'] += about['total']
        elif licence.lower() not in about['license']['title'].lower():
            left['licence'] += about['total']
        else:
            sets[prefix] = about
    return sets, left

def place(*what):
    """Where a thing stands between 0 and 1, the same each time."""
    text = ' '.join(map(str, (seed, *what)))
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16 ** 12

def split_name(name, style):
    """An icon's name -> the words for what it shows, those at its ends for how it is drawn."""
    name = re.sub(r'(?<=[a-z])(?=\d)|(?<=\d)(?=[a-z])', '-', name.replace('two-tone', 'twotone'))
    shows = [word for word in name.split('-') if word and not word.isdigit()]
    drawn = []
    while len(shows) > 1 and (shows[-1] in style or shows[0] in style):
        drawn.append(shows.pop(-1 if shows[-1] in style else 0))
    return shows, drawn[::-1]

def style_of(names):
    """-> the words that say how it is drawn in more than a name of a hundred."""
    count = Counter(word for name in names for word in set(split_name(name, STYLE)[1]))
    return {word for word in count if count[word] > len(names) / 100}

def captions(what, drawn, prefix, category):
    """-> several ways to say it, the plainest first."""
    kind = 'flag' if 'flag' in prefix else 'logo' if category == 'Logos' else 'icon'
    plain = what if kind == 'icon' or kind in what.split() else f'{what} {kind}'
    return list(dict.fromkeys([plain, f'{drawn} {kind} of {what}'.strip(), f'the {kind} {what}']))

def all_icons(folder, sets):
    """-> [(prefix, name, (what it shows, how it is drawn), its drawing and view box)] of all icons
    with words, in an order that mixes the sets; how many are left out, and why."""
    found, left = [], Counter()
    for prefix in sets:
        data = json.loads(Path(folder, 'json', f'{prefix}.json').read_text(encoding='utf-8'))
        style = style_of(data['icons'])
        for name, icon in data['icons'].items():
            what, drawn = map(' '.join, split_name(name, style))
            if icon.get('hidden'):
                left['withdrawn'] += 1
            elif len(re.sub('[^a-z]', '', what)) < 3:
                left['no words in its name'] += 1
            else:
                usual = dict(left=0, top=0, width=16, height=16)
                box = [icon.get(k, data.get(k, usual[k])) for k in usual]
                found.append((prefix, name, (what, drawn), [icon['body'], *box]))
    found.sort(key=lambda icon: place('icon', *icon[:2]))
    return (found[:n_icons] if n_icons else found), left

def splits(icons, sets):
    """-> icons of the main list, those of unseen hands: (prefix, name, words, drawing, split)."""
    hands = {prefix for prefix in sets if place('hand', prefix) < hands_share}
    main, other = [], []
    for prefix, name, words, drawing in icons:
        u = place('name', words[0])
        split = 'test' if u < test_share else 'val' if u < 2 * test_share else 'train'
        if prefix not in hands:
            main.append((prefix, name, words, drawing, split))
        elif split == 'train':
            other.append((prefix, name, words, drawing, 'test'))
    seen = {words[0] for _, _, words, _, split in main if split == 'train'}
    return main, [icon for icon in other if icon[2][0] in seen]

# ----------------------------------------------------------------------------------------------
# pictures

def colour(rng, low, high, vivid):
    """-> r, g, b (0 to 255) of a lightness from low to high, of any hue."""
    h, lightness, s = rng.random(), rng.uniform(low, high), vivid * rng.random()
    return [round(255 * x) for x in colorsys.hls_to_rgb(h, lightness, s)]

def draw(body, left, top, width, height, look):
    """An icon's drawing and view box -> the picture as SVG: in one ink or its own colours, on a
    light, dark or graded ground, as `look` (0 to 1) has it."""
    rng = np.random.default_rng(int(look * 2 ** 48))
    dark = rng.random() < .3
    ground = [colour(rng, *((.05, .25) if dark else (.8, 1.)), vivid=.8) for _ in range(2)]
    ink = colour(rng, *((.7, 1.) if dark else (0., .35)), vivid=1.)
    if rng.random() < .6:
        ground[1] = ground[0]

    side = size * rng.uniform(.6, .95)
    x, y = (size - side) * rng.uniform(.2, .8, 2)
    stops = ''.join(f'<stop offset="{i}" stop-color="rgb{tuple(c)}"/>'
                    for i, c in enumerate(ground))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{size}" height="{size}"><linearGradient id="ground-of-it" x2="{rng.random()}" '
            f'y2="1">{stops}</linearGradient><rect width="{size}" height="{size}" '
            f'fill="url(#ground-of-it)"/><svg x="{x}" y="{y}" width="{side}" height="{side}" '
            f'viewBox="{left} {top} {width} {height}" color="rgb{tuple(ink)}">{body}</svg></svg>')

def write_tar(path, icons, about):
    """A tar of pictures, whole or not at all -> how many of each split are in it; why others are
    not."""
    import resvg_py
    from PIL import Image
    told = Counter()
    with tarfile.open(f'{path}.part', 'w') as tar:
        for prefix, name, words, drawing, split in icons:
            try:
                svg = draw(*drawing, place('look', prefix, name))
                png = bytes(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True))
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:                  # a panic of its library is no Exception
                told['cannot be drawn'] += 1
                continue
            grey = np.asarray(Image.open(io.BytesIO(png)).convert('L').reduce(2), np.int16)
            if max(abs(np.diff(grey, axis=axis)).max() for axis in (0, 1)) < 12:     # no edge
                told['cannot be seen'] += 1
                continue
            category = about[prefix].get('category')
            about_it = dict(caption=captions(*words, prefix, category), split=split)
            for ending, raw in ('png', png), ('json', json.dumps(about_it).encode()):
                member = tarfile.TarInfo(f'{prefix}_{name}.{ending}')
                member.size = len(raw)
                tar.addfile(member, io.BytesIO(raw))
            told[split] += 1
    os.replace(f'{path}.part', path)
    return told

def begin(sets):
    """sets.json: whose the sets are, and by which settings the tars were begun."""
    keep = 'name', 'author', 'license', 'category', 'total'
    now = {k: config[k] for k in ('size', 'palette', 'licence', 'n_icons', 'test_share',
                                  'hands_share', 'seed')}
    now = dict(settings=now, sets={p: {k: sets[p].get(k) for k in keep} for p in sets})
    path = Path(out, 'sets.json')
    if path.exists() and json.loads(path.read_text()) != now:
        sys.exit(f'error: {path} is of other settings or another version of the package; '
                 'take another --out, or delete it with pairs/ and hands/')
    path.write_text(json.dumps(now, indent=1))

def main():
    at_least(config, size=16, n_icons=0, workers=0, seed=0)
    shares(config, 'test_share', 'hands_share')
    try:
        import resvg_py  # noqa: F401
    except ImportError:
        sys.exit('error: icons are drawn by resvg: pip install resvg-py')
    folder = find_source()
    sets, left = chosen_sets(folder)
    icons, unnamed = all_icons(folder, sets)
    left += unnamed
    if not icons:
        sys.exit(f'error: no icon is left; left out: {dict(left)}')
    lists = dict(zip(('pairs', 'hands'), splits(icons, sets)))
    jobs = []
    for name, some in lists.items():
        Path(out, name).mkdir(parents=True, exist_ok=True)
        for part in Path(out, name).glob('*.part'):
            part.unlink()                          # of a run that was killed
        tars = [(Path(out, name, f'{at // PER_TAR:05d}.tar'), some[at:at + PER_TAR])
                for at in range(0, len(some), PER_TAR)]
        jobs += [job for job in tars if not job[0].exists()]
    begin(sets)

    from tqdm import tqdm
    told = Counter()
    fork = multiprocessing.get_context('fork')     # the workers have the settings, too
    with ProcessPoolExecutor(workers or os.cpu_count(), fork) as pool, \
            tqdm(total=sum(len(some) for _, some in jobs), unit=' icons') as bar:
        todo = {pool.submit(write_tar, *job, sets): len(job[1]) for job in jobs}
        try:
            for done in as_completed(todo):
                told += done.result()
                bar.update(todo[done])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    licences = Counter()
    for about in sets.values():
        licences[about['license']['title']] += 1
    print(f'{len(icons)} icons of {len(sets)} sets, {len(jobs)} tars made: {counted(told)}\n'
          f'left out before: {counted(left)}\nlicences of the sets: {counted(licences)}\n'
          f'Next: python prepare.py --pairs={out}/pairs --dataset=icons --image_size={size} '
          '--patch_size=8')

def counted(what):
    return ', '.join(f'{n} {name}' for name, n in what.most_common()) or 'none'

if __name__ == '__main__':
    config = configure(globals())
    try:
        main()
    except KeyboardInterrupt:
        sys.exit('interrupted; the finished tars are kept: the same command goes on')
    except OSError as e:         # no room
        sys.exit(f'error: {e}; the finished tars are kept: the same command goes on')
