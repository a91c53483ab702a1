"""The tool `selfloop curate`: its file, its page, what it survives and what it refuses; and the file in other trainers."""

import base64
import importlib.util
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

import selfloop
from selfloop.__main__ import app as command
from selfloop.config import load
from selfloop.curate import report, tool
from selfloop.curate.subset import COLUMNS, FILE, FromFile, Repeated, Subset, digest
from selfloop.embed import CachedEmbedding, ClassifierEmbedding, PcaEmbedding
from selfloop.images import Images
from selfloop.loop import self_consume
from selfloop.measure import Measure, Selection
from selfloop.reading import read
from selfloop.registry import resolve
from selfloop.streams import NamedStreams

OWN = '''
import dataclasses, json
import numpy as np
from pathlib import Path
from selfloop.measure import Selection

@dataclasses.dataclass
class Half:
    """Every other row, scored by its number; it counts its calls in a file, and fails while there is a file `fail`."""
    shift: int = 0
    takes = frozenset({"points", "images"})

    def __call__(self, data, rng, work=None):
        if Path("stop").exists():
            raise KeyboardInterrupt
        if Path("fail").exists():
            raise ValueError("the score is not finite; remove the file")
        with Path("calls").open("a") as file:
            file.write(f"{self.shift} ")
        scores = rng.permutation(data.n).astype(float)
        index = np.flatnonzero((scores + self.shift) % 2 == 0)
        return Selection(index, np.ones(len(index)), {"score": scores})


@dataclasses.dataclass
class Course(Half):
    """Leaves a course of class weights, as dro does."""

    def __call__(self, data, rng, work=None):
        work.shelf.mkdir(parents=True)
        alpha = [[0.5, 0.5], [0.8, 0.2]]
        found = {"groups": "class", "names": [0, 1], "alpha": alpha, "mean": [0.65, 0.35], "effective": [2.0, 1.47]}
        (work.shelf / "class_weights.json").write_text(json.dumps(found))
        return super().__call__(data, rng, work)


@dataclasses.dataclass
class Broken:
    """Data without a check of their own."""
    path: str
    gives = frozenset({"images"})
    rows = 2000

    def replicated(self, replicates, rng):
        from types import SimpleNamespace
        return SimpleNamespace(points=np.load(self.path), labels=None)


@dataclasses.dataclass
class Sums:
    """Features: the sum of a point. It counts its calls in a file."""

    def fitted(self, real, work=None):
        with Path("embedded").open("a") as file:
            file.write("x")
        class Phi:
            name = "sums"
            def __call__(self, points):
                return np.asarray(points, dtype=np.float32).reshape(len(points), -1).sum(axis=1, keepdims=True)
        return Phi()
'''

