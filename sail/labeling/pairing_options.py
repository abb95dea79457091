"""How a route makes its pairs, in one record."""

from dataclasses import dataclass, field
from typing import Any

from sail.core.labeler_settings import RegulationStep
from sail.core.records import LabelMode
from sail.core.route_settings import HygieneSettings
from sail.labeling.evidence import Evidence
from sail.labeling.hygiene import resolve_hygiene


@dataclass(frozen=True, slots=True)
class PairingOptions:
    """Example: PairingOptions("best_worst", "hard", seed=7, round_index=2) for iterative DPO's third round."""

    pairing: str  # a row of PAIRINGS: 'verdicts' for a data source, the route's `keep` for samples
    mode: LabelMode
    seed: int
    round_index: int = 0
    sail_coef: float = 0.0  # only its being positive matters: it decides what hygiene drops by default
    hygiene: HygieneSettings = field(default_factory=HygieneSettings)
    where: str = "routes"  # names the route in errors, such as routes.online; in no key
    regulation: tuple[RegulationStep, ...] = ()

    def hygiene_of(self, evidence: Evidence) -> HygieneSettings:
        """The hygiene settings as they act on labels by this evidence."""
        return resolve_hygiene(self.hygiene, self.sail_coef, self.mode, evidence.source)

    def recipe(self, evidence: Evidence) -> dict[str, Any]:
        """What changes a pairs artifact: two runs that differ in sail_coef .1 and .2 share it."""
        recipe = {
            "pairing": self.pairing, "mode": self.mode, "seed": self.seed, "round_index": self.round_index,
            "hygiene": self.hygiene_of(evidence).recipe(), "evidence": evidence.recipe(self.mode),
        }  # fmt: skip
        steps = [step.recipe() for step in self.regulation]
        return recipe | ({"regulation": steps} if steps else {})
