"""Training pictures that are never twice the same: cut, turned and tinted on the device, by noise
that is a function of (seed, iteration, position) like all other."""
import math

import numpy as np
import torch
import torch.nn.functional as F

from data.arrays import patchify, unpatchify

def views(noise, min_scale, jitter, turn):
    """noise (B, 8) uniform -> theta (B, 2, 3) and tint (B, 3, 4), float32 on the host."""
    return dict(theta=torch.from_numpy(cuts(noise[:, :5].T, min_scale, turn)).float(),
                tint=torch.from_numpy(tints(noise[:, 5:].T, jitter)).float())

def cuts(noise, min_scale, turn):
    """noise (5, B) -> which part of the stored picture is seen (B, 2, 3), as F.affine_grid has it:
    of its area a share from min_scale to 1, sides 3 : 4 to 4 : 3, turned by at most so many
    degrees."""
    area, shape, x, y, angle = noise
    side = np.sqrt(min_scale + (1 - min_scale) * area)
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
