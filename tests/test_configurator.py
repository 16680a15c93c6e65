"""pytest tests/test_configurator.py -q"""

import json, math, re, subprocess, sys, types
from dataclasses import dataclass
from typing import Literal
import pytest
from configurator import ConfigError, at_least, configure, describe, knobs, parse, shares


def script():
    """A script's globals: knobs of every kind, and things that are none."""
    module = types.ModuleType('script')
    module.__annotations__ = dict(
        maybe=int | None,
        init=Literal['scratch', 'resume'],
        names=tuple[str, ...],
        level=Literal[1, 2],
        share='float | None',
    )
    vars(module).update(
        learning_rate=1e-3,
        dropout=0.1,
        dataset='scenes',
        title='',
        batch_size=32,
        compile=True,
        max_iters=10,
        betas=(0.9, 0.95),
        maybe=None,
        init='scratch',
        names=(),
        level=1,
        share=None,
        _helper=3,
        CONSTANT=4,
        json=json,
        function=script,
    )
    sys.modules['script'] = module
    return vars(module)


@pytest.mark.parametrize(
    'argv, key, want',
    [
        (['--learning_rate=1'], 'learning_rate', 1.0),
        (['--dropout=0'], 'dropout', 0.0),
        (['--dataset=2024'], 'dataset', '2024'),
        (['--title=a=b'], 'title', 'a=b'),
        (['--title='], 'title', ''),
        (['--batch_size', '64'], 'batch_size', 64),
        (['--compile=false'], 'compile', False),
        (['--compile', 'False'], 'compile', False),
        (['--compile', '0'], 'compile', False),
        (['--compile'], 'compile', True),
        (['--maybe=3'], 'maybe', 3),
        (['--maybe=none'], 'maybe', None),
        (['--init=resume'], 'init', 'resume'),
        (['--level=2'], 'level', 2),
        (['--betas=.8,.9'], 'betas', (0.8, 0.9)),
        (['--betas=(1, 2)'], 'betas', (1, 2)),
        (['--names=a,b'], 'names', ('a', 'b')),
        (['--names=1,2'], 'names', ('1', '2')),
        (['--max_iters=6e5'], 'max_iters', 600_000),
        (['--learning_rate=-1e-3'], 'learning_rate', -0.001),
        (['--share=.5'], 'share', 0.5),
        (['--batch_size=1', '--batch_size=2'], 'batch_size', 2),
        (['--max_iters=9007199254740993'], 'max_iters', 9007199254740993),
    ],
)
def test_values(argv, key, want):
    values, source = parse(script(), argv)
    assert values[key] == want and type(values[key]) is type(want) and source[key] == 'command line'
    assert all(source[k] == 'default' and values[k] == script()[k] for k in values if k != key)


@pytest.mark.parametrize(
    'argv, words',
    [
        (['--batch_sze=3'], ["'batch_sze'", "did you mean 'batch_size'"]),
        (['--xyzzy=3'], ["'xyzzy'", '-h']),
        (['--batch_size=1.5'], ['batch_size', 'int', '1.5']),
        (['--batch_size=many'], ['int', 'many']),
        (['--batch_size=True'], ['int']),
        (['--compile=no'], ['compile', 'bool', 'no']),
        (['--compile=2'], ['bool']),
        (['--learning_rate=fast'], ['float']),
        (['--init=other'], ['scratch', 'resume', 'other']),
        (['--maybe=x'], ['int | None']),
        (['--batch_size'], ['needs a value']),
        (['--batch_size', '--compile'], ['needs a value']),
        (['scenes'], ['scenes', '--name=value']),
        (['absent.py'], ['absent.py', 'not found']),
        (['--_helper=3'], ['_helper']),
        (['--CONSTANT=3'], ['CONSTANT']),
        (['--json=3'], ['json']),
        (['--max_iters=inf'], ['int']),
        (['--share=x'], ['float']),
    ],
)
def test_mistakes(argv, words):
    with pytest.raises(ConfigError) as e:
        parse(script(), argv)
    assert all(w in str(e.value) for w in words) and '\n' not in str(e.value)


