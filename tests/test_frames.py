"""Data as people have it: what each column is, whatever holds it, and what is refused."""

import datetime
import decimal
import itertools

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from labsupport.tabular import (
    MIN_ROWS,
    DifferentColumns,
    TooFewRows,
    bool_column,
    columns,
    features,
    float_column,
    to_frame,
    window,
)
from labsupport.tabular.columns import LARGEST

ROWS = 60
RANDOM = np.random.default_rng(0)
NUMBERS = RANDOM.normal(size=ROWS)
DAYS = pd.date_range("2025-01-01", periods=ROWS)


def feature(reference, current=None):
    """The one column of both windows."""
    (found,) = features(*(to_frame({"x": column}) for column in (reference, reference if current is None else current)))
    return found


def texts(count: int) -> list[str]:
    return [f"{'very ' * (i % 30)}good, number {i}" for i in range(count)]


KINDS = {
    "numeric": [
        NUMBERS,
        NUMBERS.astype("float32"),
        NUMBERS.astype("float16"),
        np.arange(ROWS),
        np.arange(ROWS, dtype="uint8"),
        list(range(ROWS)),
        pd.Series([*range(ROWS - 1), None], dtype="Int64"),
        pd.Series(NUMBERS, dtype="Float64"),
        pd.Series(NUMBERS, dtype="float64[pyarrow]"),
        [decimal.Decimal(i) / 3 for i in range(ROWS)],
        [*NUMBERS[1:], None],
        [10**30 + 10**28 * i for i in range(ROWS)],
        pd.arrays.SparseArray(np.arange(ROWS) * 1.0),
        pl.Series(NUMBERS),
        pl.Series([decimal.Decimal(i) for i in range(ROWS)]),
    ],
    "discrete": [np.arange(ROWS) % 5, [1, 0, None] * 20, pd.Series([1, 0, None] * 20, dtype="Int64"), np.ones(ROWS)],
    "boolean": [
        NUMBERS > 0,
        [True, None, False] * 20,
        pd.Series([True, None, False] * 20, dtype="boolean"),
        pl.Series([True, None, False] * 20),
    ],
    "category": [
        ["a", "b", "c"] * 20,
        ["a", None, "b"] * 20,
        pd.Series(["a", None, "b"] * 20, dtype="string"),
        pd.Series(["a", "b"] * 30, dtype="string[pyarrow]"),
        pd.Series(["a", None, "b"] * 20, dtype="category"),
        pd.Series([1, 2] * 30, dtype="category"),
        pd.cut(NUMBERS, 3),
        pl.Series(["a", None, "b"] * 20),
        pl.Series(["a", None, "b"] * 20, dtype=pl.Categorical),
        np.array(["a", "b"] * 30),
    ],
    "text": [texts(ROWS), [*texts(ROWS - 1), None], pl.Series(texts(ROWS))],
    "none": [
        DAYS,
        DAYS - DAYS[0],
        [datetime.date(2025, 1, 1)] * ROWS,
        [1, "a", 2.5] * 20,
        [{"a": 1}] * ROWS,
        [[1, 2]] * ROWS,
        [np.ones(2)] * ROWS,
        [{1}, {2}] * 30,
        [b"a"] * ROWS,
        NUMBERS + 1j,
        np.full(ROWS, np.nan),
        [None] * ROWS,
        [10**400 + i for i in range(ROWS)],
        pl.Series([[1, 2]] * ROWS),
        pl.Series([{"a": 1}] * ROWS),
    ],
}
CASES = [(kind, number) for kind, columns in KINDS.items() for number in range(len(columns))]


@pytest.mark.parametrize(("kind", "number"), CASES)
def test_every_column_has_a_kind_or_a_note(kind, number):
    found = feature(KINDS[kind][number])
    assert found.kind == kind
    assert (found.note != "") == (kind in ("none", "text"))
    assert all(len(gone) == ROWS for gone in found.missing)
    if kind != "none":
        assert [len(found.reference), len(found.current)] == [int((~gone).sum()) for gone in found.missing]
        assert np.array_equal(found.reference, found.current)
        assert found.counted == (kind not in ("numeric", "text"))


