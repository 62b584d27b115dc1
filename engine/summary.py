"""The summary of one measured prompt, for a terminal: what was read, what came next, what mattered, where."""

from engine.questions.question import Question
from engine.runs.impact import Impact
from engine.runs.measuring import Found
from engine.summaries.answers import effect_lines
from engine.summaries.ink import PLAIN, Ink
from engine.summaries.layers import impact_lines
from engine.summaries.lines import opening


def summarize(found: Found, question: Question | None = None, *, top: int = 3, ink: Ink = PLAIN) -> str:
    """Tokens with positions, the baseline's next tokens, a grid of layers and tokens, and the most impactful of all.

    ``question`` is the one that was asked (None: the default). Of several queries the last one is shown.
    ``ink`` is what the reader's terminal can show; without it the text is for a file.
    """
    asked = question or Question()
    if isinstance(found, Impact):
        return "\n".join([*opening(found), "", *impact_lines(found, asked, top=top, ink=ink)])
    return "\n".join([*opening(found), *effect_lines(found, asked, ink=ink)])
