"""English to Chinese (or German), with word alignment."""
