"""A set of prompts as a dataset: the same numbers as one by one, nothing lost, nothing mixed."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from kills import contents
from tiny import CASES, VOCAB, build
from tokenizers_for_tests import byte_level

from engine import AttentionMasker, read_results
from engine.datasets import production, shards, worker
from engine.datasets.folder import Folder
from engine.datasets.locking import locked
from engine.datasets.shards import cut_shards
from engine.datasets.stopping import Stop
from engine.errors import InputError, Interrupted, ModelError, OutOfMemoryError, ResultsError, SelectionError
from engine.inputs.entries import Entry, entries_of

BY_NAME = {case.name: case for case in CASES}


@pytest.fixture
def masker():
    return AttentionMasker(build(BY_NAME["qwen3"]), byte_level())


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "MOST_PROMPTS", 5)


def drawn(count, seed=0, least=2, most=12):
    random = np.random.default_rng(seed)
    return [random.integers(VOCAB, size=random.integers(least, most)).tolist() for _ in range(count)]


def tables(folder):
    return {name: pl.read_parquet(folder / f"{name}.parquet") for name in ("prompts", "tokens", "rejected")}


def stop_after(count):
    """A watch that fails when ``count`` parts are finished, as a process that is killed does."""
    seen = []

    def watch(state):
        seen.append(state)
        if len(seen) == count:
            raise RuntimeError("killed")

    return watch


@pytest.mark.usefixtures("small_shards")
def test_a_dataset_holds_what_each_prompt_gives_alone(masker, tmp_path):
    prompts = dict(zip([f"p{i}" for i in range(17)], drawn(17), strict=True))
    manifest = masker.run_dataset(prompts, tmp_path / "set")
    found = read_results(tmp_path / "set").collect()
    assert found.columns[0] == "prompt_id"
    assert found["prompt_id"].unique(maintain_order=True).to_list() == list(prompts)
    for prompt_id, prompt in prompts.items():
        alone = masker.run(prompt)
        rows = found.filter(prompt_id=prompt_id).drop("prompt_id")
        assert rows.schema == alone.schema
        labels = ["layer", "token_masked", "token_position", "variant"]
        assert rows.select(labels).equals(alone.select(labels))
        for distance in ("l2_distance", "cosine_distance"):
            np.testing.assert_allclose(rows[distance], alone[distance], rtol=2e-3, atol=1e-6)
    assert manifest["status"] == "complete"
    assert manifest["counts"] == {
        "prompts": 17,
        "rejected": 0,
        "tokens": sum(map(len, prompts.values())),
        "rows": found.height,
        "parts": 4,
    }
    assert json.loads((tmp_path / "set" / "manifest.json").read_text()) == manifest


def test_the_small_tables_say_what_was_read(masker, tmp_path):
    (tmp_path / "in.jsonl").write_text(
        '{"prompt": "good text", "id": "a", "text": "mine", "n": 1}\n'
        '{"prompt": "", "id": "b"}\n'
        '{"prompt": "more", "id": "a", "n": 2.5}\n'
        "no json\n"
        '{"prompt": "last one", "id": "c", "list": [1, 2]}\n'
    )
    masker.run_dataset(tmp_path / "in.jsonl", tmp_path / "set", id_column="id")
    found = tables(tmp_path / "set")
    assert found["prompts"].to_dicts() == [
        {
            "prompt_id": "a",
            "input_row": 0,
            "text": "good text",
            "num_tokens": 8,
            "input_text": "mine",
            "n": 1,
            "list": None,
        },
        {
            "prompt_id": "c",
            "input_row": 4,
            "text": "last one",
            "num_tokens": 8,
            "input_text": None,
            "n": None,
            "list": "[1, 2]",
        },
    ]
    tokens = found["tokens"].filter(prompt_id="a")
    assert tuple(tokens["token"]) == masker.read("good text").pieces
    assert tokens["token_position"].to_list() == list(range(8))
    rejected = found["rejected"].select("prompt_id", "input_row", "text").rows()
    assert rejected == [("b", 1, ""), ("a", 2, "more"), (None, 3, "no json")]
    reasons = found["rejected"]["reason"].to_list()
    assert "empty" in reasons[0]
    assert reasons[1] == "the id 'a' has come before"


@pytest.mark.usefixtures("small_shards")
def test_columns_of_changing_types_are_merged(masker, tmp_path):
    rows = [{"prompt": "some text", "n": value} for value in [1] * 6 + [0.5] * 5 + ["x"] * 5 + [None] * 5]
    rows = [row | ({"late": True} if i > 12 else {}) for i, row in enumerate(rows)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    masker.run_dataset(tmp_path / "in.jsonl", tmp_path / "set")
    prompts = tables(tmp_path / "set")["prompts"]
    assert prompts["n"].to_list()[-6:] == ["x", None, None, None, None, None]
    assert prompts["n"].to_list()[0] in ("1", "1.0")
    assert prompts["late"].to_list() == [None] * 13 + [True] * 8


def test_csv_holds_the_same(masker, tmp_path):
    prompts = {"a": "some text", "b": 'other, "text"\nof two lines', "c": "x"}
    for form in ("parquet", "csv"):
        masker.run_dataset(prompts, tmp_path / form, form=form)
    one, other = (read_results(tmp_path / form).collect() for form in ("parquet", "csv"))
    assert other.with_columns(pl.col("variant").cast(one["variant"].dtype), prompt_id=pl.col("prompt_id")).equals(one)
    assert sorted(path.name for path in (tmp_path / "csv").iterdir() if path.suffix) == [
        "manifest.json", "prompts.csv", "receipts.parquet", "rejected.csv", "tokens.csv"
    ]  # fmt: skip


def test_a_set_without_a_good_prompt_is_a_dataset_too(masker, tmp_path):
    masker.run_dataset(["", "x"], tmp_path / "set")
    assert read_results(tmp_path / "set").collect().is_empty()
    assert tables(tmp_path / "set")["rejected"].height == 2
    masker.run_dataset([], tmp_path / "none")
    assert read_results(tmp_path / "none").collect().is_empty()


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_what_was_stopped_goes_on_and_ends_the_same(masker, tmp_path, parts):
    prompts = ["", *drawn(18), "x"]
    masker.run_dataset(prompts, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        masker.run_dataset(prompts, tmp_path / "set", watch=stop_after(parts))
    with pytest.raises(ResultsError, match="run its command again"):
        read_results(tmp_path / "set")
    assert read_results(tmp_path / "set", partial=True).collect().height > 0
    states = []
    masker.run_dataset(prompts, tmp_path / "set", watch=lambda state: states.append(dict(state.counts)))
    assert len(states) <= 4 - parts
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("small_shards")
def test_a_complete_dataset_is_left_as_it_is_and_a_damaged_part_made_again(masker, tmp_path):
    prompts, folder = drawn(12), tmp_path / "set"
    masker.run_dataset(prompts, folder)
    before, manifest = contents(folder), (folder / "manifest.json").read_text()
    masker.run_dataset(prompts, folder)
    assert (folder / "manifest.json").read_text() == manifest
    part = folder / "impacts" / "part-000001.parquet"
    for damage in (lambda: part.write_bytes(part.read_bytes()[:-100]), part.unlink):
        damage()
        masker.run_dataset(prompts, folder)
        assert contents(folder) == before


@pytest.mark.usefixtures("small_shards")
def test_what_differs_is_refused(masker, tmp_path):
    prompts, folder = drawn(12), tmp_path / "set"
    masker.run_dataset(prompts, folder)
    before = contents(folder)
    with pytest.raises(ResultsError, match=r"settings layers \(\[0, 1, 2\] there, \[1\] here\)"):
        masker.run_dataset(prompts, folder, layers=[1])
    with pytest.raises(ResultsError, match="rows 5 to 9 are not what they were"):
        masker.run_dataset([*prompts[:6], [1, 2, 3], *prompts[7:]], folder)
    with pytest.raises(ResultsError, match="it ends after 5 rows"):
        masker.run_dataset(prompts[:5], folder)
    with pytest.raises(ResultsError, match="rows 10 to 12 are not"):
        masker.run_dataset([*prompts, [1, 2]], folder)
    other = build(BY_NAME["qwen3"])
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight[3, 4] += 1e-3
    with pytest.raises(ResultsError, match=r"model fingerprint \(sha256:"):
        AttentionMasker(other, byte_level()).run_dataset(prompts, folder)
    assert contents(folder) == before
    masker.run_dataset(prompts, folder, layers=[1], overwrite=True)
    assert read_results(folder).collect()["layer"].unique().to_list() == [1]


def test_a_folder_of_something_else_is_not_touched(masker, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ResultsError, match=r"holds no dataset but 'thesis\.txt'"):
            masker.run_dataset(["some text"], tmp_path, overwrite=overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    (tmp_path / "manifest.json").write_text('{"name": "an app"}')
    with pytest.raises(ResultsError, match="it is no manifest of a dataset"):
        masker.run_dataset(["some text"], tmp_path, overwrite=True)


def test_two_runs_in_one_folder_are_refused(masker, tmp_path):
    with locked(tmp_path / "set"), pytest.raises(ResultsError, match="is being written by another run"):
        masker.run_dataset(["some text"], tmp_path / "set")
    masker.run_dataset(["some text"], tmp_path / "set")


@pytest.mark.usefixtures("small_shards")
def test_a_full_disk_is_one_line_and_the_dataset_goes_on(masker, tmp_path, monkeypatch):
    prompts = drawn(18)
    masker.run_dataset(prompts, tmp_path / "whole")
    write, written = worker.WRITERS["parquet"], []

    def full(frame, path):
        written.append(path)
        if len(written) > 5:
            path.write_bytes(b"half a file")
            raise OSError(28, "No space left on device")
        write(frame, path)

    monkeypatch.setitem(worker.WRITERS, "parquet", full)
    with pytest.raises(ResultsError, match=r"cannot be written: No space left on device; .* free some space") as caught:
        masker.run_dataset(prompts, tmp_path / "set")
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(worker.WRITERS, "parquet", write)
    masker.run_dataset(prompts, tmp_path / "set")
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("small_shards")
def test_a_stop_ends_after_the_pass_and_keeps_what_is_finished(masker, tmp_path, monkeypatch):
    prompts, stops = drawn(20), []
    masker.run_dataset(prompts, tmp_path / "whole")

    def stopped(*args):
        stops.append(Stop())
        return stops[-1]

    monkeypatch.setattr(production, "stopping", lambda: _holding(stopped()))
    with pytest.raises(Interrupted, match="the same command goes on from there"):
        masker.run_dataset(prompts, tmp_path / "set", watch=lambda state: stops[0].set())
    assert 0 < len(Folder(tmp_path / "set").receipts()) < 4
    masker.run_dataset(prompts, tmp_path / "set")
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


class _holding:  # noqa: N801 - reads as the function that it stands for
    def __init__(self, event):
        self.event = event

    def __enter__(self):
        return self.event

    def __exit__(self, *args):
        return None


def test_out_of_memory_makes_passes_smaller_and_is_told(masker, tmp_path, monkeypatch):
    prompts = drawn(12, least=6, most=7)
    masker.run_dataset(prompts, tmp_path / "whole")
    measure = masker.measuring.measure

    def cramped(jobs, *args, **kwargs):
        if len(jobs) > 3:
            raise OutOfMemoryError("the device ran out of memory")
        return measure(jobs, *args, **kwargs)

    monkeypatch.setattr(masker.measuring, "measure", cramped)
    states = []
    masker.run_dataset(prompts, tmp_path / "set", watch=lambda state: states.append(state.halvings))
    assert states[-1] > 0
    one, other = (read_results(tmp_path / name).collect() for name in ("whole", "set"))
    np.testing.assert_allclose(one["l2_distance"], other["l2_distance"], rtol=1e-3, atol=1e-6)


def test_workers_cannot_load_a_model_that_only_this_process_holds(masker, tmp_path):
    with pytest.raises(ModelError, match="from_pretrained"):
        masker.run_dataset(["some text"], tmp_path / "set", workers=2)
    with pytest.raises(SelectionError, match="there cannot be 0 workers"):
        masker.run_dataset(["some text"], tmp_path / "set", workers=0)


def test_two_processes_make_the_same_dataset(tmp_path):
    masker = AttentionMasker.from_pretrained(device="cpu")
    prompts = [f"The capital of {name} is" for name in ("France", "Germany", "Italy", "Spain")] * 3
    masker.run_dataset(prompts, tmp_path / "one")
    masker.run_dataset(prompts, tmp_path / "two", workers=2)
    one, two = (read_results(tmp_path / name).collect() for name in ("one", "two"))
    np.testing.assert_allclose(one["l2_distance"], two["l2_distance"], rtol=1e-4)
    assert one.drop("l2_distance", "cosine_distance").equals(two.drop("l2_distance", "cosine_distance"))


def test_a_file_that_is_none_is_said_before_anything_is_made(masker, tmp_path):
    with pytest.raises(InputError):
        masker.run_dataset(tmp_path / "none.txt", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_shards_end_at_the_same_rows_whoever_reads(monkeypatch):
    entries = list(entries_of([[1] * length for length in (3, 4, 500, 2, 2, 2)]))
    monkeypatch.setattr(shards, "ROWS_PER_SHARD", 24 * 10)
    cut = list(cut_shards(iter(entries), rows_per_token=24))
    assert [[entry.row for entry in shard.entries] for shard in cut] == [[0, 1], [2], [3, 4, 5]]
    assert [shard.digest for shard in cut] == [shard.digest for shard in cut_shards(entries, rows_per_token=24)]
    other = [*entries[:-1], Entry(5, 5, [2, 3])]
    assert [shard.digest for shard in cut_shards(other, rows_per_token=24)][:2] == [shard.digest for shard in cut][:2]
    assert list(cut_shards(other, rows_per_token=24))[2].digest != cut[2].digest


@pytest.mark.usefixtures("small_shards")
def test_a_complete_dataset_is_not_extended(masker, tmp_path):
    prompts, folder = drawn(10), tmp_path / "set"
    masker.run_dataset(prompts, folder)
    before = contents(folder)
    with pytest.raises(ResultsError, match="it goes on after 10 rows"):
        masker.run_dataset([*prompts, *drawn(5, seed=1)], folder)
    assert contents(folder) == before


def test_overwriting_never_takes_the_input_or_what_is_not_of_the_dataset(masker, tmp_path):
    folder = tmp_path / "set"
    masker.run_dataset(["some text", "other text"], folder)
    for name in ("prompts.csv", "impacts/part-copy-9.parquet", "notes.txt"):
        (folder / name).write_text("mine")
    before = contents(folder)
    with pytest.raises(InputError, match="lies in the folder of the dataset"):
        masker.run_dataset(folder / "prompts.parquet", folder, prompt_column="text", overwrite=True)
    assert contents(folder) == before
    masker.run_dataset(["some text"], folder, overwrite=True)
    assert (folder / "prompts.csv").read_text() == "mine"
    assert (folder / "impacts" / "part-copy-9.parquet").read_text() == "mine"
    assert read_results(folder).collect()["prompt_id"].unique().to_list() == [0]


def test_what_a_killed_run_left_before_its_manifest_is_no_obstacle(masker, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / ".mask-impact-0123.tmp").write_text("{")
    masker.run_dataset(["some text"], tmp_path / "set")
    assert not list((tmp_path / "set").glob(".mask-impact*"))


@pytest.mark.usefixtures("small_shards")
def test_columns_with_odd_names_stay_apart(masker, tmp_path):
    ones = [{"prompt": "some text", "text": "T", "input_text": "I", "*": 1}] * 5
    others = [{"prompt": "some text", "input_text": "I", "text": "T", "*": None, "^.*t$": "x"}] * 5
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*ones, *others]))
    masker.run_dataset(tmp_path / "in.jsonl", tmp_path / "set")
    prompts = tables(tmp_path / "set")["prompts"]
    assert prompts["input_text"].unique().to_list() == ["T"]
    assert prompts["input_input_text"].unique().to_list() == ["I"]
    assert prompts["*"].to_list() == [1] * 5 + [None] * 5
    assert prompts["^.*t$"].to_list() == [None] * 5 + ["x"] * 5


@pytest.mark.usefixtures("small_shards")
def test_another_input_is_found_before_any_gap_is_filled(masker, tmp_path):
    prompts, folder = drawn(15), tmp_path / "set"
    masker.run_dataset(prompts, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        masker.run_dataset(prompts, folder, watch=stop_after(2))
    (folder / ".unfinished" / "receipt-000000.json").unlink()
    with pytest.raises(ResultsError, match="rows 5 to 9 are not what they were"):
        masker.run_dataset([[1, 2, 3]] * 15, folder)
    masker.run_dataset(prompts, folder)
    assert contents(folder) == contents(tmp_path / "whole")


@pytest.mark.usefixtures("small_shards")
def test_a_dataset_that_is_not_whole_says_so(masker, tmp_path):
    prompts, folder = drawn(12), tmp_path / "set"
    masker.run_dataset(prompts, folder)
    (folder / "impacts" / "part-000001.parquet").rename(folder / "impacts" / "part-000001 (copy).parquet")
    with pytest.raises(ResultsError, match=r"part-000001\.parquet' is missing"):
        read_results(folder)
    notes = []
    masker.run_dataset(prompts, folder, note=notes.append)
    assert notes[0] == "part 1 was damaged after it was written; it is measured again"
    assert read_results(folder).collect()["prompt_id"].n_unique() == 12


@pytest.mark.usefixtures("small_shards")
def test_a_part_without_a_receipt_does_not_stay(masker, tmp_path):
    prompts, folder = drawn(10), tmp_path / "set"
    with pytest.raises(RuntimeError, match="killed"):
        masker.run_dataset(prompts, folder, watch=stop_after(1))
    part = folder / "impacts" / "part-000000.parquet"
    part.with_name("part-000007.parquet").write_bytes(part.read_bytes())
    assert read_results(folder, partial=True).collect()["prompt_id"].n_unique() == 5
    masker.run_dataset(prompts, folder)
    assert sorted(path.name for path in part.parent.iterdir()) == ["part-000000.parquet", "part-000001.parquet"]


def test_ids_of_a_mapping_are_of_one_kind_and_different(masker, tmp_path):
    masker.run_dataset({1: "some text", "1": "other text", 1 << 70: "more text"}, tmp_path / "set")
    assert read_results(tmp_path / "set").collect()["prompt_id"].unique(maintain_order=True).to_list() == [
        "1",
        str(1 << 70),
    ]
    assert tables(tmp_path / "set")["rejected"]["reason"].to_list() == ["the id '1' has come before"]


def test_options_that_would_have_no_effect_are_refused(masker, tmp_path):
    masker.run_dataset(["some text", "other text"], tmp_path / "set", limit=1)
    assert read_results(tmp_path / "set").collect()["prompt_id"].unique().to_list() == [0]
    with pytest.raises(SelectionError, match="id_column is for files"):
        masker.run_dataset(["some text"], tmp_path / "none", id_column="id")
    with pytest.raises(SelectionError, match="there is no dataset of form 'jsonl'"):
        masker.run_dataset(["some text"], tmp_path / "none", form="jsonl")
    assert not (tmp_path / "none").exists()


def test_a_dataset_goes_on_with_the_product_that_it_was_begun_with(tmp_path, monkeypatch):
    """Whatever this process would choose by itself, and though its weights are packed for another."""
    from engine.kernels import products

    masker = AttentionMasker(build(BY_NAME["qwen3"], dtype=torch.float32), byte_level())
    monkeypatch.setattr(products, "_fastest_on_cpu", lambda: torch.nn.functional.linear)
    masker.run_dataset(["some text", "other text"], tmp_path / "set", limit=1)
    monkeypatch.setattr(products, "_fastest_on_cpu", lambda: products._onednn)
    masker.decoder.pack()
    masker.run_dataset(["some text", "other text"], tmp_path / "other")
    (tmp_path / "set" / "impacts" / "part-000000.parquet").unlink()
    masker.run_dataset(["some text", "other text"], tmp_path / "set", limit=1)
    assert read_results(tmp_path / "set").collect().height > 0
    assert tables(tmp_path / "set")["rejected"].is_empty()


def test_what_is_no_lack_of_memory_is_a_defect(masker, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise NotImplementedError("no such kernel")

    monkeypatch.setattr("engine.sweeps.passes.Pass.readouts", broken)
    with pytest.raises(NotImplementedError, match="no such kernel"):
        masker.run_dataset(["some text"], tmp_path / "set")


def test_halving_stops_at_what_fits(monkeypatch):
    from engine.runs.schedule import Schedule

    masker = AttentionMasker(build(BY_NAME["qwen3"]))
    measure = masker.measuring.measure

    def cramped(jobs, *args, **kwargs):
        if sum(job.num_rows for job in jobs) > 60:
            raise OutOfMemoryError("the device ran out of memory")
        return measure(jobs, *args, **kwargs)

    monkeypatch.setattr(masker.measuring, "measure", cramped)
    schedule = Schedule(masker.decoder, rows=100)
    monkeypatch.setattr("engine.experiment.Schedule", lambda decoder: schedule)
    assert len(list(masker.measure_many(drawn(200, least=4, most=8)))) == 200
    assert schedule.rows >= 30


def test_a_run_killed_between_its_tables_and_its_manifest_ends_the_same(masker, tmp_path):
    prompts, folder = drawn(6), tmp_path / "set"
    masker.run_dataset(prompts, folder)
    before, manifest = contents(folder), json.loads((folder / "manifest.json").read_text())
    del manifest["files"]
    (folder / "manifest.json").write_text(json.dumps(manifest | {"status": "unfinished", "counts": {}}))
    masker.run_dataset(prompts, folder)
    assert contents(folder) == before
