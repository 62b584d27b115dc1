"""Prompt files: whatever is in them becomes an entry, lazily, and what cannot be read is one line that says why."""

import csv
import datetime
import decimal
import errno
import io
import json
import os
import subprocess
import sys
import threading
import tracemalloc
from itertools import islice
from pathlib import Path

import polars as pl
import pytest

from engine.errors import InputError, SelectionError
from engine.inputs.prompt_files import open_prompts

ROOT = Path(__file__).parent.parent


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def parquet(folder, columns, **options):
    path = folder / "prompts.parquet"
    pl.DataFrame(columns).write_parquet(path, **options)
    return path


def read(path, **options):
    return list(open_prompts(path, **options))


def prompts(path, **options):
    return [entry.prompt for entry in read(path, **options)]


def defects(path, **options):
    return [entry.defect for entry in read(path, **options)]


# Lines of text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a\nb\n", ["a", "b"]),
        ("a\nb", ["a", "b"]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("  a \n\tb\n", ["  a ", "\tb"]),
        ("a\n\nb\n\n", ["a", "", "b", ""]),
        ("\n", [""]),
        ("\ufeffa\n\ufeffb\n", ["a", "\ufeffb"]),
        ("\ufeff\na\n", ["", "a"]),
        ("a\rb\u2028c\x0bd\x85\r\n", ["a\rb\u2028c\x0bd\x85"]),
        ("a\x00b\n🗼 שלום\n", ["a\x00b", "🗼 שלום"]),
        ("a\r", ["a\r"]),
        (b"caf\xe9\n\xed\xa0\x80\n", ["caf\udce9", "\udced\udca0\udc80"]),
        ("x" * 1_000_000 + "\nb", ["x" * 1_000_000, "b"]),
    ],
)
def test_a_line_is_a_prompt(tmp_path, content, expected):
    entries = read(written(tmp_path, "prompts.txt", content))
    assert [entry.prompt for entry in entries] == expected
    assert [(entry.row, entry.prompt_id) for entry in entries] == [(row, row) for row in range(len(expected))]
    assert all(entry.defect is None and entry.columns == {} for entry in entries)


@pytest.mark.parametrize("name", ["a.TXT", "~a.txt", "a*[b]?.txt", "a{b}\n.txt", "-.txt"])
def test_names_of_files_are_taken_as_they_are(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, name, "a\n")
    source = open_prompts(name)
    monkeypatch.chdir("/")
    assert source.name == name
    assert [[entry.prompt for entry in source] for _ in range(2)] == [["a"], ["a"]]


# JSON lines


def test_json_lines_are_objects_strings_or_token_ids(tmp_path):
    lines = (
        '\ufeff{"prompt": "a\\nb", "n": 1, "x": [1, {"y": "é"}], "z": null}\r\n"c"\n[1, 2]\n{"prompt": [3], "n": true}'
    )
    first, second, third, fourth = read(written(tmp_path, "prompts.ndjson", lines))
    assert first.prompt == "a\nb"
    assert first.columns == {"n": 1, "x": '[1, {"y": "é"}]', "z": None}
    assert (second.prompt, third.prompt, fourth.prompt) == ("c", [1, 2], [3])
    assert (second.columns, fourth.columns) == ({}, {"n": True})
    assert not any(entry.defect for entry in (first, second, third, fourth))


