"""Weights of every kind, bit for bit, from rank to rank: threads for ranks, over the real transports."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from isotherm import IsothermError, Topology
from isotherm.mover import Carrier, CheckedTransport, ExpertWeights, Fill, HostTransport
from isotherm.streams import backend_for
from memory_link import memory_links

TOPOLOGY = Topology(ranks=2, slots_per_rank=3)
LAYERS = 2
KINDS = {
    "bf16": (torch.bfloat16, (3, 2)),
    "bits": (torch.uint8, (5,)),  # packed, two numbers of four bits in each
    "flags": (torch.bool, (3,)),
    "fp32": (torch.float32, (2, 2)),
    "fp8": (torch.float8_e4m3fn, (3, 3)),
    "long": (torch.int64, (1,)),
    "scale": (torch.float16, ()),
}


def random_bits(dtype, shape):
    """Any bits, those of NaNs among them."""
    if dtype is torch.bool:
        return torch.rand(shape) > 0.5
    nbytes = dtype.itemsize * max(1, torch.Size(shape).numel())
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8).view(dtype).view(shape).clone()


def slots_of(dtype, shape, layout):
    """Tensors of this rank's slots: stacked, in a list, each transposed, or every second element of more."""
    slots = TOPOLOGY.slots_per_rank
    stacked = random_bits(dtype, (slots, *shape))
    if layout == "stacked":
        return stacked
    if layout == "list":
        return [random_bits(dtype, shape) for _ in range(slots)]
    if layout == "transposed":
        return random_bits(dtype, (slots, *shape[::-1])).permute(0, *range(len(shape), 0, -1))
    return random_bits(dtype, (slots, 2, *shape))[:, 0] if shape else stacked


def bits_of(weights, layer, slot):
    return [weights[layer][name][slot].contiguous().view(-1).view(torch.uint8).tolist() for name in KINDS]


def make_weights(seed, layouts):
    torch.manual_seed(seed)
    return [
        {name: slots_of(*kind, layout) for (name, kind), layout in zip(KINDS.items(), layouts, strict=True)}
        for _ in range(LAYERS)
    ]


def on_both(function):
    with ThreadPoolExecutor(2) as pool:
        return [each.result(30) for each in [pool.submit(function, rank) for rank in range(2)]]


def carried(weights, fills, *, is_checked=False, buffers=0):
    """Both ranks carry ``fills``, leg after leg; what each then finds where a fill arrived."""
    links, backend = memory_links(2), backend_for("cpu")

    def carry(rank):
        experts = ExpertWeights(weights[rank], layers=LAYERS, slots_per_rank=TOPOLOGY.slots_per_rank)
        experts.lend_buffers(experts.make_buffers(buffers, backend))
        transport = HostTransport(experts, TOPOLOGY, backend)
        if is_checked:
            transport = CheckedTransport(transport, experts, TOPOLOGY, backend)
        for leg in sorted({fill.leg for fill in fills}):
            transport.carry([fill for fill in fills if fill.leg == leg], links[rank])
        mine = [fill for fill in fills if TOPOLOGY.rank_of(fill.target) == rank]
        assert transport.received_bytes == len(mine) * experts.bytes_per_expert
        transport.close()
        return [
            [view.contiguous().view(-1).view(torch.uint8).tolist() for view in experts.target(fill)]
            for fill in mine
        ]

    return on_both(carry), links


@pytest.mark.parametrize("is_checked", [False, True])
@pytest.mark.parametrize(
    "layouts",
    [
        (("stacked",) * 7, ("stacked",) * 7),
        (("list",) * 7, ("transposed",) * 7),
        (("transposed", "second", "list", "second", "stacked", "list", "stacked"), ("second",) * 7),
    ],
    ids=["stacked", "lists to transposed", "mixed"],
)
def test_every_kind_arrives_bit_for_bit_and_nothing_else_changes(layouts, is_checked):
    weights = [make_weights(seed, layout) for seed, layout in enumerate(layouts)]
    before = [
        [[bits_of(own, layer, slot) for slot in range(3)] for layer in range(LAYERS)] for own in weights
    ]
    fills = [Fill(0, 4, 0, 1), Fill(1, 2, 0, 3), Fill(0, 0, 0, 5), Fill(1, 5, 0, 4), Fill(1, 0, 0, 1)]
    fills += [Fill(0, 3, 0, 4, leg=1)]  # takes on what has just arrived
    _, links = carried(weights, fills, is_checked=is_checked)
    wanted = [[list(slots) for slots in layers] for layers in before]
    for fill in fills:
        source, target = divmod(fill.source, 3), divmod(fill.target, 3)
        taken_on = fill.leg and next(each for each in fills if each.target == fill.source)
        rank, slot = divmod(taken_on.source, 3) if taken_on else source
        wanted[target[0]][fill.layer][target[1]] = before[rank][fill.layer][slot]
    found = [[[bits_of(own, layer, slot) for slot in range(3)] for layer in range(LAYERS)] for own in weights]
    assert found == wanted
    one = sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in KINDS.values())
    assert [link.sent_bytes for link in links] == [one + 8 * is_checked, 2 * (one + 8 * is_checked)]


def test_weights_arrive_in_buffers_and_are_taken_on_from_there():
    weights = [make_weights(seed, ("stacked",) * 7) for seed in range(2)]
    before = bits_of(weights[0], 0, 1), bits_of(weights[1], 0, 0)
    fills = [Fill(0, 3, 0, 1, buffer=1), Fill(0, 4, 0, 3, leg=1, buffer=0, source_buffer=1)]
    (_, found), _ = carried(weights, fills, is_checked=True, buffers=2)
    assert found == [before[0], before[0]]
    assert bits_of(weights[1], 0, 0) == before[1]


