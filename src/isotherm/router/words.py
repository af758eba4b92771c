"""Words of a call of the CPU's kernel: what is the same in every call of a layer and lane."""

from __future__ import annotations

(
    EXPERTS,
    SLOTS,
    RANKS,
    BASE,
    OFFSETS_E1,
    SLOTS_P,
    ENDS_P,
    WHOLE_E,
    SPLIT_E1,
    OTHERS_G,
    PREFILL_E,
    DECODE_E,
    RECEIVED_P,
    STATE_E,
    SEEN_E,
    FIRST_E,
    MIDDLE_E,
    STOP_E,
    ROW_E,
    LENGTH_P,
    LOAD_G,
) = range(21)
"""Numbers first, then addresses: of tables, totals, and scratch. ``RANKS`` is 0 where batches are split by
shares alone; nothing is read at ``OTHERS_G`` and ``LOAD_G`` then."""

WORDS = 21
