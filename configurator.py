"""Checked settings with nanoGPT's feel: a script's knobs are its plain lower-case global variables.

    python train.py config/scenes.py --batch_size=32         config files and flags, applied strictly left to right
    python train.py config/demo.py config/scenes.py --compile false  several files compose; `--k v` is `--k=v`; `--flag` is `--flag=true`
    python train.py out/run/config.json --max_iters=100      a former run's config.json is a config file as well
    python train.py -h                                       prints the knob block itself

A script ends with `if __name__ == '__main__': config = configure(globals()); main()`: importing it has no side effects.
The type of a knob is its annotation, else the type of its default. Names that start with `_` are helpers, never knobs.
"""
import ast, difflib, json, os, runpy, sys, types, typing

class ConfigError(Exception):
    """A mistake in a config file or on the command line; the message says what to do."""

def knobs(namespace):
    """-> {name: type} of a script's knobs: its public lower-case globals of a plain type, or annotated."""
    module = sys.modules.get(namespace.get('__name__'))
    hints = namespace.get('__annotations__') or getattr(module, '__annotations__', {})        # lazy since Python 3.14
    hints = {k: eval(t, vars(typing) | namespace) if isinstance(t, str) else t for k, t in hints.items()}
    plain = {k: type(v) for k, v in namespace.items() if isinstance(v, (bool, int, float, str, tuple, type(None)))}
    return {k: hints.get(k, plain.get(k)) for k in namespace if k in plain | hints and k[0] != '_' and k == k.lower()}

def coerce(key, value, want):
    """One value, a string of the command line or a Python value of a file, as the wanted type; ConfigError if it is not one."""
    origin, args = typing.get_origin(want), typing.get_args(want)
    if origin in (typing.Union, types.UnionType):                      # int | None; None is tried first and str, which takes all, last
        for t in sorted(args, key=lambda t: (t is not type(None)) + (t is str)):
            try:
                return coerce(key, value, t)
            except ConfigError:
                pass
    elif origin is typing.Literal:
        for choice in args:
            if str(value) == str(choice):
                return choice
    elif want is str and isinstance(value, str):                       # literally: --dataset=2024, --title=a=b
        return value
    elif want is bool and str(value).lower() in ('true', '1', 'false', '0'):
        return str(value).lower() in ('true', '1')
    elif want is type(None) and str(value).lower() == 'none':
        return None
    elif want is tuple or origin is tuple:                             # a,b or (1, 2)
        if isinstance(value, str):
            value = evaluate(value) if value[:1] in ('(', '[') else [v for v in value.split(',') if v]
        if isinstance(value, (tuple, list)):
            return tuple(coerce(key, v, args[0]) if args else evaluate(v) for v in value)
    elif want in (int, float):
        number = evaluate(value)
        if type(number) in (int, float) and (want is float or number - number == 0 and number == int(number)):
            return want(number)                                        # a float takes 1, an int takes 6e5 but not 1.5
    names = {typing.Literal: ' or '.join(map(repr, args)), None: getattr(want, '__name__', want)}
    raise ConfigError(f'{key} must be {names.get(origin, want)}, not {value!r}')

def evaluate(value):
    """A Python literal in a string as its value; anything else as it is."""
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value

def read_file(path, current):
    """-> the settings in a config file: Python, run in its own namespace that holds the knobs so far, or a run's config.json."""
    try:
        if path.endswith('.json'):
            with open(path, encoding='utf-8') as f:
                return {k: v for k, v in json.load(f).items() if k[0] != '_'}
        after = runpy.run_path(path, init_globals=dict(current))
        with open(path, encoding='utf-8') as f:                        # set, even if to what it was
            named = {n.id for n in ast.walk(ast.parse(f.read())) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        return {k: v for k, v in after.items() if k[0] != '_' and (k in named or k not in current or v is not current[k])}
    except FileNotFoundError as e:
        raise ConfigError(f'config file {e.filename} not found') from None
    except Exception as e:
        raise ConfigError(f'config file {path} is broken: {type(e).__name__}: {e}') from None

def parse(namespace, argv, positional=None):
    """Pure: -> (values, source), each {knob: ...}; source says where a value came from. ConfigError for every mistake.

    `positional` names the tuple knob that takes the plain arguments which are no config files (the videos of prepare.py)."""
    want = knobs(namespace)
    values, source = {k: namespace[k] for k in want}, {k: 'default' for k in want}
    def put(key, value, where):
        if key not in want:
            close = difflib.get_close_matches(key, want, 1)
            raise ConfigError(f'{where}: there is no {key!r}; ' + (f'did you mean {close[0]!r}?' if close else '-h lists the settings'))
        try:
            values[key], source[key] = coerce(key, value, want[key]), where
        except ConfigError as e:
            raise ConfigError(f'{where}: {e}') from None
    argv = list(argv)
    while argv:
        arg = argv.pop(0)
        if arg.startswith('--'):
            key, equals, value = arg[2:].partition('=')
            if not equals and want.get(key) is bool:                   # --dry_run alone is true
                value = argv.pop(0) if argv and argv[0].lower() in ('true', 'false', '1', '0') else 'true'
            elif not equals and key in want:
                if not argv or argv[0].startswith('--'):
                    raise ConfigError(f'command line: --{key} needs a value: --{key}=...')
                value = argv.pop(0)
            put(key, value, 'command line')
        elif arg.endswith(('.py', '.json')):
            for key, value in read_file(arg, values).items():
                put(key, value, arg)
        elif positional:
            put(positional, (values[positional] if source[positional] == 'command line' else ()) + (arg,), 'command line')
        else:
            raise ConfigError(f'command line: {arg!r} is neither a config file (.py, .json) nor --name=value')
    return values, source

def describe(namespace):
    """-h: the script's docstring and its knob block, as they stand in the script."""
    with open(namespace['__file__'], encoding='utf-8') as f:
        text = f.read()
    want, lines = knobs(namespace), []
    for node in ast.parse(text).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, 'target', None)
        if any(getattr(t, 'id', None) in want for t in getattr(target, 'elts', [target])):
            lines += [node.lineno, node.end_lineno]
    return '\n'.join([namespace.get('__doc__') or '', *text.splitlines()[min(lines) - 1:max(lines)]])

def configure(namespace, argv=None, positional=None):
    """Override a script's globals from config files and flags, print what changed (on rank 0), return the settings to log:
    every knob, and under `_source` where each one that is not at its default came from."""
    argv = sys.argv[1:] if argv is None else argv
    if {'-h', '--help'} & set(argv):
        sys.exit(print(describe(namespace)))
    try:
        values, source = parse(namespace, argv, positional)
    except ConfigError as e:
        sys.exit(f'error: {e}')
    namespace.update(values)
    changed = {k: where for k, where in source.items() if where != 'default'}
    if os.environ.get('RANK', '0') == '0':
        for key, where in changed.items():
            print(f'config: {key} = {values[key]!r} ({where})')
    return values | {'_source': changed}
