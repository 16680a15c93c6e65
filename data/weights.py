"""Weights from elsewhere into a new model: --init_from.

A ViT of timm, MAE, DeiT, BEiT, DINOv2, ... (.safetensors, .pth), whose blocks are this trunk's once
what can be folded is folded, or a run of train.py. What cannot be had exactly is an error."""
import argparse, math, pathlib, re

import numpy as np
import torch
import torch.nn.functional as F

WRAPPERS = 'state_dict_ema', 'model_ema', 'teacher', 'model', 'state_dict'     # the first found
# a row for each of the data's own tokens
BY_WORD = 'tok_embed.weight', 'mlm_bias', 'keyword_head.weight', 'keyword_head.bias'
# what a ViT may have beside the trunk: it is left out, and told
BESIDE = ('head', 'fc_norm', 'norm.', 'pre_logits', 'attn_pool', 'decoder', 'mask_token',
          'dist_token', 'dino_head', 'ibot_head')

@torch.no_grad()
def load_weights(model, path):
    """The weights in path into a new model -> (names loaded, names left out, told).
    ValueError if they do not fit."""
    checkpoint = read(path)
    if 'model_config' in checkpoint:
        its, own = checkpoint['model_config']['n_head'], model.config.n_head
        if its != own:                                                 # which no shape tells
            raise ValueError(f'{path} has n_head={its}, this model {own}: set n_head as there')
        loaded, left = load_former(model, checkpoint['model'])
    else:
        loaded, left = load_vit(model, checkpoint, path)
    if model.teacher is not None:                                      # starts as the student
        mine = model.state_dict()
        model.teacher.load_state_dict({k: mine[k] for k in model.teacher.state_dict()})
    return loaded, left

def read(path):
    """-> what stands in the file, a dictionary, without running any code of it."""
    try:
        if str(path).endswith('.safetensors'):
            from safetensors.torch import load_file
            return load_file(path)
        # as the training scripts of MAE, DeiT and timm leave them beside the weights
        with torch.serialization.safe_globals([argparse.Namespace, pathlib.PosixPath]):
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
        return dict(checkpoint)
    except Exception as e:
        why = re.sub(r'\x1b\[[\d;]*m', '', str(e))
        if found := re.search(r'GLOBAL ([\w.]+) was not', why):
            why = f"it holds a {found[1]}: save its weights alone, torch.save(checkpoint['model'])"
        raise ValueError(f'{path} cannot be read as weights '
                         f'({type(e).__name__}: {why[:200].splitlines()[:1]})') from None

def unwrap(checkpoint, path):
    """-> the tensors of a ViT under timm's own names: wrappers and prefixes taken off."""
    state = checkpoint
    for name in WRAPPERS:
        if isinstance(state.get(name), dict):
            state = state[name]
            break
    first = 'patch_embed.proj.weight'
    prefixes = sorted(name.removesuffix(first) for name in state if name.endswith(first))
    if not prefixes:
        raise ValueError(f'{path} has no {first}: not a ViT by the names of timm')
    if len(prefixes) > 1:
        raise ValueError(f'{path} has several ViTs: {", ".join(prefixes)}; save one of them alone')
    return {name.removeprefix(prefixes[0]): x for name, x in state.items()
            if name.startswith(prefixes[0]) and torch.is_tensor(x)}

def fold(state, path):
    """Layer scale (DINOv2, DeiT III, BEiT) into the matrix before it, the two biases of BEiT, EVA
    into the one of qkv, the convolution of the patches into a matrix: exactly the same function."""
    out = dict(state)
    for name, x in state.items():
        if found := re.fullmatch(r'(blocks\.\d+\.)(?:ls|gamma_)([12])(?:\.gamma)?', name):
            last = found[1] + ('attn.proj' if found[2] == '1' else 'mlp.fc2')
            out[f'{last}.weight'] = state[f'{last}.weight'] * x[:, None]
            out[f'{last}.bias'] = state[f'{last}.bias'] * x
            del out[name]
        elif name.endswith('attn.q_bias'):
            block = name.removesuffix('q_bias')
            q, v = out.pop(name), out.pop(block + 'v_bias')
            out.pop(block + 'k_bias', None)                            # a buffer of zeros
            out[block + 'qkv.bias'] = torch.cat([q, torch.zeros_like(q), v])
    weight = out.pop('patch_embed.proj.weight')                        # (D, channel, row, column)
    if weight.dim() != 4 or weight.shape[1] != 3:
        raise ValueError(f'{path} has patches of {tuple(weight.shape[1:])}: pictures of 3 channels '
                         'are needed')
    out['patch_embed.weight'] = weight.permute(0, 2, 3, 1).flatten(1)
    if 'patch_embed.proj.bias' in out:
        out['patch_embed.bias'] = out.pop('patch_embed.proj.bias')
    return out

