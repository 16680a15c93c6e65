"""--task=export: the encoders and what they see, for other tools -> out/<run>/export/

    python eval.py --run=out/talks --task=export
    timm.create_model('local-dir:out/talks/export', pretrained=True)       the picture encoder

model.safetensors and config.json are a ViT by timm's names (strict=True); its output is the ITC
embedding, of any length. embeddings.npy (n, proj_dim) float16 and moments.jsonl, a line for each
row, go into any vector database. clip() hands a checkpoint to clip_benchmark and its like.
"""
import json, re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

import model as models
from runs.moments import frame_embeddings, open_parts, open_rows

def vit_of(model):
    """-> {name: weight} of the picture encoder by timm's names, what timm is to be told of it."""
    c, D, p = model.config, model.config.n_embd, model.config.patch_size
    depth = c.n_unimodal if c.has('itc') and c.n_unimodal else c.n_layer
    own = model.state_dict()
    state = {name: x for name, x in own.items()
             if (block := re.match(r'blocks\.(\d+)\.', name)) and int(block[1]) < depth}
    patches = own['patch_embed.weight'].view(D, p, p, 3).permute(0, 3, 1, 2)
    state |= {'patch_embed.proj.weight': patches, 'patch_embed.proj.bias': own['patch_embed.bias'],
              'cls_token': own['cls_token'], 'pos_embed': own['pos_embed'] + own['type_embed'][1]}
    if c.has('itc'):
        state |= {'norm.weight': own['image_proj.0.weight'], 'norm.bias': own['image_proj.0.bias'],
                  'head.weight': own['image_proj.1.weight'], 'head.bias': torch.zeros(c.proj_dim)}
    else:
        state |= {'norm.weight': own['norm.weight'], 'norm.bias': own['norm.bias']}
    n_out = c.proj_dim if c.has('itc') else 0
    size = dict(img_size=c.image_size, patch_size=p, embed_dim=D, depth=depth, num_heads=c.n_head)
    mean, std = own['pixel_mean'].tolist(), own['pixel_std'].tolist()
    # the middle of a picture of full_size, which timm rounds down
    seen = dict(input_size=[3, c.image_size, c.image_size], mean=mean, std=std, num_classes=n_out,
                crop_pct=c.image_size / (c.full_size + .5), interpolation='box')
    about = dict(architecture='vit_base_patch16_224', num_classes=n_out, num_features=D,
                 model_args=size, pretrained_cfg=seen)
    return {name: x.contiguous().cpu() for name, x in state.items()}, about

def main(model, k):
    from safetensors.torch import save_file
    folder = Path(k.run) / 'export'
    folder.mkdir(exist_ok=True)
    state, about = vit_of(model)
    save_file(state, folder / 'model.safetensors', dict(format='pt'))
    (folder / 'config.json').write_text(json.dumps(about, indent=1))
    print(f'wrote {folder}/model.safetensors: {len(state)} tensors, '
          f"timm.create_model('local-dir:{folder}', pretrained=True)")
    if not model.config.has('itc'):
        return print('the run has no itc, so there are no embeddings')

    parts = open_parts(model, k)
    embeddings = [frame_embeddings(model, data, k) for data in parts]
    np.save(folder / 'embeddings.npy', np.concatenate(embeddings))
    with open(folder / 'moments.jsonl', 'w', encoding='utf-8') as file:
        for data in parts:
            file.writelines(json.dumps(row) + '\n' for row in moments(data))
    n = sum(map(len, embeddings))
    print(f'wrote {folder}/embeddings.npy and moments.jsonl: {n} moments')

def moments(data):
    """Yield what there is to say of each frame of a part, in order."""
    start, length = data.all_spans(np.arange(len(data.frames)))
    row_of = open_rows(data)
    for i, frame in enumerate(data.frames):
        row = row_of(frame['video'])
        yield dict(dataset=data.path.name, split=data.split, key=row['key'], title=row['title'],
                   source=row['url'] or row['source'], start=int(frame['t_ms']) / 1000,
                   end=int(frame['t_end_ms']) / 1000, text=data.text(start[i], length[i]))

def clip(path):
    """A checkpoint -> model, transform, tokenizer, as clip_benchmark's metrics take them:

    zeroshot_retrieval.evaluate(model, DataLoader(pairs, ...), tokenizer, 'cpu')"""
    m = models.load(path)

    def tokenizer(texts):
        tokens, pad = m.tokenise(texts)
        return tokens.masked_fill(pad[:, 1:], -1)                      # one tensor, as others have

    def encode_text(tokens):
        pad = torch.nn.functional.pad(tokens < 0, (1, 0))
        return m.text_embedding(tokens.clamp(min=0), pad)
    both = SimpleNamespace(encode_image=m.image_embedding, encode_text=encode_text)
    return both, lambda picture: m.read_pictures([picture])[0], tokenizer
