"""What a user says, in templates of several styles: where it stands, whose part each token is in, and refusals."""

import random

import pytest
from tokenizers_for_tests import byte_level, sentencepiece

from engine.errors import PromptError
from engine.text.prompts import Reading, read_prompt, read_prompts

LIMITS = {"vocab_size": 5000, "max_positions": 2000}
MARKERS = ["<|im_start|>", "<|im_end|>", "<|bos|>", "<|head|>", "<|/head|>", "<|eot|>"]
REPLY = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
TURNS = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
CHATML = TURNS + REPLY
OWN_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe kind to the user.<|im_end|>\n' }}{% endif %}"
    + CHATML
)
LLAMA_3 = (
    "{{ '<|bos|>' }}{% for m in messages %}{{ '<|head|>' + m.role + '<|/head|>\n\n' + m.content | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"
)
LLAMA_3_DATED = (
    "{% if messages[0].role == 'system' %}{% set said = messages[0].content | trim %}{% set rest = messages[1:] %}"
    "{% else %}{% set said = '' %}{% set rest = messages %}{% endif %}"
    "{{ '<|bos|><|head|>system<|/head|>\n\nKnowledge: December\n\n' + said + '<|eot|>' }}"
    "{% for m in rest %}{{ '<|head|>' + m.role + '<|/head|>\n\n' + m.content | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role\n not supported') }}{% endif %}" + CHATML
)
INSIDE = (
    "{% if messages[0].role == 'system' %}{% set said = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set said = '' %}{% set rest = messages %}{% endif %}{{ '<|bos|>' }}"
    "{% for m in rest %}{{ '<|im_start|>' + m.role + '\n' + said + m.content + '<|im_end|>\n' }}{% endfor %}" + REPLY
)
BY_LENGTH = "{{ messages | length }} turns: " + CHATML
LAST_ENDS = "{% for m in messages %}{{ m.role + ': ' + m.content + ('<|eot|>' if loop.last else '\n') }}{% endfor %}"
BY_WORDS = "{% if 'loud' in messages[-1].content %}{{ '<|bos|>' }}{% endif %}" + CHATML
NO_SIGNS = "{% if '\ue000' in messages[-1].content %}{{ raise_exception('no such signs') }}{% endif %}" + CHATML
SHOUTING = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
NO_ROLE_ALONE = (
    "{% if messages[-1].role != 'user' %}{{ raise_exception('No user query found in messages.') }}{% endif %}" + CHATML
)


def chat_tokenizer(template, kind=byte_level):
    tokenizer = kind(400) if kind is byte_level else kind()
    tokenizer.add_special_tokens({"additional_special_tokens": MARKERS})
    tokenizer.chat_template = template
    return tokenizer


def chat(text, template, *, kind=byte_level, system=None, offsets=True):
    reading = Reading(chat=True, system=system, offsets=offsets)
    return read_prompt(text, chat_tokenizer(template, kind), reading=reading, **LIMITS)


def said_by(prompt, role):
    """The pieces of a role's part."""
    return "".join(piece for piece, owner in zip(prompt.pieces, prompt.roles, strict=True) if owner == role)


def said(prompt):
    """The pieces that stand for the prompt's own text."""
    return "".join(piece for piece, span in zip(prompt.pieces, prompt.offsets, strict=True) if span)


def test_chatml_tells_each_turn_with_its_markers():
    prompt = chat("The Eiffel Tower is in", CHATML, system="The capital")
    assert said_by(prompt, "system") == "<|im_start|>system\nThe capital<|im_end|>\n"
    assert said_by(prompt, "user") == "<|im_start|>user\nThe Eiffel Tower is in<|im_end|>\n"
    assert said_by(prompt, "assistant") == "<|im_start|>assistant\n"
    assert said(prompt) == prompt.text == "The Eiffel Tower is in"
    marked = [piece for piece, special in zip(prompt.pieces, prompt.special, strict=True) if special]
    assert marked == ["<|im_start|>", "<|im_end|>"] * 2 + ["<|im_start|>"]


def test_what_comes_before_the_first_turn_belongs_to_it():
    prompt = chat("  Paris \n", LLAMA_3)
    assert said_by(prompt, "user") == "<|bos|><|head|>user<|/head|>\n\nParis<|eot|>"
    assert said_by(prompt, "assistant") == "<|head|>assistant<|/head|>\n\n"


