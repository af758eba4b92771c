"""What holds for every window of a heat file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from typing import Any

import numpy as np

from isotherm.topology import MoEShape, Topology
from isotherm.traces.problems import shortened
from isotherm.window import KINDS, HeatWindow

SCHEMA_VERSION = 1

LARGEST_SUM = 2.0**62
"""Of all counts in a window, and in all windows of a trace: their sums must fit an int64."""

ON_REQUEST = ("slot_load_LGS", "active_steps_LE", "source_heat_NLE")
"""Counts that a window may do without."""

_MAY_BE_UNKNOWN = ("top_k", "topology", "model_layers")


def _library() -> str:
    try:
        return f"isotherm {version('isotherm')}"
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "isotherm"


@dataclass(frozen=True)
class HeatHeader:
    """The model and the cluster that heat was collected on.

    Attributes:
        layer_ids: the model's own numbers of its MoE layers, ascending.
        experts: logical experts in each of them.
        top_k: experts that a token picks; None: not known, and then the tokens of windows are 0.
        kinds: names of the kinds of tokens that are counted apart.
        topology: ranks and slots; None: not known, and then windows have no slot loads.
        model_layers: all layers of the model, dense ones too; None: not known.
        model, engine: names, for people.
        library: what wrote the file.

    Raises:
        ValueError: a number below 1, layers out of order, or a name that cannot be shown.
    """

    layer_ids: tuple[int, ...]
    experts: int
    top_k: int | None = None
    kinds: tuple[str, ...] = KINDS
    topology: Topology | None = None
    model_layers: int | None = None
    model: str = ""
    engine: str = ""
    library: str = field(default_factory=_library, compare=False)

    def __post_init__(self) -> None:
        # MoEShape holds the rules of layers and experts.
        MoEShape(len(self.layer_ids), self.experts, self.top_k or 1, self.layer_ids)
        if self.layer_ids[0] < 0:
            raise ValueError(f"layer_ids begin with {self.layer_ids[0]}: layers are numbered from 0")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} is below 1: give None where it is not known")
        if not self.kinds or len(set(self.kinds)) != len(self.kinds):
            raise ValueError(f"kinds={self.kinds} must be at least one name, and no name twice")
        for name in (self.model, self.engine, self.library, *self.kinds):
            if not name.isprintable():  # what a file says is shown in terminals, which obey signs of control
                raise ValueError(
                    f"{shortened(name)} holds signs that cannot be shown: give a name for people"
                )
        if self.topology is not None:
            self.topology.check_holds(self.experts)
        if self.model_layers is not None and self.model_layers <= self.layer_ids[-1]:
            raise ValueError(
                f"model_layers={self.model_layers} do not hold layer {self.layer_ids[-1]}: count all layers "
                "of the model, dense ones too"
            )

    @classmethod
    def of(
        cls, shape: MoEShape, topology: Topology | None = None, *, model: str = "", engine: str = ""
    ) -> HeatHeader:
        """The header of what a collector or a balancer of this shape and topology gathers."""
        return cls(shape.ids, shape.experts, shape.top_k, topology=topology, model=model, engine=engine)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> HeatHeader:
        """What ``as_dict`` made.

        Raises:
            ValueError: a value is missing or of another type; the message names it.
        """
        found = values.get("schema_version")
        if found != SCHEMA_VERSION:
            raise ValueError(
                f"schema_version={shortened(found)} is unknown: this Isotherm reads "
                f"{SCHEMA_VERSION}; a newer one may read the file"
            )
        _check_types(values)
        topology = values["topology"]
        return cls(
            layer_ids=tuple(values["layer_ids"]),
            experts=values["experts"],
            top_k=values["top_k"],
            kinds=tuple(values["kinds"]),
            topology=None if topology is None else Topology(**topology),
            model_layers=values["model_layers"],
            model=values["model"],
            engine=values["engine"],
            library=values["library"],
        )

    def as_dict(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    def check_window(self, window: HeatWindow) -> None:
        """Raises ValueError where the window is not of this model and cluster."""
        kinds, _, layers, experts = window.heat_KSLE.shape
        if (kinds, layers, experts) != (len(self.kinds), len(self.layer_ids), self.experts):
            raise ValueError(
                f"a window of {kinds} kinds, {layers} layers and {experts} experts does not fit a header of "
                f"{len(self.kinds)}, {len(self.layer_ids)} and {self.experts}"
            )
        if window.layer_ids != self.layer_ids:
            raise ValueError(f"the window's layer_ids={window.layer_ids} are not {self.layer_ids}")
        if any(start >= end for start, end in pairwise(window.slice_steps)):
            raise ValueError(f"slice_steps={window.slice_steps} must ascend")
        for name in ("heat_KSLE", *ON_REQUEST):
            counts = getattr(window, name)
            if counts is not None and float(counts.sum(dtype=np.float64)) > LARGEST_SUM:
                raise ValueError(f"{name}: the counts add up to more than 2^62")
        self._check_loads(window)

    def _check_loads(self, window: HeatWindow) -> None:
        """Counts by rank or node must be those of the header's cluster."""
        loads, sources = window.slot_load_LGS, window.source_heat_NLE
        if loads is None and sources is None:
            return
        if self.topology is None:
            raise ValueError("the window counts ranks or nodes, and the header has none: give topology=")
        if loads is not None and loads.shape[1:] != (self.topology.ranks, self.topology.slots_per_rank):
            raise ValueError(f"slot loads of {loads.shape[1:]} [ranks, slots] do not fit {self.topology}")
        if sources is not None and len(sources) != self.topology.nodes:
            raise ValueError(f"heat from {len(sources)} nodes does not fit {self.topology}")


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_list_of(is_one: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_one, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_topology(value: Any) -> bool:
    names = {"ranks", "slots_per_rank", "nodes"}
    return isinstance(value, dict) and value.keys() == names and all(map(_is_whole, value.values()))


def _check_types(values: dict[str, Any]) -> None:
    """Raises ValueError for what JSON may hold and a header may not."""
    fits: dict[str, Callable[[Any], bool]] = {
        "layer_ids": partial(_is_list_of, _is_whole),
        "experts": _is_whole,
        "top_k": _is_whole,
        "kinds": partial(_is_list_of, _is_text),
        "topology": _is_topology,
        "model_layers": _is_whole,
        **dict.fromkeys(("model", "engine", "library"), _is_text),
    }
    for name, is_right in fits.items():
        value = values.get(name)
        unknown = value is None and name in values and name in _MAY_BE_UNKNOWN
        if not unknown and not is_right(value):
            raise ValueError(f"{name}={shortened(value)} is not what a header holds")
