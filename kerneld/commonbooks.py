"""What the schedulers of a machine's devices have in common: who was charged what, and how many wait and run.

    device cpu0   tree of shares ---.                        a charge goes to the same node of every tree
    device cpu1   tree of shares ---+-- CommonShares <------ Charging <------ requests on any device

Each device has a tree of its own, because who is active there, and whom one is lifted to, is a matter of those that wait for that device.
Service counts wherever it was had: who is served much on one device goes later on the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kerneld.closures import Closures
from kerneld.fairshare import FairShare
from kerneld.pricing.charging import Charging
from kerneld.pricing.stepcost import StepCosts
from kerneld.systemaccount import SystemAccount
from kerneld.tally import Tally
from kerneld.victims import Spent


class CommonShares(FairShare):
    """The tree of the first device, which passes on what concerns all of them: tenants, weights, charges."""

    twins: Sequence[FairShare] = ()

    def add(self, path: str, weight: int = 1) -> None:
        """Make a tenant known. Raises: InvalidArgument."""
        super().add(path, weight)
        for twin in self.twins:
            twin.add(path, weight)

    def set_weight(self, path: str, weight: int) -> None:
        """Change a weight. Raises: InvalidArgument, NotFound."""
        super().set_weight(path, weight)
        for twin in self.twins:
            twin.set_weight(path, weight)

    def set_factor(self, path: str, milli: int) -> None:
        """Multiply a weight by `milli` / 1000. Raises: InvalidArgument, NotFound."""
        super().set_factor(path, milli)
        for twin in self.twins:
            twin.set_factor(path, milli)

    def charge(self, path: str, cost: int) -> None:
        """Charge a tenant and everybody above it."""
        super().charge(path, cost)
        for twin in self.twins:
            twin.charge(path, cost)

    def refund(self, path: str, cost: int) -> None:
        """Give back what was charged for work that was not done."""
        super().refund(path, cost)
        for twin in self.twins:
            twin.refund(path, cost)


@dataclass(slots=True)
class Common:
    """Shared by schedulers; one that is alone has it for itself."""

    shares: FairShare
    charging: Charging = field(init=False)
    costs: StepCosts = field(default_factory=StepCosts)
    waiting: Tally = field(default_factory=Tally)
    running: Tally = field(default_factory=Tally)
    closures: list[Closures] = field(default_factory=list)
    spent: Spent = field(default_factory=Spent)
    system: SystemAccount = field(default_factory=SystemAccount)

    def __post_init__(self) -> None:
        self.charging = Charging(self.shares)
