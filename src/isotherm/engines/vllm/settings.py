"""What the environment asks of Isotherm inside vLLM, whose processes inherit it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path

from isotherm.engines.vllm.placing import MAX_IMBALANCE

PLANS = "ISOTHERM_VLLM"
LIMIT = "ISOTHERM_VLLM_MAX_IMBALANCE"
HANDED = "ISOTHERM_RECORD"
OBSERVED = "ISOTHERM_OBSERVE"
WINDOW = "ISOTHERM_OBSERVE_STEPS"
PORT = "ISOTHERM_OBSERVE_PORT"

WINDOW_STEPS = 256


@dataclass(frozen=True)
class VllmSettings:
    """What Isotherm does inside vLLM.

    Attributes:
        plans: vLLM's own balancing is planned by Isotherm (``ISOTHERM_VLLM=1``).
        max_imbalance: no layer at or below this is changed (``ISOTHERM_VLLM_MAX_IMBALANCE``).
        handed: the heat file of what vLLM hands to its policy (``ISOTHERM_RECORD``); None: none.
        observed: the heat file of what is counted beside the engine (``ISOTHERM_OBSERVE``); None: nothing is
            counted.
        window_steps: steps in a window of it (``ISOTHERM_OBSERVE_STEPS``).
        port: where metrics of it are served (``ISOTHERM_OBSERVE_PORT``); None: nowhere.
    """

    plans: bool = False
    max_imbalance: float = MAX_IMBALANCE
    handed: Path | None = None
    observed: Path | None = None
    window_steps: int = WINDOW_STEPS
    port: int | None = None

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> VllmSettings:
        """The settings of an environment; a variable that is empty counts as left out.

        Raises:
            ValueError: a value that is not what it should be; the message names the variable.
        """
        given = {name: value for name, value in environment.items() if value}
        if given.get(PLANS, "0") not in ("0", "1"):
            raise ValueError(f"{PLANS}={given[PLANS]} is neither 0 nor 1: give 1 to let Isotherm plan")
        plans = given.get(PLANS) == "1"
        if HANDED in given and not plans:
            raise ValueError(
                f"{HANDED}={given[HANDED]} records what Isotherm's policy is handed: set {PLANS}=1"
            )
        for name in (WINDOW, PORT):
            if name in given and OBSERVED not in given:
                raise ValueError(f"{name}={given[name]} without {OBSERVED} does nothing: name a file there")
        return cls(
            plans=plans,
            max_imbalance=_number(given, LIMIT, MAX_IMBALANCE, 1.0, inf),
            handed=Path(given[HANDED]) if HANDED in given else None,
            observed=Path(given[OBSERVED]) if OBSERVED in given else None,
            window_steps=int(_number(given, WINDOW, WINDOW_STEPS, 2, 2**31, whole=True)),
            port=int(_number(given, PORT, 0, 1, 65535, whole=True)) if PORT in given else None,
        )


def _number(
    given: Mapping[str, str], name: str, default: float, least: float, most: float, *, whole: bool = False
) -> float:
    if name not in given:
        return default
    try:
        value = int(given[name]) if whole else float(given[name])
    except ValueError:
        value = least - 1
    if not least <= value <= most or value == inf:
        rule = f"a whole number from {least:.0f} to {most:.0f}" if whole else f"a number, at least {least:g}"
        raise ValueError(f"{name}={given[name]} must be {rule}")
    return value
