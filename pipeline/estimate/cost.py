"""Hours and money on each machine: arithmetic floors, the share of them that is reached, prices."""

import dataclasses
import importlib.resources
import math
import tomllib
from collections.abc import Mapping

from model.checkpoint import files
from model.config import Grok1Config
from model.machines import (
    MACHINES,
    MachineProfile,
    cache_bytes_per_token,
    decode_floor,
    prefill_floor,
    weight_bytes,
)
from schemas.error import SetupError

_RESERVE = 2 << 30
"""Bytes of a device left for temporaries and the runtime."""

_MAX_SLOTS = 512
_MIN_SLOTS = 16
"""Fewer sequences at once would waste what reading the weights costs."""

_RATES_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rate:
    """A machine's price and how near to its limits it comes.

    Attributes:
      usd_per_hour: of one host.
      reach_p50, reach_p90: share of the arithmetic floor, in the middle and in 9 of 10 cases.
    """

    usd_per_hour: float
    reach_p50: float
    reach_p90: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """What a job asks of a machine.

    Attributes:
      prompt_tokens: to be computed, shared prefixes once.
      tokens_out_p50, tokens_out_p90: to be drawn.
      prompt_length, output_length: mean of a sequence, in tokens.
      max_context: the longest sequence's room in the cache.
    """

    prompt_tokens: int
    tokens_out_p50: float
    tokens_out_p90: float
    prompt_length: float
    output_length: float
    max_context: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """One machine's bill; hours are of one host, and more hosts share them.

    Attributes:
      machine: its name.
      title: for people.
      weights: ``int8`` or ``int4``; None if the model does not fit at all.
      slots: sequences decoded at once.
      hours_p50, hours_p90: of one host.
      device_hours_p50, device_hours_p90: times its devices.
      usd_p50, usd_p90: list price.
    """

    machine: str
    title: str
    weights: str | None
    slots: int = 0
    hours_p50: float = math.nan
    hours_p90: float = math.nan
    device_hours_p50: float = math.nan
    device_hours_p90: float = math.nan
    usd_p50: float = math.nan
    usd_p90: float = math.nan


def read_rates(url: str | None) -> dict[str, Rate]:
    """The table of prices, ours or the user's.

    Raises:
      SetupError: it is not readable, or a machine or value is not known.
    """
    where = "pipeline/estimate/rates.toml" if url is None else files.redact(url)
    if url is None:
        data = (importlib.resources.files("pipeline.estimate") / "rates.toml").read_bytes()
    else:
        data = files.read_bytes(url, _RATES_BYTES)
    try:
        table = tomllib.loads(data.decode())
        rates = {name: Rate(**values) for name, values in table.items()}
        sound = all(
            isinstance(value, int | float) and value > 0
            for rate in rates.values()
            for value in dataclasses.astuple(rate)
        )
    except (ValueError, TypeError) as error:
        raise SetupError(
            f"{where} is no table of rates: {error}; begin with a copy of "
            "pipeline/estimate/rates.toml"
        ) from None
    if unknown := sorted(set(rates) - set(MACHINES)):
        raise SetupError(f"{where}: no machine {unknown[0]!r}; one of {', '.join(MACHINES)}")
    if not sound:
        raise SetupError(f"{where}: prices and shares must be positive numbers")
    return rates


def all_costs(config: Grok1Config, load: Load, rates: Mapping[str, Rate]) -> list[Cost]:
    """The bill on each machine that has a price, the cheapest first; those too small last."""
    costs = [cost_on(MACHINES[name], rate, config, load) for name, rate in rates.items()]
    return sorted(costs, key=lambda cost: (cost.weights is None, cost.usd_p50))


def cost_on(machine: MachineProfile, rate: Rate, config: Grok1Config, load: Load) -> Cost:
    """The bill on one machine, with the weights that fit: int8, else 4-bit experts."""
    # Half of a completion is in the cache on average, and all of its prompt.
    context = load.prompt_length + load.output_length / 2
    for weights in ("int8", "int4"):
        slots = slots_that_fit(machine, config, weights, load.max_context)
        if slots < _MIN_SLOTS:
            continue
        drawn = decode_floor(machine, config, slots=slots, context=context, weights=weights)
        filling = load.prompt_tokens / prefill_floor(machine, config)
        middle = (filling + load.tokens_out_p50 / drawn) / rate.reach_p50 / 3600
        late = (filling + load.tokens_out_p90 / drawn) / rate.reach_p90 / 3600
        return Cost(
            machine=machine.name,
            title=machine.title,
            weights=weights,
            slots=slots,
            hours_p50=middle,
            hours_p90=late,
            device_hours_p50=middle * machine.devices,
            device_hours_p90=late * machine.devices,
            usd_p50=middle * rate.usd_per_hour,
            usd_p90=late * rate.usd_per_hour,
        )
    return Cost(machine=machine.name, title=machine.title, weights=None)


def slots_that_fit(
    machine: MachineProfile, config: Grok1Config, weights: str, max_context: int
) -> int:
    """Sequences of the longest kind that the memory holds beside the weights, at most 512."""
    free = machine.devices * (machine.limit_bytes - _RESERVE) - weight_bytes(config, weights)
    return max(0, min(_MAX_SLOTS, int(free / (max_context * cache_bytes_per_token(config)))))
