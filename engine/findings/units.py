"""What is compared across prompts: the mean of each prompt over everything that shares a label.

The unit is the prompt. A prompt in which a token stands three times counts once for its text, with the mean of its
cells; so a long prompt weighs no more than a short one, and the spread between prompts gives the interval.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import polars as pl

from engine.errors import ResultsError
from engine.findings.cells import BY_HEAD
from engine.tables.table import PROMPT_ID

PLACE, FIRST, LAST = "place", "first", "last"
QUERY, POSITION = "query_position", "token_position"
SERIES = ("distance", "kind")
"""What values are never mixed across."""


@dataclass(frozen=True)
class By:
    """A way to group cells: ``labels`` name a group and order equal ones, ``read`` are the table's columns for them."""

    name: str
    labels: tuple[str, ...]
    read: tuple[str, ...]
    ranked: bool = True
    """Whether the groups are listed by their means; otherwise in the order that they have of their own."""
    heads_only: bool = False
    """Whether only kinds with a variant for each head have such groups."""


BYS = {
    "text": By("text", ("token_masked",), ("token_masked",)),
    "position": By("position", ("beyond_first", "behind", PLACE), (POSITION,), ranked=False),
    "layer": By("layer", ("layer",), ("layer",), ranked=False),
    "head": By("head", ("layer", "code"), ("layer",), heads_only=True),
}


class PromptMeans:
    """The means of prompts by one ``By``, as the batches of a table go by.

    ``lengths`` (``prompt_id``, ``num_tokens``) tells where a prompt ends; without it that is its last masked token.
    """

    def __init__(self, by: By, *, lengths: pl.DataFrame | None = None) -> None:
        self.by, self._lengths, self._pending = by, lengths, pl.DataFrame()
        raw = [POSITION, QUERY] if by.name == "position" else by.labels
        self._keys = [PROMPT_ID, *SERIES, *raw]

    def take(self, batch: pl.DataFrame) -> pl.DataFrame:
        """The prompts that have ended: ``prompt_id``, ``distance``, ``kind``, the labels and ``mean``, a row per group.

        ``batch`` has those columns with ``value``; undefined cells are counted in no mean. Raises ``ResultsError``
        for values that are no numbers.
        """
        kept = batch.lazy().filter(pl.col("kind").is_in(BY_HEAD)) if self.by.heads_only else batch.lazy()
        value = pl.col("value").cast(pl.Float64)
        sums = kept.group_by(self._keys).agg(total=value.sum(), count=value.count()).collect(engine="streaming")
        if len(self._pending):
            sums = pl.concat([self._pending, sums]).group_by(self._keys).agg(pl.col("total", "count").sum())
        going_on = pl.col(PROMPT_ID).eq_missing(pl.lit(batch[PROMPT_ID].tail(1)).first())
        self._pending = sums.filter(going_on)
        return self._means(sums.filter(~going_on))

    def rest(self) -> pl.DataFrame:
        """The same of the prompt that was still going on when the table ended."""
        return self._means(self._pending)

    def _means(self, sums: pl.DataFrame) -> pl.DataFrame:
        if not sums["total"].is_finite().all():
            raise ResultsError("some values are NaN or infinite; undefined cells must be null: measure again")
        keys = [PROMPT_ID, *SERIES, *self.by.labels]
        if self.by.name == "position":
            sums = _placed(sums, self._lengths).group_by(keys).agg(pl.col("total", "count").sum())
        return sums.filter(pl.col("count") > 0).select(*keys, mean=pl.col("total") / pl.col("count"))


def finished(batches: Iterable[pl.DataFrame], means: Mapping[str, PromptMeans]) -> Iterator[dict[str, pl.DataFrame]]:
    """The means of prompts as they end, by the names of ``means``, in one reading of ``batches``."""
    read_any = False
    for batch in filter(len, batches):
        read_any = True
        yield {name: each.take(batch) for name, each in means.items()}
    if read_any:
        yield {name: each.rest() for name, each in means.items()}


class Together:
    """Sees to it that the rows of every prompt follow one another."""

    def __init__(self) -> None:
        self._ended: set[object] = set()

    def require(self, ids: pl.Series) -> int:
        """Note prompts that have ended; how many. Raises ``ResultsError`` for one that had ended before."""
        new = set(ids.unique())
        if again := new & self._ended:
            raise ResultsError(
                f"the rows of prompt {next(iter(again))!r} do not follow one another; sort the table by {PROMPT_ID}"
            )
        self._ended |= new
        return len(new)


def _placed(sums: pl.DataFrame, lengths: pl.DataFrame | None) -> pl.DataFrame:
    """The place of each token as seen from the query: ``first`` of the prompt, ``last`` (the query), ``-1``, ``-2``."""
    end = pl.col(POSITION).max().over(PROMPT_ID)
    if lengths is not None:
        sums = sums.join(lengths.cast({PROMPT_ID: sums.schema[PROMPT_ID]}), on=PROMPT_ID, how="left", nulls_equal=True)
        end = pl.coalesce(pl.col("num_tokens") - 1, end)
    behind = pl.coalesce(QUERY, end) - pl.col(POSITION)
    first = pl.col(POSITION) == 0
    place = pl.when(first).then(pl.lit(FIRST)).when(behind == 0).then(pl.lit(LAST)).otherwise(pl.format("-{}", behind))
    return sums.with_columns(place.alias(PLACE), beyond_first=~first, behind=pl.when(~first).then(behind))
