"""pytest tests/test_readme.py -q      the README and the lab log keep their word"""

import importlib.util, os, re, shlex
import pytest
import configurator
from conftest import ROOT
from model import VLConfig

README = (ROOT / 'README.md').read_text(encoding='utf-8')
RESULTS = (ROOT / 'runs/RESULTS.md').read_text(encoding='utf-8')
PLACES = ['*.py', 'config/*.py', 'data/*.py', 'data/*/*.py', 'runs/*.py', 'runs/*.sh']
SOURCES = [path.read_text(encoding='utf-8') for place in PLACES for path in ROOT.glob(place)]
SOURCE_OF_EVAL = (ROOT / 'eval.py').read_text(encoding='utf-8')
TEXTS = re.sub(r'\\\n\s*', '', '\n'.join([README, RESULTS, *SOURCES]))  # continued lines
COMMAND = r'''(?:python|nproc_per_node=\d+) ((?:\w+/)*\w+\.py(?: "[^"\n]*"| [^#\s;"'`<&|]+)*)'''
COMMANDS = sorted({c.rstrip(').,:') for c in re.findall(COMMAND, TEXTS) if '$' not in c})


def load(name):
    spec = importlib.util.spec_from_file_location('script_' + re.sub(r'\W', '_', name), ROOT / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings(name, script, argv):
    """The dataclasses that a script hands to configure."""
    if name == 'train.py':
        return [VLConfig]
    found = []
    if name == 'eval.py':
        given = [a.partition('=')[2] for a in argv if a.startswith('--task=')]
        for task in (given or [script.task])[-1].split(','):
            if (ROOT / f'runs/{task}.py').exists():
                module = load(f'runs/{task}.py')
                found += [module.Knobs] if hasattr(module, 'Knobs') else []
            else:
                assert re.search(rf'\b{task}\b', SOURCE_OF_EVAL), f'there is no task {task}'
    return found


@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_names_files_and_knobs_that_exist(command):
    """In the README, the log, the docstrings, the configs and the recipes."""
    name, *argv = shlex.split(re.sub(r'\{\w+\}', '8', command))
    argv = [a for a in argv if not a.startswith('out/')]  # a former run
    for a in argv:
        assert not a.endswith('.py') or (ROOT / a).exists(), f'{a} of {command} is missing'
    script = load(name)
    if name == 'runs/gpu.py':
        assert all(callable(getattr(script, step)) for step in argv)
        return
    if name == 'runs/kinds.py':  # takes train.py's
        name, script = 'train.py', script.train
    configurator.parse(
        vars(script),
        [a for a in argv if a != '-h'],
        positional='videos' if name == 'prepare.py' else None,
        settings=settings(name, script, argv),
    )


def test_every_preset_it_names_exists():
    for name in re.findall(r'config/\w+\.py', README + RESULTS):
        assert (ROOT / name).exists(), name


def test_it_is_short():
    lines = README.splitlines()
    assert len(lines) <= 180
    assert max(len(line) for line in lines if not line.startswith('|')) <= 125


def test_it_has_few_words():
    if 'TIKTOKEN_CACHE_DIR' not in os.environ:
        pytest.skip('cl100k_base is not at hand')
    import tiktoken

    assert len(tiktoken.get_encoding('cl100k_base').encode(README)) <= 4800


@pytest.mark.parametrize('page', ['README.md', 'runs/RESULTS.md'])
def test_what_it_links_is_there(page):
    text = (ROOT / page).read_text(encoding='utf-8')
    for link in re.findall(r'\]\((?!http)([^)#]+)\)', text):
        assert ((ROOT / page).parent / link).exists(), link


def test_nothing_is_left_to_fill_in():
    configs = [path.read_text(encoding='utf-8') for path in ROOT.glob('config/*.py')]
    assert not re.findall(r'@[A-Z]{2,}|\bFILL\b|TODO', ''.join([README, RESULTS, *configs]))
