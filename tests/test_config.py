"""Configuration: all faults are found at once, with their line, path, what was given, what is allowed, the nearest name."""

import importlib.metadata
import importlib.util
import itertools
import json
import re
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from selfloop import registry
from selfloop.algorithms.gaussian import GaussianFit
from selfloop.config import describe, fit_key, load, resolved
from selfloop.curate import tool
from selfloop.reading import ConfigError, dotted, read
from selfloop.schema import json_schema

EXPERIMENTS = sorted((Path(__file__).parent.parent / "experiments").glob("*.yaml"))
BASE = """\
seed: 0
generations: 5
replicates: 4
chunk: 2
statistics: true
real: {kind: gaussian, mean: [0], cov: [[1]]}
mix:
  kind: augment
  n_real: 50
algorithm:
  kind: sims
  omega: 1
  n_synthetic: 60
  budget: 0.5
  algorithm:
    kind: gaussian
    sampler: {kind: ancestral, steps: 5}
track:
  w2:
  w2_empirical: {every: 2, n: 20}
madness: {metric: w2, guidance: algorithm.omega, tail: 2}
sweep:
  grid:
    mix.n_synthetic: [40, 60]
    algorithm.omega: [0, 1]
"""


@pytest.fixture
def write(tmp_path):
    def written(text):
        file = tmp_path / "experiment.yaml"
        file.write_text(text)
        return file

    return written


def complaints(file, *overrides):
    """The lines of the error that a file gives."""
    with pytest.raises(ConfigError) as caught:
        load(read(file, overrides))
    return str(caught.value).split("\n")


def edited(*edits):
    """BASE with lines replaced, and the number of the new line that ends in `# <-`."""
    text = BASE
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    marked = [number for number, line in enumerate(text.split("\n"), 1) if line.endswith("# <-")]
    return text, (marked[0] if marked else None)


def points_of(file, *overrides):
    return load(read(file, overrides))


def values_of(file, *overrides):
    return [tuple(point.values.values()) for point in points_of(file, *overrides)]


def test_the_experiment_that_the_others_are_made_from_is_sound(write):
    assert len(points_of(write(BASE))) == 4


NO_SWEEP = (BASE[BASE.index("madness:") :], "")
POINTS = ("statistics: true", "statistics: false")