@pytest.mark.parametrize(
    ("line", "defect"),
    [
        ("{'prompt': 1}", "the line cannot be read as JSON: expecting property name enclosed in double quotes"),
        ("nonsense", "the line cannot be read as JSON: expecting value at character 1"),
        ('{"prompt": "a"', "the line cannot be read as JSON: "),
        ('{"prompt": "a"}{"prompt": "b"}', "the line cannot be read as JSON: extra data"),
        ('{"prompt": "a", "x": NaN}', "the line cannot be read as JSON: NaN is no number there"),
        ('{"prompt": "a", "x": -Infinity}', "the line cannot be read as JSON: -Infinity is no number there"),
        ('{"prompt": "a", "x": 1e999}', "the line cannot be read as JSON: 1e999 is too large"),
        ('{"prompt": "a", "x": ' + "9" * 5000 + "}", "the line cannot be read as JSON: "),
        ('{"prompt": "a", "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "the line is JSON that is nested too deeply"),
        ('{"prompt": "a\x00"}', "the line cannot be read as JSON: invalid control character"),
        ("", "the line is blank"),
        (" \t\r", "the line is blank"),
        ('{"text": "a"}', "it has no 'prompt'"),
        ("{}", "it has no 'prompt'"),
        ('{"prompt": null}', "its prompt is null"),
        ('{"prompt": 12}', "its prompt is a number, expected text or a list of token ids"),
        ('{"prompt": false}', "its prompt is true or false"),
        ('{"prompt": {"a": 1}}', "its prompt is an object"),
        ('{"prompt": [1, true]}', "its prompt is a list with something else than token ids, which are whole numbers"),
        ('{"prompt": [[1]]}', "its prompt is a list with something else"),
        ("1.5", "its prompt is a number"),
        ("null", "its prompt is null"),
    ],
)
def test_a_line_that_is_no_prompt_is_a_defect_of_its_row(tmp_path, line, defect):
    path = written(tmp_path, "prompts.jsonl", f'{{"prompt": "first"}}\n{line}\n{{"prompt": "last"}}\n')
    first, middle, last = read(path)
    assert (first.prompt, last.prompt, last.row, first.defect, last.defect) == ("first", "last", 2, None, None)
    assert middle.defect.startswith(defect)
    assert "\n" not in middle.defect
    assert isinstance(middle.prompt, str)
    assert len(middle.prompt) <= 1001
    middle.prompt.encode()
    assert middle.prompt[:9].strip() in line


def test_blank_lines_at_the_end_are_no_rows(tmp_path):
    path = written(tmp_path, "prompts.jsonl", '\n\n"a"\n\n\n')
    assert defects(path) == ["the line is blank", "the line is blank", None]
    assert read(path, limit=1)[0].row == 0


def test_bytes_that_are_no_text_stay_in_the_prompt_and_become_escapes_elsewhere(tmp_path):
    line = b'{"prompt": "caf\xe9 \\ud800", "x\xe9": "caf\xe9", "id": "\xe9"}'
    (entry,) = read(written(tmp_path, "prompts.jsonl", line), id_column="id")
    assert entry.prompt == "caf\udce9 \ud800"
    assert (entry.prompt_id, entry.columns) == ("\\udce9", {"x\\udce9": "caf\\udce9"})
    (entry,) = read(written(tmp_path, "prompts.csv", b"prompt,x\n\xe9,\xe9\n"))
    assert (entry.prompt, entry.columns) == ("\udce9", {"x": "\\udce9"})


def test_numbers_that_no_column_holds_become_text(tmp_path):
    line = json.dumps({"prompt": "a", "fits": -(2**63), "large": 2**63, "float": 1e308})
    (entry,) = read(written(tmp_path, "prompts.jsonl", line))
    assert entry.columns == {"fits": -(2**63), "large": str(2**63), "float": 1e308}


# CSV


def test_csv_keeps_what_its_cells_hold(tmp_path):
    cells = ["a\nb", "a\r\nb", "a\rb", 'say "x"', " , ", "🗼", "007", "null", "a\x00b", "\u2028", "y" * 1_000_000]
    file = io.StringIO()
    csv.writer(file).writerows([["x", "prompt"], *([cell, cell] for cell in cells)])
    path = written(tmp_path, "prompts.csv", "\ufeff" + file.getvalue())
    before = csv.field_size_limit()
    entries = read(path)
    assert [entry.prompt for entry in entries] == cells
    assert [entry.columns["x"] for entry in entries] == cells
    assert csv.field_size_limit() == before


def test_empty_cells_are_null_and_an_empty_prompt_is_empty(tmp_path):
    path = written(tmp_path, "prompts.csv", 'id,prompt,x,y\n1,,,""\n,b,2,\n')
    first, second = read(path, id_column="id")
    assert (first.prompt_id, first.prompt, first.columns, first.defect) == ("1", "", {"x": None, "y": None}, None)
    assert (second.prompt_id, second.prompt, second.defect) == (None, "b", "it has no id")


def test_csv_rows_of_another_length_are_defects(tmp_path):
    path = written(tmp_path, "prompts.csv", "prompt,x\na\n\na,b,c\na,b\n\n\n")
    assert defects(path) == [
        "it has 1 cell, the header has 2",
        "the line is blank",
        "it has 3 cells, the header has 2",
        None,
    ]
    assert prompts(path) == ["a", "", "a,b,c", "a"]


def test_a_csv_file_that_is_cut_off_says_where(tmp_path):
    source = open_prompts(written(tmp_path, "prompts.csv", 'prompt\na\n"b\nc"\n"d\ne\n'))
    entries = iter(source)
    assert [next(entries).prompt, next(entries).prompt] == ["a", "b\nc"]
    with pytest.raises(InputError, match="the row that begins on line 5: unexpected end of data; quote"):
        next(entries)


# Parquet


def test_parquet_keeps_values_with_their_types(tmp_path):
    day, moment = datetime.date(2026, 1, 2), datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.UTC)
    columns = {
        "prompt": ["a\nb\x00", ""],
        "whole": [1, None],
        "large": pl.Series([2**63, 1], dtype=pl.UInt64),
        "float": [0.1, None],
        "flag": [True, None],
        "day": [day, None],
        "moment": [moment, None],
        "fine": pl.Series(["2026-01-02T03:04:05.123456789", None]).str.to_datetime(time_unit="ns"),
        "time": pl.Series([3_720_000_000_001, None]).cast(pl.Time),
        "span": pl.Series([1_000_000_001, None]).cast(pl.Duration("ns")),
        "bytes": [b"\x00\xff", None],
        "nested": [{"a": [1], "b": day, "c": b"\xff"}, None],
        "list": [["x", None], None],
        "decimal": [decimal.Decimal("1.50"), None],
        "kind": pl.Series(["k", None], dtype=pl.Categorical),
    }
    first, second = read(parquet(tmp_path, columns))
    assert (first.prompt, second.prompt) == ("a\nb\x00", "")
    assert first.columns == {
        "whole": 1,
        "large": str(2**63),
        "float": 0.1,
        "flag": True,
        "day": day,
        "moment": moment,
        "fine": "2026-01-02 03:04:05.123456789",
        "time": "01:02:00.000000001",
        "span": "PT1.000000001S",
        "bytes": "00ff",
        "nested": '{"a": [1], "b": "2026-01-02", "c": "ff"}',
        "list": '["x", null]',
        "decimal": "1.50",
        "kind": "k",
    }
    assert {value for name, value in second.columns.items() if name != "large"} == {None}
    assert not first.defect
    assert not second.defect


