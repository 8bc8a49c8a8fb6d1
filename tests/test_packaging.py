"""The package from a wheel, from `mim install -e .`, and MMDetection's own tools on it.

Each environment is a new one that borrows PyTorch, mmcv and the like from the one that
runs the tests, but not mmdet_ohem. openmim and build tools come from pip's registry.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from support.tools import ROOT, small_config

pytestmark = pytest.mark.slow

OHEM = 'fast_rcnn_small_ohem_lookalikes.py'
INHERIT = f"__import__('mmdet_ohem').config_file('{OHEM}')"
BORROWED = sysconfig.get_path('purelib')
# For those who develop or study the package.
NOT_IN_A_WHEEL = {
    'benchmark.py',
    'check_cuda.py',
    'corrupt_labels.py',
    'make_demo.sh',
    'offline_bootstrap.py',
    'setup.sh',
}
MMDET_TOOLS = Path(BORROWED, 'mmdet', '.mim', 'tools')
# Every name that the configs of the wheel give to a class or function of the package.
RESOLVE = """
import ast, json, sys
from pathlib import Path
import mmdet_ohem
from mmdet_ohem import registry
from mmengine.registry import Registry
from mmengine.utils import get_object_from_string

registries = [one for one in vars(registry).values() if isinstance(one, Registry)
              and one.scope == 'mmdet_ohem']
configs = Path(mmdet_ohem.__file__).parent / '.mim' / 'configs'
names = set()
for path in configs.rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and str(node.value).startswith('mmdet_ohem.'):
            names.add(node.value)
lost = [name for name in names
        if not any(one.get(name) for one in registries)
        and get_object_from_string(name) is None]
registered = sorted(f'{one.name}.{name}' for one in registries
                    for name in one.module_dict)
