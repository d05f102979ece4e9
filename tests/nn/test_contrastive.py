"""CLIP's and SigLIP's losses against the formulas in float64, transformers' models, and their chunked forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

import regard
from regard.nn import CLIPLoss, SigLIPLoss, clip_loss, siglip_loss
from regard.nn._contrastive_chunks import Matches

BIAS = torch.tensor(-2.0)


def embeddings(images, texts=None, width=6, dtype=torch.float32):
    generator = torch.Generator().manual_seed(images)
    image = torch.randn(images, width, generator=generator)
    text = torch.randn(images if texts is None else texts, width, generator=generator)
    text[: min(len(image), len(text))] += image[: min(len(image), len(text))]
    return image.to(dtype).requires_grad_(), text.to(dtype).requires_grad_()


def scores_of(image, text, scale, bias=0.0):
    image, text = image / image.norm(dim=1, keepdim=True), text / text.norm(dim=1, keepdim=True)
    return torch.stack([torch.stack([scale * (one * other).sum() + bias for other in text]) for one in image])


def plain_clip(image, text, scale, wanted, smoothing=0.0):
    """Pair by pair, in float64: the mean over rows and columns that have a target."""
    scores, sides = scores_of(image, text, scale), []
    for table, target in ((scores, wanted), (scores.T, wanted.T)):
        losses = []
        for row, share in zip(table, target, strict=True):
            if share.sum() > 0:
                smooth = (1 - smoothing) * share / share.sum() + smoothing / len(row)
                losses.append(-(smooth * (row - row.exp().sum().log())).sum())
        sides.append(torch.stack(losses).mean())
    return (sides[0] + sides[1]) / 2


def plain_siglip(image, text, scale, bias, wanted, smoothing=0.0):
    scores, wanted = scores_of(image, text, scale, bias), wanted * (1 - smoothing) + smoothing / 2
    chance = 1 / (1 + (-scores).exp())
    return -(wanted * chance.log() + (1 - wanted) * (1 - chance).log()).sum() / len(image)


OF_IMAGE, OF_TEXT = torch.tensor([3, 0, 0, 8, 5]), torch.tensor([0, 3, 5, 5, 7, 0, 3])
MATRIX = (
    torch.tensor([[1, 0, 0, 2, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0], [0, 3, 1, 0, 0, 0, 0], [0] * 7, [1] * 6 + [0]]) / 3.0
)
WANTED = {
    "pairs": (5, {}, torch.eye(5)),
    "one_pair": (1, {}, torch.eye(1)),
    "duplicates": (5, {"groups": OF_IMAGE}, (OF_IMAGE[:, None] == OF_IMAGE).float()),
    "captions": (7, {"groups": (OF_IMAGE, OF_TEXT)}, (OF_IMAGE[:, None] == OF_TEXT).float()),
    "matrix": (7, {"targets": MATRIX}, MATRIX),
    "bool_matrix": (7, {"targets": MATRIX > 0}, (MATRIX > 0).float()),
}
EVERY = pytest.mark.parametrize("kind", WANTED)
CHUNKS = pytest.mark.parametrize("chunk_size", [None, 1, 2, 3, 100])


def with_gradients(loss, *inputs):
    return (loss, *torch.autograd.grad(loss, inputs))


def near(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=tolerance, atol=tolerance)


@EVERY
@CHUNKS
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_clip_is_its_formula(kind, chunk_size, smoothing, dtype):
    texts, options, wanted = WANTED[kind]
    image, text = embeddings(len(wanted), texts, dtype=dtype)
    scale = torch.tensor(5.0, dtype=dtype, requires_grad=True)
    loss = clip_loss(image, text, scale, label_smoothing=smoothing, chunk_size=chunk_size, **options)
    exact = [each.detach().double().requires_grad_() for each in (image, text, scale)]
    expected = plain_clip(*exact, wanted.double(), smoothing)
    assert loss.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-7 if "matrix" in kind else 1e-12
    near(with_gradients(loss, image, text, scale), with_gradients(expected, *exact), tolerance)


@EVERY
@CHUNKS
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_siglip_is_its_formula(kind, chunk_size, smoothing, dtype):
    texts, options, wanted = WANTED[kind]
    image, text = embeddings(len(wanted), texts, dtype=dtype)
    scale, bias = (torch.tensor(number, dtype=dtype, requires_grad=True) for number in (5.0, -2.0))
    loss = siglip_loss(image, text, scale, bias, label_smoothing=smoothing, chunk_size=chunk_size, **options)
    exact = [each.detach().double().requires_grad_() for each in (image, text, scale, bias)]
    expected = plain_siglip(*exact, wanted.double(), smoothing)
    assert loss.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    near(with_gradients(loss, image, text, scale, bias), with_gradients(expected, *exact), tolerance)


@pytest.mark.parametrize("chunk_size", [None, 16])
def test_clip_keeps_its_digits_at_a_scale_of_100(chunk_size):
    # A loss is the difference of two numbers near 100, which float32 knows to 4e-6 each.
    image, text = embeddings(50, width=16)
    exact = [each.detach().double().requires_grad_() for each in (image, text)]
    expected = plain_clip(*exact, torch.tensor(100.0, dtype=torch.float64), torch.eye(50, dtype=torch.float64))
    loss = clip_loss(image, text, 100.0, chunk_size=chunk_size)
    near(with_gradients(loss, image, text), with_gradients(expected, *exact), 1e-6)


@CHUNKS
def test_losses_do_not_care_who_is_whom(chunk_size):
    image, text = embeddings(5, 7)
    for options, turned in (
        ({"groups": (OF_IMAGE, OF_TEXT)}, {"groups": (OF_TEXT, OF_IMAGE)}),
        ({"targets": MATRIX}, {"targets": MATRIX.T}),
    ):
        one = clip_loss(image, text, 5.0, chunk_size=chunk_size, **options)
        near([clip_loss(text, image, 5.0, chunk_size=chunk_size, **turned)], [one], 1e-5)
        one = siglip_loss(image, text, 5.0, -2.0, chunk_size=chunk_size, **options)
        other = siglip_loss(text, image, 5.0, -2.0, chunk_size=chunk_size, **turned)
        near([other * 7], [one * 5], 1e-5)  # a sum over pairs, divided by the images


# --------------------------------------------------------------------------------------------------------- transformers


def test_modules_are_transformers_losses():
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": 20, "max_position_embeddings": 6, "eos_token_id": 1, "bos_token_id": 0}
    vision = {**small, "image_size": 8, "patch_size": 4}
    words, pixels = torch.randint(2, 20, (5, 6)), torch.randn(5, 3, 8, 8)
    for config, model, make in (
        (transformers.CLIPConfig, transformers.CLIPModel, CLIPLoss),
        (transformers.SiglipConfig, transformers.SiglipModel, SigLIPLoss),
    ):
        options = {"projection_dim": 7} if make is CLIPLoss else {}
        torch.manual_seed(0)
        theirs = model(config(text_config=text, vision_config=vision, **options)).eval()
        ours = make()
        with torch.no_grad():
            theirs.logit_scale.fill_(2.3)
            ours.log_scale.fill_(2.3)
            if make is SigLIPLoss:
                theirs.logit_bias.fill_(-1.5)
                ours.bias.fill_(-1.5)
        found = theirs(input_ids=words, pixel_values=pixels, return_loss=True)
        image, caption = found.image_embeds, found.text_embeds
        near([ours(image, caption)], [found.loss], 1e-5)
        learned = (theirs.logit_scale,) if make is CLIPLoss else (theirs.logit_scale, theirs.logit_bias)
        expected = torch.autograd.grad(found.loss, (image, caption, *learned), retain_graph=True)
        inputs = image.detach().requires_grad_(), caption.detach().requires_grad_()
        gradients = torch.autograd.grad(ours(*inputs), (*inputs, *ours.parameters()))
        # Ours brings embeddings to length 1 again, which takes the part along them out of their gradients.
        for ours_of, theirs_of, unit in zip(gradients[:2], expected[:2], (image, caption), strict=True):
            near([ours_of], [theirs_of - (theirs_of * unit).sum(1, keepdim=True) * unit], 1e-5)
        near([each.reshape(()) for each in gradients[2:]], [each.reshape(()) for each in expected[2:]], 1e-5)
        inputs = image.detach().requires_grad_(), caption.detach().requires_grad_()
        options = {} if make is CLIPLoss else {"bias": -1.5}
        loss = (clip_loss if make is CLIPLoss else siglip_loss)(*inputs, math.exp(2.3), normalize=False, **options)
        near(torch.autograd.grad(loss, inputs), expected[:2], 1e-5)


# --------------------------------------------------------------------------------------------------------- temperature


def test_scale_begins_as_in_the_papers():
    assert CLIPLoss().scale.item() == pytest.approx(1 / 0.07)
    assert SigLIPLoss().scale.item() == pytest.approx(10.0)
    assert SigLIPLoss().bias.item() == -10.0
    assert {name for name, _ in SigLIPLoss().named_parameters()} == {"log_scale", "bias"}
    fixed = SigLIPLoss(learned=False)
    assert not list(fixed.parameters())
    assert set(fixed.state_dict()) == {"log_scale", "bias"}


def test_scale_stops_at_100_and_finds_its_way_back():
    image, text = embeddings(5)
    module = CLIPLoss()
    with torch.no_grad():
        module.log_scale.fill_(9.0)
    loss = module(image, text)
    near([loss], [clip_loss(image, text, 100.0)], 1e-5)
    loss.backward()
    at_bound = CLIPLoss(temperature=0.01)
    at_bound(image, text).backward()
    near([module.log_scale.grad], [at_bound.log_scale.grad], 1e-5)  # a plain clamp would have none
    assert module.log_scale.grad != 0
    module.clamp_()
    assert module.log_scale.item() == pytest.approx(math.log(100.0))
    free = SigLIPLoss(temperature=1e-4)
    free.clamp_()
    assert free.scale.item() == pytest.approx(1e4, rel=1e-5)


# --------------------------------------------------------------------------------------------------------- precision


@CHUNKS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_scores_of_half_precision_are_float32(dtype, chunk_size):
    image, text = embeddings(9, dtype=dtype)
    wide = [each.detach().float().requires_grad_() for each in (image, text)]
    for loss, options in ((clip_loss, ()), (siglip_loss, (-2.0,))):
        found = loss(image, text, 50.0, *options, chunk_size=chunk_size)
        expected = loss(*wide, 50.0, *options)
        assert found.dtype == torch.float32
        near([found], [expected], 1e-6)
        gradients = torch.autograd.grad(found, (image, text))
        assert gradients[0].dtype == dtype
        for one, other in zip(gradients, torch.autograd.grad(expected, wide), strict=True):
            torch.testing.assert_close(one, other.to(dtype), rtol=1e-2, atol=1e-4)


@CHUNKS
def test_autocast_does_not_reach_the_scores(chunk_size):
    image, text = embeddings(9)
    plain = CLIPLoss(chunk_size=chunk_size)(image, text)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = CLIPLoss(chunk_size=chunk_size)(image, text)
    near([inside], [plain], 1e-6)


def test_a_module_in_bfloat16_computes_in_float32():
    image, text = embeddings(9, dtype=torch.bfloat16)
    for module in (CLIPLoss(), SigLIPLoss()):
        wide = module(image.float(), text.float())
        module.to(torch.bfloat16)
        assert module(image, text).dtype == torch.float32
        torch.testing.assert_close(module(image, text), wide, rtol=2e-2, atol=0.0)


# --------------------------------------------------------------------------------------------------------- chunks


class Largest(torch.overrides.TorchFunctionMode):
    """The number of entries of the largest tensor that any function of torch gives back."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor):
            self.entries = max(self.entries, found.numel())
        return found


