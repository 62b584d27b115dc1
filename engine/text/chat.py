"""What a user says, as the model's chat template puts it, and whose part of the conversation each token is in.

A template is a program that comes with the tokenizer, and says nothing about where it puts what. So it is given
messages of known words (probes): what it writes around them is its frame, and where the frame of a shorter
conversation ends, the next turn begins.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from engine.errors import PromptError

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
PROBES = ("\ue000system\ue001", "\ue000user\ue001")
"""Words that no one says: the signs around them are private to each program."""
Span = tuple[int, int]
Message = dict[str, str]


@dataclass(frozen=True)
class Conversation:
    """A prompt as the template wrote it down; ``parts`` are (first character, past the last, role) of ``written``."""

    prompt: str
    written: str
    parts: tuple[tuple[int, int, str], ...] = ()
    said: Span | None = None
    """Where the prompt stands in ``written``; None if that cannot be told."""
    left_out: int = 0
    """How many characters at the start of the prompt the template left out."""

    def own(self, offsets: Sequence[Span]) -> tuple[Span | None, ...]:
        """The characters of ``prompt`` that each token stands for, by its characters of ``written``."""
        first, past = self.said or (0, 0)
        shift = self.left_out - first
        clipped = [(max(start, first), min(end, past)) for start, end in offsets]
        return tuple((start + shift, end + shift) if start < end else None for start, end in clipped)

    def roles(self, offsets: Sequence[Span]) -> tuple[str | None, ...]:
        """The role whose part holds most of each token; None where no part does."""
        return tuple(self._role(start, max(end, start + 1)) for start, end in offsets)

    def _role(self, start: int, end: int) -> str | None:
        for first, past, role in self.parts:
            if first <= start and end <= past:
                return role
        shared = [(min(end, past) - max(start, first), role) for first, past, role in self.parts]
        most, largest = max(shared, key=lambda each: each[0], default=(0, None))
        return largest if most > 0 else None


@dataclass(frozen=True)
class Frame:
    """What a template writes around the words of the messages: ``around`` has one text more than there are messages."""

    around: tuple[str, ...]
    closing: tuple[int | None, ...]
    """How much of the text behind each message is still its turn; None if that cannot be told."""
    opening: int
    """How much of the first text is a system turn of the template's own."""

    def places(self, written: str, contents: Sequence[str]) -> list[Span] | None:
        """Where the words of each message stand in this frame, as they are or stripped; None if they do not."""
        found: list[Span] = []
        at = len(self.around[0])
        for words, behind in zip(contents, self.around[1:], strict=True):
            forms = (words, words.strip(), words.lstrip(), words.rstrip())
            fits = (len(form) for form in forms if written.startswith(form + behind, at))
            length = next(fits, None)
            if length is None:
                return None
            found.append((at, at + length))
            at += length + len(behind)
        return found if at == len(written) and written.startswith(self.around[0]) else None

    def parts(self, places: Sequence[Span], roles: Sequence[str], length: int) -> tuple[tuple[int, int, str], ...]:
        """Whose part each stretch of the ``length`` characters is; a stretch of nobody is left out."""
        ends = [past + (more or 0) for (_, past), more in zip(places, self.closing, strict=True)]
        known = [end if more is not None else None for end, more in zip(ends, self.closing, strict=True)]
        starts = [self.opening, *known[:-1]]
        turns = [
            (first if start is None else start, end, role)
            for (first, _), start, end, role in zip(places, starts, ends, roles, strict=True)
        ]
        reply = [] if known[-1] is None else [(known[-1], length, ASSISTANT)]
        return ((0, self.opening, SYSTEM), *turns, *reply)


