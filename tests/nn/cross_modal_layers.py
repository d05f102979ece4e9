"""What the tests of layers between text and images share: their widths, draws, and Idefics, which some are beside."""

from __future__ import annotations

import pytest
import torch

TEXT, IMAGE, HEADS = 12, 20, 3


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def near(found, expected):
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-5)


def with_random_biases(module):
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "bias" in name:
                weight.copy_(torch.randn(weight.shape))
    return module


def idefics_config(width):
    transformers = pytest.importorskip("transformers")
    config = transformers.IdeficsConfig(
        vocab_size=10,
        hidden_size=TEXT,
        intermediate_size=30,
        num_attention_heads=HEADS,
        vision_config={"embed_dim": width},
        alpha_initializer="ones",
    )
    config._attn_implementation = "eager"
    return config
