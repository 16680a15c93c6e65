import os
import subprocess
import sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# small tensors: threads only cost, and the sums are the same everywhere
os.environ.setdefault('OMP_NUM_THREADS', '1')


def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help='also the slow tier')
    parser.addoption('--cuda', action='store_true', help='also the tier of the null GPU')


def pytest_collection_modifyitems(config, items):
    for item in items:
        if 'slow' in item.keywords and not config.getoption('--slow'):
            item.add_marker(pytest.mark.skip(reason='slow tier: --slow'))


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: minutes, or needs a quiet machine')


@pytest.fixture(scope='session')
def scenes(tmp_path_factory):
    """A small set of scenes by the two real programs -> the folder that holds data/scenes and
    videos/."""
    folder = tmp_path_factory.mktemp('scenes')
    make = ['data/scenes/prepare.py', '--n_videos=16', '--scenes_per_video=6', '--size=64']
    prepare = ['prepare.py', f'{folder}/videos', f'--data_dir={folder}/data', '--dataset=scenes']
    for argv in (
        [*make, f'--out={folder}/videos'],
        [*prepare, '--image_size=40', '--patch_size=8'],
    ):
        done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
    return folder
