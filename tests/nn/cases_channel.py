"""Channel attention, for the laws."""

from regard import nn as mechanisms
from tests.nn.cases import Case, images

SIDES = (1, 2, 7, 12)


def case(name, make, channels=6, **more):
    return Case(name, make, images(channels), empty=False, lengths=SIDES, **more)


CASES = [
    case("se", lambda: mechanisms.SqueezeExcitation(6, reduction=2)),
    case("se one hidden unit", lambda: mechanisms.SqueezeExcitation(6)),
    case("se swish", lambda: mechanisms.SqueezeExcitation(6, activation="silu", gate="hard_sigmoid", bias=False)),
    case("effective se", lambda: mechanisms.EffectiveSqueezeExcitation(6)),
    case("eca", lambda: mechanisms.EfficientChannel(6)),
    case("eca circular", lambda: mechanisms.EfficientChannel(6, kernel_size=5, circular=True)),
    case("channel gate", lambda: mechanisms.ChannelGate(6, reduction=2)),
    case("channel gate light", lambda: mechanisms.ChannelGate(6, reduction=2, light=True)),
    case("gather excite", lambda: mechanisms.GatherExcite(6, reduction=2)),
    case("gather excite near", lambda: mechanisms.GatherExcite(6, extent=4, mlp=False)),
    case("gather excite learned", lambda: mechanisms.GatherExcite(6, extent=4, learned=True, reduction=2)),
    case("global context", lambda: mechanisms.GlobalContext(6, reduction=2)),
    case("global context scale", lambda: mechanisms.GlobalContext(6, reduction=2, fusion="scale", attend=False)),
    case("global context both", lambda: mechanisms.GlobalContext(6, reduction=2, fusion="both")),
    case("selective kernel", lambda: mechanisms.SelectiveKernel(6)),
    case("selective kernel split", lambda: mechanisms.SelectiveKernel(6, 8, stride=2, split=True, dilated=False)),
    case("coordinate", lambda: mechanisms.CoordinateAttention(6)),
]
