"""A stream is its name."""

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from selfloop.streams import NamedStreams

names = st.tuples(st.integers(0, 99), st.integers(0, 9), st.integers(0, 99), st.text(max_size=9), st.text(max_size=5))


def first(name) -> float:
    seed, chunk, generation, role, point = name
    return NamedStreams(seed, chunk, point)(generation, role).random()


@given(names, names)
def test_streams_are_equal_where_their_names_are_and_only_there(a, b):
    assert (first(a) == first(b)) == (a == b)


def test_a_stream_is_the_same_in_another_process_whatever_its_hash_seed():
    code = "from selfloop.streams import NamedStreams; print(NamedStreams(1, 2, 'p')(3, 'draw').random().hex())"
    out = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert out == {first((1, 2, 3, "draw", "p")).hex()}