class ChatTemplate:
    """The chat template of a tokenizer, for conversations in which ``system`` is said before the prompt."""

    def __init__(self, tokenizer: Any, system: str | None) -> None:
        self._tokenizer, self._system = tokenizer, system
        self._roles = (USER,) if system is None else (SYSTEM, USER)

    def conversation(self, prompt: str, *, located: bool) -> Conversation:
        """The prompt as the template writes it, with the beginning of the reply.

        Raises ``PromptError`` without a template, where it refuses the conversation, and if the prompt must be
        ``located`` and cannot.
        """
        if getattr(self._tokenizer, "chat_template", None) is None:
            raise PromptError("this model's tokenizer has no chat template; give a chat model, or leave --chat out")
        contents = [*([] if self._system is None else [self._system]), prompt]
        written = self._write(contents, reply=True)
        for frame in self._frames(contents):
            if frame and (places := frame.places(written, contents)):
                parts = frame.parts(places, self._roles, len(written))
                left_out = prompt.index(written[slice(*places[-1])])
                return Conversation(prompt, written, parts, places[-1], left_out)
        if located:
            raise PromptError(
                "the chat template changes the prompt, so its characters cannot be found; choose tokens or positions"
            )
        return Conversation(prompt, written)

    def _frames(self, contents: Sequence[str]) -> Iterator[Frame | None]:
        """The frame of every conversation, and then that of this one: a template may look at the words."""
        yield self._probed
        yield self._frame(contents)

    @cached_property
    def _probed(self) -> Frame | None:
        try:
            return self._frame(PROBES[-len(self._roles) :])
        except PromptError:
            return None

    def _frame(self, contents: Sequence[str]) -> Frame | None:
        """The frame of one conversation; None if its words are not found once and in order."""
        written, stripped = self._write(contents, reply=True), [words.strip() for words in contents]
        places = _search(written, stripped)
        if places is None:
            return None
        bounds = [(0, 0), *places, (len(written), len(written))]
        around = tuple(written[past:first] for (_, past), (first, _) in pairwise(bounds))
        heads = [self._head(contents[:count]) for count in range(1, len(contents) + 1)]
        closing = tuple(_closing(written, *each) for each in zip(heads, places, bounds[2:], strict=True))
        return Frame(around, closing, self._own_system(around[0]) if self._system is None else 0)

    def _own_system(self, before: str) -> int:
        """How much of what stands before the user's words is a system turn that the template writes unasked.

        It is what stands before the user's turn, if it begins as a system turn that was asked for does.
        """
        frame = ChatTemplate(self._tokenizer, PROBES[0])._probed
        if frame is None or frame.closing[0] is None:
            return 0
        own = before.removesuffix(frame.around[1][frame.closing[0] :])
        begins = len(own) > len(frame.around[0]) and own.startswith(frame.around[0])
        return len(own) if begins and own != before else 0

    def _head(self, contents: Sequence[str]) -> str | None:
        """The beginning of a conversation, without a reply; None if the template refuses it."""
        try:
            return self._write(contents, reply=False)
        except PromptError:
            return None

    def _write(self, contents: Sequence[str], *, reply: bool) -> str:
        messages = [{"role": role, "content": words} for role, words in zip(self._roles, contents, strict=False)]
        try:
            written = self._tokenizer.apply_chat_template(messages, add_generation_prompt=reply, tokenize=False)
            written.encode("utf-8")
        except Exception as error:  # a template is someone's program: whatever it raises, it refuses
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            todo = "leave --chat out" if self._system is None else "leave --system out"
            raise PromptError(f"the model's chat template refuses this conversation: {reason}; {todo}") from error
        return str(written)


def _search(written: str, contents: Sequence[str]) -> list[Span] | None:
    """Where the words of each message stand, if they stand once behind those before."""
    places, at = [], 0
    for words in contents:
        if written.count(words, at) != 1:
            return None
        first = written.index(words, at)
        at = first + len(words)
        places.append((first, at))
    return places


def _closing(written: str, head: str | None, place: Span, following: Span) -> int | None:
    """How much behind ``place`` is still its turn: up to the end of ``head``, if the conversation begins with it."""
    if head is None or not written.startswith(head) or not place[1] <= len(head) <= following[0]:
        return None
    return len(head) - place[1]
