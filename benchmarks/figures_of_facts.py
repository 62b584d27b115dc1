"""The README's figures: what the program finds about a fact that the embedded model knows.

    python -m benchmarks.figures_of_facts [--output FOLDER]

Writes, in light and dark, the layer x token map of the impact table, its head grid for the subject, and the effect on
the answer when the last position does not see a token in one layer (Geva et al. 2023, arXiv 2304.14767).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results" / "figures"
PROMPT = "The Eiffel Tower is in"
SUBJECT = 1
KNOCKOUT: dict[str, Any] = {"cut": "window:1", "hidden_from": "query", "read": "output", "answer": " Paris"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figures_of_facts", description="The README's figures.")
    parser.add_argument("--output", metavar="FOLDER", type=Path, default=FOLDER, help="default: %(default)s")
    folder: Path = parser.parse_args(arguments).output
    folder.mkdir(parents=True, exist_ok=True)
    from engine import AttentionMasker, plot
    from engine.figures.saving import save_figure

    masker = AttentionMasker.from_pretrained(device="cpu")
    impacts, effects = masker.run(PROMPT), masker.run(PROMPT, **KNOCKOUT)
    words: dict[str, Any] = {"provenance": {"prompt": PROMPT, "description": "embedded demo model"}}
    for theme in ("light", "dark"):
        charts = {
            "impact": plot(impacts, theme=theme, **words),
            "heads": plot(impacts, "heads", token=SUBJECT, theme=theme, **words),
            "answer": plot(effects, theme=theme, title="change of the log-probability of ' Paris' (nats)", **words),
        }
        for name, chart in charts.items():
            save_figure(chart, folder / f"{name}-{theme}.svg")
    print(f"{2 * len(charts)} figures -> {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
