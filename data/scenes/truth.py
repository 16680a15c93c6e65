"""What only the synthetic scenes have: the truth of every frame, to judge by (--truth).

A folder with NAME.json per video: size (pixels a side), palette {colour: RGB}, and segments (or
scenes) with start, end (seconds) and what is to be seen: objects with colour, shape, size ('small')
and box [x0, y0, x1, y1], or a name, tags, ground, texture."""
import json, sys
from pathlib import Path

import numpy as np

from data.sources import read_rows

def read_truth(path):
    try:
        return dict(json.loads(path.read_text(encoding='utf-8-sig'))) if path.exists() else {}
    except (ValueError, TypeError) as e:
        sys.exit(f'error: {path} is no JSON object ({e})')

def scenes(data, ids, truth):
    """What the folder `truth` says of frames `ids` of a Frames -> [(segment, the video's whole
    truth)], both {} where it says nothing."""
    rows = read_rows(data.path / 'videos.jsonl')
    files, found = {}, []
    for frame in data.frames[ids]:
        name = Path(rows[data.videos[frame['video']]['row']]['source']).stem
        if name not in files:
            files[name] = read_truth(Path(truth) / f'{name}.json')
        about = files[name]
        t = (int(frame['t_ms']) + int(frame['t_end_ms'])) / 2000       # seconds: its middle
        segments = about.get('segments', about.get('scenes', []))
        now = [s for s in segments if s['start'] <= t < s['end']]
        found.append((now[0] if now else {}, about))
    if not any(files.values()):
        sys.exit(f'error: --truth={truth} has no NAME.json for any of these videos')
    return found

def named(scene):
    """-> [(colour and shape, object)]"""
    return [(f"{o['colour']} {o['shape']}", o) for o in scene.get('objects', [])]

def true_words(scene):
    """Every word that the truth has for what is to be seen -> set."""
    texts = [scene.get(key, '') for key in ('name', 'ground', 'texture')] + scene.get('tags', [])
    texts += [f"{name} {o['size']}" for name, o in named(scene)]
    return set(' '.join(texts).lower().split())

def in_window(box, about, data, size):
    """A box in pixels of the video -> of the middle window of size pixels that the model sees."""
    full = data.meta['image_size']
    return np.array(box) * full / about['size'] - (full - size) // 2

def phrases(data, ids, size, truth):
    """Objects that are the only ones of their colour and shape -> rows of ids, phrases, boxes."""
    rows, said, boxes = [], [], []
    for i, (scene, about) in enumerate(scenes(data, ids, truth)):
        objects = named(scene)
        for name, o in objects:
            if [other for other, _ in objects].count(name) == 1:
                rows.append(i)
                said.append(f"a {o['size']} {name}")
                boxes.append(in_window(o['box'], about, data, size))
    return rows, said, boxes

def colours(data, pairs, real, painted, truth):
    """Is what was painted of the right colour? For each object that was spoken of: the mean painted
    colour where it really is, and the nearest of the palette. real (n, H, W, 3) of 0..255,
    painted {name: the same} -> {colour_acc_name: share right}, {} without any such object."""
    hits, palette, size = [], [], real.shape[1]
    for i, (scene, about) in enumerate(scenes(data, pairs[0], truth)):
        palette = np.array(list(about.get('palette', {}).values()), float)
        said = data.text(pairs[1][i], pairs[2][i])
        for name, o in named(scene):
            x0, y0, x1, y1 = np.clip(in_window(o['box'], about, data, size), 0, size).astype(int)
            want = list(about['palette']).index(o['colour'])
            own = np.abs(real[i, y0:y1, x0:x1] - palette[want]).max(-1) < 40    # not the ground's
            if own.sum() >= 4 and name in said:
                mean = np.stack([p[i, y0:y1, x0:x1][own].mean(0) for p in painted.values()])
                nearest = np.square(mean[:, None] - palette).sum(-1).argmin(1)
                hits.append(nearest == want)
    if not hits:
        return {}
    found = {f'colour_acc_{k}': float(v) for k, v in zip(painted, np.mean(hits, 0))}
    return found | dict(colour_objects=len(hits), colours=len(palette))
