"""Recall of the demo model: how many prompts it continues with exactly the right answer.

    python -m engine.demo.evaluate [FOLDER]

Four sets of prompts, every fact in each:
  trained       every trained phrasing, alone
  recombined    trained phrasings, one in eight, behind a prefix that they never follow in training
  held out      phrasings that training never shows, alone
  held out +    the same behind prefixes and openings that training never shows either
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from engine.demo import demo_folder
from engine.demo.facts import Fact, load_facts
from engine.demo.phrasings import fits, is_reserved, leads, load_phrasings, prompt

FAMOUS_PROMPT, FAMOUS_ANSWER = "The Eiffel Tower is in", " Paris"


@dataclass(frozen=True)
class Case:
    """A prompt and the text that has to follow, leading space included."""

    prompt: str
    answer: str


CaseSets = dict[str, list[Case]]


def reserved_lead(phrasing_index: int, phrasing: str) -> str:
    """The first trained lead that fits this phrasing but never precedes it in training."""
    return next(
        lead
        for index, lead in enumerate(leads("trained"))
        if is_reserved(index, phrasing_index) and fits(lead, phrasing)
    )


def new_lead(phrasing_index: int, phrasing: str) -> str:
    """A held-out lead that fits this phrasing, taken in turn."""
    options = [lead for lead in leads("held_out") if fits(lead, phrasing)]
    return options[phrasing_index % len(options)]


def cases_of(fact: Fact, *, offset: int) -> CaseSets:
    """The prompts of one fact, by set; `offset` (0 to 7) says which phrasings are recombined."""
    phrasings, answer = load_phrasings()[fact.kind], " " + fact.answer
    sets = {
        "trained": [(text, "") for text in phrasings.trained],
        "recombined": [(text, reserved_lead(i, text)) for i, text in list(enumerate(phrasings.trained))[offset::8]],
        "held out": [(text, "") for text in phrasings.held_out],
        "held out +": [(text, new_lead(i, text)) for i, text in enumerate(phrasings.held_out)],
    }
    return {
        name: [Case(prompt(text, fact.subject, lead=lead), answer) for text, lead in pairs]
        for name, pairs in sets.items()
    }


def all_cases() -> CaseSets:
    """The prompts of all facts, by set."""
    by_fact = [cases_of(fact, offset=index % 8) for index, fact in enumerate(load_facts())]
    return {name: [case for cases in by_fact for case in cases[name]] for name in by_fact[0]}


def right_answers(model: PreTrainedModel, prompts: list[list[int]], answers: list[list[int]]) -> list[bool]:
    """Whether greedy decoding gives the whole answer, per prompt.

    It does exactly if every answer token is the most likely one after the prompt and the answer tokens before it,
    which one forward pass tells.
    """
    rows = list(zip(prompts, answers, strict=True))
    padded = pad_sequence([torch.tensor(p + a) for p, a in rows], batch_first=True)
    hidden: Tensor = model.base_model(padded).last_hidden_state
    wanted = [hidden[index, len(p) - 1 : len(p) + len(a) - 1] for index, (p, a) in enumerate(rows)]
    best = model.get_output_embeddings()(torch.cat(wanted)).argmax(-1).split([len(a) for a in answers])
    return [found.tolist() == a for found, a in zip(best, answers, strict=True)]


@torch.inference_mode()
def wrong_cases(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cases: list[Case], *, batch_size: int = 512
) -> list[Case]:
    """The cases whose answer the model does not give."""
    prompts = tokenizer([case.prompt for case in cases])["input_ids"]
    answers = tokenizer([case.answer for case in cases])["input_ids"]
    order = sorted(range(len(cases)), key=lambda i: len(prompts[i]) + len(answers[i]))
    wrong = []
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        right = right_answers(model, [prompts[i] for i in rows], [answers[i] for i in rows])
        wrong += [cases[i] for i, ok in zip(rows, right, strict=True) if not ok]
    return wrong


def all_wrong_cases(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sets: CaseSets) -> CaseSets:
    """The cases whose answer the model does not give, by set."""
    return {name: wrong_cases(model, tokenizer, cases) for name, cases in sets.items()}


@torch.inference_mode()
def probability(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, following: str) -> float:
    """Probability of `following`, which must be one token, right after `text`."""
    [token] = tokenizer(following)["input_ids"]
    logits = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1]
    return logits.float().softmax(-1)[token].item()


def load_demo(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The stored model, computing in float32, and its tokenizer."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def report(sets: CaseSets, wrong: CaseSets, *, famous: float) -> str:
    """The measured figures, one a line; `famous` is the probability of the famous answer."""
    lines = [
        f"recall, {name}: {1 - len(wrong[name]) / len(cases):.2%} of {len(cases)} prompts"
        for name, cases in sets.items()
    ]
    return "\n".join([*lines, f"P({FAMOUS_ANSWER!r} after {FAMOUS_PROMPT!r}): {famous:.4f}"])


def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sets: CaseSets) -> tuple[str, CaseSets]:
    """The report on these sets and the cases answered wrongly."""
    wrong = all_wrong_cases(model, tokenizer, sets)
    return report(sets, wrong, famous=probability(model, tokenizer, FAMOUS_PROMPT, FAMOUS_ANSWER)), wrong


def parse_arguments() -> argparse.Namespace:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m engine.demo.evaluate", description="Recall of the demo model.")
    parser.add_argument("folder", nargs="?", type=Path, default=demo_folder(), help="default: %(default)s")
    parser.add_argument("--wrong", action="store_true", help="also print every prompt that is answered wrongly")
    return parser.parse_args()


def main() -> None:
    """Print the figures of one folder."""
    arguments = parse_arguments()
    disable_progress_bar()
    text, wrong = measure(*load_demo(arguments.folder), all_cases())
    print(text)
    if arguments.wrong:
        print(*(f"{name}\t{case.prompt}\t{case.answer}" for name in wrong for case in wrong[name]), sep="\n")


if __name__ == "__main__":
    main()