@pytest.mark.parametrize("kind", ["numeric", "discrete", "boolean", "category", "text"])
def test_missing_values_are_seen_and_counted(kind):
    for column in KINDS[kind]:
        frame = to_frame({"x": column})
        assert feature(column).missing_shares[0] == pytest.approx(frame["x"].isna().mean())


def test_codes_lead_back_to_the_values():
    column = ["b", None, "a", "a"] * 15
    found = feature(column)
    assert [found.labels[code] for code in found.reference] == [value for value in column if value]
    assert found.labels == ["a", "b"]  # the commonest first
    counts = feature([3, 1, 1, 7] * 15)
    assert [counts.labels[code] for code in counts.reference] == [3, 1, 1, 7] * 15


def test_texts_are_compared_by_their_lengths():
    found = feature(texts(ROWS), [*texts(ROWS - 1), None])
    assert found.reference.tolist() == [len(text) for text in texts(ROWS)]
    assert len(found.current) == ROWS - 1
    same = feature([f"{i:04}" for i in range(ROWS)])
    assert (same.kind, same.labels) == ("text", [4.0])  # lengths of few distinct values are counted


@pytest.mark.parametrize(
    ("reference", "current", "note"),
    [
        (NUMBERS, [str(number) for number in NUMBERS], "was numeric, is text"),
        (NUMBERS, DAYS, "was numeric, is time"),
        (NUMBERS > 0, (NUMBERS > 0).astype(int), "was boolean, is numeric"),
        (NUMBERS, [1, "a", 2.5] * 20, "was numeric, is mixed"),
        (["a", "b"] * 30, NUMBERS, "was text, is numeric"),
    ],
)
def test_a_column_of_another_type_says_what_it_was_and_is(reference, current, note):
    found = feature(reference, current)
    assert (found.kind, found.changed, found.note) == ("none", True, note)


def test_the_same_classes_of_two_makes_are_the_same_classes():
    found = feature(pd.Series(["a", "b"] * 30, dtype="category"), ["b", "a"] * 30)
    assert (found.kind, found.changed) == ("category", False)
    assert [found.labels[code] for code in found.current] == ["b", "a"] * 30


@pytest.mark.parametrize("value", [np.inf, -np.inf, 10 * LARGEST])
def test_infinite_values_count_as_missing_and_say_so(value):
    column = np.where(np.arange(ROWS) < 3, value, NUMBERS)
    found = feature(NUMBERS, column)
    assert found.missing_shares == (0, 3 / ROWS)
    assert found.note == "3 infinite values count as missing"
    assert np.isfinite(found.current).all()


def test_one_window_without_values_is_of_the_others_kind():
    for empty in ([None] * ROWS, np.full(ROWS, np.nan), pd.Series([pd.NA] * ROWS, dtype="string")):
        for column, kind in ((NUMBERS, "numeric"), (["a", "b"] * 30, "category"), (NUMBERS > 0, "boolean")):
            for windows in ((column, empty), (empty, column)):
                found = feature(*windows)
                assert found.kind == kind
                assert sorted(found.missing_shares) == [0, 1]


@pytest.mark.parametrize("wide", [1, 3])
def test_frames_dicts_and_arrays_are_the_same_data(wide):
    array = RANDOM.normal(size=(ROWS, wide))
    names = [str(number) for number in range(wide)]
    columns = dict(zip(names, array.T, strict=True))
    made = [array, pd.DataFrame(array), pd.DataFrame(columns), pl.DataFrame(columns), columns]
    if wide == 1:
        made += [array[:, 0], pd.Series(array[:, 0]), pl.Series("0", array[:, 0]), list(array[:, 0])]
    for data in made:
        pd.testing.assert_frame_equal(to_frame(data), pd.DataFrame(columns), check_column_type=False)


def test_an_index_is_no_data():
    column = pd.Series(NUMBERS, index=range(1000, 1000 + ROWS))
    assert to_frame({"x": column, "y": NUMBERS}).notna().all(axis=None)


