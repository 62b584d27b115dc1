"""Random bytes and wrong contents as files: what is read is right, or refused in one line. Never a traceback."""

import copy
import json
import math
import shutil
from functools import cache
from pathlib import Path
from random import Random

import polars as pl
import pytest
from attacks import attack
from hostile import assert_brief, refused, spoiled, survives
from hypothesis import given
from hypothesis import strategies as st
from tiny import CASES, build
from tokenizers_for_tests import byte_level

from benchmarks.zoo import CASES as ZOO
from engine import AttentionMasker
from engine.demo import demo_folder
from engine.errors import ImpactError, InputError, ModelError, ResultsError
from engine.inputs.prompt_files import open_prompts
from engine.inputs.unique import with_unique_ids
from engine.model.configs import read_config
from engine.model.tensors import read_header
from engine.questions.indices import parse_indices
from engine.tables.batches import batches
from engine.tables.results import scan_table
from engine.text.spans import read_spans

EIFFEL = "The Eiffel Tower is in"
FORMS = (".csv", ".parquet", ".jsonl")
READINGS = (
    *(("analyze", "{}"), ("analyze", "{}", "--json"), ("analyze", "{}", "--skip-first"), ("analyze", "{}", "{}")),
    *(("analyze", "{}", "--by", way) for way in ("text", "position", "layer", "head")),
    *(("analyze", "{}", "--output", "new.csv"), ("report", "{}", "--output", "new.html")),
    *(("report", "{}", "--output", "new.html", "--prompt-ids", "0"),),
)
NUMBERS = (0, -1, 1, 2**31 - 1, 2**31, 2**63 - 1, -(2**63), 0.5, math.nan, math.inf, -math.inf, 1e300, 1e-300, True)
TEXTS = (
    *("", "Full", "Head_0", "Head_-1", "Head_99999999999999999999", "Head_", "Result_0", "full", "1+2", "+", "a+b"),
    *("-1", "1e9", "\x00", "\x1b[31m", "\u202e", "𝟙", "²", "99999999999+1", "NaN", "x" * 5_000, "9" * 5_000),
)
NAMES = (
    *("prompt_id", "query_position", "masked_positions", "is_special", "relative_l2", "attention_mass", "variant"),
    *("answer_logprob", "kind", "value", "place", "distance", "code", "edge", "bad", "rows", "count", "mean", "", "x"),
)
TYPES = (
    *(pl.Int8, pl.Int64, pl.UInt64, pl.Float64, pl.String, pl.Categorical, pl.Boolean, pl.Binary, pl.Date, pl.Null),
    *(pl.List(pl.Int64), pl.Struct({"a": pl.Int64}), pl.Decimal(20, 2), pl.Int128, pl.Duration("us"), pl.Time),
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module", autouse=True)
def sound(tmp_path_factory):
    """All that is spoiled below, made before hypothesis draws anything."""
    with pytest.MonkeyPatch.context() as here:
        here.chdir(tmp_path_factory.mktemp("sound"))
        for name in (*FAMILIES, "demo"):
            checkpoint(name)
        for which in range(len(tables())):
            for form in FORMS:
                written(which, form)
        dataset()


@cache
def masker():
    return AttentionMasker.from_pretrained(device="cpu")


@cache
def tables():
    """A table of every kind that there is."""
    run = masker().run
    impact = run(EIFFEL, layers=[0, 1])
    named = [impact.select(pl.lit(i).alias("prompt_id"), pl.all()) for i in range(2)]
    more = run(EIFFEL, layers=[1], query="all", columns=["attention_mass", "relative_l2", "token_id", "is_special"])
    effects = run(EIFFEL, read="output", cut="window:3", hidden_from="query")
    return impact, effects, pl.concat(named), more, run(EIFFEL, layers=[1], mask="words")


def write(table, path):
    """Any table at all, as polars writes it; False where it does not."""
    try:
        match path.suffix:
            case ".csv":
                table.write_csv(path)
            case ".parquet":
                table.write_parquet(path)
            case _:
                table.write_ndjson(path)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return False
    return True


@cache
def written(which, form):
    path = Path(f"sound{form}")
    write(tables()[which], path)
    data = path.read_bytes()
    path.unlink()
    return data


@st.composite
def changed_tables(draw):
    """A table with one to three things changed that a run would never write."""
    table = draw(st.sampled_from(tables()))
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(table.columns or ["x"]))
        values = st.sampled_from((None, *NUMBERS, *TEXTS))
        try:
            match draw(st.sampled_from(("cell", "cell", "column", "type", "drop", "rename", "more", "rows", "twice"))):
                case "cell":
                    cells = table[name].to_list()
                    cells[draw(st.integers(0, len(cells) - 1))] = draw(values)
                    table = table.with_columns(pl.Series(name, cells, strict=False))
                case "column":
                    table = table.with_columns(pl.Series(name, [draw(values)] * len(table), strict=False))
                case "type":
                    table = table.with_columns(table[name].cast(draw(st.sampled_from(TYPES)), strict=False))
                case "drop":
                    table = table.drop(name)
                case "rename":
                    table = table.rename({name: draw(st.sampled_from(NAMES))})
                case "more":
                    table = table.with_columns(pl.lit(draw(values)).alias(draw(st.sampled_from(NAMES))))
                case "rows":
                    table = table.head(draw(st.integers(0, 2)))
                case "twice":
                    table = pl.concat([table, draw(st.sampled_from(tables()))], how="diagonal_relaxed")
        except (pl.exceptions.PolarsError, IndexError, ValueError, TypeError, OverflowError):
            continue
    return table