def resize_grid(pos, n):
    """Positions of a square grid (1, L, D) -> (1, n * n, D), bicubic."""
    old = math.isqrt(pos.shape[1])
    if old == n:
        return pos
    grid = pos.float().view(1, old, old, -1).permute(0, 3, 1, 2)
    return F.interpolate(grid, (n, n), mode='bicubic').flatten(2).mT.to(pos.dtype)

def positions(state, n, path):
    """pos_embed of a ViT (1, extra + L, D) -> (1, 1 + n * n, D): [CLS], then this model's grid."""
    pos = state.get('pos_embed')
    if pos is None or pos.dim() != 3:
        raise ValueError(f'{path} has no pos_embed of (1, positions, width)')
    tokens = ('cls_token' in state) + ('dist_token' in state)
    for extra in tokens, 0, 1, 2:                                      # some give these no position
        L = pos.shape[1] - extra
        if L > 0 and math.isqrt(L) ** 2 == L:
            first = pos[:, :1] if extra else torch.zeros_like(pos[:, :1])
            return torch.cat([first, resize_grid(pos[:, extra:], n)], 1)
    raise ValueError(f'{path} has {pos.shape[1]} positions: no square grid')

def load_vit(model, checkpoint, path):
    """Patches, positions (interpolated to this grid), [CLS], blocks, last norm, by timm's names."""
    state = fold(unwrap(checkpoint, path), path)
    c, own, loaded, left = model.config, model.state_dict(), [], []
    state['pos_embed'] = positions(state, math.isqrt(c.n_patches), path)
    for name, value in state.items():
        block = re.match(r'blocks\.(\d+)\.', name)
        if name in own:
            mine = own[name].shape
            if mine != value.shape:
                raise ValueError(f'{path}: {name} is {tuple(value.shape)}, this model has '
                                 f'{tuple(mine)}: set n_embd, n_head, patch_size as there')
            own[name].copy_(value)
            loaded.append(name)
        elif name.startswith(BESIDE) or block and int(block[1]) >= c.n_layer:
            left.append(name)
        else:
            raise ValueError(f'{path} has {name} {tuple(value.shape)}, which this model lacks: '
                             'its states would be others')
    if 'cls_token' not in loaded:
        left.append("[CLS], which the file lacks: this model's own joins every layer")
    if c.n_embd != 64 * c.n_head:
        left.append(f'n_head, which no shape tells: {c.n_embd // 64} in nearly all ViTs of this '
                    f'width, {c.n_head} here')
    return loaded, sorted(left)

def load_former(model, theirs):
    """A run's state: words by their ids in the tokenizer, positions as far as they go; what has
    another shape is left out -> (names loaded, names left out)."""
    own, loaded, left = model.state_dict(), [], []
    vocab, its_vocab = model.vocab.cpu().numpy(), theirs['vocab'].cpu().numpy()
    _, mine, its = np.intersect1d(vocab, its_vocab, return_indices=True)
    n = model.config.n_patches
    of_data = {name for name, _ in model.named_buffers()}
    for name, value in theirs.items():
        if name in of_data or name.startswith(('teacher.', 'queue', 'alpha', 'keywords')):
            continue
        if name not in own:
            left.append(name)
            continue
        here, value = own[name], value.to(own[name].device)
        if name.endswith('pos_embed') and here.shape[2:] == value.shape[2:]:
            if name == 'text_pos_embed':
                L = min(here.shape[1], value.shape[1])
                here[:, :L] = value[:, :L]
            else:
                first = here.shape[1] - n                              # [CLS], but in the predictor
                here[:, :first] = value[:, :first]
                here[:, first:] = resize_grid(value[:, first:], math.isqrt(n))
        elif name in BY_WORD and here.shape[1:] == value.shape[1:]:
            here[mine] = value[its]
            here[len(vocab):] = value[len(its_vocab):]                     # [MASK] and [CLS]
        elif here.shape == value.shape:
            here.copy_(value)
        else:
            left.append(name)
            continue
        loaded.append(name)
    if not any(name.startswith('blocks.') for name in loaded):
        raise ValueError('its layers have other shapes: '
                         'set n_embd, n_layer and n_unimodal as there')
    if len(mine) < len(vocab):
        left.append(f'{len(vocab) - len(mine)} of {len(vocab)} words')
    return loaded, sorted(left)
