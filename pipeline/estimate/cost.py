"""Hours and money on each machine: arithmetic floors, the share of them that is reached, prices."""

import dataclasses
import importlib.resources
import math
import tomllib
from collections.abc import Mapping
from typing import Any

from model import machines
from model.checkpoint import files
from model.config import Grok1Config
from model.engine.options import ACCELERATOR_SLOTS, EngineOptions
from model.engine.shapes import cache_bytes_per_token
from model.machines import MACHINES, MachineProfile, decode_floor, prefill_floor, weight_bytes
from model.room import Question, room_for
from schemas.error import SetupError

_RATES_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rate:
    """A machine's price, and how near to its own limits it comes.

    Attributes:
      usd_per_hour: of one host.
      reach_p50, reach_p90: share of the machine's arithmetic floor, which ``grok1 fit`` shows, in
        the middle and in 9 of 10 cases.
      load_gb_per_second: at which the host reads weights from their store.
      compile_minutes: of a host's start, beside loading.
      measured: whether these are measured on such a machine, and not assumed.
    """

    usd_per_hour: float
    reach_p50: float
    reach_p90: float
    load_gb_per_second: float = 2.0
    compile_minutes: float = 5.0
    measured: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """What a job asks of a machine.

    Attributes:
      weights: what the checkpoint stores, one of ``params.WEIGHTS``.
      engine: the engine's settings, with ``max_context`` filled in.
      prompt_tokens: to be computed, shared prefixes once.
      tokens_out_p50, tokens_out_p90: to be drawn.
      samples: completions that they belong to.
      prompt_length, output_length: mean of a sequence, in tokens.
    """

    weights: str
    engine: EngineOptions
    prompt_tokens: int
    tokens_out_p50: float
    tokens_out_p90: float
    samples: int
    prompt_length: float
    output_length: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """One machine's bill; hours are of one host, and more hosts share all but the start.

    Attributes:
      machine: its name.
      title: for people.
      weights: the kind that is held; None if the model does not fit at all.
      convert: whether the checkpoint has to be converted to that kind.
      slots: sequences decoded at once: as many as the engine would, and as fit.
      max_slots: most sequences of the longest kind that fit.
      decode_floor, prefill_floor: tokens a second that the machine cannot exceed.
      decode_rate, prefill_rate: that it reaches in the middle.
      measured: whether what it reaches is measured, not assumed.
      start_hours: of a host, before its first token.
      hours_p50, hours_p90: of one host, its start included.
      device_hours_p50, device_hours_p90: times its devices.
      usd_p50, usd_p90: list price.
    """

    machine: str
    title: str
    weights: str | None
    convert: bool = False
    slots: int = 0
    max_slots: int = 0
    decode_floor: float = math.nan
    prefill_floor: float = math.nan
    decode_rate: float = math.nan
    prefill_rate: float = math.nan
    measured: bool = False
    start_hours: float = math.nan
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
        _check_keys(where, table)
        rates = {name: Rate(**values) for name, values in table.items()}
        sound = all(
            type(value) in (int, float) and value > 0
            for rate in rates.values()
            for name, value in vars(rate).items()
            if name != "measured"
        ) and all(type(rate.measured) is bool for rate in rates.values())
    except ValueError as error:
        raise SetupError(
            f"{where} is no table of rates: {error}; begin with a copy of "
            "pipeline/estimate/rates.toml"
        ) from None
    if unknown := sorted(set(rates) - set(MACHINES)):
        raise SetupError(f"{where}: no machine {unknown[0]!r}; one of {', '.join(MACHINES)}")
    if not sound:
        raise SetupError(
            f"{where}: prices and shares must be positive numbers, and measured true or false"
        )
    return rates


def _check_keys(where: str, table: Mapping[str, Any]) -> None:
    """Raises SetupError if a machine has no table of its own, or its keys are not those of Rate."""
    fields = dataclasses.fields(Rate)
    needed = [field.name for field in fields if field.default is dataclasses.MISSING]
    known = [field.name for field in fields]
    for name, values in table.items():
        if not isinstance(values, dict):
            raise SetupError(
                f"{where}: {name} must be a table of its own, [{name}], with {', '.join(needed)}"
            )
        if missing := [key for key in needed if key not in values]:
            raise SetupError(f"{where}: [{name}] has no {' and no '.join(missing)}; add that")
        if unknown := [key for key in values if key not in known]:
            raise SetupError(
                f"{where}: [{name}] has an unknown key {unknown[0]!r}; the keys are "
                f"{', '.join(known)}"
            )


def all_costs(config: Grok1Config, load: Load, rates: Mapping[str, Rate]) -> list[Cost]:
    """The bill on each machine that has a price, the cheapest first; those too small last."""
    costs = [cost_on(MACHINES[name], rate, config, load) for name, rate in rates.items()]
    return sorted(costs, key=lambda cost: (cost.weights is None, cost.usd_p50))


def cost_on(machine: MachineProfile, rate: Rate, config: Grok1Config, load: Load) -> Cost:
    """The bill on one machine, with the weights as they are stored or, if they do not fit, int4."""
    for weights in dict.fromkeys((load.weights, "int4")):
        if most := room_for(_question(machine, config, weights, load.engine)).max_slots:
            return _cost(machine, rate, config, load, weights, most)
    return Cost(machine=machine.name, title=machine.title, weights=None)


def _question(
    machine: MachineProfile, config: Grok1Config, weights: str, engine: EngineOptions
) -> Question:
    return Question(
        machine=machine.name,
        config=config,
        weights=weights,
        numerics=engine.numerics,
        kv_cache_dtype=engine.kv_cache_dtype,
        context=engine.context_of(config),
    )


def _cost(
    machine: MachineProfile, rate: Rate, config: Grok1Config, load: Load, weights: str, most: int
) -> Cost:
    slots = min(load.engine.slots or ACCELERATOR_SLOTS, most)
    numbers = cache_bytes_per_token(config, load.engine) / machines.cache_bytes_per_token(config, 1)
    drawing = decode_floor(
        machine,
        config,
        slots=max(1, min(slots, load.samples)),
        # Half of a completion is in the cache on average, and all of its prompt.
        context=load.prompt_length + load.output_length / 2,
        weights=weights,
        cache_bytes=numbers,
    )
    filling = prefill_floor(machine, config)
    loading = weight_bytes(config, weights) / 1e9 / rate.load_gb_per_second
    start = (loading + 60 * rate.compile_minutes) / 3600

    def hours(tokens_out: float, reach: float) -> float:
        busy = load.prompt_tokens / filling + tokens_out / drawing
        return start + busy / reach / 3600

    middle = hours(load.tokens_out_p50, rate.reach_p50)
    late = hours(load.tokens_out_p90, rate.reach_p90)
    return Cost(
        machine=machine.name,
        title=machine.title,
        weights=weights,
        convert=weights != load.weights,
        slots=slots,
        max_slots=most,
        decode_floor=drawing,
        prefill_floor=filling,
        decode_rate=drawing * rate.reach_p50,
        prefill_rate=filling * rate.reach_p50,
        measured=rate.measured,
        start_hours=start,
        hours_p50=middle,
        hours_p90=late,
        device_hours_p50=middle * machine.devices,
        device_hours_p90=late * machine.devices,
        usd_p50=middle * rate.usd_per_hour,
        usd_p90=late * rate.usd_per_hour,
    )
