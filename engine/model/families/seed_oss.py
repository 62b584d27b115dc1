"""Seed-OSS: Llama with a switch of its own for the bias of the output projection."""

from typing import Any

from engine.model.families.family import Family


def _biased(config: Any) -> tuple[str, ...]:
    switches = {"qkv": config.attention_bias, "output": config.attention_out_bias}
    switches |= {"gate_up": config.mlp_bias, "down": config.mlp_bias}
    return tuple(name for name, is_on in switches.items() if is_on)


SEED_OSS = Family(model_type="seed_oss", architecture="SeedOssForCausalLM", config="SeedOssConfig", biased=_biased)
