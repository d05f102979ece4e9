"""insert_attention: the network, its checkpoint and what it computes stay; gates are found, trained, taken out."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from regard import ArgumentError, ShapeError, UnsupportedError
from regard.nn import CBAM, GlobalContext, NonLocal, SqueezeExcitation, insert_attention, remove_attention
from regard.nn.insert import HOLDER
from tests.nn.gates import close, drawn, image


class Block(nn.Module):
    def __init__(self, width, out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Conv2d(width, 2 * out, 1, stride, bias=False)  # the last convolution tells the wrong width

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return torch.cat((y, y), 1) + self.shortcut(x)


class Network(nn.Module):
    """A small ResNet of sorts, with a part that gives no image and one that nobody calls."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layer1 = nn.Sequential(Block(4, 4, 1), Block(8, 4, 1))
        self.layer2 = nn.Sequential(Block(8, 6, 2), nn.Dropout(0.5))
        self.blocks = nn.ModuleList([Block(12, 6, 1)])
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.layer2(self.layer1(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def network():
    return drawn(Network())


@pytest.mark.parametrize(
    "mechanism",
    ["bam", "cbam", "channel", "coordinate", "eca", "effective_se", "gather_excite", "global_context", "halo",
     "non_local", "se", "selective_kernel", "spatial"],
)  # fmt: skip
def test_every_mechanism_starts_as_the_identity_and_learns(mechanism):
    model, x = network(), image(2, 3, 9, 8)
    before = model(x)
    options = {"num_heads": 2} if mechanism == "halo" else {}
    assert insert_attention(model, mechanism, after="layer2", **options) is model
    assert torch.equal(model(x), before)
    step = torch.optim.SGD([weight for name, weight in model.named_parameters() if name.startswith(HOLDER)], lr=1.0)
    for _ in range(2):
        step.zero_grad()
        model(x).square().sum().backward()
        step.step()
    assert not torch.equal(model(x), before)
    later = model(x)
    remove_attention(model)
    assert torch.equal(model(x), before)
    assert not torch.equal(later, before)


def test_what_is_inserted_is_applied_where_it_was_asked():
    model, x = network(), image(2, 3, 8, 8)
    plain = copy.deepcopy(model)
    insert_attention(model, "cbam", after="layer1.1", start="paper", reduction=2)
    gate = drawn(model.get_submodule(f"{HOLDER}.layer1__1.gate"))
    assert isinstance(gate, CBAM)
    assert gate.channels == 8
    hidden = plain.layer2(gate(plain.layer1(plain.stem(x))))
    close("output", model(x).detach(), plain.head(plain.blocks[0](hidden).mean((2, 3))))


def test_old_checkpoints_load_and_only_the_gates_are_missing():
    model, old = Network(), network().state_dict()
    insert_attention(model, "se", after=["layer1.*.conv2", "layer2"])
    answer = model.load_state_dict(old, strict=False)
    assert not answer.unexpected_keys
    assert answer.missing_keys
    assert all(key.startswith(f"{HOLDER}.") for key in answer.missing_keys)
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(old)
    x = image(1, 3, 8, 8)
    assert torch.equal(model.eval()(x), network()(x))


def test_a_checkpoint_with_gates_goes_into_the_same_model_and_the_gates_may_be_left_out():
    model, x = drawn(insert_attention(network(), "cbam", after="layer?", reduction=2)), image(2, 3, 8, 8)
    again = insert_attention(Network().eval(), "cbam", after="layer?", reduction=2)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x))
    answer = Network().load_state_dict(model.state_dict(), strict=False)
    assert not answer.missing_keys
    assert all(key.startswith(f"{HOLDER}.") for key in answer.unexpected_keys)


def test_patterns_stay_within_one_part_of_a_name():
    model = insert_attention(network(), "eca", after="layer*.*.conv[12]")
    names = {name.split(".")[1] for name in model.state_dict() if name.startswith(HOLDER)}
    assert names == {f"layer{i}__{j}__conv{k}" for i, j in ((1, 0), (1, 1), (2, 0)) for k in (1, 2)}
    with pytest.raises(ArgumentError, match=r"after: expected the name .*got 'layer\*\.conv1'\. Such as blocks"):
        insert_attention(network(), "eca", after="layer*.conv1")


