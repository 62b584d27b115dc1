"""Every parser of a file or an option, fed by a fuzzer that watches which lines of it run (atheris, libFuzzer).

    pip install -e '.[fuzz]'
    python tests/fuzz_parsers.py --runs 100000            # every target in a process of its own
    python tests/fuzz_parsers.py config --runs 1000000    # one of them

What a parser answers has to be sound, or it refuses with an error of the engine's own. Anything else ends the run, and
the input that did it is kept in the folder ``--crashes``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parent.parent
TARGETS = ("header", "index", "config", "prompts", "spans", "words", "manifest", "receipt")
SECONDS = 20
"""An input that takes longer is a hang."""
MODELS = ("qwen3", "llama-llama3-rope", "gemma-3", "qwen3-yarn", "gpt-oss", "mistral-window", "granite", "qwen3-moe")
"""Tiny models whose config is changed, one field in a line behind the number of the model."""
FIELDS = (
    b'rope_parameters={"rope_type":"yarn","factor":2.0,"rope_theta":1e4}\nsliding_window=4\nhead_dim=null',
    b'layer_types=["full_attention","sliding_attention"]\nnum_key_value_heads=1\nrms_norm_eps=1e-6',
    b"num_hidden_layers=2\nlogits_scaling=0\nquery_pre_attn_scalar=4\nnum_experts_per_tok=9\nvocab_size=-1",
)
SEEDS = {
    "header": [b"\x45" + bytes(7) + b'{"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}, "__metadata__":{}}'],
    "index": [b'{"metadata":{},"weight_map":{"a.weight":"model-1.safetensors","b":"model-2.safetensors"}}'],
    "config": [b"%d\n%s" % (number, fields) for number in range(len(MODELS)) for fields in FIELDS]
    + [b'{"model_type":1}'],
    "prompts": [b"0a\nb\n", b'1{"prompt":"a","id":3}\n{"prompt":[1,2]}\n', b'2prompt,id\n"a\nb",1\n', b"3PAR1"],
    "spans": [b'0[{"start":0,"end":3,"name":"x"}]', b'1{"positions":"1+2"}\n', b"2start,end\n0,3\n", b"3PAR1"],
    "words": [b"window:3\nothers\nlayer\n0-3,7\n4:1,5:0\nregex:a+\n+\nMLP", b"all\nquery\noutput\nlast\n1\nchars:1-3"],
    "manifest": [b'{"format":"mask-impact dataset","format_version":1,"status":"complete","input":"a","model":{}}'],
    "receipt": [b'{"shard":0,"files":{"impacts/part-000000.parquet":[3,"ab"]}}\nseal'],
}


def main():
    """Fuzz what the words ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="which parsers (default: all)")
    parser.add_argument("--runs", type=int, default=100_000, help="inputs for each")
    parser.add_argument("--crashes", type=Path, default=Path.cwd(), help="where inputs are kept that break something")
    given = parser.parse_args()
    if len(given.targets) == 1:
        return fuzz(given.targets[0], given.runs, given.crashes.resolve())
    again = [sys.executable, __file__, "--runs", str(given.runs), "--crashes", str(given.crashes)]
    failed = [each for each in given.targets or TARGETS if subprocess.run([*again, each]).returncode]
    print(f"broken: {', '.join(failed)}" if failed else "nothing was found")
    return len(failed)