def test_only_knobs_are_knobs():
    assert set(knobs(script())) == set(
        'learning_rate dropout dataset title batch_size compile max_iters betas maybe init names '
        'level share'.split()
    )


def test_files(tmp_path, monkeypatch):
    a, b, c = tmp_path / 'a.py', tmp_path / 'b.py', tmp_path / 'config.json'
    a.write_text(
        '"""what it is for"""\n_twice = 2\n'
        'batch_size = _twice * batch_size   # arithmetic on the value so far\nmaybe = 7\n'
    )
    b.write_text('batch_size = batch_size + 1; learning_rate = 1')
    c.write_text(json.dumps(dict(max_iters=77, betas=[1, 2], _git='abc')))
    monkeypatch.chdir('/')  # from any folder
    values, source = parse(script(), [str(a), str(b), '--maybe=8', str(c)])
    assert (
        values['batch_size'],
        values['learning_rate'],
        values['maybe'],
        values['max_iters'],
        values['betas'],
    ) == (65, 1.0, 8, 77, (1, 2))
    assert (
        source['batch_size'] == str(b)
        and source['maybe'] == 'command line'
        and source['max_iters'] == str(c)
        and source['dropout'] == 'default'
    )
    assert parse(script(), ['--batch_size=10', str(a)])[0]['batch_size'] == 20, (
        'strictly left to right'
    )


@pytest.mark.parametrize(
    'text, words',
    [
        ('learning_rte = 1e-3', ['learning_rte', "did you mean 'learning_rate'"]),
        ('batch_size = "32x"', ['batch_size', 'int', '32x']),
        ('batch_size = 1.5', ['int']),
        ('batch_size = = 3', ['broken', 'SyntaxError']),
        ('batch_size = 1 / 0', ['broken', 'ZeroDivisionError']),
        ('import os', ["'os'"]),
    ],
)
def test_broken_files(tmp_path, text, words):
    path = tmp_path / 'x.py'
    path.write_text(text)
    with pytest.raises(ConfigError) as e:
        parse(script(), [str(path)])
    assert all(w in str(e.value) for w in words + [str(path)])
    (tmp_path / 'x.json').write_text('{"batch_size": ')
    with pytest.raises(ConfigError, match='broken'):
        parse(script(), [str(tmp_path / 'x.json')])


@pytest.mark.parametrize('name, text', [('x.py', 'level = 2\n'), ('x.json', '{"level": 2}')])
def test_files_with_a_byte_order_mark(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding='utf-8-sig')
    assert parse(script(), [str(tmp_path / name)])[0]['level'] == 2


@pytest.mark.parametrize(
    'text, words', [('"level"', 'expected {"name": value'), ('{"": 7}', "there is no ''")]
)
def test_json_that_is_no_settings(tmp_path, text, words):
    (tmp_path / 'x.json').write_text(text)
    with pytest.raises(ConfigError, match=words):
        parse(script(), [str(tmp_path / 'x.json')])


def test_shares():
    shares(dict(a=0, b=None, c=0.99), 'a', 'b', 'c')
    for wrong in 1.0, -0.1, math.nan:
        with pytest.raises(SystemExit, match='--a must be from 0 to below 1'):
            shares(dict(a=wrong), 'a')


def test_a_run_repeats_from_its_own_config(tmp_path, capsys):
    namespace = script()
    logged = configure(namespace, argv=['--betas=.5,.6', '--maybe=3', '--compile=false'])
    assert namespace['maybe'] == 3 and "maybe = 3 (command line)" in capsys.readouterr().out
    (tmp_path / 'config.json').write_text(json.dumps(logged))
    assert logged['_source'] == dict(
        betas='command line', maybe='command line', compile='command line'
    )
    again = configure(script(), argv=[str(tmp_path / 'config.json')])
    assert {k: v for k, v in again.items() if k != '_source'} == {
        k: v for k, v in logged.items() if k != '_source'
    }
    (tmp_path / 'same.py').write_text('batch_size = 32')
    assert configure(script(), argv=[str(tmp_path / 'same.py')])['_source'] == dict(
        batch_size=str(tmp_path / 'same.py')
    ), 'set, if only to what it was'
    with pytest.raises(SystemExit, match='--batch_size must be 33 or more'):
        at_least(script(), max_iters=1, batch_size=33)


