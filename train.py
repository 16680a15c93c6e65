"""Pretrain one transformer on the arrays of prepare.py with the masking objectives of model.py.

    python train.py                                      data/scenes on whatever this machine has
    python train.py config/scenes.py --itc=0 --out_dir=out/no_itc      a preset and an ablation
    torchrun --standalone --nproc_per_node=4 train.py config/scenes.py         several GPUs, or CPUs
    python train.py config/bench.py --dry_run            parameters, GFLOP and memory per objective

Ctrl-C, SIGTERM or a crash, then the same command: the run goes on from out_dir/latest.pt exactly
where it was. The model's own knobs stand in model.py, in VLConfig; they are flags like those below.
"""
import functools, math, os, re, signal, sys, time, warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
import torch.utils.checkpoint

from configurator import at_least, configure, shares
from data.arrays import (EVAL_SEED, draw_frames, draw_noise, get_batch, open_sets, read_meta,
                         read_tokens)
from data.tokens import EOT, build_keywords, build_vocab
from data.views import to_device, views
from data.weights import load_weights
from model import OBJECTIVES, VLConfig, VLModel
from runs.checkpoints import Checkpoints, snapshot
from runs.cost import cost, print_cost
from runs.log import Log
from runs.machine import LOCAL_RANK, RANK, WORLD, meet, open_device, say
from runs.muon import Muon
from runs.pictures import sample

# I/O
out_dir = 'out/run'              # latest.pt, best.pt, config.json, log.jsonl
resume = True                    # go on from out_dir/latest.pt if it is there
init_from = ''                   # start from a ViT (.safetensors, .pth) or another run's best.pt
log_interval = 10                # iterations
eval_interval = 200              # a checkpoint, then validation; 0: only a checkpoint at the end
eval_iters = 8                   # batches of the validation losses
keep_interval = 0                # also keep a checkpoint of its own every so many iterations
best_by = 'val/loss'             # best.pt is kept by this entry of the log; r1: more is better
count_flops: bool | None = None  # log TFLOP/s, and MFU where the peak is known; None: on CUDA only
n_samples = 4                    # held-out frames drawn at each validation: out_dir/samples
wandb_project: str | None = None     # log there too
tensorboard = False              # and for tensorboard --logdir=out_dir
dry_run = False                  # only print what the model costs
# data
dataset = 'scenes'               # data/<dataset>; several: a,b
dataset_weights: tuple[float, ...] = ()  # their shares of each batch; default: equal
data_dir = 'data'
context_s = 1.0                  # also take the words spoken this long before and after a frame's
                                 # stand; up to twice as long or not at all in training
compact_vocab = True             # only tokens of the training set, and 256 bytes to spell others
min_scale = 1.0                  # augmentation: see at least so much of a stored picture's area;
jitter = 0.0                     # change light, contrast, saturation by a factor of up to 1 + this;
turn = 0.0                       # turn by up to so many degrees. 1, 0, 0: only the window moves
overfit = 0                      # train and validate on so many pairs: the loss must go to zero
# optimisation
batch_size = 128                 # per rank and micro-step; a multiple of the sum of `parts`
gradient_accumulation_steps = 1
max_iters = 2000
tflop_budget = 0.0               # train for so many counted TFLOP instead: equal compute
learning_rate = 1e-3
muon = True                      # Muon for inner matrices; False: AdamW for all
min_lr = 1e-5
warmup_iters = 100
weight_decay = .05
beta1, beta2 = .9, .98           # .98: the loss of a masked batch is noisy (ViLT, BERT)
grad_clip = 1.0                  # 0: off
# system
seed = 0
device = 'auto'                  # cuda, mps, cpu
dtype: Literal['auto', 'float32', 'bfloat16', 'float16'] = 'auto'      # auto: bfloat16 on CUDA
compile: bool | None = None      # None: on CUDA only
compile_mode: Literal['default', 'reduce-overhead'] = 'default'        # small models: CUDA graphs
recompute = False                # activations again in the backward pass: less memory, more time
prefetch = 3                     # batches read ahead
deterministic = False            # the same bits on CUDA as well, slower

def pairs_per_step():
    return batch_size * gradient_accumulation_steps * WORLD

# ----------------------------------------------------------------------------------------------
# data and model

