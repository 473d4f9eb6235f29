"""The way of one request through its attempts: choose workers, reserve, prefill, transfer and
decode.
"""
