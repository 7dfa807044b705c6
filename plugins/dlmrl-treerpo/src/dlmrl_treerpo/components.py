"""The entry point: importing this module registers the plugin's components and declares its keys."""

from dlmrl_treerpo.self_distillation import SelfDistillation
from dlmrl_treerpo.sibling_leave_one_out import SiblingLeaveOneOut
from dlmrl_treerpo.tree import Tree
from dlmrl_treerpo.tree_levels import TreeLevels

__all__ = ["SelfDistillation", "SiblingLeaveOneOut", "Tree", "TreeLevels"]