def set_up():
    """-> the device, the precision of the forward pass: float32, bfloat16 or float16."""
    dev = open_device(device, LOCAL_RANK)
    cuda = dev.type == 'cuda'
    fast = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    precision = dtype if dtype != 'auto' else 'bfloat16' if fast else 'float32'
    if cuda:
        torch.cuda.set_device(dev)
        # with autocast only the contrast is in float32, and is so because fewer bits do not do
        torch.backends.cuda.matmul.allow_tf32 = precision == 'float32'
    if WORLD > 1:
        meet(dev)
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')        # deterministic needs it
    torch.use_deterministic_algorithms(deterministic)
    torch.manual_seed(seed)
    return dev, precision

def read_vocab():
    """-> vocab (V,), word_start (V + 2,) of the training sets."""
    paths = [Path(data_dir) / name for name in dataset.split(',')]
    texts = [read_tokens(path, 'train') for path in paths]
    return build_vocab(texts, compact_vocab)

def model_config(**of_data):
    knobs = {f.name: config[f.name] for f in fields(VLConfig) if f.name in config}
    return VLConfig(**knobs, **of_data)

def build(dev):
    """-> the model on its device, training sets, validation sets."""
    meta = read_meta(Path(data_dir) / dataset.split(',')[0])
    vocab, word_start = read_vocab()
    try:
        c = model_config(vocab_size=len(vocab), full_size=meta['image_size'], n_keywords=0)
        cycle = sum(c.plan.values())
        if batch_size % cycle:
            raise ValueError(f'batch_size={batch_size} must be a multiple of {cycle}, '
                             f'the sum of parts={c.parts}')
    except ValueError as e:
        sys.exit(f'error: {e}')

    def open_split(split, its_seed):
        return open_sets(data_dir, dataset, split, c, vocab, context_s, dataset_weights,
                         its_seed, overfit)
    sets = open_split('train', seed)
    val_sets = open_split('train' if overfit else 'val', EVAL_SEED)
    if not sets:
        sys.exit(f'error: {dataset} has no training frame with words around it; '
                 'raise --context_s, or prepare more videos')

    keywords = None
    if c.has('tag'):
        keywords = build_keywords([data.tokens for data in sets], vocab, c.text_len)
        c.n_keywords = len(keywords)
        if not c.n_keywords:
            sys.exit(f'error: tag finds no content words in {dataset}; take --tag=0')
    model = VLModel(c, vocab, word_start, meta['pixel_mean'], meta['pixel_std'], keywords)
    return model.to(dev), sets, val_sets

def cost_of_config():
    """--dry_run, with the words of the set if it is there, else with all of GPT-2's."""
    V, full_size = EOT + 1, config['image_size']
    path = Path(data_dir) / dataset.split(',')[0]
    if (path / 'meta.json').exists():
        V, full_size = len(read_vocab()[0]), read_meta(path)['image_size']
    try:
        print_cost(model_config(vocab_size=V, full_size=full_size, n_keywords=min(V, 4096)))
    except ValueError as e:
        sys.exit(f'error: {e}')

# ----------------------------------------------------------------------------------------------
# optimizers

def get_lr(it, steps):
    """Linear warm-up to learning_rate, then half a cosine to min_lr at the last step."""
    if it < warmup_iters:
        return learning_rate * (it + 1) / warmup_iters
    share = min(1, (it - warmup_iters) / max(1, steps - warmup_iters))
    return min_lr + .5 * (1 + math.cos(math.pi * share)) * (learning_rate - min_lr)