def test_a_trimmed_prompt_keeps_its_own_characters():
    prompt = chat("  Paris \n", LLAMA_3)
    spans = [span for span in prompt.offsets if span]
    assert prompt.text == "  Paris \n"
    assert "".join(prompt.text[slice(*span)] for span in spans) == "Paris"
    assert spans[0][0] == 2


def test_a_system_turn_of_the_templates_own_is_the_systems():
    prompt = chat("is", OWN_SYSTEM)
    assert said_by(prompt, "system") == "<|im_start|>system\nBe kind to the user.<|im_end|>\n"
    assert said_by(prompt, "user") == "<|im_start|>user\nis<|im_end|>\n"
    assert said_by(chat("is", OWN_SYSTEM, system="The"), "system") == "<|im_start|>system\nThe<|im_end|>\n"


def test_a_system_turn_that_is_always_there_is_the_systems():
    for system in (None, "Be kind"):
        prompt = chat("The", LLAMA_3_DATED, system=system)
        before = f"<|bos|><|head|>system<|/head|>\n\nKnowledge: December\n\n{system or ''}<|eot|>"
        assert said_by(prompt, "system") == before
        assert said_by(prompt, "user") == "<|head|>user<|/head|>\n\nThe<|eot|>"


def test_a_system_text_inside_the_users_turn_is_told_by_its_words():
    prompt = chat("The capital", INSIDE, system="Be kind")
    assert said_by(prompt, "system").endswith("Be kind")
    assert said_by(prompt, "user") == "The capital<|im_end|>\n"
    assert said_by(prompt, "assistant") == "<|im_start|>assistant\n"
    between = [piece for piece, role in zip(prompt.pieces, prompt.roles, strict=True) if role is None]
    assert "".join(between) == "\n\n"
    assert said(prompt) == "The capital"


@pytest.mark.parametrize("template", [BY_LENGTH, NO_ROLE_ALONE])
def test_a_template_that_is_not_stable_is_told_by_its_words(template):
    prompt = chat("The capital", template, system="Be kind")
    assert said_by(prompt, "system").endswith("Be kind")
    assert said_by(prompt, "user") == "The capital<|im_end|>\n"
    assert None in prompt.roles


def test_an_end_after_the_last_turn_only_is_the_last_turns():
    prompt = chat("The capital", LAST_ENDS, system="Be kind")
    assert said_by(prompt, "system") == "system: Be kind"
    assert said_by(prompt, "user").lstrip() == "The capital<|eot|>"
    assert "assistant" not in prompt.roles


def test_a_template_may_look_at_the_words():
    assert said_by(chat("be loud", BY_WORDS), "user") == "<|bos|><|im_start|>user\nbe loud<|im_end|>\n"
    assert said_by(chat("be kind", BY_WORDS), "user") == "<|im_start|>user\nbe kind<|im_end|>\n"
    assert said(chat("be loud", BY_WORDS)) == "be loud"


def test_a_template_that_refuses_probes_is_told_by_the_prompts_words():
    prompt = chat("The capital", NO_SIGNS)
    assert said_by(prompt, "user") == "<|im_start|>user\nThe capital<|im_end|>\n"
    with pytest.raises(PromptError, match="cannot be found"):
        chat("user", NO_SIGNS)


def test_words_of_the_template_are_not_taken_for_the_prompt():
    for words in ("user", "<|im_start|>user", "\n", "assistant", "e", "Be kind to the user."):
        prompt = chat(words, OWN_SYSTEM)
        assert said(prompt) == words
        assert said_by(prompt, "user") == f"<|im_start|>user\n{words}<|im_end|>\n"


@pytest.mark.parametrize("kind", [byte_level, sentencepiece])
@pytest.mark.parametrize("template", [CHATML, OWN_SYSTEM, LLAMA_3, LLAMA_3_DATED, INSIDE, BY_LENGTH, LAST_ENDS])
def test_the_tokens_of_the_prompt_cover_its_characters(template, kind):
    draw = random.Random(0)
    for _ in range(15):
        words = "x" + "".join(draw.choice("aA é\u0301\n🗼ש user<|") for _ in range(draw.randrange(12))) + "x"
        system = draw.choice([None, "x", words])
        prompt = chat(words, template, kind=kind, system=system)
        covered = {place for span in prompt.offsets if span for place in range(*span)}
        assert covered == set(range(len(words)))
        assert len(prompt.offsets) == len(prompt.special) == len(prompt.roles) == len(prompt)
        own = [role for role, span in zip(prompt.roles, prompt.offsets, strict=True) if span]
        assert set(own) == {"user"}