FAULTS = {
    # names that are not known, at every depth
    "top": ("seed: 0", "seeed: 0  # <-", "seeed", "did you mean 'seed'"),
    "section": ("  n_real: 50", "  n_real: 50\n  wieght_real: 0.5  # <-", "mix.wieght_real", "did you mean 'weight_real'"),
    "algorithm": ("  omega: 1", "  omgea: 1  # <-", "algorithm.omgea", "did you mean 'omega'"),
    "nested": (
        "    kind: gaussian\n",
        "    kind: gaussian\n    shrinkge: 0.1  # <-\n",
        "algorithm.algorithm.shrinkge",
        "'shrinkage'",
    ),
    "sampler": (
        "{kind: ancestral, steps: 5}",
        "{kind: ancestral, stps: 5}  # <-",
        "algorithm.algorithm.sampler.stps",
        "'steps'",
    ),
    "tracker option": ("{every: 2, n: 20}", "{evry: 2, n: 20}  # <-", "track.w2_empirical.evry", "did you mean 'every'"),
    "tracker": ("  w2:\n", "  w3:  # <-\n", "track.w3", "did you mean 'w2'"),
    "madness": ("tail: 2}", "tial: 2}  # <-", "madness.tial", "did you mean 'tail'"),
    "sweep": ("sweep:", "sweep:\n  gird: {}  # <-", "sweep.gird", "did you mean 'grid'"),
    "swept path": (
        "    mix.n_synthetic:",
        "    mix.n_synth: [1]  # <-\n    mix.n_synthetic:",
        "sweep.grid.mix.n_synth",
        "'n_synthetic'",
    ),
    "kind": ("    kind: gaussian\n", "    kind: gausian  # <-\n", "algorithm.algorithm.kind", "did you mean 'gaussian'"),
    "source": ("kind: gaussian, mean", "kind: gaussain, mean", "real.kind", "did you mean 'gaussian'"),
    "kind key": ("  kind: sims", "  knd: sims  # <-", "algorithm.knd", "did you mean 'kind'"),
    "choice": ("  kind: augment", "  kind: agument  # <-", "mix.kind", "one of fully_synthetic, augment", "mean 'augment'"),
    "choice, nested": ("kind: ancestral, steps: 5}", "kind: heum, steps: 5}  # <-", "sampler.kind", "did you mean 'heun'"),
    # types and ranges
    "text for a number": ("generations: 5", "generations: five  # <-", "generations", "a whole number", "got 'five'"),
    "fraction for a count": ("generations: 5", "generations: 5.5  # <-", "generations", "a whole number", "got 5.5"),
    "number for a switch": ("statistics: true", "statistics: 1  # <-", "statistics", "true or false", "got 1"),
    "switch for a number": ("seed: 0", "seed: true  # <-", "seed", "a whole number", "got true"),
    "nothing for a number": ("seed: 0", "seed:  # <-", "seed", "a whole number", "got nothing"),
    "below the range": ("replicates: 4", "replicates: 0  # <-", "replicates", ">= 1", "got 0"),
    "above the range": ("  n_real: 50", "  n_real: 50\n  weight_real: 1.5  # <-", "mix.weight_real", "<= 1", "got 1.5"),
    "not finite": ("  budget: 0.5", "  budget: .nan  # <-", "algorithm.budget", "a finite number", "got nan"),
    "omega below -1": ("    algorithm.omega: [0, 1]", "    algorithm.omega: [0, -2]  # <-", "omega[1]", ">= -1", "got -2"),
    "budget above 1": ("  budget: 0.5", "  budget: 1.5  # <-", "algorithm.budget", "must be at most 1", "got 1.5"),
    "section for a number": ("seed: 0", "seed: {a: 1}  # <-", "seed", "a whole number", "got {'a': 1}"),
    "number for a section": (
        "    sampler: {kind: ancestral, steps: 5}",
        "    sampler: 5  # <-",
        "sampler",
        "section of kind, steps",
    ),
    "number for a tracker": ("{every: 2, n: 20}", "5  # <-", "track.w2_empirical", "a section of options", "got 5"),
    "list item": ("  n_real: 50", "  n_real: [50, ten]  # <-", "mix.n_real[1]", "a whole number", "got 'ten'"),
    "list item out of range": ("  n_real: 50", "  n_real:\n    - 50\n    - -1  # <-", "mix.n_real[1]", ">= 1", "got -1"),
    "empty list": ("  n_real: 50", "  n_real: []  # <-", "mix.n_real", "1 or more values", "got []"),
    "item of a list of lists": ("cov: [[1]]}", "cov: [[.inf]]}  # <-", "real.cov[0][0]", "a finite number", "got inf"),
    "one of two types": (
        "    kind: gaussian\n",
        "    kind: gaussian\n    shrinkage: osa  # <-\n",
        "shrinkage",
        "a number or oas",
        "mean 'oas'",
    ),
    "two fields at odds": (
        "  n_real: 50",
        "  n_real: 50\n  ratio: 1",
        "sweep.grid.mix.n_synthetic",
        "give one of n_synthetic, ratio, fraction",
    ),
    "covariance": ("cov: [[1]]}", "cov: [[0]]}  # <-", "real.cov", "positive definite", "add to its diagonal"),
    # the shape of the file
    "missing field": ("mix:\n  kind: augment\n  n_real: 50", "mix:  # <-\n  kind: augment", "mix.n_real", "is missing"),
    "missing kind": (
        "    kind: gaussian\n    sampler: {kind: ancestral, steps: 5}",
        "    sampler: heun",
        "algorithm",
        "needs a kind",
    ),
    "twice": ("  omega: 1", "  omega: 1\n  omega: 2  # <-", "algorithm.omega", "given twice, first in line 12"),
    "no tracker": ("track:\n  w2:\n  w2_empirical: {every: 2, n: 20}", "track: {}  # <-", "track", "one name at least"),
    "two trackers of a kind": (
        "{every: 2, n: 20}",
        "{every: 2, n: 20}\n  more: {kind: w2_empirical, n: 40}  # <-",
        "track.more",
        "same metrics",
    ),
    # the sweep
    "empty axis": (
        "    algorithm.omega: [0, 1]",
        "    algorithm.omega: []  # <-",
        "sweep.grid.algorithm.omega",
        "one value at least",
    ),
    "axis of one number": (
        "    algorithm.omega: [0, 1]",
        "    algorithm.omega: 3  # <-",
        "sweep.grid.algorithm.omega",
        "got 3",
    ),
    "unequal zip": (
        "sweep:",
        "sweep:\n  zip:\n    - algorithm.budget: [0.1, 0.2]  # <-\n      mix.n_real: [10]",
        "sweep.zip[0]",
        "equally many values",
        "algorithm.budget: 2, mix.n_real: 1",
    ),
    "empty zip": ("sweep:", "sweep:\n  zip:\n    - {}  # <-", "sweep.zip[0]", "names no path"),
    "swept twice": ("sweep:", "sweep:\n  zip:\n    - mix.n_synthetic: [1, 2]  # <-", "zip[0].mix.n_synthetic", "swept twice"),
    "swept whole": ("sweep:\n  grid:", "sweep:\n  grid:\n    seed: [1, 2]  # <-", "sweep.grid.seed", "cannot be swept"),
    "a point twice": (
        "    algorithm.omega: [0, 1]",
        "    algorithm.omega: [0, 1, 1.0]",
        "sweep",
        "mix.n_synthetic: 40, algorithm.omega: 1.0",
    ),
    "a value of the sweep": (
        "    algorithm.omega: [0, 1]",
        "    algorithm.omega: [0, x]  # <-",
        "omega[1]",
        "a number",
        "got 'x'",
    ),
    "through a number": (
        "    mix.n_synthetic:",
        "    seed_.x: [1]  # <-\n    mix.n_synthetic:",
        "seed_",
        "did you mean 'seed'",
    ),
    "in a label": (
        "sweep:\n  grid:",
        "sweep:\n  grid:\n    algorithm.algorithm:\n      a: {shrinkage: 0.1}\n      b:\n        shrinkge: 0.1  # <-",
        "sweep.grid.algorithm.algorithm.b.shrinkge",
        "algorithm.algorithm.shrinkge",
        "did you mean 'shrinkage'",
    ),
    "no standard": ("    algorithm.omega: [0, 1]", "    algorithm.omega: [2, 1]", "madness.standard", "standard value; got 0"),
    "unswept guidance": (
        "guidance: algorithm.omega",
        "guidance: mix.n_real",
        "madness.guidance",
        "must be one of algorithm.omega",
    ),
    "unknown metric": ("metric: w2,", "metric: w3,", "madness.metric", "did you mean 'w2'"),
    # pairs that do not fit
    "sims over kde": (
        "algorithm:\n    kind: gaussian\n    sampler: {kind: ancestral, steps: 5}",
        "algorithm:  # <-\n    kind: kde",
        "algorithm.algorithm",
        "must offer interpolate and tune, and kde does not",
        "gaussian, mixture",
    ),
    "too few for the dimension": ("  n_real: 50", "  n_real: 1  # <-", "mix.n_real", ">= 2 points", "d = 1", "got 1"),
    "too few for the auxiliary": (
        "  n_synthetic: 60",
        "  n_synthetic: 1  # <-",
        "algorithm.n_synthetic",
        ">= 2 points",
        "got 1",
    ),
    "curators with statistics": (
        "  n_real: 50",
        "  n_real: 50\n  curators: [{kind: truncate, radius: 2}]  # <-",
        "mix.curators",
        "statistics: false",
    ),
    "subsample with statistics": ("  kind: augment", "  kind: accumulate_subsample  # <-", "mix.kind", "set statistics: false"),
    "warm budget": (
        "  n_real: 50\nalgorithm:\n  kind: sims",
        "  n_real: 50\n  warm: 0.5  # <-\nalgorithm:\n  kind: sims",
        "mix.warm",
        "cannot be tuned",
    ),
}


@pytest.mark.parametrize("case", FAULTS.values(), ids=FAULTS)
def test_a_fault_names_its_line_its_path_what_is_allowed_and_what_was_given(write, case):
    old, new, path, *fragments = case
    text, line = edited((old, new))
    file = write(text)
    found = [complaint for complaint in complaints(file) if f"{path}: " in complaint.replace(f"{file}", "")]
    assert found, complaints(file)
    assert all(fragment in found[0] for fragment in fragments), found[0]
    anywhere = r"\d+"
    assert re.match(rf"{re.escape(str(file))}:{line or anywhere}: ", found[0]), (line, found[0])


