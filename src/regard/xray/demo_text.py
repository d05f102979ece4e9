"""The text that `regard xray` shows when none is given: two words that need their neighbours to mean anything.

English "bank" is a house of money or the side of a river; Chinese 行 is "flow" after 河水, "walk" in 行人 and
half of "bank" in 银行. The Chinese keeps to characters that the default model's English vocabulary knows,
but for 银, so that the page shows an unknown word too.
"""

ENGLISH = (
    "The bank by the river was closed, so she sat down on the grassy bank and counted her coins. "
    "Far from the water, another bank was still lending money. Which of the two banks did she mean?"
)

CHINESE = "河水山中行，行人城中行，银行大道中。"

DEMO_TEXT = f"{ENGLISH}\n{CHINESE}\n"
