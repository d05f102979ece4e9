"""What attention shows, said with numbers: word alignment, how it is extracted, scored and taught.

Links are pairs (source word, target word), counted from 0. Weights are (target, source), a row for each target word.
"""

from regard.explain.alignment import GoldAlignment as GoldAlignment
from regard.explain.alignment import reversed_links as reversed_links
from regard.explain.alignment_extract import argmax_links as argmax_links
from regard.explain.alignment_extract import symmetrised as symmetrised
from regard.explain.alignment_extract import target_rows as target_rows
from regard.explain.alignment_extract import threshold_links as threshold_links
from regard.explain.alignment_score import AlignmentScore as AlignmentScore
from regard.explain.alignment_score import score_alignment as score_alignment
from regard.explain.alignment_score import score_alignments as score_alignments
from regard.explain.guided import WatchedHead as WatchedHead
from regard.explain.guided import guided_alignment_loss as guided_alignment_loss
from regard.explain.guided import link_tensor as link_tensor
from regard.explain.ibm1 import IBM1 as IBM1
from regard.explain.pharaoh import FileLine as FileLine
from regard.explain.pharaoh import gold_of as gold_of
from regard.explain.pharaoh import read_pharaoh as read_pharaoh
from regard.explain.pharaoh import write_pharaoh as write_pharaoh
from regard.explain.word_level import word_links as word_links
from regard.explain.word_level import word_weights as word_weights

__all__ = [
    "IBM1",
    "AlignmentScore",
    "FileLine",
    "GoldAlignment",
    "WatchedHead",
    "argmax_links",
    "gold_of",
    "guided_alignment_loss",
    "link_tensor",
    "read_pharaoh",
    "reversed_links",
    "score_alignment",
    "score_alignments",
    "symmetrised",
    "target_rows",
    "threshold_links",
    "word_links",
    "word_weights",
    "write_pharaoh",
]
