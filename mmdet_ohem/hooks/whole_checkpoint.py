"""A hook that leaves whole checkpoints, whenever a training is killed."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook

from mmdet_ohem.registry import HOOKS
from mmdet_ohem.whole_file import only_one, whole_file

WHOLE_FILES = 'mmdet_ohem.whole_files'


class WholeFileBackend(LocalBackend):
    """The local disk, with files that are there whole or not at all."""

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        with whole_file(filepath) as partial:
            partial.write_bytes(obj)


register_backend(WHOLE_FILES, WholeFileBackend, force=True)


@HOOKS.register_module()
class WholeCheckpointHook(CheckpointHook):
    """Save checkpoints as MMEngine's hook, with the same arguments, so that a training
    can go on however it ended.

    - A checkpoint on the local disk is there whole or not at all, and so is the file
      ``last_checkpoint``, which MMEngine leaves empty for a moment.
    - The oldest one goes when the new one is there, not before, so ``max_keep_ckpts=1``
      is safe; the disk needs room for one more than that number.
    - A second training is refused in a work dir where one is running.
    """

    # The trainings of this process, by work dir. One that was interrupted in a notebook
    # is not told of its end, and the next one takes its place.
    _trainings: ClassVar[dict[str, ExitStack]] = {}

    def before_train(self, runner) -> None:
        super().before_train(runner)
        if self.file_client_args is None and type(self.file_backend) is LocalBackend:
            self.backend_args = dict(backend=WHOLE_FILES)
        if is_main_process():
            self._end_training(runner)
            self._trainings[runner.work_dir] = training = ExitStack()
            training.enter_context(only_one(runner.work_dir, 'a training'))
            if runner._resume and runner._load_from:
                # It may be another one than the file names, or end the training.
                self._write_last(runner, runner._load_from)

    def after_train(self, runner) -> None:
        super().after_train(runner)
        self._end_training(runner)

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        outdated = []
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            # The checkpoint itself names the outdated one as well: if a training is
            # killed before that is removed, `before_train` of the next does it.
            kept = [*self.keep_ckpt_ids, step]
            runner.message_hub.update_info('keep_ckpt_ids', kept)
            outdated = kept[: -self.max_keep_ckpts]
            self.keep_ckpt_ids.append(step)

        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            self._write_last(runner, self.last_ckpt)
            for step in outdated:
                self._remove(self.filename_tmpl.format(step))

    def _end_training(self, runner) -> None:
        self._trainings.pop(runner.work_dir, ExitStack()).close()

    def _write_last(self, runner, checkpoint: str) -> None:
        with whole_file(Path(runner.work_dir, 'last_checkpoint')) as partial:
            partial.write_text(checkpoint)

    def _remove(self, name: str) -> None:
        path = self.file_backend.join_path(self.out_dir, name)
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # DeepSpeed's
            self.file_backend.rmtree(path)