def test_parquet_prompts_can_be_token_ids_and_missing(tmp_path):
    columns = {"prompt": [[1, 2], None, [], [3, None]], "array": pl.Series([[1, 2]] * 4, dtype=pl.Array(pl.UInt8, 2))}
    path = parquet(tmp_path, columns)
    first, second, third, fourth = defects(path)
    assert (first, second, third) == (None, "its prompt is null", None)
    assert fourth.startswith("its prompt is a list with something else than token ids")
    assert prompts(path)[0] == [1, 2]
    assert prompts(path, prompt_column="array") == [[1, 2]] * 4


def test_parquet_is_read_in_order_and_up_to_the_limit(tmp_path):
    path = parquet(tmp_path, {"prompt": [str(row) for row in range(5000)]}, row_group_size=700)
    assert prompts(path) == [str(row) for row in range(5000)]
    assert prompts(path, limit=1030) == [str(row) for row in range(1030)]
    assert len(prompts(path, limit=2**40)) == 5000
    entries = iter(open_prompts(path))
    assert next(entries).prompt == "0"
    entries.close()


# Columns and ids


@pytest.mark.parametrize(
    ("header", "options", "expected"),
    [
        ("x,text,prompt", {}, "c"),
        ("x,y,text", {}, "c"),
        ("text,x,y", {"prompt_column": "y"}, "c"),
        ("prompt,x,text", {"id_column": "prompt"}, "c"),
    ],
)
def test_the_column_with_the_prompts(tmp_path, header, options, expected):
    assert prompts(written(tmp_path, "prompts.csv", f"{header}\na,b,c\n"), **options) == [expected]
    row = json.dumps(dict(zip(header.split(","), "abc", strict=True)))
    assert prompts(written(tmp_path, "prompts.jsonl", row), **options) == [expected]
    columns = dict(zip(header.split(","), (["a"], ["b"], ["c"]), strict=True))
    assert prompts(parquet(tmp_path, columns), **options) == [expected]


