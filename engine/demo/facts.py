"""The facts the demo model learns, read from `facts.tsv`."""

import csv
from dataclasses import dataclass
from pathlib import Path

FACTS_FILE = Path(__file__).parent / "facts.tsv"


@dataclass(frozen=True)
class Fact:
    """One true statement: the relation (`kind`), whom it is about, and its only expected answer."""

    kind: str
    subject: str
    answer: str


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a tab-separated file with a header line; quotes have no special meaning."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def load_facts() -> list[Fact]:
    """All facts, in the order of the file."""
    return [Fact(**row) for row in read_rows(FACTS_FILE)]