@given(changed_tables(), st.sampled_from(FORMS), st.sampled_from(READINGS))
@attack("results files: cells, columns, types", quick=12, deep=4000)
def test_changed_tables_are_read_or_refused(elsewhere, table, form, words):
    path = elsewhere / f"table{form}"
    if write(table, path):
        survives([word.format(path.name) for word in words], elsewhere)


@given(st.integers(0, 4), st.sampled_from(FORMS), st.sampled_from(READINGS), st.data())
@attack("results files: bytes", quick=12, deep=4000)
def test_spoiled_results_are_read_or_refused(elsewhere, which, form, words, data):
    path = elsewhere / f"table{form}"
    path.write_bytes(data.draw(spoiled(written(which, form))))
    survives([word.format(path.name) for word in words], elsewhere)


JSON = st.recursive(
    st.sampled_from((None, *NUMBERS[:9], *TEXTS[:10])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("a", "name", "dtype")), inner),
    max_leaves=4,
)


@st.composite
def changed_json(draw, sound, values=JSON):
    """A JSON object with one to three of its values, at any depth, changed, left out or put in."""
    found = json.loads(json.dumps(sound))
    for _ in range(draw(st.integers(1, 3))):
        place = found
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = draw(st.sampled_from(keys)) if keys else None
            inner = place[key] if keys else None
            if not isinstance(inner, dict | list) or not inner or draw(st.booleans()):
                break
            place = inner
        if key is None:
            continue
        if draw(st.integers(0, 4)) == 0:
            del place[key]
        elif type(inner) in (int, float) and draw(st.booleans()):
            place[key] = draw(st.sampled_from((inner + 1, -inner, inner * 2, inner * 10**9, str(inner), [inner])))
        else:
            place[key] = copy.deepcopy(draw(values))  # or what is put in now would be changed for all to come
    return found


@cache
def dataset():
    """The folder of a small complete dataset."""
    folder = Path("sound set").resolve()
    masker().run_dataset([EIFFEL, "Paris is the capital of", "a"], folder)
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    shutil.rmtree(folder)
    return files


@given(st.sampled_from(READINGS), st.data())
@attack("datasets' folders", quick=8, deep=1500)
def test_spoiled_datasets_are_read_or_refused(elsewhere, words, data):
    folder = elsewhere / "set"
    shutil.rmtree(folder, ignore_errors=True)
    spoil = data.draw(st.sampled_from(sorted(dataset())))
    for name, content in dataset().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    if spoil.name == "manifest.json" and data.draw(st.integers(0, 3)):
        (folder / spoil).write_text(json.dumps(data.draw(changed_json(json.loads(dataset()[spoil])))))
    elif data.draw(st.integers(0, 5)):
        (folder / spoil).write_bytes(data.draw(spoiled(dataset()[spoil])))
    else:
        (folder / spoil).unlink()
    survives([word.format("set") for word in words], elsewhere)


ROWS = st.lists(
    st.dictionaries(
        st.sampled_from(("prompt", "text", "id", "note", "positions", "start", "end", "name", "prompt_id")),
        st.sampled_from((None, *NUMBERS, *TEXTS, EIFFEL, [1, 2], [2**63], [-1], [], {"a": 1}, [1.5], [[1]], " 1 ")),
    ),
    max_size=4,
)
SOUND_ROWS = st.just(
    [{"prompt": EIFFEL, "id": 1, "start": 0, "end": 3}, {"prompt": "b", "id": 2, "start": 4, "end": 6}]
)