GAUSS = "{kind: gaussian, mean: [0, 0], cov: [[1, 0], [0, 1]]}"
SIMPLE = {
    "generations": "5",
    "replicates": "2",
    "statistics": "false",
    "real": GAUSS,
    "mix": "{kind: augment, n_real: 50}",
    "algorithm": "gaussian",
    "track": "{variance: }",
}


def simple(**sections):
    """An experiment of one line a section."""
    return "".join(f"{name}: {text}\n" for name, text in {**SIMPLE, **sections}.items())


PAIRS = {
    "w2 over a mixture": (
        "track.w2",
        "an exact Gaussian law, and mixture gives none",
        "algorithm {kind: mixture, components: 2}",
        "track {w2: }",
    ),
    "statistics over a mixture": (
        "statistics",
        "and mixture gives none; set",
        "algorithm {kind: mixture, components: 2}",
        "statistics true",
    ),
    "statistics of points": (
        "statistics",
        "has none; set",
        "statistics true",
        "real {kind: mixture, means: [[0], [1]], std: 1}",
    ),
    "dimension of a curator": (
        "mix.curators[0]",
        "judges points of dimension 1, and the real data (gaussian) has dimension 2",
        "mix {n_real: 50, curators: [{kind: reward, strength: 1.0, target: [0]}]}",
        "statistics false",
    ),
    "more clusters than real rows": (
        "algorithm.curators[0].clusters",
        "needs 51 rows or more, and there are 50; ask for less",
        "algorithm {kind: curated, algorithm: kde, curators: [{kind: inverse_frequency, clusters: {k: 51}}]}",
    ),
    "more clusters than rows handed on": (
        "mix.curators[1].clusters",
        "needs 41 rows or more, and there are 40",
        "mix {n_real: 50, n_synthetic: [60, 40], curators: "
        "[{kind: truncate, radius: 9}, {kind: inverse_frequency, clusters: {k: 41}}]}",
    ),
    "fewer rows than neighbours in a later generation": (
        "algorithm.curators[0].score",
        "needs 31 rows or more, and there are 30",
        "mix {kind: fully_synthetic, n_real: 50, n_synthetic: 30}",
        "algorithm {kind: curated, algorithm: kde, curators: "
        "[{kind: prune, score: {kind: knn, k: 30}, fraction: 0.5, keep: low}]}",
    ),
    "curation within classes of a law": (
        "algorithm.curators[0]",
        "needs real data with class labels, and gaussian has none; use another source, or set within: data, or cluster",
        "generations 1",
        "algorithm {kind: curated, algorithm: kde, curators: [{kind: k_center, fraction: 0.5, within: class}]}",
    ),
    "curation by a score of each class of a law": (
        "algorithm.curators[0].score",
        "needs real data with class labels, and gaussian has none; use another source, or set per_class: false",
        "generations 1",
        "algorithm {kind: curated, algorithm: kde, curators: [{kind: prune, score: {kind: ppca}, fraction: 0.5, keep: low}]}",
    ),
    "curation within classes of samples": (
        "mix.curators[0]",
        "needs class labels, and samples of kde have none; use another algorithm, or set within: data, or cluster",
        "real {kind: two_classes, shares: [0.5, 0.5]}",
        "algorithm kde",
        "mix {n_real: 50, curators: [{kind: prune, score: random, fraction: 0.5, keep: low, within: class}]}",
    ),
    "rows of a fixed design": (
        "mix.n_synthetic",
        "must be n_real = 50",
        "algorithm {kind: regression, noise: 1.0}",
        "real {kind: regression, coefficients: [1.0]}",
        "mix {n_real: 50, n_synthetic: 20}",
    ),
    "warm": ("mix.warm", "kde cannot be tuned", "mix {n_real: 50, warm: 0.5}", "algorithm kde"),
    "warm too far": ("mix.warm", "<= 1, the whole way", "mix {n_real: 50, warm: 2}"),
    "n_real <= d": ("mix.n_real", ">= 3 points for a fit of gaussian in d = 2", "mix {n_real: 2}"),
    "n_synthetic <= d": ("mix.n_synthetic", "got 2", "mix {kind: fully_synthetic, n_real: 50, n_synthetic: 2}"),
    "two fields at odds": ("mix.ratio", "give one of n_synthetic, ratio, fraction", "mix {n_real: 9, ratio: 1, fraction: 0.5}"),
    "real sizes of a fixed set": ("mix.n_real", "only in a fresh loop", "mix {kind: fully_synthetic, n_real: [50, 2]}"),
    "classes of a law": ("track.class_shares", "needs real data with class labels", "track {class_shares: }"),
    "fresh data set too small": (
        "mix.n_real",
        "use 2500 real rows, and digits has 1348",
        "real digits",
        "mix {kind: fresh, n_real: 500}",
        "algorithm {kind: mixture, components: 2}",
    ),
    "bias": (
        "mix.bias",
        "regression has no sampling bias",
        "real {kind: regression, coefficients: [1]}",
        "mix {n_real: 50, bias: 0.5}",
        "algorithm {kind: regression, noise: 1}",
        "track {excess_risk: }",
    ),
}


@pytest.mark.parametrize("case", PAIRS.values(), ids=PAIRS)
def test_a_pair_that_does_not_fit_is_refused_before_anything_runs(write, case):
    path, fragment, *sections = case
    file = write(simple(**dict(section.split(" ", 1) for section in sections)))
    (found,) = complaints(file)
    line = list(SIMPLE).index(path.split(".")[0]) + 1
    assert found.startswith(f"{file}:{line}: {path}: ")
    assert fragment in found


CURATION = """data: {kind: gaussian, mean: [0], cov: [[1]]}
n: 50
curators:
  - kind: dedup
    clusters: {k: 1}
    epsilon: 0.1
    survivor: first
    order: high
    score:
      kind: moderate
  - kind: prune
    fraction: 0.5
    keep: low
    within: class
    score: {kind: knn, per_class: true}
"""


def test_all_that_a_curation_wants_of_classes_is_refused_at_once_where_there_are_none(tmp_path):
    file = tmp_path / "curation.yaml"
    file.write_text(CURATION)
    with pytest.raises(ConfigError) as caught:
        tool.load(read(file))
    places = (
        (9, "[0].score", "per_class: false"),
        (11, "[1]", "within: data, or cluster"),
        (15, "[1].score", "per_class: false"),
    )
    lacks = "needs real data with class labels, and gaussian has none; use another source, or set"
    assert str(caught.value).splitlines() == [f"{file}:{line}: curators{path}: {lacks} {to}" for line, path, to in places]
    for changes in (
        ["data={kind: two_classes, shares: [0.5, 0.5]}"],
        ["curators.0.score.per_class=false", "curators.1.score.per_class=false", "curators.1.within=data"],
    ):
        assert tool.load(read(file, changes))


