"""Builds what a recipe describes: the components that a component refers to first, then the component itself.

Every reference makes an instance of its own, as gin does it: a component that is referred to twice is built twice, and
lists and dictionaries are new for each. Nothing is read from gin's global configuration, or left in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dlmrl_kit.core.blame import blame, culprit, is_foreign, named
from dlmrl_kit.core.errors import DeclarationError, ParameterError, UserError
from dlmrl_kit.recipe.resolve import Block
from dlmrl_kit.recipe.source import Ref, leaves_of, replace_leaves
from dlmrl_kit.recipe.where import BuildError

if TYPE_CHECKING:
    from dlmrl_kit.algorithm.algorithm import Algorithm


def build_blocks(blocks: Sequence[Block], source: str, given: Mapping[str, object] | None = None) -> Any:
    """Constructs the components of a resolved recipe.

    Args:
        blocks: all of them, the root first.
        source: the recipe's file, named by errors that are about no single line.
        given: by the root's parameter, what is taken in place of what the recipe describes.

    Returns:
        An instance of the root.

    Raises:
        BuildError: a component refuses a value or cannot be constructed.
    """
    return _Builder(blocks, source).construct(blocks[0], given or {})


def settings_of(blocks: Sequence[Block], slots: Iterable[str]) -> dict[str, str]:
    """Returns what fills some slots of the root, and all settings of what they refer to: by key, as gin text.

    Args:
        blocks: of a resolved recipe, the root first.
        slots: parameters of the root; they come first.
    """
    by_name, found = _by_name(blocks), dict[str, str]()
    todo = [(blocks[0], blocks[0].parameters[slot]) for slot in slots]
    while todo:
        block, bound = todo.pop(0)
        if bound.key in found:
            continue
        if bound.text is None:
            found[bound.key] = f"a {type(bound.value).__name__}"
            continue
        found[bound.key] = bound.text
        for leaf in leaves_of(bound.value):
            if isinstance(leaf, Ref):
                below = by_name[leaf.scope or block.scope, leaf.name]
                todo += [(below, setting) for setting in below.parameters.values()]
    return found


def check_plan(algorithm: Algorithm, source: str) -> None:
    """Checks that the components of an algorithm fit together.

    Args:
        algorithm: as built.
        source: the recipe's file, for errors.

    Raises:
        BuildError: they do not.
    """
    from dlmrl_kit.algorithm.dataflow import check_groups, make_plan
    from dlmrl_kit.algorithm.elsewhere import check_collector

    try:
        check_groups(algorithm)
        check_collector(algorithm, make_plan(algorithm))
    except Exception as error:  # a plugin's components are asked for their keys, and may raise anything
        raise BuildError(source, _message(error)) from error


class _Builder:
    def __init__(self, blocks: Sequence[Block], source: str) -> None:
        self.root, self.source = blocks[0], source
        self.blocks = _by_name(blocks)

    def construct(self, block: Block, given: Mapping[str, object] = MappingProxyType({})) -> Any:
        """Constructs the component, and new instances of all that it refers to and that is not given."""

        def filled(leaf: Any) -> Any:
            if not isinstance(leaf, Ref):
                return leaf
            return self.construct(self.blocks[leaf.scope or block.scope, leaf.name])

        # A default that gin text cannot hold is left to the constructor.
        bound = [(name, bound.value) for name, bound in block.parameters.items() if bound.text is not None]
        arguments = {name: given[name] if name in given else replace_leaves(value, filled) for name, value in bound}
        try:
            return block.cls(**arguments)
        except Exception as error:  # components may raise anything; a recipe must not end in a traceback
            raise self._refusal(block, error) from error

    def _refusal(self, block: Block, error: Exception) -> BuildError:
        """Describes the error of a constructor, with the component and the line at fault."""
        if block is self.root:
            return BuildError(self.source, _message(error), block.name)
        if isinstance(error, ParameterError) and error.component == block.cls.__name__:
            return _refused_value(block, error)
        blamed = None if culprit(error) is block.cls else blame(error)  # a component that it was given
        names_itself = isinstance(error, DeclarationError)
        whose = named(block.cls) if is_foreign(block.cls) else block.name
        stated = _message(error) if names_itself else str(blamed or f"{whose}: {_message(error)}")
        return BuildError(str(block.where), stated, block.name)


def _by_name(blocks: Sequence[Block]) -> dict[tuple[str, str], Block]:
    return {(block.scope, block.gin_name): block for block in blocks}


def _refused_value(block: Block, error: ParameterError) -> BuildError:
    bound = [block.parameters[name] for name in error.parameters if name in block.parameters]
    where = next((b.where for b in bound if b.where is not None), block.where)
    return BuildError(str(where), error.message(block.name), block.name, error.parameters[0])


def _message(error: Exception) -> str:
    plain = isinstance(error, (ValueError, TypeError, UserError))
    return str(error) if plain else f"{type(error).__name__}: {error}"
