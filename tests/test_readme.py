"""pytest tests/test_readme.py -q      the README keeps its word"""
import importlib.util, re, shlex
from dataclasses import asdict
import pytest
import configurator
from conftest import ROOT
from model import VLConfig

README = (ROOT / 'README.md').read_text(encoding='utf-8')
TEXTS = README + ''.join(p.read_text() for p in [*ROOT.glob('*.py'), *ROOT.glob('config/*.py'), *ROOT.glob('runs/*.sh'), *ROOT.glob('data/*/*.py')])
COMMANDS = sorted({c.rstrip(').,') for c in re.findall(r'(?:python|nproc_per_node=\d+) ((?:\w+/)*\w+\.py(?: "[^"\n]*"| [^#\s;"\'`<&]+)*)', TEXTS)
                   if '$' not in c.replace('=$r', '')})

def script(name):
    spec = importlib.util.spec_from_file_location('script_' + name.replace('/', '_')[:-3], ROOT / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return vars(module)

@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_names_files_and_knobs_that_exist(command):
    """In the README, the docstrings, the configs and the recipes."""
    name, *argv = shlex.split(re.sub(r'\{\w+\}', '8', command.replace('$r', '.5')))
    argv = [a for a in argv if not a.startswith('out/')]                # a former run
    for a in argv:
        assert not a.endswith('.py') or (ROOT / a).exists(), f'{a} of {command} is missing'
    namespace = asdict(VLConfig()) if name == 'model.py' else script(name)
    configurator.parse(namespace, [a for a in argv if a != '-h'], positional='videos' if name == 'prepare.py' else None)

def test_line_counts_are_true():
    stated = re.findall(r'`(\w+\.py)` \((\d+)(?: lines)?\)', README)
    assert len(stated) == 5
    for name, lines in stated:
        assert len((ROOT / name).read_text().splitlines()) == int(lines), name

def test_what_it_links_is_there():
    for link in re.findall(r'\]\((?!http)([^)#]+)\)', README):
        assert (ROOT / link).exists(), link

def test_nothing_is_left_to_fill_in():
    assert not re.findall(r'@[A-Z]{2,}|\bFILL\b|TODO', README + ''.join(p.read_text() for p in ROOT.glob('config/*.py')))
