"""`verify`: is this attention? A target is asked a table of questions, and each answer compared with the truth.

case, drawn                        a question with a name, made from sizes and a seed, that can write itself as Python
cases, edge_cases, random_cases    what is asked
answers, checks                    what a target makes of a question, and whether that is right
examiner, smallest_case            one target asked case by case; a failure made as small as it can be
entry, report, known_faults        the function, its answer, and what is known of torch's own
"""

from regard.trust.verify.checks import drops as drops
from regard.trust.verify.checks import refuses as refuses
from regard.trust.verify.checks import right as right
from regard.trust.verify.checks import same_bits as same_bits
from regard.trust.verify.drawn import LAYOUTS as LAYOUTS
from regard.trust.verify.drawn import beside_boundary as beside_boundary
from regard.trust.verify.drawn import drawn as drawn
from regard.trust.verify.drawn import drawn_tables as drawn_tables
from regard.trust.verify.drawn import every_other as every_other
from regard.trust.verify.drawn import heads_last as heads_last
from regard.trust.verify.drawn import last_stride_not_one as last_stride_not_one
from regard.trust.verify.drawn import shared_by_heads as shared_by_heads
from regard.trust.verify.entry import verify as verify
from regard.trust.verify.report import CaseResult as CaseResult
from regard.trust.verify.report import NotOffered as NotOffered
from regard.trust.verify.report import Report as Report
from regard.trust.verify.report import Worst as Worst

__all__ = [
    "LAYOUTS",
    "CaseResult",
    "NotOffered",
    "Report",
    "Worst",
    "beside_boundary",
    "drawn",
    "drawn_tables",
    "drops",
    "every_other",
    "heads_last",
    "last_stride_not_one",
    "refuses",
    "right",
    "same_bits",
    "shared_by_heads",
    "verify",
]