def test_classes_of_labelled_data_may_be_curated_where_no_samples_are(write):
    curated = (
        "{kind: curated, algorithm: kde, curators: [{kind: prune, score: gaussian, fraction: 0.5, keep: low, within: class}]}"
    )
    sections = {"real": "{kind: two_classes, shares: [0.5, 0.5]}", "algorithm": curated}
    assert load(read(write(simple(generations="1", **sections))))
    assert len(complaints(write(simple(**sections)))) == 2  # of generation 2 on


CURATED = "{kind: curated, algorithm: kde, curators: [{kind: inverse_frequency, clusters: {k: K}}]}"
HANDED_ON = "n_real: 50, n_synthetic: 40, curators: [{kind: inverse_frequency, clusters: {k: K}}]"


@pytest.mark.parametrize(
    ("k", "mix", "algorithm"),
    [
        (50, "{n_real: 50, n_synthetic: 9}", CURATED),
        (60, "{n_real: 50, pollution: {n: 10, algorithm: gaussian}}", CURATED),
        (40, "{" + HANDED_ON + "}", "gaussian"),
        (80, "{correction: 1.0, " + HANDED_ON + "}", "gaussian"),
    ],
)
def test_as_many_clusters_as_rows_are_allowed_and_one_more_is_not(write, k, mix, algorithm):
    def text(k):
        return simple(mix=mix.replace("K", str(k)), algorithm=algorithm.replace("K", str(k)))

    assert load(read(write(text(k))))
    (found,) = complaints(write(text(k + 1)))
    assert f"curators[0].clusters: needs {k + 1} rows or more, and there are {k};" in found


def test_a_missing_package_is_told_at_the_part_that_needs_it(write, monkeypatch):
    file = write(simple(algorithm=CURATED.replace("K", "3")))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "faiss" else find(name))
    (found,) = complaints(file)
    remedy = "clusters and nearest neighbours need faiss; run: pip install faiss-cpu"
    assert found == f"{file}:6: algorithm.curators[0].clusters: {remedy}"


def test_all_faults_are_told_at_once_in_the_order_of_the_file(write):
    changes = [
        ("seed: 0", "seed: -1"),
        ("  budget: 0.5", "  budgte: 0.5"),
        ("  w2:\n", "  w2: {evry: 1}\n"),
        ("[40, 60]", "[]"),
    ]
    found = complaints(write(edited(*changes)[0]), "mix.n_real=0", "chunk")
    assert [re.sub(r".*yaml:(\d+): ", r"\1 ", line).split(": ")[0] for line in found] == [
        "command line", "1 seed", "14 algorithm.budgte", "19 track.w2.evry", "24 sweep.grid.mix.n_synthetic", "command line",
    ]  # fmt: skip


def test_parts_that_do_not_fit_are_found_beside_a_fault_elsewhere(write):
    text, _ = edited(("seed: 0", "seed: -1"), ("generations: 5", "generations: 0"), ("  n_real: 50", "  n_real: 1"))
    assert [line.split(": ")[1] for line in complaints(write(text))] == ["seed", "generations", "mix.n_real"]


def test_a_fault_that_all_values_of_an_axis_share_is_told_once_at_the_axis(write):
    found = complaints(write(BASE), "algorithm=gaussian")
    assert len(found) == 1
    assert "experiment.yaml:25: sweep.grid.algorithm.omega: algorithm.omega: must be one of estimator" in found[0]


@pytest.mark.parametrize(
    ("text", "line", "fragment"),
    [
        ("a: [1\nb: 2", 2, "not YAML: expected ',' or ']'"),
        ("a: 1\n b: 2", 2, "not YAML"),
        ("a: &x [*x]", 1, "not YAML: the alias *x is inside what it names"),
        ("a: *x", 1, "not YAML: found undefined alias"),
        ("a: !!python/object:os.system x", 1, "not YAML: could not determine a constructor"),
        ("? [1, 2]\n: 3", 1, "not YAML: found unhashable key"),
        ("", None, "a mapping of sections (real:, mix:, algorithm:, ...); got nothing"),
        ("- 1", None, "a mapping of sections (real:, mix:, algorithm:, ...); got a list"),
        ("hello", None, "got a str"),
    ],
)
def test_what_is_no_mapping_in_yaml_is_told_with_its_line(write, text, line, fragment):
    file = write(text)
    (found,) = complaints(file)
    assert fragment in found
    assert found.startswith(f"{file}:{line}: " if line else f"{file}: ")


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    assert complaints(tmp_path / "none.yaml") == [
        f"cannot read {tmp_path / 'none.yaml'}: No such file or directory; give the path of a YAML file"
    ]
    assert "Is a directory" in complaints(tmp_path)[0]
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not a text in UTF-8" in complaints(tmp_path / "binary.yaml")[0]


def test_numbers_and_keys_are_read_as_they_are_written(write):
    text, _ = edited(
        ("  budget: 0.5", "  budget: 5e-1"), ("    algorithm.omega: [0, 1]", "    algorithm.omega: {off: 0, on: 1}"), NO_MADNESS
    )
    found = points_of(write(text))
    assert found[0].experiment.algorithm.budget == 0.5
    assert [point.values["algorithm.omega"] for point in found] == ["off", "on", "off", "on"]


NO_MADNESS = ("madness: {metric: w2, guidance: algorithm.omega, tail: 2}\n", "")

# Overrides -------------------------------------------------------------------------------------------------------------


def test_overrides_set_values_lists_and_sections(write):
    file = write(edited(NO_SWEEP)[0])

    def one(*overrides):
        (point,) = points_of(file, *overrides)
        return point.experiment

    assert one("generations=7").generations == 7
    assert one("algorithm.algorithm.sampler.steps=9").algorithm.algorithm.sampler.steps == 9
    assert one("mix.kind=fresh", "mix.n_real=[10, 20]", "mix.n_real.1=30").mix.n_real == (10, 30)
    assert one("algorithm=gaussian").algorithm == GaussianFit()
    assert one("algorithm=gaussian", "algorithm.shrinkage=oas").algorithm == GaussianFit(shrinkage="oas")
    assert one("algorithm.algorithm.sampler=heun").algorithm.algorithm.sampler.kind == "heun"
    assert one("track.w2.every=3").track["w2"].every == 3
    assert list(one("track={mine: w2}").track) == ["mine"]
    assert one("real.mean=[1e-3]").real.mean == (1e-3,)
    assert one("sweep=").sweep.grid == {}


