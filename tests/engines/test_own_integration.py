"""The program in docs/write-your-own-integration.md, run as it stands on two ranks."""

import re
from pathlib import Path

import pytest

from ranks import run_ranks

PAGE = Path(__file__).parents[2] / "docs" / "write-your-own-integration.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_page(rank):
    """What the blocks leave behind, run one after the other as one program."""
    program = {"__name__": "page"}
    text = PAGE.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        # Lines are numbered as in the page, so that an error names its place.
        lines = "\n" * text.count("\n", 0, block.start(1)) + block[1]
        exec(compile(lines, str(PAGE), "exec"), program)
    statistics = program["balancer"].statistics()
    return {
        "heat": program["window"].heat_LE.sum(axis=1).tolist(),
        "moves": statistics.moves,
        "waits": statistics.waits,
        "equal": program["ours"].equal(program["wanted"]),
        "orders": program["orders"],
        "finding": program["finding"],
    }


@pytest.mark.timeout(320)
def test_the_page_counts_routes_moves_and_proves(tmp_path):
    for seen in run_ranks(run_page, 2, tmp_path, timeout=300.0):
        assert seen["heat"] == [4 * 2 * 20 * 2] * 2, "4 steps of 2 ranks, 20 tokens, 2 choices"
        assert seen["moves"] > 0
        assert seen["waits"] == 0
        assert seen["equal"]
        assert seen["orders"] > 10
        assert "written after it was handed over" in seen["finding"]