class Flipping(HostTransport):
    """One bit of what arrives is wrong."""

    def carry(self, fills, link):
        super().carry(fills, link)
        if link.rank == 1:
            self._weights.views(0, 1)[1][2] ^= 16


class Failing(HostTransport):
    def carry(self, fills, link):
        super().carry(fills, link)
        if link.rank == 1:
            raise OSError("on purpose")


@pytest.mark.parametrize(
    ("transport", "says"), [(Flipping, "not expert 7 of slot 1"), (Failing, "on purpose")]
)
def test_a_wrong_bit_is_told_by_the_rank_where_it_arrived_and_nobody_is_left_waiting(transport, says):
    weights = [make_weights(seed, ("stacked",) * 7) for seed in range(2)]
    links, backend = memory_links(2), backend_for("cpu")

    def carry(rank):
        experts = ExpertWeights(weights[rank], layers=LAYERS, slots_per_rank=3)
        checked = CheckedTransport(transport(experts, TOPOLOGY, backend), experts, TOPOLOGY, backend)
        try:
            checked.carry([Fill(0, 4, 7, 1)], links[rank])
        except (IsothermError, OSError) as error:
            return str(error)
        finally:
            checked.close()
        return None

    told = on_both(carry)
    assert told[0] is None
    assert says in told[1]


class SlotLost(HostTransport):
    """The first copies of a chunk raise on rank 0, which sends whatever lies there."""

    has_raised = False

    def _copy(self, pairs):
        if not self.has_raised:
            self.has_raised = True
            raise OSError("on purpose")
        super()._copy(pairs)


def test_who_fails_in_the_first_part_of_a_chunk_leaves_nobody_waiting_in_the_next():
    weights = [make_weights(seed, ("stacked",) * 7) for seed in range(2)]
    before = bits_of(weights[0], 1, 2)
    links, backend = memory_links(2), backend_for("cpu")
    fills = [Fill(layer, 3 + slot, 0, slot) for layer in range(LAYERS) for slot in range(3)]

    def carry(rank):
        experts = ExpertWeights(weights[rank], layers=LAYERS, slots_per_rank=3)
        transport = (HostTransport if rank else SlotLost)(experts, TOPOLOGY, backend)
        try:
            transport.carry(fills, links[rank])
        except OSError as error:
            return str(error), transport.received_bytes
        finally:
            transport.close()
        return None, transport.received_bytes // experts.bytes_per_expert

    assert on_both(carry) == [("on purpose", 0), (None, 6)]
    assert bits_of(weights[1], 1, 2) == before


@pytest.mark.parametrize("error", [OSError, SystemExit])
def test_a_chunk_that_raises_is_told_whatever_it_raises(error):
    (link,) = memory_links(1)

    class Transport:
        received_bytes = 0

        def carry(self, fills, link):
            raise error("on purpose")

        def close(self):
            pass

    told = []
    carrier = Carrier(Transport(), backend_for("cpu").side_stream("carrier"), lambda: told.append(1))
    carrier.start([Fill(0, 1, 0, 0)], link)
    carrier.close(10.0)
    assert (carrier.ended, carrier.failed, told) == (1, 1, [1])


def test_a_chunk_that_arrived_is_told_before_it_counts_and_may_be_refused():
    (link,) = memory_links(1)
    seen = []

    class Transport:
        received_bytes = 0

        def carry(self, fills, link):
            seen.append("carried")

        def close(self):
            seen.append("closed")

    def arrived(fills):
        seen.append((fills, carrier.ended))
        if len(fills) > 1:
            raise ValueError("this slot cannot be prepared")

    carrier = Carrier(
        Transport(), backend_for("cpu").caller_stream(), lambda: seen.append("told"), on_arrival=arrived
    )
    fill = Fill(0, 1, 0, 0)
    carrier.start([fill], link)
    assert seen == ["carried", ([fill], 0), "told"]
    assert (carrier.ended, carrier.failed) == (1, 0)
    carrier.start([fill, fill], link)
    assert (carrier.ended, carrier.failed) == (2, 1)
    carrier.close(1.0)
    assert seen[-1] == "closed"


@pytest.mark.parametrize(
    ("name", "tensors", "message"),
    [
        ("up", torch.zeros(2, 4), "layer 1, 'up': 2 slots given, this rank has 3"),
        ("up", [torch.zeros(4), torch.zeros(3), torch.zeros(4)], r"slot 1 is torch.float32 \(3,\), slot 0"),
        ("up", [torch.zeros(4), torch.zeros(4).int(), torch.zeros(4)], "slot 1 is torch.int32"),
        (
            "up",
            torch.zeros(1, 4).expand(3, 4),
            "slot 1 shares memory with slot 0: lend each slot weights of its",
        ),
        ("up", torch.zeros(3, 1).expand(3, 4), "slot 0 shares memory with slot 0"),
        ("up", [torch.ones(4)] * 3, "slot 1 shares memory with slot 0"),
        (
            "up",
            torch.zeros(3, 4).to(torch.complex128),
            "elements of torch.complex128 have 16 bytes: lend it as",
        ),
        ("up", torch.zeros(3, 5), r"experts of different sizes \[16, 20\]"),
    ],
)
def test_weights_that_cannot_be_told_apart_or_moved_are_refused(name, tensors, message):
    with pytest.raises(ValueError, match=message):
        ExpertWeights([{"up": torch.zeros(3, 4)}, {name: tensors}], layers=2, slots_per_rank=3)
