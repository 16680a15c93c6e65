"""How the code reads: python tests/test_style.py prints it, pytest tests/test_style.py asserts it.
Tokens are counted where TIKTOKEN_CACHE_DIR has cl100k_base."""

import ast, os, re, shutil, subprocess, symtable
from collections import Counter
import pytest
from conftest import ROOT

BUDGET = {  # lines as ruff formats them: were, at most
    'configurator.py': (198, 226),
    'prepare.py': (2007, 706),
    'model.py': (1474, 1210),
    'train.py': (1179, 680),
    'eval.py': (2058, 485),
}
CODE = '*.py config/*.py data/*.py data/*/*.py runs/*.py runs/*.sh tests/*.py'.split()
PATHS = [path for pattern in CODE for path in sorted(ROOT.glob(pattern))]
TEXT = {p.relative_to(ROOT).as_posix(): p.read_text(encoding='utf-8') for p in PATHS}
OURS = [f for f in TEXT if not f.startswith('tests/')]
PYTHON = [f for f in OURS if f.endswith('.py') and not f.startswith('config/')]
TREE = {f: ast.parse(text) for f, text in TEXT.items() if f.endswith('.py')}


def tokens(names=BUDGET, of=sum):
    if 'TIKTOKEN_CACHE_DIR' not in os.environ:
        pytest.skip('cl100k_base is not at hand')
    import tiktoken

    encode = tiktoken.get_encoding('cl100k_base').encode
    return of(len(encode(TEXT[f], disallowed_special=())) for f in names)


def ruff(*argv, text=None):
    if not shutil.which('ruff'):
        pytest.skip('ruff is absent: pip install -r requirements.txt')
    argv = ['ruff', argv[0], '--isolated', *argv[1:]]
    done = subprocess.run(argv, input=text, capture_output=True, text=True, cwd=ROOT)
    return done.stdout.splitlines()


def formatted(names=BUDGET):
    return sum(len(ruff('format', '--line-length=100', '-', text=TEXT[f])) for f in names)


def crowded():
    return ruff(
        'check',
        '--preview',
        '--ignore-noqa',
        '--select=PLR0914',
        '--quiet',
        '--config=lint.pylint.max-locals=15',
        '--output-format=concise',
        *PYTHON,
    )


def nodes(kinds, names=BUDGET):
    return [node for f in names for node in ast.walk(TREE[f]) if isinstance(node, kinds)]


def per_100(kinds, chosen=bool):
    found = [n for n in nodes(ast.AST) if re.search(kinds, type(n).__name__) and chosen(n)]
    return round(100 * len(found) / sum(TEXT[f].count('\n') for f in BUDGET), 1)


def double(node):
    """a, b = x, y   or   a = b = c"""
    pair = isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple)
    return pair or len(node.targets) > 1


def scopes(name):
    found = [symtable.symtable(TEXT[name], name, 'exec')]
    for scope in found:
        found += scope.get_children()
    return [scope for scope in found if scope.get_type() == 'function']


def names_live():
    """At the worst line of train.py's main: locals bound before it and used after it."""
    own = next(scope for scope in scopes('train.py') if scope.get_name() == 'main').get_locals()
    main = next(f for f in nodes(ast.FunctionDef, ['train.py']) if f.name == 'main')
    lines = {name: [] for name in own}
    for node in ast.walk(main):
        if isinstance(node, ast.Name) and node.id in own:
            lines[node.id].append(node.lineno)
    spans = [range(min(x), max(x)) for x in lines.values() if x]
    return max(sum(line in span for span in spans) for line in range(main.end_lineno))


def knobs(name):
    """A script's settings."""
    if 'configure(globals()' not in TEXT[name]:
        return []
    plain = [n for n in TREE[name].body if isinstance(n, (ast.Assign, ast.AnnAssign))]
    names = [n for a in plain for n in ast.walk(getattr(a, 'target', 0) or a.targets[0])]
    return [n.id for n in names if isinstance(n, ast.Name) and n.id.islower()]