@pytest.mark.parametrize("options", [{}, {"groups": torch.arange(64) // 2}], ids=["pairs", "groups"])
def test_chunks_never_hold_all_scores(options):
    image, text = embeddings(64, width=4)
    for loss, more in ((clip_loss, ()), (siglip_loss, (-2.0,))):
        for chunk_size, most in ((4, 64 * 4), (None, 64 * 64)):
            with Largest() as seen:
                loss(image, text, 5.0, *more, chunk_size=chunk_size, **options).backward()
            assert seen.entries == most


@CHUNKS
def test_targets_are_left_as_they_were(chunk_size):
    targets, (image, text) = MATRIX.clone(), embeddings(5, 7)
    for smoothing in (0.0, 0.2):
        clip_loss(image, text, 5.0, targets=targets, chunk_size=chunk_size, label_smoothing=smoothing).backward()
        siglip_loss(image, text, 5.0, 0.0, targets=targets, chunk_size=chunk_size, label_smoothing=smoothing).backward()
    assert torch.equal(targets, MATRIX)


def test_a_loss_without_gradients():
    image, text = (each.detach() for each in embeddings(5))
    for chunk_size in (None, 2):
        assert not clip_loss(image, text, 5.0, chunk_size=chunk_size).requires_grad
        assert not siglip_loss(image, text, 5.0, -2.0, chunk_size=chunk_size).requires_grad


def test_second_derivatives_are_right_or_refused():
    image, text = embeddings(3, width=2, dtype=torch.float64)
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(clip_loss, (image, text, scale))
    assert torch.autograd.gradgradcheck(siglip_loss, (image, text, scale, bias))
    for loss in (clip_loss(image, text, 2.0, chunk_size=2), siglip_loss(image, text, 2.0, -1.0, chunk_size=2)):
        with pytest.raises(regard.UnsupportedError, match="the chunked loss has no gradient of its gradient"):
            torch.autograd.grad(loss, image, create_graph=True)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # what torch's own tracer does
@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("make", [CLIPLoss, SigLIPLoss])
def test_compiles_without_a_graph_break(make, chunk_size):
    torch._dynamo.reset()
    image, text = embeddings(9)
    module = make(chunk_size=chunk_size)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    inputs = (image, text, *module.parameters())
    near(with_gradients(compiled(image, text), *inputs), with_gradients(module(image, text), *inputs), 1e-6)


def test_empty_batches_lose_nothing():
    image, text = embeddings(0)
    for chunk_size in (None, 2):
        for loss in (
            clip_loss(image, text, 5.0, chunk_size=chunk_size),
            siglip_loss(image, text, 5.0, -2.0, chunk_size=chunk_size),
            clip_loss(*embeddings(3), 5.0, chunk_size=chunk_size, targets=torch.zeros(3, 3)),
        ):
            assert loss.item() == 0.0
        loss.backward()


def test_groups_are_counted_without_a_table():
    rows, columns = Matches(5, 7, OF_IMAGE, OF_TEXT).totals(torch.zeros(()))
    assert rows.tolist() == [2, 2, 2, 0, 2]
    assert columns.tolist() == [2, 1, 1, 1, 0, 2, 1]


# --------------------------------------------------------------------------------------------------------- refusals


def test_refusals_say_what_to_do():
    image, text = embeddings(5)
    with pytest.raises(regard.ShapeError, match=r"text: expected as many as images, 5, got 4\. Say with groups="):
        clip_loss(image, text[:4], 5.0)
    with pytest.raises(regard.ShapeError, match=r"image: expected floating-point \(batch, width\).*Pool each sample"):
        clip_loss(image[None], text, 5.0)
    with pytest.raises(regard.ShapeError, match="text width: expected 6, as image has, got 5"):
        siglip_loss(image, text[:, :5], 5.0, -2.0)
    with pytest.raises(regard.ShapeError, match=r"groups of texts: expected \(5,\), got \(4,\)"):
        clip_loss(image, text, 5.0, groups=(torch.arange(5), torch.arange(4)))
    with pytest.raises(regard.ShapeError, match=r"groups of images: expected integers, got torch.float32"):
        clip_loss(image, text, 5.0, groups=torch.zeros(5))
    with pytest.raises(regard.ShapeError, match=r"targets: expected \(5, 5\), got \(5,\)"):
        siglip_loss(image, text, 5.0, -2.0, targets=torch.zeros(5))
    with pytest.raises(regard.ArgumentError, match="groups: expected groups or targets, got both"):
        clip_loss(image, text, 5.0, groups=torch.arange(5), targets=torch.eye(5))
    with pytest.raises(regard.ArgumentError, match="chunk_size: expected a whole number of at least 1, got 0"):
        CLIPLoss(chunk_size=0)
    with pytest.raises(regard.ArgumentError, match=r"label_smoothing: expected a number from 0 to 1, got 1\.5"):
        SigLIPLoss(label_smoothing=1.5)
    with pytest.raises(regard.ArgumentError, match=r"temperature: expected a positive number, got 0\.0"):
        CLIPLoss(temperature=0.0)


def test_the_gradient_is_that_of_torchs_cross_entropy():
    image, text = embeddings(5)
    unit = functional.normalize(image, dim=1), functional.normalize(text, dim=1)
    scores, place = 5.0 * unit[0] @ unit[1].T, torch.arange(5)
    for smoothing in (0.0, 0.1):
        expected = 0.5 * (
            functional.cross_entropy(scores, place, label_smoothing=smoothing)
            + functional.cross_entropy(scores.T, place, label_smoothing=smoothing)
        )
        found = clip_loss(image, text, 5.0, label_smoothing=smoothing)
        gradients = torch.autograd.grad(expected, (image, text), retain_graph=True)
        near(with_gradients(found, image, text), (expected, *gradients), 1e-6)
