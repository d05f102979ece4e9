"""The tests of torch, transformers and others, run as they are with regard active: nothing may fail that plain torch
does not fail. `python -m tests.others.compare --help`; docs/trust.md says where to get them."""
