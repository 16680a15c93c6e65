"""Pictures: read from files, cut to the model's square, laid out on a sheet."""
import contextlib, sys, textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from data.arrays import unpatchify
from data.sources import Bad

TURNS = dict(enumerate((0, 3, 1, 5, 4, 6, 2), 2))  # EXIF's orientation -> Image.Transpose
CELL = 160                       # pixels: side of a picture on a sheet
GAP = 8
TOP = 30

def read_picture(path, size=0):
    """A path or an open file -> PIL RGB, as `plain` makes it, or Bad. size: of what it will be cut
    to, for a JPEG can be decoded at a fraction of its own."""
    try:
        Image.preinit()                            # the common formats first
        Image.init()
        safe = [name for name in Image.ID if name != 'EPS']            # another program draws that
        with Image.open(path, formats=safe) as picture:
            if size:
                picture.draft('RGB', (size * 2, size * 2))
            return plain(picture)
    except Exception as e:                         # each format raises its own
        name = path if isinstance(path, str | Path) else 'it'
        why = str(e).replace(repr(path), 'it')     # of an open file an address
        raise Bad('not_media', f'{name} cannot be read as a picture ({why})') from None

def plain(picture):
    """A PIL picture -> RGB, as people see it: upright, all of its range, on white."""
    if type(picture) is Image.Image and picture.mode == 'RGB' and not picture.info:
        return picture                             # it is, or it is of no file
    picture.load()
    with contextlib.suppress(Exception):           # EXIF that cannot be read: as it is stored
        picture = picture.transpose(TURNS[picture.getexif()[0x112]])
    if picture.mode[0] in 'IF':
        picture = eight_bits(picture)
    if picture.has_transparency_data:
        clear = picture.convert('RGBA')
        picture = Image.new('RGB', picture.size, 'white')
        picture.paste(clear, mask=clear)
    picture = picture.convert('RGB')
    picture.info = {}                              # or it would be turned again
    return picture

def eight_bits(picture):
    """Modes I;16, I, F -> L. White is the least of 1, 255, 65535 that nothing exceeds (of 16 bits
    65535); where values are below 0 or exceed all, the range is their own."""
    pixels = np.asarray(picture).astype(float)
    pixels[pixels == picture.info.get('transparency')] = 65535
    pixels[~np.isfinite(pixels)] = 0
    low, high = min(0, pixels.min()), pixels.max()
    whites = [65535] if ';' in picture.mode else [1, 255, 65535]
    high = next((white for white in whites if low == 0 and high <= white), high)
    return Image.fromarray(np.uint8((pixels - low) * 255 / (high - low or 1) + .5))

def open_pictures(where):
    """Yield (path, PIL picture) of a file or a folder's; what cannot be read is told."""
    found = False
    paths = sorted(Path(where).iterdir()) if Path(where).is_dir() else [Path(where)]
    for path in paths:
        try:
            picture = read_picture(path)
        except ValueError as e:
            print(f'skipped: {e}', file=sys.stderr)
            continue
        found = True
        yield path, picture
    if not found:
        sys.exit(f'error: no picture in {where!r}; give --image=picture.jpg or a folder')
    return found

def middle_square(picture, size):
    """A PIL picture -> its middle square, (size, size, 3) uint8."""
    return np.asarray(ImageOps.fit(plain(picture), (size, size), Image.Resampling.BOX))

def pixel_sums(picture):
    """(H, W, 3) uint8 -> sums of the pixels and of their squares (2, 3), by way of a histogram."""
    counts = np.array(Image.fromarray(picture).histogram()).reshape(3, 256)
    return np.stack([np.arange(256), np.arange(256) ** 2]) @ counts.T

def as_picture(patches, p):
    """Patches (N, p * p * 3), a tensor of uint8 or of floats in [0, 1] -> (H, W, 3) in [0, 1]."""
    scale = 1. if patches.is_floating_point() else 255.
    return unpatchify(patches[None].float().cpu() / scale, p)[0].numpy()

def evenly(n, most):
    """-> numbers of rows to show: at most so many of n."""
    return np.linspace(0, n - 1, min(most, n)).round().astype(int)

def sheet(columns, rows, path):
    """A PNG: a title over each column; cells are text, pictures (H, W, 3) in [0, 1], or (picture,
    colour of its rim)."""
    font = ImageFont.load_default(14)
    left, x = [], GAP
    for i in range(len(columns)):
        left.append(x)
        x += GAP + CELL * (5 if any(isinstance(row[i], str) for row in rows) else 2) // 2
    page = Image.new('RGB', (x, TOP + len(rows) * (CELL + GAP)), 'white')
    pen = ImageDraw.Draw(page)
    for title, x in zip(columns, left):
        pen.text((x, GAP), title, 'black', font)

    for y, row in enumerate(rows):
        y = TOP + y * (CELL + GAP)
        for x, cell in zip(left, row):
            if isinstance(cell, str):
                lines = [textwrap.fill(line, 52) for line in cell.split('\n')]
                pen.multiline_text((x, y), '\n'.join(lines), 'black', font)
                continue
            picture, rim = cell if isinstance(cell, tuple) else (cell, None)
            pixels = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
            page.paste(pixels.resize((CELL, CELL), Image.Resampling.NEAREST), (x, y))
            if rim:
                pen.rectangle([x - 3, y - 3, x + CELL + 2, y + CELL + 2], outline=rim, width=4)
    page.save(path)
    print(f'wrote {path}')