def fuzz(target, runs, crashes):
    """Give one parser that many inputs; does not come back."""
    import atheris

    sys.path[:0] = [str(ROOT)]
    place = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    corpus = Path(place.name, "corpus")
    corpus.mkdir()
    for number, seed in enumerate(SEEDS[target]):
        (corpus / str(number)).write_bytes(seed)
    os.chdir(place.name)
    with atheris.instrument_imports(include=["engine"]):
        check = globals()[f"{target}_target"]()
    limits = [f"-runs={runs}", f"-timeout={SECONDS}", "-max_len=2000", "-rss_limit_mb=6000", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={crashes}/{target}-", str(corpus)], check)
    atheris.Fuzz()


def header_target():
    """A safetensors file: every tensor lies within it."""
    from engine.errors import ModelError
    from engine.model.tensors import read_header

    def check(data):
        path = Path("model.safetensors")
        path.write_bytes(data)
        with suppress(ModelError):
            assert all(
                0 < each.start <= each.start + each.num_bytes <= len(data) for each in read_header(path).values()
            )

    return check


def index_target():
    """The index of shards: it names nothing outside the folder."""
    from engine.errors import ModelError
    from engine.model.tensors import INDEX, weight_files

    def check(data):
        Path(INDEX).write_bytes(data)
        with suppress(ModelError):
            assert all(each.parent == Path() for each in weight_files(Path()))

    return check


def config_target():
    """config.json beside sound weights: any bytes, or the words of a sound one changed."""
    import torch
    import transformers

    from benchmarks.zoo import CASES, build
    from engine.errors import ModelError
    from engine.model.checkpoints import build_decoder, open_checkpoint

    transformers.logging.set_verbosity_error()
    folders = [Path(name) for name in MODELS]
    for folder in folders:
        build(next(case for case in CASES if case.name == folder.name)).save_pretrained(folder)
    sound = [json.loads((folder / "config.json").read_text()) for folder in folders]

    def check(data):
        first, _, rest = data.partition(b"\n")
        number = int(first) % len(MODELS) if first.isdigit() and len(first) < 9 else 0
        config = sound[number] | _changes(rest)
        (folders[number] / "config.json").write_bytes(json.dumps(config).encode() if first.isdigit() else data)
        with suppress(ModelError):
            build_decoder(open_checkpoint(folders[number]), torch.float32, torch.device("cpu"))

    return check


def _changes(lines):
    """The fields that lines ``name=value`` give."""
    found = {}
    for line in lines.decode("utf-8", "replace").split("\n"):
        name, _, value = line.partition("=")
        with suppress(ValueError, RecursionError):
            found[name] = json.loads(value)
    return found


def prompts_target():
    """A file of prompts; the first character says which form it has."""
    from engine.errors import ImpactError
    from engine.inputs.prompt_files import open_prompts
    from engine.inputs.unique import with_unique_ids

    def check(data):
        path = _as_file(data, (".txt", ".jsonl", ".csv", ".parquet"))
        with suppress(ImpactError):
            assert all(
                each.defect or isinstance(each.prompt, str | list) for each in with_unique_ids(open_prompts(path))
            )

    return check


def spans_target():
    """A file of spans; the first character says which form it has."""
    from engine.errors import InputError
    from engine.text.spans import read_spans

    def check(data):
        with suppress(InputError):
            for span in read_spans(_as_file(data, (".json", ".jsonl", ".csv", ".parquet"))):
                assert all(type(each) is int and each >= 0 for each in (*span.positions, *(span.characters or ())))

    return check


def words_target():
    """The options of a question, a line each, and lists of indices."""
    from engine.errors import ImpactError
    from engine.questions.indices import parse_indices
    from engine.questions.question import ask
    from engine.text.rules import read_rule

    names = ("cut", "hidden_from", "read", "query", "heads", "mask", "sites", "columns", "answer", "intervention")

    def check(data):
        lines = data.decode("utf-8", "surrogateescape").split("\n")
        with suppress(ImpactError):
            ask({name: line for name, line in zip(names, lines, strict=False) if line})
        for line in lines:
            with suppress(ImpactError):
                assert all(each >= 0 for each in parse_indices(line, what="--layers"))
            if not line.startswith("spans:"):
                with suppress(ImpactError):
                    read_rule(line)

    return check


def manifest_target():
    """The manifest of a dataset."""
    from engine.datasets.manifest import MANIFEST, read_manifest
    from engine.datasets.reading import dataset_provenance, read_results
    from engine.errors import ResultsError

    def check(data):
        path = Path(MANIFEST)
        path.write_bytes(data)
        for read in (lambda: read_manifest(path), lambda: dataset_provenance("."), lambda: read_results(".")):
            with suppress(ResultsError):
                read()

    return check


def receipt_target():
    """A shard's receipt, its seal put right: it names files of its own folder."""
    from engine.datasets.receipts import receipt_in, sealed

    def check(data):
        path = Path("receipt-000000.json")
        path.write_bytes(data)
        assert receipt_in(path) is None or b"\n" in data
        path.write_text(sealed(data.decode("utf-8", "replace").partition("\n")[0]))
        found = receipt_in(path)
        assert found is None or not any(".." in name or name.startswith("/") for name in found.files)

    return check


def _as_file(data, forms):
    form = forms[data[0] % len(forms)] if data else forms[0]
    path = Path(f"rows{form}")
    path.write_bytes(data[1:])
    return path


if __name__ == "__main__":
    sys.exit(main())
