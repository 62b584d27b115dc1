"""The supported model families, by transformers' ``model_type``."""

from engine.model.families.arcee import ARCEE
from engine.model.families.family import ExpertNames as ExpertNames
from engine.model.families.family import Family as Family
from engine.model.families.family import head_dim as head_dim
from engine.model.families.family import num_kv_heads as num_kv_heads
from engine.model.families.gemma import GEMMA, GEMMA2, GEMMA3
from engine.model.families.gpt2 import GPT2
from engine.model.families.gpt_neox import GPT_NEOX
from engine.model.families.gpt_oss import GPT_OSS
from engine.model.families.granite import GRANITE
from engine.model.families.llama import LLAMA
from engine.model.families.ministral import MINISTRAL
from engine.model.families.mistral import MISTRAL
from engine.model.families.mixtral import MIXTRAL
from engine.model.families.olmo2 import OLMO2, OLMO3
from engine.model.families.phi3 import PHI3
from engine.model.families.qwen2 import QWEN2
from engine.model.families.qwen3 import QWEN3
from engine.model.families.qwen3_moe import QWEN3_MOE
from engine.model.families.seed_oss import SEED_OSS
from engine.model.families.shapes import Shapes as Shapes
from engine.model.families.shapes import expert_parts as expert_parts
from engine.model.families.shapes import layer_shapes as layer_shapes
from engine.model.families.shapes import shapes as shapes
from engine.model.families.smollm3 import SMOLLM3

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        *(QWEN3, QWEN2, LLAMA, MISTRAL, MINISTRAL, GEMMA, GEMMA2, GEMMA3, PHI3, OLMO2, OLMO3, SMOLLM3, GRANITE),
        *(SEED_OSS, ARCEE, GPT2, GPT_NEOX, QWEN3_MOE, MIXTRAL, GPT_OSS),
    )
}
