"""Pictures: read from files, cut to the model's square, laid out on a sheet."""
import sys, textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from data.arrays import unpatchify

CELL = 160                       # pixels: side of a picture on a sheet
GAP = 8
TOP = 30

def read_picture(path):
    """-> PIL RGB, upright; ValueError if it cannot be read."""
    try:
        return ImageOps.exif_transpose(Image.open(path)).convert('RGB')
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise ValueError(f'{path} cannot be read as a picture ({e})') from None

def open_pictures(where):
    """A file or a folder -> [(path, PIL picture)]; what cannot be read is told."""
    found = []
    paths = sorted(Path(where).iterdir()) if Path(where).is_dir() else [Path(where)]
    for path in paths:
        try:
            found.append((path, read_picture(path)))
        except ValueError as e:
            print(f'skipped: {e}', file=sys.stderr)
    if not found:
        sys.exit(f'error: no picture in {where!r}; give --image=picture.jpg or a folder')
    return found

def middle_square(picture, size):
    """A PIL picture -> its middle square, upright, (size, size, 3) uint8."""
    upright = ImageOps.exif_transpose(picture).convert('RGB')
    return np.asarray(ImageOps.fit(upright, (size, size), Image.Resampling.BOX))

def as_picture(patches, p):
    """Patches (N, p * p * 3), a tensor of uint8 or of floats in [0, 1] -> (H, W, 3) in [0, 1]."""
    scale = 1. if patches.is_floating_point() else 255.
    return unpatchify(patches[None].float().cpu() / scale, p)[0].numpy()

def sheet(columns, rows, path):
    """A PNG: a title over each column; cells are text, pictures (H, W, 3) in [0, 1], or (picture,
    colour of its rim)."""
    font = ImageFont.load_default(14)
    left, x = [], GAP
    for i in range(len(columns)):
        left.append(x)
        x += GAP + CELL * (2 if any(isinstance(row[i], str) for row in rows) else 1)
    page = Image.new('RGB', (x, TOP + len(rows) * (CELL + GAP)), 'white')
    pen = ImageDraw.Draw(page)
    for title, x in zip(columns, left):
        pen.text((x, GAP), title, 'black', font)

    for y, row in enumerate(rows):
        y = TOP + y * (CELL + GAP)
        for x, cell in zip(left, row):
            if isinstance(cell, str):
                lines = [textwrap.fill(line, 40) for line in cell.split('\n')]
                pen.multiline_text((x, y), '\n'.join(lines), 'black', font)
                continue
            picture, rim = cell if isinstance(cell, tuple) else (cell, None)
            pixels = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
            page.paste(pixels.resize((CELL, CELL), Image.Resampling.NEAREST), (x, y))
            if rim:
                pen.rectangle([x - 3, y - 3, x + CELL + 2, y + CELL + 2], outline=rim, width=4)
    page.save(path)
    print(f'wrote {path}')
