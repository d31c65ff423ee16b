"""Networks that nobody here wrote, small and randomly initialised."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

from torch import nn


def transformers() -> ModuleType:
    """The package."""
    import transformers as package

    package.utils.logging.set_verbosity_error()
    return package


SMALL: dict[str, Any] = {
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 6,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "num_labels": 3,
    "initializer_range": 0.5,
}
"""Of an encoder, without dropout, and with weights of order one."""


def bert(attention: str = "eager", **options: Any) -> nn.Module:
    """A classifier of sequences of 11 tokens."""
    package = transformers()
    options = {"vocab_size": 11, "max_position_embeddings": 8, **SMALL, **options}
    return package.BertForSequenceClassification(package.BertConfig(attn_implementation=attention, **options)).train()


def gpt2(attention: str = "eager") -> nn.Module:
    """A language model of 7 tokens, its output tied to its embedding."""
    package = transformers()
    config = package.GPT2Config(
        vocab_size=7,
        n_positions=6,
        n_embd=4,
        n_layer=1,
        n_head=2,
        n_inner=6,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.5,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation=attention,
    )
    return package.GPT2LMHeadModel(config).train()


def vit(attention: str = "eager") -> nn.Module:
    """A classifier of pictures (3, 4, 8) in two patches."""
    package = transformers()
    config = package.ViTConfig(image_size=(4, 8), patch_size=4, attn_implementation=attention, **SMALL)
    return package.ViTForImageClassification(config).train()


def lora(attention: str = "eager", **options: Any) -> nn.Module:
    """The classifier of sequences, of which adapters and head alone are trained."""
    base = bert(attention, **options)
    import peft

    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=2, lora_alpha=4, lora_dropout=0.0, target_modules=["query", "value"]
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.* is deprecated", FutureWarning)
        model = peft.get_peft_model(base, config)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p)  # zero at first, and then the other half has no gradient
    return model.train()


def resnet(**options: Any) -> nn.Module:
    """A classifier of pictures, its batch normalisations in evaluation mode."""
    package = transformers()
    options = {"embedding_size": 2, "hidden_sizes": [2, 4], "depths": [1, 1], "layer_type": "basic", **options}
    model = package.ResNetForImageClassification(package.ResNetConfig(num_labels=3, **options)).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model
