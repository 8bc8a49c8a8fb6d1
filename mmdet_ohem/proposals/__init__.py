"""Proposals: the store, the pipeline step that reads it, and what a store is made from
(Selective Search, Fast R-CNN's and MCG's .mat files, MMDetection's dumps)."""

from mmdet_ohem.proposals.boxes import clean_boxes
from mmdet_ohem.proposals.loading import LoadStoredProposals
from mmdet_ohem.proposals.mat import read_mats
from mmdet_ohem.proposals.mcg import read_mcg_folder
from mmdet_ohem.proposals.mmdet_dump import read_dump
from mmdet_ohem.proposals.recall import ProposalRecall, best_ious, measure_recall
from mmdet_ohem.proposals.selective_search import search_images, search_in_order
from mmdet_ohem.proposals.store import ProposalStore, check_target, write_store

__all__ = [
    'LoadStoredProposals',
    'ProposalRecall',
    'ProposalStore',
    'best_ious',
    'check_target',
    'clean_boxes',
    'measure_recall',
    'read_dump',
    'read_mats',
    'read_mcg_folder',
    'search_images',
    'search_in_order',
    'write_store',
]
