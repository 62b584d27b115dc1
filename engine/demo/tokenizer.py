"""The demo model's tokenizer: byte-level BPE, so that any text in any script can be written and read back."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from engine.demo.corpus import END, documents, text_of
from engine.demo.facts import Fact

VOCABULARY_SIZE = 2560
SAMPLE_DOCUMENTS = 12_000
SETTINGS = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END,
            "clean_up_tokenization_spaces": False, "model_max_length": 4096}


def tokenizer_texts(facts: list[Fact], *, seed: int) -> list[str]:
    """Sample of training texts, and each subject and answer several times so that their words become tokens."""
    sample = [text_of(pieces) for pieces, _ in zip(documents(facts, seed=seed), range(SAMPLE_DOCUMENTS), strict=False)]
    return sample + [f"{fact.subject} {fact.subject} {fact.answer}" for fact in facts] * 10


def train_tokenizer(facts: list[Fact], *, seed: int) -> Tokenizer:
    """A GPT-2 style tokenizer with all 256 byte symbols and no unknown token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY_SIZE, special_tokens=[END], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(tokenizer_texts(facts, seed=seed), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the two files from which `AutoTokenizer` builds a fast tokenizer."""
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS, indent=2) + "\n", encoding="utf-8")
