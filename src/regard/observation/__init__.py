"""What was seen of attention: weights on demand and statistics, under fused kernels."""

from regard.observation.layer import ObservedLayer as ObservedLayer
from regard.observation.model import Observation as Observation
from regard.observation.model import observe as observe
from regard.observation.statistics import Statistics as Statistics
from regard.observation.statistics import statistics as statistics
from regard.observation.tiles import weights as weights

__all__ = ["Observation", "ObservedLayer", "Statistics", "observe", "statistics", "weights"]
