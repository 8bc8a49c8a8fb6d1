"""What a release goes by: one version, its changelog, and the workflow."""

import re

import yaml
from support.tools import ROOT

import mmdet_ohem

WORKFLOW = yaml.safe_load((ROOT / '.github/workflows/release.yml').read_text())


def test_the_version_is_in_the_changelog_and_in_the_citation():
    version = mmdet_ohem.__version__
    assert re.search(
        f'^## {re.escape(version)}$', (ROOT / 'CHANGELOG.md').read_text(), re.MULTILINE
    )
    assert f'\nversion: {version}\n' in (ROOT / 'CITATION.cff').read_text()
    assert (
        "version = { attr = 'mmdet_ohem.__version__' }"
        in (ROOT / 'pyproject.toml').read_text()
    )


def test_nothing_is_published_that_was_not_built_checked_and_tested():
    jobs = WORKFLOW['jobs']
    assert jobs['test']['needs'] == 'build' and jobs['publish']['needs'] == 'test'
    built = [step.get('run', '') for step in jobs['build']['steps']]
    assert built.index('python -m build') < built.index('twine check --strict dist/*')
    # Without a tag nothing is published, and no other job may speak to the index.
    assert jobs['publish']['if'] == "startsWith(github.ref, 'refs/tags/v')"
    assert [name for name, job in jobs.items() if 'permissions' in job] == ['publish']
    assert jobs['publish']['permissions'] == {'id-token': 'write'}
    assert 'secrets.' not in (ROOT / '.github/workflows/release.yml').read_text()