def test_positional_arguments_go_to_their_knob():
    values, _ = parse(script(), ['a,b.mp4', '--batch_size=2', 'c d.mp4'], positional='names')
    assert values['names'] == ('a,b.mp4', 'c d.mp4') and values['batch_size'] == 2


def test_only_rank_0_prints(monkeypatch, capsys):
    monkeypatch.setenv('RANK', '1')
    configure(script(), argv=['--maybe=3'])
    assert not capsys.readouterr().out


def test_help_is_the_knob_block_and_mistakes_are_one_line(tmp_path):
    program = tmp_path / 'program.py'
    program.write_text(
        '"""Does it."""\nfrom configurator import configure\n\n# size\n'
        'n = 3                # how many\n'
        'name: str | None = None  # of it\n_x = 1\n'
        'LIMIT = 3\nif __name__ == "__main__":\n    configure(globals())\n    print(n, name)\n'
    )

    def run(*argv):
        return subprocess.run(
            [sys.executable, program, *argv],
            capture_output=True,
            text=True,
            cwd='/',
            env=dict(PYTHONPATH='/'.join(__file__.split('/')[:-2])),
        )

    out = run('-h').stdout
    assert (
        'Does it.' in out
        and 'n = 3                # how many' in out
        and 'name: str | None = None  # of it' in out
        and 'LIMIT' not in out
    )
    bad = run('--m=4')
    assert (
        bad.returncode == 1
        and bad.stderr.startswith('error: command line')
        and bad.stderr.count('\n') == 1
        and not bad.stdout
    )
    assert run('--n', '4', '--name=x').stdout.endswith('4 x\n')


@pytest.mark.parametrize('name', ['prepare', 'train', 'eval'])
def test_help_of_the_scripts(name):
    module = __import__(name)
    text = describe(vars(module))
    assert module.__doc__ in text and all(
        re.search(rf'^(\w+, )*{k}\b', text, re.M) for k in knobs(vars(module))
    )


@dataclass
class Model:
    of_data: int  # no default: the data decides, it is no knob
    # sizes
    width: int = 8  # how wide
    kind: Literal['a', 'b'] = 'a'
    rate: 'float | None' = 0.5


@dataclass
class Twice:
    batch_size: int = 3


def test_a_dataclass_joins_the_scripts_knobs(tmp_path, monkeypatch, capsys):
    """One namespace for flags, files, suggestions, the log; the script's globals stay its own."""
    namespace = {**script(), '__file__': __file__}
    before = set(namespace)
    file = tmp_path / 'a.py'
    file.write_text('width = 2 * batch_size\nbatch_size = width + 1\n')
    config = configure(namespace, Model, argv=[str(file), '--kind=b', '--rate', 'none'])
    assert (config['width'], config['batch_size'], config['kind']) == (64, 65, 'b')
    assert config['rate'] is None and config['_source']['width'] == str(file)
    assert set(namespace) == before and namespace['batch_size'] == 65
    for argv, words in (
        (['--widht=3'], "did you mean 'width'"),
        (['--kind=c'], "kind must be 'a' or 'b'"),
        (['--of_data=3'], "there is no 'of_data'"),
    ):
        with pytest.raises(SystemExit, match=words):
            configure(script(), Model, argv=argv)
    with pytest.raises(AssertionError, match='declared twice'):
        configure(script(), Twice, argv=[])
    help_text = describe(namespace, [Model])
    assert '    width: int = 8  # how wide' in help_text and 'configurator.Model' in help_text