def test_a_column_without_a_choice_is_taken(tmp_path):
    assert prompts(written(tmp_path, "prompts.csv", "question\na\n")) == ["a"]
    assert prompts(written(tmp_path, "prompts.csv", "key,question\n1,a\n"), id_column="key") == ["a"]
    assert prompts(written(tmp_path, "prompts.jsonl", '{"n": 1, "question": "a", "m": [1]}')) == ["a"]
    assert prompts(written(tmp_path, "prompts.jsonl", '{"tokens": [1, 2]}')) == [[1, 2]]
    assert prompts(parquet(tmp_path, {"n": [1], "question": ["a"]})) == ["a"]
    first_object_third = written(tmp_path, "prompts.jsonl", '"a"\nx\n{"q": "b"}\n{"prompt": "c"}')
    assert prompts(first_object_third) == ["a", "x", "b", '{"prompt": "c"}']


def test_the_prompt_can_be_its_own_id(tmp_path):
    (entry,) = read(written(tmp_path, "prompts.csv", "prompt,x\na,b\n"), id_column="prompt", prompt_column="prompt")
    assert (entry.prompt_id, entry.prompt, entry.columns) == ("a", "a", {"x": "b"})


def ids(folder, *values):
    lines = "\n".join(json.dumps({"prompt": "p", "key": value}) for value in values)
    entries = read(written(folder, "prompts.jsonl", lines), id_column="key")
    assert all(entry.columns == {} and (entry.prompt_id is None) == bool(entry.defect) for entry in entries)
    return [entry.defect or entry.prompt_id for entry in entries]


def test_the_first_id_decides_whether_ids_are_numbers(tmp_path):
    no_number = "its id {} is no whole number of 64 bits, as those before are"
    assert ids(tmp_path, 7, "8", -1) == [7, no_number.format("'8'"), -1]
    assert ids(tmp_path, 7, 1.0, 2**63) == [7, no_number.format("'1.0'"), no_number.format(f"'{2**63}'")]
    assert ids(tmp_path, "7", 8, 0.5) == ["7", "8", "0.5"]
    assert ids(tmp_path, 2**63, 8) == [str(2**63), "8"]
    assert ids(tmp_path, None, "", 0) == ["it has no id", "it has no id", 0]
    assert ids(tmp_path, True, [1], {}) == [
        f"its id is {kind}, expected text or a whole number" for kind in ("true or false", "a list", "an object")
    ]


def test_ids_are_missing_where_a_row_has_none(tmp_path):
    path = written(tmp_path, "prompts.jsonl", '{"prompt": "a", "key": 1}\n{"prompt": "b"}\n"c"\n[1, 2]\n{\n{"key": 5}')
    entries = read(path, id_column="key")
    assert [entry.prompt_id for entry in entries] == [1, None, None, None, None, 5]
    assert [entry.defect for entry in entries][:4] == [None, *["it has no id"] * 3]
    assert entries[5].defect == "it has no 'prompt'"