@st.composite
def row_files(draw, form):
    """The bytes of a file of rows in that form, often spoiled."""
    rows = draw(st.one_of(ROWS, SOUND_ROWS))
    path = Path(f"rows{form}")
    match form:
        case ".jsonl":
            data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        case ".json":
            data = json.dumps(rows).encode()
        case ".txt":
            data = "\n".join(str(value) for row in rows for value in row.values()).encode()
        case _:
            names = sorted({name for row in rows for name in row})
            columns = {name: pl.Series(name, [row.get(name) for row in rows], strict=False) for name in names}
            data = path.read_bytes() if write(pl.DataFrame(columns), path) else b""
    data = draw(st.sampled_from((b"", b"\xef\xbb\xbf"))) + data
    return draw(spoiled(data)) if draw(st.booleans()) else data


@given(st.sampled_from((".txt", ".jsonl", ".csv", ".parquet")), st.data())
@attack("files of prompts", quick=30, deep=4000)
def test_files_of_prompts_are_read_or_refused(elsewhere, form, data):
    path = elsewhere / f"prompts{form}"
    path.write_bytes(data.draw(row_files(form)))
    options = data.draw(st.sampled_from(({}, {"id_column": "id"}, {"prompt_column": "prompt"}, {"limit": 2})))
    try:
        prompts = open_prompts(path, **options)
        for entry in with_unique_ids(prompts):
            assert entry.defect or isinstance(entry.prompt, str | list)
            assert entry.defect is None or len(entry.defect.encode()) < 500
    except ImpactError as error:
        assert_brief(error)


@given(st.sampled_from((".json", ".jsonl", ".csv", ".parquet")), st.data())
@attack("files of spans", quick=30, deep=4000)
def test_files_of_spans_are_read_or_refused(elsewhere, form, data):
    path = elsewhere / f"spans{form}"
    path.write_bytes(data.draw(row_files(form)))
    try:
        for span in read_spans(path):
            assert bool(span.positions) != bool(span.characters)
            assert all(type(each) is int and each >= 0 for each in (*span.positions, *(span.characters or ())))
    except InputError as error:
        assert_brief(error)


FAMILIES = ("qwen3", "qwen2-window", "llama-3", "mistral-window", "qwen3-yarn", "llama-longrope", "llama-dynamic")
FIELDS = st.sampled_from(
    (
        *(None, 0, -1, 1, 3, 7, 10**9, 10**18, 10**30, 0.5, -0.5, 1e308, math.nan, math.inf, True),
        *("", "x", "8", "sliding_attention", "bfloat16", "float7", "gelu", [], [1], [[]], [None], ["full_attention"]),
        *({}, {"a": 1}, {"rope_type": "yarn"}, {"rope_type": None}, {"rope_type": "linear", "factor": "x"}),
        {"full_attention": {}},
    )
)