def test_overrides_reach_into_the_sweep(write):
    file = write(edited(NO_MADNESS)[0])
    assert values_of(file, "sweep.grid.algorithm.omega=[5]", "sweep.grid.mix.n_synthetic=[7, 8]") == [(7, 5), (8, 5)]
    assert len(points_of(file, "sweep.zip=[{algorithm.budget: [0.1, 0.2]}]", "sweep.zip.0.algorithm.n_synthetic=[10, 20]")) == 8


@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("generations", "'generations': an override is key.path=value"),
        ("=3", "'=3': an override is key.path=value"),
        ("a..b=3", "an override is key.path=value"),
        ("mix.n_real.x=3", "mix.n_real is 50, not a section, and holds no 'x'"),
        ("sweep.grid.algorithm.omega.0=3", "algorithm.omega.0"),
        ("seed=[1", "the value is not YAML; quote it"),
        ("algorithm.omega=3", "is swept, and the sweep would win; override sweep.grid.algorithm.omega=[...] instead"),
        (
            "algorithm={kind: sims, budget: 1, n_synthetic: 0, algorithm: gaussian}",
            "command line: algorithm.n_synthetic: must be >= 1",
        ),
        ("mixx.n_real=3", "command line: mixx: must be one of"),
        ("generations=-1", "command line: generations: must be >= 1; got -1"),
    ],
)
def test_a_wrong_override_is_blamed_on_the_command_line(write, override, fragment):
    found = complaints(write(BASE), override)
    assert len(found) == 1
    assert fragment in found[0]
    assert found[0].startswith("command line: ")


def test_an_override_that_the_sweep_undoes_is_refused(write):
    labels = "    algorithm:\n      a: {kind: gaussian}\n      b: {kind: gaussian, shrinkage: 0.1}\n"
    text, _ = edited(NO_MADNESS, ("    algorithm.omega: [0, 1]\n", labels))
    assert "algorithm.budget: is undone by the sweep" in complaints(write(text), "algorithm.budget=0.1")[0]


# One edit away ---------------------------------------------------------------------------------------------------------


def paths_of(tree, path=()):
    if isinstance(tree, dict):
        for key, value in tree.items():
            if path[:2] != ("sweep", "grid"):
                yield (*path, key)
            yield from paths_of(value, (*path, key))


LETTERS = st.sampled_from("abcdefghijklmnopqrstuvwxyz_0123456789")
PATHS = sorted(paths_of(yaml.safe_load(BASE)))


@st.composite
def misspelt(draw, word):
    edit, at = draw(st.sampled_from(["drop", "swap", "change", "insert"])), draw(st.integers(0, len(word) - 1))
    if edit == "drop":
        return word[:at] + word[at + 1 :]
    if edit == "swap":
        return word[:at] + word[at + 1 : at + 2] + word[at : at + 1] + word[at + 2 :]
    return word[:at] + draw(LETTERS) + word[at + (edit == "change") :]


@settings(deadline=None, max_examples=60)  # the first example imports the algorithms
@given(st.sampled_from(PATHS), st.data())
def test_a_known_key_with_one_edit_is_always_named_with_the_right_suggestion(tmp_path_factory, path, data):
    word = data.draw(misspelt(path[-1]))
    assume(word not in ("", path[-1]))
    file = tmp_path_factory.getbasetemp() / "misspelt.yaml"
    file.write_text(BASE)
    line = read(file).lines[path]
    lines = BASE.split("\n")
    lines[line - 1] = re.sub(rf"\b{path[-1]}:", f"{word}:", lines[line - 1], count=1)
    file.write_text("\n".join(lines))
    start = f"{file}:{line}: {dotted((*path[:-1], word))}: "
    found = [complaint for complaint in complaints(file) if complaint.startswith(start)]
    assert len(found) == 1, complaints(file)
    assert re.search(rf"did you mean .*'{path[-1]}'", found[0]), found[0]


# Sweeps ----------------------------------------------------------------------------------------------------------------


def test_a_grid_is_the_product_of_its_axes_the_last_one_fastest(write):
    assert values_of(write(BASE)) == list(itertools.product([40, 60], [0, 1]))


def test_a_zip_moves_its_paths_together_inside_the_product(write):
    text, _ = edited(
        NO_MADNESS, ("sweep:\n", "sweep:\n  zip:\n    - algorithm.budget: [0.1, 0.2]\n      mix.n_real: [10, 20]\n")
    )
    assert values_of(write(text), "sweep.grid={algorithm.omega: [0, 1]}") == [
        (0, 0.1, 10), (0, 0.2, 20), (1, 0.1, 10), (1, 0.2, 20),
    ]  # fmt: skip


def test_a_label_merges_its_override_and_replaces_a_section_of_another_kind(write):
    labels = "    algorithm.algorithm:\n      a: {shrinkage: 0.1}\n      b: {kind: mixture, components: 2, sampler: heun}\n"
    text, _ = edited(NO_MADNESS, ("    algorithm.omega: [0, 1]\n", labels), POINTS, ("  w2:\n", ""))
    merged, replaced = points_of(write(text), "sweep.grid.mix.n_synthetic=[40]")
    assert merged.values["algorithm.algorithm"] == "a"
    assert merged.experiment.algorithm.algorithm.shrinkage == 0.1
    assert merged.experiment.algorithm.algorithm.sampler.steps == 5, "what the override does not name stays"
    assert describe(replaced.experiment.algorithm.algorithm)["kind"] == "mixture"
    assert replaced.experiment.algorithm.algorithm.sampler.kind == "heun"


def test_a_label_that_names_a_kind_merges_into_a_section_that_names_none(write):
    """mix has a kind by default: sweeping over whole mixes keeps the sizes that are said once."""
    text = (
        "real: {kind: gaussian, mean: [0], cov: [[1]]}\nmix: {n_real: 200}\nalgorithm: gaussian\ntrack: {w2: }\n"
        "sweep:\n  grid:\n    mix:\n      replace: {kind: fully_synthetic}\n      more: {kind: augment, ratio: 2.0}\n"
    )
    mixes = [point.experiment.mix for point in points_of(write(text))]
    assert [(mix.kind, mix.n_real, mix.ratio) for mix in mixes] == [
        ("fully_synthetic", (200,), None),
        ("augment", (200,), (2.0,)),
    ]