PLANE = {"data": {"kind": "moons"}, "n": 200, "curators": [{"kind": "truncate", "radius": 1.0}]}
DIGITS = {
    "data": {"kind": "images", "path": "digits"},
    "curators": [{"kind": "half:Half"}, {"kind": "balance", "by": "class", "how": "oversample"}],
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of its own with a curator and an embedding, where the tool is called."""
    (tmp_path / "half.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SELFLOOP_CACHE", str(tmp_path / "decoded"))
    monkeypatch.setattr("selfloop.curate.report.charts", lambda *_: [])
    yield tmp_path
    sys.modules.pop("half", None)


@pytest.fixture
def drawn(here, monkeypatch):
    """There, with reports that have all their pictures."""
    monkeypatch.setattr("selfloop.curate.report.charts", CHARTS)
    return here


CHARTS = report.charts


def curate(tree, *words, app=tool.app, code=0):
    """What the tool says of a curation; its words after the name of the file."""
    Path("curation.yaml").write_text(yaml.safe_dump(tree))
    first = ["curate"] if app is command else []
    done = CliRunner().invoke(app, [*first, "curation.yaml", *words])
    assert done.exit_code == code, (done.output, done.exception)
    return " ".join(done.output.split())


# The file --------------------------------------------------------------------------------------------------------------


def subset(n=20, weight=1.0, seed=0):
    """Data with labels, and a subset of every third row."""
    data = Measure.uniform(np.random.default_rng(seed).normal(size=(n, 2)), np.arange(n) % 2, batch=0)
    kept = np.arange(0, n, 3)
    table = {"score": np.linspace(0, 1, n), "reason": np.where(np.arange(n) % 3, "not a third", ""), "colour": np.arange(n)}
    return data, Subset.made(data, Selection(kept, np.full(len(kept), weight), table), {"seed": seed})


def test_what_is_written_is_what_is_read(tmp_path):
    data, one = subset()
    one.write(tmp_path / FILE)
    two = Subset.of(tmp_path / FILE, digest(data)[0])
    assert list(two.columns) == [*COLUMNS, "colour"]
    for name, column in one.columns.items():
        np.testing.assert_array_equal(two.columns[name], column)
        assert two.columns[name].dtype.kind == column.dtype.kind
    assert (two.sha256, two.config, two.version) == (one.sha256, {"seed": 0}, selfloop.__version__)
    np.testing.assert_array_equal(two.columns["class"], data.labels)
    assert (two.columns["cluster"] == -1).all()
    assert np.isnan(two.columns["distance"]).all()
    np.testing.assert_array_equal(two.columns["weight"] > 0, two.columns["kept"])


def test_others_find_plain_columns_and_nulls(tmp_path):
    subset()[1].write(tmp_path / FILE)
    table = pq.read_table(tmp_path / FILE)
    assert table["cluster"].null_count == table["distance"].null_count == 20
    assert [str(table.schema.field(name).type) for name in COLUMNS] == [
        *("int64", "bool", "double", "double", "int64", "int64", "double", "string", "uint64")
    ]


def test_equal_decisions_are_equal_bytes(tmp_path):
    for name in ("one", "two"):
        subset()[1].write(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_digest_of_images_is_that_of_their_source_and_names_each_row():
    source = Images(path="digits").replicated(1, np.random.default_rng(0))
    sha256, hashes = digest(Measure.uniform(source.points, source.labels, batch=0))
    assert sha256 == source.sha256
    distinct = len(np.unique(np.asarray(source.points).reshape(len(hashes), -1), axis=0))
    assert len(np.unique(hashes)) == distinct


def test_rows_are_hashed_alike_however_they_are_cut_into_blocks(monkeypatch):
    data, _ = subset()
    before = digest(data)
    monkeypatch.setattr("selfloop.curate.subset.READ", 3)
    after = digest(data)
    assert before[0] == after[0]
    np.testing.assert_array_equal(before[1], after[1])


def test_a_file_that_belongs_to_other_data_is_refused(tmp_path):
    subset()[1].write(tmp_path / FILE)
    other, _ = subset(seed=1)
    with pytest.raises(ValueError, match=r"belongs to other data.*curate these data"):
        Subset.of(tmp_path / FILE, digest(other)[0])
    with pytest.raises(ValueError, match="20 of 20 rows are not in the subset file, the first of them row 0"):
        FromFile(path=str(tmp_path / FILE))(other, np.random.default_rng(0))


def spoilt(path, how):
    match how:
        case "nothing":
            return
        case "text":
            path.write_text("id,kept")
        case "other columns":
            pq.write_table(pa.table({"id": [0, 1]}), path)
        case "no metadata":
            subset()[1].write(path)
            pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
        case "cut":
            subset()[1].write(path)
            path.write_bytes(path.read_bytes()[:-100])
        case "a row less":
            subset()[1].write(path)
            pq.write_table(pq.read_table(path).slice(1), path)
        case "torn":
            subset(2000)[1].write(path)
            whole = path.read_bytes()
            path.write_bytes(whole[:200] + bytes(1000) + whole[1200:])


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ("nothing", "is no file; give a subset file"),
        ("text", "is not Parquet"),
        ("other columns", "is no subset file, it lacks kept"),
        ("no metadata", "it lacks sha256, config, version"),
        ("cut", "is not Parquet"),
        ("a row less", "is damaged: ids must be"),
        ("torn", "is damaged"),
    ],
)
def test_what_is_no_sound_subset_file_is_refused_with_the_remedy(tmp_path, how, match):
    spoilt(tmp_path / FILE, how)
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        Subset.of(tmp_path / FILE)


def test_a_batch_has_no_subset_file():
    data = Measure.uniform(np.zeros((2, 3, 1)))
    with pytest.raises(ValueError, match=r"a batch \(2,\)"):
        Subset.made(data, Selection(np.arange(3), np.ones((2, 3)), {}), {})


# In the driver ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1))
def test_rows_are_found_in_any_order_and_of_equal_ones_as_many_as_were_kept(seed):
    rng = np.random.default_rng(seed)
    data = Measure.uniform(rng.integers(0, 4, size=(12, 1)).astype(float), batch=0)
    kept = np.flatnonzero(rng.random(12) < 0.5)
    kept = kept if len(kept) else np.array([0])
    made = Subset.made(data, Selection(kept, 1.0 + kept, {}), {})
    shuffled = data.subset(rng.permutation(12))
    found = made.of_rows(shuffled)
    np.testing.assert_array_equal(np.sort(shuffled.points[found.index, 0]), np.sort(data.points[kept, 0]))
    np.testing.assert_array_equal(np.sort(found.weights), 1.0 + kept)


def test_a_part_of_the_rows_finds_its_decisions():
    data, made = subset()
    part = np.array([7, 3, 12, 6])
    found = made.of_rows(data.subset(part))
    np.testing.assert_array_equal(part[found.index], [3, 12, 6])
    np.testing.assert_array_equal(found.table["score"], made.columns["score"][part])


def test_samples_of_a_model_are_in_no_file():
    data, made = subset()
    mixed = Measure.uniform(np.concatenate([data.points, np.zeros((5, 2))]), batch=0)
    with pytest.raises(ValueError, match=r"5 of 25 rows.*first of them row 20.*samples of models"):
        made.of_rows(mixed)


def test_the_curator_of_a_file_is_refused_without_it(tmp_path):
    with pytest.raises(ValueError, match="is no file; give a subset file"):
        FromFile(path=str(tmp_path / "none.parquet"))
    with pytest.raises(ValueError, match="NOWHERE, which is not set"):
        FromFile(path="$NOWHERE/subset.parquet")


EXPERIMENT = """
generations: 1
replicates: 2
chunk: 2
real: digits
mix: {n_real: 500}
algorithm:
  kind: curated
  algorithm: {kind: kde, bandwidth: 0.1}
  curators: [{kind: file, path: results/subset.parquet}]
track: {mean_norm: }
"""


def test_a_file_of_the_tool_curates_the_training_rows_of_an_experiment(here):
    curate({"data": {"kind": "digits"}, "curators": [{"kind": "half:Half"}]}, "--out", "results")
    made = Subset.of("results/subset.parquet")
    Path("experiment.yaml").write_text(EXPERIMENT)
    (point,) = load(read(Path("experiment.yaml")))
    experiment, streams = point.experiment, NamedStreams(0)
    source = experiment.real.replicated(2, streams(0, "source"))
    real = experiment.mix.first(source, streams)
    ((curator,), algorithm) = experiment.algorithm.curators, experiment.algorithm
    selection = curator(real, np.random.default_rng(0))
    for member in range(2):
        np.testing.assert_array_equal(selection.weights[member] > 0, made.columns["kept"][source.order[member, :500]])
    (generation,) = self_consume(source, real, algorithm, experiment.mix, 1, streams)
    assert not generation.diverged.any()


# In anyone's own trainer -----------------------------------------------------------------------------------------------


def test_a_data_set_of_torch_keeps_the_rows_that_stay():
    _, made = subset()
    part = made.dataset(TensorDataset(torch.arange(20)))
    assert [int(row) for (row,) in part] == made.index.tolist()
    with pytest.raises(ValueError, match="is of 20 rows and this data set has 19"):
        made.dataset(TensorDataset(torch.arange(19)))


def test_whole_weights_are_met_exactly_in_every_epoch_and_in_another_order():
    data, _ = subset()
    made = Subset.made(data, Selection(np.array([2, 5, 7]), np.array([1.0, 3.0, 2.0]), {}), {})
    sampler = made.sampler(torch.Generator().manual_seed(0))
    assert isinstance(sampler, Repeated)
    assert len(sampler) == 6
    epochs = [list(sampler) for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert all(sorted(epoch) == [0, 1, 1, 1, 2, 2] for epoch in epochs)
    loader = DataLoader(made.dataset(TensorDataset(torch.arange(20))), batch_size=4, sampler=sampler)
    assert sorted(torch.cat([rows for (rows,) in loader]).tolist()) == [2, 5, 5, 5, 7, 7]


def test_other_weights_are_met_in_expectation():
    """60,000 draws with shares 1/6, 1/3, 1/2: standard errors at most (1/4 / 60,000)^(1/2) = .0020."""
    data, _ = subset(60_000)
    made = Subset.made(data, Selection(np.arange(60_000), np.repeat([0.5, 1.0, 1.5], 20_000), {}), {})
    drawn = np.array(list(made.sampler(torch.Generator().manual_seed(0)))) // 20_000
    assert len(drawn) == 60_000
    assert (np.abs(np.bincount(drawn) / 60_000 - [1 / 6, 1 / 3, 1 / 2]) < 4 * 0.0020).all()


def test_weights_of_a_loss_have_mean_one_and_give_the_gradient_of_repeated_rows():
    data, _ = subset()
    made = Subset.made(data, Selection(np.array([2, 5, 7]), np.array([1.0, 3.0, 2.0]), {}), {})
    assert made.weights.mean() == pytest.approx(1)
    x = torch.tensor(data.points)
    gradients = []
    for loss in (
        lambda theta: (torch.tensor(made.weights) * ((x[made.index] - theta) ** 2).sum(dim=1)).mean(),
        lambda theta: ((x[made.index[list(made.sampler(None))]] - theta) ** 2).sum(dim=1).mean(),
    ):
        theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        loss(theta).backward()
        gradients.append(theta.grad.numpy())
    np.testing.assert_allclose(*gradients, rtol=1e-6)


# The tool --------------------------------------------------------------------------------------------------------------


def pictures(page):
    """(what it says it shows, picture) of every image of a page."""
    found = re.findall(r'<img [^>]*alt="([^"]*)" src="data:image/png;base64,([^"]+)"', page)
    return [(alt, Image.open(io.BytesIO(base64.b64decode(data)))) for alt, data in found]


@pytest.mark.parametrize("app", [tool.app, command])
def test_digits_are_curated_into_a_file_and_a_page(here, app):
    said = curate(DIGITS, "seed=3", "--out", "results", app=app)
    made = Subset.of("results/subset.parquet")
    source = Images(path="digits").replicated(1, np.random.default_rng(0))
    assert made.sha256 == source.sha256
    assert made.config["seed"] == 3
    np.testing.assert_array_equal(made.columns["class"], source.labels)
    per_class = np.bincount(source.labels, made.columns["weight"])
    assert np.ptp(per_class) == 0
    assert 0.4 < made.columns["kept"].mean() < 0.6
    assert "kept 899 (50.0%)" in said or "kept 898 (50.0%)" in said
    assert "KL of the classes to uniform, after 0" in said
    assert list(json.loads(Path("results/timings.json").read_text())) == ["data", "0 Half", "1 balance", "report"]
    assert {path.name for path in Path("results").iterdir()} == {
        *("config.yaml", "subset.parquet", "report.html", "timings.json", "lock")
    }


def test_the_page_holds_its_pictures_and_asks_for_nothing_else(drawn):
    curate(DIGITS, "--out", "results")
    page = Path("results/report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    shown = dict(pictures(page))
    strips = [f"{side} rows of {c}" for c in range(10) for side in ("kept", "dropped")]
    assert list(shown) == [*strips, "Scores of Half (step 0)", "Shares of the classes", "Weights"]
    assert all(shown[name].size == (10 * 9 + 1, 10) for name in strips)
    points = np.asarray(Images(path="digits").replicated(1, np.random.default_rng(0)).points)
    made = Subset.of("results/subset.parquet")
    first = np.asarray(shown["dropped rows of 4"])[1:9, 1:9]
    rows = np.flatnonzero(~made.columns["kept"] & (made.columns["class"] == 4))
    least = rows[np.argmin(made.columns["score"][rows])]
    np.testing.assert_array_equal(first, points[least, 0])
    assert all(np.asarray(shown[name].convert("L")).std() > 10 for name in list(shown)[20:])


def test_points_of_the_plane_are_curated_and_drawn(drawn):
    curate(PLANE, "--out", "results")
    names = [name for name, _ in pictures(Path("results/report.html").read_text())]
    assert names == ["Rows", "Scores of truncate", "Shares of the classes"]
    made = Subset.of("results/subset.parquet")
    assert (made.columns["score"][made.index] <= 1).all()
    np.testing.assert_array_equal(made.columns["reason"], np.where(made.columns["kept"], "", "truncate"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep": "low", "within": "class"}, "Each class is cut by itself."),
        ({"keep": "low", "within": "cluster", "clusters": {"k": 3}}, "Each cluster is cut by itself."),
        ({"keep": "low"}, "The cut is at "),
        ({"keep": "stratified"}, "There is no single cut."),
    ],
)
def test_the_chart_of_scores_says_where_the_cut_is(drawn, options, says):
    prune = {"kind": "prune", "score": "gaussian", "fraction": 0.5, **options}
    curate(PLANE | {"curators": [prune]}, "--out", "results")
    assert says in Path("results/report.html").read_text()


def test_the_course_of_class_weights_is_drawn(drawn):
    curate(PLANE | {"curators": [{"kind": "half:Course"}]}, "--out", "results")
    page = Path("results/report.html").read_text()
    assert "Course of the class weights" in dict(pictures(page))
    assert "In the last round 1.47 of 2 classes count, effectively." in page
    assert len(list(Path("results/curators").glob("*/class_weights.json"))) == 1


def test_what_a_page_shows_of_others_is_text(here):
    _, made = subset()
    data, _ = subset()
    page = report.page("<b>", made, [], data, {}, ["<script>"])
    assert "<title>&lt;b&gt;: curation</title>" in page
    assert "<script>" not in page


def test_the_resolved_configuration_gives_the_same_bytes(here):
    curate(PLANE, "seed=5", "--out", "one")
    done = CliRunner().invoke(tool.app, ["one/config.yaml", "--out", "two"])
    assert done.exit_code == 0, done.output
    assert Path("one/subset.parquet").read_bytes() == Path("two/subset.parquet").read_bytes()


TWO = {"data": {"kind": "moons"}, "n": 100, "curators": [{"kind": "half:Half"}, {"kind": "half:Half", "shift": 1}]}


@pytest.mark.parametrize("how", ["stop", "fail"])
def test_a_curation_that_was_stopped_goes_on_to_the_same_bytes(here, how):
    curate(TWO, "--out", "whole")
    Path("calls").unlink()
    tree = TWO | {"curators": [TWO["curators"][0], {"kind": "half:Half", "shift": 1}]}
    real = resolve("curators", "half:Half").__call__

    def failing(self, data, rng, work=None):
        if self.shift:
            Path(how).touch()
        return real(self, data, rng, work)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolve("curators", "half:Half"), "__call__", failing)
        said = curate(tree, "--out", "cut", "--save-every", "0", code=130 if how == "stop" else 2)
    assert "finished work is in cut" in said
    assert how == "stop" or "curators[1] (Half): the score is not finite; remove the file" in said
    Path(how).unlink()
    curate(tree, "--out", "cut", "--save-every", "0")
    assert Path("calls").read_text() == "0 1 "
    assert Path("cut/subset.parquet").read_bytes() == Path("whole/subset.parquet").read_bytes()
    assert not Path("cut/work").exists()


@pytest.mark.parametrize("how", ["stop", "fail"])
def test_what_saved_nothing_does_not_speak_of_finished_work(here, how):
    Path(how).touch()
    said = curate(TWO, "--out", "results", "--save-every", "0", code=130 if how == "stop" else 2)
    assert "finished work" not in said
    assert ("stopped; nothing was saved yet" if how == "stop" else "the score is not finite; remove the file") in said


def test_a_step_that_was_saved_before_is_spoken_of_and_that_of_another_curation_is_not(here):
    bad = TWO | {"curators": [TWO["curators"][0], {"kind": "balance", "clusters": {"k": 80}}]}
    for _ in range(2):
        assert "finished work is in results" in curate(bad, "--out", "results", "--save-every", "0", code=2)
    Path("fail").touch()
    assert "finished work" not in curate(TWO, "seed=1", "--out", "results", "--save-every", "0", code=2)


def test_a_curator_can_be_corrected_and_what_was_done_before_it_stays(here):
    bad = TWO | {"curators": [TWO["curators"][0], {"kind": "balance", "clusters": {"k": 80}}]}
    said = curate(bad, "--out", "results", "--save-every", "0", code=2)
    assert "curators[1] (balance): 80 clusters need as many rows, and there are 50; set clusters.k to 50 or less" in said
    curate(bad, "curators.1.clusters.k=5", "--out", "results", "--save-every", "0")
    assert Path("calls").read_text() == "0 "


def test_more_clusters_than_rows_are_refused_before_the_first_curator_does_anything(here):
    bad = TWO | {"curators": [TWO["curators"][0], {"kind": "balance", "clusters": {"k": 101}}]}
    said = curate(bad, "--out", "results", "--save-every", "0", code=2)
    assert "curators[1].clusters: needs 101 rows or more, and there are 100; ask for less" in said
    assert not Path("calls").exists()
    curate(bad, "curators.1.clusters.k=5", "--out", "results")
    assert Path("calls").read_text() == "0 "


def test_without_faiss_nothing_is_read_and_the_place_is_said(here, monkeypatch):
    tree = PLANE | {"curators": [{"kind": "balance", "clusters": {"k": 2}}]}
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "faiss" else find(name))
    said = curate(tree, code=2)
    assert "curators[0].clusters: clusters and nearest neighbours need faiss; run: pip install faiss-cpu" in said
    assert not Path("curated").exists()


def test_what_is_finished_is_not_done_again_and_not_overwritten(here):
    curate(TWO, "--out", "results")
    said = curate(TWO, "--out", "results")
    assert "finished before" in said
    assert Path("calls").read_text() == "0 1 "
    said = curate(TWO, "seed=1", "--out", "results", code=2)
    assert "holds another curation, see its config.yaml; name another folder with --out" in said
    assert "finished work" not in said


def test_other_data_under_the_same_name_are_noticed(here):
    tree = {"data": {"kind": "images", "path": "rows.npy"}, "curators": [{"kind": "half:Half"}]}
    for seed in range(2):
        np.save("rows.npy", np.random.default_rng(seed).integers(256, size=(30, 4, 4), dtype=np.uint8))
        said = curate(tree, "--out", "results", code=2 if seed else 0)
    assert "was made of other data, with SHA-256" in said


def test_a_folder_of_something_else_or_in_use_is_left_alone(here):
    Path("results").mkdir()
    Path("results/thesis.txt").touch()
    said = curate(PLANE, "--out", "results", code=2)
    assert "holds thesis.txt and is no folder of a curation" in said
    assert "finished work" not in said
    Path("busy").mkdir()
    with FileLock("busy/lock"):
        assert "is in use by another process" in curate(PLANE, "--out", "busy", code=2)
    Path("file").touch()
    assert "name another folder with --out" in curate(PLANE, "--out", "file", code=2)


def test_features_are_found_again_in_the_cache(here):
    tree = PLANE | {"curators": [{"kind": "balance", "clusters": {"k": 3, "features": {"kind": "half:Sums"}}, "fraction": 0.5}]}
    for number in range(2):
        curate(tree, "--out", f"results{number}", "--cache", "features")
    assert Path("embedded").read_text() == "x"
    assert Path("results0/subset.parquet").read_bytes() == Path("results1/subset.parquet").read_bytes()
    curate(tree, "--out", "results2")
    assert Path("results2/subset.parquet").read_bytes() == Path("results1/subset.parquet").read_bytes()


def test_what_a_curator_warns_of_is_noted_also_when_it_was_found_again(here):
    Path("half.py").write_text(
        OWN + "\n\n@dataclasses.dataclass\nclass Loud(Half):\n    def __call__(self, data, rng, work=None):\n"
        "        import warnings\n        warnings.warn('too few rows for a covariance')\n"
        "        return super().__call__(data, rng, work)\n"
    )
    tree = TWO | {"curators": [{"kind": "half:Loud"}, {"kind": "balance", "clusters": {"k": 80}}]}
    curate(tree, "--out", "results", "--save-every", "0", code=2)
    said = curate(tree, "curators.1.clusters.k=2", "--out", "results", "--save-every", "0")
    assert "note: curators[0] (Loud): too few rows for a covariance" in said
    assert "too few rows for a covariance" in Path("results/report.html").read_text()
    assert Path("calls").read_text() == "0 "


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n": None}, "n: is missing: moons is a law"),
        ({"data": {"kind": "digits"}}, "n: is for laws, and digits has rows of its own"),
        ({"n": 0}, "n: must be >= 1; got 0"),
        ({"curators": []}, "curators: must hold 1 or more values"),
        ({"curators": [{"kind": "trunkate", "radius": 1.0}]}, "curators[0].kind: must be one of"),
        ({"curators": [{"kind": "trunkate", "radius": 1.0}]}, "did you mean 'truncate'?"),
        ({"curators": [{"kind": "prune", "score": "gaussian", "fraction": 0.5}]},
         "curators[0].keep: is missing; it has no default; give one of high, low, middle, interval, stratified"),
        ({"curators": [{"kind": "truncate", "radius": -1.0}]}, "curators[0].radius: must be > 0; got -1.0"),
        ({"curators": [{"kind": "balance", "by": "class", "fraction": 1.5}]}, "curators[0].fraction: must be <= 1; got 1.5"),
        ({"curators": [{"kind": "balance", "by": "class", "fraction": 0.0}]}, "curators[0].fraction: must be > 0; got 0.0"),
        ({"curators": [{"kind": "reward", "strength": 1.0, "target": [0]}]}, "judges points of dimension 1"),
        ({"data": {"kind": "gaussian", "mean": [0], "cov": [[1]]}, "curators": [{"kind": "balance", "by": "class"}]},
         "curators[0]: needs real data with class labels, and gaussian has none"),
        ({"data": {"kind": "images", "test": "same"}, "n": None}, "data.test"),
        ({"data": {"kind": "images"}, "n": None}, "truncate is for vectors, and the real data (images) is images"),
        ({"curator": []}, "curator: must be one of"),
        ({"seed": -1}, "seed: must be >= 0; got -1"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_file_is_said_with_the_remedy(here, changes, says):
    tree = {key: value for key, value in (PLANE | changes).items() if value is not None}
    assert says in curate(tree, code=2)
    assert not Path("curated").exists()


def test_all_faults_are_said_at_once_with_their_lines(here):
    said = curate({"data": {"kind": "mooons"}, "n": -1, "curators": [{"kind": "truncate", "radius": "far"}]}, code=2)
    for part in ("data.kind: ", "n: must be >= 1", "curators[0].radius: must be a number", "curation.yaml:"):
        assert part in said


def test_a_test_set_is_not_curated(here):
    for name in ("a.npy", "b.npy"):
        np.save(name, np.zeros((4, 2, 2), np.uint8))
    tree = {"data": {"kind": "images", "path": "a.npy", "test": "b.npy"}, "curators": [{"kind": "half:Half"}]}
    assert "data.test: is never looked at by a curation" in curate(tree, code=2)


def test_data_that_are_not_finite_are_refused_with_their_first_bad_row(here):
    points = np.zeros((2000, 1, 4, 4), np.float32)
    points[1600, 0, 2, 2] = np.nan
    np.save("latents.npy", points)
    tree = {"data": {"kind": "images", "path": "latents.npy"}, "curators": [{"kind": "half:Half"}]}
    assert "holds NaN or infinity in row 1600; drop or repair it" in curate(tree, "--out", "results", code=2)
    tree["data"] = {"kind": "half:Broken", "path": "latents.npy"}
    assert "data holds NaN or infinity in row 1600; drop or repair it first" in curate(tree, "--out", "results", code=2)


def test_rows_are_in_the_order_of_the_files_and_all_there(here):
    np.save("rows.npy", np.random.default_rng(0).integers(256, size=(30, 4, 4), dtype=np.uint8))
    tree = {"data": {"kind": "images", "path": "rows.npy", "held_out": 0.5}, "curators": [{"kind": "half:Half"}]}
    curate(tree, "--out", "results")
    made = Subset.of("results/subset.parquet")
    _, hashes = digest(Measure.uniform(np.load("rows.npy")[:, None], batch=0))
    np.testing.assert_array_equal(made.columns["hash"], hashes)


def folders(root, names, rows=3):
    """Pictures in a folder for each class."""
    rng = np.random.default_rng(0)
    for name in names:
        (root / name).mkdir(parents=True)
        for row in range(rows):
            Image.fromarray(rng.integers(256, size=(4, 4), dtype=np.uint8)).save(root / name / f"{row}.png")


def test_the_file_names_the_picture_of_each_row_so_that_a_trainer_finds_it_in_any_order(here):
    """Twelve folders that are numbers: another order here than by text, as torchvision's ImageFolder has it."""
    folders(Path("photos"), [str(c) for c in range(12)])
    curate({"data": {"kind": "images", "path": "photos"}, "curators": [{"kind": "half:Half"}]}, "--out", "results")
    made = Subset.of("results/subset.parquet")
    assert str(pq.read_schema("results/subset.parquet").field("path").type) == "string"
    assert made.columns["path"].tolist() == [f"{c}/{row}.png" for c in range(12) for row in range(3)]
    assert "path" not in made.selection.table
    pixels = np.stack([np.asarray(Image.open(Path("photos") / name)) for name in made.columns["path"]])
    _, hashes = digest(Measure.uniform(pixels[:, None], batch=0))
    np.testing.assert_array_equal(made.columns["hash"], hashes)
    names = sorted(made.columns["path"])
    assert names != made.columns["path"].tolist()


def test_files_that_were_renamed_are_noticed(here):
    folders(Path("photos"), ["cat", "dog"])
    tree = {"data": {"kind": "images", "path": "photos"}, "curators": [{"kind": "half:Half"}]}
    curate(tree, "--out", "results")
    assert "finished before" in curate(tree, "--out", "results")
    Path("photos/dog/2.png").rename("photos/dog/3.png")
    said = curate(tree, "--out", "results", code=2)
    assert "results was made when the files of its rows had other names than now; name another folder with --out" in said


def test_without_jinja2_the_remedy_is_named(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    said = curate(PLANE, "--out", "results", code=2)
    assert "the report needs jinja2; run: pip install 'selfloop[curate]'" in said
    assert Path("results/subset.parquet").exists()


def test_by_default_results_are_in_a_folder_of_the_name(here):
    curate(PLANE, "name=halfmoons")
    assert Path("curated/halfmoons/subset.parquet").exists()


NEAREST = {"kind": "k_center", "fraction": 0.5, "features": {"kind": "file", "path": "x.npy"}}


def test_a_file_that_changed_is_noticed_by_what_is_finished_and_by_what_goes_on(here):
    """Features of a file choose the rows: other features are another curation, though every setting is the same."""
    Path("x.json").unlink(missing_ok=True)
    tree = {"data": {"kind": "images", "path": "digits"}, "curators": [NEAREST, {"kind": "half:Half"}]}
    np.save("x.npy", np.random.default_rng(0).standard_normal((1797, 2)).astype(np.float32))
    curate(tree, "--out", "first")
    assert "finished before" in curate(tree, "--out", "first")
    np.save("x.npy", np.random.default_rng(1).standard_normal((1797, 2)).astype(np.float32))
    said = curate(tree, "--out", "first", code=2)
    assert "first was made when files that curators[0] reads held something else; name another folder with --out" in said
    curate(tree, "--out", "second")
    assert not np.array_equal(*(Subset.of(f"{name}/subset.parquet").index for name in ("first", "second")))


def test_a_file_of_features_that_is_not_there_is_a_fault_of_the_line_that_names_it(here):
    said = curate({"data": {"kind": "images", "path": "digits"}, "curators": [NEAREST]}, code=2)
    assert re.search(r"curation\.yaml:\d+: curators\[0\]\.features\.path: x\.npy is not there; give a \.npy of float32", said)
    assert not Path("curated").exists()


def test_features_of_a_network_are_kept_inside_principal_components_too(tmp_path):
    inner = ClassifierEmbedding()
    found = tool.kept_features(PcaEmbedding(features=inner, components=2), tmp_path)
    assert found.features == CachedEmbedding(features=inner, folder=str(tmp_path))
    assert tool.kept_features(found, tmp_path) == found
    assert tool.kept_features(PcaEmbedding(components=2), tmp_path) == PcaEmbedding(components=2)
