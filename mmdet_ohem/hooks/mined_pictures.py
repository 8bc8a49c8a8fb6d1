"""A hook that shows, during training, an image with the RoIs that were mined in it."""

from mmengine.dist import master_only

from mmdet_ohem.hooks.watching import WatchingHook, roi_head_of
from mmdet_ohem.mining import Mining
from mmdet_ohem.registry import HOOKS
from mmdet_ohem.visualization import draw_ranking


@HOOKS.register_module()
class MinedPicturesHook(WatchingHook):
    """Show a training image with the RoIs that its sampler chose.

    As in `mmdet_ohem.visualization.draw_ranking`, through the Runner's visualizer, so
    that every backend of it gets the picture: the local one writes it to
    vis_data/vis_image/mined_*.png. Of a cascade the first stage is shown.

    Args:
        interval: iterations between two pictures.
    """

    def __init__(self, interval: int = 500) -> None:
        super().__init__(interval)

    def before_train(self, runner) -> None:
        roi_head_of(runner.model, type(self).__name__)  # now, not after 500 iterations

    @master_only
    def show(self, runner, rankings: list[list[Mining]], data_batch) -> None:
        if not rankings[0]:
            return
        image = data_batch['inputs'][0].permute(1, 2, 0).cpu().numpy()[..., ::-1]
        picture = draw_ranking(image, rankings[0][0])
        runner.visualizer.add_image('mined', picture, step=runner.iter + 1)