@pytest.mark.parametrize("empty", ["{}", "{grid: {}}", "{zip: []}", "{independent: true}"])
def test_a_sweep_without_an_axis_is_an_error(write, empty):
    text, _ = edited(NO_SWEEP)
    with pytest.raises(ConfigError, match="sweep: names no axis; give it a grid or a zip, or remove it"):
        points_of(write(text), f"sweep={empty}")


PRUNED = "{kind: curated, algorithm: kde, curators: [{kind: prune, score: gaussian}]}"


def test_what_is_missing_is_said_with_its_values_where_they_are_known(write):
    with pytest.raises(ConfigError) as caught:
        points_of(write(edited(NO_SWEEP)[0]), f"algorithm={PRUNED}")
    assert [fault.text for fault in caught.value.faults] == [
        "is missing; it has no default",
        "is missing; it has no default; give one of high, low, middle, interval, stratified",
    ]


def test_what_a_broken_sweep_may_hold_is_not_said_to_be_missing(write):
    with pytest.raises(ConfigError) as caught:
        points_of(write(edited(NO_SWEEP)[0]), f"algorithm={PRUNED}", "sweep={grid: {algorithm.curators.0.keep: 1}}")
    assert [fault.path for fault in caught.value.faults] == [("sweep", "grid", "algorithm.curators.0.keep")]


def test_a_tracker_is_switched_off_by_false_and_not_by_nothing(write):
    def tracked(*overrides: str) -> list[str]:
        return list(points_of(write(BASE), *overrides)[0].experiment.track)

    assert "variance" not in tracked("track.variance=false")
    assert "variance" in tracked("track.variance=null")
    assert "w2" in tracked("track.variance=false")


def test_a_section_is_set_before_what_is_inside_it_whatever_the_order(write):
    text, _ = edited(
        NO_MADNESS,
        ("    algorithm.omega: [0, 1]\n", "    algorithm.omega: [0, 1]\n    algorithm: {a: {omega: 9, budget: 0.1}}\n"),
    )
    assert [(p.experiment.algorithm.omega, p.experiment.algorithm.budget) for p in points_of(write(text))][:2] == [
        (0, 0.1),
        (1, 0.1),
    ]


def test_points_that_differ_in_sampling_alone_share_their_first_fit(write):
    keys = [fit_key(point) for point in points_of(write(BASE))]
    assert keys[0] == keys[1] != keys[2] == keys[3]
    apart = [fit_key(point) for point in points_of(write(BASE), "sweep.independent=true")]
    assert len(set(apart)) == 4


def test_one_and_one_point_zero_name_one_point(write):
    names = [[point.key for point in points_of(write(BASE), f"sweep.grid.algorithm.omega=[0, {one}]")] for one in ("1", "1.0")]
    assert names[0] == names[1]


# Round trip and schema -------------------------------------------------------------------------------------------------


def same(points, others):
    return [(p.values, describe(p.experiment)) for p in points] == [(p.values, describe(p.experiment)) for p in others]


MERGING = edited(
    NO_MADNESS,
    ("    algorithm.omega: [0, 1]\n", "    algorithm.algorithm:\n      a: {shrinkage: 0.5}\n      b: {estimator: unbiased}\n"),
)[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [*[(file.stem, file.read_text()) for file in EXPERIMENTS], ("base", BASE), ("merging", MERGING)],
    ids=[*[f.stem for f in EXPERIMENTS], "base", "merging"],
)
def test_the_resolved_experiment_reads_back_to_the_same_points(write, name, text, presets):
    source = read(write(text), presets.get(name, []))
    points = load(source)
    again = read(write(yaml.safe_dump(resolved(source, points), sort_keys=False)))
    assert [point.values for point in points] == [point.values for point in load(again)]
    for a, b in zip(points, load(again), strict=True):
        one, two = describe(a.experiment), describe(b.experiment)
        assert {**one, "sweep": None} == {**two, "sweep": None}
    assert resolved(again, load(again)) == resolved(source, points)


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_the_description_of_a_point_reads_back_to_the_same_point(write, file, presets):
    for point in load(read(file, presets.get(file.stem, [])))[:3]:
        described = {**describe(point.experiment), "sweep": None, "madness": None}
        (again,) = points_of(write(yaml.safe_dump(described)))
        assert {**describe(again.experiment), "sweep": None} == described


def test_the_committed_schema_is_the_one_that_is_printed():
    committed = (EXPERIMENTS[0].parent / "schema.json").read_text()
    assert committed == json.dumps(json_schema(), indent=2) + "\n", "run: make schema"


SCHEMA = jsonschema.Draft202012Validator(json_schema())


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_the_schema_accepts_every_experiment(file):
    SCHEMA.check_schema(SCHEMA.schema)
    assert list(SCHEMA.iter_errors(yaml.safe_load(file.read_text()))) == []


@pytest.mark.parametrize(
    "edit",
    [
        ("seed: 0", "seeed: 0"),
        ("  omega: 1", "  omgea: 1"),
        ("stat", "sttat"),
        ("steps: 5", "stps: 5"),
        ("every: 2", "evry: 2"),
        ("tail: 2", "tial: 2"),
        ("  grid:", "  gird:"),
        ("  w2:\n", "  w3:\n"),
        ("kind: ancestral", "kind: ancestrl"),
        ("[40, 60]", "[]"),
        ("  budget: 0.5\n", ""),
        ("  n_real: 50", "  n_real: 0"),
        ("seed: 0", "seed: x"),
    ],
)
def test_the_schema_rejects_what_the_reader_rejects(edit):
    assert list(SCHEMA.iter_errors(yaml.safe_load(BASE))) == []
    assert list(SCHEMA.iter_errors(yaml.safe_load(edited(edit)[0]))) != []


@pytest.mark.parametrize(
    "edit",
    [
        ("{kind: ancestral, steps: 5}", "heun"),
        ("{every: 2, n: 20}", "{kind: w2_empirical}"),
        (BASE[BASE.index("sweep:") :], "sweep:\n"),
        ("  w2:\n", "  mine: {kind: w2}\n"),
        ("    kind: gaussian\n", "    kind: my_module:Mine\n    anything: 3\n"),
    ],
)
def test_the_schema_accepts_short_forms_and_classes_of_ones_own(edit):
    assert list(SCHEMA.iter_errors(yaml.safe_load(edited(edit)[0]))) == []


# Quick -----------------------------------------------------------------------------------------------------------------