def test_ids_of_csv_are_text_and_of_parquet_as_they_are(tmp_path):
    assert read(written(tmp_path, "prompts.csv", "prompt,id\na,007\n"), id_column="id")[0].prompt_id == "007"
    columns = {
        "prompt": ["a", "b"],
        "whole": pl.Series([1, 2], dtype=pl.UInt8),
        "text": ["x", "y"],
        "day": [datetime.date(2026, 1, 2), None],
        "real": [1.5, float("nan")],
    }
    path = parquet(tmp_path, columns)
    found = {name: [entry.prompt_id for entry in read(path, id_column=name)] for name in columns if name != "prompt"}
    assert found == {"whole": [1, 2], "text": ["x", "y"], "day": ["2026-01-02", None], "real": ["1.5", None]}
    assert read(path, id_column="text")[1].columns.keys() == {"whole", "day", "real"}


# What is refused

CSV, JSONL = "prompts.csv", "prompts.jsonl"


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("prompts.json", "[]", {}, r"no prompt file by its name; end it in one of \.txt, \.jsonl, .*, or give -"),
        ("prompts", "a", {}, "no prompt file by its name"),
        ("prompts.txt", "", {}, "holds no prompts; give a file with at least one"),
        ("prompts.parquet", "", {}, "holds no prompts"),
        ("prompts.txt", "\ufeff", {}, "holds no prompts"),
        (JSONL, "\n \n", {}, "holds no prompts"),
        (CSV, "prompt,x\n", {}, "holds no prompts"),
        (CSV, "\ufeff", {}, "holds no prompts"),
        ("prompts.txt", "a\n", {"prompt_column": "x"}, "has lines and no columns; leave --prompt-column out"),
        ("prompts.txt", "a\n", {"id_column": "x"}, "has lines and no columns; leave --id-column out"),
        ("prompts.txt", "a\n".encode("utf-16"), {}, "is UTF-16; save it as UTF-8"),
        (CSV, "a,b\n1,2\n", {}, "which column .*; choose one with --prompt-column; its columns are: 'a', 'b'"),
        (JSONL, '{"a": "1", "b": "2"}', {}, "does not say which column .* its columns are: 'a', 'b'"),
        (JSONL, "{}", {}, "does not say which column .* its columns are: none"),
        (CSV, "a,b\n1,2\n", {"prompt_column": "c"}, "no column 'c', which --prompt-column names; .*: 'a', 'b'"),
        (JSONL, '"s"\n{"a": 1}', {"prompt_column": "c\n"}, r"no column 'c\\n', which --prompt-column names"),
        (CSV, "prompt,b\n1,2\n", {"id_column": "id"}, "no column 'id', which --id-column names"),
        (CSV, "prompt,x,x\n", {}, "has 2 columns 'x'; give each a name of its own"),
        (CSV, ",prompt\n", {}, "has no name for column 1; name every column in its first row"),
        (CSV, "\nprompt\n", {}, "has no name for column 1"),
        (CSV, "id;prompt\n1;a\n", {}, "are separated by ';'; separate them by commas"),
        (CSV, 'prompt\n"a"b\n', {}, "cannot be read: the row that begins on line 2: .* quote cells"),
        (CSV, "prompt\na\rb\n", {}, "cannot be read: the row that begins on line 2: "),
        ("prompts.parquet", "nonsense", {}, "cannot be read: .*; is the file damaged, cut off, or no parquet"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path, name, content, options, message):
    path = written(tmp_path, name, content)
    with pytest.raises(InputError, match=message) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_prompt_column_of_another_type_is_refused(tmp_path):
    path = parquet(tmp_path, {"prompt": [1.5], "a": ["x"], "bytes": [b"x"], "mixed": [["x"]]})
    for column, kind in (("prompt", "Float64"), ("bytes", "Binary"), ("mixed", r"List\(String\)")):
        with pytest.raises(
            InputError, match=f"column '{column}' is {kind}, expected text or lists of token ids; choose"
        ):
            open_prompts(path, prompt_column=column)
    with pytest.raises(InputError, match="column 'prompt' is Float64"):
        open_prompts(path)
    with pytest.raises(InputError, match="has no column 'z'"):
        open_prompts(path, id_column="z")


