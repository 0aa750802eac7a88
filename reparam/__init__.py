"""Rewrite a network into an equivalent one with fewer operations: merge its branches, remove its masked channels."""

from reparam.blocks import (
    ACBlock,
    Block,
    ChannelMask,
    ConvBlock,
    DiverseBranchBlock,
    LightBlock,
    MobileOneBlock,
    PlainBlock,
    RepVGGBlock,
)
from reparam.counting import Counts, count
from reparam.equivalence import Difference, compare
from reparam.errors import ReparamError
from reparam.fuse import FuseReport, fold_norms, fuse, fuse_exactly, fuse_with_report
from reparam.groups import ChannelGroup, channel_groups, insert_masks
from reparam.squeeze import squeeze

__all__ = [
    "ACBlock",
    "Block",
    "ChannelGroup",
    "ChannelMask",
    "ConvBlock",
    "Counts",
    "Difference",
    "DiverseBranchBlock",
    "FuseReport",
    "LightBlock",
    "MobileOneBlock",
    "PlainBlock",
    "RepVGGBlock",
    "ReparamError",
    "channel_groups",
    "compare",
    "count",
    "fold_norms",
    "fuse",
    "fuse_exactly",
    "fuse_with_report",
    "insert_masks",
    "squeeze",
]
