"""Weights from elsewhere into a new model: --init_from."""
import math

import torch
import torch.nn.functional as F

@torch.no_grad()
def load_weights(model, path):
    """The weights in path into a new model: a ViT of timm, MAE or DeiT (.safetensors, or .pth), or
    a run of train.py -> (names loaded, names left out). ValueError if they do not fit."""
    try:
        if str(path).endswith('.safetensors'):
            from safetensors.torch import load_file
            state = load_file(path)
        else:
            state = torch.load(path, map_location='cpu', weights_only=True)
        former = 'model_config' in state
        state = state.get('model', state.get('state_dict', state))
    except Exception as e:
        raise ValueError(f'{path} cannot be read as weights '
                         f'({type(e).__name__}: {str(e)[:150]})') from None
    loaded, left = load_former(model, state) if former else load_vit(model, state, path)
    if model.teacher is not None:                                      # starts as the student
        mine = model.state_dict()
        model.teacher.load_state_dict({k: mine[k] for k in model.teacher.state_dict()})
    return loaded, left

def load_vit(model, state, path):
    """Patches, positions (interpolated to this grid), [CLS], blocks, last norm, by timm's names."""
    if 'patch_embed.proj.weight' not in state or 'pos_embed' not in state:
        raise ValueError(f'{path} has no patch_embed.proj.weight and pos_embed: '
                         'not a ViT by the names of timm')
    state = dict(state)
    weight = state.pop('patch_embed.proj.weight')                      # (D, channel, row, column)
    state['patch_embed.weight'] = weight.permute(0, 2, 3, 1).flatten(1)
    if 'patch_embed.proj.bias' in state:
        state['patch_embed.bias'] = state.pop('patch_embed.proj.bias')

    L = state['pos_embed'].shape[1]
    extra = L - math.isqrt(L) ** 2                                     # [CLS], DeiT's other token
    first, grid = state['pos_embed'][:, :1], state['pos_embed'][:, extra:].float()
    old, new = math.isqrt(grid.shape[1]), math.isqrt(model.config.n_patches)
    if old != new:
        grid = grid.view(1, old, old, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, (new, new), mode='bicubic').flatten(2).mT
    first = first if extra else torch.zeros_like(first)
    state['pos_embed'] = torch.cat([first, grid.to(first.dtype)], 1)

    own, loaded = model.state_dict(), []
    ours = 'patch_embed', 'pos_embed', 'cls_token', 'blocks', 'norm'
    for name, value in state.items():
        if name not in own or name.split('.')[0] not in ours:
            continue
        if own[name].shape != value.shape:
            raise ValueError(f'{path}: {name} is {tuple(value.shape)}, this model has '
                             f'{tuple(own[name].shape)}: set n_embd, n_head, patch_size as there')
        own[name].copy_(value)
        loaded.append(name)
    return loaded, sorted(set(state) - set(loaded))

@torch.no_grad()
def load_former(model, theirs):
    """A run's state: words by their ids in the tokenizer, positions as far as they go; what has
    another shape is left out."""
    own, loaded = model.state_dict(), []
    vocab, its_vocab = model.vocab.tolist(), theirs['vocab'].tolist()
    V, at = len(vocab), {token: i for i, token in enumerate(its_vocab)}
    mine = [i for i, token in enumerate(vocab) if token in at]
    its = [at[vocab[i]] for i in mine]
    skipped = ['teacher.', 'queue', 'vocab', 'word_start', 'keyword.', 'pixel_', 'alpha']
    if (its_vocab, theirs['keyword'].tolist()) != (vocab, model.keyword.tolist()):
        skipped.append('keyword_head.1')                               # its classes: other words

    for name, value in theirs.items():
        if name not in own or name == 'keyword' or name.startswith(tuple(skipped)):
            continue
        here, value = own[name], value.to(own[name].device)
        if name == 'mlm_bias' or name == 'tok_embed.weight' and here.shape[1] == value.shape[1]:
            here[mine] = value[its]
            here[V:] = value[len(at):]                                 # [MASK] and [CLS]
        elif name == 'text_pos_embed' and here.shape[2] == value.shape[2]:
            n = min(here.shape[1], value.shape[1])
            here[:, :n] = value[:, :n]
        elif here.shape == value.shape:
            here.copy_(value)
        else:
            continue
        loaded.append(name)
    if not any(name.startswith('blocks.') for name in loaded):
        raise ValueError('its layers have other shapes: '
                         'set n_embd, n_layer and n_unimodal as there')

    buffers = {name for name, _ in model.named_buffers()}
    left = {name for name in theirs if not name.startswith(('teacher.', 'queue', 'alpha'))}
    left -= buffers | set(loaded)
    if len(mine) < V:
        left.add(f'{V - len(mine)} of {V} words')
    return loaded, sorted(left)
