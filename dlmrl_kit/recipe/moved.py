"""What has moved out of the kit into the plugins of its repository, so that whoever misses it is told where it is."""

from __future__ import annotations

MOVED = {
    "ebpo": "dlmrl-ebpo",
    "BlockElbo": "dlmrl-ebpo",
    "d_treerpo": "dlmrl-treerpo",
    "Tree": "dlmrl-treerpo",
    "TreeLevels": "dlmrl-treerpo",
    "SiblingLeaveOneOut": "dlmrl-treerpo",
    "SelfDistillation": "dlmrl-treerpo",
}
"""The distribution of the plugin by the name of a recipe or component."""


def moved_to(name: str) -> str:
    """Returns the distribution of the plugin that a recipe or component has moved into; "" for any other."""
    return MOVED.get(name.rsplit(".", 1)[-1], "")


def moved_hint(name: str) -> str:
    """Says where a recipe or component is that the kit has no more, as the end of a message; "" if it had none."""
    plugin = moved_to(name)
    if not plugin:
        return ""
    return f"; it has moved into the plugin {plugin}: pip install ./plugins/{plugin} in the kit's repository"
