"""The set-up files agree with each other, and setup.sh speaks clearly.

Nothing is installed here: setup.sh is sourced and its functions are called one by one.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def run(command, cwd=ROOT, **variables):
    """Run a shell command as from a terminal, though the tests run under make."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(('MAKE', 'MFLAGS', 'PINS', 'FORKS', 'MMCV_FIND_LINKS'))
    }
    return subprocess.run(
        ['bash', '-c', command],
        cwd=cwd,
        env=inherited | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


def project():
    """The table [project] of pyproject.toml."""
    tomllib = pytest.importorskip('tomllib', reason='new in Python 3.11')
    return tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']


def requirement_lines():
    """The pins as pip reads them, and before them mmcv's, which is a comment."""
    text = (ROOT / 'requirements.txt').read_text()
    (mmcv,) = re.findall(r'^# (mmcv==.*)$', text, flags=re.MULTILINE)
    lines = [line for line in text.splitlines() if line and not line.startswith('#')]
    return [mmcv, *lines]


def pinned_versions():
    return dict(line.split('==') for line in requirement_lines())


@pytest.fixture
def sandbox(tmp_path):
    """A root that holds setup.sh, requirements.txt and an empty .venv."""
    root = tmp_path / 'a clone'
    (root / 'tools').mkdir(parents=True)
    (root / '.venv' / 'bin').mkdir(parents=True)
    shutil.copy(ROOT / 'requirements.txt', root)
    shutil.copy(ROOT / 'tools' / 'setup.sh', root / 'tools')
    return root


def test_requirements_are_exact_pins():
    for line in requirement_lines():
        assert re.fullmatch(r'[a-z0-9-]+==[0-9.]+', line), line


def test_pins_are_inside_the_ranges_of_the_package():
    pins = pinned_versions()
    extras = project()['optional-dependencies'].values()
    for text in sum(extras, project()['dependencies']):
        requirement = Requirement(text)
        assert pins[requirement.name] in requirement.specifier, text


def test_package_does_not_ask_pip_for_mmcv():
    assert 'mmcv' not in {Requirement(r).name for r in project()['dependencies']}


def test_pip_alone_installs_everything_but_mmcv():
    assert 'mmcv' not in {Requirement(r).name for r in requirement_lines()[1:]}
    text = (ROOT / 'requirements.txt').read_text()
    assert f'--no-build-isolation --no-deps {requirement_lines()[0]}\n' in text


def test_both_opencv_builds_are_of_one_version():
    pins = pinned_versions()
    assert pins['opencv-python'] == pins['opencv-contrib-python-headless']


@pytest.mark.parametrize('file', ['Makefile', '.ci/run', '.pre-commit-config.yaml'])
def test_pins_stand_in_requirements_alone(file):
    text = (ROOT / file).read_text()
    assert not re.search(r'==|rev:', text)


def test_ci_runs_lint_and_test():
    script = ROOT / '.ci' / 'run'
    assert os.access(script, os.X_OK)
    made = re.findall(r'^make \w+$', script.read_text(), flags=re.MULTILINE)
    assert made == ['make lint', 'make test']


def test_ci_stops_with_an_error_when_lint_fails(tmp_path):
    (tmp_path / '.ci').mkdir()
    shutil.copy(ROOT / '.ci' / 'run', tmp_path / '.ci')
    (tmp_path / 'Makefile').write_text('lint:\n\tfalse\ntest:\n\techo tested\n')
    result = run('.ci/run', cwd=tmp_path)
    assert result.returncode != 0
    assert 'tested' not in result.stdout


def test_pre_commit_runs_make_lint():
    config = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())
    (hook,) = config['repos'][0]['hooks']
    assert hook['entry'] == 'make lint'


def test_make_alone_prints_every_target():
    result = run('make')
    assert result.returncode == 0, result.stderr
    for target in ('setup', 'demo', 'test', 'lint'):
        assert re.search(rf'^  {target}\t\S', result.stdout, flags=re.MULTILINE)


def test_make_test_hands_its_arguments_to_pytest():
    result = run('make --dry-run test ARGS="-k sampler"')
    assert '-m pytest -k sampler' in result.stdout


def test_pins_variable_replaces_the_pin_of_that_name_only():
    result = run('source tools/setup.sh; pins', PINS='torch==2.1.2 numpy<2')
    expected = []
    for line in requirement_lines():
        name = line.split('==')[0]
        expected.append({'torch': 'torch==2.1.2', 'numpy': 'numpy<2'}.get(name, line))
    assert result.stdout.splitlines() == expected


def test_forks_take_the_place_of_their_originals():
    result = run('source tools/setup.sh; pins; pin mmcv; pin mmdet', FORKS='1')
    forks = dict(
        mmcv='onedl-mmcv==2.3.6',
        mmengine='onedl-mmengine==0.10.12',
        mmdet='onedl-mmdetection==3.5.1',
    )
    names = [(line.split('==')[0], line) for line in requirement_lines()]
    expected = [forks.get(name, line) for name, line in names]
    expected += [forks['mmcv'], forks['mmdet']]
    assert result.stdout.splitlines() == expected


