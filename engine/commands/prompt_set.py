"""``mask-impact --prompts FILE --output DIR``: a set of prompts goes in, a dataset comes out."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from engine.commands import pictures, questions
from engine.commands.arguments import Parser
from engine.commands.choices import describe_model, loaded_masker
from engine.commands.panics import panics_unsaid
from engine.errors import ResultsError, SelectionError
from engine.files import show
from engine.questions.indices import parse_indices

if TYPE_CHECKING:
    from engine.datasets.blueprint import Blueprint
    from engine.datasets.manifest import Manifest
    from engine.making import Staff
    from engine.questions.question import Question
    from engine.runs.measuring import Measuring

DEFAULT_FOLDER = "mask_impacts"
TABLE_SUFFIXES = (".csv", ".parquet", ".jsonl")
OPTIONS = ("prompt_column", "id_column", "limit", "resume", "overwrite", "format", "workers", "ray")
"""What has a meaning for sets only."""


def add_options(parser: Parser) -> None:
    """The options of a set; they are None where they were not given."""
    group = parser.add_argument_group("prompt sets (--prompts)")
    group.add_argument(
        "--prompt-column", metavar="NAME", help="column that holds the prompts (default: prompt, or text)"
    )
    group.add_argument("--id-column", metavar="NAME", help="column that names each prompt (default: the row number)")
    group.add_argument("--limit", metavar="N", type=int, help="read no more than the first N rows")
    both = group.add_mutually_exclusive_group()
    both.add_argument("--resume", action="store_true", default=None, help="go on where a run stopped (always so)")
    both.add_argument("--overwrite", action="store_true", default=None, help="replace the dataset that is in DIR")
    group.add_argument("--format", choices=("parquet", "csv"), help="of the tables in DIR (default: parquet)")
    group.add_argument("--workers", metavar="N", type=int, help="local processes that do the work, one a GPU or more")
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        nargs="?",
        const="local",
        help="do the work on Ray (default: a cluster of this machine)",
    )


def refuse_options(arguments: argparse.Namespace) -> None:
    """Raise ``SelectionError`` for options of a set where there is a single prompt."""
    given = [f"--{name.replace('_', '-')}" for name in OPTIONS if getattr(arguments, name) is not None]
    if given:
        raise SelectionError(f"{given[0]} is for sets of prompts; give a file with --prompts, or leave it out")


def execute(arguments: argparse.Namespace, question: "Question") -> int:
    """Measure the set and show what became of it."""
    folder = arguments.output or DEFAULT_FOLDER
    if folder == "-" or (Path(folder).suffix.lower() in TABLE_SUFFIXES and not Path(folder).is_dir()):
        raise ResultsError(f"--prompts writes a folder, and {folder!r} has the name of a file; give --output a folder")
    from engine.datasets.progress import Progress
    from engine.inputs.prompt_files import open_prompts
    from engine.making import Staff, make_dataset

    staff = Staff(workers=arguments.workers, ray=arguments.ray)
    columns = {"prompt_column": arguments.prompt_column, "id_column": arguments.id_column, "limit": arguments.limit}
    with panics_unsaid():
        prompts = open_prompts(arguments.prompts, **columns)
    blueprint, measuring = _blueprint(arguments, question, staff)
    progress = Progress(quiet=arguments.quiet)
    manifest = make_dataset(
        blueprint,
        prompts,
        folder,
        measuring=measuring,
        staff=staff,
        overwrite=bool(arguments.overwrite),
        watch=progress,
        note=progress.say,
    )
    progress.clear()
    drawn = pictures.draw(arguments, Path(folder))
    if not arguments.quiet:
        show("\n".join((*_report(arguments, manifest, Path(folder)), *drawn)))
    return 0


def _blueprint(
    arguments: argparse.Namespace, question: "Question", staff: "Staff"
) -> "tuple[Blueprint, Measuring | None]":
    """What the dataset is made with. The model goes out of memory again where others do the work."""
    layers = None if arguments.layers is None else parse_indices(arguments.layers, what="--layers")
    tokens = None if arguments.tokens is None else parse_indices(arguments.tokens, what="--tokens")
    from engine.datasets.manifest import IDS, recorded_kernel
    from engine.model.devices import release_memory

    questions.require_rule(question, tokens)
    masker = loaded_masker(arguments)
    blueprint = masker.draw_dataset(
        layers=layers,
        tokens=tokens,
        form=arguments.format or "parquet",
        kernel=None if arguments.overwrite else recorded_kernel(arguments.output or DEFAULT_FOLDER),
        prompt_column=arguments.prompt_column,
        id_column=arguments.id_column,
        limit=arguments.limit,
        ids=IDS[arguments.id_column is not None],
        question=questions.choices_of(arguments),
    )
    if not staff.is_elsewhere:
        return blueprint, masker.measuring
    del masker
    release_memory()
    return blueprint, None


def _report(arguments: argparse.Namespace, manifest: "Manifest", folder: Path) -> list[str]:
    """What made the dataset, what is in it, how long this run took, and how to go on."""
    from engine.datasets.folder import IMPACTS, Folder
    from engine.datasets.progress import duration

    counts, model, session = manifest["counts"], manifest["model"], manifest["times"]["sessions"][-1]
    form = manifest["settings"]["format"]
    size = sum(path.stat().st_size for path in Folder(folder, form).pieces(IMPACTS))
    rejected = f", {counts['rejected']:,} rejected (see rejected.{form})" if counts["rejected"] else ""
    shape = f"{model['layers']} layers x {model['heads']} heads, {manifest['settings']['dtype']}"
    route = f"{model.get('route', 'fused')} route{'' if manifest['checked'] else ', unchecked'}"
    seconds, rate = session["seconds"], session["rows"] / max(session["seconds"], 1e-9)
    return [
        f"Model   {describe_model(arguments)}; {shape} on {manifest['settings']['device']}, {route}",
        f"Set     {counts['prompts']:,} prompts, {counts['tokens']:,} tokens{rejected}",
        f"{counts['rows']:,} rows -> {folder} ({size / 1e6:,.1f} MB, {counts['parts']:,} parts)",
        f"the last run: {session['shards']:,} parts in {duration(seconds)}, {rate:,.0f} rows/s; "
        f"mask-impact analyze {folder} shows what stands out",
    ]
