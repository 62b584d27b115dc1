"""Llama 2 and 3: the layer that the other families vary. Biases only where the config asks for them."""

from engine.families.family import Family

LLAMA = Family(model_type="llama", architecture="LlamaForCausalLM")