print(json.dumps([sorted(names), lost, registered]))
"""


def run(*command, cwd: Path) -> subprocess.CompletedProcess:
    """Run outside the repository; a failure shows what the command said."""
    environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=dict(environment, OMP_NUM_THREADS='1', COLUMNS='200'),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (
        f'{command}\n{done.stdout[-2000:]}{done.stderr[-4000:]}'
    )
    return done


def new_environment(folder: Path) -> Path:
    """A virtual environment; returns its folder of programs."""
    venv.create(folder)
    programs = folder / 'bin'
    purelib = run(
        programs / 'python',
        '-c',
        'import sysconfig; print(sysconfig.get_path("purelib"))',
        cwd=folder,
    ).stdout.strip()
    # What is installed here comes first on the path, what is borrowed after it.
    Path(purelib, 'borrowed.pth').write_text(f'{BORROWED}\n')
    return programs


def pip_install(programs: Path, *what) -> None:
    run(programs / 'python', '-m', 'pip', 'install', *what, cwd=programs)


def imported_from(programs: Path, cwd: Path) -> Path:
    command = "import importlib.util as i; print(i.find_spec('mmdet_ohem').origin)"
    return Path(run(programs / 'python', '-c', command, cwd=cwd).stdout.strip())


def files_of_mim(folder: Path) -> dict[str, bytes]:
    """What mim needs, under the names it has in `.mim`."""
    paths = [folder / 'model-index.yml', *(folder / 'configs').rglob('*.py')]
    paths += [*(folder / 'tools').glob('*.py'), *(folder / 'tools').glob('*.sh')]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in paths
        if path.name not in NOT_IN_A_WHEEL
    }


def files_of_wheel(wheel: Path) -> dict[str, bytes]:
    prefix = 'mmdet_ohem/.mim/'
    with zipfile.ZipFile(wheel) as file:
        names = [name for name in file.namelist() if name.startswith(prefix)]
        return {name.removeprefix(prefix): file.read(name) for name in names}


def build_wheel(source: Path, folder: Path) -> Path:
    options = ('--no-deps', '--no-build-isolation', '--wheel-dir', folder)
    run(sys.executable, '-m', 'pip', 'wheel', *options, source, cwd=folder)
    (wheel,) = folder.glob('*.whl')
    return wheel


@pytest.fixture(scope='module')
def checkout(tmp_path_factory) -> Path:
    """What git has or would add, in a repository of its own."""
    checkout = tmp_path_factory.mktemp('a clone') / 'ohem'
    names = ('pyproject.toml', 'setup.py', 'README.md', 'LICENSE', '.gitignore')
    for name in (*names, 'model-index.yml'):
        checkout.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, checkout)
    for name in ('configs', 'mmdet_ohem', 'tools'):
        shutil.copytree(
            ROOT / name,
            checkout / name,
            symlinks=True,
            ignore=shutil.ignore_patterns('__pycache__'),
        )
    run('git', 'init', '--quiet', '.', cwd=checkout)
    run('git', 'add', '--all', cwd=checkout)
    return checkout


@pytest.fixture(scope='module')
def wheel(checkout, tmp_path_factory) -> Path:
    return build_wheel(checkout, tmp_path_factory.mktemp('wheel'))


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory) -> Path:
    """The programs of an environment with the wheel in it."""
    folder = tmp_path_factory.mktemp('environment')
    programs = new_environment(folder)
    # Without an index: what the package asks for is there already. On the onedl forks
    # pip does not know it, for they have other names (docs/install.md).
    on_forks = not list(distributions(name='mmdet'))
    pip_install(programs, '--no-deps' if on_forks else '--no-index', wheel)
    assert imported_from(programs, folder).is_relative_to(folder)
    return programs


def test_the_wheel_holds_configs_tools_and_index(checkout, wheel):
    assert files_of_wheel(wheel) == files_of_mim(checkout)


def test_a_wheel_from_the_source_archive_holds_the_same(checkout, wheel, tmp_path):
    build = 'import sys; from setuptools import build_meta as build; build.build_sdist'
    run(sys.executable, '-c', f'{build}(sys.argv[1])', tmp_path, cwd=checkout)
    (archive,) = tmp_path.glob('*.tar.gz')
    assert files_of_wheel(build_wheel(archive, tmp_path)) == files_of_wheel(wheel)


def test_the_wheel_resolves_every_name_of_the_package(installed, tmp_path):
    def resolved(python: Path) -> list:
        done = run(python, '-c', RESOLVE, cwd=tmp_path)
        return json.loads(done.stdout.splitlines()[-1])

    named, lost, registered = resolved(installed / 'python')
    assert 'mmdet_ohem.OHEMSampler' in named and not lost
    registering = subprocess.run(
        ['git', 'grep', '-hA3', 'register_module', '--', 'mmdet_ohem'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout
    in_source = re.findall(r'^(?:class|def) (\w+)', registering, re.MULTILINE)
    assert sorted(name.partition('.')[2] for name in registered) == sorted(in_source)


@pytest.fixture(scope='module')
def trained(installed, lookalikes, tmp_path_factory) -> Path:
    """The folder of a config that inherits ours, which MMDetection's tool trained."""
    folder = tmp_path_factory.mktemp('trained')
    config = small_config(folder / 'mine.py', lookalikes, OHEM)
    config.write_text(
        config.read_text().replace(repr(str(ROOT / 'configs' / OHEM)), INHERIT)
    )
    assert str(ROOT) not in config.read_text()
    run(installed / 'python', MMDET_TOOLS / 'train.py', 'mine.py', cwd=folder)
    return folder


def test_mmdetections_tools_train_and_test_a_config_that_inherits(installed, trained):
    work_dir = trained / 'work_dirs' / 'mine'
    sampler = Config.fromfile(work_dir / 'mine.py').model.train_cfg.rcnn.sampler
    assert sampler.type == 'mmdet_ohem.OHEMSampler'
    test = (installed / 'python', MMDET_TOOLS / 'test.py')
    tested = run(*test, 'mine.py', work_dir / 'iter_6.pth', cwd=trained)
    assert 'pascal_voc/mAP' in tested.stdout


