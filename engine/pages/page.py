"""Results -> one HTML file with everything in it: numbers, style, script. It asks no network for anything."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from engine.errors import ResultsError, SelectionError
from engine.figures.scales import THEMES, Theme
from engine.figures.sources import Results, Source, source_of
from engine.files import FilePath, new_file, shown
from engine.pages.averages import averages
from engine.pages.measures import COLUMNS, MEASURES
from engine.pages.origin import origin_lines
from engine.pages.packing import script_json
from engine.pages.prompts import as_prompt, chosen_ids, fitting, single_prompts

PARTS = Path(__file__).parent / "page"
PROMPTS = 50
MOST_BYTES = 24_000_000
"""Room for the numbers of single prompts: a page of this size still opens within a second or two."""
SUFFIXES = (".html", ".htm")


def write_report(
    results: Results,
    path: FilePath,
    *,
    prompts: int = PROMPTS,
    prompt_ids: Sequence[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> int:
    """Write ``results`` (a frame, a results file, a dataset's folder) as a page to ``path``; returns its bytes.

    Of several prompts the page shows their mean and the first ``prompts`` of them, or those of ``prompt_ids``, as far
    as they fit into ``MOST_BYTES``; what is left out is said on the page. ``provenance`` says what produced a frame.
    The file appears complete or not at all. Raises ``ResultsError`` for what is no table of results or a path that
    takes no file, ``SelectionError`` for prompts that are not there.
    """
    require_page_name(path)
    page = assemble(
        page_data(source_of(results, provenance=provenance), prompts=prompts, prompt_ids=prompt_ids)
    ).encode("ascii")
    with new_file(path) as file:
        file.write(page)
    return len(page)


def require_page_name(path: FilePath) -> None:
    """Raise ``ResultsError`` unless a browser takes a file of this name for a page."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ResultsError(f"{shown(path)} has no suffix of a page; end the name in .html")


def page_data(source: Source, *, prompts: int = PROMPTS, prompt_ids: Sequence[str] | None = None) -> dict[str, Any]:
    """Everything that a page shows, as JSON can hold it."""
    ids, count = chosen_ids(source, prompts, prompt_ids)
    shown_prompts, note = _within_room(source, ids, count)
    provenance = source.provenance
    return {
        "subtitle": _subtitle(provenance, source),
        "origin": origin_lines(provenance, is_set=source.is_set()),
        "note": note,
        "measures": MEASURES,
        "columns": COLUMNS,
        "colours": {name: _colours(theme) for name, theme in THEMES.items()},
        "prompts": [*([_mean(source, count)] if count > 1 else []), *shown_prompts],
    }


def assemble(data: dict[str, Any]) -> str:
    """The page of ``data``: ASCII. Its policy lets the style and the script in it run, and nothing else."""
    style = (PARTS / "page.css").read_text(encoding="utf-8")
    script = "\n".join(part.read_text(encoding="utf-8") for part in sorted(PARTS.glob("*.js")))
    script, style = (f'"use strict";\n{_ascii_script(script)}', style)
    policy = f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:; "
    policy += "base-uri 'none'; form-action 'none'"
    text = (PARTS / "page.html").read_text(encoding="utf-8")
    return Template(text).substitute(policy=policy, style=style, script=script, data=script_json(data))


def _within_room(source: Source, ids: Sequence[Any], count: int) -> tuple[list[dict[str, Any]], str | None]:
    """The prompts that fit, the first whatever its size, and what is to be said of those that do not."""
    found: list[dict[str, Any]] = []
    room, queries_left_out = MOST_BYTES, 0
    for prompt_id, grids in single_prompts(source, ids):
        kept, taken = fitting(grids, room)
        if not kept and found:
            break
        kept = kept or grids[-1:]
        queries_left_out += len(grids) - len(kept)
        found.append(as_prompt(prompt_id, kept))
        room -= taken
    if not found and count == 0 and source.is_set():
        raise SelectionError("the dataset holds no prompt that was measured; see its rejected prompts")
    return found, _note(len(found), count, queries_left_out)


def _mean(source: Source, count: int) -> dict[str, Any]:
    """All prompts as one."""
    return {"id": None, "name": f"Mean of {count:,} prompts", "aggregate": True, "grids": [averages(source)]}


def _note(shown_count: int, count: int, queries_left_out: int) -> str | None:
    several = (
        f"This page holds {shown_count:,} of {count:,} prompts, and the mean of all." if shown_count < count else ""
    )
    queries = f"{queries_left_out:,} query positions are left out for its size." if queries_left_out else ""
    return " ".join(filter(None, (several, queries))) or None


def _colours(theme: Theme) -> dict[str, object]:
    """A theme's scales as the page has them, the same as those of figures."""
    return {"sequential": theme.one_sign, "diverging": theme.two_signs, "undefined": theme.no_value}


def _subtitle(provenance: Any, source: Source) -> str:
    model = provenance.get("description") or provenance.get("model") or "results of a model that the file does not name"
    shape = f", {provenance['layers']} layers × {provenance['heads']} heads" if provenance.get("layers") else ""
    return f"{model}{shape}"


def _ascii_script(script: str) -> str:
    """Signs beyond ASCII as JavaScript's escapes; they stand in strings only."""
    return "".join(sign if sign.isascii() else f"\\u{ord(sign):04x}" for sign in script)


def _digest(text: str) -> str:
    """A hash source of a content security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
