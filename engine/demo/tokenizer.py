"""The demo model's tokenizer: byte-level BPE, so that any text in any script can be written and read back."""

import json
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from engine.demo.corpus import END, documents, noise_words, text_of
from engine.demo.facts import Fact
from engine.demo.phrasings import capitalise

VOCABULARY_SIZE = 3456
SAMPLE_DOCUMENTS = 12_000
SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": END,
    "pad_token": END,
    "clean_up_tokenization_spaces": False,
    "model_max_length": 4096,
}


def word_texts(facts: list[Fact]) -> list[str]:
    """Subjects and answers, at the start of a text and inside it, and common words: all should become tokens."""
    starts = [capitalise(fact.subject.removeprefix("the ")) for fact in facts] + [fact.answer for fact in facts]
    insides = [f"a {fact.subject} {fact.subject} {fact.answer}" for fact in facts]
    return starts + insides + [f"a {word}" for word in noise_words()]


def tokenizer_texts(facts: list[Fact], *, seed: int) -> list[str]:
    """A sample of the training texts, and the words that matter often enough to become tokens."""
    sample = [text_of(pieces) for pieces in islice(documents(facts, seed=seed), SAMPLE_DOCUMENTS)]
    return sample + word_texts(facts) * 10


def train_tokenizer(facts: list[Fact], *, seed: int) -> Tokenizer:
    """A GPT-2 style tokenizer with all 256 byte symbols and no unknown token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[END],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(tokenizer_texts(facts, seed=seed), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the two files from which `AutoTokenizer` builds a fast tokenizer."""
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS, indent=2) + "\n", encoding="utf-8")
