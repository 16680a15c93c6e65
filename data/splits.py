"""Which video goes to which split: by a hash of its key; re-uploads together."""
import collections, zlib

from data.shards import sha256

SPLITS = 'train', 'val', 'test'

def split_of(keys, val_share, test_share):
    """{key: split} by a hash of each key: nobody moves when a video is added, but from val and test
    to train as a set reaches 2,000, of which smaller shares do. A small set lends val and test one
    video each, but never its last."""
    place = {}
    for key in sorted(keys):
        place[key] = int(sha256(key)[:8], 16) / 2 ** 32
    split = dict.fromkeys(place, 'train')
    split |= {key: 'val' for key, u in place.items() if u < test_share + val_share}
    split |= {key: 'test' for key, u in place.items() if u < test_share}
    if split and 'train' not in split.values():
        split[max(split, key=place.get)] = 'train'
    for name, share in ('val', val_share), ('test', test_share):
        train = [key for key in split if split[key] == 'train']
        if share and name not in split.values() and len(train) >= 2 and len(split) >= 3:
            split[min(train, key=place.get)] = name
    return split

def marks(index):
    """What a re-upload has in common with its original: the dHash of each frame, and one in 8 of
    the checksums of 8 tokens in a row."""
    tokens = index['tokens']
    sums = {zlib.crc32(tokens[i:i + 8].tobytes()) for i in range(len(tokens) - 7)}
    return {h.tobytes() for h in index['hashes']}, {x for x in sums if x % 8 == 0}

def uploads(*kinds):
    """Dicts {key: marks}, by pictures and by words -> {key: the first key of its group}: re-uploads
    share more than half of the smaller set."""
    first = {key: key for kind in kinds for key in kind}

    def root(key):
        while first[key] != key:
            key = first[key]
        return key
    for kind in kinds:
        holders = collections.defaultdict(list)
        shared = collections.Counter()
        for key in sorted(kind):
            for mark in kind[key]:
                if len(holders[mark]) < 8:         # what more have is a title card or a greeting
                    shared.update((other, key) for other in holders[mark])
                    holders[mark].append(key)
        for (a, b), n in shared.items():
            if n >= 4 and 2 * n > min(len(kind[a]), len(kind[b])):
                a, b = sorted((root(a), root(b)))
                first[b] = a
    return {key: root(key) for key in first}