QUICK = (
    f"{BASE}quick:\n  generations: 2\n  replicates: 3\n  sweep.grid.mix.n_synthetic: [7]\n  mix: {{kind: fresh, n_real: 9}}\n"
)
LAID = ["generations=2", "replicates=3", "sweep.grid.mix.n_synthetic=[7]", "mix={kind: fresh, n_real: 9}"]


def test_quick_lays_its_section_over_the_file_as_overrides_would_and_names_the_run(write):
    file = write(QUICK)
    assert same(points_of(file, "quick=true"), points_of(write(BASE), *LAID, "name=experiment-quick"))
    assert same(points_of(write(QUICK), "quick=true", "name=mine"), points_of(write(BASE), *LAID, "name=mine-quick"))
    assert [p.experiment.name for p in points_of(write("name: own\n" + QUICK), "quick=true")] == ["own-quick"] * 2


@pytest.mark.parametrize("overrides", [[], ["quick=false"], ["quick=true", "quick=false"], ["generations=9", "quick=false"]])
def test_without_quick_the_file_is_as_if_it_had_no_such_section(write, overrides):
    found = points_of(write(QUICK), *overrides)
    assert same(found, points_of(write(BASE), *[text for text in overrides if "quick" not in text]))


def test_other_overrides_win_over_the_quick_section_wherever_they_stand(write):
    file = write(QUICK)
    for overrides in itertools.permutations(["quick=true", "generations=8", "sweep.grid.mix.n_synthetic=[20, 30]"]):
        found = points_of(file, *overrides)
        assert {(p.experiment.generations, p.experiment.replicates) for p in found} == {(8, 3)}
        assert [p.values["mix.n_synthetic"] for p in found] == [20, 20, 30, 30]


QUICK_FAULTS = {
    "name": ("generatoins: 2", "generatoins", "did you mean 'generations'"),
    "value": ("generations: 0", "generations", "must be >= 1; got 0"),
    "type": ("replicates: many", "replicates", "must be a whole number; got 'many'"),
    "name below": ("mix.n_rael: 3", "mix.n_rael", "did you mean 'n_real'"),
    "name above": ("mixx.n_real: 3", "mixx", "did you mean 'mix'"),
    "through a number": ("mix.n_real.x: 3", None, "mix.n_real is 50, not a section, and holds no 'x'"),
    "no path": ("mix..n_real: 3", None, "a key of this section is a path, key.path"),
    "itself": ("quick.generations: 3", None, "quick is laid over the other sections; set generations itself"),
    "a value of an axis": ("sweep.grid.algorithm.omega: [0, x]", "sweep.grid.algorithm.omega[1]", "a number", "got 'x'"),
    "no value of an axis": ("sweep.grid.algorithm.omega: []", "sweep.grid.algorithm.omega", "one value at least"),
    "what the sweep wins over": ("algorithm.omega: 1", "algorithm.omega", "is swept, and the sweep would win"),
    "inside a section": ("mix: {kind: augment, n_rael: 3, n_real: 3}", "mix.n_rael", "did you mean 'n_real'"),
}


@pytest.mark.parametrize("case", QUICK_FAULTS.values(), ids=QUICK_FAULTS)
def test_a_fault_of_the_quick_section_is_told_with_its_line_whether_it_is_in_use_or_not(write, case):
    setting, path, *fragments = case
    file = write(BASE + f"quick:\n  seed: 1\n  {setting}\n")
    line = BASE.count("\n") + 3
    written = f"quick.{setting.split(':')[0]}"
    for overrides, where in (([], f"quick.{path}"), (["quick=true"], path)):
        (found,) = complaints(file, *overrides)
        assert found.startswith(f"{file}:{line}: {where if path else written}: "), found
        assert all(fragment in found for fragment in fragments), found


def test_a_value_of_the_file_that_the_quick_section_makes_wrong_is_told_at_its_own_line(write):
    file = write(BASE + "quick:\n  sweep.grid.algorithm.omega: [1, 2]\n")
    (found,) = complaints(file)
    assert found == f"{file}:21: quick.madness.standard: the sweep of algorithm.omega must hold the standard value; got 0"


def test_what_the_command_line_changes_is_not_checked_against_a_quick_section_that_is_not_in_use(write):
    file, rule = write(edited(NO_MADNESS)[0] + "quick: {replicates: 1}\n"), NO_MADNESS[0].strip().replace(": ", "=", 1)
    assert len(points_of(file, rule)) == 4
    assert "replicates" in complaints(file, rule, "quick=true")[0]
    unfinished = write(edited(NO_SWEEP, ("  n_real: 50\n", ""))[0] + "quick: {generations: 2}\n")
    assert len(points_of(unfinished, "mix.n_real=50")) == 1
    assert [line.split(": ")[1] for line in complaints(unfinished)] == ["mix.n_real"], "told once"


@pytest.mark.parametrize("given", ["", " {}", " true", " [generations]"])
def test_a_quick_section_that_is_none_is_told(write, given):
    file = write(BASE + f"quick:{given}\n")
    for overrides in ([], ["quick=true"]):
        (found,) = complaints(file, *overrides)
        line = BASE.count("\n") + 1
        assert found.startswith(f"{file}:{line}: quick: must be a section of key.path: value, with one at least; got ")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["quick=3"], "'quick=3': must be true or false; got 3"),
        (["quick="], "'quick=': must be true or false; got nothing"),
        (["quick"], "'quick': an override is key.path=value"),
        (["quick.generations=3"], "quick is laid over the other sections; set generations itself"),
        (["quik=true"], "quik: must be one of"),
    ],
)
def test_quick_on_the_command_line_is_true_or_false(write, overrides, told):
    (found,) = complaints(write(QUICK), *overrides)
    assert found.startswith("command line: ")
    assert told in found


def test_quick_without_a_section_is_an_error_that_names_the_remedy(write):
    (found,) = complaints(write(BASE), "quick=true")
    assert found == (
        "command line: 'quick=true': the file has no section quick; "
        "add one, quick: {generations: 10, replicates: 2} for example, or set generations and replicates yourself"
    )
    assert len(points_of(write(BASE), "quick=false")) == 4


@pytest.mark.parametrize("word", ["qiuck", "quik"])
def test_a_misspelt_quick_section_is_told_with_its_line(write, word):
    file = write(BASE + f"{word}: {{generations: 2}}\n")
    (found,) = complaints(file)
    assert found.startswith(f"{file}:{BASE.count(chr(10)) + 1}: {word}: ")
    assert "did you mean 'quick'" in found