def test_parquet_that_is_damaged_further_down_is_refused_there(tmp_path):
    columns = {"prompt": [f"{row} " * 50 for row in range(4000)]}
    path = parquet(tmp_path, columns, row_group_size=1000, compression="uncompressed")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) * 3 // 4] = bytes([255]) * (len(content) * 3 // 4 - len(content) // 2)
    path.write_bytes(content)
    source = open_prompts(path)
    with pytest.raises(InputError, match="cannot be read") as caught:
        list(source)
    assert "\n" not in str(caught.value)


def test_paths_that_are_no_files_are_refused(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    for path, message in (
        (tmp_path / "missing.txt", "missing.txt' does not exist; check the path"),
        (tmp_path / "folder.csv", "is a folder; give a file of prompts"),
        ("a\x00b.txt", "cannot be opened: .*embedded null .*; check the path"),
        ("x" * 5000 + ".txt", "cannot be opened: File name too long"),
        ("/dev/null", "is no file"),
    ):
        with pytest.raises(InputError, match=message):
            open_prompts(path)


def test_a_file_without_permission_is_refused(tmp_path, monkeypatch):
    path = written(tmp_path, "prompts.txt", "a\n")

    def denied(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(InputError, match="cannot be read: Permission denied; check that it is there and readable"):
        open_prompts(path)


def test_a_file_that_vanished_is_one_line(tmp_path):
    source = open_prompts(written(tmp_path, "prompts.txt", "a\n"))
    (tmp_path / "prompts.txt").unlink()
    with pytest.raises(InputError, match="cannot be read: No such file or directory; check"):
        list(source)


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "2"])
def test_a_limit_leaves_something(tmp_path, limit):
    with pytest.raises(SelectionError, match="leaves no prompts; give a whole number of rows from 1 on"):
        open_prompts(written(tmp_path, "prompts.txt", "a\n"), limit=limit)


# Standard input, pipes and laziness


class Stdin(io.TextIOWrapper):
    """Standard input with these bytes."""

    def __init__(self, content):
        super().__init__(io.BytesIO(content))


def test_standard_input_is_read_once(monkeypatch):
    monkeypatch.setattr(sys, "stdin", Stdin(b"\xef\xbb\xbfa\r\n\n b"))
    source = open_prompts("-")
    assert [(entry.row, entry.prompt) for entry in source] == [(0, "a"), (1, ""), (2, " b")]
    assert source.fraction_read() is None
    assert not sys.stdin.buffer.closed
    with pytest.raises(InputError, match="standard input can be read only once; save the prompts in a file"):
        iter(source)


def test_standard_input_stays_open_for_others(monkeypatch):
    monkeypatch.setattr(sys, "stdin", Stdin(b"a\nb\nc\n"))
    assert prompts("-", limit=1) == ["a"]
    assert sys.stdin.buffer.readline() == b"b\n"


def test_standard_input_that_cannot_be_read(monkeypatch):
    closed = Stdin(b"")
    closed.close()
    for stdin in (None, closed, io.StringIO("a")):
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(InputError, match="standard input is closed; send it the prompts, one a line"):
            open_prompts("-")
    monkeypatch.setattr(sys, "stdin", Stdin(b"a\n"))
    with pytest.raises(InputError, match="standard input has lines and no columns; leave --id-column out"):
        open_prompts("-", id_column="x")


