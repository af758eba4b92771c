"""The experts of every family that the installed transformers decorates with its interface, computed by ours.

Many models are imported for it, so `make test-transformers` runs this and `make test` does not.
"""

import importlib
import os
import re
from pathlib import Path

import pytest
import torch
import transformers

from isotherm.engines.dispatch import TILE_ROWS
from isotherm.engines.transformers.experts import slot_function

if "ISOTHERM_TEST_LONG" not in os.environ:
    pytest.skip("long: make test-transformers runs this", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("default")  # code of many authors is imported

DECORATED = re.compile(r"^@use_experts_implementation(?:\([^)]*\))?\nclass (\w+)", re.MULTILINE)
EXPERTS, HIDDEN, INNER = 4, 32, 24
ANSWERS = {
    r"latent|intermediate_sizes": None,
    r"experts?$|n_routed": EXPERTS,
    r"mlp_hidden_act": "relu2",
    r"_act$|activation": "silu",
    r"eps$": 1e-6,
    r"limit": 0.7,
    r"softcap": 5.0,
    r"alpha": 1.702,
    r"moe_hidden|hidden_size$|hidden_dim$": HIDDEN,
    r"intermediate|_size$": INNER,
}


class AnyConfig:
    """Answers what experts ask of a configuration, whatever their family calls it."""

    _experts_implementation = "eager"

    def __getattr__(self, name):
        for pattern, answer in ANSWERS.items():
            if re.search(pattern, name):
                return answer
        raise AttributeError(name)


def decorated_classes():
    """(module, class) of all experts that use the interface, read from the sources: nothing is imported."""
    folder = Path(transformers.__file__).parent / "models"
    return [
        (f"transformers.models.{path.parent.name}.{path.stem}", name)
        for path in sorted(folder.glob("*/modeling_*.py"))
        for name in DECORATED.findall(path.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize(("module", "name"), decorated_classes())
@torch.inference_mode()
def test_experts_of_a_family_compute_what_their_own_forward_computes(module, name):
    torch.manual_seed(0)
    experts = getattr(importlib.import_module(module), name)(AnyConfig())
    for tensor in experts.parameters():
        torch.nn.init.normal_(tensor, std=0.3)
    rows = torch.randn(2 * TILE_ROWS, HIDDEN)
    compute = slot_function(experts)
    for expert in range(EXPERTS):
        wanted = experts(rows, torch.full((len(rows), 1), expert), torch.ones(len(rows), 1))
        ours = compute(rows.view(2, TILE_ROWS, -1), expert).view(len(rows), -1)
        assert wanted.std() > 0.1
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_the_pattern_finds_what_transformers_decorates():
    assert len(decorated_classes()) > 50
