"""The one registry: what a `kind` in a YAML file names. Modules are imported only when named.

A kind is a name below, an entry point (`selfloop.algorithms`, `selfloop.sources`, `selfloop.trackers`, `selfloop.curators`,
`selfloop.scores`, `selfloop.embeddings`), or `package.module:Class` for a class of one's own, where Python finds it:
`python -m selfloop.run` searches the current folder.
"""

import difflib
import importlib
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any

KINDS: dict[str, dict[str, str]] = {
    "algorithms": {
        "gaussian": "selfloop.algorithms.gaussian:GaussianFit",
        "mixture": "selfloop.algorithms.mixture:MixtureFit",
        "kde": "selfloop.algorithms.kde:KdeFit",
        "linear_score": "selfloop.algorithms.linear_score:LinearScoreFit",
        "categorical": "selfloop.algorithms.categorical:CategoricalFit",
        "regression": "selfloop.algorithms.regression:RegressionFit",
        "score_net": "selfloop.algorithms.score_net:ScoreNetFit",
        "edm": "selfloop.algorithms.edm:Edm",
        "sims": "selfloop.algorithms.sims:Sims",
        "neon": "selfloop.algorithms.neon:Neon",
        "autoguidance": "selfloop.algorithms.autoguidance:Autoguidance",
        "control": "selfloop.algorithms.control:Control",
        "curated": "selfloop.algorithms.curated:Curated",
    },
    "sources": {
        "gaussian": "selfloop.data:GaussianSource",
        "mixture": "selfloop.data:MixtureSource",
        "categorical": "selfloop.data:CategoricalSource",
        "regression": "selfloop.data:RegressionSource",
        "digits": "selfloop.data:Digits",
        "images": "selfloop.images:Images",
        "eight_gaussians": "selfloop.plane:EightGaussians",
        "grid": "selfloop.plane:Grid",
        "rings": "selfloop.plane:Rings",
        "moons": "selfloop.plane:Moons",
        "checkerboard": "selfloop.plane:Checkerboard",
        "spiral": "selfloop.plane:Spiral",
        "two_classes": "selfloop.plane:TwoClasses",
        "flawed": "selfloop.flawed:Flawed",
    },
    "trackers": {
        "w2": "selfloop.metrics.track:W2",
        "w2_moments": "selfloop.metrics.track:W2Moments",
        "w2_empirical": "selfloop.metrics.track:W2Empirical",
        "frechet": "selfloop.metrics.track:Frechet",
        "sampler_w2": "selfloop.metrics.track:SamplerW2",
        "guidance": "selfloop.metrics.track:Guidance",
        "mean_norm": "selfloop.metrics.track:MeanNorm",
        "variance": "selfloop.metrics.track:Variance",
        "log_det": "selfloop.metrics.track:LogDet",
        "modes": "selfloop.metrics.track:Modes",
        "categories": "selfloop.metrics.track:Categories",
        "excess_risk": "selfloop.metrics.track:ExcessRisk",
        "class_shares": "selfloop.metrics.track:ClassShares",
        "nearest": "selfloop.metrics.nearest:Nearest",
        "pictures": "selfloop.metrics.pictures:Pictures",
        "image_quality": "selfloop.metrics.images:ImageQuality",
    },
    "curators": {
        "truncate": "selfloop.curate.select:Truncate",
        "reward": "selfloop.curate.reweight:Reward",
        "balance": "selfloop.curate.balance:Balance",
        "dro": "selfloop.curate.dro:Dro",
        "group_dro": "selfloop.curate.dro:GroupDro",
        "inverse_frequency": "selfloop.curate.weigh:InverseFrequency",
        "prune": "selfloop.curate.prune:Prune",
        "clusters": "selfloop.curate.clustered:ClusterPruning",
        "hierarchical": "selfloop.curate.hierarchical:Hierarchical",
        "dedup": "selfloop.curate.dedup:Dedup",
        "k_center": "selfloop.curate.cover:KCenter",
        "herding": "selfloop.curate.cover:Herding",
        "d2": "selfloop.curate.graph:D2",
        "file": "selfloop.curate.subset:FromFile",
    },
    "scores": {
        "gaussian": "selfloop.curate.density:GaussianScore",
        "ppca": "selfloop.curate.density:PpcaScore",
        "knn": "selfloop.curate.density:KnnScore",
        "centre": "selfloop.curate.distance:CentreScore",
        "prototypes": "selfloop.curate.distance:PrototypeScore",
        "moderate": "selfloop.curate.distance:ModerateScore",
        "random": "selfloop.curate.distance:RandomScore",
        "denoising_loss": "selfloop.curate.denoising:DenoisingLoss",
        "denoising_gradient": "selfloop.curate.denoising:DenoisingGradient",
        "moso": "selfloop.curate.moso:Moso",
        "forgetting": "selfloop.curate.dynamics:Forgetting",
        "el2n": "selfloop.curate.dynamics:El2n",
        "grand": "selfloop.curate.dynamics:GraNd",
    },
    "embeddings": {
        "pixels": "selfloop.embed.pixels:PixelEmbedding",
        "classifier": "selfloop.embed.classifier:ClassifierEmbedding",
        "inception": "selfloop.embed.published:Inception",
        "dinov2": "selfloop.embed.published:Dinov2",
        "clip": "selfloop.embed.published:Clip",
        "vae": "selfloop.embed.vae:VaeEmbedding",
        "module": "selfloop.embed.module:ModuleEmbedding",
        "pca": "selfloop.embed.pca:PcaEmbedding",
        "file": "selfloop.embed.file:FileEmbedding",
        "cached": "selfloop.embed.cached:CachedEmbedding",
    },
}


