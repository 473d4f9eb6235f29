"""The OpenAI API: requests, answers, server-sent events and API keys."""
