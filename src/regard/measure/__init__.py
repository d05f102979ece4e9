"""What it costs here: time and peak memory of a function on this machine."""

from regard.measure.cost import Cost as Cost
from regard.measure.cost import cost_of as cost_of
from regard.measure.cost import growth as growth
from regard.measure.cost import peak_bytes as peak_bytes
from regard.measure.peak import fma_peak as fma_peak

__all__ = ["Cost", "cost_of", "fma_peak", "growth", "peak_bytes"]
