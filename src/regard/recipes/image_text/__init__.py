"""Emoji and captions in two languages: image and text towers that meet in one space, with CLIP's loss or SigLIP's."""
