"""The entry point: importing this module registers the plugin's component."""

from dlmrl_ebpo.block_elbo import BlockElbo

__all__ = ["BlockElbo"]
