"""``python -m dlmrl_example`` prints the path of the recipe, for ``dlmrl train "$(python -m dlmrl_example)"``."""

import sys

from dlmrl_example import RECIPE

sys.stdout.write(f"{RECIPE}\n")