def configure_optimizers(model):
    """Muon for the matrices between what comes in and what comes out: not for word embeddings, nor
    for heads that say pixels or classes. AdamW for the rest, with weight decay on matrices but not
    on biases, norms, word embeddings and special vectors -> list of optimizers."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    others = [p for n, p in named if p.dim() != 2 or 'tok_embed' in n]
    weights = [(n, p) for n, p in named if p.dim() == 2 and 'tok_embed' not in n]
    heads = 'predictor.head', 'itm_head', 'keyword_head'
    inner = [p for n, p in weights if muon and not n.startswith(heads)]
    decayed = [p for n, p in weights if not muon or n.startswith(heads)]
    groups = [dict(params=decayed, weight_decay=weight_decay), dict(params=others, weight_decay=0.)]
    adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=(beta1, beta2), fused=True)
    if not inner:
        return [adamw]
    compiled = inner[0].is_cuda and compile is not False
    return [adamw, Muon(inner, learning_rate, weight_decay, compiled)]

def groups_of(optimizers):
    return [group for optimizer in optimizers for group in optimizer.param_groups]

def update(model, optimizers, scaler):
    """The step that the gradients ask for -> their norm."""
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
    # float16: a gradient that is not finite spoils the norm, and by clipping those of the others
    if not scaler.is_enabled() or norm.isfinite():
        for optimizer in optimizers:
            scaler.step(optimizer)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    scaler.update()
    return norm

# ----------------------------------------------------------------------------------------------
# checkpoints

FORMER = 'Take another --out_dir, or --resume=false to start anew'

def read_former(path):
    """-> the checkpoint to go on from. Its architecture is taken over into the settings; one that a
    file or flag gave and that contradicts it is an error."""
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
        was = checkpoint['model_config']
    except Exception as e:
        sys.exit(f'error: {path} is not a checkpoint of train.py ({type(e).__name__}); '
                 'remove it, or take another --out_dir')
    for k in was.keys() & config.keys():
        if config[k] != was[k] and k in config['_source']:
            sys.exit(f'error: {path} is of another model: {k} is {was[k]!r} there and '
                     f'{config[k]!r} now. {FORMER}')
        config[k] = was[k]

    told = f"going on from {path} at iteration {checkpoint['iter_num']}"
    changed = []
    for k, v in checkpoint['config'].items():
        v = tuple(v) if isinstance(v, list) else v
        if k in config and config[k] != v:
            changed.append(f'{k} {v!r} -> {config[k]!r}')
    say(f"{told}; changed since: {', '.join(changed)}" if changed else told)
    return checkpoint

def go_on(checkpoint, model, optimizers, scaler):
    """The state of the former run into today's."""
    path, was = Path(out_dir) / 'latest.pt', checkpoint['model_config']
    differs = [f'{k} is {was[k]!r} there and {v!r} now'
               for k, v in asdict(model.config).items() if k in was and was[k] != v]
    if differs:
        sys.exit(f"error: {path} is of another data set: {', '.join(differs)}. {FORMER}")
    if not torch.equal(checkpoint['model']['vocab'], model.vocab.cpu()):
        sys.exit(f'error: {path} has learned other words than {dataset} has. {FORMER}')

    try:
        model.load_state_dict(checkpoint['model'])
        for optimizer, state in zip(optimizers, checkpoint['optimizers'], strict=True):
            # betas and decay as told today
            for group, now in zip(state['param_groups'], optimizer.param_groups, strict=True):
                group.update(now, params=group['params'])
            optimizer.load_state_dict(state)
        scaler.load_state_dict(checkpoint.get('scaler', {}))
    except (KeyError, ValueError, RuntimeError) as e:
        sys.exit(f'error: {path} cannot go on with --muon={muon} --dtype={dtype} '
                 f'({type(e).__name__}: {str(e)[:100]}). {FORMER}')

def initialise(model):
    """--init_from: the weights of elsewhere."""
    try:
        loaded, left = load_weights(model, init_from)
    except ValueError as e:
        sys.exit(f'error: --init_from: {e}')
    lacking = sorted({int(name.split('.')[1]) for name, _ in model.named_parameters()
                      if name.startswith('blocks.') and name not in loaded})
    say(f"{init_from}: {len(loaded)} arrays loaded; left out: {', '.join(left) or 'none'}; "
        f"blocks that it lacks: {', '.join(map(str, lacking)) or 'none'}")

def agree(start, dev):
    """All ranks go on from the same step."""
    if WORLD > 1:
        first = torch.tensor([start, -start], device=dev)
        dist.all_reduce(first, dist.ReduceOp.MAX)
        if first.sum():
            sys.exit(f'error: some ranks go on from iteration {-first[1]}, others from {first[0]}: '
                     f'--out_dir={out_dir} must be one folder that all nodes see')

# ----------------------------------------------------------------------------------------------
# validation: fixed samples and masks; touches no training state

def ranks(score):
    """score (n, n), the true pair on the diagonal -> rank of the truth in each row (n,), 0 is best;
    ties count against it."""
    return (score >= score.diagonal()[:, None]).sum(1) - 1

@functools.cache
def pairs_of(data):
    return data.pairs(512)                                             # the same each time