@cache
def checkpoint(name):
    """The files of a tiny checkpoint."""
    folder = demo_folder()
    if name != "demo":
        folder = Path("sound checkpoint")
        build(next(case for case in CASES if case.name == name)).save_pretrained(folder)
        byte_level().save_pretrained(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    if name != "demo":
        shutil.rmtree(folder)
    return files


def laid_out(name, folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file, content in checkpoint(name).items():
        (folder / file).write_bytes(content)
    return folder


def measured_or_refused(folder, prompt, route="auto"):
    """The model is refused, or its table is finite."""
    try:
        table = AttentionMasker.from_pretrained(folder, route=route, device="cpu").run(prompt)
    except ImpactError as error:
        assert_brief(error)
        return
    values = table.select(pl.col("l2_distance", "cosine_distance").is_finite().all())
    assert all(values.row(0)), folder


@pytest.mark.filterwarnings("ignore")
@given(st.sampled_from(FAMILIES), st.data())
@attack("config.json", quick=12, deep=3000)
def test_any_config_is_measured_or_refused(elsewhere, name, data):
    folder = laid_out(name, elsewhere / "model")
    sound = json.loads(checkpoint(name)["config.json"])
    config = data.draw(changed_json(sound, FIELDS))
    (folder / "config.json").write_text(json.dumps(config))
    if data.draw(st.integers(0, 9)) == 0:
        (folder / "config.json").write_bytes(data.draw(spoiled((folder / "config.json").read_bytes())))
    measured_or_refused(folder, [1, 2, 3, 4, 5], data.draw(st.sampled_from(("auto", "auto", "auto", "generic"))))


@pytest.mark.filterwarnings("ignore")
@given(st.sampled_from(("tokenizer.json", "tokenizer_config.json")), st.data())
@attack("tokenizer files", quick=8, deep=1500)
def test_any_tokenizer_is_read_or_refused(elsewhere, file, data):
    name = "qwen3"
    folder = laid_out(name, elsewhere / "model")
    changed = data.draw(changed_json(json.loads(checkpoint(name)[file])))
    spoil = data.draw(spoiled(checkpoint(name)[file])) if data.draw(st.integers(0, 2)) == 0 else None
    (folder / file).write_bytes(json.dumps(changed).encode() if spoil is None else spoil)
    measured_or_refused(folder, "The Eiffel")


@st.composite
def headers(draw):
    """A safetensors file whose header lies."""
    data = checkpoint("qwen3")["model.safetensors"]
    size = int.from_bytes(data[:8], "little")
    if draw(st.integers(0, 2)) == 0:
        return draw(spoiled(data[: 8 + size])) + data[8 + size :]
    header = json.dumps(draw(changed_json(json.loads(data[8 : 8 + size])))).encode()
    return draw(st.sampled_from((len(header), 0, 2**40, 2**63))).to_bytes(8, "little") + header + data[8 + size :]


@given(headers())
@attack("safetensors files", quick=20, deep=4000)
def test_any_weights_file_is_read_or_refused(elsewhere, data):
    path = elsewhere / "model.safetensors"
    path.write_bytes(data)
    try:
        tensors = read_header(path)
    except ModelError as error:
        assert_brief(error)
        return
    assert sum(tensor.num_bytes for tensor in tensors.values()) < len(data)


# What the attacks found, one test each.


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("masked_positions", value) for value in (None, "Head_0", "1e9", "-1", "9" * 5_000)),
        *(("token_position", value) for value in (None, -1)),
        *(("layer", value) for value in (None, -5)),
        *(("variant", value) for value in (None, "Head_" + "9" * 5_000, "Head_x")),
        ("token_masked", None),
    ],
)
def test_a_page_or_figure_of_rows_without_a_proper_label_is_refused(elsewhere, column, value):
    table = tables()[4].with_columns(pl.col("variant").cast(pl.String))
    cells = [value, *table[column].to_list()[1:]]
    table.with_columns(pl.Series(column, cells)).write_parquet("t.parquet")
    assert "some rows lack" in refused(["report", "t.parquet", "--output", "new.html"])
    assert "some rows lack" in refused(["plot", "t.parquet", "--output", "new.svg"])


@pytest.mark.parametrize("value", [None, -1])
def test_a_page_of_rows_without_a_query_is_refused(elsewhere, value):
    table = tables()[3]
    table.with_columns(query_position=pl.Series([value, *table["query_position"].to_list()[1:]])).write_csv("t.csv")
    assert "some rows lack" in refused(["report", "t.csv", "--output", "new.html"])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_no_numbers_get_no_colour(elsewhere, value):
    table = tables()[2]
    cells = [value, *table["l2_distance"].to_list()[1:]]
    table = table.with_columns(l2_distance=pl.Series(cells, dtype=pl.Float32))
    table.write_parquet("set.parquet")
    table.filter(prompt_id=0).drop("prompt_id").write_parquet("one.parquet")
    for name in ("set", "one"):
        assert "NaN or infinite" in refused(["report", f"{name}.parquet", "--output", "new.html"])


@pytest.mark.parametrize(
    ("column", "values"), [("prompt_id", 0.5), ("attention_mass", "Full"), ("is_special", 3), ("query_position", "1")]
)
def test_columns_that_were_asked_for_have_their_types_too(elsewhere, column, values):
    tables()[3].with_columns(pl.lit(values).alias(column)).write_parquet("t.parquet")
    with pytest.raises(ResultsError, match=f"column {column} is"):
        scan_table("t.parquet")


