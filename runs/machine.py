"""The machine that a run has: its ranks, devices, memory, peak."""
import datetime, os, resource, sys, time, uuid

import torch
import torch.distributed as dist

RANK = int(os.environ.get('RANK', 0))                                  # as torchrun tells
WORLD = int(os.environ.get('WORLD_SIZE', 1))
LOCAL_RANK = int(os.environ.get('LOCAL_RANK', 0))

# dense TFLOP/s of the data sheets, 16 bit; of names that begin alike the longer first
PEAK = {'B200': 2250, 'H200 NVL': 836, 'H200': 989, 'H100 NVL': 835, 'H100 PCIe': 756, 'H100': 989,
        'A100': 312, 'L40S': 362, 'L40': 181, 'L4': 121, 'V100': 125, 'MI300X': 1307,
        'RTX 4090': 165, 'RTX 3090': 71}

def say(text):
    if RANK == 0:
        print(text, flush=True)

def open_device(name, local=0):
    """'auto', cuda, mps, cpu -> torch.device; exits with one line if it does not work here."""
    if name == 'auto':
        mps = 'mps' if torch.backends.mps.is_available() else 'cpu'
        name = 'cuda' if torch.cuda.is_available() else mps
    try:
        dev = torch.device(name, local) if name == 'cuda' else torch.device(name)
        torch.zeros(1, device=dev)
        return dev
    except (RuntimeError, AssertionError) as e:
        sys.exit(f'error: --device={name}: {str(e).splitlines()[0]}')

def meet(dev):
    """init_process_group under a name that only the ranks of this start know. The store of torchrun
    outlives restarts, with the addresses of the ranks that died in it (pytorch issue 135712, again
    in 2.13): some then connect to those, and wait or fail."""
    store, rank, world = next(dist.rendezvous('env://'))
    me = uuid.uuid4().hex
    if rank:
        store.set(f'here/{rank}', me)
        name = store.get(f'name/{me}').decode()                        # waits for rank 0
        store.set(f'seen/{name}/{rank}', '')
    else:
        # what stands in here/ may be of the dead: answer until the living have seen it
        name, waiting = me, set(range(1, world))
        while waiting:
            for r in waiting:
                if store.check([f'here/{r}']):
                    store.set('name/' + store.get(f'here/{r}').decode(), name)
            waiting = {r for r in waiting if not store.check([f'seen/{name}/{r}'])}
            time.sleep(.02)
    store = dist.PrefixStore(name, store)
    # compiling takes minutes, and not all ranks are done together
    about = dict(store=store, rank=rank, world_size=world, timeout=datetime.timedelta(hours=1))
    if dev.type == 'cuda':
        return dist.init_process_group('nccl', device_id=dev, **about)
    dist.init_process_group('gloo', **about)

def memory_gb(dev):
    """The most that was in use so far: of the GPU, or of this process."""
    if dev.type == 'cuda':
        return torch.cuda.max_memory_allocated(dev) / 1e9
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9

def peak_of(dev):
    """The data sheet's TFLOP/s of this device, None if it is not known."""
    name = torch.cuda.get_device_name(dev) if dev.type == 'cuda' else ''
    return next((tflops for key, tflops in PEAK.items() if key in name), None)
