"""PURE: The engines that the adapter knows, one module each."""