def test_mmdetections_tools_train_a_pure_python_config(
    installed, trained, lookalikes, tmp_path
):
    """To the weights of the same config with names."""
    strings = small_config(tmp_path / 'strings.py', lookalikes, OHEM)
    text = Config.fromfile(strings).pretty_text
    for name in ('OHEMSampler', 'LoadStoredProposals', 'SeedEachIterationHook'):
        assert f"'mmdet_ohem.{name}'" in text
        text = text.replace(f"'mmdet_ohem.{name}'", name)
    (tmp_path / 'pure.py').write_text(
        'from mmdet_ohem import OHEMSampler\n'
        'from mmdet_ohem.proposals import LoadStoredProposals\n'
        f'from mmdet_ohem.seed_hook import SeedEachIterationHook\n{text}'
    )
    run(installed / 'python', MMDET_TOOLS / 'train.py', 'pure.py', cwd=tmp_path)
    pure, named = (
        torch.load(folder / 'iter_6.pth', weights_only=True)['state_dict']
        for folder in (tmp_path / 'work_dirs/pure', trained / 'work_dirs/mine')
    )
    assert pure.keys() == named.keys()
    for name, weights in named.items():
        assert torch.equal(pure[name], weights), name


@pytest.fixture(scope='module')
def mim(tmp_path_factory) -> Path:
    """The programs of an environment with openmim, as the README installs it."""
    folder = tmp_path_factory.mktemp('openmim')
    programs = new_environment(folder)
    pip_install(programs, 'openmim')
    pip_install(programs, 'setuptools>=77,<81')
    return programs


@pytest.fixture
def workplace(lookalikes, tmp_path) -> Path:
    """A folder with the data where the configs look for them."""
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'lookalikes').symlink_to(lookalikes)
    return tmp_path


SHORT = ('--gpus', 0, '--cfg-options', 'train_cfg.max_iters=2')
SHORT += ('train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2')


def test_mim_trains_tests_and_searches_an_editable_install(checkout, mim, workplace):
    run(mim / 'mim', 'install', '-e', '.', cwd=checkout)
    assert imported_from(mim, workplace) == checkout / 'mmdet_ohem' / '__init__.py'
    status = run('git', 'status', '--porcelain', cwd=checkout).stdout.splitlines()
    assert all(line.startswith('A ') for line in status), status

    run(mim / 'mim', 'train', 'mmdet_ohem', OHEM, *SHORT, cwd=workplace)
    checkpoint = workplace / 'work_dirs' / Path(OHEM).stem / 'iter_2.pth'
    tested = run(
        *(mim / 'mim', 'test', 'mmdet_ohem', OHEM),
        *('--checkpoint', checkpoint, '--gpus', 0),
        cwd=workplace,
    )
    assert 'pascal_voc/mAP' in tested.stdout
    run(
        *(mim / 'mim', 'gridsearch', 'mmdet_ohem', OHEM, *SHORT),
        *('--work-dir', 'grid'),
        *('--search-args', '--optim_wrapper.optimizer.lr 0.01 0.02'),
        cwd=workplace,
    )
    rates = {
        Config.fromfile(path).optim_wrapper.optimizer.lr
        for path in workplace.glob('grid*/*.py')
        if (path.parent / 'iter_2.pth').exists()
    }
    assert rates == {0.01, 0.02}
    found = run(mim / 'mim', 'search', 'mmdet_ohem', cwd=workplace).stdout
    assert found.count('config id') == len(list((ROOT / 'configs').glob('*.py')))


def test_mim_trains_from_a_wheel(wheel, mim, workplace):
    pip_install(mim, '--force-reinstall', '--no-deps', wheel)
    assert imported_from(mim, workplace).is_relative_to(mim.parent)
    run(mim / 'mim', 'train', 'mmdet_ohem', OHEM, *SHORT, cwd=workplace)
    assert (workplace / 'work_dirs' / Path(OHEM).stem / 'iter_2.pth').exists()
