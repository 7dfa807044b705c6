"""The entry point: importing this module registers the plugin's components."""

from dlmrl_example.shrunk_leave_one_out import ShrunkLeaveOneOut
from dlmrl_example.stratified_entropy import StratifiedEntropy

__all__ = ["ShrunkLeaveOneOut", "StratifiedEntropy"]