def test_names_become_strings():
    wide = pd.DataFrame(np.ones((ROWS, 2)), columns=pd.MultiIndex.from_tuples([("a", 1), ("a", 2)]))
    assert list(to_frame(wide).columns) == ["('a', 1)", "('a', 2)"]
    assert list(to_frame({1: NUMBERS, "b": NUMBERS}).columns) == ["1", "b"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (np.zeros((ROWS, 2, 2)), r"an array of shape \(60, 2, 2\)"),
        (np.float64(3), "not float64"),
        ("abc", "not str"),
        (None, "not NoneType"),
        ((number for number in NUMBERS), "not generator"),
        ({"a": 1.0}, "a: a column of values is needed"),
        ({"a": "abc"}, "a: a column of values is needed"),
        ({"a": NUMBERS, "b": [1.0]}, "columns of different lengths: {'a': 60, 'b': 1}"),
        (pd.DataFrame(np.ones((ROWS, 2)), columns=["a", "a"]), "two columns of one name: \\['a'\\]"),
        ({1: NUMBERS, "1": NUMBERS}, "two columns of one name: \\['1'\\]"),
        (np.array(3.0), r"not an array of shape \(\)"),
        (np.zeros(ROWS, "V4"), r"data: 0: \|V4 are bytes of no known meaning: give numbers, texts or truth values"),
        (
            pl.DataFrame({"a": pl.Series([2**100] * ROWS, dtype=pl.Int128)}),
            "data: pandas cannot hold what is in this DataF",
        ),
        ({"a": ["\ud800", "b"] * 30}, r"^data: '\\ud800': give text without half a surrogate pair$"),
        ({"\ud800": NUMBERS}, r"^data: '\\ud800': give text without half a surrogate pair$"),
    ],
)
def test_what_is_no_table_is_refused(data, said):
    with pytest.raises(ValueError, match=said):
        to_frame(data)


def test_a_signalling_nan_is_missing_like_any_other():
    numbers = [decimal.Decimal("sNaN"), decimal.Decimal("1.5"), decimal.Decimal("NaN")] * 20
    assert feature(numbers).missing_shares == pytest.approx((2 / 3, 2 / 3))
    assert np.isnan(float_column("numbers", numbers)).tolist() == [True, False, True] * 20


def test_times_are_no_numbers_and_no_truth_values():
    for unit in ("ns", "s"):
        with pytest.raises(ValueError, match=r"^x: .* is no number$"):
            float_column("x", np.ones(3, f"m8[{unit}]"))
        with pytest.raises(ValueError, match=r"^x: .*: give True or False$"):
            bool_column("x", np.ones(3, f"m8[{unit}]"))
    with pytest.raises(ValueError, match=r"^x: .*: give True or False$"):
        bool_column("x", np.zeros(3, "V4"))


def test_arrows_classes_are_classes():
    kind = pa.dictionary(pa.int32(), pa.string())
    column = pd.Series(pa.array(["a", "b", None] * 20, kind), dtype=pd.ArrowDtype(kind))
    found = feature(column, ["a", "b", None] * 20)
    assert (found.kind, found.labels, found.missing_shares) == ("category", ["a", "b"], pytest.approx((1 / 3, 1 / 3)))


def test_the_same_prices_as_classes_of_two_precisions_are_the_same():
    narrow, wide = (pd.Series(pd.Categorical(np.array([9.99, 0.1] * 30, kind))) for kind in (np.float32, np.float64))
    for other in (wide, wide.astype(float)):
        found = feature(narrow, other)
        assert len(found.labels) == 2 and np.array_equal(found.reference, found.current)


def test_windows_without_enough_rows_or_other_columns_are_refused():
    good, few = to_frame({"a": NUMBERS}), to_frame({"a": NUMBERS[: MIN_ROWS - 1]})
    with pytest.raises(TooFewRows, match="current window has 19 rows: at least 20"):
        features(good, few)
    for few in (pd.DataFrame(), to_frame({"a": []}), to_frame({"a": [1.0]})):
        with pytest.raises(TooFewRows, match=r"reference window has [01] rows"):
            features(few, good)
    features(to_frame({"a": NUMBERS[:MIN_ROWS]}), good)
    with pytest.raises(DifferentColumns, match="current window has no a"):
        features(good, to_frame({"b": NUMBERS}))
    with pytest.raises(DifferentColumns, match="reference has no b"):
        features(good, to_frame({"a": NUMBERS, "b": NUMBERS}))
    with pytest.raises(DifferentColumns, match="no column"):
        features(*[pd.DataFrame(index=range(ROWS))] * 2)
    assert issubclass(TooFewRows, ValueError)
    assert issubclass(DifferentColumns, ValueError)


