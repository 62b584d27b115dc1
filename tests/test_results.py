"""Results files: what is written comes back, and whatever is wrong with a file is one line that says what to do."""

import io
import os
import stat
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from engine.errors import ResultsError
from engine.tables import results
from engine.tables.results import check_writable, reading, scan_table, write_table
from engine.tables.table import IMPACT_COLUMNS, variant_names

FORMATS = ("csv", "parquet", "jsonl")
HEADER = ",".join(IMPACT_COLUMNS)
NASTY = [
    *[" Tower", "\n", '"', ",", "\r\n", "\r", "", "null", "NaN", "007", "12", "1e5", "true", "2020-01-01", "=1+1", ";"],
    *[
        "\U0001f5fc",
        "\u05e9\u05dc\u05d5\u05dd",
        "\ufffd",
        "\u2028",
        "\ufeff",
        "\t",
        "\\",
        "\\n",
        "'",
        'a"b',
        "\x00",
        "#",
    ],
]


def nasty_table() -> pl.DataFrame:
    """A row per nasty token, with the smallest, the largest and undefined distances among them."""
    count = len(NASTY)
    names = variant_names(12)
    numbers = [0.1, None, 0.0, 1e-45, 3.4028235e38, 1 / 3, 1.1754944e-38]
    return pl.DataFrame(
        {
            "layer": pl.Series(range(count), dtype=pl.Int32),
            "token_masked": NASTY,
            "token_position": pl.Series(range(count), dtype=pl.Int32),
            "variant": pl.Series([names[i % len(names)] for i in range(count)], dtype=pl.Enum(names)),
            "l2_distance": pl.Series([numbers[i % len(numbers)] for i in range(count)], dtype=pl.Float32),
            "cosine_distance": pl.Series([None] * count, dtype=pl.Float32),
        }
    )


def csv_file(folder: Path, body: str, *, header: str = HEADER) -> Path:
    path = folder / "table.csv"
    path.write_bytes(f"{header}\n{body}".encode())
    return path


def as_text(table: pl.DataFrame) -> pl.DataFrame:
    return table.with_columns(pl.col("variant").cast(pl.String))


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
def test_what_is_written_comes_back(tmp_path, suffix, engine):
    table = nasty_table()
    path = tmp_path / f"table.{suffix.upper()}"
    write_table(table, path)
    back = scan_table(path).collect(engine=engine)
    assert as_text(back).equals(as_text(table))
    assert as_text(back).schema == as_text(table).schema
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_column_without_any_value_and_an_empty_table_keep_their_types(tmp_path, suffix):
    table = nasty_table().with_columns(pl.lit(None, dtype=pl.Float32).alias("l2_distance"))
    write_table(table, tmp_path / f"nulls.{suffix}")
    assert as_text(scan_table(tmp_path / f"nulls.{suffix}").collect()).equals(as_text(table))
    if suffix != "jsonl":  # JSON lines of no rows have no columns either
        write_table(table.clear(), tmp_path / f"none.{suffix}")
        assert scan_table(tmp_path / f"none.{suffix}").collect().is_empty()


@pytest.mark.parametrize("suffix", FORMATS)
def test_many_tokens_across_read_chunks(tmp_path, suffix):
    table = pl.concat([nasty_table()] * 4000)
    write_table(table, tmp_path / f"many.{suffix}")
    assert as_text(scan_table(tmp_path / f"many.{suffix}").collect(engine="streaming")).equals(as_text(table))


@pytest.mark.parametrize("suffix", FORMATS)
def test_other_columns_are_kept_and_prompt_ids_stay_text(tmp_path, suffix):
    table = nasty_table().with_columns(pl.lit("007").alias("prompt_id"), pl.lit(0.5).alias("mass"))
    write_table(table, tmp_path / f"more.{suffix}")
    assert as_text(scan_table(tmp_path / f"more.{suffix}").collect()).equals(as_text(table))


@pytest.mark.parametrize("suffix", FORMATS)
def test_names_that_look_like_patterns(tmp_path, suffix):
    folder = tmp_path / "k=3" / "[1]*"
    folder.mkdir(parents=True)
    write_table(nasty_table(), folder / f"?{{a}}.{suffix}")
    assert scan_table(folder / f"?{{a}}.{suffix}").collect().columns == list(IMPACT_COLUMNS)


def test_an_empty_field_of_another_tool_is_the_empty_token(tmp_path):
    assert scan_table(csv_file(tmp_path, "0,,0,Full,1,\n")).collect().row(0) == (0, "", 0, "Full", 1.0, None)


