"""What pyproject.toml cannot say; everything else about the package stands there."""

from pathlib import Path

from setuptools import setup
from setuptools.command.editable_wheel import editable_wheel


class EditableWheel(editable_wheel):
    """Lets mim and MMEngine find this folder after `pip install -e .`.

    They look for `.mim` in os.path.join(site-packages, <first line of top_level.txt>),
    where an editable install has no package; joined with an absolute path, that is the
    path itself.
    """

    def run(self) -> None:
        self._ensure_dist_info()  # the base class asks for it again; it is made once
        top_level = Path(self.dist_info_dir, 'top_level.txt')
        top_level.write_text(f'{Path(__file__).parent.resolve() / "mmdet_ohem"}\n')
        super().run()


setup(cmdclass={'editable_wheel': EditableWheel})
