"""flax nnx networks; the first ones come with deep models."""
