"""The one registry: what a `kind` in a YAML file names. Modules are imported only when named.

A kind is a name below, an entry point (`selfloop.algorithms`, `selfloop.sources`, `selfloop.trackers`, `selfloop.curators`),
or `package.module:Class` for a class of one's own, where Python finds it: `python -m selfloop.run` searches the current folder.
"""

import difflib
import importlib
from importlib.metadata import entry_points
from typing import Any

KINDS: dict[str, dict[str, str]] = {
    "algorithms": {
        "gaussian": "selfloop.algorithms.gaussian:GaussianFit",
        "mixture": "selfloop.algorithms.mixture:MixtureFit",
        "kde": "selfloop.algorithms.kde:KdeFit",
        "categorical": "selfloop.algorithms.categorical:CategoricalFit",
        "regression": "selfloop.algorithms.regression:RegressionFit",
        "sims": "selfloop.algorithms.sims:Sims",
        "neon": "selfloop.algorithms.neon:Neon",
    },
    "sources": {
        "gaussian": "selfloop.data:GaussianSource",
        "mixture": "selfloop.data:MixtureSource",
        "categorical": "selfloop.data:CategoricalSource",
        "regression": "selfloop.data:RegressionSource",
        "digits": "selfloop.data:Digits",
    },
    "trackers": {
        "w2": "selfloop.metrics.track:W2",
        "w2_moments": "selfloop.metrics.track:W2Moments",
        "w2_empirical": "selfloop.metrics.track:W2Empirical",
        "frechet": "selfloop.metrics.track:Frechet",
        "sampler_w2": "selfloop.metrics.track:SamplerW2",
        "mean_norm": "selfloop.metrics.track:MeanNorm",
        "variance": "selfloop.metrics.track:Variance",
        "log_det": "selfloop.metrics.track:LogDet",
        "modes": "selfloop.metrics.track:Modes",
        "categories": "selfloop.metrics.track:Categories",
        "excess_risk": "selfloop.metrics.track:ExcessRisk",
        "class_shares": "selfloop.metrics.track:ClassShares",
    },
    "curators": {
        "truncate": "selfloop.curate.select:Truncate",
        "reward": "selfloop.curate.reweight:Reward",
    },
}


def resolve(group: str, kind: str) -> type[Any]:
    """The class that `kind` names in a group of KINDS.

    Raises LookupError, with the names allowed and the nearest one, for an unknown name; ImportError for a class that
    cannot be imported.
    """
    target = KINDS[group].get(kind)
    if target is None and ":" not in kind:
        found = {point.name: point.value for point in entry_points(group=f"selfloop.{group}")}
        target = found.get(kind)
        if target is None:
            raise LookupError(unknown(kind, [*KINDS[group], *found], "or 'package.module:Class' for one of your own"))
    module, _, name = (target or kind).partition(":")
    try:
        found_class: type[Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ImportError(f"cannot import {kind!r}: {error}; is its folder the current one, or installed?") from error
    return found_class


def unknown(given: str, allowed: list[str], more: str = "") -> str:
    """One sentence on a name that is not known: what is allowed and what is nearest."""
    near = difflib.get_close_matches(str(given), allowed, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"must be one of {', '.join(sorted(allowed))}{' ' + more if more else ''}; got {given!r}{hint}"
