"""The supported model families, by transformers' ``model_type``."""

from engine.model.families.family import Family as Family
from engine.model.families.family import head_dim as head_dim
from engine.model.families.llama import LLAMA
from engine.model.families.mistral import MISTRAL
from engine.model.families.qwen2 import QWEN2
from engine.model.families.qwen3 import QWEN3

FAMILIES: dict[str, Family] = {family.model_type: family for family in (QWEN3, QWEN2, LLAMA, MISTRAL)}
