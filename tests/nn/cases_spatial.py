"""Spatial attention, for the laws."""

from regard import nn as mechanisms
from tests.nn.cases_channel import case

CASES = [
    case("spatial gate", lambda: mechanisms.SpatialGate(6)),
    case("spatial gate light", lambda: mechanisms.SpatialGate(6, kernel_size=3, light=True)),
    case("cbam", lambda: mechanisms.CBAM(6, reduction=2)),
    case("bam", lambda: mechanisms.BAM(6, reduction=2)),
    case("non-local", lambda: mechanisms.NonLocal(6, zero_init=False)),
    case("non-local dot product", lambda: mechanisms.NonLocal(6, form="dot_product", zero_init=False)),
    case("non-local subsampled", lambda: mechanisms.NonLocal(6, subsample=2, scale=1.0, zero_init=False)),
    case("halo", lambda: mechanisms.HaloAttention(6, 2, block_size=4, halo_size=1)),
    case("halo masked", lambda: mechanisms.HaloAttention(6, 2, block_size=3, halo_size=2, border="masked", bias=True)),
    case(
        "halo alone", lambda: mechanisms.HaloAttention(6, 1, block_size=5, halo_size=0, key_dim=4, scale_position=True)
    ),
]
