"""Checkpoints read straight from their files: what transformers loads, for every family, rope and dtype."""

import json
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import BASE, CASES, DYNAMIC, LINEAR, LLAMA3, LONGROPE, VOCAB, YARN, build, token_ids

from engine import AttentionMasker
from engine.errors import ModelError
from engine.kernels.batches import make_batch
from engine.model.angles import configured_ropes
from engine.model.checkpoints import build_decoder, load_model, open_checkpoint
from engine.model.families import FAMILIES
from engine.sweeps.sweep import sweep
from engine.text.knockouts import single_tokens

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
ROPES = [{"rope_type": "default", "rope_theta": 1e4}, LINEAR, LLAMA3, YARN, DYNAMIC, LONGROPE]
BY_NAME = {case.name: case for case in CASES}
LM_HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def save(name, folder, **config):
    """A case's model with other config values, saved, and its architecture."""
    case = BY_NAME[name]
    model = build(type(case)(case.name, case.architecture, case.config | config, case.length))
    model.save_pretrained(folder)
    return model


def edit_weights(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def both(folder, dtype=torch.float32):
    """The decoder that is read from the files, and that of the model which transformers loads from them."""
    checkpoint = open_checkpoint(folder)
    model = getattr(transformers, checkpoint.family.architecture).from_pretrained(folder, dtype=dtype).eval()
    return build_decoder(checkpoint, dtype, CPU), AttentionMasker(model).decoder


def logits(decoder, ids):
    """Next-token logits after the prompt."""
    with torch.inference_mode():
        batch = make_batch([ids], [single_tokens(len(ids), [0])], CPU)
        *_, last = sweep(decoder, batch, layers=[len(decoder.layers) - 1])
        return decoder.logits(last.residual)


def assert_same(folder, case, dtype=torch.float32):
    read, held = both(folder, dtype)
    ids = token_ids(case)
    assert torch.equal(logits(read, ids), logits(held, ids))
    ours, theirs = (AttentionMasker(decoder).measure(ids).distances for decoder in (read, held))
    np.testing.assert_array_equal(ours, theirs)
    return read


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_direct_loading_equals_transformers(case, dtype, tmp_path):
    build(case).save_pretrained(tmp_path)
    assert_same(tmp_path, case, dtype)


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"])
@pytest.mark.parametrize("family", [f for f in FAMILIES.values() if f.rotary is not None], ids=lambda f: f.model_type)
def test_rotary_tables_equal_those_of_the_family(family, rope):
    if family.model_type == "phi3" and rope != ROPES[0]:
        pytest.skip("Phi-3's config takes the default rope, and longrope for heads of another size")
    by_layer = family.model_type in ("gemma3_text", "olmo3")
    whole = dict(rope, partial_rotary_factor=1.0)
    ropes = {"full_attention": whole, "sliding_attention": ROPES[0]} if by_layer else whole
    config = getattr(transformers, family.config)(**BASE, rope_parameters=ropes)
    modelling = import_module(f"transformers.models.{family.modelling}.modeling_{family.modelling}")
    rotary = getattr(modelling, f"{family.architecture.removesuffix('ForCausalLM')}RotaryEmbedding")
    for dtype in (torch.float32, torch.float64):
        for name, ours in configured_ropes(family, config, dtype, CPU).items():
            kind = {"layer_type": name} if by_layer else {}
            for length in (3, 150, 3):
                theirs = rotary(config)(torch.empty(0, dtype=dtype), torch.arange(length)[None], **kind)
                for one, other in zip(ours(length), theirs, strict=True):
                    whole = torch.cat((other[0], other[0]), -1) if family.half_tables else other[0]
                    assert torch.equal(one, whole)


def test_an_unknown_rope_is_refused(tmp_path):
    save("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for rope in ({"rope_type": "spiral", "rope_theta": 1e4}, {"rope_type": "linear", "rope_theta": 1e4}):
        (tmp_path / "config.json").write_text(json.dumps(config | {"rope_parameters": rope}))
        with pytest.raises(ModelError, match="rope"):
            AttentionMasker.from_pretrained(tmp_path, device="cpu")


def test_an_unknown_activation_is_refused(tmp_path):
    save("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "wobble"}))
    with pytest.raises(ModelError, match="wobble"):
        AttentionMasker.from_pretrained(tmp_path, device="cpu")
    with pytest.raises(ModelError, match="wobble"):
        load_model(tmp_path, device="cpu")


def test_shards_equal_a_single_file(tmp_path):
    build(BY_NAME["qwen3"]).save_pretrained(tmp_path / "single")
    build(BY_NAME["qwen3"]).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    single, shards = (
        build_decoder(open_checkpoint(tmp_path / name), torch.float32, CPU) for name in ("single", "shards")
    )
    ids = token_ids(BY_NAME["qwen3"])
    assert torch.equal(logits(single, ids), logits(shards, ids))


def test_a_base_model_loads_as_in_transformers(tmp_path):
    build(BY_NAME["qwen3"], seed=3).model.save_pretrained(tmp_path)
    assert "embed_tokens.weight" in load_file(tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"incomplete.*lm_head"):
        open_checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert_same(tmp_path, BY_NAME["qwen3"])


def move_to_head(weights):
    weights[LM_HEAD] = weights.pop(EMBEDDING)


TIES = {
    "as saved": lambda weights: None,
    "equal": lambda weights: weights.update({LM_HEAD: weights[EMBEDDING].clone()}),
    "different": lambda weights: weights.update({LM_HEAD: weights[EMBEDDING] + 1}),
    "head only": move_to_head,
}


@pytest.mark.parametrize("change", TIES)
def test_tied_weights_are_tied_as_in_transformers(change, tmp_path):
    save("qwen3", tmp_path, tie_word_embeddings=True)
    edit_weights(tmp_path, TIES[change])
    read = assert_same(tmp_path, BY_NAME["qwen3"])
    assert (read.unembedding.projection.weights[0] is read.embedding.table) == (change != "different")


def test_untied_weights_stay_apart(tmp_path):
    save("qwen3", tmp_path, tie_word_embeddings=False)
    read = assert_same(tmp_path, BY_NAME["qwen3"])
    assert not torch.equal(read.unembedding.projection.weights[0], read.embedding.table)
    edit_weights(tmp_path, lambda weights: weights.pop(LM_HEAD))
    with pytest.raises(ModelError, match=r"incomplete: 1 weights .* lm_head.weight"):
        open_checkpoint(tmp_path)


BIASES = [
    ("qwen2", "self_attn.q_proj"),
    ("qwen3-bias", "self_attn.o_proj"),
    ("llama-bias", "self_attn.v_proj"),
    ("llama-bias", "mlp.down_proj"),
]


@pytest.mark.parametrize(("name", "projection"), BIASES)
def test_a_lost_bias_is_refused(name, projection, tmp_path):
    save(name, tmp_path)
    bias = f"model.layers.1.{projection}.bias"
    edit_weights(tmp_path, lambda weights: weights.pop(bias))
    with pytest.raises(ModelError, match=f"incomplete: 1 weights .* {bias}"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(("name", "projection"), [("mistral", "self_attn.q_proj"), ("qwen2", "self_attn.o_proj")])
def test_a_bias_too_many_is_refused(name, projection, tmp_path):
    save(name, tmp_path)
    bias = f"model.layers.1.{projection}.bias"
    edit_weights(tmp_path, lambda weights: weights.update({bias: torch.zeros(64)}))
    with pytest.raises(ModelError, match=f"does not account for, first {bias}"):
        open_checkpoint(tmp_path)


def test_stored_frequencies_of_old_checkpoints_are_passed_over(tmp_path):
    save("llama", tmp_path)
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    edit_weights(tmp_path, lambda weights: weights.update(frequencies))
    assert_same(tmp_path, BY_NAME["llama"])


@pytest.fixture
def shards(tmp_path):
    build(BY_NAME["qwen3"]).save_pretrained(tmp_path, max_shard_size="20KB")
    return tmp_path


def first_shard(folder):
    return min(folder.glob("model-*.safetensors"))


def cut_shard(folder):
    first_shard(folder).write_bytes(first_shard(folder).read_bytes()[:-100])


def grow_shard(folder):
    first_shard(folder).write_bytes(first_shard(folder).read_bytes() + b"more")


def rewrite_header(change):
    """Damage that rewrites the header of the first shard by ``change(text)``."""

    def damage(folder):
        data = first_shard(folder).read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = change(data[8 : 8 + size])
        first_shard(folder).write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])

    return damage


def rewrite_index(content):
    return lambda folder: (folder / "model.safetensors.index.json").write_text(json.dumps(content))


DAMAGES = {
    "cut": (cut_shard, "damaged or cut off .*its header promises"),
    "grown": (grow_shard, "damaged or cut off"),
    "missing": (lambda folder: first_shard(folder).unlink(), "weights file .*is missing"),
    "empty": (lambda folder: first_shard(folder).write_bytes(b""), "damaged or cut off"),
    "negative place": (
        rewrite_header(lambda text: text.replace(b'"data_offsets":[0', b'"data_offsets":[-1')),
        "damaged",
    ),
    "other shape": (
        rewrite_header(lambda text: text.replace(b'"shape":[', b'"shape":[2,', 1)),
        "shape that does not fit",
    ),
    "overlap": (
        rewrite_header(lambda text: text.replace(b'"data_offsets":[0,', b'"data_offsets":[4,')),
        "fit the bytes",
    ),
    "no entries": (rewrite_header(lambda text: b'{"weight": 5}'), "damaged"),
    "a list": (rewrite_header(lambda text: b"[1, 2]"), "damaged"),
    "no JSON": (rewrite_header(lambda text: b"{" * len(text)), "damaged"),
    "index elsewhere": (rewrite_index({"weight_map": {"a": "../model.safetensors"}}), "index.json.*damaged"),
    "index of a file without a name": (rewrite_index({"weight_map": {"a": ""}}), "index.json.*damaged"),
    "index of the folder above": (rewrite_index({"weight_map": {"a": ".."}}), "index.json.*damaged"),
    "index without map": (rewrite_index({}), "index.json.*damaged"),
    "index is a list": (rewrite_index([]), "index.json.*damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_in_one_line(damage, shards):
    work, message = DAMAGES[damage]
    work(shards)
    with pytest.raises(ModelError, match=message) as caught:
        AttentionMasker.from_pretrained(shards, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_file_cut_off_while_it_is_read(shards):
    checkpoint = open_checkpoint(shards)
    cut_shard(shards)
    with pytest.raises(ModelError, match="it has changed"):
        build_decoder(checkpoint, torch.float32, CPU)


def test_a_file_cut_off_after_loading_changes_nothing(shards):
    masker = AttentionMasker.from_pretrained(shards, device="cpu")
    before = masker.run([1, 2, 3])
    for file in shards.glob("*.safetensors"):
        with file.open("r+b") as stream:
            stream.truncate(0)
    assert masker.run([1, 2, 3]).equals(before)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub cache that holds one model, and a hub that cannot be reached."""
    cache = tmp_path / "models--owner--name"
    folder = cache / "snapshots" / "0123"
    folder.mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0123")
    save("qwen3", folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("engine.model.sources.HfApi.model_info", lambda *args, **kwargs: 1 / 0)
    return folder


def test_the_cache_serves_where_the_hub_cannot_be_reached(hub):
    masker = AttentionMasker.from_pretrained("owner/name", device="cpu")
    assert masker.decoder.name == "owner/name"
    assert masker.run([1, 2]).equals(AttentionMasker.from_pretrained(hub, device="cpu").run([1, 2]))
    with pytest.raises(ModelError, match=r"owner/other.*check the id and the network"):
        AttentionMasker.from_pretrained("owner/other", device="cpu")


def test_only_what_is_needed_is_downloaded(hub, monkeypatch):
    """First the small files, then exactly the weights that the index names, whatever their names are."""
    from huggingface_hub.utils import filter_repo_objects

    needed = ["config.json", "model.safetensors.index.json", "tokenizer.json", "merges.txt", "weights-a.safetensors"]
    others = ["original/model.safetensors", "consolidated.safetensors", "pytorch_model.bin", "model.safetensors"]
    (hub / "model.safetensors").rename(hub / "weights-a.safetensors")
    names = load_file(hub / "weights-a.safetensors")
    index = {"weight_map": dict.fromkeys(names, "weights-a.safetensors")}
    (hub / "model.safetensors.index.json").write_text(json.dumps(index))
    asked = []
    monkeypatch.setattr("engine.model.sources.HfApi.model_info", lambda *args, **kwargs: None)
    monkeypatch.setattr(
        "engine.model.sources.snapshot_download", lambda name, **kwargs: asked.append(kwargs) or str(hub)
    )
    AttentionMasker.from_pretrained("owner/name", device="cpu")
    patterns = [pattern for kwargs in asked for pattern in kwargs["allow_patterns"]]
    assert list(filter_repo_objects(needed + others, allow_patterns=patterns)) == needed
    assert [kwargs["local_files_only"] for kwargs in asked] == [False, False]


@pytest.mark.parametrize("name", ["xielu", "prelu"])
def test_an_activation_with_weights_is_refused(tmp_path, name):
    save("llama", tmp_path)
    rewrite_config(tmp_path, hidden_act=name)
    with pytest.raises(ModelError, match=f"'{name}' has weights of its own"):
        AttentionMasker.from_pretrained(tmp_path, device="cpu")


def test_a_folder_with_an_adapter_is_refused(tmp_path):
    save("qwen3", tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds an adapter"):
        AttentionMasker.from_pretrained(tmp_path, device="cpu")


def test_a_rope_over_a_part_of_the_heads_is_refused(tmp_path):
    save("llama", tmp_path)
    rewrite_config(tmp_path, rope_parameters=LINEAR | {"partial_rotary_factor": 0.5})
    with pytest.raises(ModelError, match="only a part of each head"):
        AttentionMasker.from_pretrained(tmp_path, device="cpu")


def rewrite_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def test_the_main_job_imports_no_modelling_code(tmp_path):
    words = ["--prompt", "The Eiffel Tower is in", "--device", "cpu", "--output", str(tmp_path / "table.csv")]
    probe = (
        f"import sys; from engine.commands import main; status = main({words!r}); "
        "heavy = ('modeling_qwen3', 'modeling_utils', 'transformers.activations'); "
        "print([m for m in sys.modules if m.endswith(heavy)], file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stderr.strip() == "[]"


def test_the_numbers_of_a_held_models_modules_count():
    """A model whose modules say other than its config is measured as its own forward computes."""
    case = BY_NAME["llama"]
    edited, fresh = build(case), build(type(case)(case.name, case.architecture, {"rms_norm_eps": 0.1}))
    for name, module in edited.named_modules():
        if name.endswith("norm"):
            module.variance_epsilon = 0.1
    ids = token_ids(case)
    assert AttentionMasker(edited).run(ids).equals(AttentionMasker(fresh).run(ids))
    edited.model.layers[1].self_attn.scaling = 0.5
    assert AttentionMasker(edited).decoder.layers[1].attention.scoring.scale == 0.5
    edited.model.layers[1].self_attn.head_dim = 8
    with pytest.raises(ModelError, match="heads of several sizes"):
        AttentionMasker(edited)


def test_a_held_model_with_another_activation_is_refused():
    model = build(BY_NAME["llama"])
    model.model.layers[2].mlp.act_fn = torch.nn.GELU()
    with pytest.raises(ModelError, match="act_fn of layer 2 is not the 'silu'"):
        AttentionMasker(model)


def test_a_held_model_without_the_familys_activation_is_refused():
    model = build(BY_NAME["llama"])
    del model.model.layers[0].mlp.act_fn
    with pytest.raises(ModelError, match="act_fn of layer 0"):
        AttentionMasker(model)


def test_a_model_without_layers_is_refused(tmp_path):
    model = build(BY_NAME["llama"])
    model.config.num_hidden_layers = 0
    with pytest.raises(ModelError, match="has no layers"):
        AttentionMasker(model)
    save("llama", tmp_path, num_hidden_layers=0)
    with pytest.raises(ModelError, match="has no layers"):
        AttentionMasker.from_pretrained(tmp_path, device="cpu")


def test_query_and_key_norms_with_two_epsilons_are_refused():
    model = build(BY_NAME["qwen3"])
    model.model.layers[1].self_attn.k_norm.variance_epsilon = 0.1
    with pytest.raises(ModelError, match="different epsilons"):
        AttentionMasker(model)


def test_a_masker_takes_a_decoder(tmp_path):
    save("qwen3", tmp_path)
    decoder = build_decoder(open_checkpoint(tmp_path), torch.float32, CPU)
    assert AttentionMasker(decoder).decoder is decoder


def test_the_transformers_model_itself_is_there_for_those_who_need_it(tmp_path):
    saved = save("qwen3", tmp_path)
    model, tokenizer = load_model(tmp_path, device="cpu", dtype="float64")
    assert tokenizer is None
    assert model.dtype == torch.float64
    assert torch.equal(model.lm_head.weight, saved.lm_head.weight.double())
    shutil.rmtree(tmp_path)
    assert model(torch.tensor([[1, 2]])).logits.shape == (1, 2, VOCAB)