def test_the_quick_section_cannot_be_swept(write):
    (found,) = complaints(write(QUICK), "sweep.grid={quick.generations: [1, 2]}", "madness=null")
    assert "quick belongs to the whole experiment and cannot be swept" in found


def test_the_resolved_quick_experiment_holds_no_quick_section_and_reads_back(write):
    source = read(write(QUICK), ["quick=true"])
    points = load(source)
    tree = resolved(source, points)
    assert "quick" not in tree
    assert tree["name"] == "experiment-quick"
    assert same(points_of(write(yaml.safe_dump(tree))), points)


def test_reading_leaves_the_two_readings_of_a_file_apart(write):
    """What is laid over one of them, even inside an alias that both share, is not seen in the other."""
    text = simple(mix="&shared {kind: augment, n_real: 50}") + "quick: {mix: *shared, mix.n_real: 8, generations: 2}\n"
    file = write(text)
    assert points_of(file)[0].experiment.mix.n_real == (50,)
    assert points_of(file, "mix.bias=0.5")[0].experiment.mix.n_real == (50,)
    assert points_of(file, "quick=true")[0].experiment.mix.n_real == (8,)


@pytest.mark.parametrize("file", [f for f in EXPERIMENTS if "\nquick:" in f.read_text()], ids=lambda file: file.stem)
def test_the_quick_run_of_an_experiment_is_the_smaller_one(file, presets):
    def work(points):
        return sum(point.experiment.generations * point.experiment.replicates for point in points)

    quick, whole = points_of(file, "quick=true"), points_of(file)
    assert 2 * work(quick) <= work(whole)
    assert set(quick[0].values) == set(whole[0].values), "the same axes, so that its figure can be drawn"
    assert quick[0].experiment.name == f"{file.stem}-quick"


@pytest.mark.parametrize("section", ["{generations: 2}", "{mix.n_real: 5, sweep.grid.mix.n_synthetic: [3], real: moons}"])
def test_the_schema_accepts_a_quick_section(section):
    assert list(SCHEMA.iter_errors(yaml.safe_load(BASE + f"quick: {section}\n"))) == []


@pytest.mark.parametrize(
    "section", ["{generations: 0}", "{chunk: many}", "{}", "", "true", "{mix..n_real: 3}", "{quick.seed: 1}", "{quick: {}}"]
)
def test_the_schema_rejects_a_quick_section_that_the_reader_rejects(write, section):
    assert list(SCHEMA.iter_errors(yaml.safe_load(BASE + f"quick: {section}\n"))) != []
    assert complaints(write(BASE + f"quick: {section}\n")) != []


# Classes of one's own --------------------------------------------------------------------------------------------------

MINE = """
class Plain:
    def __init__(self, shift: float, scale: float = 1.0):
        self.shift, self.scale = shift, scale
    def fit(self, data, rng, work=None): ...
    def restore(self, state): ...

class Forgetful(Plain):
    def __init__(self, shift, other=2):
        self.shift = shift

class Half:
    def fit(self, data, rng, work=None): ...

def function(): ...

class Wild:
    made = []
    def __init__(self, *args, **kwargs):
        self.made.append(args)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "my_own_algorithms.py").write_text(MINE)
    (tmp_path / "my_broken_algorithms.py").write_text("def\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_own_algorithms"
    sys.modules.pop("my_own_algorithms", None)


def test_a_plain_class_is_built_and_described_by_the_arguments_of_its_constructor(write, mine):
    file = write(simple(algorithm=f"{{kind: '{mine}:Plain', shift: 2}}"))
    (point,) = points_of(file)
    assert describe(point.experiment.algorithm) == {"kind": f"{mine}:Plain", "shift": 2, "scale": 1.0}
    swept = points_of(file, "sweep.grid.algorithm.shift=[1, 2]")
    assert len({fit_key(point) for point in swept}) == 2, "other arguments, another fit"


@pytest.mark.parametrize(
    ("kind", "path", "fragment"),
    [
        ("my_own_algorithms:Plain", "algorithm.shift", "is missing"),
        ("my_own_algorithms:Plan", "algorithm.kind", "cannot import"),
        ("my_own_algorithms:Half", "algorithm", "must offer restore, and my_own_algorithms:Half does not"),
        ("my_own_algorithms:function", "algorithm.kind", "must name a class, and is a function"),
        ("my_own_algorithms:Wild", "algorithm", "must offer fit and restore"),
        ("my_missing_algorithms:X", "algorithm.kind", "No module named 'my_missing_algorithms'; is its folder the current one"),
        ("my_broken_algorithms:X", "algorithm.kind", "SyntaxError: "),
        ("os:system", "algorithm.kind", "must name a class"),
        ("subprocess:Popen", "algorithm", "must offer fit and restore"),
    ],
)
def test_a_class_that_does_not_serve_is_refused_with_the_reason_and_never_called(write, mine, kind, path, fragment):
    (found,) = complaints(write(simple(algorithm=kind)))
    assert f" {path}: " in found
    assert fragment in found
    assert getattr(sys.modules.get(mine), "Wild", type("", (), {"made": []})).made == []


def test_a_plain_class_must_keep_its_arguments(write, mine):
    (found,) = complaints(write(simple(algorithm=f"{mine}:Forgetful")), "algorithm.shift=1")
    assert "Forgetful must keep other as an attribute" in found


def test_an_entry_point_is_found_and_named_among_the_kinds(write, mine, monkeypatch):
    point = importlib.metadata.EntryPoint("mine", f"{mine}:Plain", "selfloop.algorithms")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == point.group else [])
    (found,) = points_of(write(simple(algorithm="mine")), "algorithm.shift=3")
    assert found.experiment.algorithm.shift == 3
    assert "did you mean 'mine'" in complaints(write(simple(algorithm="mien")))[0]


# The registry ----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.text("abc", max_size=5), st.text("abc", max_size=5), st.text("abc", max_size=5))
def test_edits_are_symmetric_zero_for_equals_only_and_no_more_than_the_longer_word(a, b, c):
    assert registry.edits(a, b) == registry.edits(b, a)
    assert (registry.edits(a, b) == 0) == (a == b)
    assert registry.edits(a, b) <= max(len(a), len(b))
    assert registry.edits(a + c, b + c) <= registry.edits(a, b)


@settings(deadline=None)
@given(st.sampled_from(["omega", "n_synthetic", "weight_real", "kind"]), st.data())
def test_one_edit_costs_one(word, data):
    assert registry.edits(word, data.draw(misspelt(word))) <= 1