def test_the_order_of_columns_is_the_references():
    first, second = to_frame({"a": NUMBERS, "b": NUMBERS}), to_frame({"b": NUMBERS, "a": NUMBERS + 1})
    found = features(first, second)
    assert [one.name for one in found] == ["a", "b"]
    assert np.array_equal(found[0].current, NUMBERS + 1)


@pytest.mark.parametrize("places", [[], [1_200], [3_000], [1_200, 3_000]])
@pytest.mark.parametrize("late", [1, 15, 16, 500])
def test_values_that_come_late_are_counted_like_early_ones(places, late, monkeypatch):
    """5 values come early, and `late` others after the first 1,000 rows: up to 20 together are classes."""
    monkeypatch.setattr(columns, "CHUNK", 70)
    random = np.random.default_rng(late)
    windows = random.integers(0, 5, size=(2, 4_000)).astype(float)
    for place in places:
        windows[place % 2, place : place + late] = np.arange(late) * 0.5 - 7.25
    (found,) = features(*(to_frame({"x": window}) for window in windows))
    distinct = np.unique(windows)
    assert found.kind == ("discrete" if len(distinct) <= 20 else "numeric")
    if found.labels:
        assert found.labels == distinct.tolist()
        assert np.array_equal(distinct[found.current], windows[1])


def test_an_array_of_numbers_is_the_feature_that_its_series_is():
    values = np.linspace(-1, 1, 60)
    kinds = [values, values.astype(np.float32), np.arange(60), np.arange(60, dtype=np.uint8) % 3, np.full(60, np.nan)]
    kinds += [np.where(values > 0, np.inf, values), np.where(values > 0, np.nan, values), np.full(60, 1e200)]
    for before, now in itertools.product(kinds, kinds):
        ours, theirs = columns.feature("x", before, now), columns.feature("x", *map(pd.Series, (before, now)))
        slow = columns.feature("x", *(pd.Series(column).astype(object) for column in (before, now)))
        others = [theirs] if np.float32 in (before.dtype, now.dtype) else [theirs, slow]  # as objects they are wider
        for other in others:
            what = other.kind, other.note, other.labels, other.changed
            assert (ours.kind, ours.note, ours.labels, ours.changed) == what
            for mine, yours in ((ours.reference, other.reference), (ours.current, other.current)):
                assert np.array_equal(mine, yours)
            assert all(map(np.array_equal, ours.missing, other.missing))


def test_values_at_rows_are_those_of_the_column():
    values = np.where(np.arange(50) % 3 == 0, np.nan, np.arange(50.0))
    for column in (values, np.arange(50.0), np.full(50, np.nan)):
        found = columns.feature("x", column, values[::-1])
        rows = np.array([0, 1, 2, 30, 49])
        if found.kind != "none" and not found.labels:
            before, now = found.values_at(rows, rows)
            assert np.array_equal(before, column[rows], equal_nan=True)
            assert np.array_equal(now, values[::-1][rows], equal_nan=True)


def test_a_parquet_file_that_changes_between_two_columns_is_not_mixed(tmp_path):
    path = tmp_path / "window.parquet"
    pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}).to_parquet(path)
    stored = window(path, "current")
    assert stored["a"].tolist() == [1.0, 2.0]
    pd.DataFrame({"a": [1.0, 2.0, 9.0], "b": [7.0, 8.0, 9.0]}).to_parquet(path)
    with pytest.raises(ValueError, match=r"^current: .*window\.parquet has changed while it was read"):
        stored["b"]
    path.unlink()
    with pytest.raises(ValueError, match="cannot be read as a Parquet file"):
        stored["b"]
