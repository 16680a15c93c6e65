import contextlib
import io
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# small tensors: threads only cost, and the sums are the same everywhere
os.environ.setdefault('OMP_NUM_THREADS', '1')


def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help='also the slow tier')
    parser.addoption('--cuda', action='store_true', help='also the tier of the null GPU')


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(config, items):
    for item in items:
        # what a costly fixture is made for runs where it is made
        for name in 'trained', 'untrained', 'tasks', 'unbroken', 'ranks', 'finished', 'videos':
            if name in item.fixturenames:
                item.add_marker(pytest.mark.xdist_group(name.removeprefix('un')))
                break
        if 'slow' in item.keywords and not config.getoption('--slow'):
            item.add_marker(pytest.mark.skip(reason='slow tier: --slow'))


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: minutes, or needs a quiet machine')


def script(path, *argv):
    """`python path argv...` from the root -> returncode, stdout, stderr. In this process, which has
    imported torch already: to start Python anew takes seconds."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    before = [(s, signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)]
    was, sys.argv = sys.argv, [str(path), *map(str, argv)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            with contextlib.chdir(ROOT):
                runpy.run_path(str(ROOT / path), run_name='__main__')
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
        err.write('' if isinstance(e.code, int | None) else f'{e.code}\n')
    except Exception:
        code = 1
        err.write(traceback.format_exc())
    finally:
        sys.argv = was
        for s, handler in before:
            signal.signal(s, handler)
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def start(argv, deaf=False):
    """A script in a session of its own, to be signalled. Ctrl-C is as at a terminal, or if `deaf`
    as in a script's background, however the tests were started."""
    ctrl_c = signal.SIG_IGN if deaf else signal.SIG_DFL
    return subprocess.Popen(
        [sys.executable, *map(str, argv)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, ctrl_c),
    )


def wait_for(state, process=None):
    """Until state() is true, as it must be while the process runs; the time limit is only for a
    test that hangs."""
    until = time.monotonic() + 300
    while not state():
        assert not process or process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture(scope='session')
def scenes(tmp_path_factory):
    """A small set of scenes by the two real programs -> the folder that holds data/scenes and
    videos/. Ten a video: one of those held out is a tenth picture of val2014 (tests/test_tasks.py),
    whatever the video's hash says of its split."""
    folder = tmp_path_factory.mktemp('scenes')
    make = ['data/scenes/prepare.py', '--n_videos=10', '--scenes_per_video=10', '--size=64']
    prepare = ['prepare.py', f'{folder}/videos', f'--data_dir={folder}/data', '--dataset=scenes']
    for argv in (
        [*make, f'--out={folder}/videos'],
        [*prepare, '--image_size=40', '--patch_size=8'],
    ):
        done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope='session')
def trained(scenes, tmp_path_factory):
    """Long enough on few scenes to be better than chance on its own training videos."""
    from test_train import command

    out = tmp_path_factory.mktemp('trained') / 'run'
    done = script(
        *command(
            scenes,
            out,
            max_iters=110,
            eval_interval=110,
            learning_rate=1e-2,
            keep_hi=1.0,
            context_s=0.0,
            n_embd=64,
            batch_size=48,
            itm=1.0,
            tag=1.0,
            parts='xmm_text:4,xmm_image:4,amm_text:4,amm_image:4',
        )
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope='session')
def untrained(scenes, tmp_path_factory):
    from test_train import command

    out = tmp_path_factory.mktemp('untrained') / 'run'
    done = script(*command(scenes, out, max_iters=1))
    assert done.returncode == 0, done.stderr
    return out
