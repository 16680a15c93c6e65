"""Host batches to the device, and what the model sees there of the stored pictures: a window of
each, or for augmentation a part, turned and tinted, by noise that is a function of (seed,
iteration, position) like all other."""
import functools, math

import numpy as np
import torch
import torch.nn.functional as F

from data.arrays import patchify, unpatchify

@functools.cache
def copy_stream(device):
    return torch.cuda.Stream(device)

def to_device(batch, meta, c, device):
    """Host batch -> model.forward's: bytes over the bus, which a GPU takes while it computes the
    step before; window and regrouping on the device."""
    batch = dict(batch)
    if device.type == 'cuda':
        with torch.cuda.stream(copy_stream(device)):
            batch = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
        now = torch.cuda.current_stream(device)
        now.wait_stream(copy_stream(device))
        for v in batch.values():
            v.record_stream(now)
    raw, offset = batch.pop('raw'), batch.pop('offset')
    if 'theta' in batch:
        return batch | dict(patches=seen(raw, batch.pop('theta'), batch.pop('tint'), meta, c))
    return batch | dict(patches=window_patches(raw, offset, meta, c))

def window_patches(raw, offset, meta, c):
    """Stored patches raw (B, G * G, p * p * 3) on the device -> the window at offset (B, 2) in
    stored patches, regrouped to the model's patch size: (B, N, P)."""
    p = meta['patch_size']
    G = meta['image_size'] // p
    at = torch.arange(c.image_size // p, device=raw.device)
    row = (offset[:, :1] + at)[:, :, None]
    column = (offset[:, 1:] + at)[:, None]
    sample = torch.arange(len(raw), device=raw.device)[:, None, None]
    # eight bytes at a time, where they divide a patch, are gathered in a fraction of the time
    words = raw.view(torch.uint8 if raw.shape[2] % 8 else torch.int64)
    window = words.view(len(raw), G, G, -1)[sample, row, column].flatten(1, 2).view(torch.uint8)
    if c.patch_size == p:
        return window
    return patchify(unpatchify(window, p), c.patch_size)

# ----------------------------------------------------------------------------------------------
# augmentation

def views(noise, min_scale, jitter, turn, window=1.):
    """noise (B, 8) uniform -> theta (B, 2, 3) and tint (B, 3, 4), float32 on the host. window: the
    share of the stored side that is seen where min_scale is 1, as without augmentation."""
    return dict(theta=torch.from_numpy(cuts(noise[:, :5].T, min_scale, turn, window)).float(),
                tint=torch.from_numpy(tints(noise[:, 5:].T, jitter)).float())

def cuts(noise, min_scale, turn, window):
    """noise (5, B) -> which part of the stored picture is seen (B, 2, 3), as F.affine_grid has it:
    of its area a share from min_scale to 1, sides 3 : 4 to 4 : 3, turned by at most so many
    degrees."""
    area, shape, x, y, angle = noise
    side = np.sqrt(min_scale + (1 - min_scale) * area) if min_scale < 1 else window + 0 * area
    stretch = (4 / 3) ** (shape - .5) if min_scale < 1 else 1
    wide, high = np.minimum(1, side * stretch), np.minimum(1, side / stretch)
    angle = math.radians(turn) * (2 * angle - 1)
    cos, sin = np.cos(angle), np.sin(angle)
    across = [wide * cos, -high * sin, (1 - wide) * (2 * x - 1)]
    down = [wide * sin, high * cos, (1 - high) * (2 * y - 1)]
    return np.stack(across + down, 1).reshape(-1, 2, 3)

def tints(noise, jitter):
    """noise (3, B) -> how the colours change (B, 3, 4), a matrix and what is added: light, contrast
    and saturation by a factor from 1 / (1 + jitter) to 1 + jitter."""
    factors = (1 + jitter) ** (2 * noise - 1)
    light, contrast, saturation = factors[:, :, None, None]
    grey = np.array([.299, .587, .114])
    mix = light * contrast * (saturation * np.eye(3) + (1 - saturation) * grey)
    add = np.broadcast_to((1 - contrast) / 2, (len(mix), 3, 1))
    return np.concatenate([mix, add], 2)

def seen(raw, theta, tint, meta, c):
    """Stored patches raw (B, G * G, p * p * 3) uint8 on the device -> the model's (B, N, P)."""
    pictures = unpatchify(raw, meta['patch_size']).permute(0, 3, 1, 2).float() / 255
    grid = F.affine_grid(theta, (len(raw), 3, c.image_size, c.image_size), align_corners=False)
    pictures = F.grid_sample(pictures, grid, padding_mode='reflection', align_corners=False)
    pictures = torch.einsum('bdc,bchw->bhwd', tint[:, :, :3], pictures) + tint[:, None, None, :, 3]
    return patchify((pictures.clamp(0, 1) * 255).round().to(torch.uint8), c.patch_size)
