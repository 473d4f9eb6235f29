"""The engine's speed on a GPU beside what the GPU can do, measured in the same run."""
