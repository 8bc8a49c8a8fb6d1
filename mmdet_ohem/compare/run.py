"""One training and test of a comparison: its config, and the folder that it fills."""

import json
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from mmdet_ohem.checkpoint import is_trained, newest_checkpoint
from mmdet_ohem.compare.config_changes import OWN_LOSS
from mmdet_ohem.compare.run_logs import RunLogs, at_the_end
from mmdet_ohem.config import file_text
from mmdet_ohem.runs import budget_unit
from mmdet_ohem.whole_file import whole_file


@dataclass
class Run:
    """One training and test of one sampler with one seed, in a folder of its own.

    Args:
        lr: the learning rate, where it is chosen for each sampler.
    """

    sampler: str
    seed: int
    config: Config
    folder: Path
    lr: float | None = None

    @property
    def name(self) -> str:
        lr = '' if self.lr is None else f', lr {self.lr:g}'
        return f'{self.sampler}{lr}, seed {self.seed}'

    @property
    def config_file(self) -> Path:
        # Not in the folder: there MMEngine writes what it made of a config.
        return self.folder.with_name(f'{self.folder.name}.py')

    @property
    def logs(self) -> RunLogs:
        return RunLogs(self.folder)

    @property
    def length(self) -> int:
        return self.config.train_cfg[budget_unit(self.config)]

    @property
    def unit(self) -> str:
        """What ``length`` counts."""
        return 'it' if 'max_iters' in self.config.train_cfg else 'epoch'

    def num_done(self) -> int:
        """How much of ``length`` the log says is done."""
        if self.unit == 'it':
            return max(self.logs.curve('loss'), default=0)
        return max(self.logs.curve('epoch').values(), default=1) - 1

    @property
    def is_trained(self) -> bool:
        """Whether the checkpoint of the last iteration or epoch is there."""
        return is_trained(self.folder, self.length)

    @property
    def checkpoint(self) -> str | None:
        """Of this training so far; None where none is there that can be read."""
        try:
            return newest_checkpoint(self.folder)[0]
        except ValueError:
            return None

    @property
    def is_finished(self) -> bool:
        return self.logs.result_file.exists()

    def prepare(self) -> None:
        """Write the config of this run.

        How a run is tested may change until it has been. One with another background
        is tested again.

        Raises:
            RuntimeError: the folder has a run of another config.
        """
        path, text = self.config_file, file_text(self.config)
        if path.exists() and path.read_text() != text:
            free = ('background',) if self.is_finished else ('background', 'test')
            if _without(free, path.read_text()) != _without(free, text):
                raise RuntimeError(
                    f'{path} is of another comparison: choose another --work-dir, or '
                    f'remove it and the folder {self.folder.name} beside it.'
                )
            self.logs.result_file.unlink(missing_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            partial.write_text(text)

    def progress(self) -> str:
        curve = self.logs.curve('loss')
        if not curve:
            return self.name
        step, loss = list(curve.items())[-1]
        of = f'/{self.length}' if 'max_iters' in self.config.train_cfg else ''
        return f'{self.name}: iteration {step}{of}, loss {loss:.3f}'

    def loss_curve(self) -> dict[int, float]:
        """The loss over all RoIs by iteration.

        Nothing where the loss is another one, which is no measure for the others.
        """
        return {} if self.sampler in OWN_LOSS else self.logs.loss_curve()

    def save_result(self) -> None:
        """Write what the logs say.

        Raises:
            RuntimeError: the test gave no mAP.
        """
        result = dict(
            sampler=self.sampler,
            seed=self.seed,
            **self.logs.result(self.name),
            loss_all_rois=at_the_end(self.loss_curve()),
        )
        with whole_file(self.logs.result_file) as partial:
            partial.write_text(json.dumps(result))


def _without(starts: tuple[str, ...], text: str) -> dict:
    """A config without the keys that start with certain words."""
    config = Config.fromstring(text, '.py').to_dict()
    return {k: v for k, v in config.items() if not k.startswith(starts)}
