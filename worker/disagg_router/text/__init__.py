"""The text side of a model: tokenizer, chat template, detokenizer and stop strings."""