def test_standard_output_gets_csv_and_nothing_else(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    write_table(nasty_table(), "-")
    check_writable("-")
    assert raw.getvalue().decode() == nasty_table().write_csv()


def test_a_full_standard_output_is_one_line():
    script = "from engine.tables.results import *; import polars as pl; write_table(pl.DataFrame({'a': [1]}), '-')"
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.stderr.splitlines()[-1].startswith("engine.errors.ResultsError: standard output cannot be written")
    assert "Exception ignored" not in done.stderr


def test_permissions_are_those_of_open(tmp_path):
    before = os.umask(0o027)
    try:
        write_table(nasty_table(), tmp_path / "new.csv")
        assert stat.S_IMODE((tmp_path / "new.csv").stat().st_mode) == 0o640
        (tmp_path / "new.csv").chmod(0o604)
        write_table(nasty_table(), tmp_path / "new.csv")
        assert stat.S_IMODE((tmp_path / "new.csv").stat().st_mode) == 0o604
    finally:
        os.umask(before)


def test_a_link_is_followed(tmp_path):
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    write_table(nasty_table(), tmp_path / "link.csv")
    assert (tmp_path / "link.csv").is_symlink()
    assert scan_table(tmp_path / "real.csv").collect().height == len(NASTY)


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), pl.exceptions.ComputeError("x")]
)
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failure):
    path = tmp_path / "table.csv"
    path.write_text("old")

    def fail(table, file, metadata):
        file.write(b"half")
        assert not any(other.name.endswith(FORMATS) for other in tmp_path.iterdir() if other != path)
        raise failure

    monkeypatch.setitem(results.WRITERS, ".csv", fail)
    with pytest.raises(KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else ResultsError) as caught:
        write_table(nasty_table(), path)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("table.txt", "end the name in .csv, .parquet or .jsonl"),
        ("table", "end the name in .csv, .parquet or .jsonl"),
        ("nowhere/table.csv", "folder does not exist"),
        ("folder.csv", "it is a folder"),
        ("pipe.csv", "not a regular file"),
        ("a\0b.csv", "not a path"),
        ("x" * 300 + ".csv", "choose a shorter name"),
        ("file.csv/table.csv", "folder does not exist"),
    ],
)
def test_what_cannot_be_written_is_said_before_and_at_writing(tmp_path, name, says):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file.csv").write_text("a file")
    os.mkfifo(tmp_path / "pipe.csv")
    before = sorted(tmp_path.iterdir())
    for attempt in (check_writable, lambda path: write_table(nasty_table(), path)):
        with pytest.raises(ResultsError, match=says):
            attempt(os.path.join(tmp_path, name))  # noqa: PTH118 - a Path would refuse some of these
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_or_file_that_is_closed_to_us(tmp_path):
    (tmp_path / "table.csv").touch(mode=0o444)
    with pytest.raises(ResultsError, match="read-only"):
        check_writable(tmp_path / "table.csv")
    tmp_path.chmod(0o555)
    with pytest.raises(ResultsError, match="in which you may write"):
        check_writable(tmp_path / "other.csv")


def test_check_writable_leaves_nothing_and_touches_nothing(tmp_path):
    (tmp_path / "old.csv").write_text("old")
    check_writable(tmp_path / "old.csv")
    check_writable(tmp_path / "new.parquet")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_nan_is_refused(tmp_path):
    table = nasty_table().with_columns(pl.lit(float("nan"), dtype=pl.Float32).alias("l2_distance"))
    with pytest.raises(ResultsError, match="NaN in l2_distance"):
        write_table(table, tmp_path / "table.csv")
    assert not list(tmp_path.iterdir())


ROW = b"0,a,0,Full,1.0,2.0\n"
LINE = b'{"layer":0,"token_masked":"a","token_position":0,"variant":"Full","l2_distance":0.1,"cosine_distance":null}\n'
BROKEN = {
    "empty.csv": b"",
    "empty.parquet": b"",
    "empty.jsonl": b"",
    "noise.csv": bytes(range(256)) * 20,
    "noise.parquet": bytes(range(256)) * 20,
    "noise.jsonl": bytes(range(256)) * 20,
    "latin.csv": f"{HEADER}\n".encode() + ROW + b"0,\xe9,0,Full,1.0,2.0\n",
    "number.csv": f"{HEADER}\n".encode() + ROW * 300 + b"0,a,0,Full,abc,2.0\n",
    "layer.csv": f"{HEADER}\n".encode() + ROW + b"1.5,a,0,Full,1,2\n",
    "long.csv": f"{HEADER}\n".encode() + ROW + b"0,a,0,Full,1,2,3,4\n",
    "quote.csv": f"{HEADER}\n".encode() + ROW + b'0,"a,0,Full,1,2\n' + ROW,
    "half.jsonl": LINE * 3 + LINE[:40],
    "number.jsonl": LINE * 20_000 + LINE.replace(b"0.1", b'"abc"'),
    "first.jsonl": LINE.replace(b"0.1", b'"abc"'),
    "nan.jsonl": LINE.replace(b"0.1", b"NaN"),
    "list.jsonl": b"[1, 2]\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(BROKEN[name])
    with pytest.raises(ResultsError) as caught, reading(path):
        scan_table(path).collect(engine="streaming")
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: raw[:60] + bytes(80) + raw[140:]])
def test_a_damaged_parquet_file_is_one_line(tmp_path, damage):
    path = tmp_path / "table.parquet"
    write_table(nasty_table(), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ResultsError, match="damaged"), reading(path):
        scan_table(path).collect()


def test_missing_columns_are_listed_with_those_that_are_there(tmp_path):
    with pytest.raises(
        ResultsError, match="it lacks variant, l2_distance, cosine_distance; its columns are: layer, tok"
    ):
        scan_table(csv_file(tmp_path, "", header="layer,token_masked,token_position,word"))


def test_wrong_types_are_named(tmp_path):
    nasty_table().with_columns(pl.col("layer").cast(pl.String)).write_parquet(tmp_path / "table.parquet")
    with pytest.raises(ResultsError, match="column layer is String, expected integer"):
        scan_table(tmp_path / "table.parquet")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("none.csv", "does not exist"),
        ("none", "does not exist"),
        ("folder.csv", "not a file"),
        ("table.xlsx", "end the name"),
        ("a\0.csv", "path"),
    ],
)
def test_what_is_no_table_is_said(tmp_path, name, says):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "table.xlsx").write_text("cells")
    with pytest.raises(ResultsError, match=says):
        scan_table(f"{tmp_path}/{name}")