def resolve(group: str, kind: str) -> type[Any]:
    """The class that `kind` names in a group of KINDS.

    Raises LookupError, with the names allowed and the nearest one, for an unknown name; ImportError for what cannot be
    imported or is not a class.
    """
    target = KINDS[group].get(kind)
    if target is None and ":" not in kind:
        found = {point.name: point.value for point in entry_points(group=f"selfloop.{group}")}
        target = found.get(kind)
        if target is None:
            raise LookupError(unknown(kind, [*KINDS[group], *found], "or 'package.module:Class' for one of your own"))
    module, _, name = (target or kind).partition(":")
    try:
        named: Any = getattr(importlib.import_module(module), name)
    except Exception as error:  # importing runs the module, which may fail in any way
        what = error if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: {error}"
        remedy = (
            ""
            if error.__class__ not in (ImportError, ModuleNotFoundError)
            else "; is its folder the current one, or installed?"
        )
        raise ImportError(f"cannot import {kind!r}: {what}{remedy}") from error
    if not isinstance(named, type):
        raise ImportError(f"{kind!r} must name a class, and is a {type(named).__name__}")
    return named


def unknown(given: str, allowed: Sequence[str], more: str = "") -> str:
    """One sentence on a name that is not known: what is allowed and what is nearest."""
    near = " or ".join(repr(name) for name in nearest(given, allowed))
    hint = f"; did you mean {near}?" if near else ""
    return f"must be one of {', '.join(sorted(allowed))}{' ' + more if more else ''}; got {given!r}{hint}"


def nearest(given: str, allowed: Sequence[str]) -> list[str]:
    """The names the fewest edits away, if that is few for the length of the word; else the one most alike, if any is."""
    distance = {name: edits(given, name) for name in allowed}
    least = min(distance.values(), default=0)
    if least <= max(1, len(given) // 3):
        return [name for name in allowed if distance[name] == least]
    return difflib.get_close_matches(given, allowed, n=1, cutoff=0.5)


def edits(a: str, b: str) -> int:
    """Insertions, deletions, substitutions and swaps of neighbours that turn a into b (optimal string alignment)."""
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            best = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and y == a[i - 2]:
                best = min(best, rows[-2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return rows[-1][-1]


def kind_of(thing: Any) -> str:
    """The registered name of a thing's class, or the name of the class."""
    return registered().get(target(thing), type(thing).__name__)


def target(thing: Any) -> str:
    """package.module:Class of a thing."""
    return f"{type(thing).__module__}:{type(thing).__name__}"


def path_of(thing: Any) -> str:
    """What a YAML file calls a thing's class: its registered name, else package.module:Class."""
    return registered().get(target(thing), target(thing))


@lru_cache(maxsize=1)
def registered() -> dict[str, str]:
    """package.module:Class -> kind, of all groups."""
    return {place: name for group in KINDS.values() for name, place in group.items()}
