"""Every scaling's frequencies and amplitude against transformers, and the reading of its configurations."""

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from regard import ArgumentError
from regard.positions import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    NTKScaling,
    RoPE,
    YaRNScaling,
)

HEAD_DIM = 64
SHORT = [1.0 + 0.01 * c for c in range(HEAD_DIM // 2)]
LONG = [1.0 + 0.5 * c for c in range(HEAD_DIM // 2)]

YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
LONGROPE = {
    "rope_type": "longrope",
    "factor": 8.0,
    "short_factor": SHORT,
    "long_factor": LONG,
    "original_max_position_embeddings": 512,
}
CASES = [
    ({"rope_type": "linear", "factor": 4.0}, LinearScaling(4.0)),
    ({"rope_type": "dynamic", "factor": 4.0}, DynamicNTKScaling(4.0, 4096)),
    (YARN, YaRNScaling(8.0, 512)),
    ({**YARN, "factor": None}, YaRNScaling(8.0, 512)),
    ({**YARN, "rope_theta": 500_000.0}, YaRNScaling(8.0, 512)),
    # The ramp would end after the last channel.
    ({**YARN, "rope_theta": 100.0, "original_max_position_embeddings": 65536}, YaRNScaling(8.0, 65536)),
    ({**YARN, "beta_fast": 16, "beta_slow": 2}, YaRNScaling(8.0, 512, 16, 2)),
    ({**YARN, "attention_factor": 1.25}, YaRNScaling(8.0, 512, attention_factor=1.25)),
    ({**YARN, "mscale": 0.7, "mscale_all_dim": 1.2}, YaRNScaling(8.0, 512, mscale=0.7, mscale_all_dim=1.2)),
    ({**YARN, "mscale": 0.7}, YaRNScaling(8.0, 512, mscale=0.7)),
    ({**YARN, "truncate": False}, YaRNScaling(8.0, 512, truncate=False)),
    (LLAMA3, Llama3Scaling(8.0, 1.0, 4.0, 512)),
    ({**LLAMA3, "low_freq_factor": 2.0, "high_freq_factor": 9.0}, Llama3Scaling(8.0, 2.0, 9.0, 512)),
    (LONGROPE, LongRoPEScaling(SHORT, LONG, 512, factor=8.0)),
    ({**LONGROPE, "factor": None}, LongRoPEScaling(SHORT, LONG, 512, factor=8.0)),
    ({**LONGROPE, "attention_factor": 1.5}, LongRoPEScaling(SHORT, LONG, 512, attention_factor=1.5)),
]


def theirs(parameters, length):
    config = LlamaConfig(
        hidden_size=4 * HEAD_DIM,
        num_attention_heads=4,
        head_dim=HEAD_DIM,
        max_position_embeddings=4096,
        rope_parameters={"rope_theta": 10000.0, **parameters},
    )
    return ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, torch.device("cpu"), seq_len=length)


@pytest.mark.parametrize("length", [100, 512, 513, 4096, 10_000])
@pytest.mark.parametrize(("parameters", "scaling"), CASES)
def test_frequencies_and_amplitude_are_those_of_transformers(parameters, scaling, length):
    expected, amplitude = theirs(parameters, length)
    own = RoPE(HEAD_DIM, base=parameters.get("rope_theta", 10000.0), scaling=scaling).inverse_frequencies(length)
    torch.testing.assert_close(own, expected.double(), rtol=1e-6, atol=1e-9)
    assert scaling.amplitude() == pytest.approx(amplitude, abs=1e-12)


@pytest.mark.parametrize(("parameters", "scaling"), CASES)
def test_configurations_are_read(parameters, scaling):
    position = RoPE.from_rope_parameters(parameters, HEAD_DIM, max_position_embeddings=4096, align="bottom_right")
    assert position.scaling == scaling
    assert position.dim == HEAD_DIM
    assert position.base == parameters.get("rope_theta", 10000.0)
    assert position.align == "bottom_right"


def test_partial_rotary_is_read():
    parameters = {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.25, "rope_theta": 5e5}
    position = RoPE.from_rope_parameters(parameters, HEAD_DIM, style="interleaved")
    assert (position.dim, position.base, position.style) == (16, 5e5, "interleaved")
    expected, _ = theirs(parameters, 10)
    torch.testing.assert_close(position.inverse_frequencies(), expected.double(), rtol=1e-6, atol=1e-9)


def test_older_spelling_and_default():
    assert RoPE.from_rope_parameters({"type": "linear", "factor": 2.0}, 8).scaling == LinearScaling(2.0)
    assert RoPE.from_rope_parameters({"rope_type": "default", "rope_theta": None}, 8).base == 10000.0
    assert RoPE.from_rope_parameters({}, 8).scaling is None


def test_ntk_slows_the_slowest_pair_by_the_factor_and_the_fastest_not_at_all():
    plain, scaled = RoPE(16).inverse_frequencies(), RoPE(16, scaling=NTKScaling(8.0)).inverse_frequencies()
    ratio = plain / scaled
    assert ratio[0].item() == 1.0
    assert ratio[-1].item() == pytest.approx(8.0)
    assert torch.all(ratio[1:] > ratio[:-1])


def test_amplitude_scales_cosine_and_sine():
    states, positions = torch.randn(1, 1, 3, 8, dtype=torch.float64), torch.arange(3)
    plain = YaRNScaling(4.0, 128, attention_factor=1.0)
    louder = YaRNScaling(4.0, 128, attention_factor=1.5)
    torch.testing.assert_close(
        RoPE(4, scaling=louder).rotate(states, positions)[..., :4],
        1.5 * RoPE(4, scaling=plain).rotate(states, positions)[..., :4],
    )


def test_factor_one_changes_nothing():
    plain = RoPE(8).inverse_frequencies(100)
    ones = [1.0] * 4
    for scaling in (
        LinearScaling(1.0),
        NTKScaling(1.0),
        DynamicNTKScaling(1.0, 200),
        YaRNScaling(1.0, 50),
        Llama3Scaling(1.0, 1.0, 4.0, 50),
        LongRoPEScaling(ones, ones, 50, factor=1.0),
    ):
        torch.testing.assert_close(RoPE(8, scaling=scaling).inverse_frequencies(100), plain, rtol=1e-12, atol=0)
        assert scaling.amplitude() == 1.0


def test_scalings_are_values():
    assert LongRoPEScaling([1.0], [2.0], 8, 2.0) == LongRoPEScaling((1.0,), (2.0,), 8, 2.0)
    assert len({YaRNScaling(2.0, 8), YaRNScaling(2.0, 8), LinearScaling(2.0)}) == 2
    with pytest.raises(AttributeError):
        LinearScaling(2.0).factor = 3.0


def test_repr():
    assert repr(DynamicNTKScaling(2.0, 2048)) == "DynamicNTKScaling(factor=2.0, original_length=2048)"
    assert repr(LongRoPEScaling(SHORT, LONG, 512, 8.0)) == (
        "LongRoPEScaling(short_factor=<32 from 1 to 1.31>, long_factor=<32 from 1 to 16.5>, original_length=512, "
        "factor=8.0, attention_factor=None)"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearScaling(0.5), "LinearScaling factor: expected a finite number >= 1, got 0.5."),
        (lambda: LinearScaling(math.inf), "LinearScaling factor: expected a finite number >= 1, got inf."),
        (lambda: NTKScaling("2"), "NTKScaling factor: expected a finite number >= 1, got '2'."),
        (lambda: DynamicNTKScaling(2.0, 0), "DynamicNTKScaling original_length: expected an int >= 1, got 0."),
        (lambda: YaRNScaling(2.0, 8, beta_fast=1.0, beta_slow=2.0), "YaRNScaling beta_fast: expected a finite number "),
        (lambda: YaRNScaling(2.0, 8, beta_slow=0.0), "YaRNScaling beta_slow: expected a finite number > 0, got 0.0."),
        (lambda: YaRNScaling(2.0, 8, mscale=-1.0), "YaRNScaling mscale: expected a finite number >= 0, got -1.0."),
        (lambda: Llama3Scaling(8.0, 4.0, 4.0, 8), "Llama3Scaling high_freq_factor: expected a finite number > 4, "),
        (lambda: LongRoPEScaling([0.0], [1.0], 8, 2.0), "LongRoPEScaling short_factor: expected a finite number > 0, "),
        (
            lambda: LongRoPEScaling([1.0], [1.0], 8),
            (
                "LongRoPEScaling: expected factor or attention_factor, which say how large cosine and sine are, "
                "got neither. Give factor=longest length / original_length."
            ),
        ),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ArgumentError) as error:
        make()
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"rope_type": "mrope"},
            "rope_parameters rope_type: expected one of default, linear, dynamic, yarn, llama3, longrope, got 'mrope'.",
        ),
        (
            {"rope_type": "default", "mrope_section": [8, 12, 12]},
            (
                "rope_parameters of type 'default': expected only the keys ['partial_rotary_factor', 'rope_theta', "
                "'rope_type', 'type'], got also ['mrope_section']."
            ),
        ),
        ({"rope_type": "dynamic", "factor": 2.0, "alpha": 1000}, "rope_parameters of type 'dynamic': expected only "),
        ({"rope_type": "linear"}, "rope_parameters: expected the key 'factor', got the keys ['rope_type']."),
        ({"rope_type": "dynamic", "factor": 2.0}, "rope_parameters: expected max_position_embeddings, got None."),
        ({"rope_type": "yarn", "factor": 2.0}, "rope_parameters: expected max_position_embeddings, got None."),
        (
            {"full_attention": {"rope_type": "default"}},
            (
                "rope_parameters: expected the parameters of one kind of layer, got one mapping for each of "
                "['full_attention']. Build one RoPE for each, from rope_parameters['full_attention'] and so on."
            ),
        ),
        ({"partial_rotary_factor": 1.5}, "rope_parameters partial_rotary_factor: expected a share of head_dim, "),
        ({"rope_theta": "big"}, "rope_parameters rope_theta: expected a finite number > 1, got 'big'."),
    ],
)
def test_configurations_are_refused_by_name(parameters, message):
    with pytest.raises(ArgumentError) as error:
        RoPE.from_rope_parameters(parameters, 8)
    assert str(error.value).startswith(message)
