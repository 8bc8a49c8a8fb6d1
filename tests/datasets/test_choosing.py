"""Proposed values, worked out by hand."""

import re
from pathlib import Path

import numpy as np
import pytest

from mmdet_ohem.datasets import LabelledImage, choose_min_size, choose_num, choose_scale


def images_of(size: tuple[int, int], sides: list[float]) -> list[LabelledImage]:
    """Ten images with square objects of these sides."""
    boxes = np.array([[5, 5, 5 + side, 5 + side] for side in sides])
    names, ignored = ['cell'] * len(sides), np.zeros(len(sides), bool)
    return [LabelledImage(Path('a'), size, boxes, names, ignored)] * 10


@pytest.mark.parametrize(
    'size, side, scale, words',
    [
        ((640, 480), 100, (400, 300), 'as in the examples'),  # need not be larger
        ((800, 600), 32, (600, 450), '24 px, three cells'),  # 24 / 32 of its size
        ((300, 300), 10, (600, 600), 'more than twice'),
        ((120, 90), 30, (240, 180), 'more than twice'),
        ((4000, 3000), 40, (1000, 750), "10 px; .*Fast R-CNN's limit"),
    ],
)
def test_the_scale_keeps_small_objects_visible(size, side, scale, words):
    choice = choose_scale(images_of(size, [side] * 10))
    assert choice.value == scale
    assert re.search(words, choice.reason), choice.reason


def test_the_shortest_proposal_is_half_of_the_shortest_side():
    images = images_of((300, 300), [11, *[30] * 9])
    images[0].boxes[0] = [5, 5, 25, 14]  # 20 x 9
    assert choose_min_size(images).value == 4
    assert choose_min_size(images_of((300, 300), [3] * 5)).value == 2
    # What is ignored or has no area says nothing.
    images = images_of((300, 300), [2, 0, 30])
    images[0].ignored[0] = True
    assert choose_min_size(images).value == 15


@pytest.mark.parametrize('choose', [choose_scale, choose_min_size])
def test_no_object_that_counts_is_one_sentence(choose):
    images = images_of((300, 300), [0, 30])
    images[0].ignored[1] = True
    with pytest.raises(ValueError, match='None of 10 annotated images has an object'):
        choose(images)


@pytest.mark.parametrize(
    'num_proposals, num', [([2000], 64), ([256, 300], 64), ([123], 24), ([20], 8)]
)
def test_num_is_at_most_a_quarter_of_the_proposals(num_proposals, num):
    assert choose_num(num_proposals).value == num