@pytest.mark.parametrize(
    ('forks', 'installed', 'fits'),
    [
        ('1', 'mmdet==3.3.0', False),
        ('1', 'onedl-mmdetection==3.5.1', True),
        ('', 'onedl-mmdetection==3.5.1', False),
        ('', 'mmdet==3.3.0', True),
    ],
)
def test_forks_and_their_originals_are_not_mixed(sandbox, forks, installed, fits):
    fake = sandbox / '.venv' / 'bin' / 'python'
    fake.write_text(f'#!/bin/sh\necho torch==2.13.0\necho {installed}\n')
    fake.chmod(0o755)
    command = 'source tools/setup.sh; check_no_mixture'
    result = run(command, cwd=sandbox, FORKS=forks)
    assert (result.returncode == 0) == fits
    assert fits or 'remove the folder .venv to change' in result.stderr


def test_pins_variable_refuses_an_unknown_package():
    result = run('source tools/setup.sh; pins', PINS='tortch==2.1.2')
    assert result.returncode != 0
    assert "PINS names 'tortch==2.1.2'" in result.stderr


def test_missing_python_names_the_debian_packages(sandbox):
    result = run('source tools/setup.sh; PATH=/nowhere; find_python', cwd=sandbox)
    assert result.returncode != 0
    assert 'apt-get install python3 python3-venv python3-dev' in result.stderr


def test_missing_venv_module_names_the_debian_package(sandbox):
    # A Python of the right version in which every further `import` fails.
    fake = sandbox / 'python3'
    fake.write_text('#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\n')
    fake.chmod(0o755)
    result = run('PATH="$PWD:$PATH"; source tools/setup.sh; make_venv', cwd=sandbox)
    assert result.returncode != 0
    assert 'apt-get install python3-venv' in result.stderr


def test_missing_compiler_names_the_debian_package(sandbox):
    result = run('source tools/setup.sh; check_build_tools', cwd=sandbox, CXX='no-c++')
    assert result.returncode != 0
    assert 'apt-get install g++' in result.stderr


def test_missing_python_headers_name_the_debian_package(sandbox):
    fake = sandbox / '.venv' / 'bin' / 'python'
    fake.write_text('#!/bin/sh\necho /nowhere/include\n')
    fake.chmod(0o755)
    result = run('source tools/setup.sh; check_build_tools', cwd=sandbox, CXX='true')
    assert result.returncode != 0
    assert '/nowhere/include/Python.h' in result.stderr
    assert 'apt-get install python3-dev' in result.stderr


def test_ready_mmcv_wheels_need_no_compiler(sandbox):
    result = run(
        'source tools/setup.sh; check_build_tools',
        cwd=sandbox,
        CXX='no-c++',
        MMCV_FIND_LINKS='wheels.html',
    )
    assert result.returncode == 0, result.stderr


def test_slow_step_shows_that_it_is_alive(sandbox):
    result = run(
        'source tools/setup.sh;'
        'slow() { echo "[2/77] c++ nms.cpp"; sleep 1; };'
        'with_progress Building slow',
        cwd=sandbox,
        PROGRESS_SECONDS='0.2',
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith('Building\n')
    assert re.search(r'^  0:0\d \[2/77\]$', result.stdout, flags=re.MULTILINE)


def test_failed_step_shows_the_end_of_its_log(sandbox):
    result = run(
        'source tools/setup.sh;'
        'broken() { seq 100; echo "nms.cpp: error"; return 3; };'
        'with_progress Building broken; echo went on',
        cwd=sandbox,
    )
    assert result.returncode != 0
    assert 'nms.cpp: error' in result.stderr
    assert "this step failed: 'Building'" in result.stderr
    assert '\n71\n' not in result.stderr  # the last 30 lines: 72 to 100, and the error
    assert 'went on' not in result.stdout


# setup.sh with pip written down instead of run; the operators work after `builds`.
FAKE_PIP = """
source tools/setup.sh
check_nvcc() { :; }
pip_install() { echo "$*" >>calls; }
mmcv_works() { (($(wc -l <calls) >= builds)); }
install_mmcv
"""


@pytest.mark.parametrize('builds', [1, 2])
def test_mmcv_that_does_not_work_is_built_again_past_the_cache(sandbox, builds):
    result = run(FAKE_PIP, cwd=sandbox, builds=str(builds))
    assert result.returncode == 0, result.stderr
    calls = (sandbox / 'calls').read_text().splitlines()
    assert ['--no-cache-dir' in call for call in calls] == [False, True][:builds]
    assert all('--no-build-isolation' in call for call in calls)


def test_mmcv_that_never_works_is_one_clear_error(sandbox):
    result = run(FAKE_PIP, cwd=sandbox, builds='3')
    assert result.returncode != 0
    assert 'do not run with this PyTorch' in result.stderr
    assert len((sandbox / 'calls').read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ('forks', 'name'), [('', 'mmcv'), ('1', 'onedl-mmcv')], ids=['pins', 'forks']
)
def test_a_page_of_wheels_never_ends_in_compiling(sandbox, forks, name):
    page = dict(MMCV_FIND_LINKS='wheels.html', FORKS=forks, builds='1')
    result = run(FAKE_PIP, cwd=sandbox, **page)
    assert result.returncode == 0, result.stderr
    (call,) = (sandbox / 'calls').read_text().splitlines()
    assert call.endswith(f' --find-links wheels.html --only-binary {name}')
