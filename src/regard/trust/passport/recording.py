"""`regard.passport.record`: what a model or a callable computes here, and what is true, into one folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from regard._errors import ArgumentError, RegardError, UnsupportedError
from regard.observation import ObservedLayer, observe
from regard.trust.passport import calls, plan, units
from regard.trust.passport.computed_by import computed_by
from regard.trust.passport.contents import FORMAT, VERSION, Call, Contents, Item, Made
from regard.trust.passport.definition import ByDefinition, by_definition
from regard.trust.passport.examination import Kept, Key, Runner, StoppedError, piecewise, thinned, through
from regard.trust.passport.folder import check_new, read, write
from regard.trust.passport.provenance import digests, dtype_and_device, made_here
from regard.trust.passport.runs import Inputs, run
from regard.trust.passport.summary import Summary, summary_of
from regard.trust.passport.visits import Survey
from regard.trust.passport.written import NotWritableError, name_of, write_inputs

SHARE_OF_OUTPUTS, SHARE_OF_CALLS = 0.25, 0.5
"""Of what is left of the budget, so much at most is for the model's outputs, and then for attention calls."""
MEASURED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""The dtypes that a replay may be in: plain torch is measured in each."""


def record(
    model: nn.Module | Callable[..., Any],
    inputs: object,
    path: str | Path,
    *,
    layers: Collection[str] | None = None,
    gradients: bool = True,
    budget: int | str = "64 MB",
    backend: str | None = None,
    seed: int = 0,
) -> Summary:
    """Record what a model or a callable computes here, with what is true in float64, so that another place can compare.

    The model runs in eval mode, first as it is, then by definition in float64 (attention written out, nothing rounded
    to a narrower dtype), then by definition in float32, bfloat16 and float16: what plain eager torch makes of it in
    each dtype is the unit that errors are told in.

    Args:
        model: a module, or a callable of tensors. It is left as it was.
        inputs: what it is called with: a mapping of arguments by name, a sequence of them in order, or one tensor.
        path: a folder that does not exist yet.
        layers: names of modules whose outputs, attention and gradients are recorded; all when left out.
        gradients: also record the gradients of layers, float inputs and parameters.
        budget: the most bytes of tensors that are written, as a number or a text like "64 MB". The model's outputs
            come first, then attention calls and layers, from the whole to the parts; what does not fit is told in
            `left_out`.
        backend: who computes attention meanwhile: "native" (`regard.activate`) or "sdpa", and with a transformers model
            "eager" or "flex" too; as it is when left out.
        seed: of torch's random numbers before each run.

    Returns:
        What the passport holds, as it was read again from the disk.

    Raises:
        ArgumentError: no model, no such layer, inputs that cannot be written, a budget too small for them, or a path
            where something is.
        UnsupportedError: the model cannot be copied, does not run in float64, or cannot be computed by this backend.
        CheckpointError: it cannot be written there.
    """
    folder, room = Path(path), plan.budget_bytes(budget)
    check_new(folder)
    module = as_module(model)
    recorder = _Recorder(module, as_inputs(inputs), gradients=gradients, seed=seed)
    with computed_by(module, backend):
        contents = recorder.recorded(None if layers is None else frozenset(layers), room)
    write(folder, contents, recorder.tensors)
    return summary_of(read(folder))


def as_inputs(inputs: object) -> Inputs:
    """What a model is called with, from a mapping, a sequence or one tensor."""
    if isinstance(inputs, Mapping):
        return Inputs((), {str(name): entry for name, entry in cast("Mapping[Any, Any]", inputs).items()})
    if isinstance(inputs, Tensor):
        return Inputs((inputs,))
    if isinstance(inputs, Sequence) and not isinstance(inputs, str):
        return Inputs(tuple(cast("Sequence[Any]", inputs)))
    raise ArgumentError(
        "inputs",
        expected="a mapping of arguments by name, a sequence of them, or a tensor",
        got=type(inputs).__name__,
        do="They are what the model is called with: model(**inputs) or model(*inputs).",
    )


def as_module(model: object) -> nn.Module:
    """A callable as a module, so that what attends inside of it is seen."""
    if isinstance(model, nn.Module):
        return model
    if not callable(model):
        raise ArgumentError(
            "model", expected="a torch.nn.Module or a callable", got=type(model).__name__, do="Pass the model itself."
        )
    return Called(model)


class Called(nn.Module):
    """A callable as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **named: Any) -> Any:
        """Call it."""
        return self.function(*args, **named)


