"""Words as numbers: GPT-2's tokens on disk, a compact vocabulary of them in the model."""
import functools
import importlib.util
import re
import sys
from pathlib import Path

import numpy as np

EOT = 50256                      # <|endoftext|> closes every text
PIECE = 1 << 22                  # tokens that are counted at a time: memory stays flat
TOKENIZER_SHA256 = '306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930'   # r50k_base

STOP_WORDS = set("""a about above after again all also am an and any are as at back be because been
before being below but by can come could did do does down each every few first for from get go good
got had has have he her here him his how i if in into is it its just know let like little look lot
make many may me more most much must my need never new next no not now of off okay on one only or
other our out over own put really right said same say see she should so some such take than that
the their them then there these they thing things think this those through time to too two under
until up upon us use very want was way we well were what when where which while who why will with
would yes you your""".split())

@functools.cache
def gpt2_encoding():
    """GPT-2's byte-pair encoding, offline from the rank file that openai-whisper ships
    -> tiktoken.Encoding of 50257 ids."""
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe
    from tiktoken_ext.openai_public import r50k_pat_str
    spec = importlib.util.find_spec('whisper')                         # without importing torch
    if spec is None:
        sys.exit('error: the GPT-2 tokenizer comes with openai-whisper: '
                 'pip install -r requirements.txt')
    path = Path(spec.submodule_search_locations[0], 'assets', 'gpt2.tiktoken')
    try:
        ranks = load_tiktoken_bpe(str(path), expected_hash=TOKENIZER_SHA256)
    except (OSError, ValueError) as e:
        sys.exit(f'error: the GPT-2 rank file of openai-whisper is damaged ({e}); reinstall it')
    return tiktoken.Encoding('gpt2', pat_str=r50k_pat_str, mergeable_ranks=ranks,
                             special_tokens={'<|endoftext|>': EOT}, explicit_n_vocab=EOT + 1)

def compact_lookup(vocab):
    """vocab (V,) GPT-2 ids -> (50257,): the compact id of each GPT-2 id, -1 if it has none."""
    lookup = np.full(EOT + 1, -1, np.int64)
    lookup[vocab] = np.arange(len(vocab))
    return lookup

def compact(ids, lookup):
    """GPT-2 ids -> compact ids. A token without one is spelled in single bytes, which every
    vocabulary has."""
    encoding, out = gpt2_encoding(), []
    for i in ids:
        spelled = [i]
        if lookup[i] < 0:
            letters = encoding.decode_single_token_bytes(int(i))
            spelled = [encoding.encode_single_token(bytes([b])) for b in letters]
        out += lookup[spelled].tolist()
    return np.array(out, np.int64)

def build_vocab(texts, compact_vocab=True):
    """texts: arrays of GPT-2 ids -> vocab (V,), those that occur and the 256 single bytes, or all
    of them; word_start (V + 2,) bool: it starts a word ([MASK] and [CLS] do)."""
    spelling = [gpt2_encoding().decode_single_token_bytes(i) for i in range(EOT)]
    if compact_vocab:
        used = np.array([len(s) == 1 for s in spelling] + [False])
        for tokens in texts:
            for piece in np.array_split(tokens, len(tokens) // PIECE + 1):
                used[piece] = True
        used[EOT] = False                                              # never inside a text
    else:
        used = np.ones(EOT + 1, bool)
    vocab = np.flatnonzero(used)
    starts = [i < EOT and spelling[i][:1] == b' ' for i in vocab]
    return vocab, np.array(starts + [True, True])

def build_keywords(texts, vocab, stretch, limit=4096):
    """The content words that tag asks for: whole words, no stop words, in at least 3 and at most
    half of the stretches of so many tokens, the commonest first -> their tokens (C,)."""
    lookup, encoding = compact_lookup(vocab), gpt2_encoding()
    said, n = np.zeros(len(vocab), int), 0
    for tokens in texts:
        whole = PIECE // stretch * stretch                             # no stretch in two pieces
        for at in range(0, len(tokens), whole):
            known = lookup[tokens[at:at + whole]]
            known = np.append(known, np.full(-len(known) % stretch, -1)).reshape(-1, stretch)
            known.sort(1)
            fresh = np.diff(known, axis=1, prepend=-1) > 0             # each once per stretch
            said += np.bincount(known[fresh], minlength=len(vocab))
            n += len(known)
    chosen = []
    for i in np.argsort(-said, kind='stable'):
        text = encoding.decode_single_token_bytes(int(vocab[i])).decode('latin-1')
        whole = re.fullmatch(' [A-Za-z]{3,}', text) and text[1:].lower() not in STOP_WORDS
        if whole and 3 <= said[i] <= n / 2:
            chosen.append(i)
    return np.array(chosen[:limit], int)
