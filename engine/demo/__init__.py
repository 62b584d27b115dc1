"""The embedded demo model: a tiny Qwen3 with its own tokenizer, the default of `--model`.

Made to try the program without a download. It knows the facts of `facts.tsv` and nothing else.
"""

from pathlib import Path


def demo_folder() -> Path:
    """Folder of the stored model, in the layout that `from_pretrained` reads."""
    return Path(__file__).parent / "model"
