"""Presets: the arrival patterns of the paper's figures, its trace, and the worst case that is promised a time.

Source: Sheng et al., "Fairness in serving large language models", OSDI 2024: figures 3 to 8 and 10, and table 2 (`zipf`).

Theirs are the rates and lengths of figures 3 to 8, the on and off phases of 60 s, the 27 clients, 210 requests a minute and 10 minutes of
the trace, and the pool of 10,000 tokens. Assumed are

    the device      30 ms a step, 0.2 ms a token and 0.6 ms a row (0.8 ms a request that generates): about 900 tokens/s at 256 / 256,
                    as their A10G with Llama-2-7B; pages of 16 tokens, prefill in chunks, and no host tier, as they have none
    preemption      of tenants that are 1,000 units of service ahead; room is kept for all output that is expected, so that they are rare
    durations       360 s for figure 3, 600 s for 4 to 8; 900 s for figure 10, as theirs
    figure 10       the rates of its three phases
    the trace       lengths are lognormal about the means of theirs (136 in, 256 out), cut at 1,024; shares of the clients go by a power
                    law of exponent 1; arrivals are Poisson
    tenants64       everything: 64 tenants in 8 groups, of all weights and classes, at about twice what the device can do
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kerneld.calls import Priority
from kerneld.policy import SchedulerPolicy
from kerneld.simulation.workload import Arrival, Fixed, Lengths, Lognormal, Phase, SchedulerSpec, TenantLoad, Uniform, Workload

_SEED: Final = 2
_UNIT_US: Final = 750  # of service: an input token, by the tariff of the default device
_PREEMPT_LAG: Final = 1000  # in such units; the daemon's own lag, 250 ms, is less than one request here
_MINUTE_S: Final = 60.0
_MINUTES_10_S: Final = 600.0
ZIPF_CLIENTS: Final = 27
_ZIPF_RATE: Final = 210 / 60  # requests per second, all clients together


def _workload(name: str, duration_s: float, tenants: tuple[TenantLoad, ...]) -> Workload:
    policy = SchedulerPolicy(preempt_lag_us=_PREEMPT_LAG * _UNIT_US, growth_share=1.0)
    return Workload(name, duration_s, tenants, _SEED, scheduler=SchedulerSpec(policy))


def _steady(path: str, rate: float, num_input: int = 256, num_output: int = 256, arrival: Arrival = Arrival.CONSTANT) -> TenantLoad:
    return TenantLoad(path, phases=(Phase(rate, arrival),), input=Fixed(num_input), output=Fixed(num_output))


def _on_off(rate: float, until_s: float = float("inf")) -> Phase:
    return Phase(rate, Arrival.ONOFF, until_s, on_s=_MINUTE_S, off_s=_MINUTE_S)


def _fig3() -> Workload:
    """Two clients that both ask for more than their half."""
    return _workload("fig3", 360.0, (_steady("client1", 1.5), _steady("client2", 3.0)))


def _fig4() -> Workload:
    """Three clients, of which one alone asks for more than its third."""
    return _workload("fig4", _MINUTES_10_S, (_steady("client1", 0.25), _steady("client2", 0.5), _steady("client3", 1.5)))


def _fig5() -> Workload:
    """A light client that is on and off beside one that always asks for more than its half."""
    return _workload("fig5", _MINUTES_10_S, (TenantLoad("light", phases=(_on_off(0.5),)), _steady("hog", 2.0)))


def _fig6() -> Workload:
    """A client that is on and off, and asks for more than its half on the whole, beside one that always does."""
    return _workload("fig6", _MINUTES_10_S, (TenantLoad("onoff", phases=(_on_off(2.0),)), _steady("steady", 3.0)))


def _fig7() -> Workload:
    """Many short requests beside fewer long ones, both Poisson."""
    short, long = _steady("short", 8.0, 64, 64, Arrival.POISSON), _steady("long", 1.5, 256, 256, Arrival.POISSON)
    return _workload("fig7", _MINUTES_10_S, (short, long))


def _fig8() -> Workload:
    """Long inputs with short outputs beside short inputs with long outputs, both Poisson."""
    reads, writes = _steady("reads", 8.0, 512, 32, Arrival.POISSON), _steady("writes", 1.5, 32, 512, Arrival.POISSON)
    return _workload("fig8", _MINUTES_10_S, (reads, writes))


def _fig10() -> Workload:
    """What clients ask for shifts twice: one is on and off and light, then both overload, then both are on and off in turn."""
    five, ten = 300.0, 600.0
    first = (_on_off(0.5, five), Phase(1.0, until_s=ten), _on_off(1.5))
    second = (Phase(1.5, until_s=five), Phase(3.0, until_s=ten), Phase(1.5))
    return _workload("fig10", 900.0, (TenantLoad("client1", phases=first), TenantLoad("client2", phases=second)))


def _zipf() -> Workload:
    """Twenty-seven clients of a chat arena, few of which send most."""
    total = sum(1 / rank for rank in range(1, ZIPF_CLIENTS + 1))
    lengths: tuple[Lengths, Lengths] = Lognormal(136, 1.0, 1024), Lognormal(256, 0.8, 1024)
    clients = tuple(
        TenantLoad(
            f"client{rank:02}",
            phases=(Phase(_ZIPF_RATE / rank / total, Arrival.POISSON),),
            input=lengths[0],
            output=lengths[1],
            max_tokens=1024,
        )
        for rank in range(1, ZIPF_CLIENTS + 1)
    )
    return _workload("zipf", _MINUTES_10_S, clients)


def _tenants64() -> Workload:
    """Sixty-four tenants in eight groups, of all weights and classes, who together ask for twice what the device can do."""
    groups = tuple(TenantLoad(f"group{number}", weight=1 + number % 4) for number in range(8))
    people = tuple(_person(number) for number in range(64))
    return _workload("tenants64", _MINUTES_10_S, groups + people)


def _person(number: int) -> TenantLoad:
    priority = (Priority.INTERACTIVE, Priority.INTERACTIVE, Priority.BATCH, Priority.IDLE)[number // 8 % 4]
    rate = 0.02 * (1 + number % 5)
    bursts = Phase(4 * rate, Arrival.ONOFF, on_s=30.0, off_s=90.0)
    return TenantLoad(
        f"group{number % 8}/person{number:02}",
        weight=1 + number % 3,
        phases=(bursts if number % 4 == 3 else Phase(rate, Arrival.POISSON),),
        input=Uniform(16, 512) if number % 2 else Lognormal(136, 1.0, 1024),
        output=Lognormal(256, 0.8, 1024),
        max_tokens=1024,
        priority=priority,
    )


PRESETS: Final[dict[str, Callable[[], Workload]]] = {
    "fig3": _fig3,
    "fig4": _fig4,
    "fig5": _fig5,
    "fig6": _fig6,
    "fig7": _fig7,
    "fig8": _fig8,
    "fig10": _fig10,
    "zipf": _zipf,
    "tenants64": _tenants64,
}
