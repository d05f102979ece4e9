"""A model that is examined for leaks: what it reads, of which kind it is, and what it gives."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from regard._errors import ArgumentError
from regard.trust.points import parts_of

Kind = Literal["encoder", "decoder", "encoder_decoder", "vision"]
BATCH = 2
_PER_BATCH = ("logits_per", "loss")
"""Outputs that compare the samples of a batch with each other, as they should."""
CAUSAL_TEXT = frozenset({"clip", "clip_text_model", "chinese_clip"})
"""Model types whose text is read from left to right, though they give no next token."""
_MASK_OF = {"input_ids": "attention_mask", "decoder_input_ids": "decoder_attention_mask"}


@dataclass(frozen=True)
class Stream:
    """One sequence of tokens that a model reads, as ids (batch, length) or as vectors (batch, length, dim).

    name: of the argument. mask: of the argument with its padding, or None where there is none. length: in tokens.
    causal: whether a token may reach those before it. positions: of the argument with their positions, or None.
    marks_padding: the mask is True for padding, as torch's modules have it, and not for what is real. unsaid:
    nothing says whether a token may see later ones.
    """

    name: str
    length: int
    causal: bool
    mask: str | None = None
    positions: str | None = None
    marks_padding: bool = False
    unsaid: bool = False


@dataclass(frozen=True, eq=False)
class Subject:
    """A model in eval mode with inputs of BATCH samples, none of them padded.

    floats: names of inputs that are no ids: vectors, pictures, sounds. accepts: names that its forward takes.
    """

    model: nn.Module
    kind: Kind
    inputs: Mapping[str, Any]
    streams: tuple[Stream, ...]
    accepts: frozenset[str]
    floats: tuple[str, ...] = ()
    pad: int = 0

    @property
    def batch(self) -> int:
        """Samples in the inputs."""
        names = (*(stream.name for stream in self.streams), *self.floats)
        return int(self.inputs[names[0]].shape[0])

    def with_inputs(self, **changed: Any) -> Subject:
        """The same with other inputs; None takes one away."""
        inputs = {**self.inputs, **changed}
        return replace(self, inputs={name: value for name, value in inputs.items() if value is not None})

    def outputs(self, **more: Any) -> dict[str, Tensor]:
        """What it gives, by name."""
        return named_outputs(self.model(**self.inputs, **more))


def named_outputs(output: Any) -> dict[str, Tensor]:
    """The float tensors of an output, also those of outputs within it, but for what compares samples by intent."""
    if isinstance(output, Tensor):
        return {"output": output}
    found: dict[str, Tensor] = {}
    for name, part in parts_of(output).items():
        if isinstance(part, Tensor):
            if part.is_floating_point() and part.dim() >= 2 and not str(name).startswith(_PER_BATCH):
                found[str(name)] = part
        elif isinstance(part, Mapping):
            inner = named_outputs(cast("Mapping[str, Any]", part)).items()
            found |= {f"{name}.{key}": tensor for key, tensor in inner}
    return found


def subject_of(
    model: nn.Module, inputs: Mapping[str, Any] | None, *, kind: Kind | None, causal: bool | None, length: int
) -> Subject:
    """What is examined.

    Raises:
        ArgumentError: a model that is not known, whose kind or inputs are not said.
    """
    accepts = _accepted(model)
    if inputs is None:
        made = _made_or_refused(model, length)
        inputs, kind = made.inputs, made.kind if kind is None else kind
        pad = made.pad
    else:
        pad = int(getattr(getattr(model, "config", None), "pad_token_id", None) or 0)
        kind = _kind_of_model(model) if kind is None else kind
    given = _by_name(inputs)
    tokens = {name: tensor for name, tensor in given.items() if _is_tokens(name, tensor)}
    floats = tuple(name for name, value in given.items() if _is_float(value))
    if not tokens and not floats:
        raise ArgumentError(
            "inputs",
            expected="token ids (batch, length) or float tensors (batch, ...)",
            got=", ".join(given) or "none",
            do="Give the inputs that the model is called with, by name.",
        )
    chosen: Kind = kind or ("encoder" if tokens else "decoder" if causal else "vision")
    vectors = {} if tokens or chosen == "vision" else {name: given[name] for name in floats if given[name].dim() == 3}
    _check_told(chosen, tokens, vectors, causal=causal)
    to_right = getattr(getattr(model, "config", None), "model_type", "") in CAUSAL_TEXT
    causal = True if to_right and causal is None else causal
    sequences = (*tokens.items(), *vectors.items())
    streams = tuple(_stream(name, tensor, chosen, accepts, causal=causal) for name, tensor in sequences)
    if kind is None and causal is None:
        streams = tuple(replace(stream, unsaid=True) for stream in streams)
    return Subject(model, chosen, given, streams, accepts, floats, pad)


def _by_name(inputs: object) -> dict[str, Any]:
    if not isinstance(inputs, Mapping):
        raise ArgumentError(
            "inputs",
            expected="a mapping of arguments by name",
            got=type(inputs).__name__,
            do="They are what the model is called with: model(**inputs).",
        )
    return dict(cast("Mapping[str, Any]", inputs))


def _check_told(kind: str, tokens: Mapping[str, Tensor], vectors: Mapping[str, Tensor], *, causal: bool | None) -> None:
    if kind not in get_args(Kind):
        raise ArgumentError(
            "kind", expected=f"one of {', '.join(get_args(Kind))}", got=repr(kind), do="Or leave it out."
        )
    if not tokens and len(vectors) != 1 and (causal or kind in ("decoder", "encoder_decoder")):
        raise ArgumentError(
            "inputs",
            expected="token ids (batch, length), or one sequence of vectors (batch, length, dim)",
            got=f"vectors in each of {', '.join(vectors)}" if vectors else "float tensors of other dimensions alone",
            do="Bind the others in a module around this one, so that it is clear who may not see whom.",
        )
    given = list(tokens.items())
    for place, (name, ids) in enumerate(given):
        for other, others in given[place + 1 :]:
            if ids.shape == others.shape and torch.equal(ids, others):
                raise ArgumentError(
                    "inputs",
                    expected="different ids in each",
                    got=f"the same in {name} and {other}",
                    do="They are told apart by their values: roll one of them.",
                )


def _stream(name: str, tensor: Tensor, kind: Kind, accepts: frozenset[str], *, causal: bool | None) -> Stream:
    decodes = kind == "decoder" or (kind == "encoder_decoder" and name.startswith("decoder"))
    mask = _MASK_OF.get(name, "attention_mask") if tensor.dim() == 3 else _MASK_OF.get(name)
    of_torch = next((each for each in (f"{name}_key_padding_mask", "key_padding_mask") if each in accepts), None)
    known = mask in accepts or ("**" in accepts and mask == "attention_mask")
    positions = "position_ids" if name == "input_ids" else None
    return Stream(
        name=name,
        length=tensor.shape[1],
        causal=decodes if causal is None else causal,
        mask=mask if known else of_torch,
        positions=positions if positions in accepts else None,
        marks_padding=not known and of_torch is not None,
    )


def _is_tokens(name: str, value: object) -> bool:
    if not isinstance(value, Tensor) or value.dim() != 2 or value.is_floating_point() or value.dtype == torch.bool:
        return False
    return not any(word in name for word in ("mask", "position", "token_type", "segment"))


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0


def _accepted(model: nn.Module) -> frozenset[str]:
    found = inspect.signature(model.forward).parameters
    names = {name for name, entry in found.items() if entry.kind is not inspect.Parameter.VAR_KEYWORD}
    return frozenset(names | ({"**"} if len(names) < len(found) else set()))


# ------------------------------------------------------------------------------- models of transformers


def transformers_model(model: object) -> bool:
    """Whether it is a model of transformers, which is not imported for this."""
    transformers = sys.modules.get("transformers.modeling_utils")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def kind_of(transformers: Any, model: Any) -> Literal["encoder", "decoder", "encoder_decoder"]:
    """Which of the three shapes a transformers model has."""
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        return "encoder_decoder"
    if getattr(config, "attn_type", None) == "bi":  # XLNet predicts tokens and looks both ways
        return "encoder"
    names = transformers.models.auto.modeling_auto
    causal = config.model_type in names.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    both_ways = config.model_type in names.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return "decoder" if causal and (not both_ways or getattr(config, "is_decoder", False)) else "encoder"


def _kind_of_model(model: nn.Module) -> Kind | None:
    if not transformers_model(model):
        return None
    main = getattr(model, "main_input_name", "input_ids")
    return "vision" if main == "pixel_values" else kind_of(sys.modules["transformers"], model)


@dataclass(frozen=True)
class _MadeInputs:
    kind: Kind
    inputs: dict[str, Any] = field(default_factory=dict[str, Any])
    pad: int = 0


def _made_or_refused(model: nn.Module, length: int) -> _MadeInputs:
    try:
        return _made_inputs(model, length)
    except (ValueError, IndexError, AttributeError, TypeError, RuntimeError) as problem:
        raise ArgumentError(
            "inputs",
            expected="what the model is called with, by name",
            got=f"none, and its configuration does not say them ({type(problem).__name__})",
            do="Give inputs=.",
        ) from problem


def _made_inputs(model: nn.Module, length: int) -> _MadeInputs:
    """Random inputs of a transformers model, from its configuration."""
    kind = _kind_of_model(model)
    if kind is None:
        raise ArgumentError(
            "inputs",
            expected="what the model is called with, by name",
            got="none",
            do="They can be left out for models of transformers only.",
        )
    config: Any = cast("Any", model).config
    pad = next((int(found) for found in _numbers(config, "pad_token_id")), 0)
    inputs: dict[str, Any] = {}
    accepts, generator = _accepted(model), torch.Generator().manual_seed(1)
    main = getattr(model, "main_input_name", "input_ids")
    if main == "input_ids" or {"input_ids", "pixel_values"} <= accepts:
        inputs["input_ids"] = _ids(config, length, generator)
    if "pixel_values" in accepts:
        inputs["pixel_values"] = _picture(config, generator)
    if main == "input_features":
        inputs["input_features"] = _sound(config, generator)
    if kind == "encoder_decoder":
        inputs["decoder_input_ids"] = _ids(config, max(4, length * 2 // 3 + 1), generator)
    return _MadeInputs(kind, inputs, pad)


def _ids(config: Any, length: int, generator: torch.Generator) -> Tensor:
    """Tokens without those that mean something to the model."""
    vocabulary = min(_numbers(config, "vocab_size"))
    special = {int(found) for name in ("pad", "bos", "eos", "sep", "cls", "mask", "unk", "decoder_start")
               for found in _numbers(config, f"{name}_token_id")}  # fmt: skip
    usual = torch.tensor([token for token in range(vocabulary) if token not in special][: 1 << 16])
    return usual[torch.randint(usual.numel(), (BATCH, length), generator=generator)]


def _picture(config: Any, generator: torch.Generator) -> Tensor:
    size, channels = _numbers(config, "image_size")[0], (_numbers(config, "num_channels") or [3])[0]
    return torch.randn(BATCH, int(channels), int(size), int(size), generator=generator)


def _sound(config: Any, generator: torch.Generator) -> Tensor:
    return torch.randn(BATCH, config.num_mel_bins, 2 * config.max_source_positions, generator=generator)


def _numbers(config: Any, name: str) -> list[int]:
    """That entry of a configuration, and of those within it."""
    found: list[int] = []
    for part in (config, *(getattr(config, inner, None) for inner in ("text_config", "vision_config"))):
        value = getattr(part, name, None)
        entries = cast("list[object]", value) if isinstance(value, (list, tuple)) else [value]
        found += [entry for entry in entries if isinstance(entry, int)]
    return found