class _Recorder:
    """One recording: the runs that it makes, and the tensors that it collects."""

    def __init__(self, model: nn.Module, inputs: Inputs, *, gradients: bool, seed: int) -> None:
        self.runner = Runner(model, inputs, seed, gradients)
        self.tensors: dict[str, Tensor] = {}
        self.left_out: list[str] = []

    def recorded(self, layers: frozenset[str] | None, budget: int) -> Contents:
        """Everything, within so many bytes."""
        _check_layers(self.runner.model, layers)
        inputs = write_inputs(self.runner.inputs.moved(None, "cpu"), self._keeper("input"))
        survey, outputs, seen = self._surveyed()
        every, reserved = self._thinned_outputs(outputs, self._left(budget), budget)
        budget -= reserved
        recorded_calls = self._calls(seen, layers, int(SHARE_OF_CALLS * self._left(budget)))
        chosen = plan.chosen_points(survey.found, layers, self._left(budget), gradients=self.runner.gradients)
        self.left_out += chosen.left_out
        items = self._items(chosen.points, every, self._left(budget) - chosen.spent)
        return Contents(
            format=FORMAT,
            version=VERSION,
            made=_provenance(self.runner),
            inputs=inputs,
            items=tuple(items),
            calls=tuple(recorded_calls),
            weights=digests(self.runner.model),
            left_out=tuple(self.left_out),
            files={},
        )

    def _left(self, budget: int) -> int:
        return budget - sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def _keeper(self, prefix: str) -> Callable[[str, Tensor], str]:
        def keep(name: str, tensor: Tensor) -> str:
            key = f"{prefix}/{len(self.tensors):05d} {name}".replace("\\", "_").replace("/..", "/__")
            self.tensors[key] = tensor.detach().cpu().clone()
            return key

        return keep

    # ------------------------------------------------------------------------------------- what there is

    def _surveyed(self) -> tuple[Survey, dict[str, Tensor], list[ObservedLayer]]:
        """Which points, outputs and attention calls there are."""
        survey, runner = Survey(), self.runner
        try:
            with observe(runner.model) as seen:
                ran = run(runner.model, runner.inputs, survey.meet, seed=runner.seed, gradients=False)
        except RegardError:
            raise
        except Exception as problem:
            reason = f"the model does not run on these inputs ({type(problem).__name__}: {problem})"
            raise UnsupportedError({"passport": reason}, do="Give inputs that it takes.") from problem
        self.left_out += [f"attention that is not understood: {line}" for line in seen.missed]
        if not ran.outputs:
            raise ArgumentError(
                "model", expected="a float tensor among what it gives", got="none", do="There is nothing to compare."
            )
        return survey, ran.outputs, seen.layers

    def _thinned_outputs(self, outputs: Mapping[str, Tensor], left: int, budget: int) -> tuple[dict[str, int], int]:
        """Each so many numbers of an output are kept, and the bytes that they take."""
        if left <= 0:
            raise ArgumentError(
                "budget",
                expected=f"more than {plan.shown_bytes(budget - left)}, which the inputs alone take",
                got=plan.shown_bytes(budget),
                do="Give it more, or shorter inputs.",
            )
        whole = sum(tensor.numel() * (plan.TRUE_BYTES + tensor.element_size()) for tensor in outputs.values())
        every = max(1, math.ceil(whole / (SHARE_OF_OUTPUTS * left)))
        if every > 1:
            self.left_out.append(f"of each of the model's outputs one number in {every} is kept")
        return dict.fromkeys(outputs, every), math.ceil(whole / every)

    # --------------------------------------------------------------------------------------- attention

    def _calls(self, seen: Sequence[ObservedLayer], layers: frozenset[str] | None, room: int) -> list[Call]:
        """The attention calls of the layers that are asked for; each gets the same share of the room."""
        asked = [layer for layer in seen if layers is None or _is_inside(plan.module_of(layer.name), layers)]
        written: list[Call] = []
        missing: list[str] = []
        for place, layer in enumerate(asked):
            share = room // (len(asked) - place)
            before = self._left(0)
            try:
                layer.call.unchanged()
                fitting = calls.fitted(calls.as_question(layer.call), share)
                if fitting is None:
                    missing.append(layer.name)
                else:
                    written.append(self._call(layer, fitting))
            except (NotWritableError, RegardError) as problem:
                self.left_out.append(f"the attention of {layer.name}: {problem}")
            room -= before - self._left(0)
        self.left_out += plan.left_out("attention calls", missing, len(asked))
        return written

    def _call(self, layer: ObservedLayer, asked: calls.Asked) -> Call:
        keep, question = self._keeper("call"), asked.question
        options = calls.write_options(question, keep)
        truth = calls.truth_of(question)
        made = {} if asked.output is None else {"output": asked.output}
        if not asked.kept and self.runner.gradients:
            made |= _own_gradients(layer)
        true = {"output": truth.output} | (truth.gradients if self.runner.gradients else {})
        if asked.kept:
            self.left_out.append(f"of the attention of {layer.name} {asked.kept} are kept")
        return Call(
            name=layer.name,
            implementation=layer.call.implementation,
            dtype=name_of(question.dtype),
            query=keep("query", question.query),
            key=keep("key", question.key),
            value=keep("value", question.value),
            options=options,
            kept=asked.kept,
            truth={name: keep(f"true {name}", tensor) for name, tensor in true.items()},
            made={name: keep(f"made {name}", tensor) for name, tensor in made.items()},
        )

    # ------------------------------------------------------------------------------------------- items

    def _items(self, points: Sequence[str], every: Mapping[str, int], room: int) -> list[Item]:
        """Every tensor that is compared, with the truth and with what plain torch makes of it."""
        truth = self._truth(points, every, room)
        made = through(self.runner, points)
        recorder = piecewise(self.runner, truth).errors
        plain = {name_of(dtype): self._plain(truth, dtype) for dtype in MEASURED}
        keep = self._keeper("model")
        items: list[Item] = []
        for key in _in_order(truth.values):
            if key not in made:
                continue  # the recorder gave no such gradient
            kind, name, side = key
            measured = {dtype: found[key] for dtype, found in plain.items() if key in found}
            own = measured.get(name_of(made[key].dtype))
            items.append(
                Item(
                    kind=kind,
                    name=name,
                    side=side,
                    shape=truth.shapes[key],
                    dtype=name_of(made[key].dtype),
                    every=truth.every[key],
                    truth=keep(f"true {name}", truth.values[key]),
                    made=keep(f"made {name}", _as_kept(made[key], truth, key)),
                    plain=measured,
                    recorder=math.inf if own is None else units.ratio(recorder.get(key, math.inf), own, side),
                )
            )
        return items

    def _truth(self, points: Sequence[str], every: Mapping[str, int], room: int) -> Kept:
        """The float64 run; of what would not fit, as many numbers as do."""
        exact = self._by_definition(torch.float64, exact=True)
        try:
            found = through(exact, points)
        except Exception as problem:
            reason = f"the model does not run in float64 ({type(problem).__name__}: {problem})"
            raise UnsupportedError({"passport": reason}, do="Record its attention, or a part that does.") from problem
        others = [key for key in found if key[0] in ("input", "parameter")]
        most = max(1, min(plan.MOST_OF_A_PARAMETER, room // (2 * plan.TRUE_BYTES * max(len(others), 1))))
        steps: dict[Key, int] = {}
        for key, tensor in found.items():
            step = every[key[1]] if key[0] == "output" else 1
            steps[key] = plan.every_of(tensor.numel(), most) if key[0] in ("input", "parameter") else step
        shapes = {key: tuple(tensor.shape) for key, tensor in found.items()}
        values = {
            key: tensor if key[0] == "layer" else thinned(tensor, steps[key]).clone() for key, tensor in found.items()
        }
        return Kept(values, steps, shapes)

    def _by_definition(self, dtype: torch.dtype, *, exact: bool = False) -> Runner:
        runner = self.runner
        model, inputs = by_definition(runner.model, dtype), runner.inputs.moved(dtype, "cpu")
        return Runner(model, inputs, runner.seed, runner.gradients, lambda: ByDefinition(exact=exact))

    def _plain(self, truth: Kept, dtype: torch.dtype) -> dict[Key, units.Yardstick]:
        """What plain torch makes of each tensor: the worse of two runs, one with what it reads moved by a rounding."""
        try:
            runner = self._by_definition(dtype)
            runs = [piecewise(runner, truth, noise).errors for noise in (None, torch.Generator().manual_seed(1))]
            whole = through(runner, truth.of_layers("forward").keys())
        except (StoppedError, RuntimeError, TypeError, ValueError, NotImplementedError) as problem:
            self.left_out.append(
                f"plain torch does not run it in {name_of(dtype)}: {' '.join(str(problem).split())[:160]}"
            )
            return {}
        measured: dict[Key, units.Yardstick] = {}
        for key, expected in truth.values.items():
            if all(key in errors for errors in runs) and key in whole:
                end = units.gap(_as_kept(whole[key], truth, key), expected)
                measured[key] = units.yardstick([errors[key] for errors in runs], expected, dtype, key[2], end)
        return measured


def _provenance(runner: Runner) -> Made:
    dtype, device = dtype_and_device(runner.model, runner.inputs)
    return made_here(runner.model, dtype, device, seed=runner.seed, gradients=runner.gradients)


def _as_kept(tensor: Tensor, truth: Kept, key: Key) -> Tensor:
    return tensor if key[0] == "layer" else thinned(tensor, truth.every[key])


def _in_order(keys: Collection[Key]) -> list[Key]:
    """Forward as the layers end, then gradients from the end to the begin."""
    forward = [key for key in keys if key[2] == "forward"]
    layers = [key for key in keys if key[2] == "gradient" and key[0] == "layer"]
    rest = [key for key in keys if key[2] == "gradient" and key[0] != "layer"]
    return [*forward, *layers, *rest]


def _own_gradients(layer: ObservedLayer) -> dict[str, Tensor]:
    """Those of the function that the layer called; none where it cannot be called apart from it."""
    if layer.call.replay is None:
        return {}
    leaves = {
        name: tensor.detach().requires_grad_()
        for name, tensor in (("query", layer.call.query), ("key", layer.call.key), ("value", layer.call.value))
    }
    try:
        with torch.enable_grad():
            output = layer.call.replay(*leaves.values())
            return calls.gradients_of(output, leaves)
    except (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError):
        return {}


def _check_layers(model: nn.Module, layers: Collection[str] | None) -> None:
    known = {name for name, _ in cast("Any", model.named_modules())}
    for name in layers or ():
        if name not in known:
            raise ArgumentError(
                "layers",
                expected="names of modules of the model",
                got=repr(name),
                do="model.named_modules() lists the names.",
            )


def _is_inside(name: str, layers: Collection[str]) -> bool:
    return any(name == layer or name.startswith(f"{layer}.") for layer in layers)
