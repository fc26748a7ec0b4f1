# Copyright 2026 The glip_hf authors. MIT licence.
"""Object Detection in the Wild (ELEVATER, arXiv 2204.08790): COCO metrics of each data set, and their mean."""

from collections.abc import Mapping

from .base import MISSING

ODINW13 = (
    "AerialMaritimeDrone_large",
    "Aquarium",
    "CottontailRabbits",
    "EgoHands_generic",
    "NorthAmericaMushrooms",
    "Packages",
    "PascalVOC",
    "Raccoon",
    "ShellfishOpenImages",
    "VehiclesOpenImages",
    "pistols",
    "pothole",
    "thermalDogsAndPeople",
)
"""How the names of the 13 task files begin whose mean papers quote (GLIP's configs/odinw_13); the 35 include them.

Of GLIP's 35 files only these begin so: `Aquarium_Aquarium_Combined.v2-raw-1024.coco`, `Packages_Raw`, ...
"""


def mean_metrics(sets: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The plain mean of each metric over data sets (every set counts the same), then AP of each set.

    `AP` is over all sets given; `AP_odinw13` over the 13 where all of them are among more. A metric that a set does
    not have (-1, no small objects, say) is left out of the mean, but a set's AP never is.
    """
    if not sets:
        raise ValueError("there are no data sets to average.")

    def mean(values: list[float]) -> float:
        return sum(values) / len(values) if values else MISSING

    names = next(iter(sets.values()))
    metrics = {name: mean([s[name] for s in sets.values() if name == "AP" or s[name] > MISSING]) for name in names}
    thirteen = [name for name in sets if name.lower().startswith(tuple(begin.lower() for begin in ODINW13))]
    if len(sets) > len(thirteen) == len(ODINW13):
        metrics["AP_odinw13"] = mean([sets[name]["AP"] for name in thirteen])
    return metrics | {f"AP/{name}": of_set["AP"] for name, of_set in sets.items()}