def test_channels_are_those_that_come_out():
    """The last weights of these blocks tell other widths than what the blocks give; a pass tells the truth."""
    model = insert_attention(network(), "se", after=["layer1.0", "layer1.0.conv1", "layer2.0.bn2", "blocks.0"])
    held = model.get_submodule(HOLDER)
    assert {name: each.gate.channels for name, each in held.items()} == {
        "layer1__0": 8, "layer1__0__conv1": 4, "layer2__0__bn2": 6, "blocks__0": 12,
    }  # fmt: skip


def test_looking_for_channels_changes_nothing():
    model = network().train()
    model.layer1.eval()
    modes = [each.training for each in model.modules()]
    state = copy.deepcopy(model.state_dict())
    drawn_before = torch.get_rng_state()
    with pytest.raises(UnsupportedError):
        insert_attention(model, "se", after="head")
    assert torch.equal(torch.get_rng_state(), drawn_before)
    assert [each.training for each in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(each._forward_hooks for each in model.modules())


@pytest.mark.parametrize(
    ("after", "told"),
    [
        ("head", r"head: its output is a tensor \(1, 5\), no image\. Insert after a module"),
        ("blocks", "blocks: the model never calls it"),
    ],
)
def test_places_without_an_image_are_refused(after, told):
    with pytest.raises(UnsupportedError, match=told):
        insert_attention(network(), "se", after=after)
    model = insert_attention(network(), "se", after=after, channels=12)  # said to be an image: told when it runs
    if after == "head":
        with pytest.raises(UnsupportedError, match=r"head: its output is a tensor \(2, 5\), no image"):
            model(image(2, 3, 8, 8))


def test_a_model_that_takes_another_input_needs_an_example():
    class Picky(Network):
        def forward(self, x):
            if x.shape[2] != 10:
                raise ValueError("only ten rows")
            return super().forward(x)

    with pytest.raises(UnsupportedError, match=r"an image made up, \(1, 3, 64, 64\), does not pass .*only ten rows"):
        insert_attention(Picky(), "se", after="layer1")
    model = insert_attention(Picky(), "se", after="layer1", example=image(1, 3, 10, 4))
    assert model.get_submodule(f"{HOLDER}.layer1.gate").channels == 8
    assert insert_attention(Picky(), "se", after="layer1", channels=8)(image(1, 3, 10, 4)).shape == (1, 5)
    with pytest.raises(UnsupportedError, match=r"it has no nn\.Conv2d"):
        insert_attention(nn.Sequential(nn.Flatten(), nn.Linear(4, 4)), "se", after="0")


def test_wrong_words_are_refused():
    for options, told in (
        ({"mechanism": "senet"}, "mechanism: expected one of bam, cbam, .*got 'senet'"),
        ({"start": "zero"}, "start: expected identity or paper, got 'zero'"),
        ({"channels": 0}, "channels: expected a whole number of at least 1, got 0"),
        ({"reduction": 0}, "reduction: expected a whole number of at least 1, got 0"),
    ):
        with pytest.raises(ArgumentError, match=told):
            insert_attention(network(), **{"mechanism": "se", "after": "layer1", **options})
    with pytest.raises(ArgumentError, match="model: expected a model that insert_attention was called on, got Network"):
        remove_attention(network())


def test_nothing_is_changed_where_something_was_refused():
    model = network()
    with pytest.raises(ArgumentError):
        insert_attention(model, "se", after=["layer1", "layer9"])
    with pytest.raises(ArgumentError):
        insert_attention(model, "se", after="layer1", hidden=0)
    assert not hasattr(model, HOLDER)
    insert_attention(model, "se", after="layer1")
    with pytest.raises(ArgumentError, match=r"after: expected places without attention, got layer1\. Call remove"):
        insert_attention(model, "cbam", after="layer?")
    insert_attention(model, "cbam", after="layer2")  # other places may be added
    assert set(model.get_submodule(HOLDER).keys()) == {"layer1", "layer2"}


def test_the_gate_follows_its_place_in_mode_dtype_and_device():
    model = network().to(torch.bfloat16).train()
    model.layer1.eval()
    insert_attention(model, "cbam", after=["layer1", "layer2"])
    held = model.get_submodule(HOLDER)
    assert {weight.dtype for weight in held.parameters()} == {torch.bfloat16}
    assert not held["layer1"].training
    assert held["layer2"].training
    assert model.eval()(image(2, 3, 8, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    meta = insert_attention(Network().to("meta"), "se", after="layer1")
    assert meta.get_parameter(f"{HOLDER}.layer1.blend").device.type == "meta"


def test_those_that_start_as_the_identity_by_themselves_get_no_blend():
    model, x = network(), image(1, 3, 8, 8)
    before = model(x)
    insert_attention(model, "non_local", after="layer1")
    insert_attention(model, "global_context", after="layer2")
    assert not any(name.endswith("blend") for name, _ in model.named_parameters())
    assert torch.equal(model(x), before)
    gates = [model.get_submodule(f"{HOLDER}.{name}.gate") for name in ("layer1", "layer2")]
    assert isinstance(gates[0], NonLocal)
    assert isinstance(gates[1], GlobalContext)
    scaled = insert_attention(network(), "global_context", after="layer2", fusion="scale")
    assert scaled.get_submodule(HOLDER)["layer2"].blend is not None
    assert torch.equal(scaled(x), before)


def test_a_class_of_ones_own_and_one_that_changes_the_size():
    model = insert_attention(network(), SqueezeExcitation, after="layer1", reduction=2)
    assert model(image(1, 3, 8, 8)).shape == (1, 5)
    smaller = insert_attention(network(), lambda _, **__: nn.AvgPool2d(2), after="layer1")
    with pytest.raises(
        ShapeError, match=r"inserted attention's output: expected an image of the size it takes, \(1, 8"
    ):
        smaller(image(1, 3, 8, 8))


def test_a_copy_goes_through_its_own_gates(tmp_path):
    model, x = drawn(insert_attention(network(), "se", after="layer1")), image(1, 3, 8, 8)
    expected = model(x)
    torch.save(model, tmp_path / "model.pt")
    for again in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert torch.equal(again(x), expected)
        with torch.no_grad():
            again.get_parameter(f"{HOLDER}.layer1.blend").add_(1.0)
        assert not torch.equal(again(x), expected)
        assert torch.equal(model(x), expected)
        remove_attention(again)
        assert torch.equal(again(x), network_without(model)(x))


def network_without(model):
    plain = Network().eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    return plain


def test_a_model_that_is_a_sequence_calls_the_holder_too_and_nothing_changes():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1)).eval()
    x = image(1, 3, 5, 5)
    before = model(x)
    insert_attention(model, "cbam", after="1", reduction=2)
    assert torch.equal(model(x), before)
    with torch.no_grad():
        model.get_parameter(f"{HOLDER}.1.blend").fill_(1.0)
    gate = model.get_submodule(f"{HOLDER}.1.gate")
    close("output", model(x), model[2](gate(model[0](x).relu())))
    assert len(remove_attention(model)) == 3


def test_compiles_and_works_with_functional_weights():
    model, x = drawn(insert_attention(network(), "cbam", after="layer1", reduction=2)), image(2, 3, 8, 8)
    expected = model(x)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    close("compiled", compiled(x), expected)
    weights = {name: 0 * weight if name.startswith(HOLDER) else weight for name, weight in model.state_dict().items()}
    found = torch.func.functional_call(model, weights, (x,))
    close("without", found, network_without(model)(x))


def test_each_place_has_a_gate_of_its_own_whatever_its_name():
    """Dots become underscores in a key, and names of a dictionary's methods are taken: neither may cost a gate."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Sequential(OrderedDict(b=nn.Conv2d(3, 4, 1)))
            self.a__b, self.keys, self.values = (nn.Conv2d(4, 4, 1) for _ in range(3))

        def forward(self, image):
            return self.values(self.keys(self.a__b(self.a(image))))

    model = insert_attention(Net(), "se", after=["a.b", "a__b", "keys", "values"])
    assert len(model.regard_attention) == 4
    other = insert_attention(Net(), "se", after=["a.b", "a__b", "keys", "values"])
    other.load_state_dict(model.state_dict())
    image = torch.randn(2, 3, 5, 5)
    assert torch.equal(other(image), model(image))
    remove_attention(model)
