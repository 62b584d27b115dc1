"""Token-masking impact analysis for decoder language models.

    from engine import AttentionMasker, run_masking_experiment
    table = run_masking_experiment("The Eiffel Tower is in")
    effects = run_masking_experiment("The Eiffel Tower is in", read="output", cut="window:3", hidden_from="query")
    results = read_results("impacts")                            # a dataset of many prompts
    plot(table, "heads")                                         # a chart, for notebooks and files
    write_report(table, "report.html")                           # one page that opens offline
    models()                                                     # which architectures are supported, by which route

Names are loaded when first used, so importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.datasets.reading import read_results as read_results
    from engine.errors import ImpactError as ImpactError
    from engine.experiment import AttentionMasker as AttentionMasker
    from engine.experiment import run_masking_experiment as run_masking_experiment
    from engine.figures.charts import plot as plot
    from engine.model.catalogue import models as models
    from engine.pages.page import write_report as write_report

_HOME = {
    "AttentionMasker": "engine.experiment",
    "run_masking_experiment": "engine.experiment",
    "ImpactError": "engine.errors",
    "models": "engine.model.catalogue",
    "plot": "engine.figures.charts",
    "read_results": "engine.datasets.reading",
    "write_report": "engine.pages.page",
}
__all__ = [
    "AttentionMasker",
    "ImpactError",
    "models",
    "plot",
    "read_results",
    "run_masking_experiment",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'engine' has no attribute {name!r}; it offers {', '.join(sorted(_HOME))}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
