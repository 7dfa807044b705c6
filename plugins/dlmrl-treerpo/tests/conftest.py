"""Settings of all tests: one thread, as in the kit's; three processes that talk to each other."""

from __future__ import annotations

import pytest
import torch
from support.several import Pool

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pool(tmp_path_factory):
    """Three processes in which cases run together."""
    made = Pool(tmp_path_factory.mktemp("several"))
    yield made
    made.close()