def broken(table):
    """A Parquet file of several row groups that polars panics over in one of them."""
    path, draw = Path("broken.parquet"), Random(0)
    table.write_parquet(path, row_group_size=500, compression="uncompressed")
    sound = path.read_bytes()
    for _ in range(5_000):
        place = draw.randrange(4, len(sound))
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1 << draw.randrange(8)]) + sound[place + 1 :])
        try:
            pl.scan_parquet(path).collect(engine="streaming")
        except pl.exceptions.PanicException:
            if pl.scan_parquet(path).select(pl.len()).collect().item() == len(table):
                return path
        except pl.exceptions.PolarsError:
            continue
    return pytest.skip("this version of polars panics over nothing")


def test_rows_that_are_lost_to_a_panic_are_missed(elsewhere):
    rows = range(4_000)
    columns = {"prompt": [f"prompt {i % 50}" if i % 7 else None for i in rows], "id": rows}
    numbers = pl.Series("x", [i * 0.5 if i % 3 else None for i in rows], dtype=pl.Float32)
    path = broken(pl.DataFrame(columns).with_columns(numbers))
    with pytest.raises((ResultsError, pl.exceptions.PanicException)):
        list(batches(pl.scan_parquet(path), rows=1_000))
    with pytest.raises(InputError, match="cannot be read"):
        list(open_prompts(path))


def test_a_panic_is_told_in_one_line(elsewhere):
    impact = tables()[0]
    path = broken(pl.concat([impact.select(pl.lit(i).alias("prompt_id"), pl.all()) for i in range(40)]))
    for words in (("analyze", path.name), ("report", path.name, "--output", "new.html")):
        assert "can" in refused(words)


@pytest.mark.parametrize("name", ["llama-3", "mistral-window", "demo"])
@pytest.mark.parametrize("value", [10**6, 10**9, 1e12, math.inf])
def test_a_config_of_a_million_layers_is_refused_at_once(elsewhere, name, value):
    folder = laid_out(name, elsewhere / "model")
    config = json.loads(checkpoint(name)["config.json"])
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": value}))
    for route in ("fused", "generic"):
        with pytest.raises(ModelError, match="no model has more than"):
            AttentionMasker.from_pretrained(folder, device="cpu", route=route)


@pytest.mark.parametrize("value", [None, 0, 96, -1, -50, -97])
def test_a_padding_token_anywhere_in_the_vocabulary_passes_the_self_check(elsewhere, value):
    folder = laid_out("qwen3", elsewhere / "model")
    config = json.loads(checkpoint("qwen3")["config.json"])
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": value}))
    assert AttentionMasker.from_pretrained(folder, device="cpu").checked


def test_a_long_id_that_comes_again_is_shortened_in_its_reason(elsewhere):
    Path("p.jsonl").write_text(f"{json.dumps({'prompt': 'a', 'id': 'x' * 5_000})}\n" * 2)
    entries = list(with_unique_ids(open_prompts("p.jsonl", id_column="id")))
    assert len(entries[1].defect) < 150


def test_a_page_of_no_rows_of_several_queries_is_refused(elsewhere):
    tables()[3].head(0).write_csv("t.csv")
    assert "no rows" in refused(["report", "t.csv", "--output", "new.html"])


@pytest.mark.parametrize("word", ["input", "status", "settings", "versions"])
def test_a_manifest_that_lacks_a_word_is_refused(elsewhere, word):
    for name, content in dataset().items():
        (elsewhere / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (elsewhere / "set" / name).write_bytes(content)
    manifest = json.loads((elsewhere / "set" / "manifest.json").read_text())
    del manifest[word]
    (elsewhere / "set" / "manifest.json").write_text(json.dumps(manifest))
    assert "changed since it was written" in refused(["analyze", "set"])


def test_a_config_that_is_nested_too_deeply_is_refused(elsewhere):
    (elsewhere / "config.json").write_text('{"a":' + "[" * 200_000)
    with pytest.raises(ModelError, match=r"cannot load config\.json"):
        read_config("it", elsewhere)


def test_a_long_list_of_indices_is_shortened_in_its_error():
    with pytest.raises(ImpactError) as caught:
        parse_indices("x" * 10_000, what="--layers")
    assert len(str(caught.value)) < 200


def test_a_config_of_millions_of_experts_is_refused(elsewhere):
    build(next(case for case in ZOO if case.name == "qwen3-moe")).save_pretrained("model")
    path = Path("model/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 3_000, "num_experts": 3_000}))
    with pytest.raises(ModelError, match=r"is incomplete: .* weights are missing"):
        AttentionMasker.from_pretrained("model", device="cpu")  # their names alone would need for ever