def declared_twice():
    found = []
    for script, handed in (('train.py', 'VLConfig'), ('eval.py', 'Knobs')):
        for node in nodes(ast.ClassDef, PYTHON):
            fields = [n.target.id for n in node.body if isinstance(n, ast.AnnAssign)]
            found += [n for n in fields if node.name == handed and n in knobs(script)]
    return found


def hidden_knobs():
    """Locals, parameters included, with the name of a setting of their file."""
    names = [(f, name) for f in PYTHON for scope in scopes(f) for name in scope.get_locals()]
    return [(f, name) for f, name in names if name in knobs(f)]


def writers():
    how = r'(globals\(|vars\((?!cfg)\w+|space)\)?(\[.*?\] = |\.update)|setattr\((?!self)|^ *global '
    return [(f, x) for f in PYTHON for x in TEXT[f].splitlines() if re.search(how, x)]


def circles():
    """Modules that import themselves through others."""
    below = {}
    for f in PYTHON:
        lines = map(ast.unparse, nodes((ast.Import, ast.ImportFrom), [f]))
        found = re.findall(r'(?:from (\S+) )?import (\S+)', '\n'.join(lines))
        below[f[:-3].replace('/', '.')] = {x for a, b in found for x in (a, b, f'{a}.{b}')}
    below['eval'] |= {m for m in below if m.startswith('runs.')}  # by name
    for _ in below:
        for m in below:
            below[m] = below[m].union(*(below[b] for b in below[m] & below.keys()))
    return [m for m in below if m in below[m]]


def shared_lines():
    lines = Counter((f, n.lineno) for f in TREE for n in nodes(ast.stmt, [f]))
    return [line for line in lines if lines[line] > 1]


def long_lines():
    return [(f, x) for f in TEXT for x in TEXT[f].splitlines() if len(x) > 100]


ROWS = [  # what, how, before, at most
    ('tokens of the five files', tokens, 73637, 41000),
    ('the longest of them', lambda: tokens(of=max), 21690, 15000),
    # the aim was 85,000; since then faults in people's files took 7,000 more, the GPU's tools 3,000
    ('tokens of all code outside tests', lambda: tokens(OURS), 93276, 125500),
    ('formatted lines of the five', formatted, 6916, 3300),
    ('lines over 100 columns', long_lines, 1966, 0),
    ('lines of two statements', shared_lines, 15, 0),
    ('comprehensions per 100 lines', lambda: per_100('Comp$|GeneratorExp'), 10.8, 5),
    ('ternaries', lambda: per_100('IfExp'), 5.7, 3),
    ('double assignments', lambda: per_100('^Assign$', double), 5.2, 2),
    ('functions of more than 15 locals', crowded, 23, 5),
    ("names live in train.py's main", names_live, 37, 25),
    ('knobs declared twice', declared_twice, 26, 0),
    ('locals that hide a knob', hidden_knobs, 43, 0),
    ('writers of globals', writers, 7, 1),
    ('modules in an import circle', circles, 2, 0),
] + [(f, lambda f=f: formatted([f]), was, most) for f, (was, most) in BUDGET.items()]


def count(found):
    return len(found) if isinstance(found, list) else found


@pytest.mark.parametrize('what, measure, was, most', ROWS, ids=[row[0] for row in ROWS])
def test_reads_like_nanogpt(what, measure, was, most):
    found = measure()
    assert count(found) <= most, found


def shown(measure):
    try:
        return f'{count(measure()):8,}'
    except pytest.skip.Exception:
        return '       -'


if __name__ == '__main__':
    for what, measure, was, most in ROWS:
        print(f'{what:40}was{was:7,}, is{shown(measure)}, at most{most:7,}')
    for f in PYTHON:
        print(f'{f:40}{shown(lambda: formatted([f]))} lines{shown(lambda: tokens([f]))} tokens')
