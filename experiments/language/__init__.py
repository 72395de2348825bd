"""Pretrained language models in the studies: loading, scoring candidates, heads for encoders, generation."""