def test_an_endless_standard_input_gives_its_first_entries():
    code = (
        "from itertools import islice; from engine.inputs.prompt_files import open_prompts\n"
        "print([e.prompt for e in islice(open_prompts('-'), 3)], [e.prompt for e in open_prompts('-', limit=2)])"
    )
    endless = (
        "import itertools, sys\n"
        "try:\n for n in itertools.count(): print(n, flush=n < 9)\n"
        "except OSError: sys.stderr.close()"
    )
    with subprocess.Popen([sys.executable, "-c", endless], stdout=subprocess.PIPE) as source:
        out = subprocess.run(
            [sys.executable, "-c", code], stdin=source.stdout, capture_output=True, text=True, cwd=ROOT, timeout=60
        )
        source.stdout.close()
        source.kill()
    assert out.stderr == ""
    assert out.stdout.startswith("['0', '1', '2'] [")


def test_a_line_is_an_entry_before_the_next_is_sent(tmp_path):
    path = tmp_path / "pipe.jsonl"
    os.mkfifo(path)
    answered = threading.Event()

    def send():
        with path.open("w", buffering=1) as pipe:
            pipe.write('{"text": "a"}\n')
            assert answered.wait(30)
            pipe.write('{"text": "b"}\n')

    source = open_prompts(path)
    sender = threading.Thread(target=send)
    sender.start()
    entries = iter(source)
    assert next(entries).prompt == "a"
    answered.set()
    assert [entry.prompt for entry in entries] == ["b"]
    sender.join()
    assert source.fraction_read() is None
    with pytest.raises(InputError, match=r"pipe\.jsonl' can be read only once"):
        iter(source)


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv", "parquet"])
def test_the_fraction_grows_from_0_to_1(tmp_path, suffix):
    count = 3000
    path = tmp_path / f"prompts.{suffix}"
    table = pl.DataFrame({"prompt": [f"prompt {row}" for row in range(count)]})
    match suffix:
        case "txt":
            path.write_text("\n".join(table["prompt"]))
        case "jsonl":
            table.write_ndjson(path)
        case "csv":
            table.write_csv(path)
        case _:
            table.write_parquet(path)
    source = open_prompts(path)
    for _ in range(2):
        entries = iter(source)
        shares = [source.fraction_read() for entry in entries]
        assert shares == sorted(shares)
        assert 0 < shares[0] < 0.02
        assert 0.48 < shares[count // 2] < 0.52
        assert source.fraction_read() == 1
    entries = iter(source)
    list(islice(entries, count // 2))
    entries.close()
    assert 0.48 < source.fraction_read() < 0.52
    assert open_prompts(path).fraction_read() == 0
    limited = open_prompts(path, limit=10)
    assert [source_share for entry in limited if (source_share := limited.fraction_read())][4] == 0.5
    assert limited.fraction_read() == 1


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv"])
def test_memory_stays_flat(tmp_path, suffix):
    line = json.dumps("x" * 99) if suffix == "jsonl" else "x" * 99
    path = written(tmp_path, f"prompts.{suffix}", f"{line}\n" * 60_000)
    source = open_prompts(path)
    tracemalloc.start()
    try:
        assert sum(1 for _ in source) >= 59_999
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
@pytest.mark.parametrize("change", ["cut off", "longer"])
def test_a_file_that_changes_while_it_is_read_is_not_taken_for_whole(tmp_path, suffix, change):
    """A shorter file would look like the end of the prompts."""
    path = tmp_path / f"prompts{suffix}"
    line = {".txt": "a prompt\n", ".jsonl": '{"prompt": "a prompt"}\n', ".csv": "a prompt\n"}[suffix]
    path.write_text(("prompt\n" if suffix == ".csv" else "") + line * 20_000)
    entries = iter(open_prompts(path))
    next(entries)
    if change == "cut off":
        os.truncate(path, path.stat().st_size // 2)
    else:
        path.write_text(path.read_text() + line)
    with pytest.raises(InputError, match="changed while it was read"):
        list(entries)
