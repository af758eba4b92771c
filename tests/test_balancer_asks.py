"""What a balancer has counted for its objective, and the memory that this takes."""

import torch

from isotherm import Balancer, Config, MoEShape, Topology
from memory_link import memory_links

SHAPE, TOPOLOGY = MoEShape(2, 4, 2), Topology(ranks=1, slots_per_rank=5)


def window_of(objective):
    (link,) = memory_links(1)
    config = Config(mode="observe", window_steps=4, objective=objective)
    balancer = Balancer(SHAPE, TOPOLOGY, group=link, weights=None, config=config, inline=True)
    windows = []
    balancer.on_window(windows.append)
    for step in range(4):
        with balancer.step(num_tokens=2):
            for layer in range(2):
                balancer.route(layer, torch.tensor([[0, 1], [0, 2 + step % 2]]))
    balancer.close()
    return windows[0]


def test_reads_are_counted_where_they_are_the_objective():
    assert window_of("reads").active_steps_LE.tolist() == [[4, 4, 2, 2]] * 2
    assert window_of("auto").active_steps_LE is None


def test_memory_tells_of_it():
    plain, reads = (Balancer.memory(SHAPE, TOPOLOGY, reads=reads) for reads in (False, True))
    # Seen and present totals, and a count in the totals and in each snapshot.
    assert reads.device_bytes - plain.device_bytes == 4 * 3 * 8
    assert reads.pinned_bytes - plain.pinned_bytes == 4 * 4 * 8