@torch.no_grad()
def validate(model, sets, dev, autocast):
    """-> {val/loss, val/<objective>, val/i2t_r1, val/t2i_r1, val/chance}."""
    model.eval()
    c, data, rows = model.config, sets[0], []
    for it in range(RANK, -(-eval_iters // WORLD) * WORLD, WORLD):     # as many on each rank
        host = get_batch(sets, c, it, 0, batch_size, batch_size, training=False)
        with autocast():
            loss, terms = model(to_device(host, data.meta, c, dev))
        rows.append(torch.stack([loss, *terms.values()]).float())
    mean = torch.stack(rows).mean(0)
    if WORLD > 1:
        dist.all_reduce(mean)
        mean /= WORLD
    entry = dict(zip(['val/loss', *(f'val/{k}' for k in terms)], mean.tolist()))

    pairs = pairs_of(data)
    if c.has('itc') and len(pairs[0]) > 1:
        z = []
        for _, patches, tokens, pad, _ in data.batches(pairs, c, dev, 64):
            with autocast():
                z.append((model.image_embedding(patches), model.text_embedding(tokens, pad)))
        image, text = map(torch.cat, zip(*z))
        score = image @ text.T
        entry['val/i2t_r1'] = (ranks(score) == 0).float().mean().item()
        entry['val/t2i_r1'] = (ranks(score.T) == 0).float().mean().item()
        entry['val/chance'] = 1 / len(score)
    model.train()
    return entry

# ----------------------------------------------------------------------------------------------
# the parts of the loop

class Reader:
    """The next batches are read while this one is computed."""
    def __init__(self, sets, c, first):
        self.sets = sets
        self.c = c
        self.at = first * gradient_accumulation_steps                  # micro-steps since the start
        self.thread = ThreadPoolExecutor(1)
        self.upcoming = deque()
        self.waited = 0.                                               # seconds

    def read(self, j):
        it, micro = divmod(j, gradient_accumulation_steps)
        first = (micro * WORLD + RANK) * batch_size
        host = get_batch(self.sets, self.c, it, first, batch_size, pairs_per_step())
        if min_scale < 1 or jitter or turn:
            noise = draw_noise(seed + 2 ** 33, it, first, batch_size, 8)
            window = self.c.image_size / self.c.full_size
            host |= views(noise, min_scale, jitter, turn, window)
        return {k: v.pin_memory() for k, v in host.items()} if torch.cuda.is_available() else host

    def frames_of(self, it):
        """The frames that step it of all ranks learns from."""
        total = pairs_per_step()
        drawn = draw_frames(self.sets, it, 0, total, total)
        return [i for _, _, ids in drawn for i in ids.tolist()]

    def next(self):
        while len(self.upcoming) < prefetch:
            self.upcoming.append(self.thread.submit(self.read, self.at))
            self.at += 1
        asked = time.perf_counter()
        host = self.upcoming.popleft().result()
        self.waited += time.perf_counter() - asked
        return host

class Stop:
    """Ctrl-C and SIGTERM: finish the step, save, leave; Ctrl-C twice: leave at once. In a script's
    background, where Ctrl-C is ignored from the start, it stays so."""
    def __init__(self):
        self.told = False
        self.launched = 'RANK' in os.environ                           # torchrun passes on both
        signal.signal(signal.SIGTERM, self.tell)
        if self.launched or signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, self.tell)

    def tell(self, s, _):
        # under torchrun both may come twice, of itself and of the terminal or the queue's manager
        if self.told and not self.launched and s == signal.SIGINT:
            os._exit(130)
        self.told = True

    def asked(self, it, dev):
        """Whether to leave after step it: all ranks together, if one is told to."""
        if WORLD == 1 or it % 10:
            return self.told and WORLD == 1
        told = torch.tensor(float(self.told), device=dev)
        dist.all_reduce(told)
        return bool(told)

def frames_in(sets):
    return sum(len(data.usable) for data in sets)

def announce(model, sets, val_sets, dev, precision):
    """What is about to happen -> number of steps, counted GFLOP per pair or None."""
    c, steps, gflop = model.config, max_iters, None
    if tflop_budget or count_flops or count_flops is None and dev.type == 'cuda':
        gflop = cost(c)[0]
    if tflop_budget:
        steps = round(tflop_budget * 1e3 / gflop / pairs_per_step())
        say(f'{tflop_budget:g} TFLOP at {gflop:.2f} GFLOP per pair: {steps} steps')
    n = frames_in(sets)
    held_out = f'{frames_in(val_sets)} frames for validation'
    if not val_sets:
        held_out = 'no validation set (too few videos?), so best.pt is not kept'
    say(f'{dataset}: {n} training frames with words, vocabulary {c.vocab_size}, {held_out}')
    size = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
    say(f"{size:.2f} M parameters{' and a teacher' if c.teacher else ''} on {dev}, {precision}; "
        f'{pairs_per_step()} pairs per step = {WORLD} ranks x {batch_size} x '
        f'{gradient_accumulation_steps}; {steps} steps are '
        f'{steps * pairs_per_step() / n:.1f} epochs')
    chance = dict(mlm=math.log(c.vocab_size), mim=1., itm=math.log(2),
                  itc=math.log(batch_size * WORLD + c.queue_size))
    say('chance: ' + ', '.join(f'{k} {chance[k]:.3f}' for k in OBJECTIVES
                               if k in chance and c.has(k)))
    return steps, gflop

def wrap(model):
    if WORLD == 1:
        return model
    on = [LOCAL_RANK] if next(model.parameters()).is_cuda else None
    # buffers are the same on all ranks by themselves; a queue of them would cross every step
    return torch.nn.parallel.DistributedDataParallel(
        model, device_ids=on, broadcast_buffers=False, gradient_as_bucket_view=True,
        bucket_cap_mb=100)

def prepare_step(model, reader, dev, autocast):
    """-> the module that the loop calls: of all ranks, compiled, or recomputing, as asked for."""
    if recompute:
        for block in model.blocks:
            block.forward = functools.partial(torch.utils.checkpoint.checkpoint, block.forward,
                                              use_reentrant=False)
    # of cuDNN's backward pass some values are NaN at such masked lengths (pytorch issue 196678)
    c = model.config
    words = 1 + c.text_len
    joint = [words + 1 + round(c.n_patches * share) for share in (c.keep_hi, c.keep_lo)]
    if any(L % 128 == 64 for L in (words, words + c.n_patches, *joint)):
        torch.backends.cuda.enable_cudnn_sdp(False)
    if not (compile or compile is None and dev.type == 'cuda'):
        return wrap(model)
    warnings.filterwarnings('ignore', message='Dynamo detected a call to a `functools.lru_cache`')
    before = {n: b.clone() for n, b in model.named_buffers()}          # the queue must not learn
    step_model = wrap(torch.compile(model, mode=compile_mode))
    host = reader.read(reader.at)
    try:
        with autocast():
            step_model(to_device(host, reader.sets[0].meta, model.config, dev))[0].backward()
    except Exception as e:                                             # no compiler, a broken one
        # not eager instead: slower unseen, and other ranks would wait for this one for ever
        why = re.sub(r'\s+', ' ', str(e).split('Set TORCHDYNAMO')[0])
        sys.exit(f'error: torch.compile failed ({type(e).__name__}: {why[:150]} ... {why[-150:]}); '
                 'take --compile=false; if a run was killed compiling, empty /tmp/torchinductor_*')
    model.zero_grad(set_to_none=True)
    for n, b in model.named_buffers():
        b.copy_(before[n])
    return step_model

def measure(entry):
    """What best.pt is kept by; less is better."""
    if best_by not in entry:
        sys.exit(f"error: --best_by={best_by} is not among {', '.join(entry)}")
    return -entry[best_by] if best_by.endswith('r1') else entry[best_by]

def former_best(model, val_sets, dev, autocast):
    """How good best.pt of this folder is, by what is measured today: its own number may be of
    another --best_by, of other candidates or masks."""
    path = Path(out_dir) / 'best.pt'
    if not path.exists() or not val_sets:
        return math.inf
    now, best = snapshot(model.state_dict()), math.inf
    try:
        model.load_state_dict(torch.load(path, map_location='cpu', weights_only=True)['model'])
    except Exception:                                                  # no checkpoint of this run
        say(f'warning: {path} is not of this run; the next validation replaces it')
    else:
        best = measure(validate(model, val_sets, dev, autocast))
    model.load_state_dict(now)
    return best

# ----------------------------------------------------------------------------------------------

def main():  # noqa: C901, PLR0914, PLR0915  (nanoGPT's loop, read in one piece)
    at_least(globals(), log_interval=1, eval_iters=1, prefetch=1, gradient_accumulation_steps=1,
             batch_size=1, eval_interval=0, keep_interval=0, max_iters=0, warmup_iters=0, seed=0,
             overfit=0, tflop_budget=0, learning_rate=0, min_lr=0, weight_decay=0, grad_clip=0,
             context_s=0, min_scale=.01, jitter=0, turn=0, n_samples=0)
    shares(globals(), 'beta1', 'beta2')
    if compile_mode != 'default' and (compile is False or gradient_accumulation_steps > 1):
        sys.exit(f'error: --compile_mode={compile_mode} needs compile, and no accumulation')
    if dry_run:
        return cost_of_config()

    # data, model, optimizers; a former run in this folder goes on
    dev, precision = set_up()
    autocast = nullcontext
    if precision != 'float32':
        autocast = functools.partial(torch.autocast, dev.type, getattr(torch, precision))
    scaler = torch.amp.GradScaler(dev.type, enabled=precision == 'float16')
    former, checkpoint = Path(out_dir) / 'latest.pt', None
    if resume and former.exists():
        checkpoint = read_former(former)
    model, sets, val_sets = build(dev)
    optimizers = configure_optimizers(model)
    start, best = 0, math.inf
    if checkpoint:
        go_on(checkpoint, model, optimizers, scaler)
        start = checkpoint['iter_num']
    elif init_from:
        initialise(model)
    agree(start, dev)
    if checkpoint:
        best = former_best(model, val_sets, dev, autocast)

    # the run's folder, and all that goes on beside the steps
    log = Log(config, start, pairs_per_step(), anew=not checkpoint and former.exists())
    checkpoints = Checkpoints(config, model, optimizers, scaler)
    steps, gflop = announce(model, sets, val_sets, dev, precision)
    reader = Reader(sets, model.config, start)
    step_model = prepare_step(model, reader, dev, autocast)
    stop, began = Stop(), time.perf_counter()

    it, leave = start, False
    log.mark = began
    while True:
        # a checkpoint, then validation: one that fails loses nothing
        if it >= steps or leave or eval_interval and it % eval_interval == 0:
            if it > start:
                log.begin()                                            # a former run is over
                checkpoints.save('latest.pt', it)
            if val_sets and eval_interval and not leave:
                entry = validate(model, val_sets, dev, autocast)
                log.validation(it, entry)
                if n_samples and RANK == 0:
                    sample(model, val_sets[0], pairs_of(val_sets[0]), n_samples, out_dir, it)
                value = measure(entry)
                if it and value < best:
                    best = value
                    checkpoints.keep('best.pt')
            log.mark = time.perf_counter()
        if it >= steps or leave:
            break

        lr = get_lr(it, steps)
        for group in groups_of(optimizers):
            group['lr'] = lr

        # forward and backward; ranks exchange their gradients at the last micro-step
        for micro in range(gradient_accumulation_steps):
            batch = to_device(reader.next(), sets[0].meta, model.config, dev)
            last = WORLD == 1 or micro == gradient_accumulation_steps - 1
            if compile_mode != 'default':
                torch.compiler.cudagraph_mark_step_begin()
            with nullcontext() if last else step_model.no_sync(), autocast():
                loss, terms = step_model(batch)
            scaler.scale(loss / gradient_accumulation_steps).backward()
            log.add(loss, terms)

        # the step; the teacher follows
        log.step(update(model, optimizers, scaler), lr)
        model.follow(it)
        it += 1

        # a line of the log where something is about to happen
        leave = stop.asked(it, dev)
        keep = keep_interval and it % keep_interval == 0
        due = it % log_interval == 0 or eval_interval and it % eval_interval == 0
        if due or keep or leave or it >= steps:
            log.line(it, steps, reader, dev, gflop)
        if keep:
            checkpoints.save(f'iter_{it:06d}.pt', it)

    # the last checkpoint is on the disk before we say that it is
    if not checkpoints.wait():
        sys.exit(f'error: the last checkpoint could not be written to {out_dir}')
    if WORLD > 1:
        dist.barrier()                                                 # the writer may be the last
        dist.destroy_process_group()
    if leave:
        say(f'stopped at iteration {it}; the same command goes on from there')
        sys.exit(130)
    say(f'done: {it - start} iterations in {(time.perf_counter() - began) / 60:.1f} minutes. '
        f'Next: python eval.py --run={out_dir}')

if __name__ == '__main__':
    config = configure(globals(), VLConfig)
    main()