def test_a_chat_without_offsets_still_knows_roles():
    prompt = chat("The", CHATML, offsets=False)
    assert (prompt.text, prompt.offsets) == (None, ())
    assert set(prompt.roles) == {"user", "assistant"}
    assert any(prompt.special)


def test_a_template_that_changes_the_prompt_is_refused_where_its_place_is_needed():
    assert set(chat("The capital", SHOUTING, offsets=False).roles) == {None}
    with pytest.raises(PromptError, match="changes the prompt"):
        chat("The capital", SHOUTING)


def test_a_refusal_is_one_line_that_says_why():
    with pytest.raises(PromptError, match="System role not supported; leave --system out"):
        chat("The", NO_SYSTEM, system="Be kind")
    assert said(chat("The", NO_SYSTEM)) == "The"


@pytest.mark.parametrize("template", ["{% if", "{{ messages[0].content + 3 }}", "{{ nothing.at.all }}"])
def test_a_broken_template_is_the_templates_fault(template):
    with pytest.raises(PromptError, match=r"chat template refuses .*; leave --chat out") as caught:
        chat("The", template)
    assert "\n" not in str(caught.value)


def test_a_chat_needs_a_template_and_text():
    with pytest.raises(PromptError, match="no chat template"):
        chat("The capital", None)
    with pytest.raises(PromptError, match="token ids"):
        chat([1, 2, 3], CHATML)
    with pytest.raises(PromptError, match="empty"):
        chat("", CHATML)
    with pytest.raises(PromptError, match="no tokenizer"):
        read_prompt("The", None, reading=Reading(chat=True), **LIMITS)


def test_text_that_is_not_unicode_is_refused_wherever_it_is_said():
    with pytest.raises(PromptError, match="not valid text"):
        chat("a\ud800b", CHATML)
    with pytest.raises(PromptError, match="refuses"):
        chat("The", CHATML, system="a\ud800b")


def test_in_a_set_the_bad_stand_beside_the_good():
    reading = Reading(chat=True, offsets=True)
    found = read_prompts(["The", [1, 2], "", "is"], chat_tokenizer(CHATML), reading=reading, **LIMITS)
    assert [isinstance(each, PromptError) for each in found] == [False, True, True, False]
    assert [said(each) for each in (found[0], found[3])] == ["The", "is"]


def test_a_chat_is_what_the_tokenizer_itself_makes_of_it():
    tokenizer = chat_tokenizer(LLAMA_3)
    messages = [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "The capital of héllo"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    reading = Reading(chat=True, system="Be kind")
    assert list(read_prompt("The capital of héllo", tokenizer, reading=reading, **LIMITS).token_ids) == ids


def test_a_tokenizer_that_splits_the_markers_is_read_all_the_same():
    from engine.experiment import AttentionMasker

    tokenizer = AttentionMasker.from_pretrained().tokenizer
    tokenizer.chat_template = CHATML
    prompt = read_prompt("The Eiffel Tower", tokenizer, reading=Reading(chat=True, offsets=True), **LIMITS)
    assert said_by(prompt, "user") == "<|im_start|>user\nThe Eiffel Tower<|im_end|>\n"
    assert said(prompt) == "The Eiffel Tower"
    assert not any(prompt.special)


class Slow:
    """A tokenizer that knows no offsets."""

    is_fast = False
    chat_template = CHATML

    def __init__(self):
        self._fast = chat_tokenizer(CHATML)

    def __getattr__(self, name):
        return getattr(self._fast, name)

    def __call__(self, texts, *, return_offsets_mapping=False, **settings):
        assert not return_offsets_mapping
        return self._fast(texts, **settings)


def test_without_offsets_a_slow_tokenizer_chats_but_cannot_tell_characters():
    prompt = read_prompt("The", Slow(), reading=Reading(chat=True), **LIMITS)
    assert prompt.roles == (None,) * len(prompt)
    with pytest.raises(PromptError, match="fast"):
        read_prompt("The", Slow(), reading=Reading(offsets=True), **LIMITS)
