"""What the kit does with the plugin: conformance, the recipe by its name, the rows in the table of algorithms."""

from __future__ import annotations

import pytest
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.testing import parametrize_with_checks
from support.plugin_pages import assert_in_tables_of_algorithms

from dlmrl_ebpo.components import BlockElbo


@parametrize_with_checks([BlockElbo(), BlockElbo(block_length=3, redraw=True)])
def test_conformance(component, check):
    check(component)


def test_the_recipe_is_found_by_its_name():
    recipe = load_recipe("ebpo")
    assert type(recipe.build_algorithm().likelihood) is BlockElbo
    assert recipe.on_command_line == "ebpo"


def test_the_tables_of_algorithms_have_its_rows():
    assert_in_tables_of_algorithms("ebpo")


@pytest.mark.parametrize("block_length", [0, -1])
def test_a_block_length_out_of_range(block_length):
    with pytest.raises(ValueError, match="block_length must be at least 1"):
        BlockElbo(block_length=block_length)
